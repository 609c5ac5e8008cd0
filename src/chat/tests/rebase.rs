//! Two logs that become one again: each rule of R6 as a fact; and random histories on both sides of a split.

use super::super::Known;
use super::super::command::ConflictView;
use super::*;

impl Chat {
    /// What one side does during a split: the other side's chat. Both go on from here.
    fn split(&self) -> (Self, LogIndex) {
        (self.clone(), self.state.index())
    }

    /// Applies a command of the other side at this time, which parted from this one at `fork`.
    fn rebase(&mut self, fork: LogIndex, unix_ms: u64, command: &ClientCommand) -> Outcome {
        let index = self.state.index().next();
        let operation = Operation::Rebased { fork, command: command.clone() };
        let outcome = self.state.apply(index, unix_ms, 7, &operation);
        self.state.check_invariants().unwrap();
        outcome
    }

    /// A command of the other side, under a number that it does not use here.
    fn ask_late(&mut self, fork: LogIndex, user: User, command: Command) -> Outcome {
        let number = self.next_number(user.client);
        let request = request(user.client, number);
        let acknowledged = RequestNumber(0);
        self.rebase(fork, 5, &ClientCommand { request, acknowledged, account: user.id, command })
    }

    /// A command under the client's next number, to be applied on either side or both.
    fn command(&mut self, user: User, command: Command) -> ClientCommand {
        let request = request(user.client, self.next_number(user.client));
        ClientCommand { request, acknowledged: RequestNumber(0), account: user.id, command }
    }

    fn conflicts(&self, user: User) -> Vec<ConflictView> {
        self.state.conflicts(user.id, 0, 0).conflicts
    }

    /// What a user is told: the reason, the command, by whom, the other, the text.
    fn told(&self, user: User) -> Vec<String> {
        let line = |c: &ConflictView| {
            format!("{}: {} of {}, {}: {}", c.reason, c.command, c.account, c.other, c.text)
        };
        self.conflicts(user).iter().map(line).collect()
    }
}

fn alice_and_bob() -> (Chat, User, User) {
    let mut chat = Chat::new();
    let (alice, bob) = (chat.register(1, "alice"), chat.register(2, "bob"));
    (chat, alice, bob)
}

#[test]
fn a_message_of_the_other_side_keeps_its_id_and_time_and_is_late() {
    let (mut chat, alice, bob) = alice_and_bob();
    let outcome = chat.ask_late(last(&chat), alice, send(bob, "hi"));
    let id = MessageId(request(alice.client, 2));
    assert_eq!(outcome.reply, Some(Reply::Sent { message: id, unix_ms: 5 }));
    assert_eq!(outcome.queued, Some((bob.id, id)));
    let message = chat.state.message(id).unwrap();
    assert_eq!((message.unix_ms, message.late, message.cursor), (5, true, last(&chat).0));
}

#[test]
fn a_command_that_both_sides_have_is_applied_once() {
    let (mut chat, alice, bob) = alice_and_bob();
    let fork = last(&chat);
    let sent = chat.ask(alice, send(bob, "hi"));
    let command = ClientCommand {
        request: request(alice.client, 2),
        acknowledged: RequestNumber(0),
        account: alice.id,
        command: send(bob, "hi"),
    };
    let again = chat.rebase(fork, 5, &command);
    assert_eq!((again.reply, again.queued), (sent.reply, None));
    assert_eq!(chat.waiting(bob), ["alice>bob hi"]);
    assert!(!chat.state.message(MessageId(command.request)).unwrap().late);
}

