"""A split brain with real servers: each is alone, each acknowledges, and afterwards nothing may be lost (section 5 of the rules)."""

import collections
import threading
import time

import audit
import lastword
import load
import worlds

EQUAL_SECONDS = 5.0
NAMES = ("anna", "bob", "cleo")


class Side:
    """The cluster, as clients see it who reach one server only."""

    def __init__(self, cluster, at):
        self.addresses = [cluster.addresses[at]] * 3

    def place_of(self, name):
        return None


class Islander(load.Sender):
    """Sends to everyone, once all are there; while the servers are apart, by one of them."""

    def __init__(self, cluster, name, everyone):
        self.everyone = everyone
        super().__init__(cluster, name, NAMES)

    def run(self):
        self.everyone.wait()
        super().run()

    def step(self):
        to, text = self.recipients[self.steps % len(self.recipients)], f"{self.name} message {self.steps}"
        self.person.send(to, text)
        self.acknowledged.append((time.monotonic(), to, text))


def measure(directory, binaries, seconds):
    cluster = worlds.Proxied(directory, binaries)
    try:
        for at in range(3):
            cluster.start(at)
        cluster.wait_members()
        everyone = threading.Event()
        writers = [Islander(cluster, name, everyone) for name in NAMES]
        everyone.set()
        time.sleep(1)
        for at, writer in enumerate(writers):
            writer.person.cluster = Side(cluster, at)
            writer.person.PATIENCE = seconds + 60
        ways = [(a, b) for a in worlds.SERVERS for b in worlds.SERVERS if a != b]
        cluster.proxy.rule(ways, "drop")
        apart = time.monotonic()
        time.sleep(seconds)
        together = time.monotonic()
        alone = [sum(apart + 3 < when < together for when, _, _ in writer.acknowledged) for writer in writers]
        for writer in writers:
            writer.person.cluster = cluster
            writer.stopping.set()
        cluster.proxy.heal()
        return judge(cluster, writers, alone, together)
    finally:
        cluster.close()


def judge(cluster, writers, alone, together):
    print(f"acknowledged while apart, by each server: {alone}", flush=True)
    wrong = [] if all(alone) else ["a server acknowledged nothing while it was alone"]
    try:
        worlds.wait_equal(cluster, limit=60)
    except (TimeoutError, RuntimeError) as error:
        wrong.append(str(error))
        print("\n".join(wrong))
        return False
    equal = time.monotonic() - together
    if files := worlds.diverged(cluster):
        wrong.append(f"all are members, and these are not settled: {files}")
    for writer in writers:
        writer.finish()
        wrong += writer.trouble
    missing, counts = {}, collections.Counter()
    for to in NAMES:
        # Sessions may have ended: everybody logs in again.
        recipient = lastword.Person(cluster, to, lastword.LOGIN)
        for writer in writers:
            found = collections.Counter(recipient.history(writer.name))
            for text in [text for _, at, text in writer.acknowledged if at == to]:
                counts["acknowledged"] += 1
                outcome = {0: "lost", 1: "there once"}.get(found[text], "doubled")
                counts[outcome] += outcome != "lost"
                if outcome == "lost":
                    missing[text] = f"lost: {text!r} to {to}"
                if outcome == "doubled" and counts[outcome] <= 3:
                    wrong.append(f"doubled: {text!r} to {to}")
    time.sleep(2)
    if any(codes := cluster.stop(0, 1, 2)):
        wrong.append(f"an orderly stop of all ended with the codes {codes}")
    differences, compared = audit.files(cluster)
    listed = audit.conflicts(cluster)
    lost = [sentence for text, sentence in missing.items() if text not in listed]
    counts.update({"lost": len(lost), "in conflicts.csv": len(missing) - len(lost)})
    wrong += lost[:3] + differences
    print("\n".join(wrong))
    print(f"{dict(counts)}; all equal {equal:.1f} s after healing (goal {EQUAL_SECONDS:g} s); compared {compared}")
    return not wrong and equal < EQUAL_SECONDS
