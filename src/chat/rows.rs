//! Where a table keeps its rows: by any key, or by ascending numbers.

use std::collections::BTreeMap;
use std::ops::Bound;

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

    fn after<'a>(&'a self, key: Option<K>) -> impl Iterator<Item = (K, &'a V)>
    where
        V: 'a,
    {
        let start = key.map_or(Bound::Unbounded, Bound::Excluded);
        self.range((start, Bound::Unbounded)).map(|(key, value)| (*key, value))
    }
}

/// So many numbers in sequence share a block.
const BLOCK: u64 = 64;

/// Rows whose keys are numbers, nearly all added in ascending order: such rows fill their blocks, where those of a
/// `BTreeMap` fill half of its nodes.
#[derive(Clone, Debug)]
pub(super) struct OrderedRows<V> {
    /// By key / [`BLOCK`]; ascending in each block. No block is empty.
    blocks: BTreeMap<u64, Vec<(u64, V)>>,
    len: usize,
}

impl<V> Default for OrderedRows<V> {
    fn default() -> Self {
        Self { blocks: BTreeMap::new(), len: 0 }
    }
}

fn find<V>(block: &[(u64, V)], key: u64) -> Result<usize, usize> {
    block.binary_search_by_key(&key, |(key, _)| *key)
}

impl<V> Rows<u64, V> for OrderedRows<V> {
    fn len(&self) -> usize {
        self.len
    }

    fn row(&self, key: u64) -> Option<&V> {
        let block = self.blocks.get(&(key / BLOCK))?;
        find(block, key).ok().map(|at| &block[at].1)
    }

    fn row_mut(&mut self, key: u64) -> Option<&mut V> {
        let block = self.blocks.get_mut(&(key / BLOCK))?;
        find(block, key).ok().map(|at| &mut block[at].1)
    }

    fn insert(&mut self, key: u64, value: V) -> Option<V> {
        let number = key / BLOCK;
        if let Some(mut last) = self.blocks.last_entry()
            && *last.key() < number
        {
            // Most likely nothing more comes into the one before.
            last.get_mut().shrink_to_fit();
        }
        let block = self.blocks.entry(number).or_default();
        match find(block, key) {
            Ok(at) => Some(std::mem::replace(&mut block[at].1, value)),
            Err(at) => {
                block.insert(at, (key, value));
                self.len += 1;
                None
            }
        }
    }

    fn remove(&mut self, key: u64) -> Option<V> {
        let number = key / BLOCK;
        let block = self.blocks.get_mut(&number)?;
        let (_, value) = block.remove(find(block, key).ok()?);
        self.len -= 1;
        if block.is_empty() {
            self.blocks.remove(&number);
        }
        Some(value)
    }

    fn last_key(&self) -> Option<u64> {
        let (_, block) = self.blocks.last_key_value()?;
        block.last().map(|(key, _)| *key)
    }

    fn after<'a>(&'a self, key: Option<u64>) -> impl Iterator<Item = (u64, &'a V)>
    where
        V: 'a,
    {
        let (first, skipped) = key.map_or((0, 0), |key| {
            let number = key / BLOCK;
            let behind = |block: &Vec<(u64, V)>| block.partition_point(|(other, _)| *other <= key);
            (number, self.blocks.get(&number).map_or(0, behind))
        });
        let rows = self.blocks.range(first..).flat_map(|(_, block)| block);
        rows.skip(skipped).map(|(key, value)| (*key, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rows_by_number_are_those_of_an_ordinary_map(
            changes in prop::collection::vec((0..300u64, any::<Option<u8>>()), 0..400),
            probes in prop::collection::vec(prop::option::of(0..320u64), 10),
        ) {
            let (mut rows, mut map) = (OrderedRows::default(), BTreeMap::new());
            for (key, value) in changes {
                match value {
                    Some(value) => prop_assert_eq!(Rows::insert(&mut rows, key, value), map.insert(key, value)),
                    None => prop_assert_eq!(Rows::remove(&mut rows, key), map.remove(&key)),
                }
                prop_assert_eq!(Rows::last_key(&rows), Rows::last_key(&map));
            }
            prop_assert_eq!(Rows::len(&rows), map.len());
            for probe in probes {
                let found: Vec<_> = rows.after(probe).collect();
                prop_assert_eq!(found, map.after(probe).collect::<Vec<_>>());
                let key = probe.unwrap_or(300);
                prop_assert_eq!(rows.row(key), map.get(&key));
                prop_assert_eq!(rows.row_mut(key), map.get_mut(&key));
            }
        }
    }
}
