# Shared by the scripts beside it: building, starting servers in a directory of their own, load, and the final audit.
# Sourced, not run.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Where the programs are; set LASTWORD_BIN to use others than a release build.
BIN=${LASTWORD_BIN:-$ROOT/target/release}
export NO_COLOR=1

DIR=            # everything of this run: data, output, load
PORTS=()        # of the servers, counted from 0
PIDS=()         # of the running servers; empty where none runs
LOAD_PIDS=()    # of the programs that send

say() { printf '%s  %s\n' "$(date +%H:%M:%S)" "$*"; }
fail() {
    say "FAILED: $*"
    exit 1
}

build() {
    [[ -n ${LASTWORD_BIN:-} ]] && return
    say "building"
    (cd "$ROOT" && cargo build --release --locked --quiet --bins)
}

# Ends what this script has started, by process id, and removes what it has made.
cleanup() {
    local code=$? pid
    trap - EXIT INT TERM
    for pid in "${LOAD_PIDS[@]}" "${PIDS[@]}"; do
        if [[ -n $pid ]]; then kill -9 "$pid" 2>/dev/null || true; fi
    done
    wait 2>/dev/null || true
    if [[ -n $DIR && $code -ne 0 ]]; then
        say "what the servers said is in $DIR"
    elif [[ -n $DIR ]]; then
        rm -rf "$DIR"
    fi
    exit "$code"
}

# Numbers of free ports below those that outgoing connections take.
free_ports() {
    python3 - "$1" <<'PYTHON'
import random, socket, sys
found = []
while len(found) < int(sys.argv[1]):
    port = random.randrange(12000, 30000)
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            continue
    if port not in found:
        found.append(port)
print(*found)
PYTHON
}

new_cluster() {
    DIR=$(mktemp -d "${TMPDIR:-/tmp}/lastword.XXXXXX")
    trap cleanup EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    read -ra PORTS <<<"$(free_ports 3)"
    PIDS=("" "" "")
    export LASTWORD_SERVERS="127.0.0.1:${PORTS[0]},127.0.0.1:${PORTS[1]},127.0.0.1:${PORTS[2]}"
    export LASTWORD_PASSWORD="correct horse battery"
    export LASTWORD_STATE="$DIR/state/main"
    # No settings of the person who runs this.
    export XDG_CONFIG_HOME="$DIR/config"
    unset LASTWORD_USER
}

# start N: starts server N (0, 1, 2); the first one is the primary of a new cluster.
start() {
    local at=$1 role=secondary
    [[ $at -eq 0 ]] && role=primary
    "$BIN/server" "$role" "${PORTS[$at]}" --cluster "$LASTWORD_SERVERS" --data "$DIR/data/${PORTS[$at]}" \
        </dev/null >"$DIR/out.$at" 2>>"$DIR/err.$at" &
    PIDS[at]=$!
}

wait_ready() {
    local at
    for at in "$@"; do
        for _ in $(seq 600); do
            grep -q '^ready ' "$DIR/out.$at" && continue 2
            kill -0 "${PIDS[$at]}" 2>/dev/null || { tail -5 "$DIR/err.$at"; fail "server $((at + 1)) ended"; }
            sleep 0.05
        done
        tail -5 "$DIR/err.$at"
        fail "server $((at + 1)) is not ready after 30 s"
    done
}

start_all() {
    say "starting three servers on ports ${PORTS[*]}, data in $DIR/data"
    start 0
    start 1
    start 2
    wait_ready 0 1 2
    wait_members 3
}

# crash N…: kill -9, all at once.
crash() {
    local at pids=()
    for at in "$@"; do
        say "kill -9 server $((at + 1)) ($(role_of "$at")), process ${PIDS[$at]}"
        pids+=("${PIDS[$at]}")
    done
    kill -9 "${pids[@]}"
    for at in "$@"; do
        wait "${PIDS[$at]}" 2>/dev/null || true
        PIDS[at]=
    done
}

client() { "$BIN/client" "$@"; }

