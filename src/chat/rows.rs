//! Where a table keeps its rows: by any key, or by keys that end in numbers given in sequence.

use std::collections::BTreeMap;
use std::ops::Bound;

use crate::types::{MessageId, RequestId, RequestNumber};

/// Rows in the order of their keys.
pub(super) trait Rows<K, V>: Default {
    /// How many there are.
    fn len(&self) -> usize;
    /// The row with this key.
    fn row(&self, key: K) -> Option<&V>;
    /// The same, to be changed.
    fn row_mut(&mut self, key: K) -> Option<&mut V>;
    /// Puts a row in; gives the one that it replaces.
    fn insert(&mut self, key: K, value: V) -> Option<V>;
    /// Takes a row out.
    fn remove(&mut self, key: K) -> Option<V>;
    /// The last key.
    fn last_key(&self) -> Option<K>;
    /// Takes no more space than rows need that were all added in order.
    fn pack(&mut self);
    /// The rows after this key, or all.
    fn after<'a>(&'a self, key: Option<K>) -> impl Iterator<Item = (K, &'a V)>
    where
        V: 'a;
}

impl<K: Ord + Copy, V> Rows<K, V> for BTreeMap<K, V> {
    fn len(&self) -> usize {
        self.len()
    }

    fn row(&self, key: K) -> Option<&V> {
        self.get(&key)
    }

    fn row_mut(&mut self, key: K) -> Option<&mut V> {
        self.get_mut(&key)
    }

    fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.insert(key, value)
    }

    fn remove(&mut self, key: K) -> Option<V> {
        self.remove(&key)
    }

    fn last_key(&self) -> Option<K> {
        self.last_key_value().map(|(key, _)| *key)
    }

    fn pack(&mut self) {
        // The nodes of the tree are half empty.
        *self = std::mem::take(self).into_iter().collect();
    }

    fn after<'a>(&'a self, key: Option<K>) -> impl Iterator<Item = (K, &'a V)>
    where
        V: 'a,
    {
        let start = key.map_or(Bound::Unbounded, Bound::Excluded);
        self.range((start, Bound::Unbounded)).map(|(key, value)| (*key, value))
    }
}

/// A key that ends in a number.
pub(super) trait Numbered: Ord + Copy {
    /// The number. Keys that differ in nothing else are in its order.
    fn number(self) -> u64;
    /// The same key with another number.
    fn with_number(self, number: u64) -> Self;
}

impl Numbered for u64 {
    fn number(self) -> u64 {
        self
    }

    fn with_number(self, number: u64) -> Self {
        number
    }
}

impl Numbered for MessageId {
    fn number(self) -> u64 {
        self.0.number()
    }

    fn with_number(self, number: u64) -> Self {
        Self(self.0.with_number(number))
    }
}

impl Numbered for RequestId {
    fn number(self) -> u64 {
        self.number.0
    }

    fn with_number(self, number: u64) -> Self {
        Self { number: RequestNumber(number), ..self }
    }
}

/// So many numbers in sequence share a block: as many as [`Block::present`] has bits.
const BLOCK: u64 = 64;

/// Rows whose keys end in numbers, nearly all of which are given in sequence: such rows fill their blocks, where those of
/// a `BTreeMap` fill half of its nodes, and their keys take next to no space.
#[derive(Clone, Debug)]
pub(super) struct OrderedRows<K, V> {
    /// By the first key that there could be in the block. No block is empty.
    blocks: BTreeMap<K, Block<V>>,
    len: usize,
}

#[derive(Clone, Debug)]
struct Block<V> {
    /// Bit N, counted from the lowest: there is a row with the block's first number + N.
    present: u64,
    /// In the order of their numbers.
    rows: Vec<V>,
}

impl<K, V> Default for OrderedRows<K, V> {
    fn default() -> Self {
        Self { blocks: BTreeMap::new(), len: 0 }
    }
}

impl<V> Default for Block<V> {
    fn default() -> Self {
        Self { present: 0, rows: Vec::new() }
    }
}

fn first_of_block<K: Numbered>(key: K) -> K {
    key.with_number(key.number() / BLOCK * BLOCK)
}

impl<V> Block<V> {
    fn bit(number: u64) -> u64 {
        1 << (number % BLOCK)
    }

    /// Where the row with this number is among the rows, or where it belongs.
    fn find(&self, number: u64) -> Result<usize, usize> {
        let bit = Self::bit(number);
        let at = (self.present & (bit - 1)).count_ones() as usize;
        if self.present & bit == 0 { Err(at) } else { Ok(at) }
    }

