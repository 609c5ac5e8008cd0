//! What the clients know to be true, together: who was told what, and when. A timeout means maybe.
//!
//! Every answer becomes a call in the history of each object that it says something about: the name of an account, its
//! mailbox, what two accounts have exchanged. What is demanded of these histories, and of the state in which all replicas
//! end (which the runner compares byte for byte):
//!
//! | | without a split | after one (`split`) |
//! |---|---|---|
//! | order | each object's history is linearizable, reads included, and so is the final state as one last read of everything | not demanded |
//! | an account that was acknowledged | is there, unless its deletion was asked for | is there, perhaps as `name~2`, or in `conflicts.csv` |
//! | a message that was acknowledged | is there, unless it was asked to be deleted, or an account at one of its ends | the same, or it is in `conflicts.csv`; in both only if who asked in vain is another account than its sender |
//! | its text, its ends, its id, its mailbox | as sent; once | the same |
//! | a message that was refused | is not there | may be there: what was missing on one side may be on the other |
//! | messages that were deleted, all that were named | are gone | the same, unless the deletion is in `conflicts.csv` |
//! | messages that were taken, all that were named | wait no more | the same |
//! | the password | is the one that was acknowledged last | each one that was acknowledged holds, was replaced, or is in `conflicts.csv`; one that was refused may hold |
//! | conflicts | none of what was acknowledged | each command in one at most |
//!
//! There is a split from the moment on in which two servers have committed different entries at one index, and never
//! unless the nemesis has allowed it: a partition that may split the brain but does not is judged like any other world.
//! A registration of unknown outcome that is proposed again after a crash counts as one: it may take its name from a
//! later account, which is `name~2` then (R3, R6).

use std::collections::{BTreeMap, BTreeSet};

use lastword::chat::State;
use lastword::chat::command::{ConflictReason, DELETED_NAME, MessagePage, MessageView, Reply};
use lastword::config::PAGE_MAX;
use lastword::message::{ErrorCode, Response};
use lastword::prng::Prng;
use lastword::time::Instant;
use lastword::types::{AccountId, MessageId, RequestId};

use crate::check::account::{AccountCall, Password};
use crate::check::linear::{Call, Model, PENDING, Verdict, check};
use crate::check::searches;
use crate::check::shelf::{End, Shelf, ShelfCall};
use crate::client::{Ended, Job, Op};

/// A search for an order is given up after so many steps.
const STEPS_MAX: usize = 20_000;

#[derive(Clone, Debug, Default)]
struct Account {
    name: String,
    /// Every account that was acknowledged under this name.
    ids: Vec<AccountId>,
    /// When the last registration was acknowledged: what was changed before may have been another account's.
    registered: u64,
    /// Every password that anyone wanted it to have; and the one that was acknowledged last.
    passwords: Vec<Password>,
    password: Option<Password>,
    /// How often its deletion was asked for.
    deletions: u32,
    /// Requests under way that may end sessions, and until when the others may have done so.
    endings: u32,
    endings_until: u64,
    logins: u32,
    /// The changes of its password that may have happened: which request, when it was asked for, when acknowledged.
    changes: Vec<(Option<RequestId>, u64, u64)>,
}

#[derive(Clone, Debug)]
struct Message {
    from: usize,
    to: usize,
    text: String,
    id: Option<MessageId>,
    cursor: Option<u64>,
    known: bool,
    refused: bool,
    take_asked: bool,
    delete_asked: bool,
    /// It was there, and was deleted by this request.
    deleted: Option<Option<RequestId>>,
    /// It waited, and was taken.
    taken: bool,
}

/// Something that was asked for and not answered yet.
#[derive(Clone, Debug)]
struct Open {
    owner: usize,
    request: Option<RequestId>,
    op: Op,
    password: Password,
}

/// A shelf: an account's mailbox, or what two accounts have exchanged, the lower one first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Mailbox(usize),
    Conversation(usize, usize),
}

fn conversation(a: usize, b: usize) -> Place {
    Place::Conversation(a.min(b), a.max(b))
}

/// The memory of all clients.
#[derive(Clone, Debug, Default)]
pub(crate) struct Oracle {
    accounts: Vec<Account>,
    messages: Vec<Message>,
    by_id: BTreeMap<RequestId, u32>,
    by_text: BTreeMap<String, u32>,
    /// Each invocation and each return has a moment of its own.
    moment: u64,
    passwords: u32,
    open: BTreeMap<u64, Open>,
    names: BTreeMap<usize, Vec<Call<AccountCall>>>,
    shelves: BTreeMap<Place, Vec<Call<ShelfCall>>>,
    /// Logs have parted: see above what is demanded then.
    pub split: bool,
    /// The requests that `conflicts.csv` lists at the end as not carried out: where, and the name of who asked.
    conflicts: BTreeMap<RequestId, (u64, String)>,
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
    /// One more account that somebody may create.
    pub(crate) fn add_account(&mut self, name: &str) {
        self.accounts.push(Account { name: name.into(), ..Account::default() });
    }

