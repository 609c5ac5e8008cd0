//! The tables of a checkpoint: their files, their columns, their rows.

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
}

impl Table {
    /// All tables, in the order in which they are written and read: references point to earlier ones.
    pub const ALL: [Self; 5] = [Self::Users, Self::Queued, Self::Delivered, Self::Sessions, Self::Replies];

    /// The file's name in a checkpoint's directory.
    #[must_use]
    pub const fn file_name(self) -> &'static str {
        match self {
            Self::Users => "user_table.csv",
            Self::Queued => "queued_messages.csv",
            Self::Delivered => "delivered_messages.csv",
            Self::Sessions => "sessions.csv",
            Self::Replies => "replies.csv",
        }
    }

    /// The names of the columns, without the checksum's.
    #[must_use]
    pub const fn header(self) -> &'static [&'static str] {
        match self {
            Self::Users => &["id", "name", "password", "password_generation", "created_ms"],
            Self::Queued | Self::Delivered => &["id", "order", "from", "to", "time_ms", "text"],
            Self::Sessions => &["client", "account", "token", "acknowledged", "last_used_ms"],
            Self::Replies => &["client", "number", "reply", "subject", "value"],
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
