//! Which messages two accounts have exchanged.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use smallvec::{SmallVec, smallvec};

use super::accounts::Handle;

/// Two accounts, the lower handle first.
pub(super) type Pair = (Handle, Handle);

/// So many messages of two accounts are kept one by one: that takes less space than a chunk.
const FEW_MAX: usize = 4;
/// So many share a chunk: a change in the middle of a long conversation moves no more than those.
const CHUNK_MAX: usize = 64;

/// Chunks of orders, all of them ascending; most conversations have one. No chunk is empty.
type Chunks = SmallVec<[Vec<u64>; 1]>;

/// The orders of messages by the two accounts. Nearly every message comes behind all others of its accounts.
#[derive(Clone, Debug, Default)]
pub(super) struct Conversations {
    /// Of accounts that have never had more than [`FEW_MAX`].
    few: BTreeSet<(Handle, Handle, u64)>,
    /// Of all others. None is empty.
    many: BTreeMap<Pair, Chunks>,
}

impl Conversations {
    /// Takes orders that are sorted, and no more space than they need.
    pub(super) fn from_sorted(mut sorted: Vec<(Handle, Handle, u64)>) -> Self {
        let each = sorted.chunk_by(same_pair).filter(|orders| orders.len() > FEW_MAX);
        let many = each.map(|orders| {
            let chunks = orders.chunks(CHUNK_MAX);
            let mut kept = Chunks::with_capacity(chunks.len());
            kept.extend(chunks.map(|chunk| chunk.iter().map(|(.., order)| *order).collect()));
            ((orders[0].0, orders[0].1), kept)
        });
        let many = many.collect();
        // The others move together, so that there is no second copy of all.
        let (mut at, mut kept) = (0, 0);
        while let Some(orders) = sorted[at..].chunk_by(same_pair).next().map(<[_]>::len) {
            if orders <= FEW_MAX {
                sorted.copy_within(at..at + orders, kept);
                kept += orders;
            }
            at += orders;
        }
        sorted.truncate(kept);
        Self { few: sorted.into_iter().collect(), many }
    }

    /// The orders of what two accounts exchanged, below `before`, latest first.
    pub(super) fn exchanged(&self, (low, high): Pair, before: u64) -> impl Iterator<Item = u64> {
        let few = self.few.range((low, high, 0)..(low, high, before)).rev().map(|(.., order)| *order);
        let chunks = self.many.get(&(low, high)).map_or(&[][..], |chunks| chunks);
        let below = &chunks[..chunks.partition_point(|chunk| chunk[0] < before)];
        let many = below.iter().rev().flat_map(move |orders| {
            let below = orders.partition_point(|order| *order < before);
            orders[..below].iter().rev().copied()
        });
        few.chain(many)
    }

    /// Adds an order that is new; gives whether it is the only one of the two accounts.
    pub(super) fn add(&mut self, (low, high): Pair, order: u64) -> bool {
        if let Some(chunks) = self.many.get_mut(&(low, high)) {
            let at = place(chunks, order);
            if let Some(rest) = insert(&mut chunks[at], order) {
                chunks.insert(at + 1, rest);
            }
            return false;
        }
        self.few.insert((low, high, order));
        let all = (low, high, 0)..=(low, high, u64::MAX);
        let count = self.few.range(all.clone()).count();
        if count > FEW_MAX {
            let orders: Vec<u64> = self.few.range(all).map(|(.., order)| *order).collect();
            for order in &orders {
                self.few.remove(&(low, high, *order));
            }
            self.many.insert((low, high), smallvec![orders]);
        }
        count == 1
    }

    /// Takes out an order of the two accounts.
    pub(super) fn remove(&mut self, (low, high): Pair, order: u64) {
        const NOT_ADDED: &str = "only a message that was added is removed";
        if self.few.remove(&(low, high, order)) {
            return;
        }
        let chunks = self.many.get_mut(&(low, high)).expect(NOT_ADDED);
        let at = place(chunks, order);
        let orders = &mut chunks[at];
        orders.remove(orders.binary_search(&order).expect(NOT_ADDED));
        if orders.len() < orders.capacity() / 4 {
            orders.shrink_to(orders.capacity() / 2);
        }
        if orders.is_empty() {
            chunks.remove(at);
            if chunks.len() < chunks.capacity() / 4 {
                chunks.shrink_to_fit();
            }
        }
        if chunks.is_empty() {
            self.many.remove(&(low, high));
        }
    }

    /// The accounts with a higher handle that have exchanged messages with this one. Costs as much as those messages.
    pub(super) fn partners_above(&self, owner: Handle) -> BTreeSet<Handle> {
        let few = self.few.range((owner, owner, u64::MAX)..).map(|(low, high, _)| (low, high));
        let many = self.many.range((Bound::Excluded((owner, owner)), Bound::Unbounded));
        let many = many.map(|((low, high), _)| (low, high));
        let of_owner = |(low, _): &(&Handle, &Handle)| **low == owner;
        few.take_while(of_owner).chain(many.take_while(of_owner)).map(|(_, high)| *high).collect()
    }

