//! What the clients know to be true, together: who was told what, and when. A timeout means maybe.
//!
//! The world's clock orders everything, so reads are checked as strictly as N8 promises: what was acknowledged, or
//! seen by anybody, before a read was asked for, that read shows.

use std::collections::BTreeMap;

use lastword::chat::State;
use lastword::chat::command::{MessagePage, MessageView, Reply};
use lastword::message::{ErrorCode, Response};
use lastword::prng::Prng;
use lastword::time::Instant;
use lastword::types::{AccountId, MessageId, RequestId};

use crate::client::{Ended, Job, Op};

/// When something was asked for, and when it is known to have happened.
#[derive(Clone, Copy, Debug, Default)]
struct Event {
    asked: Option<Instant>,
    known: Option<Instant>,
}

impl Event {
    fn ask(&mut self, now: Instant) {
        self.asked.get_or_insert(now);
    }

    fn know(&mut self, now: Instant) {
        self.known.get_or_insert(now);
    }

    /// It certainly had happened before this moment.
    fn certain_before(&self, moment: Instant) -> bool {
        self.known.is_some_and(|known| known < moment)
    }

    /// It may have happened by this moment.
    fn possible_by(&self, moment: Instant) -> bool {
        self.asked.is_some_and(|asked| asked <= moment)
    }
}

#[derive(Clone, Debug)]
struct Account {
    name: String,
    id: Option<AccountId>,
    exists: Event,
}

#[derive(Clone, Debug)]
struct Message {
    from: usize,
    to: usize,
    text: String,
    exists: Event,
    taken: Event,
    deleted: Event,
    /// The server has said no, and it was asked once only.
    refused: bool,
}

/// The memory of all clients.
#[derive(Clone, Debug, Default)]
pub(crate) struct Oracle {
    accounts: Vec<Account>,
    messages: BTreeMap<RequestId, Message>,
    /// Clients may be answered by servers that do not know of each other: then reads are not as strict as N8 promises.
    pub split: bool,
    /// How many commands were acknowledged.
    pub acknowledged: u64,
    /// How many commands ended with an unknown outcome.
    pub unknown: u64,
    /// How many reads were checked.
    pub reads: u64,
    /// When the last command was acknowledged.
    pub last_acknowledged: Instant,
    /// The longest time between two acknowledgements.
    pub longest_gap: std::time::Duration,
}

impl Oracle {
    /// One more account that somebody is going to create.
    pub(crate) fn add_account(&mut self, name: &str) {
        self.accounts.push(Account { name: name.into(), id: None, exists: Event::default() });
    }

    /// A message of this client's conversations that could be deleted.
    pub(crate) fn deletable(&self, client: usize, prng: &mut Prng) -> Option<MessageId> {
        let mine: Vec<_> = self
            .messages
            .iter()
            .filter(|(_, m)| m.from == client || m.to == client)
            .filter(|(_, m)| m.exists.known.is_some() && m.deleted.asked.is_none())
            .map(|(id, _)| *id)
            .collect();
        if mine.is_empty() {
            return None;
        }
        let place = usize::try_from(prng.below(mine.len() as u64)).expect("small");
        Some(MessageId(mine[place]))
    }

    /// A client asks for something for the first time.
    pub(crate) fn on_invoked(&mut self, now: Instant, client: usize, request: RequestId, op: &Op) {
        match op {
            Op::Register => self.accounts[client].exists.ask(now),
            Op::Send { to, text } => {
                let exists = Event { asked: Some(now), known: None };
                let message = Message {
                    from: client,
                    to: *to,
                    text: text.clone(),
                    exists,
                    taken: Event::default(),
                    deleted: Event::default(),
                    refused: false,
                };
                self.messages.insert(request, message);
            }
            Op::Acknowledge(messages) => self.each(messages, |message| message.taken.ask(now)),
            Op::Delete(messages) => self.each(messages, |message| message.deleted.ask(now)),
            _ => {}
        }
    }

    fn each(&mut self, ids: &[MessageId], mut change: impl FnMut(&mut Message)) {
        for id in ids {
            change(self.messages.get_mut(&id.0).expect("clients name only messages that somebody sent"));
        }
    }