    /// A password that nobody has used.
    pub(crate) fn new_password(&mut self, owner: usize) -> Password {
        self.passwords += 1;
        let password = Password(self.passwords);
        self.accounts[owner].passwords.push(password);
        password
    }

    /// The password that was acknowledged last; with guesses, another one that the account may have.
    pub(crate) fn likely_password(&self, owner: usize, guesses: usize) -> Password {
        let Account { passwords, password, .. } = &self.accounts[owner];
        match password {
            Some(password) if guesses == 0 => *password,
            _ if passwords.is_empty() => Password(0),
            _ => passwords[guesses.saturating_sub(1) % passwords.len()],
        }
    }

    /// How many passwords the account may have.
    pub(crate) fn passwords(&self, owner: usize) -> usize {
        self.accounts[owner].passwords.len()
    }

    /// Messages between two accounts that could be deleted.
    pub(crate) fn deletable(&self, owner: usize, other: usize, prng: &mut Prng) -> Option<Vec<MessageId>> {
        let place = conversation(owner, other);
        let messages = self.messages.iter().filter(|m| conversation(m.from, m.to) == place);
        let ids: Vec<_> = messages.filter(|m| m.known && !m.delete_asked).filter_map(|m| m.id).collect();
        if ids.is_empty() {
            return None;
        }
        let first = usize::try_from(prng.below(ids.len() as u64)).expect("small");
        let count = 1 + usize::try_from(prng.below(3)).expect("small");
        Some(ids.into_iter().skip(first).take(count).collect())
    }

    /// Whether a session that began at this moment may have been ended by a device of its account.
    pub(crate) fn may_end_sessions(&self, owner: usize, since: u64) -> bool {
        let Account { endings, endings_until, logins, .. } = &self.accounts[owner];
        *endings > 0
            || *endings_until > since
            || *logins as usize > lastword::config::SESSIONS_PER_ACCOUNT_MAX
    }

    fn next_moment(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }

    /// A client asks for something for the first time; gives the moment, by which it is named from now on.
    pub(crate) fn on_invoked(
        &mut self,
        owner: usize,
        request: Option<RequestId>,
        op: &Op,
        password: Password,
    ) -> u64 {
        let moment = self.next_moment();
        let account = &mut self.accounts[owner];
        account.endings += u32::from(op.ends_sessions());
        match op {
            Op::Login => account.logins += 1,
            Op::DeleteAccount(_) => account.deletions += 1,
            Op::Send { to, text } => {
                let number = u32::try_from(self.messages.len()).expect("few messages");
                let id = request.map(MessageId);
                self.messages.push(Message {
                    from: owner,
                    to: *to,
                    text: text.clone(),
                    id,
                    cursor: None,
                    known: false,
                    refused: false,
                    take_asked: false,
                    delete_asked: false,
                    deleted: None,
                    taken: false,
                });
                self.by_text.insert(text.clone(), number);
                if let Some(request) = request {
                    self.by_id.insert(request, number);
                }
            }
            Op::Acknowledge(ids) => self.each(ids, |message| message.take_asked = true),
            Op::Delete(ids) => self.each(ids, |message| message.delete_asked = true),
            _ => {}
        }
        self.open.insert(moment, Open { owner, request, op: op.clone(), password });
        moment
    }

    /// A client asks to resume its session.
    pub(crate) fn on_resuming(&mut self) -> u64 {
        self.next_moment()
    }

    /// A session was resumed.
    pub(crate) fn on_resumed(&mut self, owner: usize, invoked: u64, account: AccountId, waiting: u64) {
        let returned = self.next_moment();
        self.on_name(owner, invoked, returned, AccountCall::Present(Some(account)));
        self.on_shelf(Place::Mailbox(owner), invoked, returned, ShelfCall::Count(waiting));
    }

    fn each(&mut self, ids: &[MessageId], mut change: impl FnMut(&mut Message)) {
        for id in ids {
            let number = self.by_id[&id.0] as usize;
            change(&mut self.messages[number]);
        }
    }

    fn numbers(&self, ids: &[MessageId]) -> Vec<u32> {
        ids.iter().map(|id| self.by_id[&id.0]).collect()
    }

    fn on_name(&mut self, owner: usize, invoked: u64, returned: u64, model: AccountCall) {
        self.names.entry(owner).or_default().push(Call { model, invoked, returned });
    }

    fn on_shelf(&mut self, place: Place, invoked: u64, returned: u64, model: ShelfCall) {
        self.shelves.entry(place).or_default().push(Call { model, invoked, returned });
    }

    /// What a client asked for has ended; gives the moment at which it was asked for.
    pub(crate) fn on_ended(&mut self, now: Instant, owner: usize, job: &Job, ended: &Ended) -> u64 {
        let (invoked, returned) = (job.serial, self.next_moment());
        let open = self.open.remove(&invoked).expect("what ends was asked for");
        if open.op.ends_sessions() {
            let account = &mut self.accounts[owner];
            account.endings -= 1;
            // One of unknown outcome may end sessions as long as the world lasts.
            let until = if *ended == Ended::Unknown || job.sent > 1 { PENDING } else { returned };
            account.endings_until = account.endings_until.max(until);
        }
        match ended {
            Ended::Answered(response) => {
                self.longest_gap = self.longest_gap.max(now.since(self.last_acknowledged));
                self.last_acknowledged = now;
                self.on_answered(invoked, returned, &open, response);
            }
            Ended::Refused(code) => self.on_refused(invoked, returned, &open, job.sent, *code),
            Ended::Unknown => {
                self.unknown += 1;
                self.on_unknown(invoked, &open);
            }
        }
        invoked
    }

