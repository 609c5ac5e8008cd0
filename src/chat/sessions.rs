//! Sessions and the replies that they store: what makes a retry harmless (N2, X1).

use std::collections::BTreeSet;

use super::accounts::{Directory, Handle};
use super::command::{Reply, TokenHash};
use super::rows::OrderedRows;
use super::table::SnapshotTable;
use super::{Known, Session};
use crate::config::{REQUEST_WINDOW, SESSIONS_EXPIRED_AT_ONCE_MAX, SESSIONS_PER_ACCOUNT_MAX};
use crate::types::{AccountId, ClientId, LogIndex, RequestId, RequestNumber};

const SESSION_ROW_BYTES: u64 = 150;
const REPLY_ROW_BYTES: u64 = 70;

fn minute(unix_ms: u64) -> u64 {
    unix_ms / 60_000
}

/// A session's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SessionRow {
    pub(super) session: Session,
    /// Its account's.
    pub(super) handle: Handle,
    /// No request above it has a reply: most requests are new, and need not be looked for.
    newest: RequestNumber,
}

/// All sessions.
#[derive(Clone, Debug, Default)]
pub(super) struct Sessions {
    pub(super) sessions: SnapshotTable<ClientId, SessionRow>,
    pub(super) replies: SnapshotTable<RequestId, Reply, OrderedRows<RequestId, Reply>>,
    /// By the minute of the last use: a session in use moves once a minute, not with every command.
    by_last_use: BTreeSet<(u64, ClientId)>,
    by_account: BTreeSet<(AccountId, ClientId)>,
}

impl Sessions {
    /// The session of a client.
    pub(super) fn session(&self, client: ClientId) -> Option<&Session> {
        self.row(client).map(|row| &row.session)
    }

    /// The row of a client's session.
    pub(super) fn row(&self, client: ClientId) -> Option<&SessionRow> {
        self.sessions.row(client)
    }

    /// What is known of a request.
    pub(super) fn known(&self, request: RequestId) -> Known {
        self.row(request.client).map_or(Known::New, |row| self.known_in(row, request))
    }

    /// What is known of a request in the session of its client.
    pub(super) fn known_in(&self, row: &SessionRow, request: RequestId) -> Known {
        let reply = if request.number > row.newest { None } else { self.replies.row(request) };
        match reply {
            _ if removed!("N2-known") => Known::New,
            Some(reply) => Known::Applied(reply.clone()),
            None if request.number.is_chosen_by_client() && request.number <= row.session.acknowledged => {
                Known::Forgotten
            }
            None => Known::New,
        }
    }

    /// Whether a session has not been used since before this time.
    pub(super) fn has_unused_since(&self, unix_ms: u64) -> bool {
        let through = (minute(unix_ms), ClientId(u64::MAX));
        self.by_last_use.range(..=through).any(|(_, client)| self.last_use(*client) < unix_ms)
    }

    /// Roughly how many bytes sessions and replies take in a checkpoint.
    pub(super) fn bytes(&self) -> u64 {
        self.sessions.len() as u64 * SESSION_ROW_BYTES + self.replies.len() as u64 * REPLY_ROW_BYTES
    }

    /// Adds a session of a client that has none.
    pub(super) fn add(&mut self, directory: &Directory, client: ClientId, session: Session) {
        let handle = directory.handle(session.account).expect("a session has an account");
        self.by_last_use.insert((minute(session.last_used_unix_ms), client));
        self.by_account.insert((session.account, client));
        let row = SessionRow { session, handle, newest: RequestNumber(0) };
        let earlier = self.sessions.insert(client, row);
        assert_eq!(earlier, None, "client {client} has two sessions");
    }

    /// Stores a reply in a session.
    pub(super) fn add_reply(&mut self, request: RequestId, reply: Reply) {
        let row = self.sessions.row_mut(request.client).expect("only a session has replies");
        row.newest = row.newest.max(request.number);
        self.replies.insert(request, reply);
    }

    /// Packs sessions and replies that were added in order.
    pub(super) fn pack(&mut self) {
        self.sessions.pack();
        self.replies.pack();
        self.by_last_use = std::mem::take(&mut self.by_last_use).into_iter().collect();
        self.by_account = std::mem::take(&mut self.by_account).into_iter().collect();
    }

    /// Gives the client of `request` a session of `account`, or its own session another token. Ends the session of the
    /// account that was not used for longest if there are too many.
    ///
    /// In a new session every lower number counts as acknowledged: what the client asked in an earlier session is
    /// never executed again (N2).
    pub(super) fn open(
        &mut self,
        directory: &mut Directory,
        request: RequestId,
        account: AccountId,
        token: TokenHash,
        unix_ms: u64,
        ended: &mut Vec<ClientId>,
    ) {
        if let Some(SessionRow { session, .. }) = self.sessions.row_mut(request.client) {
            assert_eq!(session.account, account, "client {} is given another account", request.client);
            session.token = token;
            return;
        }
        if self.clients(account).count() >= SESSIONS_PER_ACCOUNT_MAX {
            let oldest = self.clients(account).min_by_key(|client| self.last_use(*client));
            self.end(directory, oldest.expect("there are too many"), ended);
        }
        let acknowledged = if request.number.is_chosen_by_client() { request.number.0 - 1 } else { 0 };
        let acknowledged = RequestNumber(acknowledged);
        self.add(
            directory,
            request.client,
            Session { account, token, acknowledged, last_used_unix_ms: unix_ms, active: LogIndex(0) },
        );
    }

