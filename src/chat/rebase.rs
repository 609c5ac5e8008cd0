//! Commands from a log that has parted from this one (R3, R6): applied once, or told of in `conflicts.csv`.
//!
//! Sessions, window and expiry don't matter here (R4): the other side has acknowledged the command, so it is applied if
//! that still makes sense. The rules are such that it does not matter how often a command is proposed again.

use super::State;
use super::applied::Fate;
use super::apply::Stamp;
use super::command::{ClientCommand, Command, ConflictReason, Outcome, Refusal, Reply, TokenHash};
use super::conflicts::Conflict;
use super::mailboxes::Message;
use crate::types::{AccountId, LogIndex, MessageId, RequestId};

/// Why a command is not applied.
type Undone = ConflictReason;

impl State {
    /// Applies a command from a log that shares only what is up to `fork`, unless that is settled here. Gives its reply;
    /// of one that was settled the reply that its session still has.
    pub(super) fn apply_rebased(
        &mut self,
        stamp: Stamp,
        fork: LogIndex,
        entered: &ClientCommand,
        outcome: &mut Outcome,
    ) -> Option<Reply> {
        let ClientCommand { request, account, acknowledged, command } = entered;
        if self.is_settled(fork, entered) {
            self.repeat(*account, command);
            return match self.known(*request) {
                super::Known::Applied(reply) => Some(reply),
                super::Known::Forgotten | super::Known::New => None,
            };
        }
        let reply = if fork.next() < self.applied.from() {
            Err(ConflictReason::Undecidable)
        } else if self.applied.has(Fate::Refused, *request) && !matches!(command, Command::Logout { .. }) {
            Err(ConflictReason::Refused)
        } else {
            self.carry_out_rebased(stamp, fork, entered, outcome)
        };
        self.applied.insert(Fate::CarriedOut, *request);
        let reply = reply.unwrap_or_else(|reason| {
            let (other, text) = particulars(command);
            self.note_conflict(stamp, reason, entered, *account, other, text);
            Reply::Refused(Refusal::Conflict)
        });
        self.sessions.maybe_record(*request, *account, *acknowledged, stamp.unix_ms, None, &reply);
        Some(reply)
    }

    /// Whether a command needs nothing more to be done (R4): it was carried out here, or refused before the logs parted.
    /// One that was refused since may have been acknowledged on the other side, or its client told here that it was not
    /// done: nobody can tell, so it is a conflict. Sessions are ended all the same, a login is done again by who needs
    /// it, and the rest is what [`State::repeat`] does.
    pub(super) fn is_settled(&self, fork: LogIndex, entered: &ClientCommand) -> bool {
        let request = entered.request;
        let seen = removed!("R4-exact-id") && self.sessions.has_later(request);
        let disputed = match entered.command {
            Command::Register { .. }
            | Command::DeleteAccount { .. }
            | Command::ChangePassword { .. }
            | Command::Logout { everywhere: true }
            | Command::Send { .. } => self.applied.was_refused_since(fork, request),
            Command::Login { .. }
            | Command::Logout { everywhere: false }
            | Command::Acknowledge { .. }
            | Command::Delete { .. } => false,
        };
        seen || self.applied.has(Fate::CarriedOut, request)
            || self.applied.has(Fate::Refused, request) && !disputed
    }

    /// A command that is known here may have found less than on the other side, from where its messages have come
    /// since: what was taken or deleted there is so here as well. A second time that changes nothing.
    fn repeat(&mut self, account: AccountId, command: &Command) {
        match command {
            Command::Acknowledge { messages } => drop(self.acknowledge(account, messages)),
            Command::Delete { messages } => drop(self.delete_messages(account, messages)),
            _ => {}
        }
    }

    fn carry_out_rebased(
        &mut self,
        stamp: Stamp,
        fork: LogIndex,
        entered: &ClientCommand,
        outcome: &mut Outcome,
    ) -> Result<Reply, Undone> {
        let (request, account) = (entered.request, entered.account);
        match &entered.command {
            Command::Register { name, password, token } => {
                self.register_rebased(stamp, entered, name, password, *token, outcome)
            }
            Command::Login { checked, token } => {
                self.check_password_rebased(account, *checked)?;
                if self.sessions.session(request.client).is_some_and(|session| session.account != account) {
                    return Err(ConflictReason::ClientIdTaken);
                }
                self.open_session(stamp, request, account, *token, outcome);
                Ok(Reply::LoggedIn { account, waiting: self.waiting_count(account) })
            }
            Command::Logout { everywhere: true } => {
                self.end_sessions(account, None, outcome);
                Ok(Reply::LoggedOut)
            }
            Command::Logout { everywhere: false } => {
                let session = self.sessions.session(request.client);
                let is_own = session.is_some_and(|session| session.account == account);
                // What the client did later shows that it has logged in again.
                if is_own && !self.sessions.has_later(request) {
                    self.sessions.end(&mut self.directory, request.client, &mut outcome.ended);
                }
                Ok(Reply::LoggedOut)
            }
            Command::DeleteAccount { checked } => {
                if self.account(account).is_some() {
                    self.check_password_rebased(account, *checked)?;
                    if self.last_active(account) > fork {
                        return Err(ConflictReason::AccountActive);
                    }
                    self.remove_account(account, outcome);
                }
                Ok(Reply::AccountDeleted)
            }
            Command::ChangePassword { checked, password } => {
                self.check_password_rebased(account, *checked)?;
                self.directory.replace_password(account, password, request);
                self.end_sessions(account, Some(request.client), outcome);
                Ok(Reply::PasswordChanged)
            }
            Command::Send { to, text } => self.send_late(stamp, request, account, *to, text, outcome),
            Command::Acknowledge { messages } => Ok(self.acknowledge(account, messages)),
            Command::Delete { messages } => {
                Ok(self.delete_messages(account, messages).unwrap_or_else(Reply::Refused))
            }
        }
    }