    /// Nobody knows whether it has happened, or will.
    fn on_unknown(&mut self, invoked: u64, open: &Open) {
        let Open { owner, request, op, password } = open;
        match op {
            Op::Register => {
                let id = request.map(AccountId);
                self.on_name(*owner, invoked, PENDING, AccountCall::Register { id, password: *password });
            }
            Op::ChangePassword { old, new } => {
                self.accounts[*owner].changes.push((*request, invoked, PENDING));
                self.on_name(*owner, invoked, PENDING, AccountCall::Change { old: *old, new: *new });
            }
            Op::DeleteAccount(password) => self.on_deletion(*owner, invoked, PENDING, *password),
            Op::Send { to, text } => {
                let message = self.by_text[text];
                self.on_put(*owner, *to, invoked, PENDING, message);
            }
            Op::Acknowledge(ids) => {
                let take = ShelfCall::Take { messages: self.numbers(ids), count: None };
                self.on_shelf(Place::Mailbox(*owner), invoked, PENDING, take);
            }
            Op::Delete(ids) => self.on_deleted(*owner, invoked, PENDING, ids, None),
            _ => {}
        }
    }

    fn on_put(&mut self, from: usize, to: usize, invoked: u64, returned: u64, message: u32) {
        let put = ShelfCall::Put { message, cursor: 0 };
        self.on_shelf(Place::Mailbox(to), invoked, returned, put.clone());
        self.on_shelf(conversation(from, to), invoked, returned, put);
    }

    fn on_deletion(&mut self, owner: usize, invoked: u64, returned: u64, password: Password) {
        self.on_name(owner, invoked, returned, AccountCall::Delete(password));
        self.on_shelf(Place::Mailbox(owner), invoked, returned, ShelfCall::Clear);
        for other in 0..self.accounts.len() {
            self.on_shelf(conversation(owner, other), invoked, returned, ShelfCall::Clear);
        }
    }

    /// Messages between two accounts were deleted, by whoever has the name of one of them.
    fn on_deleted(
        &mut self,
        owner: usize,
        invoked: u64,
        returned: u64,
        ids: &[MessageId],
        count: Option<u64>,
    ) {
        let numbers = self.numbers(ids);
        let places: BTreeSet<_> = numbers
            .iter()
            .map(|number| &self.messages[*number as usize])
            .map(|message| conversation(message.from, message.to))
            .collect();
        let count = count.filter(|_| places.len() == 1);
        for place in places {
            self.on_shelf(place, invoked, returned, ShelfCall::Take { messages: numbers.clone(), count });
        }
        // A message of an earlier account of this name is not this one's to delete.
        let mine = self.accounts[owner].deletions == 0;
        for number in numbers {
            let to = self.messages[number as usize].to;
            let take = ShelfCall::Take { messages: vec![number], count: None };
            self.on_shelf(Place::Mailbox(to), invoked, if mine { returned } else { PENDING }, take);
        }
    }

    fn on_answered(&mut self, invoked: u64, returned: u64, open: &Open, response: &Response) {
        let owner = open.owner;
        match (&open.op, response) {
            (Op::Read | Op::ReadSome(_), Response::Messages(page)) => {
                let see = self.page(owner, None, page, End::Oldest);
                self.on_shelf(Place::Mailbox(owner), invoked, returned, see);
            }
            (Op::History { with }, Response::Messages(page)) => {
                let see = self.page(owner, Some(*with), page, End::Latest);
                self.on_shelf(conversation(owner, *with), invoked, returned, see);
            }
            (Op::List, Response::Accounts(page)) => {
                self.on_list("*", page.next.is_some(), &page.names, invoked, returned);
            }
            (Op::Find(pattern), Response::Accounts(page)) => {
                self.on_list(pattern, page.next.is_some(), &page.names, invoked, returned);
            }
            (Op::Subscribe, Response::Subscribed) => {}
            (op, Response::Done { reply, copies, configured, .. }) => {
                assert!(copies <= configured && *copies > 0, "copies {copies}/{configured}");
                self.acknowledged += 1;
                self.on_reply(invoked, returned, open, op, reply);
            }
            (op, other) => {
                panic!("{} asked for {op:?} and was answered {other:?}", self.accounts[owner].name)
            }
        }
    }