    /// Whether the client's session knows of a later request than this one.
    pub(super) fn has_later(&self, request: RequestId) -> bool {
        self.session(request.client).is_some_and(|session| session.acknowledged >= request.number)
            || self.replies.after(request).next().is_some_and(|(later, _)| later.client == request.client)
    }

    fn last_use(&self, client: ClientId) -> u64 {
        self.session(client).expect("every listed client has a session").last_used_unix_ms
    }

    /// The clients that have a session of an account, in order.
    pub(super) fn clients(&self, account: AccountId) -> impl Iterator<Item = ClientId> {
        self.by_account
            .range((account, ClientId(0))..=(account, ClientId(u64::MAX)))
            .map(|(_, client)| *client)
    }

    /// Ends a session and forgets its replies.
    pub(super) fn end(&mut self, directory: &mut Directory, client: ClientId, ended: &mut Vec<ClientId>) {
        let SessionRow { session, .. } =
            self.sessions.remove(client).expect("only a session that exists ends");
        self.by_last_use.remove(&(minute(session.last_used_unix_ms), client));
        self.by_account.remove(&(session.account, client));
        self.replies.remove_through(RequestId { client, number: RequestNumber(u64::MAX) });
        directory.note_active(session.account, session.active);
        ended.push(client);
    }

    /// Ends all sessions of an account, or all but one.
    pub(super) fn end_all(
        &mut self,
        directory: &mut Directory,
        account: AccountId,
        but: Option<ClientId>,
        ended: &mut Vec<ClientId>,
    ) {
        let clients: Vec<ClientId> = self.clients(account).filter(|client| Some(*client) != but).collect();
        for client in clients {
            self.end(directory, client, ended);
        }
    }

    /// Ends sessions that were last used before this time, the longest unused first: so many that it takes no more time
    /// than other entries do (X2).
    pub(super) fn end_unused_since(
        &mut self,
        directory: &mut Directory,
        unix_ms: u64,
        ended: &mut Vec<ClientId>,
    ) {
        let through = (minute(unix_ms), ClientId(u64::MAX));
        let unused = self.by_last_use.range(..=through).map(|(_, client)| (self.last_use(*client), *client));
        let unused = unused.filter(|(last_used, _)| *last_used < unix_ms).take(SESSIONS_EXPIRED_AT_ONCE_MAX);
        let mut unused: Vec<_> = unused.collect();
        unused.sort_unstable();
        for (_, client) in unused {
            self.end(directory, client, ended);
        }
    }

    /// If the client has a session of this account, stores the reply to its request there and forgets those that the
    /// client has, or that are [`REQUEST_WINDOW`] behind. `active` is the entry's index if it makes the account active.
    pub(super) fn maybe_record(
        &mut self,
        request: RequestId,
        account: AccountId,
        acknowledged: RequestNumber,
        unix_ms: u64,
        active: Option<LogIndex>,
        reply: &Reply,
    ) {
        let row = self.sessions.row_mut(request.client).filter(|row| row.session.account == account);
        let Some(SessionRow { session, newest, .. }) = row else { return };
        session.active = active.unwrap_or(session.active);
        let before = session.acknowledged;
        let mut through = session.acknowledged.max(acknowledged);
        if request.number.is_chosen_by_client() {
            through = through.max(RequestNumber(request.number.0.saturating_sub(REQUEST_WINDOW)));
            if request.number > before {
                *newest = request.number.max(*newest);
                self.replies.insert(request, reply.clone());
            }
        }
        session.acknowledged = through;
        if unix_ms > session.last_used_unix_ms {
            if minute(unix_ms) > minute(session.last_used_unix_ms) {
                self.by_last_use.remove(&(minute(session.last_used_unix_ms), request.client));
                self.by_last_use.insert((minute(unix_ms), request.client));
            }
            session.last_used_unix_ms = unix_ms;
        }
        if through > before {
            self.replies.remove_through(RequestId { client: request.client, number: through });
        }
    }

    /// Compares what is kept in several places.
    pub(super) fn check(&self, directory: &Directory) -> Result<(), String> {
        for (client, SessionRow { session, handle, .. }) in self.sessions.iter() {
            if directory.handle(session.account) != Some(*handle) {
                return Err(format!("session {client} has no account"));
            }
            if !self.by_last_use.contains(&(minute(session.last_used_unix_ms), client))
                || !self.by_account.contains(&(session.account, client))
            {
                return Err(format!("session {client} can't be found"));
            }
            if self.clients(session.account).count() > SESSIONS_PER_ACCOUNT_MAX {
                return Err(format!("account {} has too many sessions", session.account));
            }
        }
        if self.by_last_use.len() != self.sessions.len() || self.by_account.len() != self.sessions.len() {
            return Err("sessions that ended are still listed".to_owned());
        }
        for (request, _) in self.replies.iter() {
            let Some(SessionRow { session, newest, .. }) = self.row(request.client) else {
                return Err(format!("the reply to {request} has no session"));
            };
            if request.number <= session.acknowledged || request.number > *newest {
                return Err(format!("the reply to {request} is not one of up to {newest} to be kept"));
            }
        }
        Ok(())
    }
}
