"""Clusters for chaos: behind our proxy, or each server in a network namespace; disks that can be filled.

`own_namespaces` runs the script again where it may mount and route without touching the machine, so whatever it makes is gone when it ends.
"""

import os
import shutil
import signal
import subprocess
import sys
import time

import lastword
import proxy

DISK_BYTES = 4 << 30
SERVERS = ("1", "2", "3")
INSIDE = "LASTWORD_OWN_NAMESPACES"


def own_namespaces(network):
    """Runs this script again in a mount namespace of its own, and a network namespace if asked for."""
    if os.environ.get(INSIDE):
        return
    flags = ["--mount"] + (["--net"] if network else [])
    flags += [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    if subprocess.run(["unshare", *flags, "true"], capture_output=True).returncode == 0:
        os.environ[INSIDE] = "1"
        os.execvp("unshare", ["unshare", *flags, "--propagation", "private", sys.executable, *sys.argv])
    if network:
        sys.exit("--netns: unshare is refused here; expected to be root, or user namespaces to be allowed")


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")


class Disks(lastword.Cluster):
    """Each data directory is on a small file system of its own, where mounting is allowed."""

    def __init__(self, directory, binaries):
        super().__init__(directory, binaries)
        self.mounted = bool(os.environ.get(INSIDE)) and all(self.mount(at) for at in range(3))
        self.paused = set()

    def mount(self, at):
        place = self.data(at)
        place.mkdir(mode=0o700, parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=0700", "lastword", str(place)]
        return subprocess.run(command, capture_output=True).returncode == 0

    def fill_disk(self, at, left):
        """Leaves room for so many bytes. A server that writes more than that meanwhile makes it fail: then once more."""
        for tries_left in reversed(range(20)):
            try:
                return self.resize(at, shutil.disk_usage(self.data(at)).used + left)
            except RuntimeError:
                if not tries_left:
                    raise

    def empty_disk(self, at):
        self.resize(at, DISK_BYTES)

    def resize(self, at, size):
        run("mount", "-o", f"remount,size={size}", str(self.data(at)))

    def pause(self, at):
        self.paused.add(at)
        self.signal(at, signal.SIGSTOP)

    def wake(self, at):
        self.paused.discard(at)
        if self.processes[at]:
            self.signal(at, signal.SIGCONT)

    def close(self, keep=False):
        """Ends the servers; what is on their own file systems goes, or is copied to `kept`."""
        self.kill_all()
        if self.mounted:
            for at in range(3):
                if keep:
                    shutil.copytree(self.data(at), self.directory / f"kept/{at + 1}", symlinks=True)
                run("umount", "-l", str(self.data(at)))


class Proxied(Disks):
    """Everything on loopback; who talks to a server goes through the proxy."""

    def __init__(self, directory, binaries):
        super().__init__(directory, binaries)
        self.own_addresses = [("127.0.0.1", port) for port in lastword.free_ports(3)]
        self.proxy = proxy.Proxy(dict(zip(SERVERS, self.addresses)), dict(zip(SERVERS, self.own_addresses)))

    def start(self, at):
        self.proxy.up(SERVERS[at])
        super().start(at)

    def kill(self, *servers):
        when = super().kill(*servers)
        self.refuse(servers)
        return when

    def stop(self, *servers, limit=30):
        codes = super().stop(*servers, limit=limit)
        self.refuse(servers)
        return codes

    def refuse(self, servers):
        for at in servers:
            self.proxy.down(SERVERS[at])

    def close(self, keep=False):
        super().close(keep)
        self.proxy.stop()


class Namespaces(Disks):
    """Three hosts and a router between them; the router is the namespace that this script runs in."""

    def __init__(self, directory, binaries):
        super().__init__(directory, binaries)
        # Names of namespaces are files: put them where nobody else sees them.
        os.makedirs("/run/netns", exist_ok=True)
        run("mount", "-t", "tmpfs", "lastword", "/run/netns")
        run("ip", "link", "set", "lo", "up")
        with open("/proc/sys/net/ipv4/ip_forward", "w") as forward:
            forward.write("1")
        for at in range(3):
            self.make_host(at)
        self.addresses = [(self.host(at), 1538) for at in range(3)]
        self.name_servers()
        self.prefixes = [["nsenter", f"--net=/run/netns/host{at + 1}"] for at in range(3)]
        self.nftables = shutil.which("nft") is not None and subprocess.run(["nft", "list", "tables"], capture_output=True).returncode == 0
        self.undo = []

    @staticmethod
    def host(at):
        return f"10.77.{at + 1}.2"

    def make_host(self, at):
        name, router = f"host{at + 1}", f"10.77.{at + 1}.1"
        run("ip", "netns", "add", name)
        run("ip", "link", "add", f"to{at + 1}", "type", "veth", "peer", "name", "eth0", "netns", name)
        run("ip", "address", "add", f"{router}/24", "dev", f"to{at + 1}")
        run("ip", "link", "set", f"to{at + 1}", "up")
        run("ip", "-n", name, "address", "add", f"{self.host(at)}/24", "dev", "eth0")
        run("ip", "-n", name, "link", "set", "eth0", "up")
        run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "-n", name, "route", "add", "default", "via", router)

    def cut(self, source, target, how):
        """Packets from one host to another vanish: by a `rule` of the router, or by `nft`."""
        path = (self.host(source), self.host(target))
        if how == "nft":
            if not any(name == "nft" for name, _ in self.undo):
                run("nft", "add table ip lastword; add chain ip lastword cut { type filter hook forward priority 0; }")
                self.undo.append(("nft", ["nft", "delete table ip lastword"]))
            run("nft", f"add rule ip lastword cut ip saddr {path[0]} ip daddr {path[1]} counter drop")
            return
        rule = ["from", path[0], "to", path[1], "blackhole"]
        run("ip", "rule", "add", *rule)
        self.undo.append(("rule", ["ip", "rule", "del", *rule]))

    def lose_host(self, at):
        """A blackhole route on the router: nothing arrives at this host, from servers or clients; what it sends does."""
        route = ["blackhole", f"{self.host(at)}/32"]
        run("ip", "route", "add", *route)
        self.undo.append(("route", ["ip", "route", "del", *route]))

    def heal(self):
        while self.undo:
            run(*self.undo.pop()[1])


def diverged(cluster):
    """The files of what was acknowledged apart from the others, and has not been proposed again yet (R7)."""
    return [str(file) for at in range(3) for file in cluster.data(at).glob("diverged-*.csv")]


def wait_equal(cluster, limit=60):
    """Waits until all three are members of one view and equally far, twice. Gives how long it took."""
    began, seen = time.monotonic(), None
    while True:
        cluster.wait_members(limit=limit)
        statuses = [cluster.status(at) for at in range(3)]
        indices = {(s["last"], s["applied"], s["view"]) if s else None for s in statuses}
        if len(indices) == 1 and None not in indices:
            found = indices.pop()
            if found[0] == found[1] and found == seen:
                return time.monotonic() - began
            seen = found
        if time.monotonic() - began > limit:
            raise TimeoutError(f"the three are not equally far after {limit} s: {statuses}")
        time.sleep(0.1)
