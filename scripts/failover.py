"""How long clients wait when the primary dies or stops, and whether one that wakes answers with what is no longer true."""

import collections
import signal
import statistics
import struct
import threading
import time
from pathlib import Path

import lastword
import load

# Seconds: median, 99 of 100.
GOALS = {"kill": (0.04, 0.25), "pause": (1.0, 1.5)}
STOPPED_SECONDS = 2.0
LATE_MS = 1.0


def figures(seconds):
    """(median, p99, worst), in milliseconds."""
    ordered = sorted(seconds)
    p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    return tuple(round(value * 1000, 1) for value in (statistics.median(ordered), p99, ordered[-1]))


def started(directory, binaries):
    cluster = lastword.Cluster(directory, binaries)
    for at in range(3):
        cluster.start(at)
    return cluster


def leader(cluster):
    until = time.monotonic() + 30
    while (found := cluster.primary()) is None:
        if time.monotonic() > until:
            raise TimeoutError("nobody leads for 30 s")
        time.sleep(0.005)
    return found


def measure(directory, binaries, kind, rounds):
    cluster, gaps = started(directory, binaries), []
    try:
        cluster.wait_members()
        receiver = load.Receiver(cluster, "receiver")
        senders = [load.Sender(cluster, f"sender{number}", ["receiver"]) for number in range(3)]
        processor, disk = lastword.Hiccups.of_processor(), lastword.Hiccups.of_disk(directory)
        time.sleep(1)
        for number in range(1, rounds + 1):
            cluster.wait_members(limit=60)
            time.sleep(0.3)
            gaps.append(one(cluster, senders, kind))
            began = time.monotonic() - 3
            if gaps[-1] > GOALS[kind][1]:
                print(f"round {number}: {gaps[-1] * 1000:.0f} ms; the processor let us wait "
                      f"{processor.longest(began, time.monotonic()) * 1000:.0f} ms, "
                      f"the disk {disk.longest(began, time.monotonic()) * 1000:.0f} ms", flush=True)  # fmt: skip
            if trouble := [text for client in [receiver, *senders] for text in client.trouble]:
                print("\n".join(trouble))
                return False
        for client in [*senders, receiver]:
            client.finish()
    finally:
        cluster.kill_all()
    median, p99, worst = figures(gaps)
    goal_median, goal_p99 = GOALS[kind]
    print(f"{kind}: {rounds} rounds, longest gap between two acknowledgements: median {median} ms, p99 {p99} ms, worst {worst} ms; "
          f"goal: median < {goal_median * 1000:.0f} ms, p99 < {goal_p99 * 1000:.0f} ms")  # fmt: skip
    return p99 < goal_p99 * 1000 and median < goal_median * 1000


def one(cluster, senders, kind):
    """One failover, and the waking of who was stopped; gives the longest gap of a sender."""
    at = leader(cluster)
    began = time.monotonic()
    if kind == "kill":
        cluster.kill(at)
        time.sleep(1)
    else:
        cluster.signal(at, signal.SIGSTOP)
        time.sleep(STOPPED_SECONDS)
        # Nobody is to wait because it is back, either.
        cluster.signal(at, signal.SIGCONT)
        time.sleep(1)
    # Somebody who still waits has waited so long already; measured when it is through.
    until = time.monotonic() + 30
    while not all(sender.acknowledged[-1][0] > began + 0.001 for sender in senders) and time.monotonic() < until:
        time.sleep(0.005)
    gap = max(sender.gap(began, time.monotonic()) for sender in senders)
    if kind == "kill":
        cluster.start(at)
    return gap


# A primary that wakes


def stale(directory, binaries, rounds, seconds, clusters):
    each = -(-rounds // clusters)
    sleepers = [Sleeper(Path(directory) / str(number), binaries, each, seconds) for number in range(clusters)]
    try:
        for sleeper in sleepers:
            sleeper.start()
        for sleeper in sleepers:
            sleeper.join()
    finally:
        for sleeper in sleepers:
            sleeper.cluster and sleeper.cluster.kill_all()
    outcomes = sum((sleeper.outcomes for sleeper in sleepers), collections.Counter())
    delays = [delay for sleeper in sleepers for delay in sleeper.delays]
    for sleeper in sleepers:
        for text in sleeper.trouble:
            print(text)
    if not delays:
        return False
    soon = sum(delay < LATE_MS / 1000 for delay in delays)
    print(f"{len(delays)} wakings after {seconds:g} s; asked {figures(delays)[0]} ms (median), {figures(delays)[2]} ms (worst) later, "
          f"{soon} times within {LATE_MS:g} ms, and each time once before; answers: {dict(outcomes)}")  # fmt: skip
    return not outcomes["stale"] and not any(sleeper.trouble for sleeper in sleepers) and soon >= rounds * 0.9


class Sleeper(threading.Thread):
    """One cluster whose primary is stopped again and again."""

    def __init__(self, directory, binaries, rounds, seconds):
        super().__init__(daemon=True)
        self.directory, self.binaries, self.rounds, self.seconds = directory, binaries, rounds, seconds
        self.outcomes, self.delays, self.trouble = collections.Counter(), [], []
        self.cluster = None

    def run(self):
        try:
            self.directory.mkdir()
            self.cluster = started(self.directory, self.binaries)
            self.cluster.wait_members()
            self.writer = lastword.Person(self.cluster, "writer")
            self.reader = lastword.Person(self.cluster, "reader")
            for number in range(self.rounds):
                self.cluster.wait_members(limit=60)
                self.round(f"message {number}")
        except Exception as error:  # whatever it is, the run has failed
            self.trouble.append(f"{self.directory}: {error!r}")

    def round(self, text):
        cluster, old = self.cluster, leader(self.cluster)
        asking = lastword.Connection(cluster.addresses[old], 1)
        found, _ = asking.ask(lastword.RESUME, 0, self.reader.client + self.reader.token, 5)
        if found != lastword.RESUMED:
            asking.close()
            return self.round(text)  # it has just stopped leading
        cluster.signal(old, signal.SIGSTOP)
        wake = time.monotonic() + self.seconds
        self.writer.send("reader", text)
        # One question waits in its socket when it wakes, one comes as soon as it runs again.
        question = lastword.string("writer") + struct.pack(">QH", 0, 1)
        first, second = (lastword.frame(lastword.HISTORY, number, question) for number in (1, 2))
        asking.socket.sendall(first)
        time.sleep(max(0, wake - time.monotonic()))
        cluster.signal(old, signal.SIGCONT)
        woken = time.monotonic()
        try:
            asking.socket.sendall(second)
            self.delays.append(time.monotonic() - woken)
        except OSError:
            self.delays.append(time.monotonic() - woken)
        self.answers(asking, text)
        asking.close()

    def answers(self, asking, text):
        asking.socket.settimeout(10)
        for _ in range(2):
            try:
                found, _, fields = asking.receive()
            except (lastword.Closed, OSError) as error:
                self.outcomes["none, closed" if not isinstance(error, TimeoutError) else "none in 10 s"] += 1
                return
            if found == lastword.ERROR:
                self.outcomes[f"error {fields.take('H')}"] += 1
                continue
            texts = [found_text for _, found_text in lastword.messages(fields)[1]]
            self.outcomes["up to date" if texts == [text] else "stale"] += 1
            if texts != [text]:
                self.trouble.append(f"stale read: served {texts}, acknowledged was {text!r}")