# status PYTHON: evaluates an expression over `servers`, the objects that `client --json status` prints.
status() {
    client --json status 2>/dev/null | python3 -c '
import json, sys
servers = [json.loads(line) for line in sys.stdin]
ports = sys.argv[2].split()
at = lambda server: ports.index(server["server"].rsplit(":", 1)[1])
print(eval(sys.argv[1]))' "$1" "${PORTS[*]}"
}

role_of() { status "next(s['role'] for s in servers if at(s) == $1)" || true; }

# Waits until a server leads, and prints its number.
primary() {
    local found
    for _ in $(seq 300); do
        found=$(status "' '.join(str(at(s)) for s in servers if s['role'] == 'primary')" || true)
        if [[ $found =~ ^[012]$ ]]; then
            printf '%s\n' "$found"
            return
        fi
        sleep 0.1
    done
    fail "no server leads after 30 s" >&2
}

# Waits until the view has so many members.
wait_members() {
    for _ in $(seq 300); do
        [[ $(status "max((len(s['members']) for s in servers if s['role'] == 'primary'), default=0)" || true) == "$1" ]] \
            && return
        sleep 0.1
    done
    client status || true
    fail "the view has not $1 members after 30 s"
}

# One account that receives, three that send to it, each with a session of its own.
SENDERS=3
start_load() {
    local sender
    client --user receiver register receiver >/dev/null 2>&1
    for sender in $(seq $SENDERS); do
        LASTWORD_STATE="$DIR/state/$sender" client --user "sender$sender" register "sender$sender" >/dev/null 2>&1
        send_until_stopped "$sender" &
        LOAD_PIDS+=($!)
    done
    say "$SENDERS clients send one message after the other, to whichever server leads"
}

send_until_stopped() {
    local sender=$1 number=0 code
    export LASTWORD_STATE="$DIR/state/$sender"
    while [[ ! -e $DIR/stop ]]; do
        number=$((number + 1))
        code=0
        client --user "sender$sender" --timeout 30 send receiver "sender $sender message $number" \
            >/dev/null 2>>"$DIR/load.err" || code=$?
        printf '%s %s sender %s message %s\n' "$EPOCHREALTIME" "$code" "$sender" "$number" >>"$DIR/sent.$sender"
    done
}

# keep_sending SECONDS: lets the load run.
keep_sending() {
    sleep "$1"
    say "$(cat "$DIR"/sent.* | awk '$2 == 0' | wc -l) messages are acknowledged so far"
}

# Stops the load and checks that every acknowledged message is there exactly once, and none twice.
audit() {
    local pid
    touch "$DIR/stop"
    for pid in "${LOAD_PIDS[@]}"; do wait "$pid" || true; done
    LOAD_PIDS=()
    client --user receiver --json --timeout 30 read --peek >"$DIR/received"
    python3 - "$DIR" <<'PYTHON'
import collections, glob, json, sys
directory = sys.argv[1]
acknowledged, other, gap = set(), collections.Counter(), 0.0
for path in glob.glob(directory + "/sent.*"):
    last = None
    for line in open(path):
        time, code, text = line.rstrip("\n").split(" ", 2)
        if code == "0":
            acknowledged.add(text)
            if last is not None:
                gap = max(gap, float(time) - last)
            last = float(time)
        else:
            other[code] += 1
found = collections.Counter(json.loads(line)["text"] for line in open(directory + "/received"))
lost = sorted(text for text in acknowledged if not found[text])
doubled = sorted(text for text, count in found.items() if count > 1)
print(f"          {len(acknowledged)} acknowledged, {len(lost)} of them lost, {len(doubled)} messages doubled")
print(f"          longest gap between two acknowledgements of one client: {gap:.2f} s")
if other:
    print("          not acknowledged, by exit code of the client:", dict(other))
for text in (lost + doubled)[:10]:
    print("          ", text)
sys.exit(1 if lost or doubled or other["3"] or not acknowledged else 0)
PYTHON
}
