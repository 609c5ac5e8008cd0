//! Nothing that a server holds or sends grows without a bound, however many ask.
//!
//! | what | bound |
//! |---|---|
//! | entries in one *prepare* or *fetched* | [`BATCH_ENTRIES_MAX`] |
//! | their bytes | [`BATCH_BYTES_MAX`], or one entry |
//! | rows given to the disk and not synced | [`UNSYNCED_BYTES_MAX`], and what the batches that were under way then add |
//! | messages or names on a page | [`PAGE_MAX`] |
//! | effects of one event | [`EFFECTS_MAX`]: each request that can wait is answered once |
//! | messages to one peer that one event causes | [`MESSAGES_MAX`] |
//! | what the core keeps: requests and reads that wait, what is not committed, reads for peers … | [`Replica::holdings`](lastword::replica::Replica::holdings) |

use lastword::config::{
    BATCH_BYTES_MAX, BATCH_ENTRIES_MAX, FRAME_CLIENT_BYTES_MAX, PAGE_MAX, UNSYNCED_BYTES_MAX,
};
use lastword::message::{Entry, PeerMessage, Response, Write};
use lastword::replica::{Effect, Holding};
use lastword::types::WriteId;
use std::collections::VecDeque;
use std::sync::Arc;

/// Most effects of one event: 16,384 requests held for a view change and as many reads for each of two barriers, each
/// answered, and half as many again for what answers cause.
const EFFECTS_MAX: u32 = 3 * 16_384 * 3 / 2;
/// Most messages to one peer that one event causes: the answer, a new view's messages, and a prepare for each batch
/// of what it lacks up to [`UNSYNCED_BYTES_MAX`].
#[allow(clippy::cast_possible_truncation)] // A small constant.
const MESSAGES_MAX: u32 = 16 + (UNSYNCED_BYTES_MAX / BATCH_BYTES_MAX) as u32;
/// Most bytes that are not synced: a backup takes in a batch more, and a request that came before it was noticed.
const UNSYNCED_MAX: usize = UNSYNCED_BYTES_MAX + 2 * BATCH_BYTES_MAX + FRAME_CLIENT_BYTES_MAX;

#[derive(Clone, Debug, Default)]
struct Held {
    unsynced: VecDeque<(WriteId, usize)>,
    unsynced_bytes: usize,
    effects: u32,
    messages: [u32; 8],
}

/// What each server holds.
#[derive(Debug)]
pub(crate) struct Bounds(Vec<Held>);

impl Bounds {
    /// Nothing yet.
    pub(crate) fn new(servers: usize) -> Self {
        Self(vec![Held::default(); servers])
    }

    /// A server starts anew.
    pub(crate) fn forget(&mut self, at: usize) {
        self.0[at] = Held::default();
    }

    /// All effects of an event have been carried out.
    pub(crate) fn on_drained(&mut self, at: usize) {
        (self.0[at].effects, self.0[at].messages) = (0, [0; 8]);
    }

    /// The core wants something done.
    pub(crate) fn on_effect(&mut self, at: usize, effect: &Effect) {
        let (held, server) = (&mut self.0[at], at + 1);
        held.effects += 1;
        assert!(held.effects <= EFFECTS_MAX, "server {server}: {} effects of one event", held.effects);
        match effect {
            Effect::Send { to, message } => {
                let count = &mut held.messages[usize::from(to.0) % 8];
                *count += 1;
                assert!(*count <= MESSAGES_MAX, "server {server}: {count} messages to {to} at once");
                if let PeerMessage::Prepare { entries, .. } | PeerMessage::Fetched { entries, .. } = message {
                    check_batch(server, entries);
                }
            }
            Effect::Write { id, write: Write::Append(entries) } => {
                let bytes = bytes_of(entries);
                held.unsynced_bytes += bytes;
                held.unsynced.push_back((*id, bytes));
                let found = held.unsynced_bytes;
                assert!(found <= UNSYNCED_MAX, "server {server}: {found} bytes wait for the disk");
            }
            Effect::Respond { response, .. } => {
                let length = match response {
                    Response::Messages(page) => page.messages.len(),
                    Response::Accounts(page) => page.names.len(),
                    _ => 0,
                };
                assert!(length <= PAGE_MAX, "server {server}: a page of {length}");
            }
            _ => {}
        }
    }

