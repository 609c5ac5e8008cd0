//! What can be read from the state: counts, messages, and pages of names and messages.

use std::ops::Bound;

use super::State;
use super::accounts::Handle;
use super::command::{AccountPage, ConflictPage, ConflictView, DELETED_NAME, MessagePage, MessageView};
use super::conflicts::Conflict;
use super::glob::Glob;
use crate::config::{LIST_SCAN_MAX, PAGE_BYTES_MAX, PAGE_DEFAULT, PAGE_MAX};
use crate::types::{AccountId, MessageId};

/// What a message adds to a page besides its names and its text: ids, time, cursor, lengths.
const MESSAGE_BYTES: usize = 48;
/// The same for a conflict, keywords included.
const CONFLICT_BYTES: usize = 80;

impl State {
    /// How many messages wait for an account.
    #[must_use]
    pub fn waiting_count(&self, account: AccountId) -> u64 {
        self.directory.handle(account).map_or(0, |handle| self.directory.waiting(handle))
    }

    /// A message.
    #[must_use]
    pub fn message(&self, id: MessageId) -> Option<MessageView> {
        self.mailboxes.order(id).map(|order| self.view(order))
    }

    fn view(&self, order: u64) -> MessageView {
        let (message, delivered) = self.mailboxes.message(order).expect("what is listed exists");
        MessageView {
            id: message.id,
            from: self.directory.name(message.from).to_owned(),
            to: self.directory.name(message.to).to_owned(),
            unix_ms: message.unix_ms,
            delivered,
            late: message.late,
            cursor: order,
            text: message.text.to_string(),
        }
    }

    /// The names after `after` that fit a pattern with `*` and `?`, without case. A page looks at no more than
    /// [`LIST_SCAN_MAX`] names; `limit` 0 means [`PAGE_DEFAULT`].
    #[must_use]
    pub fn list(&self, pattern: &str, after: &str, limit: usize) -> AccountPage {
        let glob = Glob::new(pattern);
        let mut page = AccountPage::default();
        let Some(prefix) = glob.prefix() else { return page };
        let after = after.to_ascii_lowercase();
        let first = if after.as_str() < prefix { Bound::Included(prefix) } else { Bound::Excluded(&*after) };
        let mut names = self
            .directory
            .names
            .range::<str, _>((first, Bound::Unbounded))
            .take_while(|(name, _)| name.starts_with(prefix))
            .peekable();
        let (mut looked_at, mut bytes) = (0, 0);
        while let Some((name, id)) = names.next() {
            looked_at += 1;
            if glob.fits(name) {
                let account = self.account(*id).expect("every name has an account");
                bytes += account.name.len();
                page.names.push(account.name.clone());
            }
            if page.names.len() == page_limit(limit) || looked_at == LIST_SCAN_MAX || bytes >= PAGE_BYTES_MAX
            {
                page.next = names.peek().map(|_| name.to_string());
                break;
            }
        }
        page
    }

    /// The messages that wait for an account, above a cursor, oldest first. `limit` 0 means [`PAGE_DEFAULT`].
    #[must_use]
    pub fn waiting(&self, account: AccountId, after: u64, limit: usize) -> MessagePage {
        let Some(owner) = self.directory.handle(account) else { return MessagePage::default() };
        self.page(self.directory.waiting_after(owner, after), limit)
    }

    /// The latest messages below a cursor (0: all) that two accounts have exchanged, oldest first. The other may be
    /// `[deleted]`: all deleted accounts together. `limit` 0 means [`PAGE_DEFAULT`]. None: nobody has this name.
    #[must_use]
    pub fn history(&self, account: AccountId, with: &str, before: u64, limit: usize) -> Option<MessagePage> {
        let owner = self.directory.handle(account)?;
        let with = if with == DELETED_NAME {
            Handle::DELETED
        } else {
            self.directory.handle(self.directory.named(with)?)?
        };
        let before = if before == 0 { u64::MAX } else { before };
        let mut page = self.page(self.mailboxes.exchanged(owner, with, before), limit);
        page.messages.reverse();
        Some(page)
    }

    /// The conflicts that concern an account, above a cursor, oldest first. `limit` 0 means [`PAGE_DEFAULT`].
    #[must_use]
    pub fn conflicts(&self, account: AccountId, after: u64, limit: usize) -> ConflictPage {
        let mut page = ConflictPage::default();
        let mut bytes = 0;
        for (order, conflict) in self.conflicts.of(account, after) {
            bytes += CONFLICT_BYTES + conflict.text.len();
            let full = page.conflicts.len() == page_limit(limit) || bytes > PAGE_BYTES_MAX;
            if full && !page.conflicts.is_empty() {
                page.more = true;
                break;
            }
            page.conflicts.push(self.conflict_view(order, conflict));
        }
        page
    }

    fn conflict_view(&self, cursor: u64, conflict: &Conflict) -> ConflictView {
        let name = |id| self.account(id).map_or(DELETED_NAME, |account| &account.name).to_owned();
        ConflictView {
            cursor,
            request: conflict.request,
            unix_ms: conflict.unix_ms,
            reason: conflict.reason.keyword().to_owned(),
            command: conflict.command.to_owned(),
            account: name(conflict.account),
            other: conflict.other.map(name).unwrap_or_default(),
            text: conflict.text.clone(),
        }
    }

    /// The first messages of a sequence, as many as fit on a page; at least one.
    fn page(&self, orders: impl Iterator<Item = u64>, limit: usize) -> MessagePage {
        let mut page = MessagePage::default();
        let mut bytes = 0;
        for order in orders {
            if page.messages.len() == page_limit(limit) {
                page.more = true;
                break;
            }
            let view = self.view(order);
            bytes += MESSAGE_BYTES + view.from.len() + view.to.len() + view.text.len();
            if bytes > PAGE_BYTES_MAX && !page.messages.is_empty() {
                page.more = true;
                break;
            }
            page.messages.push(view);
        }
        page
    }
}

/// How many entries a page may have.
fn page_limit(asked: usize) -> usize {
    if asked == 0 { PAGE_DEFAULT } else { asked.min(PAGE_MAX) }
}