#[test]
fn what_was_taken_or_deleted_there_is_so_here_though_its_command_found_nothing_here() {
    let (mut here, alice, bob) = alice_and_bob();
    let kept = here.send(alice, bob, "shared");
    let (mut there, fork) = here.split();
    let sends = ["taken", "deleted"].map(|text| there.command(alice, send(bob, text)));
    for command in &sends {
        there.apply(&Operation::Command(command.clone()));
    }
    let [taken, deleted] = sends.each_ref().map(|command| MessageId(command.request));
    // Bob asks there, is cut off before the answer, and asks here under the same numbers.
    let commands = [
        Command::Acknowledge { messages: vec![taken, kept] },
        Command::Delete { messages: vec![deleted, kept] },
    ];
    let commands = commands.map(|command| there.command(bob, command));
    for command in &commands {
        there.apply(&Operation::Command(command.clone()));
        here.apply(&Operation::Command(command.clone()));
    }
    for command in sends.iter().chain(&commands) {
        here.rebase(fork, 5, command);
    }
    assert_eq!(here.history(bob, "alice"), ["!alice>bob taken"]);
}

#[test]
fn a_command_is_deduplicated_by_its_own_id_though_later_numbers_are_known() {
    let (mut chat, alice, bob) = alice_and_bob();
    let fork = last(&chat);
    chat.ask_as(alice.client, 900, alice.id, send(bob, "second"));
    let command = |number| ClientCommand {
        request: request(alice.client, number),
        acknowledged: RequestNumber(899),
        account: alice.id,
        command: send(bob, "first"),
    };
    for _ in 0..3 {
        chat.rebase(fork, 5, &command(7));
    }
    assert_eq!(chat.waiting(bob), ["alice>bob second", "alice>bob first"]);
    let known = chat.state.known(request(alice.client, 7));
    assert_eq!(known, Known::Forgotten, "the client has that reply");
}

/// The client may have heard this, or that.
#[test]
fn what_was_refused_here_and_carried_out_there_is_a_conflict_once() {
    let (mut here, alice, bob) = alice_and_bob();
    let (mut there, fork) = here.split();
    let hello = here.command(alice, send(bob, "hello"));
    let register_carol = ClientCommand {
        request: request(ClientId(3), 1),
        acknowledged: RequestNumber(0),
        account: AccountId(request(ClientId(3), 1)),
        command: register("carol"),
    };
    let logout = here.command(alice, Command::Logout { everywhere: true });
    here.ask(alice, Command::Logout { everywhere: true });
    here.register(4, "carol");
    for command in [&hello, &register_carol, &logout] {
        let refused = here.apply(&Operation::Command(command.clone())).reply;
        assert!(matches!(refused, Some(Reply::Refused(_))), "{refused:?}");
        let done = there.apply(&Operation::Command(command.clone())).reply;
        assert!(!matches!(done, Some(Reply::Refused(_))), "{done:?}");
    }
    here.log_in(5, alice.id);
    for _ in 0..2 {
        here.rebase(fork, 5, &hello);
        here.rebase(fork, 5, &register_carol);
        here.rebase(fork, 5, &logout);
    }
    assert!(here.state.session(ClientId(5)).is_none(), "the other side has ended all sessions");
    assert_eq!(here.waiting(bob), [""; 0]);
    assert_eq!(here.told(alice), ["refused: send of alice, bob: hello"]);
    let listed = here.state.conflicts(register_carol.account, 0, 0).conflicts;
    assert_eq!(listed.iter().map(|conflict| conflict.text.as_str()).collect::<Vec<_>>(), ["carol"]);
}

#[test]
fn a_retry_of_a_rebased_command_gets_its_reply() {
    let (mut chat, alice, bob) = alice_and_bob();
    let first = chat.ask_late(last(&chat), alice, send(bob, "hi")).reply;
    let retry = chat.ask_as(alice.client, 2, alice.id, send(bob, "hi"));
    assert_eq!((retry.reply, retry.queued), (first, None));
}

