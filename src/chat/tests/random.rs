//! Random histories.

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::row::{Fields, RowWriter};
use crate::types::{Incarnation, Member, ServerId};

const NAMES: [&str; 5] = ["alice", "Bob", "carol", "dave", "bOB"];

/// Something that one of a few clients tries.
#[derive(Clone, Debug)]
enum Step {
    Register {
        name: usize,
    },
    LogIn {
        name: usize,
        stale: bool,
    },
    LogOut {
        everywhere: bool,
    },
    DeleteAccount,
    ChangePassword,
    Send {
        name: usize,
        text: String,
    },
    Acknowledge {
        picks: Vec<Index>,
    },
    Delete {
        picks: Vec<Index>,
    },
    /// The last command once more.
    Retry,
    /// Somebody else's session.
    Intrude {
        name: usize,
    },
    Expire {
        back_ms: u64,
    },
    View,
    /// The same from another log that has parted from this one.
    Late {
        step: Box<Step>,
        back: u64,
    },
}

fn any_step() -> impl Strategy<Value = (u64, Step)> {
    let name = || 0..NAMES.len();
    let picks = || prop::collection::vec(any::<Index>(), 0..4);
    let step = prop_oneof![
        6 => name().prop_map(|name| Step::Register { name }),
        4 => (name(), prop::bool::weighted(0.1)).prop_map(|(name, stale)| Step::LogIn { name, stale }),
        2 => prop::bool::weighted(0.2).prop_map(|everywhere| Step::LogOut { everywhere }),
        2 => Just(Step::DeleteAccount),
        1 => Just(Step::ChangePassword),
        20 => (name(), "[a-c,\"\n=]{1,5}").prop_map(|(name, text)| Step::Send { name, text }),
        8 => picks().prop_map(|picks| Step::Acknowledge { picks }),
        3 => picks().prop_map(|picks| Step::Delete { picks }),
        3 => Just(Step::Retry),
        1 => name().prop_map(|name| Step::Intrude { name }),
        1 => (0..200u64).prop_map(|back_ms| Step::Expire { back_ms }),
        1 => Just(Step::View),
    ];
    let late = (step.clone(), 0..60u64).prop_map(|(step, back)| Step::Late { step: Box::new(step), back });
    (1..6u64, prop_oneof![5 => step, 1 => late])
}

fn steps(count: usize) -> impl Strategy<Value = Vec<(u64, Step)>> {
    prop::collection::vec(any_step(), 0..count)
}

/// Turns steps into operations that make sense in the present state, most of the time.
#[derive(Clone, Default)]
struct Script {
    numbers: [u64; 6],
    latest: [Option<ClientCommand>; 6],
    sent: Vec<MessageId>,
}

impl Script {
    fn operation(&mut self, chat: &Chat, client: u64, step: &Step) -> Operation {
        let at = usize::try_from(client).unwrap();
        let session = chat.state.session(ClientId(client)).map(|session| session.account);
        self.numbers[at] += 1;
        let request = request(ClientId(client), self.numbers[at]);
        let named = |name: usize| {
            let nobody = AccountId(super::request(ClientId(99), 1));
            chat.state.account_named(NAMES[name]).unwrap_or(nobody)
        };
        let own = session.unwrap_or(AccountId(request));
        let password = |id: AccountId| chat.state.account(id).map_or(id.0, |account| account.password_set);
        let picked = |picks: &[Index]| -> Vec<MessageId> {
            if self.sent.is_empty() { vec![] } else { picks.iter().map(|i| *i.get(&self.sent)).collect() }
        };
        let (account, command) = match step {
            Step::Register { name } => (AccountId(request), register(NAMES[*name])),
            Step::LogIn { name, stale } => {
                let id = named(*name);
                let checked = if *stale { request } else { password(id) };
                (id, Command::Login { checked, token: [3; 32] })
            }
            Step::LogOut { everywhere } => (own, Command::Logout { everywhere: *everywhere }),
            Step::DeleteAccount => (own, Command::DeleteAccount { checked: password(own) }),
            Step::ChangePassword => {
                let checked = password(own);
                (own, Command::ChangePassword { checked, password: request.to_string() })
            }
            Step::Send { name, text } => (own, Command::Send { to: named(*name), text: text.clone() }),
            Step::Acknowledge { picks } => (own, Command::Acknowledge { messages: picked(picks) }),
            Step::Delete { picks } => (own, Command::Delete { messages: picked(picks) }),
            Step::Intrude { name } => (named(*name), Command::Delete { messages: self.sent.clone() }),
            Step::Retry => {
                let view = Operation::View { primary: ServerId(1), members: vec![], absent: vec![] };
                return self.latest[at].clone().map_or(view, Operation::Command);
            }
            Step::Expire { back_ms } => {
                return Operation::Expire { before_unix_ms: chat.unix_ms - back_ms };
            }
            Step::Late { step, back } => {
                self.numbers[at] -= 1;
                let operation = self.operation(chat, client, step);
                let fork = LogIndex(chat.state.index().0.saturating_sub(*back));
                return operation.clone().proposed_again(fork).unwrap_or(operation);
            }
            Step::View => return Operation::View { primary: ServerId(1), members: vec![], absent: vec![] },
        };
        let acknowledged = RequestNumber(request.number.0.saturating_sub(4));
        let command = ClientCommand { request, acknowledged, account, command };
        self.latest[at] = Some(command.clone());
        Operation::Command(command)
    }

