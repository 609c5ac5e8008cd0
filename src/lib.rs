//! lastword: a replicated chat server that outlives its machines. Three servers; any two may crash; nothing that was
//! acknowledged is lost. `README.md` says how to run it, `protocol.md` what is on the wire and in the files; this is the
//! map of the code.
//!
//! # Layers
//!
//! Events go in at the top of the core, effects come out; everything that waits is outside. Nothing points up, and the
//! siblings of layer 3 never see each other: they meet in the plain data of layer 2. `tests/layers.rs` holds this up.
//!
//! ```text
//! 5  bin/server                    bin/client
//! 4  server/                       client/
//! 3  wire/     replica/     storage/           siblings
//! 2  message/
//! 1  chat/     config
//! 0  types     time     prng     row     mutant
//! ```
//!
//! | module | what it is |
//! |---|---|
//! | [`types`] | numbers with a meaning: [`types::ServerId`], [`types::LogIndex`], [`types::ViewNumber`], … |
//! | [`time`], [`prng`] | the core's own clock reading and random numbers, so that a seed replays for years |
//! | [`row`] | one CSV row: quoting, escaping, checksum; used on disk and, without checksum, on links |
//! | `mutant` | rules taken away on purpose, in builds of `scripts/mutants` alone |
//! | [`config`] | limits and timings, and how they relate, checked by the compiler |
//! | [`chat`] | the replicated state machine: accounts, mailboxes, sessions; commands in, replies out |
//! | [`message`] | what layers 3 and 4 say to each other: entries, views, hard state, requests, responses |
//! | [`wire`] | bytes to messages and back: frames of clients and peers, the peers' handshake |
//! | [`replica`] | one server's share in the protocol: views, replication, catch-up; events in, effects out |
//! | [`storage`] | the log, tables and recovery as CSV, on a real or a simulated disk |
//! | [`server`] | the tokio shell: sockets, the one task that owns the core, the two disk threads, passwords |
//! | [`client`] | finds the primary, survives crashes of servers, carries out each request once |
//!
//! # Invariants
//!
//! **Architecture Invariant:** [`chat`] and [`replica`] perform no I/O, read no clock, draw no randomness of their own
//! and start no thread. Time, randomness and completions are arguments. So the simulator runs them as they are, and
//! [`replica::Replica::handle_event`] cannot fail.
//!
//! **Architecture Invariant:** [`wire`], [`replica`] and [`storage`] never import each other. They meet in [`server`]
//! alone: its `driver` carries out what the core asks, its `disk` joins core and storage, its links join core and wire.
//!
//! **Architecture Invariant:** [`storage`] is synchronous and knows no clock or network; only `storage/disk.rs` touches
//! the file system, and starts a thread: a second one, to read a large checkpoint. [`wire`] knows how a frame is built,
//! not what is allowed in it.
//!
//! **Architecture Invariant:** one task owns the [`replica::Replica`], and never waits for a disk, a link or a password.
//! There is no lock around the core, and no lock is held across an await.
//!
//! **Architecture Invariant:** nobody but the primary of an active view answers a command by *done* (N6), and a view is
//! active only when every member has it on disk (V8). A backup answers *not primary*.
//!
//! **Architecture Invariant:** what depends on a write leaves after the [`replica::Event::Synced`] that covers it: an
//! acknowledgement, a promise, a view, a reply. The core holds it back; the shell never reorders. Write ids are never
//! used twice, so a late completion can't be taken for another's.
//!
//! **Architecture Invariant:** iteration order is behaviour. No map with random seeds is iterated where its order could
//! reach a log, a reply or a file: equal logs give equal states, replies and, byte for byte, equal tables.
//!
//! **Architecture Invariant:** there is no `unsafe`, and no `unwrap` outside tests. A peer's nonsense closes that link, a
//! broken disk ends the process or turns it read-only, and our own bug panics: in release a panic ends the process.
//!
//! **Architecture Invariant:** everything has a limit, and an answer when the limit is reached: `busy` for a client, a
//! dropped link for a peer, which pulls afterwards what it missed. Nothing is allocated for a length that came from
//! outside before it was checked.
//!
//! # The life of a command
//!
//! 1. **Client.** [`client::Client::send`] numbers the request and keeps the number over retries (X3);
//!    [`wire::client::encode_request`] makes a frame of it.
//! 2. **Shell.** `server::listener` tells clients from peers by the first frame. `server::client_link` reads frames,
//!    [`wire::client::decode_request`] reads them, and the driver's queue of clients gets an [`replica::Event::Request`].
//! 3. **Core.** [`replica::Replica::handle_event`] leads through `on_request`, `take_up` and `execute` to `command`: who
//!    asks, is the number known already (N2), who is the recipient (N3). `log_command` refuses if nothing may be written
//!    now (disk nearly full, too few copies); else `append` makes the [`message::Entry`], encoded once for all disks and
//!    links. A password is hashed outside first ([`replica::Effect::Hash`]), and goes on in `on_hashed`.
//! 4. **Batch.** When all events that came together are in, the driver drains [`replica::Replica::poll_effect`];
//!    `flush_batch` makes one [`replica::Effect::Write`] of them and one *prepare* for each member (N4). Nothing waits for
//!    the own disk before it goes out.
//! 5. **Disks.** The log's thread gives each write to [`storage::CommitLog::write`], and all that gathered while the last
//!    sync ran to one [`storage::CommitLog::sync`]: one write, one fdatasync (D1), one [`replica::Event::Synced`]. On a
//!    backup `on_prepare` and `append_from_peer` do the same with the same bytes, and `acknowledge_synced` answers by one
//!    *prepare_ok* for all that the sync covered (N5).
//! 6. **Commit.** `on_prepare_ok` and `on_synced` lead to `advance_commit`: the minimum over *all* members, the primary
//!    included (N6). `commit_through` applies by [`chat::State::apply`]; `on_applied` answers whoever waits
//!    ([`replica::Effect::Respond`]) and pushes to the recipient's connections (X4). Backups hear of the commit with the
//!    next prepare or heartbeat (N7), and apply alike.
//! 7. **Reads** take no entry: `read_after_barrier` asks every member whether the view still stands, and answers when all
//!    have confirmed (N8).
//!
//! # When something breaks
//!
//! What each fault leaves behind, and what the server does then.
//!
//! **Processes and machines**
//!
//! | fault | what is left | what happens |
//! |---|---|---|
//! | one process dies | its disk, whole; commands that not all members had synced | a fresh connect is refused, so the others know within milliseconds (V11). One that was in touch until the end leads on (V2, V5), from the longest log (V4); who waited for an answer asks the new primary under the same number (N2, X3). Started again, it catches up as a learner, and enters the view by a view change (T4) |
//! | two die, one after the other or at once | as above, on one server | it goes on alone if it was continuous (V2), otherwise it waits as after a crash of all |
//! | all die | logs of different lengths | a view is formed when all members of the last one have answered (V5). After an orderly stop of all members together a majority of them is enough. After `--cold-wait`, 15 s, whoever answers goes on *provisionally*, which `status` says; what the missing ones knew is proposed again when they return, as after a split |
//! | power loss | what was synced, and any part of what was not | nothing acknowledged rests on the latter (D1). The host answers nothing, not even *refused*: it is taken for dead by silence |
//! | pause (SIGSTOP, a machine asleep) over 500 ms | beliefs that are out of date | all links are closed and the server is not *continuous*: it can't go on alone before it has joined a view negotiated afterwards (V2). A primary asks the others before it leads again or negotiates (V1). It answers no read before a barrier has confirmed its view (N8) |
//! | wall clock that jumps or runs wrong | odd times in entries | nothing else: who lives, and for how long, is measured by monotonic clocks, whose rates alone matter (V2); sessions end by an entry (X2) |
//!
//! **Networks**
//!
//! | fault | what is left | what happens |
//! |---|---|---|
//! | link closed or reset | nothing certain | it is probed at once, and repeated from where it stopped (V11, T1) |
//! | fresh connect refused | nobody listens there: the process is dead | the view goes on without it within milliseconds; void as soon as it connects again; ignored with `--no-evidence` |
//! | silence | dead, or cut off: nobody can tell | taken for dead after 500 ms, and 3 s more by whoever reaches less than a majority |
//! | cut one way, or one link of three | servers that hear each other by halves | who is heard, but does not hear, is silent (only *answers* count). A pre-vote is vetoed while its listener reaches the primary (V1), so the view changes once, or not at all |
//! | one cut off from two, for up to 3.5 s | one server that has not gone on | the two drop it after 500 ms; it catches up |
//! | one from two, or all apart, for longer | **a split brain**: several primaries, each acknowledging; logs that have parted | on contact the lower view stops serving (R1). Its rows above the fork are moved to `diverged-*.csv` (R2); what had been applied is undone by recovering from a checkpoint from before the fork, or else from the winner's. It follows as a learner and has the primary propose each row again (R3), which applies it once, or lists it in `conflicts.csv` (R4, R6). When all of a file is committed the file goes (R7), and the server may be a member again. A crash of anybody in between repeats harmlessly |
//! | a split within a split | rows that were proposed again on a side that loses | they are moved and proposed again like any other; the lowest of the forks counts |
//! | a side that went on for more than 10,000,000 entries, or has lost its log's beginning | rows whose ids, or which themselves, nobody has any more | the first are listed as `undecidable`, never applied and never dropped (R8); of the second the server says which entries they were, and keeps its last tables as `checkpoints/given-up-*`. Space that runs low does not bring this about: while a server is absent the log is kept, and new commands are refused instead |
//!
//! **Disks and files**
//!
//! | fault | what is left | what happens |
//! |---|---|---|
//! | torn last row: no newline at its end, or nothing but reserved space behind its beginning | bytes that were never synced, so never acknowledged | recovery cuts them; the disk counts as whole (D4) |
//! | empty lines between rows: sectors that were not reached when the power failed | rows behind them that were never synced, unless the disk has lost a write | cut from the first empty line on, and the disk is suspect |
//! | damaged last row, complete | a row that may have been acknowledged | it is cut, and the disk is *suspect*: its log starts a view only if no whole disk can (`authority::sources`) |
//! | rot: damaged rows with good ones after them | a gap, whose size the sequence numbers and indexes tell | never cut. The server counts for nothing, asks the others for the entries (`tick_repair`), keeps the damaged file as `rotten-*.csv`, and recovers anew. If nobody has them it goes on without if its checkpoint is later; else it says so and waits |
//! | rot in the hard state or a view's row | a server that may have forgotten a promise | the disk is *partial*: it must catch up first, and has not answered for the lives it may have forgotten (V6) |
//! | bad table in a checkpoint | an older generation, or the log from its begin | that stands in; the bad one is kept as `checkpoints/rotten-*`. If neither reaches back, the server refuses to start and overwrites nothing |
//! | failed write or fdatasync | rows of which the page cache may say more than the disk | never tried again, never acknowledged: exit code 3 (D2); a sole member goes on read-only. The next start rewrites and syncs the live segment before anything in it counts |
//! | disk nearly full (64 MiB left) | everything | the primary refuses commands by `disk_full` while that is so at any member; reads go on (D3). A write that does not fit is cut back to whole rows, and counts as failed |
//! | slow disk | a member whose acknowledgements are late | dropped after a second, told so, and taken in again after 10 s and more (N9, V10) |
//! | disk that hangs | writes under way | heartbeats carry their age. After a second others no longer take that primary for one, and go on without that member (N9) |
//! | answers that differ although the log is the same: bad memory, a wrong table, another version | a state that nobody else has | the digests in heartbeats show it (D7): of three the odd one stops with exit code 1, of two the backup. Started again it takes nothing of its tables along, and everything from the others; they are kept as `checkpoints/given-up-*` |
//!
//! **Operators**
//!
//! | mistake | what is left | what happens |
//! |---|---|---|
//! | wiped directory | nothing | draws a new incarnation, is *partial*, and catches up as a learner; it neither leads nor counts as having answered (V6). Beside a known `cluster.id` it never creates a cluster |
//! | directory restored from an old copy | an old log, an old incarnation | the others know a later one (`on_restored_disk`): as if wiped, but only what it lacks travels. Alone it would know of nothing later: start it with `--cold-wait never` until it has caught up |
//! | two started as `primary`, out of each other's reach | two clusters | the one without users yields and joins the other, whatever its age. If both have users they never merge: a starting server exits with code 1, a running one says so once and goes on |
//! | restarted as `primary` while another leads | one cluster, as before | the role counts in an empty directory only: it joins as a learner |
//! | directory of another server, cluster list or format | all of it | refused with file, line, what was found and expected: exit code 1. A directory in use is locked |
//! | another key | nothing | the handshake fails on both sides, and says so |
//!
//! # Names of rules
//!
//! Comments name the rule that a piece of code carries out:
//!
//! - **N**ormal operation. N1 a client's view is a hint · N2 exact dedupe · N3 nothing random after an entry exists · N4
//!   prepare in parallel with the own sync · N5 sync, then acknowledge · N6 commit at all members · N7 the commit index
//!   travels along · N8 reads need a barrier · N9 stuck and slow disks · N10 `--min-copies`.
//! - **V**iew change. V1 pre-vote, own promise first · V2 promises are kept on disk; who is continuous · V3 sources hold
//!   the last installed view · V4 the longest log among them starts the new one · V5 who must have answered · V6 wiped
//!   disks count for nothing · V7 installing · V8 active when all have installed · V10 who is dropped alive is told · V11
//!   evidence of death · V12 back-off.
//! - Ca**t**ch-up. T1 pulled · T2 logs part where their views do · T3 what a log may forget · T4 when a learner enters · T5
//!   checkpoints switch by one rename.
//! - **R**ebase. R1 the lower view stops · R2 rows are moved, never thrown away · R3 each is proposed again · R4 by exact
//!   id, from proven peers · R5 ids of messages are ids of requests · R6 what does not fit is listed · R7 a file goes when
//!   all of it is committed · R8 how long ids are kept · R9 clients drop duplicates · R10 rows keep their time, marked late.
//! - **D**isk. D1 group commit · D2 failed syncs · D3 no space · D4 torn and rotten rows · D5 who has lost rows is no source
//!   · D6 tables · D7 digests.
//! - e**X**actly once. X1 client ids and tokens · X2 sessions end by an entry · X3 the same number on every retry · X4
//!   pushes and acknowledgements.

#[macro_use]
mod mutant;

pub mod chat;
pub mod client;
pub mod config;
pub mod message;
pub mod prng;
pub mod replica;
pub mod row;
pub mod server;
pub mod storage;
pub mod time;
pub mod types;
pub mod wire;
