"""Clients for chaos and for figures: each a thread that works until told to stop and remembers what it was promised."""

import collections
import random
import secrets
import struct
import threading
import time

import lastword
from lastword import frame, string


class Client(threading.Thread):
    """Works in steps; whatever goes wrong in a way that no fault excuses is in `trouble`."""

    pause = 0.01

    def __init__(self, cluster, name, **options):
        super().__init__(daemon=True, name=name)
        self.person = Guest(cluster, name, **options)
        self.stopping, self.trouble, self.steps = threading.Event(), [], 0

    def run(self):
        try:
            while not self.stopping.is_set():
                self.steps += 1
                self.step()
                if self.pause:
                    self.stopping.wait(self.pause)
        except Exception as error:  # whatever it is, the run has failed
            self.trouble.append(f"{self.name} stopped at step {self.steps}: {error!r}")

    def finish(self, limit=120):
        self.stopping.set()
        self.join(limit)
        if self.is_alive():
            self.trouble.append(f"{self.name} still waits for an answer after {limit} s")


class Guest(lastword.Person):
    """A person who may subscribe: `fresh` says that a connection is new, so something may have been missed."""

    def __init__(self, cluster, name, subscribes=False):
        self.subscribes, self.fresh = subscribes, True
        super().__init__(cluster, name)

    def attempt(self, opcode, number, body, before):
        new = self.connection is None
        if new and opcode not in (lastword.REGISTER, lastword.LOGIN):
            self.connection = lastword.Connection(self.cluster.addresses[self.policy.target], 0.25)
            self.fresh = True
            found, fields = self.connection.ask(lastword.RESUME, 0, self.client + self.token, self.ANSWER_WITHIN)
            if found != lastword.RESUMED:
                return found, fields
            if self.subscribes:
                found, fields = self.connection.ask(lastword.SUBSCRIBE, 0, b"", self.ANSWER_WITHIN)
                if found == lastword.ERROR:
                    return found, fields
        elif new:
            self.connection = lastword.Connection(self.cluster.addresses[self.policy.target], 0.25)
        return self.connection.ask(opcode, number, body, self.ANSWER_WITHIN, before)


class Sender(Client):
    """Sends one message after the other, and now and then reads whether its last one is there."""

    pause = 0.005

    def __init__(self, cluster, name, recipients):
        super().__init__(cluster, name)
        self.recipients = recipients
        self.acknowledged = []  # (when, recipient, text), in the order in which they were sent
        self.resent = set()
        self.start()

    def step(self):
        began = time.monotonic()
        to, text = random.choice(self.recipients), f"{self.name} message {self.steps}"
        self.person.send(to, text)
        self.acknowledged.append((time.monotonic(), to, text))
        if self.steps % 50 == 0:
            found = self.person.history(to, 1)
            if found[-1:] != [text] and not self.person.cluster.was_split(began):
                self.trouble.append(f"stale read: {self.name} was served {found}, acknowledged was {text!r}")

    def gap(self, start, end):
        """The longest time between two acknowledgements that overlaps [start, end]."""
        times = [when for when, _, _ in self.acknowledged[-5000:]] + [time.monotonic()]
        return max((b - a for a, b in zip(times, times[1:]) if b > start and a < end), default=end - start)