    /// What a client asked for has ended.
    pub(crate) fn on_ended(
        &mut self,
        now: Instant,
        client: usize,
        request: RequestId,
        job: &Job,
        ended: &Ended,
    ) {
        match ended {
            Ended::Answered(response) => {
                self.longest_gap = self.longest_gap.max(now.since(self.last_acknowledged));
                self.last_acknowledged = now;
                self.on_answered(now, client, request, job, response);
            }
            Ended::Refused(code) => self.on_refused(client, request, job, *code),
            Ended::Unknown => self.unknown += 1,
        }
    }

    fn on_answered(
        &mut self,
        now: Instant,
        client: usize,
        request: RequestId,
        job: &Job,
        response: &Response,
    ) {
        match (&job.op, response) {
            (Op::Read, Response::Messages(page)) => self.check_read(now, job.since, client, None, page),
            (Op::History { with }, Response::Messages(page)) => {
                self.check_read(now, job.since, client, Some(*with), page);
            }
            (Op::List, Response::Accounts(page)) => {
                self.reads += 1;
                for account in &self.accounts {
                    let listed = page.names.contains(&account.name);
                    assert!(
                        listed || self.split || page.next.is_some() || !account.exists.certain_before(job.since),
                        "stale read: client {client}'s list lacks {}, created before it asked",
                        account.name
                    );
                }
            }
            (op, Response::Done { reply, copies, configured, .. }) => {
                assert!(copies <= configured && *copies > 0, "copies {copies}/{configured}");
                self.acknowledged += 1;
                self.on_reply(now, client, request, op, reply);
            }
            (op, other) => panic!("client {client} asked for {op:?} and was answered {other:?}"),
        }
    }

    fn on_reply(&mut self, now: Instant, client: usize, request: RequestId, op: &Op, reply: &Reply) {
        match (op, reply) {
            (Op::Register, Reply::Registered { account }) => {
                self.accounts[client].id = Some(*account);
                self.accounts[client].exists.know(now);
            }
            (Op::Login, Reply::LoggedIn { account, .. }) => {
                assert_eq!(self.accounts[client].id, Some(*account), "client {client} is somebody else now");
            }
            (Op::Logout, Reply::LoggedOut) => {}
            (Op::Send { .. }, Reply::Sent { message, .. }) => {
                assert_eq!(message.0, request, "client {client}'s message is not named after its request");
                self.messages.get_mut(&request).expect("it was asked for").exists.know(now);
            }
            (Op::Acknowledge(ids), Reply::Acknowledged { .. }) => self.each(ids, |m| m.taken.know(now)),
            (Op::Delete(ids), Reply::Deleted { .. }) => self.each(ids, |m| m.deleted.know(now)),
            (op, other) => panic!("client {client} asked for {op:?} and was answered {other:?}"),
        }
    }

    fn on_refused(&mut self, client: usize, request: RequestId, job: &Job, code: ErrorCode) {
        match (&job.op, code) {
            (Op::Send { to, .. }, ErrorCode::NoSuchAccount) => {
                let recipient = &self.accounts[*to];
                assert!(
                    self.split || !recipient.exists.certain_before(job.since),
                    "stale answer: {} was created before client {client} sent to it",
                    recipient.name
                );
                self.messages.get_mut(&request).expect("it was asked for").refused = job.sent == 1;
            }
            (Op::History { with }, ErrorCode::NoSuchAccount) => {
                let other = &self.accounts[*with];
                assert!(
                    self.split || !other.exists.certain_before(job.since),
                    "stale answer: {} was created before client {client} asked for their history",
                    other.name
                );
            }
            (Op::Delete(ids), ErrorCode::NoSuchMessage) => {
                // Only the other side can have deleted it before.
                for id in ids {
                    let message = &self.messages[&id.0];
                    assert!(
                        self.split || !message.exists.certain_before(job.since) || message.deleted.asked.is_some(),
                        "client {client} can't delete {id}, which exists"
                    );
                }
            }
            (Op::Logout, _) => {}
            (op, code) => panic!("client {client}: {op:?} was refused: {code:?}"),
        }
    }

