//! What could not be applied as it was when two logs became one again (R6), for those whom it concerns.

use std::collections::BTreeSet;

use super::command::ConflictReason;
use super::table::SnapshotTable;
use crate::types::{AccountId, RequestId};

/// A row of `conflicts.csv`. Its key, its *order*, is the index of the entry that decided it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Conflict {
    pub(super) reason: ConflictReason,
    /// The command's keyword.
    pub(super) command: &'static str,
    pub(super) request: RequestId,
    /// When the command was taken in, on the other side.
    pub(super) unix_ms: u64,
    /// Who gave it; of [`ConflictReason::Renamed`] who has another name now.
    pub(super) account: AccountId,
    /// The recipient; of [`ConflictReason::Renamed`] who has the name.
    pub(super) other: Option<AccountId>,
    /// What a person needs in order to do it by hand: the message, the name, the ids of messages.
    pub(super) text: String,
}

/// All conflicts. They stay: they are all that is left of what they tell of.
#[derive(Clone, Debug, Default)]
pub(super) struct Conflicts {
    pub(super) rows: SnapshotTable<u64, Conflict>,
    by_account: BTreeSet<(AccountId, u64)>,
    bytes: u64,
}

impl Conflicts {
    /// Roughly how many bytes the conflicts take in a checkpoint.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds a conflict with a new order.
    pub(super) fn add(&mut self, order: u64, conflict: Conflict) {
        self.by_account.insert((conflict.account, order));
        self.by_account.extend(conflict.other.map(|other| (other, order)));
        self.bytes += row_bytes(&conflict);
        let earlier = self.rows.insert(order, conflict);
        assert_eq!(earlier, None, "entry {order} has two conflicts");
    }

    /// The conflicts that concern an account, above a cursor, oldest first.
    pub(super) fn of(&self, account: AccountId, after: u64) -> impl Iterator<Item = (u64, &Conflict)> {
        let first = after.saturating_add(1);
        self.by_account
            .range((account, first)..=(account, u64::MAX))
            .map(|(_, order)| (*order, self.rows.row(*order).expect("every listed conflict exists")))
    }

    /// Compares what is kept in several places.
    pub(super) fn check(&self) -> Result<(), String> {
        let (mut by_account, mut bytes) = (BTreeSet::new(), 0);
        for (order, conflict) in self.rows.iter() {
            by_account.insert((conflict.account, order));
            by_account.extend(conflict.other.map(|other| (other, order)));
            bytes += row_bytes(conflict);
        }
        if by_account != self.by_account || bytes != self.bytes {
            return Err(format!("{} conflicts are listed otherwise, or have other bytes", self.rows.len()));
        }
        Ok(())
    }
}

fn row_bytes(conflict: &Conflict) -> u64 {
    (conflict.text.len() + 120) as u64
}