    fn on_list(&mut self, pattern: &str, more: bool, names: &[String], invoked: u64, returned: u64) {
        self.reads += 1;
        for at in 0..self.accounts.len() {
            let name = &self.accounts[at].name;
            let listed = names.iter().filter(|listed| *listed == name).count();
            assert!(listed <= 1, "{name} is listed {listed} times");
            let fits = fits(pattern.to_ascii_lowercase().as_bytes(), name.as_bytes());
            assert!(fits || listed == 0, "{name} is listed, and does not fit {pattern}");
            if listed == 1 {
                self.on_name(at, invoked, returned, AccountCall::Present(None));
            } else if fits && !more {
                self.on_name(at, invoked, returned, AccountCall::Absent);
            }
        }
    }

    fn on_reply(&mut self, invoked: u64, returned: u64, open: &Open, op: &Op, reply: &Reply) {
        let Open { owner, request, password, .. } = open;
        let (owner, password) = (*owner, *password);
        match (op, reply) {
            (Op::Register, Reply::Registered { account }) => {
                assert!(
                    request.is_none_or(|request| account.0 == request),
                    "{account} is not named after {request:?}"
                );
                self.accounts[owner].ids.push(*account);
                self.accounts[owner].registered = returned;
                self.accounts[owner].password = Some(password);
                let register = AccountCall::Register { id: Some(*account), password };
                self.on_name(owner, invoked, returned, register);
            }
            (Op::Login, Reply::LoggedIn { account, waiting }) => {
                self.on_name(owner, invoked, returned, AccountCall::Login { id: *account, password });
                self.on_shelf(Place::Mailbox(owner), invoked, returned, ShelfCall::Count(*waiting));
            }
            (Op::Logout | Op::LogoutEverywhere, Reply::LoggedOut) => {}
            (Op::ChangePassword { old, new }, Reply::PasswordChanged) => {
                self.accounts[owner].password = Some(*new);
                self.accounts[owner].changes.push((*request, invoked, returned));
                self.on_name(owner, invoked, returned, AccountCall::Change { old: *old, new: *new });
            }
            (Op::DeleteAccount(password), Reply::AccountDeleted) => {
                self.on_deletion(owner, invoked, returned, *password);
            }
            (Op::Send { to, text }, Reply::Sent { message: id, .. }) => {
                let number = self.by_text[text];
                assert!(
                    request.is_none_or(|request| id.0 == request),
                    "{id} is not named after its request {request:?}"
                );
                self.by_id.insert(id.0, number);
                let message = &mut self.messages[number as usize];
                (message.id, message.known) = (Some(*id), true);
                self.on_name(*to, invoked, returned, AccountCall::Present(None));
                self.on_put(owner, *to, invoked, returned, number);
            }
            (Op::Acknowledge(ids), Reply::Acknowledged { count }) => {
                if *count == ids.len() as u64 {
                    self.each(ids, |message| message.taken = true);
                }
                let take = ShelfCall::Take { messages: self.numbers(ids), count: Some(*count) };
                self.on_shelf(Place::Mailbox(owner), invoked, returned, take);
            }
            (Op::Delete(ids), Reply::Deleted { count }) => {
                if *count == ids.len() as u64 {
                    self.each(ids, |message| message.deleted = Some(*request));
                }
                self.on_deleted(owner, invoked, returned, ids, Some(*count));
            }
            (op, other) => {
                panic!("{} asked for {op:?} and was answered {other:?}", self.accounts[owner].name)
            }
        }
    }

    fn on_refused(&mut self, invoked: u64, returned: u64, open: &Open, sent: u32, code: ErrorCode) {
        let Open { owner, request, op, password } = open;
        if sent > 1 {
            // An earlier attempt may have been carried out, or may still be.
            self.on_unknown(invoked, open);
        } else if let Op::Send { text, .. } = op {
            let number = self.by_text[text];
            self.messages[number as usize].refused = true;
        } else if let Op::ChangePassword { .. } = op {
            // What one side refused because the session had ended is carried out when it is proposed again (R4).
            self.accounts[*owner].changes.push((*request, invoked, PENDING));
        }
        let call = match (op, code) {
            (_, ErrorCode::SessionExpired | ErrorCode::NotLoggedIn) => return,
            (_, ErrorCode::ReplyForgotten) if sent > 1 => return,
            // R3: not committed by a primary that was replaced, and proposed again by the next.
            (_, ErrorCode::Conflict) => return,
            _ if self.split => return,
            (Op::Delete(ids), ErrorCode::NoSuchMessage) => {
                let numbers = self.numbers(ids);
                let message = &self.messages[numbers[0] as usize];
                let place = conversation(message.from, message.to);
                let take = ShelfCall::Take { messages: numbers, count: Some(0) };
                return self.on_shelf(place, invoked, returned, take);
            }
            (Op::Send { to, .. } | Op::History { with: to }, ErrorCode::NoSuchAccount) => {
                return self.on_name(*to, invoked, returned, AccountCall::Absent);
            }
            (Op::Register, ErrorCode::NameTaken) => AccountCall::Present(None),
            (Op::Login, ErrorCode::NoSuchAccount) => AccountCall::Absent,
            (Op::Login, ErrorCode::WrongPassword) => AccountCall::Wrong(*password),
            (
                Op::ChangePassword { old: password, .. } | Op::DeleteAccount(password),
                ErrorCode::WrongPassword,
            ) => AccountCall::Wrong(*password),
            (op, code) => panic!("{}: {op:?} was refused: {code:?}", self.accounts[*owner].name),
        };
        self.on_name(*owner, invoked, returned, call);
    }

