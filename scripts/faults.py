"""The kinds of faults that chaos brings: each is begun, lasts some seconds, ends, and says how often it hit something."""

import itertools
import math
import random
import subprocess
import time

import lastword
import worlds

CLIENTS = "c"
# So short that nobody who is cut off takes the others for dead: 0.5 s of silence, and 3 s for a minority (V11).
CUT_SECONDS_MAX = 2.5
LONG_SECONDS = (5.0, 8.0)  # long enough that everyone does
# Shapes in which somebody hears nobody, and goes on alone; who is not heard soon hears nothing either, as TCP needs both ways.
LONELY = ("deaf", "mute", "1|2", "1|1|1")
MILD = ("delay", "trickle", "reset", "hold")  # what may come together with any other


class Fault:
    def __init__(self, cluster, draw, longest):
        self.cluster, self.longest = cluster, longest
        self.seconds = self.draw_seconds(draw)
        self.draw = random.Random(draw.getrandbits(64))
        self.what = ""

    def draw_seconds(self, draw):
        return draw.uniform(0.3, 1.5)

    def text(self):
        return f"{type(self).__name__} {self.what}"

    def may_last(self):
        """Whether it may take longer than a server waits for one that it does not hear."""
        return self.seconds > CUT_SECONDS_MAX

    def primary(self):
        until = time.monotonic() + 30
        while (leader := self.cluster.primary()) is None:
            if time.monotonic() > until:
                raise TimeoutError("nobody leads for 30 s")
            time.sleep(0.01)
        return leader

    def servers(self, who):
        """`primary`, `backup`, `two` or `all`, as places."""
        leader = self.primary()
        backups = [at for at in range(3) if at != leader]
        if who == "two":
            return self.draw.sample(range(3), 2)
        return {"primary": [leader], "backup": [self.draw.choice(backups)], "all": [0, 1, 2]}[who]


class Kill(Fault):
    def begin(self, who):
        self.down = self.servers(who)
        self.what = f"of {who}: {[at + 1 for at in self.down]}"
        self.cluster.kill(*self.down)

    def end(self, after=None):
        self.draw.shuffle(self.down)
        for at in self.down:
            self.cluster.start(at)
        return len(self.down)


class Stop(Kill):
    """SIGTERM."""

    def may_last(self):
        return True  # A primary stays until another leads.

    def begin(self, who):
        self.down = self.servers(who)
        self.what = f"of {who}: {[at + 1 for at in self.down]}"
        codes = self.cluster.stop(*self.down)
        if any(codes):
            raise RuntimeError(f"servers {[at + 1 for at in self.down]} were told to stop and ended with {codes}")


class Pause(Fault):
    """SIGSTOP, SIGCONT."""

    def draw_seconds(self, draw):
        return math.exp(draw.uniform(math.log(0.1), math.log(self.longest)))

    def begin(self, who):
        self.paused = self.servers(who)
        self.what = f"of {who} for {self.seconds:.1f} s: {[at + 1 for at in self.paused]}"
        for at in self.paused:
            self.cluster.pause(at)

    def end(self, after=None):
        for at in self.paused:
            self.cluster.wake(at)
        return len(self.paused)


class FullDisk(Fault):
    """From one moment to the next there is no room left: the server ends, and is started again when there is."""

    left = 8192

    def draw_seconds(self, draw):
        return draw.uniform(2.2, 3)

    def begin(self, who):
        (self.at,) = self.servers(who)
        self.what = f"of {who}: {self.at + 1}"
        self.refused = self.refusals()
        self.cluster.fill_disk(self.at, self.left)

    def refusals(self):
        return sum(person.refusals[lastword.DISK_FULL] for person in self.cluster.persons)

    def end(self, after=None):
        self.cluster.empty_disk(self.at)
        ended = self.cluster.processes[self.at].poll()
        refused = self.refusals() - self.refused
        self.what += f", {refused} refusals" + (f", ended with {ended}" if ended is not None else "")
        if ended is not None:
            self.cluster.kill(self.at)
            self.cluster.start(self.at)
        return refused + (ended is not None)


class LowDisk(FullDisk):
    """Less room than the reserve: writes are refused, nothing else happens (D3)."""

    left = 32 << 20


# Through the proxy