class WindowSender(Client):
    """Keeps several messages under way; sends what is unanswered again, in order, on a new connection."""

    pause = 0

    def __init__(self, cluster, name, recipients, window=16, rate=100):
        super().__init__(cluster, name)
        self.recipients, self.window, self.rate = recipients, window, rate
        self.acknowledged, self.resent = [], set()
        self.under_way = collections.OrderedDict()  # number -> (recipient, text)
        self.answered, self.heard_at, self.due = {}, 0, time.monotonic()
        self.start()

    def step(self):
        person = self.person
        hint = None
        try:
            if person.connection is None:
                self.connect()
            self.send_more()
            self.receive()
            return
        except Again as again:
            kind = "elsewhere"
            hint = person.cluster.place_of(again.primary) if again.primary else None
        except ConnectionRefusedError:
            kind = "refused"
        except TimeoutError:
            kind = "timeout"
        except (lastword.Closed, OSError):
            kind = "closed"
        person.disconnect()
        self.stopping.wait(person.policy.on_failure(kind, hint)) if not self.stopping.is_set() else time.sleep(0.01)

    def connect(self):
        person = self.person
        person.connection = lastword.Connection(person.cluster.addresses[person.policy.target], 0.25)
        self.check(*person.connection.ask(lastword.RESUME, 0, person.client + person.token, person.ANSWER_WITHIN))
        self.heard_at = time.monotonic()
        for number, (to, text) in self.under_way.items():
            self.resent.add(text)
            self.put(number, to, text)

    def check(self, found, fields):
        if found == lastword.ERROR:
            code, flags, text = fields.take("H"), fields.take("B"), fields.string()
            if not flags & 1:
                raise lastword.Refused(code, text)
            raise Again(fields.string())

    def send_more(self):
        now = time.monotonic()
        self.due = max(self.due, now - 0.1)
        while len(self.under_way) < self.window and self.due <= now and not self.stopping.is_set():
            self.due += 1 / self.rate
            if not self.under_way:
                self.heard_at = now
            self.person.number += 1
            number = self.person.number
            to, text = random.choice(self.recipients), f"{self.name} message {number}"
            self.under_way[number] = (to, text)
            self.put(number, to, text)

    def put(self, number, to, text):
        seen = frame(lastword.SEEN, 0, struct.pack(">I", next(iter(self.under_way)) - 1) + bytes(5))
        self.person.connection.socket.settimeout(1)
        self.person.connection.socket.sendall(seen + frame(lastword.SEND, number, string(to) + string(text)))

    def receive(self):
        self.person.connection.socket.settimeout(0.01)
        try:
            found, number, fields = self.person.connection.receive()
        except TimeoutError:
            if self.under_way and time.monotonic() > self.heard_at + 1:
                raise
            return
        self.heard_at = time.monotonic()
        self.check(found, fields)
        if number in self.under_way:
            self.person.policy.on_success()
            self.answered[number] = (self.heard_at, *self.under_way.pop(number))

    def finish(self, limit=120):
        until = time.monotonic() + limit
        self.rate = 0.001
        while self.under_way and self.is_alive() and time.monotonic() < until:
            time.sleep(0.01)
        super().finish(10)
        self.acknowledged = [self.answered[number] for number in sorted(self.answered)]


class Again(Exception):
    """The server refuses, but perhaps not the next one, or not later."""

    def __init__(self, primary):
        super().__init__(primary)
        self.primary = primary


class Receiver(Client):
    """Subscribes, reads what waited, and acknowledges whatever comes, once it has it."""

    pause = 0

    def __init__(self, cluster, name):
        super().__init__(cluster, name, subscribes=True)
        self.received, self.settled = collections.Counter(), set()
        self.unsettled, self.on_connection, self.connected_at = {}, set(), 0
        self.pushes = self.again = 0
        self.start()

    def comes_again(self, since, text):
        """Clients drop what they have (R9); but only a split may bring it again."""
        self.again += 1
        if not self.person.cluster.was_split(since):
            self.trouble.append(text)

    def step(self):
        person = self.person
        if person.fresh or person.connection is None:
            self.read_all()
        try:
            if not person.connection.pushed:
                person.connection.socket.settimeout(0.1)
                person.connection.receive()
        except TimeoutError:
            pass
        except (lastword.Closed, OSError, AttributeError):
            person.disconnect()
            return
        self.take_pushed()
        self.acknowledge()

    def read_all(self):
        person, after, more = self.person, 0, True
        while more:
            asked = time.monotonic()
            fields = person.question(lastword.READ, struct.pack(">QH", after, 500))
            if person.fresh:
                self.on_connection, self.connected_at, person.fresh, after = set(), asked, False, 0
            more, count = fields.take("B"), fields.take("H")
            for _ in range(count):
                name, after, text = lastword.message(fields)
                if name in self.settled:
                    self.comes_again(asked, f"{self.name} acknowledged {text!r}, and it waits again")
                self.unsettled[name] = text

    def take_pushed(self):
        connection = self.person.connection
        while connection and connection.pushed:
            name, _, text = connection.pushed.pop(0)
            self.pushes += 1
            if name in self.on_connection:
                self.comes_again(self.connected_at, f"{self.name} was pushed {text!r} twice on one connection")
            self.on_connection.add(name)
            self.unsettled[name] = text

    def acknowledge(self):
        while self.unsettled:
            ids = list(self.unsettled)[:500]
            self.person.command(lastword.ACKNOWLEDGE, struct.pack(">H", len(ids)) + b"".join(ids))
            for name in ids:
                text = self.unsettled.pop(name)
                self.received[text] += name not in self.settled
                self.settled.add(name)
            self.take_pushed()

    def drain(self):
        """Once its thread has ended: takes in whatever still waits."""
        self.read_all()
        self.acknowledge()


class Deleter(Client):
    """Sends a message and deletes it again."""

    pause = 0.05

    def __init__(self, cluster, name, recipients):
        super().__init__(cluster, name)
        self.recipients, self.deleted = recipients, []
        self.start()

    def step(self):
        began = time.monotonic()
        to, text = random.choice(self.recipients), f"{self.name} message {self.steps}"
        self.person.send(to, text)
        name = self.person.client + struct.pack(">Q", self.person.number)
        try:
            self.person.command(lastword.DELETE, struct.pack(">H", 1) + name)
            self.deleted.append((to, text))
        except lastword.Refused as refused:
            if refused.code != lastword.NO_SUCH_MESSAGE or not self.person.cluster.was_split(began):
                raise  # it may be on the other side