    /// A page of messages as a call; what it says of each message is compared with what was sent.
    fn page(&mut self, reader: usize, with: Option<usize>, page: &MessagePage, end: End) -> ShelfCall {
        self.reads += 1;
        assert!(
            page.messages.is_sorted_by(|one, next| one.cursor < next.cursor),
            "{} reads messages out of order: {page:?}",
            self.accounts[reader].name
        );
        let messages: Vec<u32> = page.messages.iter().map(|view| self.view(view)).collect();
        for number in &messages {
            let Message { from, to, id, .. } = &self.messages[*number as usize];
            let name = &self.accounts[reader].name;
            match with {
                None => assert_eq!(*to, reader, "{name} reads {id:?}, which waits for somebody else"),
                Some(with) => assert_eq!(
                    conversation(*from, *to),
                    conversation(reader, with),
                    "{name} reads {id:?} of others"
                ),
            }
        }
        ShelfCall::See { messages, end, more: page.more }
    }

    /// The message that is shown, which was sent like this.
    fn view(&mut self, view: &MessageView) -> u32 {
        let number = self.by_id.get(&view.id.0).or_else(|| self.by_text.get(&view.text));
        let number = *number.unwrap_or_else(|| panic!("{view:?} is read, and was never sent"));
        let message = &mut self.messages[number as usize];
        let id = *message.id.get_or_insert(view.id);
        assert_eq!(id, view.id, "doubled: {:?} is there under two ids", view.text);
        assert_eq!(view.text, message.text, "message {id} has another text");
        let cursor = *message.cursor.get_or_insert(view.cursor);
        assert!(
            cursor == view.cursor || self.split,
            "message {id} was at {cursor}, and is at {}",
            view.cursor
        );
        assert!(!view.delivered || message.take_asked, "message {id} was taken, and nobody asked for that");
        for (shown, account) in [(&view.from, message.from), (&view.to, message.to)] {
            let Account { name, deletions, .. } = &self.accounts[account];
            assert!(
                shown == name
                    || *deletions > 0 && shown == DELETED_NAME
                    || self.split
                        && shown.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('~')),
                "message {id} is shown as {shown}'s, and is {name}'s"
            );
        }
        self.by_id.insert(view.id.0, number);
        number
    }

    /// A server pushes a message to a connection of this account (X4).
    pub(crate) fn on_pushed(&mut self, owner: usize, view: &MessageView) {
        let number = self.view(view);
        let message = &self.messages[number as usize];
        assert_eq!(message.to, owner, "{:?} is pushed to somebody else", message.id);
        assert!(self.split || !message.refused, "{:?} was refused, and is pushed", message.id);
    }

    /// The final state holds what it must, as the table above says; and without a split everything that any client was
    /// ever told fits into one order.
    pub(crate) fn check_final(&mut self, state: &State) {
        check_invariants(state);
        let mut last = self.clone();
        let moment = last.next_moment();
        for (invoked, open) in std::mem::take(&mut last.open) {
            last.on_unknown(invoked, &open);
        }
        last.see_all(state, moment);
        last.see_conflicts(state);
        last.check_kept(state);
        if !self.split {
            let begun = std::time::Instant::now();
            last.check_order();
            searches::count_time(begun.elapsed());
        }
    }

    /// What is listed in `conflicts.csv` as not carried out, as those read it whom it concerns.
    fn see_conflicts(&mut self, state: &State) {
        let renamed = ConflictReason::Renamed.keyword();
        for id in self.accounts.iter().flat_map(|account| &account.ids) {
            let (mut after, mut more) = (0, true);
            while more {
                let page = state.conflicts(*id, after, PAGE_MAX);
                for conflict in page.conflicts.iter().filter(|conflict| conflict.reason != renamed) {
                    let listed = (conflict.cursor, conflict.account.clone());
                    let known = self.conflicts.entry(conflict.request).or_insert(listed);
                    assert_eq!(known.0, conflict.cursor, "doubled: there are two conflicts of {conflict:?}");
                }
                after = page.conflicts.last().map_or(0, |conflict| conflict.cursor);
                more = page.more;
            }
        }
    }

    /// Nothing acknowledged is lost, nothing is there that can't be.
    fn check_kept(&self, state: &State) {
        for account in &self.accounts {
            for id in &account.ids {
                let kept =
                    state.account(*id).is_some() || account.deletions > 0 || self.is_conflict(Some(id.0));
                assert!(kept, "lost: account {} was acknowledged as {id}", account.name);
            }
            self.check_password(state, account);
        }
        for message in &self.messages {
            self.check_message(state, message);
        }
    }

    /// Whether a request is excused by being listed; without a split none is.
    fn is_conflict(&self, request: Option<RequestId>) -> bool {
        self.split && request.is_some_and(|request| self.conflicts.contains_key(&request))
    }

    fn check_message(&self, state: &State, message: &Message) {
        let found = message.id.and_then(|id| state.message(id));
        let account_deleted = [message.from, message.to].iter().any(|at| self.accounts[*at].deletions > 0);
        let listed = self.is_conflict(message.id.map(|id| id.0));
        let excused = message.delete_asked || account_deleted || listed;
        assert!(
            !message.known || found.is_some() || excused,
            "lost: this message was acknowledged: {message:?}"
        );
        let Some(found) = found else { return };
        // Of two accounts with one name, the one on the losing side may have asked for it in vain, and then its client asked
        // once more on the other side, where its session is the other account's.
        let asker = self.conflicts.get(&found.id.0).map(|(_, asker)| asker);
        let by_another = asker.is_some_and(|asker| *asker != found.from || asker == DELETED_NAME);
        assert!(
            !listed || by_another,
            "this message is there, and conflicts.csv lists it as not carried out: {message:?}"
        );
        assert!(!message.refused || self.split, "this message was refused, and is there: {message:?}");
        let undone = account_deleted && self.split; // Of two accounts with one name each has its own.
        let deletion_holds = |request: Option<RequestId>| request.is_some() && !self.is_conflict(request);
        assert!(
            undone || !message.deleted.is_some_and(|by| !self.split || deletion_holds(by)),
            "this message was deleted, and is there: {message:?}"
        );
        // Of two accounts with one name each side may have sent it to its own, and one has taken it.
        let of_another = self.split && self.accounts[message.to].ids.len() > 1;
        assert!(
            account_deleted || found.delivered || !message.taken || of_another,
            "this message was taken, and still waits: {message:?}"
        );
    }

    /// The account's password was set by a request that may have done so, and by none that another acknowledged one
    /// followed. Without a split its history says more.
    fn check_password(&self, state: &State, account: &Account) {
        let netcat = account.changes.iter().any(|(request, ..)| request.is_none());
        if !self.split || netcat || account.ids.len() > 1 {
            return; // Whose change it was can't be told.
        }
        for id in &account.ids {
            let Some(found) = state.account(*id) else { continue };
            let set = account.changes.iter().find(|(request, ..)| *request == Some(found.password_set));
            assert!(
                set.is_some() || found.password_set == id.0,
                "{}'s password was set by {}, which nobody asked for",
                account.name,
                found.password_set
            );
            let returned = set.map_or(account.registered, |(.., returned)| *returned);
            let lost = account.changes.iter().find(|(request, invoked, acknowledged)| {
                *invoked > returned && *acknowledged != PENDING && !self.is_conflict(*request)
            });
            assert_eq!(lost, None, "lost: {}'s password is still that of {set:?}", account.name);
        }
    }

    /// Reads everything in the state, at one moment. No text is there twice: each was sent by one command.
    fn see_all(&mut self, state: &State, moment: u64) {
        let ids: Vec<_> = self.accounts.iter().map(|account| state.account_named(&account.name)).collect();
        for (at, id) in ids.iter().enumerate() {
            let Some(id) = *id else {
                self.on_name(at, moment, moment, AccountCall::Absent);
                continue;
            };
            self.on_name(at, moment, moment, AccountCall::Present(Some(id)));
            let (mut messages, mut after) = (Vec::new(), 0);
            loop {
                let page = state.waiting(id, after, PAGE_MAX);
                let ShelfCall::See { messages: seen, .. } = self.page(at, None, &page, End::Oldest) else {
                    unreachable!("a page is seen")
                };
                messages.extend(seen);
                let Some(last) = page.messages.last().filter(|_| page.more) else { break };
                after = last.cursor;
            }
            demand_unique(&messages);
            let see = ShelfCall::See { messages, end: End::Oldest, more: false };
            self.on_shelf(Place::Mailbox(at), moment, moment, see);
            for (other, _) in ids.iter().enumerate().skip(at).filter(|(_, other)| other.is_some()) {
                self.see_exchanged(state, moment, id, at, other);
            }
        }
    }

    fn see_exchanged(&mut self, state: &State, moment: u64, id: AccountId, at: usize, other: usize) {
        let (mut messages, mut before) = (Vec::new(), 0);
        let name = self.accounts[other].name.clone();
        while let Some(page) = state.history(id, &name, before, PAGE_MAX) {
            let ShelfCall::See { messages: mut seen, .. } = self.page(at, Some(other), &page, End::Latest)
            else {
                unreachable!("a page is seen")
            };
            seen.append(&mut messages);
            messages = seen;
            let Some(first) = page.messages.first().filter(|_| page.more) else { break };
            before = first.cursor;
        }
        demand_unique(&messages);
        let see = ShelfCall::See { messages, end: End::Latest, more: false };
        self.on_shelf(conversation(at, other), moment, moment, see);
    }

    /// Looks for an order of the calls on each object.
    fn check_order(&mut self) {
        for (at, mut calls) in std::mem::take(&mut self.names) {
            calls.sort_by_key(|call| call.invoked);
            demand_order(&format!("the name {}", self.accounts[at].name), &calls, None);
        }
        for (place, mut calls) in std::mem::take(&mut self.shelves) {
            calls.sort_by_key(|call| call.invoked);
            let cleared = calls.iter().any(|call| call.model == ShelfCall::Clear);
            for call in &mut calls {
                match &mut call.model {
                    ShelfCall::Put { message, cursor } => {
                        *cursor = self.messages[*message as usize].cursor.unwrap_or_default();
                    }
                    // A message of a deleted account can be deleted by the other, who finds it under `[deleted]`.
                    ShelfCall::Take { count, .. } if cleared && matches!(place, Place::Conversation(..)) => {
                        *count = None;
                    }
                    _ => {}
                }
            }
            demand_order(&format!("{place:?}"), &calls, Shelf::default());
        }
    }
}

