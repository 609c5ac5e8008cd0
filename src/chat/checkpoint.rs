//! The tables of a checkpoint: their files, their columns, their rows.
//!
//! A row holds nothing that differs between servers (D6): accounts are named by their ids, and rows stand in the order
//! of their keys. Times are milliseconds since 1970. An account that a message names and `user_table.csv` does not
//! have was deleted; ids never come back.

use super::State;
use super::accounts::AccountRow;
use super::applied::{AppliedRow, Fate, Run};
use super::command::Hex;
use super::mailboxes::Message;
use super::sessions::SessionRow;
use super::table::{Enough, Shown};
use crate::row::RowWriter;

/// A table of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// `user_table.csv`: accounts, in the order of their ids.
    Users,
    /// `queued_messages.csv`: messages that wait for their recipient, oldest first.
    Queued,
    /// `delivered_messages.csv`: messages that their recipient has, oldest first.
    Delivered,
    /// `sessions.csv`: sessions, in the order of their client ids.
    Sessions,
    /// `replies.csv`: the replies that sessions store, in the order of client ids and request numbers.
    Replies,
    /// `applied_ids.csv`: from which entry on the ids of applied commands are known, which servers are absent since
    /// when, and the ids, in the order of generations.
    Applied,
    /// `conflicts.csv`: what could not be applied as it was after a split, oldest first.
    Conflicts,
}

impl Table {
    /// All tables, in the order in which they are written and read: references point to earlier ones.
    pub const ALL: [Self; 7] = [
        Self::Users,
        Self::Queued,
        Self::Delivered,
        Self::Sessions,
        Self::Replies,
        Self::Applied,
        Self::Conflicts,
    ];

    /// The file's name in a checkpoint's directory.
    #[must_use]
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::Users => "user_table.csv",
            Self::Queued => "queued_messages.csv",
            Self::Delivered => "delivered_messages.csv",
            Self::Sessions => "sessions.csv",
            Self::Replies => "replies.csv",
            Self::Applied => "applied_ids.csv",
            Self::Conflicts => "conflicts.csv",
        }
    }

    /// The names of the columns, without the checksum's.
    #[must_use]
    pub const fn header(self) -> &'static [&'static str] {
        match self {
            Self::Users => &["id", "name", "password", "password_set", "created_ms", "active"],
            Self::Queued | Self::Delivered => &["id", "order", "from", "to", "time_ms", "late", "text"],
            Self::Sessions => &["client", "account", "token", "acknowledged", "last_used_ms", "active"],
            Self::Replies => &["client", "number", "reply", "subject", "value"],
            Self::Applied => &["kind", "at", "subject", "first", "last"],
            Self::Conflicts => {
                &["order", "conflict", "command", "request", "time_ms", "account", "other", "text"]
            }
        }
    }
}

/// Some rows of a checkpoint, in the order of their table. A table without rows has one slice without rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Which table.
    pub table: Table,
    /// Whole lines with checksums and newlines, without the table's header.
    pub rows: Vec<u8>,
    /// How many lines.
    pub count: u64,
}

/// A slice that has so many bytes is long enough: writing it must not hold up commands.
const SLICE_BYTES_MAX: usize = 256 * 1024;

/// How far the checkpoint under way has come.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Emission {
    /// The place in [`Table::ALL`] of the table whose rows come next.
    table: usize,
    /// Whether that table has had a slice.
    begun: bool,
}

impl State {
    /// From now on slices show the state as it is now, whatever is applied meanwhile. A checkpoint under way is given
    /// up.
    pub fn begin_checkpoint(&mut self) {
        self.directory.accounts.begin();
        self.mailboxes.queued.begin();
        self.mailboxes.delivered.begin();
        self.sessions.sessions.begin();
        self.sessions.replies.begin();
        self.applied.begin(self.index);
        self.conflicts.rows.begin();
        self.emission = Some(Emission::default());
    }

    /// Gives up the checkpoint under way, if there is one: what was set aside for it is freed.
    pub fn abandon_checkpoint(&mut self) {
        self.directory.accounts.abandon();
        self.mailboxes.queued.abandon();
        self.mailboxes.delivered.abandon();
        self.sessions.sessions.abandon();
        self.sessions.replies.abandon();
        self.applied.abandon();
        self.conflicts.rows.abandon();
        self.emission = None;
    }