#[test]
fn sessions_window_and_full_mailboxes_do_not_stop_what_was_acknowledged_elsewhere() {
    let (mut chat, alice, bob) = alice_and_bob();
    for _ in 0..crate::config::MAILBOX_MESSAGES_MAX {
        let number = chat.next_number(bob.client);
        let request = request(bob.client, number);
        let acknowledged = RequestNumber(number - 1);
        let command = ClientCommand { request, acknowledged, account: bob.id, command: send(bob, "x") };
        let index = chat.state.index().next();
        chat.state.apply(index, 1, 1, &Operation::Command(command));
    }
    let fork = last(&chat);
    chat.ask(alice, Command::Logout { everywhere: true });
    assert!(chat.state.session(alice.client).is_none());
    let reply = chat.ask_late(fork, alice, send(bob, "hi")).reply;
    assert!(matches!(reply, Some(Reply::Sent { .. })));
    assert!(chat.state.session(alice.client).is_none());
    assert_eq!(chat.state.waiting_count(bob.id), crate::config::MAILBOX_MESSAGES_MAX as u64 + 1);
    let tables = checkpoint(&mut chat.state, 1000);
    restore(&chat.state, &tables);
}

#[test]
fn a_message_to_a_deleted_account_is_told_to_its_sender_with_its_text() {
    let (mut chat, alice, bob) = alice_and_bob();
    let fork = last(&chat);
    chat.delete_account(bob);
    let outcome = chat.ask_late(fork, alice, send(bob, "come at 8"));
    assert_eq!(outcome.reply, Some(refused(Refusal::Conflict)));
    assert_eq!(chat.told(alice), ["no_such_recipient: send of alice, [deleted]: come at 8"]);
}

#[test]
fn a_message_from_a_deleted_account_is_delivered_without_a_name() {
    let (mut chat, alice, bob) = alice_and_bob();
    let fork = last(&chat);
    chat.delete_account(alice);
    chat.ask_late(fork, alice, send(bob, "hi"));
    assert_eq!(chat.waiting(bob), ["[deleted]>bob hi"]);
    assert_eq!(chat.history(bob, "[deleted]"), ["[deleted]>bob hi"]);
    let tables = checkpoint(&mut chat.state, 10);
    assert_eq!(checkpoint(&mut restore(&chat.state, &tables), 3), tables);
}

#[test]
fn a_message_between_two_deleted_accounts_is_kept_for_who_looks_into_the_file() {
    let (mut chat, alice, bob) = alice_and_bob();
    let fork = last(&chat);
    chat.delete_account(alice);
    chat.delete_account(bob);
    chat.ask_late(fork, alice, send(bob, "hi"));
    let row = &checkpoint(&mut chat.state, 10)[6].1;
    assert!(std::str::from_utf8(row).unwrap().contains(",no_such_recipient,send,0000000000000001-3,5,"));
}

#[test]
fn of_two_accounts_with_one_name_the_earlier_keeps_it_and_the_later_is_told() {
    let mut chat = Chat::new();
    let fork = last(&chat);
    let here = chat.register(1, "Alice");
    let mut created = |client: u64, unix_ms| {
        let request = request(ClientId(client), 1);
        let command = ClientCommand {
            request,
            acknowledged: RequestNumber(0),
            account: AccountId(request),
            command: register("aLice"),
        };
        let reply = chat.rebase(fork, unix_ms, &command).reply;
        assert_eq!(reply, Some(Reply::Registered { account: AccountId(request) }));
        User { client: ClientId(client), id: AccountId(request) }
    };
    let later = created(2, u64::MAX);
    let earlier = created(3, 5);
    let same_time = created(4, 5);
    let name = |user: User| chat.state.account(user.id).unwrap().name.clone();
    assert_eq!([here, later, earlier, same_time].map(name), ["Alice~3", "aLice~2", "aLice", "aLice~4"]);
    assert_eq!(chat.told(here)[1..], ["renamed: register of Alice~3, aLice: Alice~3"]);
    assert_eq!(chat.told(later), ["renamed: register of aLice~2, Alice~3: aLice~2"]);
    assert_eq!(chat.told(earlier).len(), 2);
    assert!(chat.state.session(later.client).is_some());
    let tables = checkpoint(&mut chat.state, 10);
    assert_eq!(checkpoint(&mut restore(&chat.state, &tables), 3), tables);
}

