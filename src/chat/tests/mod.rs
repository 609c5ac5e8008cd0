//! The state machine's rules, each as a fact; and random histories.

mod checkpoints;
mod pages;
mod random;
mod rebase;
mod rules;

use super::command::{ClientCommand, Command, Operation, Outcome, Refusal, Reply};
use super::{Slice, State, Table};
use crate::types::{AccountId, ClientId, LogIndex, MessageId, RequestId, RequestNumber};

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// A state with a log that numbers itself.
#[derive(Clone)]
struct Chat {
    state: State,
    unix_ms: u64,
    numbers: [u64; 2048],
}

/// A logged in account: the client that acts, and for whom.
#[derive(Clone, Copy, Debug)]
struct User {
    client: ClientId,
    id: AccountId,
}

fn request(client: ClientId, number: u64) -> RequestId {
    RequestId { client, number: RequestNumber(number) }
}

impl Chat {
    fn new() -> Self {
        Self { state: State::new(), unix_ms: 1_000_000, numbers: [0; 2048] }
    }

    fn apply(&mut self, operation: &Operation) -> Outcome {
        self.unix_ms += 1;
        let index = self.state.index().next();
        let chain = crc32fast::hash(&index.0.to_be_bytes());
        let outcome = self.state.apply(index, self.unix_ms, chain, operation);
        self.state.check_invariants().unwrap();
        outcome
    }

    /// Applies a command under a given number; the client has acknowledged nothing.
    fn ask_as(&mut self, client: ClientId, number: u64, account: AccountId, command: Command) -> Outcome {
        let request = request(client, number);
        let acknowledged = RequestNumber(0);
        self.apply(&Operation::Command(ClientCommand { request, acknowledged, account, command }))
    }

    fn next_number(&mut self, client: ClientId) -> u64 {
        let number = &mut self.numbers[usize::try_from(client.0).unwrap()];
        *number += 1;
        *number
    }

    /// Applies a command under the client's next number.
    fn ask(&mut self, user: User, command: Command) -> Outcome {
        let number = self.next_number(user.client);
        self.ask_as(user.client, number, user.id, command)
    }

    fn reply(&mut self, user: User, command: Command) -> Reply {
        self.ask(user, command).reply.unwrap()
    }

    fn register(&mut self, client: u64, name: &str) -> User {
        let client = ClientId(client);
        let number = self.next_number(client);
        let id = AccountId(request(client, number));
        let outcome = self.ask_as(client, number, id, register(name));
        assert_eq!(outcome.reply, Some(Reply::Registered { account: id }));
        User { client, id }
    }

    /// Logs another client of an account in.
    fn log_in(&mut self, client: u64, account: AccountId) -> (User, Outcome) {
        let user = User { client: ClientId(client), id: account };
        let checked = self.state.account(account).map_or(account.0, |a| a.password_set);
        let outcome = self.ask(user, Command::Login { checked, token: [2; 32] });
        (user, outcome)
    }

    fn send(&mut self, from: User, to: User, text: &str) -> MessageId {
        match self.reply(from, send(to, text)) {
            Reply::Sent { message, .. } => message,
            other => panic!("{other:?}"),
        }
    }

    fn acknowledge(&mut self, user: User, messages: &[MessageId]) -> u64 {
        match self.reply(user, Command::Acknowledge { messages: messages.to_vec() }) {
            Reply::Acknowledged { count } => count,
            other => panic!("{other:?}"),
        }
    }

    fn delete_account(&mut self, user: User) -> Outcome {
        let outcome = self.ask(user, Command::DeleteAccount { checked: user.id.0 });
        assert_eq!(outcome.reply, Some(Reply::AccountDeleted));
        outcome
    }

    fn waiting(&self, user: User) -> Vec<String> {
        texts(&self.state.waiting(user.id, 0, 0).messages)
    }

    fn history(&self, user: User, with: &str) -> Vec<String> {
        texts(&self.state.history(user.id, with, 0, 0).expect("the name exists").messages)
    }
}

/// Messages as `from>to text`, with a `!` in front of those that are delivered.
fn texts(messages: &[super::command::MessageView]) -> Vec<String> {
    let line = |m: &super::command::MessageView| {
        format!("{}{}>{} {}", if m.delivered { "!" } else { "" }, m.from, m.to, m.text)
    };
    messages.iter().map(line).collect()
}

fn register(name: &str) -> Command {
    Command::Register { name: name.to_owned(), password: "$argon2id$1".to_owned(), token: [1; 32] }
}

fn send(to: User, text: &str) -> Command {
    Command::Send { to: to.id, text: text.to_owned() }
}

fn refused(refusal: Refusal) -> Reply {
    Reply::Refused(refusal)
}

/// Takes a whole checkpoint in slices of a given size; gives each table's bytes.
fn checkpoint(state: &mut State, rows_max: usize) -> Vec<(Table, Vec<u8>)> {
    state.begin_checkpoint();
    let mut tables: Vec<(Table, Vec<u8>)> = Table::ALL.map(|table| (table, Vec::new())).to_vec();
    while let Some(slice) = state.next_slice(rows_max) {
        collect(&mut tables, &slice, rows_max);
    }
    tables
}

fn collect(tables: &mut [(Table, Vec<u8>)], slice: &Slice, rows_max: usize) {
    let lines = slice.rows.iter().filter(|b| **b == b'\n').count();
    assert_eq!(slice.count, lines as u64);
    assert!(lines <= rows_max);
    tables.iter_mut().find(|(table, _)| *table == slice.table).unwrap().1.extend_from_slice(&slice.rows);
}

/// Builds a state from a checkpoint's tables.
fn restore(state: &State, tables: &[(Table, Vec<u8>)]) -> State {
    let mut restore = super::Restore::new(state.index(), state.digest());
    let mut fields = crate::row::Fields::new();
    for (table, rows) in tables {
        for line in rows.split_inclusive(|b| *b == b'\n') {
            let row = crate::row::verify(line.strip_suffix(b"\n").unwrap()).unwrap();
            fields.parse(row, table.header().len()).unwrap();
            restore.add(vec![super::TableRow::parse(*table, &fields).unwrap()]).unwrap();
        }
    }
    let restored = restore.finish(&super::InTurn).unwrap();
    restored.check_invariants().unwrap();
    restored
}

/// The index of the last entry, for messages' cursors.
fn last(chat: &Chat) -> LogIndex {
    chat.state.index()
}