    /// A password that was changed here stays (R6). Which one was checked is told by the request that set it: changes on
    /// both sides have different ones, however many there were.
    fn check_password_rebased(&self, account: AccountId, checked: RequestId) -> Result<(), Undone> {
        let found = self.account(account).ok_or(ConflictReason::NoSuchAccount)?.password_set;
        if found == checked { Ok(()) } else { Err(ConflictReason::PasswordChanged) }
    }

    /// Adds an account; of two with the same name the earlier keeps it.
    fn register_rebased(
        &mut self,
        stamp: Stamp,
        entered: &ClientCommand,
        name: &str,
        password: &str,
        token: TokenHash,
        outcome: &mut Outcome,
    ) -> Result<Reply, Undone> {
        let request = entered.request;
        let id = AccountId(request);
        if self.directory.knows(id) {
            return Err(ConflictReason::Undecidable);
        }
        let mut own_name = name.to_owned();
        if let Some(other) = self.directory.named(name) {
            let theirs = self.account(other).expect("every name has an account");
            if (theirs.created_unix_ms, other) <= (stamp.unix_ms, id) || removed!("R6-earlier") {
                own_name = self.directory.free_name(name);
                self.note_conflict(
                    stamp,
                    ConflictReason::Renamed,
                    entered,
                    id,
                    Some(other),
                    own_name.clone(),
                );
            } else {
                let free = self.directory.free_name(&theirs.name);
                self.directory.rename(other, &free);
                self.note_conflict(stamp, ConflictReason::Renamed, entered, other, Some(id), free);
            }
        }
        self.add_account(stamp, request, own_name, password);
        if self.sessions.session(request.client).is_none() {
            self.open_session(stamp, request, id, token, outcome);
        }
        Ok(Reply::Registered { account: id })
    }

    /// Queues a message whatever waits already; a sender who is gone is shown as such.
    fn send_late(
        &mut self,
        stamp: Stamp,
        request: RequestId,
        sender: AccountId,
        recipient: AccountId,
        text: &str,
        outcome: &mut Outcome,
    ) -> Result<Reply, Undone> {
        let to = self.directory.handle(recipient).ok_or(ConflictReason::NoSuchRecipient)?;
        let id = MessageId(request);
        if self.mailboxes.order(id).is_none() {
            let reuse = self.emission.is_none();
            let from = self.directory.handle_of_any(sender, reuse);
            let message = Message {
                id,
                from,
                to,
                unix_ms: stamp.unix_ms,
                late: !removed!("R10-late"),
                text: text.into(),
            };
            self.mailboxes.add(&mut self.directory, stamp.order, message, false);
            outcome.queued = Some((recipient, id));
        }
        Ok(Reply::Sent { message: id, unix_ms: stamp.unix_ms })
    }

    fn note_conflict(
        &mut self,
        stamp: Stamp,
        reason: ConflictReason,
        entered: &ClientCommand,
        account: AccountId,
        other: Option<AccountId>,
        text: String,
    ) {
        let (request, command) = (entered.request, entered.command.kind());
        let conflict = Conflict { reason, command, request, unix_ms: stamp.unix_ms, account, other, text };
        if !removed!("R6-told") {
            self.conflicts.add(stamp.order, conflict);
        }
    }
}

/// Whom a command that is not applied concerns besides who gave it, and what it takes to do it by hand.
fn particulars(command: &Command) -> (Option<AccountId>, String) {
    match command {
        Command::Register { name, .. } => (None, name.clone()),
        Command::Send { to, text } => (Some(*to), text.clone()),
        Command::Acknowledge { messages } | Command::Delete { messages } => {
            let ids: Vec<String> = messages.iter().map(ToString::to_string).collect();
            (None, ids.join(" "))
        }
        Command::Login { .. }
        | Command::Logout { .. }
        | Command::DeleteAccount { .. }
        | Command::ChangePassword { .. } => (None, String::new()),
    }
}