def both(first, second):
    return [(first, second), (second, first)]


class Net(Fault):
    """What the proxy does; `hits` are those of its counters that tell."""

    hits = ("bytes_dropped", "connects_held")

    def links(self):
        """One link between servers, drawn, or the clients' to the primary."""
        leader = worlds.SERVERS[self.primary()]
        other = self.draw.choice([server for server in worlds.SERVERS if server != leader])
        third = next(server for server in worlds.SERVERS if server not in (leader, other))
        return [(leader, other), (other, third), (leader, CLIENTS)]

    def choose(self, ways):
        self.what = f"{self.hits[0]} for {self.seconds:.1f} s on {' '.join('>'.join(way) for way in ways)}"
        return ways

    def rule(self, ways, mode, seconds=0):
        self.cluster.proxy.rule(self.choose(ways), mode, seconds)

    def end(self, after=None):
        self.counters = getattr(after, "counters", None) or self.cluster.proxy.heal()
        return sum(self.counters.get(name, 0) for name in self.hits)


class Delay(Net):
    hits = ("bytes_delay",)

    def begin(self):
        ways = [way for link in self.links() for way in both(*link)]
        self.rule(ways, "delay", self.draw.choice([0.005, 0.02, 0.1]))


class Trickle(Net):
    hits = ("bytes_trickle",)

    def begin(self):
        self.rule(both(*self.draw.choice(self.links())), "trickle")


class Hold(Net):
    """Everything arrives, but late."""

    hits = ("bytes_hold", "connects_held")

    def begin(self):
        first, second = self.draw.choice(self.links())
        self.rule(self.draw.choice([[(first, second)], [(second, first)], both(first, second)]), "hold")


class Reset(Net):
    hits = ("reset",)

    def begin(self):
        self.cluster.proxy.strike(self.choose([self.draw.choice(self.links())]), "reset")


class HalfOpen(Net):
    hits = ("half_open",)

    def begin(self):
        link = self.draw.choice(self.links())
        self.cluster.proxy.strike(self.choose([link if self.draw.random() < 0.5 else link[::-1]]), "half_open")


class Cut(Net):
    def draw_seconds(self, draw):
        return draw.uniform(0.3, CUT_SECONDS_MAX)


class OneWay(Cut):
    def begin(self):
        first, second = self.draw.choice(self.links()[:2])
        self.rule([(first, second) if self.draw.random() < 0.5 else (second, first)], "drop")


class ClientsCut(Cut):
    """The primary and its clients lose each other, and the servers notice nothing."""

    def begin(self):
        self.rule(both(*self.links()[2]), "drop")


class Isolate(Cut):
    def begin(self, who):
        alone = worlds.SERVERS[self.servers(who)[0]]
        others = [end for end in (*worlds.SERVERS, CLIENTS) if end != alone]
        self.rule([way for other in others for way in both(alone, other)], "drop")


class Apart(Net):
    def cut_ways(self, ways):
        self.rule([(worlds.SERVERS[source], worlds.SERVERS[target]) for source, target in ways], "drop")


# Between namespaces


class Packets(Fault):
    """What the router does; a hit is a segment that had to be sent again."""

    def draw_seconds(self, draw):
        return draw.uniform(0.5, CUT_SECONDS_MAX)

    def pair(self):
        leader = self.primary()
        other = self.draw.choice([at for at in range(3) if at != leader])
        pair = [leader, other] if self.draw.random() < 0.7 else [at for at in range(3) if at != leader]
        return pair if self.draw.random() < 0.5 else pair[::-1]

    def cut(self, ways, how):
        self.what = f"for {self.seconds:.1f} s, {how}: " + ", ".join(f"{a + 1}>{b + 1}" for a, b in ways)
        self.before = self.resent()
        for way in ways:
            self.cluster.cut(*way, how)

    def resent(self):
        total = 0
        for at in range(3):
            command = [*self.cluster.prefixes[at], "cat", "/proc/net/snmp"]
            names, values = [
                line.split() for line in subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
                if line.startswith("Tcp:")
            ]  # fmt: skip
            total += int(values[names.index("RetransSegs")])
        return total

    def end(self, after=None):
        hits = self.resent() - self.before
        self.cluster.heal()
        return hits