    fn play(&mut self, chat: &mut Chat, steps: &[(u64, Step)]) -> Vec<Operation> {
        let mut operations = Vec::new();
        for (client, step) in steps {
            let operation = self.operation(chat, *client, step);
            chat.apply(&operation);
            self.note_sent(chat, &operation);
            operations.push(operation);
        }
        operations
    }

    /// Nobody takes or deletes a message that is not there yet.
    fn note_sent(&mut self, chat: &Chat, operation: &Operation) {
        if let Operation::Command(command) | Operation::Rebased { command, .. } = operation {
            let id = MessageId(command.request);
            self.sent.extend(chat.state.message(id).map(|_| id));
        }
    }
}

proptest! {
    #[test]
    fn what_the_other_side_did_is_done_once_or_in_conflict_and_repeats_change_nothing(
        before in steps(40),
        apart in prop::collection::vec((any_side(), any_step()), 0..60),
        parts in prop::collection::vec(0..60usize, 0..4),
        between in steps(4),
    ) {
        let [with, without] = [true, false].map(|repeat| {
            let mut split = split(&before, &apart);
            split.rebase(&parts, &between, repeat);
            checkpoint(&mut split.here.state, 100)
        });
        prop_assert_eq!(with, without);
    }

    #[test]
    fn whatever_happens_nothing_contradicts_itself(steps in steps(150)) {
        // Every applied entry is followed by a check.
        Script::default().play(&mut Chat::new(), &steps);
    }

    #[test]
    fn a_retry_is_answered_alike_and_changes_nothing_but_the_digest(steps in steps(60), after in any_step()) {
        let (mut chat, mut script) = (Chat::new(), Script::default());
        script.play(&mut chat, &steps);
        let operation = script.operation(&chat, after.0, &after.1);
        let first = chat.apply(&operation);
        let Operation::Command(command) = &operation else { return Ok(()) };
        if chat.state.session(command.request.client).is_none_or(|s| s.account != command.account) {
            return Ok(());
        }
        let tables = checkpoint(&mut chat.state, 100);
        let again = chat.apply(&operation);
        prop_assert_eq!((first.reply, None), (again.reply, again.queued));
        prop_assert_eq!(checkpoint(&mut chat.state, 100), tables);
    }

    #[test]
    fn a_checkpoint_in_slices_shows_the_moment_it_was_begun(
        before in steps(120),
        meanwhile in prop::collection::vec((1..6usize, steps(8)), 0..40),
        abandoned in any::<bool>(),
    ) {
        let (mut chat, mut script) = (Chat::new(), Script::default());
        script.play(&mut chat, &before);
        let expected = checkpoint(&mut chat.state.clone(), usize::MAX);
        if abandoned {
            chat.state.begin_checkpoint();
            chat.state.next_slice(3);
        }
        chat.state.begin_checkpoint();
        let mut tables: Vec<_> = Table::ALL.map(|table| (table, Vec::new())).to_vec();
        for (rows_max, steps) in meanwhile.iter().chain(std::iter::repeat(&(1000, vec![]))) {
            script.play(&mut chat, steps);
            let Some(slice) = chat.state.next_slice(*rows_max) else { break };
            collect(&mut tables, &slice, *rows_max);
        }
        prop_assert_eq!(tables, expected);
    }

    #[test]
    fn a_restored_state_goes_on_like_the_original(before in steps(120), after in steps(60)) {
        let (mut chat, mut script) = (Chat::new(), Script::default());
        script.play(&mut chat, &before);
        let tables = checkpoint(&mut chat.state, 10);
        let mut restored = Chat { state: restore(&chat.state, &tables), ..chat.clone() };
        prop_assert_eq!(restored.state.bytes_estimate(), chat.state.bytes_estimate());
        prop_assert_eq!(checkpoint(&mut restored.state, 7), tables);
        for (client, step) in &after {
            let operation = script.operation(&chat, *client, step);
            prop_assert_eq!(restored.apply(&operation), chat.apply(&operation));
        }
        prop_assert_eq!(restored.state.digest(), chat.state.digest());
        prop_assert_eq!(checkpoint(&mut restored.state, 100), checkpoint(&mut chat.state, 100));
        for name in ["alice", "bob", "carol", "dave", "[deleted]"] {
            let Some(own) = chat.state.account_named("alice") else { break };
            let page = |state: &State| state.history(own, name, 0, 0);
            prop_assert_eq!(page(&restored.state), page(&chat.state));
        }
    }

    #[test]
    fn every_operation_reads_back_from_its_fields(operation in any_operation()) {
        let mut row = RowWriter::new();
        row.plain(operation.kind());
        operation.write_fields(&mut row);
        let mut fields = Fields::new();
        fields.parse(row.row(), 8).unwrap();
        prop_assert_eq!(Operation::read_fields(0, 1, &fields), Ok(operation));
    }
}

