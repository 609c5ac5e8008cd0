//! Messages, and the orders in which they are looked up.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::accounts::{Counts, Directory, Handle};
use super::conversations::{Conversations, Pair};
use super::rows::{OrderedRows, Rows as _};
use super::table::SnapshotTable;
use crate::types::MessageId;

/// A message. Its key, its *order*, is the index of the entry that sent it.
#[derive(Clone, Debug)]
pub(super) struct Message {
    pub(super) id: MessageId,
    pub(super) from: Handle,
    pub(super) to: Handle,
    pub(super) unix_ms: u64,
    /// Whether it comes from another log, and stands later in the order than its time says (R10).
    pub(super) late: bool,
    pub(super) text: Box<str>,
}

/// The orders of messages by their ids.
pub(super) type Ids = OrderedRows<MessageId, u64>;

/// What is known of messages by their accounts.
pub(super) struct ByAccount {
    mentions: Vec<u64>,
    waiting: Vec<VecDeque<u64>>,
    conversations: Conversations,
    partners: BTreeSet<(Handle, Handle)>,
}

/// All messages.
#[derive(Clone, Debug, Default)]
pub(super) struct Mailboxes {
    /// Those that wait for their recipient.
    pub(super) queued: SnapshotTable<u64, Message, OrderedRows<u64, Message>>,
    /// Those that their recipient has.
    pub(super) delivered: SnapshotTable<u64, Message, OrderedRows<u64, Message>>,
    /// The order of each: clients number what they send in sequence.
    ids: Ids,
    /// All by the two accounts, the lower handle first. All deleted accounts share [`Handle::DELETED`] here.
    conversations: Conversations,
    /// Which two existing accounts have a conversation, the higher handle first: the other way round `conversations` says.
    partners: BTreeSet<(Handle, Handle)>,
    bytes: u64,
}

impl Mailboxes {
    /// The order of a message.
    pub(super) fn order(&self, id: MessageId) -> Option<u64> {
        self.ids.row(id).copied()
    }

    /// A message, and whether it is delivered.
    pub(super) fn message(&self, order: u64) -> Option<(&Message, bool)> {
        match self.queued.row(order) {
            Some(message) => Some((message, false)),
            None => self.delivered.row(order).map(|message| (message, true)),
        }
    }

    /// The orders of what two accounts exchanged, below `before`, latest first. `with` may be [`Handle::DELETED`].
    pub(super) fn exchanged(&self, owner: Handle, with: Handle, before: u64) -> impl Iterator<Item = u64> {
        self.conversations.exchanged((owner.min(with), owner.max(with)), before)
    }

    /// How many messages there are.
    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    /// Roughly how many bytes the messages take in a checkpoint.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds a message with a new id and a new order.
    pub(super) fn add(&mut self, directory: &mut Directory, order: u64, message: Message, delivered: bool) {
        let added = self.maybe_add(directory, order, message, delivered);
        assert!(added, "a message is added twice as {order}");
    }

    /// Adds a message with a new order, unless there is one with its id.
    pub(super) fn maybe_add(
        &mut self,
        directory: &mut Directory,
        order: u64,
        message: Message,
        delivered: bool,
    ) -> bool {
        if let Some(earlier) = self.ids.insert(message.id, order) {
            self.ids.insert(message.id, earlier);
            return false;
        }
        let (low, high) = conversation(&message, |handle| directory.is_live(handle));
        if self.conversations.add((low, high), order) && low != Handle::DELETED {
            self.partners.insert((high, low));
        }
        directory.mention(message.from);
        directory.mention(message.to);
        if !delivered {
            directory.wait(message.to, order);
        }
        self.add_row(order, message, delivered);
        true
    }

    /// Adds a message that can't be looked up by its id or its accounts before [`Mailboxes::set_lookups`].
    pub(super) fn add_row(&mut self, order: u64, message: Message, delivered: bool) {
        self.bytes += row_bytes(&message);
        if delivered {
            self.delivered.insert(order, message);
        } else {
            self.queued.insert(order, message);
        }
    }

    /// After [`Mailboxes::add_row`]: all messages by their ids, for [`Mailboxes::set_lookups`]. They are sorted first, which
    /// takes a fraction of the time and two thirds of the space of adding one after the other; and part by part, so that
    /// what is sorted takes little space beside the rest.
    ///
    /// # Errors
    /// Two messages have the same id: the orders of both.
    pub(super) fn ids_of_rows(&self) -> Result<Ids, [u64; 2]> {
        const PART_BITS: u32 = 2;
        let mut same = None;
        let ids = Ids::from_sorted((0..1 << PART_BITS).map(|part| {
            let ids = self.iter().map(|(order, message)| (message.id, order));
            let mut ids: Vec<_> = ids.filter(|(id, _)| id.0.client.first_bits(PART_BITS) == part).collect();
            ids.sort_unstable();
            let pair = ids.windows(2).find(|pair| pair[0].0 == pair[1].0);
            same = same.or(pair.map(|pair| [pair[0].1, pair[1].1]));
            ids
        }));
        same.map_or(Ok(ids), Err)
    }

