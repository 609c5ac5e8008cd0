"""A TCP proxy that is a bad network: between servers, and between clients and servers.

Runs as a process of its own; `Proxy` starts it and talks to it by lines of JSON. Server N is reached at its front address,
which the proxy listens on, and listens itself at its back address. A connection belongs to a *link*: two of the ends
"1", "2", "3" and "c" (clients); who began it is read from its first frame, as servers begin with PEER_HELLO. Rules hold for
one direction of a link:

  drop      bytes vanish, the connection stays; so do ends of stream, and new connections get nowhere. When the rule goes,
            connections that have lost something are reset, as no TCP would deliver what comes after a hole
  hold      nothing arrives while the rule stands, and everything at its end, as by retransmission
  delay     every byte arrives so many seconds later
  trickle   one byte at a time
"""

import collections
import json
import os
import selectors
import socket
import struct
import subprocess
import sys
import time

PEER_HELLO = 0x40
QUEUE_BYTES_MAX = 4 << 20
TRICKLED_A_TURN = 32
PASS = ("pass", 0)


class Proxy:
    """The proxy process, as its owner sees it."""

    def __init__(self, fronts, backs):
        self.process = subprocess.Popen(
            [sys.executable, __file__, json.dumps([fronts, backs])], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def tell(self, what, **arguments):
        self.process.stdin.write(json.dumps({"what": what, **arguments}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError("the proxy has ended")
        return json.loads(answer)

    def up(self, server):
        self.tell("up", server=server)

    def down(self, server):
        """From here on connections to this server are refused, as after a crash."""
        self.tell("down", server=server)

    def rule(self, links, mode, seconds=0):
        """One rule for all of these (from, to)."""
        self.tell("rule", links=links, mode=mode, seconds=seconds)

    def strike(self, links, how):
        """`reset` ends all connections of these links; `half_open` ends them for the first end only."""
        self.tell("strike", links=links, how=how)

    def heal(self):
        """Takes away all rules. Says how many bytes, connections and so on they have hit since the last time."""
        return self.tell("heal")

    def stop(self):
        self.process.stdin.close()
        self.process.wait(10)


class Side:
    """One socket of a connection, and what waits to be sent into it."""

    def __init__(self, end, sock):
        self.end, self.socket = end, sock
        self.queue, self.queued = collections.deque(), 0  # (due, bytes); empty bytes are the end of the stream
        self.read_open, self.gone, self.connecting = True, False, False

    def put(self, due, data):
        self.queue.append((due, data))
        self.queued += len(data)


class Wire:
    """A connection through the proxy."""

    def __init__(self, accepted, server):
        self.server = server
        self.near, self.far = Side(None, accepted), None
        self.first, self.lossy, self.held = b"", False, False

    def sides(self):
        return [(self.near, self.far), (self.far, self.near)]

    def link(self):
        return {self.near.end, self.server}


class Process:
    def __init__(self, fronts, backs):
        self.fronts, self.backs = fronts, backs
        self.selector = selectors.DefaultSelector()
        self.listeners, self.wires, self.rules = {}, set(), {}
        self.hits = collections.Counter()
        self.commands = b""
        os.set_blocking(0, False)
        self.selector.register(0, selectors.EVENT_READ, ("command", None))

    def run(self):
        while True:
            for key, mask in self.selector.select(self.patience()):
                what, wire = key.data
                if what == "command":
                    if not self.read_commands():
                        return
                elif what == "listener":
                    self.accept(key.fileobj, wire)
                elif wire in self.wires:
                    self.guarded(wire, self.turn, key.fileobj, mask)
            now = time.monotonic()
            for wire in list(self.wires):
                if wire in self.wires:
                    self.guarded(wire, self.flush, now)

    def patience(self):
        """How long nothing will be due."""
        now, soonest = time.monotonic(), None
        for wire in self.wires:
            for side, other in wire.sides():
                if side and other and side.queue and not side.connecting:
                    mode = self.mode(other.end, side.end)
                    if mode not in ("hold", "drop"):
                        wait = max(0, side.queue[0][0] - now)
                        if wait > 0 or mode == "trickle":
                            soonest = min(soonest, wait) if soonest is not None else wait
        return soonest

    def guarded(self, wire, act, *arguments):
        try:
            act(wire, *arguments)
        except OSError:
            self.broken(wire)

    def mode(self, source, target):
        return self.rules.get((source, target), PASS)[0]

    # Commands

    def read_commands(self):
        data = os.read(0, 65536)
        self.commands += data
        while b"\n" in self.commands:
            line, self.commands = self.commands.split(b"\n", 1)
            command = json.loads(line)
            answer = getattr(self, "on_" + command.pop("what"))(**command)
            print(json.dumps(answer or {}), flush=True)
        return bool(data)

    def on_up(self, server):
        if server in self.listeners:
            return
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(tuple(self.fronts[server]))
        listener.listen(1024)
        listener.setblocking(False)
        self.listeners[server] = listener
        self.selector.register(listener, selectors.EVENT_READ, ("listener", server))

    def on_down(self, server):
        listener = self.listeners.pop(server, None)
        if listener:
            self.selector.unregister(listener)
            listener.close()
        for wire in [wire for wire in self.wires if wire.server == server and wire.far is None]:
            self.close(wire, reset=True)

    def on_rule(self, links, mode, seconds):
        for source, target in links:
            self.rules[source, target] = (mode, seconds)

    def on_strike(self, links, how):
        for first, second in links:
            for wire in [wire for wire in self.wires if wire.far and wire.link() == {first, second}]:
                self.hits[how] += 1
                if how == "reset":
                    self.close(wire, reset=True)
                else:
                    wire.lossy = True
                    self.end(wire.near if wire.near.end == first else wire.far, reset=True)

    def on_heal(self):
        self.rules.clear()
        for wire in [wire for wire in self.wires if wire.lossy]:
            self.close(wire, reset=True)
        hits, self.hits = self.hits, collections.Counter()
        return hits

    # Connections

    def accept(self, listener, server):
        try:
            accepted, _ = listener.accept()
        except OSError:
            return
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire = Wire(accepted, server)
        self.wires.add(wire)
        self.selector.register(accepted, selectors.EVENT_READ, ("wire", wire))

    def connect(self, wire):
        """Goes on to the server, as soon as packets would travel both ways."""
        ways = [(wire.near.end, wire.server), (wire.server, wire.near.end)]
        modes = {self.mode(*way) for way in ways}
        if modes & {"drop", "hold"}:
            self.hits["connects_held"] += not wire.held
            wire.held, wire.lossy = True, "drop" in modes
            return
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire.far = Side(wire.server, sock)
        wire.far.connecting = True
        self.selector.register(sock, selectors.EVENT_WRITE, ("wire", wire))
        sock.connect_ex(tuple(self.backs[wire.server]))
        self.take(wire, wire.near, wire.far, wire.first)

    def turn(self, wire, sock, mask):
        side, other = next((s, o) for s, o in wire.sides() if s and s.socket is sock)
        if side.connecting:
            if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, "connect")
            side.connecting = False
        if mask & selectors.EVENT_READ and side.read_open and not side.gone:
            try:
                data = sock.recv(65536)
            except BlockingIOError:
                return
            if other is None:
                self.identify(wire, data)
            else:
                self.take(wire, side, other, data)

    def identify(self, wire, data):
        if not data and wire.near.end is None:
            self.close(wire)
            return
        wire.first += data
        wire.near.read_open = bool(data)
        if len(wire.first) >= 12 and wire.near.end is None:
            peer = wire.first[4] == PEER_HELLO
            wire.near.end = str(wire.first[11]) if peer else "c"
        elif len(wire.first) >= 9 and wire.first[4] != PEER_HELLO:
            wire.near.end = "c"
        if wire.near.end is not None:
            self.connect(wire)

    def take(self, wire, side, other, data):
        """Bytes, or the end of the stream, have come from `side` for `other`."""
        if not data:
            side.read_open = False
        mode, seconds = self.rules.get((side.end, other.end), PASS)
        if mode == "drop" or other.gone:
            wire.lossy = True
            self.hits["bytes_dropped"] += len(data)
        else:
            if mode != "pass":
                self.hits[f"bytes_{mode}"] += len(data)
            other.put(time.monotonic() + (seconds if mode == "delay" else 0), data)

    def flush(self, wire, now):
        if wire.far is None:
            if wire.near.end is not None and not wire.lossy:
                self.connect(wire)
            self.interest(wire.near, None, wire)
            return
        for side, other in wire.sides():
            if side.connecting or side.gone or wire not in self.wires:
                continue
            self.send(wire, side, self.mode(other.end, side.end), now)
        if wire in self.wires:
            for side, other in wire.sides():
                self.interest(side, other, wire)
            done = [not side.read_open and not other.queue for side, other in wire.sides()]
            if all(done) and not wire.lossy:
                self.close(wire)

    def send(self, wire, side, mode, now):
        if mode == "drop" and side.queue:
            wire.lossy = True
            self.hits["bytes_dropped"] += side.queued
            side.queue.clear()
            side.queued = 0
        turns = TRICKLED_A_TURN if mode == "trickle" else 16
        while side.queue and mode != "hold" and side.queue[0][0] <= now and turns:
            turns -= 1
            due, data = side.queue.popleft()
            if not data:
                side.socket.shutdown(socket.SHUT_WR)
                continue
            try:
                sent = side.socket.send(data[:1] if mode == "trickle" else data)
            except BlockingIOError:
                sent = turns = 0
            side.queued -= sent
            if sent < len(data):
                side.queue.appendleft((due, data[sent:]))

    def interest(self, side, other, wire):
        if side is None or side.gone:
            return
        read = side.read_open and (other is None or other.queued < QUEUE_BYTES_MAX)
        due = side.queue and side.queue[0][0] <= time.monotonic()
        write = side.connecting or bool(due and other and self.mode(other.end, side.end) not in ("hold", "drop"))
        events = (selectors.EVENT_READ if read else 0) | (selectors.EVENT_WRITE if write else 0)
        key = self.selector.get_map().get(side.socket)
        if key is None and events:
            self.selector.register(side.socket, events, ("wire", wire))
        elif key is not None and not events:
            self.selector.unregister(side.socket)
        elif key is not None and key.events != events:
            self.selector.modify(side.socket, events, ("wire", wire))

    def broken(self, wire):
        """One side is reset: the other is told, unless its packets vanish."""
        ways = [(wire.near.end, wire.server), (wire.server, wire.near.end)]
        if wire.far is None or not any(self.mode(*way) in ("drop", "hold") for way in ways):
            self.close(wire, reset=True)
            return
        wire.lossy = True
        for side, _ in wire.sides():
            try:
                side.socket.getpeername()
            except OSError:
                self.end(side, reset=True)

    def end(self, side, reset):
        if side.gone:
            return
        side.gone, side.read_open = True, False
        side.queue.clear()
        side.queued = 0
        if side.socket in self.selector.get_map():
            self.selector.unregister(side.socket)
        if reset:
            side.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        side.socket.close()

    def close(self, wire, reset=False):
        self.wires.discard(wire)
        for side, _ in wire.sides():
            if side:
                self.end(side, reset)


if __name__ == "__main__":
    Process(*json.loads(sys.argv[1])).run()
