"""Real servers and clients for scripts: what protocol.md says, with python's standard library alone."""

import collections
import math
import os
import random
import secrets
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PASSWORD = "correct horse battery"

STATUS, SEEN, REGISTER, LOGIN, RESUME, LOGOUT, CHANGE_PASSWORD = 0x02, 0x03, 0x10, 0x11, 0x12, 0x13, 0x14
LIST, SEND, READ, ACKNOWLEDGE, DELETE, HISTORY, SUBSCRIBE = 0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26
STATUS_IS, DONE, RESUMED, MESSAGES, ERROR, PUSH_MESSAGE = 0x82, 0x90, 0x92, 0xA2, 0xBF, 0xC0
NOT_LOGGED_IN, WRONG_PASSWORD, TOO_MANY_ATTEMPTS, SESSION_EXPIRED, NO_SUCH_MESSAGE = 10, 11, 12, 13, 31
NOT_PRIMARY, BUSY, TOO_FEW_COPIES, DISK_FULL, CONFLICT = 40, 42, 43, 44, 47


def programs():
    """The directory of the programs, built if need be; LASTWORD_BIN names another one."""
    if os.environ.get("LASTWORD_BIN"):
        return Path(os.environ["LASTWORD_BIN"])
    subprocess.run(["cargo", "build", "--release", "--locked", "--quiet", "--bins"], cwd=ROOT, check=True)
    return ROOT / "target/release"


def string(text):
    data = text.encode()
    return struct.pack(">H", len(data)) + data


def frame(opcode, request, body=b""):
    return struct.pack(">IBI", 5 + len(body), opcode, request) + body


class Fields:
    """Takes a body apart."""

    def __init__(self, body):
        self.body, self.at = body, 0

    def take(self, form):
        values = struct.unpack_from(">" + form, self.body, self.at)
        self.at += struct.calcsize(">" + form)
        return values[0] if len(values) == 1 else values

    def string(self):
        size = self.take("H")
        self.at += size
        return self.body[self.at - size : self.at].decode()

    def strings(self):
        return [self.string() for _ in range(self.take("H"))]


class Closed(Exception):
    """The connection ended before the response."""