#[test]
fn messages_follow_the_account_not_the_name() {
    let (mut chat, alice, _) = alice_and_bob();
    let (mut other, fork) = chat.split();
    let carol_here = chat.register(3, "carol");
    chat.send(alice, carol_here, "to the one here");
    let carol_there = other.register(4, "carol");
    let request = request(carol_there.client, 1);
    let command = ClientCommand {
        request,
        acknowledged: RequestNumber(0),
        account: carol_there.id,
        command: register("carol"),
    };
    chat.rebase(fork, 5, &command);
    chat.ask_late(fork, alice, send(carol_there, "to the one there"));
    assert_eq!(chat.waiting(carol_here), ["alice>carol~2 to the one here"]);
    assert_eq!(chat.waiting(carol_there), ["alice>carol to the one there"]);
}

#[test]
fn deletes_of_messages_win_whoever_has_gone_meanwhile() {
    let (mut chat, alice, bob) = alice_and_bob();
    let id = chat.send(alice, bob, "hi");
    let kept = chat.send(alice, bob, "there");
    chat.acknowledge(bob, &[id, kept]);
    let fork = last(&chat);
    chat.delete_account(alice);
    chat.ask_late(fork, alice, Command::Delete { messages: vec![id] });
    assert_eq!(chat.history(bob, "[deleted]"), ["![deleted]>bob there"]);
}

#[test]
fn an_account_that_was_quiet_here_is_deleted_and_one_that_was_active_stays() {
    let (mut chat, alice, bob) = alice_and_bob();
    let fork = last(&chat);
    chat.send(alice, bob, "waits");
    let reply = chat.ask_late(fork, bob, Command::DeleteAccount { checked: bob.id.0 }).reply;
    assert_eq!(reply, Some(Reply::AccountDeleted));
    assert_eq!(chat.state.account(bob.id), None);
    let reply = chat.ask_late(fork, alice, Command::DeleteAccount { checked: alice.id.0 }).reply;
    assert_eq!(reply, Some(refused(Refusal::Conflict)));
    assert_eq!(chat.told(alice), ["account_active: delete_account of alice, : "]);
}

#[test]
fn what_an_account_did_counts_though_its_session_has_ended_and_a_checkpoint_came_between() {
    let (mut chat, alice, bob) = alice_and_bob();
    let fork = last(&chat);
    chat.ask(alice, Command::Logout { everywhere: false });
    let tables = checkpoint(&mut chat.state, 10);
    chat.state = restore(&chat.state, &tables);
    chat.ask_late(fork, alice, Command::DeleteAccount { checked: alice.id.0 });
    assert!(chat.state.account(alice.id).is_some());
    let fork = last(&chat);
    chat.ask_late(fork, alice, send(bob, "of the other side: no activity here"));
    chat.ask_late(fork, alice, Command::DeleteAccount { checked: alice.id.0 });
    assert_eq!(chat.state.account(alice.id), None);
}

#[test]
fn passwords_changed_on_both_sides_stay_as_they_are_here_however_often_they_changed_there() {
    let (mut chat, alice, _) = alice_and_bob();
    let fork = last(&chat);
    let change = |checked, password: &str| Command::ChangePassword { checked, password: password.into() };
    chat.ask(alice, change(alice.id.0, "here"));
    let there = |number| request(alice.client, number);
    chat.ask_late(fork, alice, change(alice.id.0, "there 1"));
    chat.ask_late(fork, alice, change(there(3), "there 2"));
    chat.ask_late(fork, alice, change(there(4), "there 3"));
    assert_eq!(chat.state.account(alice.id).unwrap().password, "here");
    assert_eq!(chat.told(alice), ["password_changed: change_password of alice, : "; 3]);
}

#[test]
fn passwords_changed_there_only_end_as_they_ended_there() {
    let (mut chat, alice, _) = alice_and_bob();
    let fork = last(&chat);
    let change = |checked, password: &str| Command::ChangePassword { checked, password: password.into() };
    chat.ask_late(fork, alice, change(alice.id.0, "there 1"));
    chat.ask_late(fork, alice, change(request(alice.client, 2), "there 2"));
    let account = chat.state.account(alice.id).unwrap();
    assert_eq!((account.password.as_str(), account.password_set), ("there 2", request(alice.client, 3)));
    assert!(chat.told(alice).is_empty());
}

