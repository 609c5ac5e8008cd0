//! What each operation does to the state. Everything that depends on the state is validated here, so that all servers
//! decide alike (N3).

use sha2::{Digest, Sha256};

use super::accounts::Handle;
use super::applied::Fate;
use super::command::{ClientCommand, Command, Operation, Outcome, Refusal, Reply, TokenHash};
use super::mailboxes::Message;
use super::{Account, Known, Session, State};
use crate::config::MAILBOX_MESSAGES_MAX;
use crate::row::RowWriter;
use crate::types::{AccountId, ClientId, LogIndex, MessageId, RequestId};

/// An entry's own facts, as the commands need them.
#[derive(Clone, Copy)]
pub(super) struct Stamp {
    /// The entry's index: where a message stands in the order of all messages.
    pub(super) order: u64,
    /// When the primary took the command in.
    pub(super) unix_ms: u64,
}

impl State {
    /// Applies the entry after the last applied one. `chain` is the entry's chain: it goes into the digest.
    ///
    /// # Panics
    /// If the entry is not the next one.
    pub fn apply(&mut self, index: LogIndex, unix_ms: u64, chain: u32, operation: &Operation) -> Outcome {
        assert_eq!(index, self.index.next(), "entries are applied one after the other");
        let mut outcome = Outcome { reply: None, queued: None, ended: Vec::new() };
        let stamp = Stamp { order: index.0, unix_ms };
        self.applied.advance(index);
        match operation {
            Operation::View { absent, .. } => self.applied.note_absent(index, absent),
            Operation::Closed => {}
            Operation::Expire { before_unix_ms } => {
                self.sessions.end_unused_since(&mut self.directory, *before_unix_ms, &mut outcome.ended);
            }
            Operation::Command(command) => {
                outcome.reply = Some(self.apply_command(stamp, command, &mut outcome));
            }
            Operation::Rebased { fork, command } => {
                outcome.reply = self.apply_rebased(stamp, *fork, command, &mut outcome);
            }
        }
        self.index = index;
        self.extend_digest(chain, outcome.reply.as_ref());
        outcome
    }

    /// The digest after an entry: SHA-256 over the digest before it, the entry's chain (big-endian), and the
    /// reply's fields as in `replies.csv`, if there is a reply.
    fn extend_digest(&mut self, chain: u32, reply: Option<&Reply>) {
        let mut hash = Sha256::new();
        hash.update(self.digest);
        hash.update(chain.to_be_bytes());
        if let Some(reply) = reply {
            let mut row = RowWriter::new();
            row.reuse(std::mem::take(&mut self.spent));
            reply.write_fields(&mut row);
            hash.update(row.row());
            self.spent = row.take();
        }
        self.digest = hash.finalize().into();
    }

    /// Carries out a command unless it is known here, and notes its fate (R4).
    fn apply_command(&mut self, stamp: Stamp, entered: &ClientCommand, outcome: &mut Outcome) -> Reply {
        let reply = self.apply_unless_known(stamp, entered, outcome);
        let refused = matches!(reply, Reply::Refused(_)) && !removed!("R4-refused");
        self.applied.insert(if refused { Fate::Refused } else { Fate::CarriedOut }, entered.request);
        reply
    }

    /// Carries out a command unless its session knows it already (N2), and records its reply there.
    fn apply_unless_known(&mut self, stamp: Stamp, entered: &ClientCommand, outcome: &mut Outcome) -> Reply {
        let ClientCommand { request, account, .. } = entered;
        // Of a register only: any other command needs a session, and that knows.
        let is_known = |fate| self.applied.has(fate, *request);
        let again = matches!(entered.command, Command::Register { .. })
            && (is_known(Fate::CarriedOut) || is_known(Fate::Refused));
        let session = self.sessions.row(request.client).filter(|row| row.session.account == *account);
        match session.map(|row| self.sessions.known_in(row, *request)) {
            Some(Known::Applied(reply)) => return reply,
            Some(Known::Forgotten) => return Reply::Refused(Refusal::SessionExpired),
            Some(Known::New) | None => {}
        }
        let actor = session.map(|row| row.handle);
        if again && actor.is_none() {
            // N2: the account that it created may be gone, and its session with it; a retry does not create it again.
            return Reply::Refused(Refusal::SessionExpired);
        }
        let reply = self.carry_out(stamp, entered, actor, outcome).unwrap_or_else(Reply::Refused);
        let active = Some(LogIndex(stamp.order));
        self.sessions.maybe_record(*request, *account, entered.acknowledged, stamp.unix_ms, active, &reply);
        reply
    }