    /// A page of messages against what was certain when it was asked for (N8).
    fn check_read(
        &mut self,
        now: Instant,
        since: Instant,
        reader: usize,
        with: Option<usize>,
        page: &MessagePage,
    ) {
        self.reads += 1;
        let mut cursor = 0;
        for view in &page.messages {
            assert!(view.cursor > cursor, "client {reader} reads messages out of order");
            cursor = view.cursor;
            self.check_view(now, since, reader, with, view);
        }
        if page.more || self.split {
            return;
        }
        for (id, message) in &self.messages {
            let concerned = match with {
                None => message.to == reader && !message.taken.possible_by(now),
                Some(other) => {
                    (message.from, message.to) == (reader, other)
                        || (message.from, message.to) == (other, reader)
                }
            };
            let due = concerned && message.exists.certain_before(since) && !message.deleted.possible_by(now);
            assert!(
                !due || page.messages.iter().any(|view| view.id.0 == *id),
                "stale read: client {reader} does not see {id}, which was certain before it asked"
            );
        }
        for view in &page.messages {
            self.messages.get_mut(&view.id.0).expect("checked above").exists.know(now);
        }
    }

    fn check_view(
        &self,
        now: Instant,
        since: Instant,
        reader: usize,
        with: Option<usize>,
        view: &MessageView,
    ) {
        let id = view.id;
        let message =
            self.messages.get(&id.0).unwrap_or_else(|| panic!("client {reader} reads {id}, never sent"));
        let from = &self.accounts[message.from].name;
        let to = &self.accounts[message.to].name;
        assert!(
            (&view.text, &view.from, &view.to) == (&message.text, from, to),
            "client {reader} reads {view:?}, sent as {message:?}"
        );
        assert!(message.exists.possible_by(now), "client {reader} reads {id} before it was sent");
        assert!(
            self.split || !message.deleted.certain_before(since),
            "client {reader} reads {id}, deleted before it asked"
        );
        if with.is_none() {
            assert!(message.to == reader, "client {reader} reads {id}, which waits for {to}");
            assert!(
                self.split || !message.taken.certain_before(since),
                "client {reader} reads {id}, taken before it asked"
            );
        }
    }

    /// The final state holds what was acknowledged, once, and nothing that was refused.
    pub(crate) fn check_final(&self, state: &State) {
        for account in &self.accounts {
            let found = state.account_named(&account.name);
            assert!(
                account.exists.known.is_none() || found == account.id,
                "lost: account {} was acknowledged as {:?}, and is {found:?}",
                account.name,
                account.id
            );
        }
        for (id, message) in &self.messages {
            let found = state.message(MessageId(*id));
            if message.exists.known.is_some() && message.deleted.asked.is_none() {
                assert!(found.is_some(), "lost: message {id} was acknowledged: {message:?}");
            }
            if message.deleted.known.is_some() {
                assert!(found.is_none(), "message {id} was deleted, and is there: {message:?}");
            }
            if let Some(found) = found {
                assert!(!message.refused, "message {id} was refused, and is there");
                assert_eq!(found.text, message.text, "message {id} has another text");
            }
        }
        self.check_once(state);
    }

    /// No text stands in the state twice: each was sent by one command.
    fn check_once(&self, state: &State) {
        let mut counts: BTreeMap<String, u32> = BTreeMap::new();
        for (at, account) in self.accounts.iter().enumerate() {
            let Some(id) = state.account_named(&account.name) else { continue };
            for other in &self.accounts[at..] {
                let mut before = 0;
                while let Some(page) = state.history(id, &other.name, before, lastword::config::PAGE_MAX) {
                    for view in &page.messages {
                        *counts.entry(view.text.clone()).or_default() += 1;
                    }
                    let Some(first) = page.messages.first().filter(|_| page.more) else { break };
                    before = first.cursor;
                }
            }
        }
        for (text, count) in counts {
            assert_eq!(count, 1, "doubled: a message stands in the state {count} times: {text:?}");
        }
    }
}