#[test]
fn a_login_of_the_other_side_can_go_on_here() {
    let (mut chat, alice, bob) = alice_and_bob();
    let phone = User { client: ClientId(9), id: alice.id };
    let login = Command::Login { checked: alice.id.0, token: [2; 32] };
    let reply = chat.ask_late(last(&chat), phone, login.clone()).reply;
    assert_eq!(reply, Some(Reply::LoggedIn { account: alice.id, waiting: 0 }));
    chat.send(phone, bob, "from the phone");
    let taken = User { client: bob.client, id: alice.id };
    assert_eq!(chat.ask_late(last(&chat), taken, login).reply, Some(refused(Refusal::Conflict)));
    assert_eq!(chat.told(alice), ["client_id_taken: login of alice, : "]);
}

#[test]
fn a_logout_of_the_other_side_ends_the_session_unless_its_client_has_logged_in_since() {
    let (mut chat, alice, bob) = alice_and_bob();
    let fork = last(&chat);
    let logout = Command::Logout { everywhere: false };
    let outcome = chat.ask_late(fork, alice, logout.clone());
    assert_eq!((outcome.reply, outcome.ended), (Some(Reply::LoggedOut), vec![alice.client]));
    assert_eq!(chat.ask_late(fork, alice, logout.clone()).reply, Some(Reply::LoggedOut), "it is no conflict");
    let command = |number| ClientCommand {
        request: request(bob.client, number),
        acknowledged: RequestNumber(0),
        account: bob.id,
        command: logout.clone(),
    };
    chat.ask_as(bob.client, 8, bob.id, Command::Login { checked: bob.id.0, token: [2; 32] });
    chat.rebase(fork, 5, &command(7));
    assert!(chat.state.session(bob.client).is_some());
    chat.rebase(fork, 5, &command(9));
    assert!(chat.state.session(bob.client).is_none());
}

#[test]
fn what_parted_before_the_known_ids_is_never_applied_and_never_dropped() {
    let (mut chat, alice, bob) = alice_and_bob();
    let generation = super::super::applied::GENERATION_ENTRIES;
    let index = LogIndex(generation * 9 - 1);
    chat.state.index = index;
    chat.apply(&Operation::Closed);
    let from = chat.state.applied_from();
    assert_eq!(from, LogIndex(generation * 5));
    chat.ask_late(LogIndex(from.0 - 2), alice, send(bob, "too old"));
    assert_eq!(chat.told(bob), ["undecidable: send of alice, bob: too old"]);
    assert_eq!(chat.conflicts(bob), chat.conflicts(alice));
    chat.ask_late(LogIndex(from.0 - 1), alice, send(bob, "just in time"));
    assert_eq!(chat.waiting(bob), ["alice>bob just in time"]);
}

#[test]
fn conflicts_come_in_pages_above_a_cursor() {
    let (mut chat, alice, bob) = alice_and_bob();
    let fork = last(&chat);
    chat.delete_account(bob);
    for text in ["a", "b", "c"] {
        chat.ask_late(fork, alice, send(bob, text));
    }
    let page = chat.state.conflicts(alice.id, 0, 2);
    assert_eq!((page.conflicts.len(), page.more), (2, true));
    let rest = chat.state.conflicts(alice.id, page.conflicts[1].cursor, 2);
    assert_eq!((rest.conflicts[0].text.as_str(), rest.conflicts.len(), rest.more), ("c", 1, false));
    let after = rest.conflicts[0].cursor;
    assert!(chat.state.conflicts(alice.id, after, 0).conflicts.is_empty());
    for _ in 0..9 {
        chat.ask_late(fork, alice, send(bob, &"x".repeat(8192)));
    }
    let page = chat.state.conflicts(alice.id, after, 0);
    assert_eq!((page.conflicts.len(), page.more), (5, true), "a page fits into a frame");
}
