//! An ordered map that can be read as it was at one moment while it changes.

use std::collections::BTreeMap;

use super::rows::{Numbered, OrderedRows, Rows};

/// An ordered map whose rows can be read, slice by slice, as they were when [`SnapshotTable::begin`] was called.
///
/// Nothing is copied at the beginning. When a row that no slice has shown yet is changed for the first time, its old
/// form is set aside; a slice shows what was set aside in place of what is there now.
#[derive(Clone, Debug)]
pub(super) struct SnapshotTable<K, V, R = BTreeMap<K, V>> {
    rows: R,
    snapshot: Option<Snapshot<K, V>>,
}

/// A reading under way.
#[derive(Clone, Debug)]
struct Snapshot<K, V> {
    /// The last key that was shown.
    shown: Option<K>,
    /// The last key there was at the beginning; rows after it are new.
    end: Option<K>,
    /// Rows after `shown`, up to `end`, that have changed since the beginning, as they were then; none: not there.
    before: BTreeMap<K, Option<V>>,
}

/// Whether a slice is as long as it should get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Enough {
    Yes,
    No,
}

/// What one slice has shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shown {
    /// How many rows.
    pub(super) count: usize,
    /// Whether there are none left: the reading has ended. It may take one more slice, without rows, to know.
    pub(super) all: bool,
}

impl<K, V, R: Default> Default for SnapshotTable<K, V, R> {
    fn default() -> Self {
        Self { rows: R::default(), snapshot: None }
    }
}

impl<K: Numbered, V: Clone> SnapshotTable<K, V, OrderedRows<K, V>> {
    /// Takes out the row with this key and those with the same key but for a lower number.
    pub(super) fn remove_through(&mut self, last: K) {
        let Self { rows, snapshot } = self;
        rows.remove_through(last, |key, row| {
            if let Some(snapshot) = snapshot
                && snapshot.has_yet_to_show(key)
            {
                snapshot.before.entry(key).or_insert(Some(row));
            }
        });
    }
}

impl<K: Ord + Copy, V> Snapshot<K, V> {
    /// Whether what the row with this key was at the beginning is still to be shown.
    fn has_yet_to_show(&self, key: K) -> bool {
        self.shown.is_none_or(|shown| key > shown) && self.end.is_some_and(|end| key <= end)
    }
}

impl<K: Ord + Copy, V: Clone, R: Rows<K, V>> SnapshotTable<K, V, R> {
    /// How many rows there are now.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The row with this key.
    pub(super) fn row(&self, key: K) -> Option<&V> {
        self.rows.row(key)
    }

    /// Whether there is a row with this key.
    pub(super) fn contains(&self, key: K) -> bool {
        self.rows.row(key).is_some()
    }

    /// All rows, in the order of their keys.
    pub(super) fn iter(&self) -> impl Iterator<Item = (K, &V)> {
        self.rows.after(None)
    }

    /// The rows after this key, in the order of their keys.
    pub(super) fn after(&self, key: K) -> impl Iterator<Item = (K, &V)> {
        self.rows.after(Some(key))
    }

    /// Packs rows that were added in order.
    pub(super) fn pack(&mut self) {
        self.rows.pack();
    }

    /// The last key.
    pub(super) fn last_key(&self) -> Option<K> {
        self.rows.last_key()
    }

    /// Puts a row in; gives the one that it replaces.
    pub(super) fn insert(&mut self, key: K, value: V) -> Option<V> {
        self.preserve(key);
        self.rows.insert(key, value)
    }

    /// Takes a row out.
    pub(super) fn remove(&mut self, key: K) -> Option<V> {
        self.preserve(key);
        self.rows.remove(key)
    }

    /// A row to be changed.
    pub(super) fn row_mut(&mut self, key: K) -> Option<&mut V> {
        self.preserve(key);
        self.rows.row_mut(key)
    }

    /// Sets a row's present form aside, if the reading under way has yet to show it.
    fn preserve(&mut self, key: K) {
        let Some(snapshot) = &mut self.snapshot else { return };
        if snapshot.has_yet_to_show(key) {
            snapshot.before.entry(key).or_insert_with(|| self.rows.row(key).cloned());
        }
    }

    /// From now on [`SnapshotTable::show_next`] shows the rows as they are now. A reading under way is given up.
    pub(super) fn begin(&mut self) {
        self.snapshot = Some(Snapshot { shown: None, end: self.last_key(), before: BTreeMap::new() });
    }

    /// Gives up the reading under way.
    pub(super) fn abandon(&mut self) {
        self.snapshot = None;
    }