    /// The next rows of the checkpoint under way, at most `rows_max` (at least 1) and about 256 KiB;
    /// none when it is finished.
    ///
    /// All slices of a table put together are the same bytes for equal states, however they are cut.
    pub fn next_slice(&mut self, rows_max: usize) -> Option<Slice> {
        let rows_max = rows_max.max(1);
        loop {
            let Emission { table: at, begun } = self.emission?;
            let Some(table) = Table::ALL.get(at).copied() else {
                self.emission = None;
                return None;
            };
            let mut rows = RowWriter::new();
            let Shown { count, all } = self.write_rows(table, rows_max, &mut rows);
            self.emission = Some(if all {
                Emission { table: at + 1, begun: false }
            } else {
                Emission { table: at, begun: true }
            });
            if count > 0 || !begun {
                return Some(Slice { table, rows: rows.take(), count: count as u64 });
            }
        }
    }

    /// Writes the next rows of one table; stops early when they get long.
    fn write_rows(&mut self, table: Table, rows_max: usize, row: &mut RowWriter) -> Shown {
        let directory = &self.directory;
        let write_message = |order: u64, message: &Message| {
            row.id(message.id.0);
            row.number(order);
            row.id(directory.id(message.from).0);
            row.id(directory.id(message.to).0);
            row.number(message.unix_ms);
            row.encoded(if message.late { b"late" } else { b"" });
            row.text(&message.text);
            end_row(row)
        };
        match table {
            Table::Queued => self.mailboxes.queued.show_next(rows_max, write_message),
            Table::Delivered => self.mailboxes.delivered.show_next(rows_max, write_message),
            Table::Users => {
                self.directory.accounts.show_next(rows_max, |id, AccountRow { account, active, .. }| {
                    row.id(id.0);
                    row.text(&account.name);
                    row.text(&account.password);
                    row.id(account.password_set);
                    row.number(account.created_unix_ms);
                    row.number(active.0);
                    end_row(row)
                })
            }
            Table::Sessions => {
                self.sessions.sessions.show_next(rows_max, |client, SessionRow { session, .. }| {
                    row.plain(client);
                    row.id(session.account.0);
                    row.plain(Hex(&session.token));
                    row.number(session.acknowledged.0);
                    row.number(session.last_used_unix_ms);
                    row.number(session.active.0);
                    end_row(row)
                })
            }
            Table::Replies => self.sessions.replies.show_next(rows_max, |request, reply| {
                row.plain(request.client);
                row.number(request.number.0);
                reply.write_fields(row);
                end_row(row)
            }),
            Table::Applied => self.applied.show_next(rows_max, |applied| {
                write_applied(row, applied);
                end_row(row)
            }),
            Table::Conflicts => self.conflicts.rows.show_next(rows_max, |order, conflict| {
                row.number(order);
                row.encoded(conflict.reason.keyword().as_bytes());
                row.encoded(conflict.command.as_bytes());
                row.id(conflict.request);
                row.number(conflict.unix_ms);
                row.id(conflict.account.0);
                match conflict.other {
                    Some(other) => row.id(other.0),
                    None => row.encoded(b""),
                }
                row.text(&conflict.text);
                end_row(row)
            }),
        }
    }
}

fn write_applied(row: &mut RowWriter, applied: AppliedRow) {
    match applied {
        AppliedRow::From(from) => {
            row.encoded(b"from");
            row.number(from.0);
            (0..3).for_each(|_| row.encoded(b""));
        }
        AppliedRow::Absent(server, since) => {
            row.encoded(b"absent");
            row.number(since.0);
            row.plain(server);
            (0..2).for_each(|_| row.encoded(b""));
        }
        AppliedRow::Run(generation, Run { fate, first, last }) => {
            row.encoded(match fate {
                Fate::CarriedOut => b"ids",
                Fate::Refused => b"refused",
            });
            row.number(generation);
            row.plain(first.client);
            row.number(first.number.0);
            row.number(last.0);
        }
    }
}

fn end_row(row: &mut RowWriter) -> Enough {
    row.end();
    if row.len() < SLICE_BYTES_MAX { Enough::No } else { Enough::Yes }
}