fn any_request() -> impl Strategy<Value = RequestId> {
    (any::<u64>(), any::<u64>()).prop_map(|(client, number)| request(ClientId(client), number))
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        ".*",
        "[\\\\\"',\n\r\t=+@-]{0,9}",
        prop::sample::select(vec!["", "'", "''", "\\n", "\"", "\r\n", "=", "\u{feff}x", "👋🏽", "a,b"])
            .prop_map(str::to_owned),
    ]
}

fn any_operation() -> impl Strategy<Value = Operation> {
    let messages = || prop::collection::vec(any_request().prop_map(MessageId), 0..5);
    let command =
        prop_oneof![
            (any_text(), any_text(), any::<[u8; 32]>())
                .prop_map(|(name, password, token)| Command::Register { name, password, token }),
            (any_request(), any::<[u8; 32]>()).prop_map(|(checked, token)| Command::Login { checked, token }),
            any::<bool>().prop_map(|everywhere| Command::Logout { everywhere }),
            any_request().prop_map(|checked| Command::DeleteAccount { checked }),
            (any_request(), any_text())
                .prop_map(|(checked, password)| { Command::ChangePassword { checked, password } }),
            (any_request(), any_text()).prop_map(|(to, text)| Command::Send { to: AccountId(to), text }),
            messages().prop_map(|messages| Command::Acknowledge { messages }),
            messages().prop_map(|messages| Command::Delete { messages }),
        ];
    let client_command = (any_request(), any::<u64>(), prop::option::of(any_request()), command).prop_map(
        |(request, acknowledged, account, command)| {
            let account = AccountId(account.unwrap_or(request));
            let acknowledged = RequestNumber(acknowledged);
            ClientCommand { request, acknowledged, account, command }
        },
    );
    let member = (any::<u8>(), any::<u32>()).prop_map(|(server, incarnation)| Member {
        server: ServerId(server),
        incarnation: Incarnation(incarnation),
    });
    prop_oneof![
        10 => (prop::option::of(any::<u64>()), client_command).prop_map(|(fork, command)| match fork {
            None => Operation::Command(command),
            Some(fork) => Operation::Rebased { fork: LogIndex(fork), command },
        }),
        1 => (any::<u8>(), prop::collection::vec(member, 0..4), prop::collection::vec(any::<u8>(), 0..3))
            .prop_map(|(primary, members, absent)| Operation::View {
                primary: ServerId(primary),
                members,
                absent: absent.into_iter().map(ServerId).collect(),
            }),
        1 => Just(Operation::Closed),
        1 => any::<u64>().prop_map(|before_unix_ms| Operation::Expire { before_unix_ms }),
    ]
}

/// Which side of a split a step is taken on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Here,
    There,
    /// The client has tried both.
    Both,
}

/// Both sides of a split.
struct Split {
    here: Chat,
    there: Chat,
    fork: LogIndex,
    script: Script,
    /// What the other side has done, with its times.
    diverged: Vec<(u64, Operation)>,
}