    /// Does what a command asks. `actor`: the account, if the client has a session of it.
    fn carry_out(
        &mut self,
        stamp: Stamp,
        entered: &ClientCommand,
        actor: Option<Handle>,
        outcome: &mut Outcome,
    ) -> Result<Reply, Refusal> {
        let (request, account) = (entered.request, entered.account);
        match &entered.command {
            Command::Register { name, password, token } => {
                return self.register(stamp, request, name, password, *token, outcome);
            }
            Command::Login { checked, token } => {
                return self.log_in(stamp, request, account, *checked, *token, outcome);
            }
            _ => {}
        }
        let actor = actor.ok_or(Refusal::SessionExpired)?;
        match &entered.command {
            Command::Register { .. } | Command::Login { .. } => unreachable!("they are dealt with above"),
            Command::Logout { everywhere } => {
                self.directory.note_active(account, LogIndex(stamp.order));
                if *everywhere {
                    self.end_sessions(account, None, outcome);
                } else {
                    self.sessions.end(&mut self.directory, request.client, &mut outcome.ended);
                }
                Ok(Reply::LoggedOut)
            }
            Command::DeleteAccount { checked } => self.delete_account(account, *checked, outcome),
            Command::ChangePassword { checked, password } => {
                self.check_password(account, *checked)?;
                self.directory.replace_password(account, password, request);
                self.end_sessions(account, Some(request.client), outcome);
                Ok(Reply::PasswordChanged)
            }
            Command::Send { to, text } => self.send(stamp, request, actor, *to, text, outcome),
            Command::Acknowledge { messages } => Ok(self.acknowledge(account, messages)),
            Command::Delete { messages } => self.delete_messages(account, messages),
        }
    }

    fn register(
        &mut self,
        stamp: Stamp,
        request: RequestId,
        name: &str,
        password: &str,
        token: TokenHash,
        outcome: &mut Outcome,
    ) -> Result<Reply, Refusal> {
        if self.directory.named(name).is_some() {
            return Err(Refusal::NameTaken);
        }
        let id = AccountId(request);
        // An id that messages still name must not come back either: the new account would inherit them.
        if self.sessions.session(request.client).is_some() || self.directory.knows(id) {
            return Err(Refusal::ClientIdTaken);
        }
        self.add_account(stamp, request, name.to_owned(), password);
        self.open_session(stamp, request, id, token, outcome);
        Ok(Reply::Registered { account: id })
    }

    /// Adds the account that a registration creates, under a name that is free.
    pub(super) fn add_account(&mut self, stamp: Stamp, request: RequestId, name: String, password: &str) {
        let account = Account {
            name,
            password: password.to_owned(),
            password_set: request,
            created_unix_ms: stamp.unix_ms,
        };
        self.directory.add(AccountId(request), account, self.emission.is_none());
    }

    fn log_in(
        &mut self,
        stamp: Stamp,
        request: RequestId,
        account: AccountId,
        checked: RequestId,
        token: TokenHash,
        outcome: &mut Outcome,
    ) -> Result<Reply, Refusal> {
        self.check_password(account, checked)?;
        // A client id belongs to the account that used it first (X1).
        let other = |session: &Session| session.account != account;
        if self.sessions.session(request.client).is_some_and(other) {
            return Err(Refusal::ClientIdTaken);
        }
        self.open_session(stamp, request, account, token, outcome);
        Ok(Reply::LoggedIn { account, waiting: self.waiting_count(account) })
    }

    /// The password was checked before the entry existed; meanwhile another may have taken its place.
    fn check_password(&self, account: AccountId, checked: RequestId) -> Result<(), Refusal> {
        let found = self.account(account).ok_or(Refusal::NoSuchAccount)?.password_set;
        if found == checked { Ok(()) } else { Err(Refusal::PasswordChanged) }
    }