/// No message is there twice.
fn demand_unique(messages: &[u32]) {
    let unique: BTreeSet<_> = messages.iter().collect();
    assert_eq!(unique.len(), messages.len(), "doubled: a message is there twice: {messages:?}");
}

fn demand_order<M: Model + std::fmt::Debug>(what: &str, calls: &[Call<M>], begin: M::State) {
    let verdict = check(calls, begin, STEPS_MAX);
    searches::count(calls.len(), &verdict);
    if let Verdict::Violated(open) = verdict {
        let open: String = open.iter().map(|at| format!("\n  {:?}", calls[*at])).collect();
        panic!(
            "not linearizable: {what} has {} calls, and after the longest order that fits none of these can come \
             next:{open}",
            calls.len()
        );
    }
}

/// Whether a name fits a pattern: the plain definition, for short ones.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    match (pattern.split_first(), name.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) if fits(rest, name) => true,
        (Some((b'*', _)), Some((_, left))) => fits(pattern, left),
        (Some((p, rest)), Some((n, left))) => (*p == b'?' || p == n) && fits(rest, left),
        _ => false,
    }
}

/// What a state keeps in more than one place is the same in all of them.
pub(crate) fn check_invariants(state: &State) {
    if let Err(what) = state.check_invariants() {
        panic!("the state does not agree with itself: {what}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::panics;
    use lastword::chat::command::{ClientCommand, Command, Operation};
    use lastword::types::{ClientId, LogIndex, RequestNumber};

    const ALICE: AccountId = AccountId(request(1, 1));

    const fn request(client: u64, number: u64) -> RequestId {
        RequestId { client: ClientId(client), number: RequestNumber(number) }
    }

    /// A state in which Alice has registered, and has sent these texts to herself.
    fn state_with(texts: &[(u64, &str)]) -> State {
        let mut state = State::default();
        let register =
            Command::Register { name: "alice".into(), password: Password(1).to_string(), token: [0; 32] };
        let sends = texts.iter().map(|(n, text)| (*n, Command::Send { to: ALICE, text: (*text).into() }));
        for (index, (number, command)) in [(1, register)].into_iter().chain(sends).enumerate() {
            let (request, acknowledged) = (request(1, number), RequestNumber(0));
            let command = ClientCommand { request, acknowledged, account: ALICE, command };
            state.apply(LogIndex(index as u64 + 1), 0, 0, &Operation::Command(command));
        }
        state
    }

    fn done(reply: Reply) -> Response {
        Response::Done { reply, client: ClientId(1), view: Default::default(), copies: 3, configured: 3 }
    }

    /// Alice has registered, and asks for this.
    fn ask(oracle: &mut Oracle, number: u64, op: &Op) -> (u64, Open) {
        let password = Password(1);
        let moment = oracle.on_invoked(0, Some(request(1, number)), op, password);
        (moment, oracle.open.remove(&moment).expect("it was asked for"))
    }

    fn answer(oracle: &mut Oracle, number: u64, op: &Op, response: &Response) {
        let (invoked, open) = ask(oracle, number, op);
        let returned = oracle.next_moment();
        oracle.on_answered(invoked, returned, &open, response);
    }

    fn send(oracle: &mut Oracle, number: u64, text: &str) {
        let sent = Reply::Sent { message: MessageId(request(1, number)), unix_ms: 0 };
        answer(oracle, number, &Op::Send { to: 0, text: text.into() }, &done(sent));
    }

    fn oracle() -> Oracle {
        let mut oracle = Oracle::default();
        oracle.add_account("alice");
        answer(&mut oracle, 1, &Op::Register, &done(Reply::Registered { account: ALICE }));
        oracle
    }

    fn refuses(oracle: &Oracle, state: &State) -> bool {
        panics(|| oracle.clone().check_final(state))
    }

    #[test]
    fn acknowledged_message_that_is_lost_or_doubled_is_refused() {
        let mut oracle = oracle();
        send(&mut oracle, 2, "one");
        send(&mut oracle, 3, "two");
        for split in [false, true] {
            oracle.split = split;
            assert!(!refuses(&oracle, &state_with(&[(2, "one"), (3, "two")])));
            assert!(refuses(&oracle, &state_with(&[(2, "one")])), "lost");
            assert!(refuses(&oracle, &state_with(&[(2, "one"), (3, "two"), (4, "two")])), "doubled");
            assert!(refuses(&oracle, &state_with(&[(2, "one"), (3, "too")])), "another text");
        }
    }

    #[test]
    fn message_of_unknown_outcome_may_be_there_and_a_refused_one_may_not() {
        let mut oracle = oracle();
        let op = Op::Send { to: 0, text: "maybe".into() };
        let (invoked, open) = ask(&mut oracle, 2, &op);
        let returned = oracle.next_moment();
        let mut refused = oracle.clone();
        oracle.on_unknown(invoked, &open);
        refused.on_refused(invoked, returned, &open, 1, ErrorCode::SessionExpired);
        for split in [false, true] {
            (oracle.split, refused.split) = (split, split);
            let (there, missing) = (state_with(&[(2, "maybe")]), state_with(&[]));
            assert!(!refuses(&oracle, &there) && !refuses(&oracle, &missing) && !refuses(&refused, &missing));
            // What was missing on one side may have been on the other.
            assert_eq!(refuses(&refused, &there), !split);
        }
    }

    #[test]
    fn order_is_demanded_without_a_split_only() {
        let mut oracle = oracle();
        send(&mut oracle, 2, "one");
        send(&mut oracle, 3, "two");
        let swapped = state_with(&[(3, "two"), (2, "one")]);
        assert!(refuses(&oracle, &swapped));
        oracle.split = true;
        assert!(!refuses(&oracle, &swapped));
    }

    #[test]
    fn after_a_split_what_is_lost_must_be_in_the_conflicts() {
        let mut oracle = oracle();
        send(&mut oracle, 2, "one");
        oracle.split = true;
        assert!(refuses(&oracle, &state_with(&[])));
        oracle.conflicts.insert(request(1, 2), (1, "alice".into()));
        assert!(!refuses(&oracle, &state_with(&[])));
        oracle.split = false;
        assert!(refuses(&oracle, &state_with(&[])), "without a split nothing conflicts");
    }

    #[test]
    fn message_that_is_there_and_in_the_conflicts_is_refused() {
        let mut oracle = oracle();
        send(&mut oracle, 2, "one");
        oracle.split = true;
        oracle.conflicts.insert(request(1, 2), (1, "alice".into()));
        assert!(refuses(&oracle, &state_with(&[(2, "one")])));
        // Of two accounts with the sender's name each may have asked.
        oracle.conflicts.insert(request(1, 2), (1, "alice~2".into()));
        assert!(!refuses(&oracle, &state_with(&[(2, "one")])));
    }

    #[test]
    fn message_that_was_deleted_or_taken_and_is_back_is_refused() {
        let op =
            [Op::Delete(vec![MessageId(request(1, 2))]), Op::Acknowledge(vec![MessageId(request(1, 2))])];
        let replies = [Reply::Deleted { count: 1 }, Reply::Acknowledged { count: 1 }];
        for (op, reply) in op.into_iter().zip(replies) {
            for split in [false, true] {
                let mut oracle = oracle();
                send(&mut oracle, 2, "one");
                answer(&mut oracle, 3, &op, &done(reply.clone()));
                oracle.split = split;
                assert!(refuses(&oracle, &state_with(&[(2, "one")])), "{op:?}, split: {split}");
            }
        }
    }

    #[test]
    fn password_that_was_replaced_and_is_back_after_a_split_is_refused() {
        let mut oracle = oracle();
        let op = Op::ChangePassword { old: Password(1), new: Password(2) };
        answer(&mut oracle, 2, &op, &done(Reply::PasswordChanged));
        oracle.split = true;
        assert!(refuses(&oracle, &state_with(&[])));
        oracle.conflicts.insert(request(1, 2), (1, "alice".into()));
        assert!(!refuses(&oracle, &state_with(&[])));
    }

    #[test]
    fn password_that_was_asked_for_and_not_answered_yet_may_be_set_and_another_may_not() {
        let mut oracle = oracle();
        oracle.split = true;
        let op = Op::ChangePassword { old: Password(1), new: Password(2) };
        oracle.on_invoked(0, Some(request(1, 2)), &op, Password(1));
        let changed = |number| {
            let (mut state, checked) = (state_with(&[]), request(1, 1));
            let command = Command::ChangePassword { checked, password: Password(2).to_string() };
            let (request, acknowledged) = (request(1, number), RequestNumber(0));
            let command = ClientCommand { request, acknowledged, account: ALICE, command };
            state.apply(state.index().next(), 0, 0, &Operation::Command(command));
            state
        };
        assert!(!refuses(&oracle, &changed(2)) && refuses(&oracle, &changed(3)));
        assert!(!refuses(&oracle, &state_with(&[])));
    }

    #[test]
    fn stale_read_of_a_mailbox_is_refused() {
        let mut oracle = oracle();
        send(&mut oracle, 2, "one");
        let page = MessagePage::default();
        answer(&mut oracle, 3, &Op::Read, &Response::Messages(page));
        assert!(refuses(&oracle, &state_with(&[(2, "one")])));
    }

    #[test]
    fn account_that_is_lost_is_refused() {
        let oracle = oracle();
        assert!(!refuses(&oracle, &state_with(&[])));
        assert!(refuses(&oracle, &State::default()));
    }
}
