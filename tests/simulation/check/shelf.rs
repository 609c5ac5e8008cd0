//! The model of a mailbox, and of what two accounts have exchanged: a shelf of messages in the order they came.

use super::linear::Model;

/// The messages on a shelf, by the numbers that the oracle gives them, oldest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Shelf {
    /// The messages.
    pub order: Vec<u32>,
    /// The cursor of the last message that came, as far as anyone has seen it: cursors ascend.
    pub cursor: u64,
}

/// From which end a page shows the shelf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// A mailbox's pages begin with the oldest message.
    Oldest,
    /// A history's pages end with the latest.
    Latest,
}

/// What happens to a shelf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ShelfCall {
    /// A message is sent.
    Put {
        /// Which.
        message: u32,
        /// Its place in the order of all messages; 0 if nobody has seen it.
        cursor: u64,
    },
    /// Messages are taken off: acknowledged or deleted.
    Take {
        /// Which.
        messages: Vec<u32>,
        /// How many of them were there, if that is known.
        count: Option<u64>,
    },
    /// The account is deleted, and with it what was here.
    Clear,
    /// A page is shown.
    See {
        /// What is on it.
        messages: Vec<u32>,
        /// From which end.
        end: End,
        /// Whether there is more.
        more: bool,
    },
    /// So many messages are here.
    Count(u64),
}

impl Model for ShelfCall {
    type State = Shelf;

    fn step(&self, shelf: &Shelf) -> Option<Shelf> {
        let fits = match self {
            Self::Put { message, cursor } => {
                if *cursor != 0 && *cursor <= shelf.cursor {
                    return None;
                }
                let mut shelf = shelf.clone();
                shelf.order.push(*message);
                shelf.cursor = shelf.cursor.max(*cursor);
                return Some(shelf);
            }
            Self::Take { messages, count } => {
                let mut left = shelf.clone();
                left.order.retain(|message| !messages.contains(message));
                let found = (shelf.order.len() - left.order.len()) as u64;
                return count.is_none_or(|count| count == found).then_some(left);
            }
            Self::Clear => return Some(Shelf { order: Vec::new(), cursor: shelf.cursor }),
            Self::See { messages, more: false, .. } => shelf.order == *messages,
            Self::See { messages, end, more: true } => {
                messages.len() < shelf.order.len()
                    && match end {
                        End::Oldest => shelf.order.starts_with(messages),
                        End::Latest => shelf.order.ends_with(messages),
                    }
            }
            Self::Count(count) => shelf.order.len() as u64 == *count,
        };
        fits.then(|| shelf.clone())
    }

    fn is_read(&self) -> bool {
        matches!(self, Self::See { .. } | Self::Count(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shelf() -> Shelf {
        Shelf { order: vec![1, 2, 3], cursor: 30 }
    }

    #[test]
    fn page_with_more_behind_it_is_one_end_of_the_shelf() {
        let see = |messages: &[u32], end| ShelfCall::See { messages: messages.to_vec(), end, more: true };
        assert!(see(&[1, 2], End::Oldest).step(&shelf()).is_some());
        assert!(see(&[2, 3], End::Latest).step(&shelf()).is_some());
        assert!(see(&[2, 3], End::Oldest).step(&shelf()).is_none());
        assert!(see(&[1, 2, 3], End::Oldest).step(&shelf()).is_none(), "there is no more");
    }

    #[test]
    fn message_whose_cursor_is_known_comes_after_those_before_it() {
        let put = |cursor| ShelfCall::Put { message: 9, cursor };
        assert!(put(29).step(&shelf()).is_none());
        assert!(put(31).step(&shelf()).is_some());
        assert!(put(0).step(&shelf()).is_some());
    }

    #[test]
    fn only_what_is_there_can_be_taken_and_counted() {
        let take = |count| ShelfCall::Take { messages: vec![2, 9], count };
        assert!(take(Some(2)).step(&shelf()).is_none());
        assert_eq!(take(Some(1)).step(&shelf()).expect("one is there").order, [1, 3]);
        assert!(ShelfCall::Count(3).step(&shelf()).is_some());
        assert!(ShelfCall::Count(3).step(&ShelfCall::Clear.step(&shelf()).expect("always")).is_none());
    }
}