    /// After [`Mailboxes::add_row`]: all messages by their accounts, for [`Mailboxes::set_lookups`]; sorted first, too.
    pub(super) fn accounts_of_rows(&self, directory: &Directory) -> ByAccount {
        let mentions = directory.mentions(self.iter().flat_map(|(_, message)| [message.from, message.to]));
        let waiting =
            directory.all_waiting(|| self.queued.iter().map(|(order, message)| (message.to, order)));
        let live = directory.live();
        let mut sorted = Vec::with_capacity(self.queued.len() + self.delivered.len());
        sorted.extend(self.iter().map(|(order, message)| {
            let (low, high) = conversation(message, |handle| live[handle.at()]);
            (low, high, order)
        }));
        sorted.sort_unstable();
        let each = sorted.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)).map(|orders| orders[0]);
        let existing = each.filter(|(low, ..)| *low != Handle::DELETED);
        let partners = existing.map(|(low, high, _)| (high, low)).collect();
        ByAccount { mentions, waiting, partners, conversations: Conversations::from_sorted(sorted) }
    }

    /// Makes all messages found by their ids and their accounts, and known to their accounts.
    pub(super) fn set_lookups(&mut self, directory: &mut Directory, ids: Ids, by_account: ByAccount) {
        self.ids = ids;
        self.conversations = by_account.conversations;
        self.partners = by_account.partners;
        directory.set_messages(by_account.mentions, by_account.waiting);
    }

    fn iter(&self) -> impl Iterator<Item = (u64, &Message)> {
        self.queued.iter().chain(self.delivered.iter())
    }

    /// The recipient has a message: it no longer waits.
    pub(super) fn deliver(&mut self, directory: &mut Directory, order: u64) {
        let message = self.queued.remove(order).expect("only a queued message is delivered");
        directory.end_wait(message.to, order);
        self.delivered.insert(order, message);
    }

    /// Takes a message out, for both sides.
    pub(super) fn remove(&mut self, directory: &mut Directory, order: u64) {
        let message = if let Some(message) = self.queued.remove(order) {
            directory.end_wait(message.to, order);
            message
        } else {
            self.delivered.remove(order).expect("only a message that exists is removed")
        };
        self.ids.remove(message.id);
        self.bytes -= row_bytes(&message);
        let (low, high) = conversation(&message, |handle| directory.is_live(handle));
        self.conversations.remove((low, high), order);
        if low != Handle::DELETED && self.exchanged(low, high, u64::MAX).next().is_none() {
            self.partners.remove(&(high, low));
        }
        directory.forget_mention(message.from);
        directory.forget_mention(message.to);
    }

    /// Before an account goes: takes out what waits for it and what nobody else can see, and puts the rest where the
    /// others find it under `[deleted]`. Costs as much as the account has messages.
    pub(super) fn remove_owner(&mut self, directory: &mut Directory, owner: Handle) {
        let mut gone: Vec<u64> = directory.waiting_after(owner, 0).collect();
        // What it exchanged with deleted accounts and with itself; what of it still waits is named above.
        let unseen = [Handle::DELETED, owner].map(|with| self.exchanged(owner, with, u64::MAX));
        gone.extend(unseen.into_iter().flatten().filter(|order| self.delivered.contains(*order)));
        for order in gone {
            self.remove(directory, order);
        }
        for partner in self.partners(owner) {
            let (low, high) = (owner.min(partner), owner.max(partner));
            let kept: Vec<u64> = self.exchanged(low, high, u64::MAX).collect();
            for order in kept {
                self.conversations.remove((low, high), order);
                self.conversations.add((Handle::DELETED, partner), order);
            }
            self.partners.remove(&(high, low));
        }
    }

    /// The existing accounts that an account has a conversation with, itself among them at most once.
    fn partners(&self, owner: Handle) -> Vec<Handle> {
        let lower = self.partners.range((owner, Handle::DELETED)..=(owner, owner)).map(|(_, low)| *low);
        lower.chain(self.conversations.partners_above(owner)).collect()
    }

    /// Compares what is kept in several places; gives the counts that the accounts must have.
    pub(super) fn check(&self, directory: &Directory) -> Result<Counts, String> {
        let mut counts = Counts::default();
        let mut ids = BTreeMap::new();
        let (mut conversations, mut partners, mut bytes) = (BTreeSet::new(), BTreeSet::new(), 0);
        for (order, message) in self.queued.iter() {
            counts.waiting.entry(message.to).or_default().push_back(order);
        }
        for (order, message) in self.iter() {
            ids.insert(message.id, order);
            *counts.mentions.entry(message.from).or_default() += 1;
            *counts.mentions.entry(message.to).or_default() += 1;
            let (low, high) = conversation(message, |handle| directory.is_live(handle));
            if high == Handle::DELETED {
                return Err(format!("message {} has no existing account", message.id));
            }
            conversations.insert((low, high, order));
            if low != Handle::DELETED {
                partners.insert((high, low));
            }
            bytes += row_bytes(message);
        }
        for (same, what) in [
            (self.queued.len() + self.delivered.len() == ids.len(), "ids differ from messages"),
            (ids.into_iter().eq(self.ids.after(None).map(|(id, order)| (id, *order))), "ids differ"),
            (self.conversations.check(&conversations), "conversations differ"),
            (partners == self.partners, "partners differ"),
            (bytes == self.bytes, "bytes of messages differ"),
        ] {
            if !same {
                return Err(what.to_owned());
            }
        }
        Ok(counts)
    }
}

/// Under which two handles a message is found, the lower one first.
fn conversation(message: &Message, is_live: impl Fn(Handle) -> bool) -> Pair {
    let [a, b] =
        [message.from, message.to].map(|handle| if is_live(handle) { handle } else { Handle::DELETED });
    (a.min(b), a.max(b))
}

fn row_bytes(message: &Message) -> u64 {
    (message.text.len() + 110) as u64
}
