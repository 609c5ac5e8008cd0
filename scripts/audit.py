"""What must hold when all faults are over: every acknowledged message once, in order, and three equal servers."""

import collections
import csv

TABLES = ("user_table.csv", "queued_messages.csv", "delivered_messages.csv", "sessions.csv", "replies.csv", "conflicts.csv")


def unescape(text):
    """A text field of our files, as protocol.md writes it."""
    text = text[1:] if text.startswith("'") else text
    return text.replace("\\\\", "\0").replace("\\n", "\n").replace("\\r", "\r").replace("\0", "\\")


def rows(file):
    with open(file, newline="", encoding="utf-8") as lines:
        return list(csv.reader(lines))


def conflicts(cluster):
    """Every field of every conflict that some server has recorded."""
    files = [file for at in range(3) for file in cluster.data(at).rglob("conflicts.csv")]
    return {unescape(field) for file in files for row in rows(file)[1:] for field in row}


def messages(load):
    """What clients were promised and the servers do not keep, as sentences; figures; and what is missing, text -> sentence."""
    wrong = []
    counts = collections.Counter()
    promised, ordered, missing = collections.defaultdict(list), collections.defaultdict(list), {}
    for sender in [*load.senders, *load.windows]:
        for when, to, text in sender.acknowledged:
            promised[sender, to].append(text)
            if text not in sender.resent and not load.cluster.was_split(when, when):
                ordered[sender, to].append(text)
    for receiver in load.receivers:
        counts["received"] += len(receiver.received)
        counts["received twice"] += sum(count - 1 for count in receiver.received.values())
    for (sender, to), texts in promised.items():
        receiver = next(r for r in load.receivers if r.name == to)
        history = receiver.person.history(sender.name)
        found = collections.Counter(history)
        counts["acknowledged"] += len(texts)
        counts["doubled"] += sum(count - 1 for count in found.values())
        for text in texts:
            if found[text] == 1 and text in receiver.received:
                continue
            where = "not in the history" if not found[text] else f"{receiver.received[text]} times received"
            missing[text] = f"lost: {text!r} to {to}: {where}"
        kept = [text for text in ordered[sender, to] if found[text]]
        counts["in order"] += len(kept)
        firm = set(kept)
        if [text for text in history if text in firm] != kept:
            counts["out of order"] += 1
            wrong.append(f"the messages of {sender.name} to {to} are not in the order in which they were sent")
    for deleter in load.deleters:
        for to in {to for to, _ in deleter.deleted}:
            there = set(deleter.person.history(to))
            back = [text for at, text in deleter.deleted if at == to and text in there]
            counts["deleted"] += sum(at == to for at, _ in deleter.deleted)
            counts["risen from the dead"] += len(back)
    for name in ("doubled", "received twice", "risen from the dead"):
        if counts[name]:
            wrong.append(f"{counts[name]} messages {name}")
    asked = {client.name: client.person.logins_asked_for for client in load.clients if client not in load.visitors}
    if sum(asked.values()):
        wrong.append(f"a login was asked for: {asked}")
    return wrong, counts, missing


def log(cluster, at):
    """index -> (kind, chain), of the entries in a stopped server's log."""
    directory, chains = cluster.data(at), {}
    files = sorted(directory.glob("server_log-*.csv"), key=lambda file: int(file.stem.split("-")[1]))
    for file in [*files, directory / "server_log.csv"]:
        for row in filter(None, rows(file)[1:]):  # empty lines are reserved space
            kind, index = row[1], row[2]
            if kind == "truncate":
                chains = {key: chain for key, chain in chains.items() if key <= int(index)}
            elif kind not in ("anchor", "views", "hard_state", "view_installed", "commit"):
                chains[int(index)] = (kind, row[11])
    return chains


def checkpoints(cluster, at):
    """index -> directory, of a stopped server."""
    found = (cluster.data(at) / "checkpoints").glob("[0-9]*")
    return {int(place.name): place for place in found if (place / "checkpoint.csv").exists()}


def files(cluster):
    """What differs between three stopped servers, as sentences; and what was compared."""
    wrong = []
    logs = [log(cluster, at) for at in range(3)]
    # While they stop one after the other, those that are left may still install views.
    ends = [max((index for index, (kind, _) in chains.items() if kind not in ("view", "closed")), default=0) for chains in logs]
    if len(set(ends)) != 1:
        wrong.append(f"the last commands in the logs are at {ends}, expected one index")
    shared = set(logs[0]) & set(logs[1]) & set(logs[2])
    differ = [index for index in shared if len({chains[index] for chains in logs}) > 1]
    if differ or not shared:
        wrong.append(f"of {len(shared)} entries that all logs have {len(differ)} differ, first {min(differ, default='none')}")
    places, compared = [checkpoints(cluster, at) for at in range(3)], 0
    for first, second in ((0, 1), (1, 2), (0, 2)):
        for index in set(places[first]) & set(places[second]):
            one, other = places[first][index], places[second][index]
            names = {file.name for file in [*one.iterdir(), *other.iterdir()]}
            for name in sorted(names | set(TABLES)):
                compared += 1
                pair = [(place / name).read_bytes() if (place / name).exists() else None for place in (one, other)]
                if pair[0] is None or pair[0] != pair[1]:
                    wrong.append(f"{one / name} and {other / name} differ")
    return wrong, f"{len(shared)} log entries, {compared} pairs of tables"
