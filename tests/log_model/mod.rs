//! What a log should hold: entries with texts of every shape, and what they and the rows around them amount to.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test binary uses another part of it")]

use std::collections::BTreeMap;
use std::sync::Arc;

use lastword::chat::State;
use lastword::chat::command::{ClientCommand, Command, Operation};
use lastword::message::{
    CheckpointResult, CheckpointStep, Entry, HardState, Position, Standing, View, ViewStart, ViewTable,
};
use lastword::storage::{Disk, MemoryDisk, Opened, StorageError, open_with};
use lastword::types::{
    AccountId, ClientId, ClusterId, Incarnation, LogIndex, Member, RequestId, RequestNumber, ServerId,
    ViewNumber,
};

pub const LIVE: &str = "server_log.csv";

pub fn servers() -> Vec<String> {
    vec!["127.0.0.1:1538".into(), "127.0.0.1:2538".into()]
}

pub fn view(counter: u32) -> ViewNumber {
    ViewNumber { counter, proposer: ServerId(1) }
}

pub fn view_of(counter: u32) -> View {
    let members = vec![Member { server: ServerId(1), incarnation: Incarnation(1) }];
    View { number: view(counter), members }
}

pub fn open<D: Disk>(disk: &D, segment_bytes: u64) -> Result<Opened<D>, StorageError> {
    open_with(disk.clone(), ServerId(1), &servers(), segment_bytes, &mut |_| {})
}

/// The live segment without the space that is reserved behind its last row.
pub fn rows_of(disk: &MemoryDisk) -> Vec<u8> {
    let mut bytes = disk.bytes(LIVE).expect("there is a live segment");
    while bytes.ends_with(b"\n\n") {
        bytes.pop();
    }
    bytes
}

pub fn hard(incarnation: u32, promised: u32) -> HardState {
    HardState {
        server: Some(ServerId(1)),
        cluster: Some(ClusterId(7)),
        incarnation: Incarnation(incarnation),
        promised: view(promised),
        born: Incarnation(1),
        outstanding: vec![view(promised)],
        standing: Standing::Whole,
        incarnations: vec![Member { server: ServerId(2), incarnation: Incarnation(3) }],
        servers: servers(),
    }
}

/// A text whose row has quotes, escapes, characters of up to four bytes, one byte, or thousands of them.
fn text(number: u64) -> String {
    match number % 9 {
        0 => "x".into(),
        1 => format!("said \"{number}\", and left"),
        2 => "first line\nsecond line\r\n\nthe last one".into(),
        3 => format!("=SUM(A1:A{number})"),
        4 => "h\u{e9}llo \u{2603} \u{1d11e}, \u{202e}right to left".into(),
        5 => "back\\slash\\n and 'quote' and \"\"two\"\"".into(),
        6 => "\u{1}\t\u{7f}, control characters".into(),
        7 if number.is_multiple_of(4) => "a long line, with \"quotes\" ".repeat(60),
        _ => format!("message {number}"),
    }
}

/// Every entry that was ever made, by index and chain, with the chain before it.
#[derive(Default)]
pub struct Known {
    pub entries: BTreeMap<(u64, u32), (u32, Arc<Entry>)>,
    /// The state's digest and the table of views after each of them.
    pub outcomes: BTreeMap<(u64, u32), ([u8; 32], ViewTable)>,
}

/// How many accounts the first entries create.
const ACCOUNTS: u64 = 12;

impl Known {
    /// An entry after `after`: first accounts come into being, then messages are sent, received and deleted.
    pub fn make(&mut self, after: Position, counter: u32, salt: u64) -> Arc<Entry> {
        let index = after.index.next();
        let client = |account: u64| ClientId(0xc11e_0000 + account);
        let account = |account| AccountId(RequestId { client: client(account), number: RequestNumber(1) });
        let actor = index.0 % ACCOUNTS;
        let number = if index.0 <= ACCOUNTS + 1 { 1 } else { index.0 };
        let request = RequestId { client: client(actor), number: RequestNumber(number) };
        let command = match index.0 {
            0..=13 => Command::Register {
                name: format!("account{actor}"),
                password: "$argon2id$v=19$m=19456,t=2,p=1$c2FsdA$aGFzaA".into(),
                token: [7; 32],
            },
            _ => Command::Send { to: account((actor + 1) % ACCOUNTS), text: text(index.0 + salt) },
        };
        let operation = if index.0 == 1 {
            Operation::View { primary: ServerId(1), members: view_of(1).members, absent: Vec::new() }
        } else {
            let (account, acknowledged) = (account(actor), RequestNumber(0));
            Operation::Command(ClientCommand { request, acknowledged, account, command })
        };
        let entry = Arc::new(Entry::new(index, view(counter), 1000 + salt, operation, after.chain));
        self.entries.insert((index.0, entry.chain), (after.chain, Arc::clone(&entry)));
        entry
    }