    /// Whether exactly these are kept, each where it is looked for.
    pub(super) fn check(&self, expected: &BTreeSet<(Handle, Handle, u64)>) -> bool {
        let apart = self
            .many
            .keys()
            .all(|&(low, high)| self.few.range((low, high, 0)..=(low, high, u64::MAX)).next().is_none());
        let fit = self.many.values().all(|chunks| {
            let lengths = chunks.iter().all(|orders| (1..=CHUNK_MAX).contains(&orders.len()));
            !chunks.is_empty() && lengths && chunks.iter().flatten().is_sorted()
        });
        let many = self
            .many
            .iter()
            .flat_map(|((low, high), chunks)| chunks.iter().flatten().map(|order| (*low, *high, *order)));
        let all: Vec<_> = self.few.iter().copied().chain(many).collect();
        apart && fit && all.len() == expected.len() && all.into_iter().collect::<BTreeSet<_>>() == *expected
    }
}

/// The chunk that an order is in, or belongs into.
fn place(chunks: &[Vec<u64>], order: u64) -> usize {
    let last = chunks.len() - 1;
    // The last one first: nearly every order is added there.
    if chunks[last][0] <= order {
        return last;
    }
    chunks.partition_point(|chunk| chunk[0] <= order).saturating_sub(1)
}

fn same_pair(a: &(Handle, Handle, u64), b: &(Handle, Handle, u64)) -> bool {
    (a.0, a.1) == (b.0, b.1)
}

/// Puts an order into a chunk; gives what no longer fits, all of it behind what stays.
fn insert(chunk: &mut Vec<u64>, order: u64) -> Option<Vec<u64>> {
    const HALF: usize = CHUNK_MAX / 2;
    let at = chunk.partition_point(|other| *other < order);
    if chunk.len() < CHUNK_MAX {
        chunk.insert(at, order);
        return None;
    }
    if at == CHUNK_MAX {
        return Some(vec![order]);
    }
    let mut rest = chunk.split_off(HALF);
    if at <= HALF {
        chunk.insert(at, order);
    } else {
        rest.insert(at - HALF, order);
    }
    Some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chat::accounts::Directory;
    use crate::types::{AccountId, ClientId, RequestId, RequestNumber};
    use proptest::prelude::*;

    /// [`Handle::DELETED`], and those of three accounts.
    fn handles() -> Vec<Handle> {
        let mut directory = Directory::default();
        let accounts = (1..4).map(|number| {
            let id = RequestId { client: ClientId(number), number: RequestNumber(1) };
            directory.handle_of_any(AccountId(id), true)
        });
        [Handle::DELETED].into_iter().chain(accounts).collect()
    }

    /// Of which two accounts, how far from the last one added, and whether it is added or whatever is there taken out.
    fn change() -> impl Strategy<Value = (usize, u64, bool)> {
        (
            prop_oneof![3 => Just(5_usize), 1 => 0..16_usize],
            prop_oneof![4 => Just(0), 1 => 0..400_u64],
            prop::bool::weighted(0.7),
        )
    }

    proptest! {
        #[test]
        fn conversations_are_those_of_an_ordered_set(
            changes in prop::collection::vec(change(), 0..600),
            befores in prop::collection::vec(0..700_u64, 5),
        ) {
            let handles = handles();
            let pair = |number: usize| {
                let (a, b) = (handles[number / 4], handles[number % 4]);
                (a.min(b), a.max(b))
            };
            let (mut found, mut set) = (Conversations::default(), BTreeSet::<(Handle, Handle, u64)>::new());
            let of = |set: &BTreeSet<(Handle, Handle, u64)>, (low, high): Pair, before| -> Vec<u64> {
                set.range((low, high, 0)..(low, high, before)).rev().map(|(_, _, order)| *order).collect()
            };
            for (number, (which, back, add)) in changes.into_iter().enumerate() {
                let (low, high) = pair(which);
                let order = (number as u64 + 1).saturating_sub(back).max(1);
                if !add {
                    let at_or_below = set.range((low, high, 0)..=(low, high, order)).next_back().copied();
                    if let Some(gone) = at_or_below {
                        set.remove(&gone);
                        found.remove((low, high), gone.2);
                    }
                } else if set.insert((low, high, order)) {
                    let only = of(&set, (low, high), u64::MAX).len() == 1;
                    prop_assert_eq!(found.add((low, high), order), only);
                }
                prop_assert!(found.check(&set));
            }
            let sorted: Vec<_> = set.iter().copied().collect();
            for found in [found, Conversations::from_sorted(sorted)] {
                prop_assert!(found.check(&set));
                for which in 0..16 {
                    for before in befores.iter().copied().chain([u64::MAX]) {
                        let listed: Vec<u64> = found.exchanged(pair(which), before).collect();
                        prop_assert_eq!(listed, of(&set, pair(which), before));
                    }
                }
                for owner in &handles {
                    let above = set.iter().filter(|(low, high, _)| low == owner && high > owner);
                    prop_assert_eq!(found.partners_above(*owner), above.map(|(_, high, _)| *high).collect());
                }
            }
        }
    }
}