    fn insert(&mut self, number: u64, row: V) -> Option<V> {
        match self.find(number) {
            Ok(at) => Some(std::mem::replace(&mut self.rows[at], row)),
            Err(at) => {
                self.present |= Self::bit(number);
                if self.rows.len() == self.rows.capacity() {
                    // Twice as many each time, from one on: many a session has one reply.
                    self.rows.reserve_exact(self.rows.len().max(1));
                }
                self.rows.insert(at, row);
                None
            }
        }
    }

    fn remove(&mut self, number: u64) -> Option<V> {
        let at = self.find(number).ok()?;
        self.present &= !Self::bit(number);
        let row = self.rows.remove(at);
        self.give_back();
        Some(row)
    }

    /// Takes out the rows up to this number, and gives them with how far each number is from the block's first.
    fn remove_through(&mut self, number: u64, mut take: impl FnMut(u64, V)) {
        let bit = Self::bit(number);
        let gone = self.present & (bit | (bit - 1));
        let mut rest = gone;
        for row in self.rows.drain(..gone.count_ones() as usize) {
            take(u64::from(rest.trailing_zeros()), row);
            rest &= rest - 1;
        }
        self.present &= !gone;
        self.give_back();
    }

    fn give_back(&mut self) {
        if self.rows.len() < self.rows.capacity() / 4 {
            self.rows.shrink_to(self.rows.capacity() / 2);
        }
    }

    /// The rows, and how far each number is from the block's first.
    fn iter(&self) -> impl Iterator<Item = (u64, &V)> {
        let mut rest = self.present;
        self.rows.iter().map(move |row| {
            let at = rest.trailing_zeros();
            rest &= rest - 1;
            (u64::from(at), row)
        })
    }
}

impl<K: Numbered, V: Copy> OrderedRows<K, V> {
    /// Takes rows in ascending order of their keys, and no more space than they need. Rows of different parts differ in more
    /// than their numbers.
    pub(super) fn from_sorted(parts: impl Iterator<Item = Vec<(K, V)>>) -> Self {
        let mut blocks = Vec::new();
        let mut len = 0;
        for rows in parts {
            len += rows.len();
            blocks.extend(rows.chunk_by(|(a, _), (b, _)| first_of_block(*a) == first_of_block(*b)).map(
                |rows| {
                    let present = rows.iter().fold(0, |bits, (key, _)| bits | Block::<V>::bit(key.number()));
                    let block = Block { present, rows: rows.iter().map(|(_, row)| *row).collect() };
                    (first_of_block(rows[0].0), block)
                },
            ));
        }
        Self { blocks: blocks.into_iter().collect(), len }
    }
}

impl<K: Numbered, V> OrderedRows<K, V> {
    /// Takes out the row with this key and those with the same key but for a lower number, and gives them: block by
    /// block, where one after the other each would be looked for.
    pub(super) fn remove_through(&mut self, last: K, mut take: impl FnMut(K, V)) {
        while let Some((first, block)) = self.blocks.range_mut(last.with_number(0)..=last).next() {
            let first = *first;
            let before = block.rows.len();
            let through = last.number().min(first.number() + (BLOCK - 1));
            block.remove_through(through, |at, row| take(first.with_number(first.number() + at), row));
            self.len -= before - block.rows.len();
            if !block.rows.is_empty() {
                break;
            }
            self.blocks.remove(&first);
        }
    }
}

impl<K: Numbered, V> Rows<K, V> for OrderedRows<K, V> {
    fn len(&self) -> usize {
        self.len
    }

    fn row(&self, key: K) -> Option<&V> {
        let block = self.blocks.get(&first_of_block(key))?;
        block.find(key.number()).ok().map(|at| &block.rows[at])
    }

    fn row_mut(&mut self, key: K) -> Option<&mut V> {
        let block = self.blocks.get_mut(&first_of_block(key))?;
        block.find(key.number()).ok().map(|at| &mut block.rows[at])
    }

    fn insert(&mut self, key: K, value: V) -> Option<V> {
        let first = first_of_block(key);
        let replaced = if let Some(block) = self.blocks.get_mut(&first) {
            block.insert(key.number(), value)
        } else {
            let mut block = Block::default();
            if let Some(mut last) = self.blocks.last_entry()
                && *last.key() < first
            {
                // Most likely nothing more comes into the one before, and this one becomes as full as that.
                if last.get().present == u64::MAX {
                    block.rows.reserve_exact(last.get().rows.len());
                }
                last.get_mut().rows.shrink_to_fit();
            }
            block.insert(key.number(), value);
            self.blocks.insert(first, block);
            None
        };
        self.len += usize::from(replaced.is_none());
        replaced
    }