ENDED = (lastword.SESSION_EXPIRED, lastword.NOT_LOGGED_IN)


class Visitor(Client):
    """Logs in with the password on a new device, changes the password now and then, lists accounts, logs out."""

    pause = 0.3

    def __init__(self, cluster, name):
        super().__init__(cluster, name)
        self.passwords, self.sure_at, self.logins = [lastword.PASSWORD], time.monotonic(), 0
        self.guessed = False  # whether it ever had to try a password that was wrong
        self.start()

    def step(self):
        self.person.disconnect()
        self.person.client, self.person.token = secrets.token_bytes(8), secrets.token_bytes(32)
        self.person.number = 0
        self.log_in()
        if self.steps % 3 == 0 and len(self.passwords) < 3:
            password = f"{lastword.PASSWORD} {self.steps}"
            granted = self.is_granted(lastword.CHANGE_PASSWORD, string(self.passwords[-1]) + string(password))
            # Refused here, it may have been carried out on the other side before, unanswered.
            self.passwords.insert(len(self.passwords) if granted else 0, password)
        try:
            self.look()
        except lastword.Refused as refused:
            if refused.code not in ENDED or not self.person.cluster.was_split(self.sure_at):
                raise  # a password that was changed on the other side ends sessions
        try:
            self.person.command(lastword.LOGOUT, b"\0")
        except lastword.Refused as refused:
            if refused.code not in ENDED:
                raise  # these say that a first try was carried out, and its answer lost

    def look(self):
        fields = self.person.question(lastword.LIST, string(self.name) + string("") + struct.pack(">H", 0))
        fields.string()
        if self.name not in (names := fields.strings()):
            self.trouble.append(f"{self.name} was registered, and is not among {names}")

    def log_in(self):
        """With the last password; after a split one of those before may be the one that stayed (R6)."""
        for password in [*self.passwords[::-1], *self.passwords]:
            body = string(self.name) + string(password) + self.person.client + self.person.token
            if self.is_granted(lastword.LOGIN, body):
                break
        else:
            raise AssertionError(f"none of its {len(self.passwords)} passwords is right")
        self.passwords.remove(password)
        self.passwords.append(password)
        self.logins += 1
        if not self.person.cluster.was_split(time.monotonic()):
            self.passwords, self.sure_at = [password], time.monotonic()

    def is_granted(self, opcode, body):
        """Whether the password was right and the session is there, which must be so unless there was a split."""
        while True:
            try:
                self.person.command(opcode, body)
                return True
            except lastword.Refused as refused:
                if refused.code != lastword.TOO_MANY_ATTEMPTS or not self.guessed:
                    excused = (lastword.WRONG_PASSWORD, lastword.CONFLICT, *ENDED)
                    if refused.code not in excused or not self.person.cluster.was_split(self.sure_at):
                        raise
                    self.guessed |= refused.code == lastword.WRONG_PASSWORD
                    return False
            time.sleep(1)  # a server that leads again still counts the wrong ones that it was given


class Load:
    """All of them."""

    def __init__(self, cluster):
        self.cluster = cluster
        receivers = [f"receiver{number}" for number in range(1, 4)]
        self.receivers = [Receiver(cluster, name) for name in receivers]
        self.senders = [Sender(cluster, f"sender{number}", receivers) for number in range(1, 4)]
        self.windows = [WindowSender(cluster, f"window{number}", receivers) for number in range(1, 3)]
        self.deleters = [Deleter(cluster, "deleter1", receivers)]
        self.visitors = [Visitor(cluster, "visitor1")]
        self.clients = [*self.senders, *self.windows, *self.deleters, *self.visitors, *self.receivers]

    def trouble(self):
        found = [text for client in self.clients for text in client.trouble]
        for client in self.clients:
            client.trouble.clear()
        return found

    def acknowledged(self):
        return sum(len(s.acknowledged) for s in self.senders) + sum(len(w.answered) for w in self.windows)

    def gap(self, start, end):
        return max(sender.gap(start, end) for sender in self.senders)

    def served(self, since):
        """Whether each sender has had an acknowledgement since."""
        return all(s.acknowledged and s.acknowledged[-1][0] > since for s in self.senders)

    def finish(self):
        for client in [*self.senders, *self.windows, *self.deleters, *self.visitors]:
            client.finish()
        for receiver in self.receivers:
            receiver.finish()
            receiver.drain()