class Connection:
    def __init__(self, address, timeout):
        self.socket = socket.create_connection(address, timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        self.pushed = []  # (id, cursor, text) of messages that nobody has taken in yet

    def ask(self, opcode, request, body, timeout, before=b""):
        """Sends a request and returns (opcode, fields) of its response. TimeoutError, Closed."""
        try:
            self.socket.settimeout(timeout)
            self.socket.sendall(before + frame(opcode, request, body))
            while True:
                found, number, fields = self.receive()
                if number == request and found < 0xC0:
                    return found, fields
        except TimeoutError:
            raise
        except OSError as error:
            raise Closed(str(error)) from error

    def receive(self):
        """The next frame: (opcode, request id, fields)."""
        length = struct.unpack(">I", self.exactly(4, keep=True))[0]
        answer = self.exactly(4 + length)[4:]
        found, number = struct.unpack_from(">BI", answer)
        if found == PUSH_MESSAGE:
            self.pushed.append(message(Fields(answer[5:])))
        return found, number, Fields(answer[5:])

    def exactly(self, count, keep=False):
        while len(self.buffer) < count:
            piece = self.socket.recv(65536)
            if not piece:
                raise Closed("end of stream")
            self.buffer += piece
        part = self.buffer[:count]
        self.buffer = self.buffer if keep else self.buffer[count:]
        return part

    def close(self):
        self.socket.close()


class Policy:
    """Whom to ask next: the same rules as src/client/policy.rs."""

    def __init__(self, servers):
        self.servers, self.target = servers, 0
        self.on_success()

    def on_success(self):
        self.done, self.absent, self.closed = set(), set(), set()
        self.wait, self.failing_since = 0.002, None

    def on_failure(self, kind, hint=None):
        """The target has failed; says how long to wait before the next attempt, at the new target."""
        self.failing_since = self.failing_since or time.monotonic()
        if kind == "closed" and self.target not in self.closed:
            self.closed.add(self.target)
            return 0
        if kind == "busy":
            return self.next_wait()
        (self.absent.add if kind in ("refused", "timeout") else self.absent.discard)(self.target)
        self.done.add(self.target)
        if hint is not None and hint not in self.done:
            self.target = hint
            return 0
        order = [(self.target + step) % self.servers for step in range(1, self.servers + 1)]
        untried = [server for server in order if server not in self.done]
        if untried:
            self.target = untried[0]
            return 0
        present = [server for server in range(self.servers) if server not in self.absent]
        self.target = present[0] if present else (self.target + 1) % self.servers
        self.done, self.absent, self.closed = set(), set(), set()
        return self.next_wait()

    def next_wait(self):
        wait = self.wait
        young = time.monotonic() - self.failing_since < 3
        self.wait = min(wait * 1.5, 0.1 if young else 1.0)
        return wait / 2 + random.random() * wait / 2


class Refused(Exception):
    def __init__(self, code, text):
        super().__init__(f"error {code}: {text}")
        self.code = code


class Person:
    """A client that knows all servers, retries with the same number, and resumes its session by its token."""

    PATIENCE = 90
    # By then the others have found a silent primary dead, and go on without it.
    ANSWER_WITHIN = 0.7

    def __init__(self, cluster, name, opcode=REGISTER):
        """Registers the name, or logs in as one that exists."""
        self.cluster, self.name = cluster, name
        self.client, self.token = secrets.token_bytes(8), secrets.token_bytes(32)
        self.policy, self.connection, self.number = Policy(3), None, 0
        self.logins_asked_for, self.refusals = 0, collections.Counter()
        self.command(opcode, string(name) + string(PASSWORD) + self.client + self.token)

    def command(self, opcode, body):
        """Carried out once, however often it is tried. Returns the response's fields."""
        self.number += 1
        seen = struct.pack(">I", self.number - 1) + bytes(5)
        return self.carry_out(opcode, self.number, body, frame(SEEN, 0, seen))

    def question(self, opcode, body):
        return self.carry_out(opcode, 0, body)

    def carry_out(self, opcode, number, body, before=b""):
        until = time.monotonic() + self.PATIENCE
        while True:
            hint = None
            try:
                found, fields = self.attempt(opcode, number, body, before)
                if found != ERROR:
                    self.policy.on_success()
                    return fields
                code, flags, text = fields.take("H"), fields.take("B"), fields.string()
                self.refusals[code] += 1
                if code in (NOT_LOGGED_IN, SESSION_EXPIRED):
                    self.logins_asked_for += 1
                if not flags & 1:
                    raise Refused(code, text)
                kind = "busy" if code in (BUSY, TOO_FEW_COPIES, DISK_FULL) else "elsewhere"
                hint = self.cluster.place_of(fields.string()) if code == NOT_PRIMARY else None
                reason = text
            except ConnectionRefusedError as error:
                kind, reason = "refused", error
            except TimeoutError as error:
                kind, reason = "timeout", error
            except (Closed, OSError) as error:
                kind, reason = "closed", error
            if time.monotonic() > until:
                raise TimeoutError(f"{self.name} was not served within {self.PATIENCE} s: {reason}")
            if kind != "busy":
                self.disconnect()
            time.sleep(self.policy.on_failure(kind, hint))

    def attempt(self, opcode, number, body, before):
        if self.connection is None:
            self.connection = Connection(self.cluster.addresses[self.policy.target], 0.25)
            if opcode not in (REGISTER, LOGIN):
                found, fields = self.connection.ask(RESUME, 0, self.client + self.token, self.ANSWER_WITHIN)
                if found != RESUMED:
                    return found, fields
        return self.connection.ask(opcode, number, body, self.ANSWER_WITHIN, before)

    def disconnect(self):
        if self.connection:
            self.connection.close()
        self.connection = None

    def send(self, to, text):
        """Returns the number of the server that led when the message was acknowledged."""
        fields = self.command(SEND, string(to) + string(text))
        fields.take("Q")
        _, server = fields.take("IB")
        return server

    def waiting(self):
        """The texts of all waiting messages; they stay."""
        after, more, texts = 0, True, []
        while more:
            more, page = messages(self.question(READ, struct.pack(">QH", after, 500)))
            texts += [text for _, text in page]
            after = page[-1][0] if page else after
        return texts

    def history(self, other, limit=None):
        """The texts exchanged with another account: all, or the last ones."""
        before, more, texts = 0, True, []
        while more:
            body = string(other) + struct.pack(">QH", before, limit or 500)
            more, page = messages(self.question(HISTORY, body))
            texts = [text for _, text in page] + texts
            before = page[0][0] if page else before
            if limit:
                break
        return texts


def messages(fields):
    """(more, [(cursor, text)])"""
    more, count = fields.take("B"), fields.take("H")
    return bool(more), [message(fields)[1:] for _ in range(count)]


def message(fields):
    """(id, cursor, text)"""
    name = fields.take("16s")
    fields.string()
    fields.string()
    _, _, cursor = fields.take("QBQ")
    return name, cursor, fields.string()


class Cluster:
    """Three servers on free ports, with a directory of their own. Servers count from 0 here."""

    def __init__(self, directory, binaries):
        self.directory, self.binaries = Path(directory), binaries
        self.addresses = [("127.0.0.1", port) for port in free_ports(3)]
        self.splits = []  # [from, until or None]: when servers may have served apart from each other
        self.name_servers()

    def name_servers(self):
        self.names = [f"{host}:{port}" for host, port in self.addresses]
        self.own_addresses = self.addresses  # where they listen, if something stands between
        self.prefixes = [[], [], []]  # commands that run them
        self.processes = [None, None, None]

    def place_of(self, name):
        return self.names.index(name) if name in self.names else None

    def was_split(self, since, until=math.inf):
        return any(began <= until and (ended is None or since <= ended) for began, ended in self.splits)

    def start(self, at):
        assert self.processes[at] is None, f"server {at + 1} runs already"
        host, port = self.own_addresses[at]
        arguments = ["primary" if at == 0 else "secondary", str(port), "--listen", host, "--advertise", self.names[at]]
        arguments += ["--cluster", ",".join(self.names), "--data", str(self.data(at))]
        with open(self.directory / f"out.{at + 1}", "wb") as out, open(self.directory / f"err.{at + 1}", "ab") as err:
            self.processes[at] = subprocess.Popen(
                [*self.prefixes[at], str(self.binaries / "server"), *arguments],
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, env={**os.environ, "NO_COLOR": "1"},
            )  # fmt: skip

    def data(self, at):
        return self.directory / f"data/{at + 1}"

    def signal(self, at, number):
        self.processes[at].send_signal(number)

    def kill(self, *servers):
        """kill -9, as close together as possible. Returns when."""
        for at in servers:
            self.signal(at, signal.SIGKILL)
        when = time.monotonic()
        for at in servers:
            self.processes[at].wait()
            self.processes[at] = None
        return when

    def kill_all(self):
        running = [at for at in range(3) if self.processes[at]]
        for at in running:
            self.signal(at, signal.SIGCONT)
        self.kill(*running)

    def stop(self, *servers, limit=30):
        """Orderly: SIGTERM, and wait. Gives the exit codes."""
        for at in servers:
            self.signal(at, signal.SIGTERM)
        codes = [self.processes[at].wait(limit) for at in servers]
        for at in servers:
            self.processes[at] = None
        return codes

    def status(self, at, timeout=0.5):
        """What a server says of itself; None if it says nothing."""
        try:
            connection = Connection(self.own_addresses[at], timeout)
            try:
                found, fields = connection.ask(STATUS, 0, b"", timeout)
            finally:
                connection.close()
        except (OSError, Closed):
            return None
        if found != STATUS_IS:
            return None
        status = {"server": fields.string(), "role": fields.string(), "view": fields.take("IB")}
        status |= {"primary": fields.string(), "members": fields.strings(), "configured": fields.strings()}
        for index in ("last", "synced", "commit", "applied", "lag", "since"):
            status[index] = fields.take("Q")
        return status | {"note": fields.string()}

    def primary(self):
        """Who leads; None if nobody does at the moment."""
        leaders = [at for at in range(3) if (self.status(at) or {}).get("role") == "primary"]
        return leaders[0] if len(leaders) == 1 else None

    def wait_members(self, count=3, limit=30):
        """Waits until the running servers agree on a view of so many members, and gives the primary."""
        running = [at for at in range(3) if self.processes[at]]
        until = time.monotonic() + limit
        while time.monotonic() < until:
            statuses = {at: self.status(at) for at in running}
            if all(
                s and len(s["members"]) == count and s["role"] in ("primary", "backup") for s in statuses.values()
            ) and len({s["view"] for s in statuses.values()}) == 1:
                return next(at for at in running if statuses[at]["role"] == "primary")
            for at in running:
                if self.processes[at].poll() is not None:
                    raise RuntimeError(f"server {at + 1} ended with code {self.processes[at].returncode}")
            time.sleep(0.01)
        raise TimeoutError(f"the view has not {count} members after {limit} s: {statuses}")


PORTS_GIVEN = set()


def free_ports(count):
    """Free ports below those that outgoing connections take; none that was given to another cluster of this process."""
    found = []
    while len(found) < count:
        port = random.randrange(12000, 30000)
        if port in PORTS_GIVEN:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        PORTS_GIVEN.add(port)
        found.append(port)
    return found


def require_strace():
    """Ends the script, and says why, unless strace is there and may trace and inject."""
    try:
        probe = subprocess.run(["strace", "-qq", "-o", "/dev/null", "-e", "inject=fdatasync:error=EIO", "true"], capture_output=True, text=True)
    except FileNotFoundError:
        sys.exit("found no strace in the path, expected it: it makes calls to the disk fail or slow")
    if probe.returncode:
        sys.exit(f"strace is refused here ({probe.stderr.strip()}), expected to be allowed to trace")


class Hiccups(threading.Thread):
    """Notes when this machine let a sleeping thread, or its disk an fdatasync, wait: a gap may be the machine's."""

    def __init__(self, wait):
        super().__init__(daemon=True)
        self.wait, self.noted = wait, []
        self.start()

    @staticmethod
    def of_processor():
        return Hiccups(lambda: None)

    @staticmethod
    def of_disk(directory):
        file = open(Path(directory) / "hiccups", "wb", buffering=0)

        def wait():
            file.write(b"x")
            os.fdatasync(file.fileno())

        return Hiccups(wait)

    def run(self):
        while True:
            before = time.monotonic()
            time.sleep(0.01)
            self.wait()
            late = time.monotonic() - before - 0.01
            if late > 0.01:
                self.noted.append((before, late))

    def longest(self, start, end):
        return max((late for at, late in self.noted if start - late < at < end), default=0.0)