class OneWayPackets(Packets):
    def begin(self, how):
        self.cut([tuple(self.pair())], how)


class LinkPackets(Packets):
    def begin(self, how):
        first, second = self.pair()
        self.cut([(first, second), (second, first)], how)


class LostHost(Packets):
    def begin(self, who):
        (at,) = self.servers(who)
        self.what = f"{at + 1} for {self.seconds:.1f} s, by a blackhole route"
        self.before = self.resent()
        self.cluster.lose_host(at)


class ApartPackets(Packets):
    def cut_ways(self, ways):
        self.cut(ways, "nft" if self.cluster.nftables and self.draw.random() < 0.5 else "rule")


# Longer than anybody waits for anybody


class Long:
    """Some ways between servers are closed so long that who hears nothing takes the others for dead."""

    def draw_seconds(self, draw):
        return draw.uniform(*LONG_SECONDS)

    def begin(self, shape, crash=None):
        self.crash = crash
        one, *others = self.draw.sample(range(3), 3)
        if shape in LONELY:
            self.cluster.splits.append([time.monotonic(), None])
        into, out = [(other, one) for other in others], [(one, other) for other in others]
        self.cut_ways({
            "link": [into[0], out[0]], "one way": [out[0]], "mute": out, "deaf": into, "1|2": into + out,
            "1|1|1": list(itertools.permutations(range(3), 2)),
        }[shape])  # fmt: skip

    def end(self, after=None):
        """With a crash: of one while all are apart, or while they become one again."""
        down = self.draw.randrange(3)
        if self.crash == "apart":
            self.cluster.kill(down)
        hits = super().end(after)
        if self.crash == "healing":
            time.sleep(self.draw.uniform(0, 1))
            self.cluster.kill(down)
        if self.crash:
            self.what += f", crash of {down + 1} when {self.crash}"
            time.sleep(self.draw.uniform(0, 1))
            self.cluster.start(down)
        return hits


class LongCut(Long, Apart):
    pass


class LongPackets(Long, ApartPackets):
    pass


def of(fault, *arguments):
    """A fault whose `begin` takes these."""

    def make(cluster, draw, longest):
        made = fault(cluster, draw, longest)
        begin = made.begin
        made.begin = lambda: begin(*arguments)
        return made

    return make


def kinds(cluster, splits):
    """Name -> maker, of all that can be had here."""
    found = {f"kill {who}": of(Kill, who) for who in ("primary", "backup", "two", "all")}
    found |= {f"pause {who}": of(Pause, who) for who in ("primary", "backup", "two")}
    found |= {f"stop {who}": of(Stop, who) for who in ("primary", "backup", "all")}
    if cluster.mounted:
        found |= {f"full disk {who}": of(FullDisk, who) for who in ("primary", "backup")}
        found |= {"low disk primary": of(LowDisk, "primary")}
    if isinstance(cluster, worlds.Namespaces):
        found |= {"one way, rule": of(OneWayPackets, "rule"), "link, rule": of(LinkPackets, "rule")}
        found |= {f"lost {who}, route": of(LostHost, who) for who in ("primary", "backup")}
        if cluster.nftables:
            found |= {"one way, nft": of(OneWayPackets, "nft"), "link, nft": of(LinkPackets, "nft")}
        long = LongPackets
    else:
        found |= {"delay": Delay, "trickle": Trickle, "hold": Hold, "reset": Reset, "half-open": HalfOpen}
        found |= {"one way": OneWay, "clients cut off": ClientsCut}
        found |= {f"isolate {who}": of(Isolate, who) for who in ("primary", "backup")}
        long = LongCut
    found |= {f"long {shape}": of(long, shape) for shape in ("link", "one way")}
    if splits:
        found |= {f"split {shape}": of(long, shape) for shape in LONELY}
        found |= {"split, crash": of(long, "1|1|1", "apart"), "rebase, crash": of(long, "1|1|1", "healing")}
    return found


def missing(cluster):
    """What this machine does not offer."""
    if not cluster.mounted:
        yield "full disks (expected to be root, or user namespaces to be allowed: each server needs a tmpfs of its own)"
    if isinstance(cluster, worlds.Namespaces) and not cluster.nftables:
        yield "nftables (expected nft in the path, and a kernel that has it)"