    fn remove(&mut self, key: K) -> Option<V> {
        let first = first_of_block(key);
        let block = self.blocks.get_mut(&first)?;
        let row = block.remove(key.number())?;
        if block.rows.is_empty() {
            self.blocks.remove(&first);
        }
        self.len -= 1;
        Some(row)
    }

    fn last_key(&self) -> Option<K> {
        let (first, block) = self.blocks.last_key_value()?;
        Some(first.with_number(first.number() + u64::from(block.present.ilog2())))
    }

    fn pack(&mut self) {
        if let Some(mut last) = self.blocks.last_entry() {
            last.get_mut().rows.shrink_to_fit();
        }
        self.blocks.pack();
    }

    fn after<'a>(&'a self, key: Option<K>) -> impl Iterator<Item = (K, &'a V)>
    where
        V: 'a,
    {
        let first = key.map(first_of_block);
        let skipped = key.map_or(0, |key| {
            let found = self.blocks.get(&first_of_block(key)).map(|block| block.find(key.number()));
            found.map_or(0, |found| found.map_or_else(|at| at, |at| at + 1))
        });
        let blocks = self.blocks.range((first.map_or(Bound::Unbounded, Bound::Included), Bound::Unbounded));
        let rows = blocks.flat_map(|(first, block)| {
            block.iter().map(|(at, row)| (first.with_number(first.number() + at), row))
        });
        rows.skip(skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ClientId;
    use proptest::prelude::*;
    use std::fmt::Debug;

    /// Of two clients.
    fn id(key: u64) -> MessageId {
        MessageId(RequestId { client: ClientId(key % 2), number: RequestNumber(key / 2) })
    }

    /// A change: a row is put in or taken out, or all up to it are taken out.
    #[derive(Clone, Copy, Debug)]
    enum Change {
        Insert(u64, u8),
        Remove(u64),
        RemoveThrough(u64),
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            10 => (0..300u64, any::<u8>()).prop_map(|(key, value)| Change::Insert(key, value)),
            10 => (0..300u64).prop_map(Change::Remove),
            1 => (0..300u64).prop_map(Change::RemoveThrough),
        ]
    }

    /// The same changes to rows and to an ordinary map, and then the same questions.
    fn compare<K: Numbered + Debug>(
        key: impl Fn(u64) -> K,
        changes: &[Change],
        probes: &[Option<u64>],
    ) -> Result<(), TestCaseError> {
        let (mut rows, mut map) = (OrderedRows::default(), BTreeMap::new());
        for change in changes {
            match *change {
                Change::Insert(number, value) => {
                    let key = key(number);
                    prop_assert_eq!(Rows::insert(&mut rows, key, value), map.insert(key, value));
                }
                Change::Remove(number) => {
                    let key = key(number);
                    prop_assert_eq!(Rows::remove(&mut rows, key), map.remove(&key));
                }
                Change::RemoveThrough(number) => {
                    let last = key(number);
                    let (mut taken, mut expected) = (Vec::new(), Vec::new());
                    rows.remove_through(last, |key, value| taken.push((key, value)));
                    expected.extend(map.extract_if(last.with_number(0)..=last, |_, _| true));
                    prop_assert_eq!(taken, expected);
                }
            }
            prop_assert_eq!(Rows::len(&rows), map.len());
            prop_assert_eq!(Rows::last_key(&rows), Rows::last_key(&map));
        }
        let sorted: Vec<_> = map.iter().map(|(key, value)| (*key, *value)).collect();
        let mut packed = rows.clone();
        packed.pack();
        let parts = sorted.chunk_by(|(a, _), (b, _)| a.with_number(0) == b.with_number(0)).map(<[_]>::to_vec);
        for mut rows in [rows, packed, OrderedRows::from_sorted(parts)] {
            prop_assert_eq!(Rows::len(&rows), map.len());
            for probe in probes {
                let after = probe.map(&key);
                let found: Vec<_> = rows.after(after).collect();
                prop_assert_eq!(found, map.after(after).collect::<Vec<_>>());
                let key = key(probe.unwrap_or(300));
                prop_assert_eq!(rows.row(key), map.get(&key));
                prop_assert_eq!(rows.row_mut(key), map.get_mut(&key));
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn rows_by_number_are_those_of_an_ordinary_map(
            changes in prop::collection::vec(change(), 0..400),
            probes in prop::collection::vec(prop::option::of(0..320u64), 10),
        ) {
            compare(|number| number, &changes, &probes)?;
            compare(id, &changes, &probes)?;
        }
    }
}