    fn delete_account(
        &mut self,
        account: AccountId,
        checked: RequestId,
        outcome: &mut Outcome,
    ) -> Result<Reply, Refusal> {
        self.check_password(account, checked)?;
        self.remove_account(account, outcome);
        Ok(Reply::AccountDeleted)
    }

    /// Removes an account that exists, its sessions, and its waiting mail.
    pub(super) fn remove_account(&mut self, account: AccountId, outcome: &mut Outcome) {
        let handle = self.directory.handle(account).expect("only an account that exists is removed");
        self.end_sessions(account, None, outcome);
        self.mailboxes.remove_owner(&mut self.directory, handle);
        self.directory.remove(account);
    }

    /// Gives the client of a request a session of an account.
    pub(super) fn open_session(
        &mut self,
        stamp: Stamp,
        request: RequestId,
        account: AccountId,
        token: TokenHash,
        outcome: &mut Outcome,
    ) {
        let Self { sessions, directory, .. } = self;
        sessions.open(directory, request, account, token, stamp.unix_ms, &mut outcome.ended);
    }

    /// Ends all sessions of an account, or all but one.
    pub(super) fn end_sessions(&mut self, account: AccountId, but: Option<ClientId>, outcome: &mut Outcome) {
        self.sessions.end_all(&mut self.directory, account, but, &mut outcome.ended);
    }

    fn send(
        &mut self,
        stamp: Stamp,
        request: RequestId,
        from: Handle,
        recipient: AccountId,
        text: &str,
        outcome: &mut Outcome,
    ) -> Result<Reply, Refusal> {
        let to = self.directory.handle(recipient).ok_or(Refusal::NoSuchAccount)?;
        if self.directory.waiting(to) >= MAILBOX_MESSAGES_MAX as u64 {
            return Err(Refusal::MailboxFull);
        }
        let id = MessageId(request);
        let message = Message { id, from, to, unix_ms: stamp.unix_ms, late: false, text: text.into() };
        if !self.mailboxes.maybe_add(&mut self.directory, stamp.order, message, false) {
            // Only a client that gave a number of an earlier session to another message gets here: what was sent under
            // this id can't be told from what is sent now, so "sent" would be a lie.
            return Err(Refusal::ClientIdTaken);
        }
        outcome.queued = Some((recipient, id));
        Ok(Reply::Sent { message: id, unix_ms: stamp.unix_ms })
    }

    /// The last entry by which the account itself did something, on this side of a split.
    pub(super) fn last_active(&self, account: AccountId) -> LogIndex {
        let ended = self.directory.accounts.row(account).map(|row| row.active);
        let sessions = self.sessions.clients(account).filter_map(|client| self.session(client));
        sessions.map(|session| session.active).chain(ended).max().unwrap_or_default()
    }

    /// Takes out of the mailbox what waits for this account among `messages` (X4).
    pub(super) fn acknowledge(&mut self, account: AccountId, messages: &[MessageId]) -> Reply {
        let owner = self.directory.handle(account);
        let mut count = 0;
        for id in messages {
            let Some(order) = self.mailboxes.order(*id) else { continue };
            let waits = self.mailboxes.queued.row(order).is_some_and(|message| Some(message.to) == owner);
            if waits && !removed!("X4-dequeue") {
                self.mailboxes.deliver(&mut self.directory, order);
                count += 1;
            }
        }
        Reply::Acknowledged { count }
    }

    pub(super) fn delete_messages(
        &mut self,
        account: AccountId,
        messages: &[MessageId],
    ) -> Result<Reply, Refusal> {
        let owner = self.directory.known_handle(account);
        let mut count = 0;
        for id in messages {
            let Some(order) = self.mailboxes.order(*id) else { continue };
            let (message, _) = self.mailboxes.message(order).expect("every id has a message");
            if Some(message.from) == owner || Some(message.to) == owner {
                self.mailboxes.remove(&mut self.directory, order);
                count += 1;
            }
        }
        if count == 0 { Err(Refusal::NoSuchMessage) } else { Ok(Reply::Deleted { count }) }
    }
}