impl Split {
    fn take_step(&mut self, side: Side, client: u64, step: &Step) {
        let on = if side == Side::Here { &self.here } else { &self.there };
        let operation = self.script.operation(on, client, step);
        if side != Side::Here {
            self.there.apply(&operation);
            self.script.note_sent(&self.there, &operation);
            self.diverged.push((self.there.unix_ms, operation.clone()));
        }
        if side != Side::There {
            self.here.apply(&operation);
            self.script.note_sent(&self.here, &operation);
        }
    }

    /// Proposes everything from the other side again, each time from the beginning, in as many parts as there are
    /// counts; after each part the next step is taken here. Repeats that are known leave a mark of the same place.
    fn rebase(&mut self, parts: &[usize], between: &[(u64, Step)], repeat: bool) {
        let mut between = between.iter();
        let all = self.diverged.len();
        let mut done = 0;
        for through in parts.iter().map(|part| *part % (all + 1)).chain([all]) {
            for at in 0..through {
                let (unix_ms, operation) = self.diverged[at].clone();
                let Some(again) = operation.proposed_again(self.fork) else { continue };
                let operation = if at >= done || repeat { again } else { Operation::Closed };
                let index = self.here.state.index().next();
                let known = is_known(&self.here.state, &operation);
                self.here.state.apply(index, unix_ms, 7, &operation);
                self.here.state.check_invariants().unwrap();
                if at >= done && (!known || takes_messages(&operation)) {
                    assert_eq!(self.unaccounted(&operation), None, "{operation:?}");
                }
            }
            done = done.max(through);
            if let Some((client, step)) = between.next() {
                self.take_step(Side::Here, *client, step);
            }
        }
    }

    /// What is missing of a command of the other side that was proposed again a moment ago.
    fn unaccounted(&self, operation: &Operation) -> Option<String> {
        let Operation::Rebased { command, .. } = operation else { return None };
        let state = &self.here.state;
        let ClientCommand { request, account, command, .. } = command;
        let index = state.index().0;
        if state.conflicts.rows.row(index).is_some_and(|c| c.request == *request) {
            return None;
        }
        let exists = state.account(*account).is_some();
        let own = |id: &MessageId| {
            let order = state.mailboxes.order(*id)?;
            let (message, delivered) = state.mailboxes.message(order).unwrap();
            let named = [message.from, message.to].map(|handle| state.directory.id(handle) == *account);
            Some((named, delivered))
        };
        let holds = match command {
            Command::Register { .. } => exists,
            Command::Login { .. } => state.session(request.client).is_some_and(|s| s.account == *account),
            Command::Logout { everywhere } => {
                !everywhere || state.sessions.clients(*account).next().is_none()
            }
            Command::DeleteAccount { .. } => !exists,
            Command::ChangePassword { .. } => state.account(*account).unwrap().password_set == *request,
            Command::Send { .. } => state.mailboxes.order(MessageId(*request)) == Some(index),
            Command::Acknowledge { messages } => {
                messages.iter().filter_map(own).all(|([_, to], delivered)| !exists || !to || delivered)
            }
            Command::Delete { messages } => {
                messages.iter().filter_map(own).all(|(named, _)| named == [false; 2])
            }
        };
        (!holds).then(|| format!("neither done nor in conflict: {command:?}"))
    }
}

fn is_known(state: &State, operation: &Operation) -> bool {
    matches!(operation, Operation::Rebased { fork, command } if state.is_settled(*fork, command))
}

/// Whether it counts for messages that come from the other side even if the command is known here.
fn takes_messages(operation: &Operation) -> bool {
    let Operation::Rebased { command, .. } = operation else { return false };
    matches!(command.command, Command::Acknowledge { .. } | Command::Delete { .. })
}

fn split(before: &[(u64, Step)], apart: &[(Side, (u64, Step))]) -> Split {
    let (mut here, mut script) = (Chat::new(), Script::default());
    script.play(&mut here, before);
    let (there, fork) = (here.clone(), here.state.index());
    let mut split = Split { here, there, fork, script, diverged: Vec::new() };
    for (side, (client, step)) in apart {
        split.take_step(*side, *client, step);
    }
    split
}

fn any_side() -> impl Strategy<Value = Side> {
    prop_oneof![3 => Just(Side::Here), 3 => Just(Side::There), 1 => Just(Side::Both)]
}
