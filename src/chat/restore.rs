//! Builds the state from the rows of a checkpoint.

use super::{State, Table};
use crate::row::{Fields, RowError};
use crate::types::LogIndex;

/// A state under construction. Rows come table by table in the order of [`Table::ALL`], in file order.
#[derive(Debug)]
pub struct Restore {
    state: State,
}

#[allow(unused_variables, clippy::todo)]
impl Restore {
    /// Starts an empty state as of `index`; `digest` is what [`State::digest`] was then.
    #[must_use]
    pub fn new(index: LogIndex, digest: [u8; 32]) -> Self {
        todo!()
    }

    /// Takes one row, parsed into the fields of [`Table::header`], without its checksum.
    ///
    /// # Errors
    /// What was found in which field, and what was expected.
    pub fn row(&mut self, table: Table, fields: &Fields) -> Result<(), RowError> {
        todo!()
    }

    /// Ends the tables and gives the state.
    ///
    /// # Errors
    /// What does not fit together.
    pub fn finish(self) -> Result<State, String> {
        Ok(self.state)
    }
}