    /// The core hears that its writes are on disk.
    pub(crate) fn on_synced(&mut self, at: usize, through: WriteId) {
        let held = &mut self.0[at];
        while let Some((_, bytes)) = held.unsynced.pop_front_if(|(id, _)| *id <= through) {
            held.unsynced_bytes -= bytes;
        }
    }

    /// What a server holds in memory, by its own table.
    pub(crate) fn check(at: usize, holdings: &[Holding]) {
        for Holding { what, found, max } in holdings {
            assert!(found <= max, "server {}: {found} {what}, expected at most {max}", at + 1);
        }
    }
}

fn bytes_of(entries: &[Arc<Entry>]) -> usize {
    entries.iter().map(|entry| entry.bytes.len()).sum()
}

fn check_batch(server: usize, entries: &[Arc<Entry>]) {
    let (count, bytes) = (entries.len(), bytes_of(entries));
    assert!(count <= BATCH_ENTRIES_MAX, "server {server}: a batch of {count} entries");
    assert!(bytes <= BATCH_BYTES_MAX || count == 1, "server {server}: a batch of {bytes} bytes");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::panics;
    use lastword::chat::command::{AccountPage, Operation};
    use lastword::message::Position;
    use lastword::types::{ConnectionId, LogIndex, ServerId, ViewNumber};

    fn entry() -> Arc<Entry> {
        Arc::new(Entry::new(LogIndex(1), ViewNumber::NONE, 0, Operation::Closed, 0))
    }

    fn refuses(times: usize, effect: impl Fn(u64) -> Effect) -> bool {
        panics(|| {
            let mut bounds = Bounds::new(1);
            (0..times as u64).for_each(|n| bounds.on_effect(0, &effect(n)));
        })
    }

    #[test]
    fn batch_beyond_its_bound_is_refused() {
        let prepare = |count| {
            let (view, commit) = (ViewNumber::NONE, LogIndex(0));
            let message = PeerMessage::Prepare {
                view,
                previous: Position::default(),
                entries: vec![entry(); count],
                commit,
            };
            Effect::Send { to: ServerId(2), message }
        };
        assert!(!refuses(1, |_| prepare(BATCH_ENTRIES_MAX)));
        assert!(refuses(1, |_| prepare(BATCH_ENTRIES_MAX + 1)));
        assert!(!refuses(MESSAGES_MAX as usize, |_| prepare(1)));
        assert!(
            refuses(MESSAGES_MAX as usize + 1, |_| prepare(1)),
            "one event, and a message after the other"
        );
    }

    #[test]
    fn rows_that_wait_for_the_disk_beyond_their_bound_are_refused() {
        let rows = vec![entry(); 100_000];
        let times = UNSYNCED_MAX / bytes_of(&rows);
        let write = |n| Effect::Write { id: WriteId(n), write: Write::Append(rows.clone()) };
        assert!(!refuses(times, write));
        assert!(refuses(times + 1, write));
        let mut bounds = Bounds::new(1);
        for n in 0..3 * times as u64 {
            bounds.on_effect(0, &write(n));
            bounds.on_synced(0, WriteId(n));
        }
        assert_eq!(bounds.0[0].unsynced_bytes, 0);
    }

    #[test]
    fn holding_beyond_its_bound_is_refused() {
        let holding = |found| [Holding { what: "things", found, max: 3 }];
        Bounds::check(0, &holding(3));
        assert!(panics(|| Bounds::check(0, &holding(4))));
    }

    #[test]
    fn page_beyond_its_bound_is_refused() {
        let page = |count| {
            let page = AccountPage { names: vec!["name".into(); count], next: None };
            Effect::Respond { connection: ConnectionId(1), request: 1, response: Response::Accounts(page) }
        };
        assert!(!refuses(1, |_| page(PAGE_MAX)));
        assert!(refuses(1, |_| page(PAGE_MAX + 1)));
    }
}