    /// Shows up to `rows_max` further rows as they were at the beginning, fewer if `show` says that it has enough.
    pub(super) fn show_next(&mut self, rows_max: usize, mut show: impl FnMut(K, &V) -> Enough) -> Shown {
        let Some(snapshot) = &mut self.snapshot else { return Shown { count: 0, all: true } };
        let Some(end) = snapshot.end.filter(|end| snapshot.shown != Some(*end)) else {
            self.snapshot = None;
            return Shown { count: 0, all: true };
        };
        let present = self.rows.after(snapshot.shown);
        let mut present = present.take_while(|(key, _)| *key <= end).peekable();
        let (mut count, mut enough) = (0, false);
        while count < rows_max && !enough {
            let set_aside = snapshot.before.first_key_value().map(|(key, _)| *key);
            let there = present.peek().map(|(key, _)| *key);
            let key = match (set_aside, there) {
                (Some(old), Some(now)) => old.min(now),
                (Some(key), None) | (None, Some(key)) => key,
                (None, None) => {
                    self.snapshot = None;
                    return Shown { count, all: true };
                }
            };
            let now = present.next_if(|(there, _)| *there == key).map(|(_, value)| value);
            if set_aside == Some(key) {
                if let Some((_, Some(old))) = snapshot.before.pop_first() {
                    enough = show(key, &old) == Enough::Yes;
                    count += 1;
                }
            } else if let Some(value) = now {
                enough = show(key, value) == Enough::Yes;
                count += 1;
            }
            snapshot.shown = Some(key);
        }
        Shown { count, all: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shown<R: Rows<u64, u32>>(table: &mut SnapshotTable<u64, u32, R>, rows_max: usize) -> Vec<(u64, u32)> {
        let mut rows = Vec::new();
        table.show_next(rows_max, |key, value| {
            rows.push((key, *value));
            // Sometimes a slice has enough before it has `rows_max`.
            if value % 5 == 4 && rows_max < 100 { Enough::Yes } else { Enough::No }
        });
        rows
    }

    #[test]
    fn a_row_removed_changed_or_added_after_the_beginning_is_shown_as_it_was() {
        let mut table: SnapshotTable<u64, u32> = SnapshotTable::default();
        for key in [1, 3, 5] {
            table.insert(key, u32::try_from(key).unwrap());
        }
        table.begin();
        table.remove(3);
        *table.row_mut(5).unwrap() = 50;
        table.insert(2, 2);
        table.insert(9, 9);
        assert_eq!(shown(&mut table, 1), [(1, 1)]);
        table.insert(1, 10);
        assert_eq!(shown(&mut table, 10), [(3, 3), (5, 5)]);
        assert_eq!(shown(&mut table, 10), []);
        assert_eq!(
            table.iter().map(|(k, v)| (k, *v)).collect::<Vec<_>>(),
            [(1, 10), (2, 2), (5, 50), (9, 9)]
        );
    }

    #[test]
    fn rows_behind_the_end_cost_nothing_while_a_reading_is_under_way() {
        let mut table: SnapshotTable<u64, u32> = SnapshotTable::default();
        table.insert(1, 1);
        table.begin();
        for key in 2..100 {
            table.insert(key, 0);
        }
        assert!(table.snapshot.as_ref().unwrap().before.is_empty());
    }

    #[test]
    fn rows_removed_together_are_shown_as_they_were() {
        let mut table: SnapshotTable<u64, u32, OrderedRows<u64, u32>> = SnapshotTable::default();
        for key in [1, 2, 70, 71, 200] {
            table.insert(key, u32::try_from(key).unwrap());
        }
        table.begin();
        assert_eq!(shown(&mut table, 1), [(1, 1)]);
        *table.row_mut(2).unwrap() = 20;
        table.insert(3, 3);
        table.insert(300, 300);
        table.remove_through(70);
        assert_eq!(table.iter().map(|(key, _)| key).collect::<Vec<_>>(), [71, 200, 300]);
        table.remove_through(300);
        assert_eq!(shown(&mut table, 10), [(2, 2), (70, 70), (71, 71), (200, 200)]);
        assert_eq!(table.len(), 0);
    }

    /// What a reading shows in slices, while rows change between them.
    fn read<R: Rows<u64, u32>>(first: &BTreeMap<u64, u32>, steps: &[Step]) -> Vec<(u64, u32)> {
        let mut table: SnapshotTable<u64, u32, R> = SnapshotTable::default();
        for (key, value) in first {
            table.insert(*key, *value);
        }
        table.begin();
        let mut rows = Vec::new();
        for (rows_max, changes) in steps {
            for (key, value) in changes {
                match value {
                    Some(value) => drop(table.insert(*key, *value)),
                    None => drop(table.remove(*key)),
                }
            }
            rows.extend(shown(&mut table, *rows_max));
        }
        rows.extend(shown(&mut table, usize::MAX));
        rows
    }

    /// How many rows a slice has at most, and what changes before it.
    type Step = (usize, Vec<(u64, Option<u32>)>);

    proptest! {
        #[test]
        fn slices_of_any_size_show_the_beginning_whatever_changes(
            first in prop::collection::btree_map(0..256u64, any::<u32>(), 0..40),
            steps in prop::collection::vec((1..6usize, prop::collection::vec((0..256u64, any::<Option<u32>>()), 0..8)), 0..40),
        ) {
            prop_assert_eq!(read::<BTreeMap<u64, u32>>(&first, &steps), read::<OrderedRows<u64, u32>>(&first, &steps));
            prop_assert_eq!(read::<OrderedRows<u64, u32>>(&first, &steps), first.into_iter().collect::<Vec<_>>());
        }
    }
}