    /// All entries up to a position.
    pub fn history(&self, position: Position) -> Vec<Arc<Entry>> {
        let (mut history, mut at) = (Vec::new(), (position.index.0, position.chain));
        while at.0 > 0 {
            let (before, entry) =
                self.entries.get(&at).unwrap_or_else(|| panic!("entry {at:?} was never made"));
            history.push(Arc::clone(entry));
            at = (at.0 - 1, *before);
        }
        history.reverse();
        history
    }

    pub fn state(&self, position: Position) -> State {
        let mut state = State::new();
        for entry in self.history(position) {
            let _ = state.apply(entry.index, entry.unix_ms, entry.chain, &entry.operation);
        }
        state
    }

    /// Notes what the state and the table of views are after each entry of the log that ends with `last`, and after
    /// those that were truncated.
    pub fn note_outcomes(&mut self, last: Position) {
        let (mut state, mut views) = (State::new(), ViewTable::new());
        self.outcomes.insert((0, 0), (state.digest(), views.clone()));
        for entry in self.history(last) {
            let _ = state.apply(entry.index, entry.unix_ms, entry.chain, &entry.operation);
            if views.last().is_none_or(|last: &ViewStart| last.view != entry.view) {
                views.push(ViewStart { view: entry.view, start: entry.index });
            }
            self.outcomes.insert((entry.index.0, entry.chain), (state.digest(), views.clone()));
        }
        let positions: Vec<Position> = self.entries.values().map(|(_, entry)| entry.position()).collect();
        for position in positions {
            let key = (position.index.0, position.chain);
            if !self.outcomes.contains_key(&key) {
                self.outcomes.insert(key, (self.state(position).digest(), self.views(position)));
            }
        }
    }

    pub fn views(&self, position: Position) -> ViewTable {
        let mut views = ViewTable::new();
        for entry in self.history(position) {
            if views.last().is_none_or(|last: &ViewStart| last.view != entry.view) {
                views.push(ViewStart { view: entry.view, start: entry.index });
            }
        }
        views
    }

    /// The position of entry `index` in the log that ends with `last`.
    pub fn position_at(&self, last: Position, index: LogIndex) -> Position {
        if index.0 == 0 {
            return Position::default();
        }
        self.history(last)[usize::try_from(index.0).unwrap() - 1].position()
    }
}

/// Writes a checkpoint as of `position`.
pub fn take_checkpoint<D: Disk>(
    opened: &mut Opened<D>,
    known: &Known,
    position: Position,
) -> Result<(), String> {
    let mut state = known.state(position);
    let (views, digest) = (known.views(position), state.digest());
    state.begin_checkpoint();
    let mut steps = vec![CheckpointStep::Begin { position, views, digest }];
    while let Some(slice) = state.next_slice(20) {
        steps.push(CheckpointStep::Rows(slice));
    }
    steps.push(CheckpointStep::Finish);
    for step in steps {
        if let CheckpointResult::Failed(error) = opened.checkpoints.step(step) {
            return Err(error);
        }
    }
    Ok(())
}

/// Every entry that can be read. Of those after a gap the first can't: nothing vouches for it.
pub fn read_all<D: Disk>(opened: &Opened<D>) -> Vec<Arc<Entry>> {
    try_read_all(opened).unwrap()
}

/// As [`read_all`]; a row whose checksum fits and whose fields make no sense is an error.
pub fn try_read_all<D: Disk>(opened: &Opened<D>) -> Result<Vec<Arc<Entry>>, StorageError> {
    let mut all: Vec<Arc<Entry>> = Vec::new();
    let mut next = opened.log.base().index.next();
    loop {
        let (_, entries) = opened.reader.read(next, LogIndex(u64::MAX))?;
        if let Some(last) = entries.last() {
            next = last.index.next();
            all.extend(entries);
            continue;
        }
        match opened.recovered.gaps.iter().find(|(_, through)| *through >= next) {
            Some((_, through)) => next = through.next().next(),
            None => return Ok(all),
        }
    }
}
