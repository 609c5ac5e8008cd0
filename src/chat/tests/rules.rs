//! One test for each rule of a command.

use super::super::Known;
use super::*;
use crate::config::{
    MAILBOX_MESSAGES_MAX, REQUEST_WINDOW, SESSIONS_EXPIRED_AT_ONCE_MAX, SESSIONS_PER_ACCOUNT_MAX,
};

#[test]
fn a_new_account_is_named_after_its_request_and_logged_in() {
    let mut chat = Chat::new();
    let alice = chat.register(1, "Alice");
    assert_eq!(alice.id, AccountId(request(ClientId(1), 1)));
    let account = chat.state.account(alice.id).unwrap();
    assert_eq!((account.name.as_str(), account.password_set), ("Alice", alice.id.0));
    assert_eq!(account.created_unix_ms, chat.unix_ms);
    let session = chat.state.session(alice.client).unwrap();
    assert_eq!((session.account, session.token), (alice.id, [1; 32]));
}

#[test]
fn a_name_is_unique_without_case() {
    let mut chat = Chat::new();
    let alice = chat.register(1, "Alice");
    let client = ClientId(2);
    let outcome = chat.ask_as(client, 1, AccountId(request(client, 1)), register("aLICE"));
    assert_eq!(outcome.reply, Some(refused(Refusal::NameTaken)));
    assert_eq!(chat.state.account_named("ALICE"), Some(alice.id));
    assert_eq!(chat.state.session(client), None);
}

#[test]
fn a_client_id_belongs_to_the_account_that_used_it_first() {
    let mut chat = Chat::new();
    let alice = chat.register(1, "alice");
    let bob = chat.register(2, "bob");
    let id = AccountId(request(alice.client, 9));
    let reply = chat.ask_as(alice.client, 9, id, register("carol")).reply;
    assert_eq!(reply, Some(refused(Refusal::ClientIdTaken)));
    let (_, outcome) = chat.log_in(1, bob.id);
    assert_eq!(outcome.reply, Some(refused(Refusal::ClientIdTaken)));
    // Neither attempt left anything in alice's session.
    assert_eq!(chat.state.known(request(alice.client, 9)), Known::New);
}

#[test]
fn an_account_id_that_messages_still_name_does_not_come_back() {
    let mut chat = Chat::new();
    let (alice, bob) = (chat.register(1, "alice"), chat.register(2, "bob"));
    chat.send(alice, bob, "hi");
    chat.delete_account(alice);
    let reply = chat.ask_as(alice.client, 1, alice.id, register("alice")).reply;
    assert_eq!(reply, Some(refused(Refusal::SessionExpired)));
    assert_eq!(chat.history(bob, "[deleted]"), ["[deleted]>bob hi"]);
}

#[test]
fn a_register_that_is_retried_after_its_account_was_deleted_creates_no_other() {
    let mut chat = Chat::new();
    let alice = chat.register(1, "alice");
    let (phone, _) = chat.log_in(2, alice.id);
    chat.delete_account(phone);
    let again = |chat: &mut Chat| chat.ask_as(alice.client, 1, alice.id, register("alice")).reply;
    assert_eq!(again(&mut chat), Some(refused(Refusal::SessionExpired)));
    assert_eq!(chat.state.account_named("alice"), None);
    let tables = checkpoint(&mut chat.state, 3);
    chat.state = restore(&chat.state, &tables);
    assert_eq!(again(&mut chat), Some(refused(Refusal::SessionExpired)), "from a checkpoint too");
    let id = AccountId(request(alice.client, 2));
    assert_eq!(
        chat.ask_as(alice.client, 2, id, register("alice")).reply,
        Some(Reply::Registered { account: id }),
        "another request of the same client is another account"
    );
}

#[test]
fn a_login_says_how_much_waits_and_takes_the_new_token() {
    let mut chat = Chat::new();
    let (alice, bob) = (chat.register(1, "alice"), chat.register(2, "bob"));
    chat.send(alice, bob, "one");
    chat.send(alice, bob, "two");
    let (_, outcome) = chat.log_in(2, bob.id);
    assert_eq!(outcome.reply, Some(Reply::LoggedIn { account: bob.id, waiting: 2 }));
    assert_eq!(chat.state.session(bob.client).unwrap().token, [2; 32]);
    // The session is the same one: it still knows the registration.
    let known = chat.state.known(bob.id.0);
    assert_eq!(known, Known::Applied(Reply::Registered { account: bob.id }));
}

#[test]
fn a_login_with_a_password_that_was_replaced_meanwhile_is_refused() {
    let mut chat = Chat::new();
    let alice = chat.register(1, "alice");
    let change = Command::ChangePassword { checked: alice.id.0, password: "$argon2id$2".into() };
    assert_eq!(chat.reply(alice, change.clone()), Reply::PasswordChanged);
    assert_eq!(chat.state.account(alice.id).unwrap().password, "$argon2id$2");
    let login = Command::Login { checked: alice.id.0, token: [0; 32] };
    let reply = chat.ask_as(ClientId(5), 1, alice.id, login).reply;
    assert_eq!(reply, Some(refused(Refusal::PasswordChanged)));
    assert_eq!(chat.reply(alice, change), refused(Refusal::PasswordChanged));
    let delete = Command::DeleteAccount { checked: alice.id.0 };
    assert_eq!(chat.reply(alice, delete), refused(Refusal::PasswordChanged));
    assert_ne!(chat.state.account(alice.id).unwrap().password_set, alice.id.0);
}

#[test]
fn a_login_to_an_account_that_is_gone_is_refused() {
    let mut chat = Chat::new();
    let alice = chat.register(1, "alice");
    chat.delete_account(alice);
    assert_eq!(chat.log_in(2, alice.id).1.reply, Some(refused(Refusal::NoSuchAccount)));
}

#[test]
fn one_session_too_many_ends_the_one_not_used_for_longest() {
    let mut chat = Chat::new();
    let alice = chat.register(1, "alice");
    for client in 2..=SESSIONS_PER_ACCOUNT_MAX as u64 {
        assert_eq!(chat.log_in(client, alice.id).1.ended, []);
    }
    chat.ask(alice, Command::Acknowledge { messages: vec![] });
    let (_, outcome) = chat.log_in(100, alice.id);
    assert_eq!(outcome.ended, [ClientId(2)]);
    assert!(chat.state.session(alice.client).is_some());
    assert_eq!(chat.state.session(ClientId(2)), None);
}

#[test]
fn a_command_without_a_session_of_its_account_is_refused() {
    let mut chat = Chat::new();
    let (alice, bob) = (chat.register(1, "alice"), chat.register(2, "bob"));
    let stranger = User { client: ClientId(9), id: alice.id };
    let impostor = User { client: bob.client, id: alice.id };
    for user in [stranger, impostor] {
        for command in [
            send(bob, "hi"),
            Command::Logout { everywhere: true },
            Command::DeleteAccount { checked: alice.id.0 },
            Command::ChangePassword { checked: alice.id.0, password: String::new() },
            Command::Acknowledge { messages: vec![] },
            Command::Delete { messages: vec![] },
        ] {
            assert_eq!(chat.reply(user, command), refused(Refusal::SessionExpired));
        }
    }
    assert!(chat.waiting(bob).is_empty());
}

#[test]
fn a_logout_ends_this_session_or_all() {
    let mut chat = Chat::new();
    let alice = chat.register(1, "alice");
    let (second, _) = chat.log_in(2, alice.id);
    chat.log_in(3, alice.id);
    let outcome = chat.ask(alice, Command::Logout { everywhere: false });
    assert_eq!((outcome.reply.unwrap(), outcome.ended), (Reply::LoggedOut, vec![ClientId(1)]));
    let outcome = chat.ask(second, Command::Logout { everywhere: true });
    assert_eq!(outcome.ended, [ClientId(2), ClientId(3)]);
    assert_eq!(chat.reply(second, send(alice, "hi")), refused(Refusal::SessionExpired));
}

#[test]
fn a_new_password_ends_all_other_sessions() {
    let mut chat = Chat::new();
    let alice = chat.register(1, "alice");
    chat.log_in(2, alice.id);
    let change = Command::ChangePassword { checked: alice.id.0, password: "new".into() };
    let outcome = chat.ask(alice, change);
    assert_eq!(outcome.ended, [ClientId(2)]);
    assert!(chat.state.session(alice.client).is_some());
}

#[test]
fn a_message_waits_for_its_recipient_until_acknowledged() {
    let mut chat = Chat::new();
    let (alice, bob) = (chat.register(1, "alice"), chat.register(2, "bob"));
    let outcome = chat.ask(alice, send(bob, "hi"));
    let id = MessageId(request(alice.client, 2));
    assert_eq!(outcome.reply, Some(Reply::Sent { message: id, unix_ms: chat.unix_ms }));
    assert_eq!(outcome.queued, Some((bob.id, id)));
    let view = chat.state.message(id).unwrap();
    assert_eq!((view.cursor, view.unix_ms, view.delivered), (last(&chat).0, chat.unix_ms, false));
    assert_eq!(chat.waiting(bob), ["alice>bob hi"]);
    assert_eq!(chat.acknowledge(alice, &[id]), 0, "only the recipient can");
    let unknown = MessageId(request(ClientId(77), 1));
    assert_eq!(chat.acknowledge(bob, &[id, unknown, id]), 1);
    assert_eq!(chat.acknowledge(bob, &[id]), 0);
    assert_eq!(chat.state.waiting_count(bob.id), 0);
    assert_eq!(chat.history(alice, "bob"), ["!alice>bob hi"]);
    assert_eq!(chat.history(bob, "ALICE"), ["!alice>bob hi"]);
}

#[test]
fn a_message_to_nobody_is_refused() {
    let mut chat = Chat::new();
    let (alice, bob) = (chat.register(1, "alice"), chat.register(2, "bob"));
    chat.delete_account(bob);
    assert_eq!(chat.reply(alice, send(bob, "hi")), refused(Refusal::NoSuchAccount));
}

#[test]
fn a_message_to_oneself_waits_and_shows_once() {
    let mut chat = Chat::new();
    let alice = chat.register(1, "alice");
    let id = chat.send(alice, alice, "milk");
    assert_eq!(chat.waiting(alice), ["alice>alice milk"]);
    chat.acknowledge(alice, &[id]);
    assert_eq!(chat.history(alice, "alice"), ["!alice>alice milk"]);
    chat.delete_account(alice);
    assert_eq!(chat.state.message(id), None);
}

#[test]
fn a_full_mailbox_refuses_more_until_something_is_acknowledged() {
    let mut chat = Chat::new();
    let (alice, bob) = (chat.register(1, "alice"), chat.register(2, "bob"));
    let mut first = None;
    for number in 2..MAILBOX_MESSAGES_MAX as u64 + 2 {
        let id = request(alice.client, number);
        first.get_or_insert(MessageId(id));
        let command = ClientCommand {
            request: id,
            acknowledged: RequestNumber(0),
            account: alice.id,
            command: send(bob, "x"),
        };
        let index = chat.state.index().next();
        chat.state.apply(index, 0, 0, &Operation::Command(command));
    }
    chat.numbers[1] = MAILBOX_MESSAGES_MAX as u64 + 1;
    assert_eq!(chat.reply(alice, send(bob, "y")), refused(Refusal::MailboxFull));
    assert_eq!(chat.state.waiting_count(bob.id), MAILBOX_MESSAGES_MAX as u64);
    chat.acknowledge(bob, &[first.unwrap()]);
    chat.send(alice, bob, "z");
}

#[test]
fn a_deleted_message_is_gone_for_both_sides() {
    let mut chat = Chat::new();
    let (alice, bob) = (chat.register(1, "alice"), chat.register(2, "bob"));
    let carol = chat.register(3, "carol");
    let (one, two) = (chat.send(alice, bob, "one"), chat.send(bob, alice, "two"));
    let delete = |messages: &[MessageId]| Command::Delete { messages: messages.to_vec() };
    assert_eq!(chat.reply(carol, delete(&[one, two])), refused(Refusal::NoSuchMessage));
    assert_eq!(chat.reply(alice, delete(&[one, two, one])), Reply::Deleted { count: 2 });
    assert_eq!(chat.reply(bob, delete(&[one])), refused(Refusal::NoSuchMessage));
    assert!(chat.waiting(bob).is_empty() && chat.history(bob, "alice").is_empty());
    assert_eq!(chat.state.message(one), None);
}

#[test]
fn a_deleted_account_takes_its_waiting_mail_and_leaves_what_it_sent() {
    let mut chat = Chat::new();
    let (alice, bob) = (chat.register(1, "alice"), chat.register(2, "bob"));
    let read = chat.send(bob, alice, "read");
    chat.send(bob, alice, "unread");
    chat.send(alice, bob, "bye");
    chat.acknowledge(alice, &[read]);
    let outcome = chat.delete_account(alice);
    assert_eq!(outcome.ended, [alice.client]);
    assert_eq!(chat.state.account_named("alice"), None);
    assert_eq!(chat.waiting(bob), ["[deleted]>bob bye"]);
    assert_eq!(chat.history(bob, "[deleted]"), ["!bob>[deleted] read", "[deleted]>bob bye"]);
    assert_eq!(chat.state.history(bob.id, "alice", 0, 0), None);
}

#[test]
fn a_name_that_became_free_inherits_nothing() {
    let mut chat = Chat::new();
    let (alice, bob) = (chat.register(1, "alice"), chat.register(2, "bob"));
    chat.send(alice, bob, "old");
    chat.delete_account(alice);
    let again = chat.register(3, "Alice");
    assert_ne!(again.id, alice.id);
    assert!(chat.history(bob, "alice").is_empty() && chat.history(again, "bob").is_empty());
    chat.send(again, bob, "new");
    assert_eq!(chat.history(bob, "alice"), ["Alice>bob new"]);
    assert_eq!(chat.history(bob, "[deleted]"), ["[deleted]>bob old"]);
}

#[test]
fn mail_from_a_deleted_account_goes_with_its_recipient_whether_read_or_not() {
    let mut chat = Chat::new();
    let (alice, bob) = (chat.register(1, "alice"), chat.register(2, "bob"));
    let (read, unread) = (chat.send(alice, bob, "read"), chat.send(alice, bob, "unread"));
    chat.acknowledge(bob, &[read]);
    chat.delete_account(alice);
    chat.delete_account(bob);
    assert_eq!((chat.state.message(read), chat.state.message(unread)), (None, None));
}

#[test]
fn a_conversation_goes_with_its_second_account() {
    let mut chat = Chat::new();
    let (alice, bob) = (chat.register(1, "alice"), chat.register(2, "bob"));
    let carol = chat.register(3, "carol");
    let gone = chat.send(alice, bob, "between two");
    let kept = chat.send(carol, bob, "from carol");
    chat.acknowledge(bob, &[gone, kept]);
    chat.delete_account(alice);
    assert!(chat.state.message(gone).is_some());
    chat.delete_account(bob);
    assert_eq!(chat.state.message(gone), None);
    assert_eq!(chat.history(carol, "[deleted]"), ["!carol>[deleted] from carol"]);
}

#[test]
fn history_with_deleted_accounts_merges_them_in_order() {
    let mut chat = Chat::new();
    let [alice, bob, carol] = [(1, "alice"), (2, "bob"), (3, "carol")].map(|(c, n)| chat.register(c, n));
    chat.send(alice, carol, "1");
    chat.send(bob, carol, "2");
    chat.send(alice, carol, "3");
    chat.delete_account(bob);
    chat.delete_account(alice);
    let expected = ["[deleted]>carol 1", "[deleted]>carol 2", "[deleted]>carol 3"];
    assert_eq!(chat.history(carol, "[deleted]"), expected);
}

#[test]
fn a_request_that_was_applied_is_answered_again_and_changes_nothing() {
    let mut chat = Chat::new();
    let (alice, bob) = (chat.register(1, "alice"), chat.register(2, "bob"));
    let first = chat.ask(alice, send(bob, "hi"));
    let again = chat.ask_as(alice.client, 2, alice.id, send(bob, "hi"));
    assert_eq!((again.reply, again.queued), (first.reply, None));
    assert_eq!(chat.waiting(bob).len(), 1);
    // A refusal is remembered too, although it would go well now.
    let carol = AccountId(request(ClientId(3), 1));
    let early = Command::Send { to: carol, text: "hi".into() };
    assert_eq!(chat.reply(alice, early.clone()), refused(Refusal::NoSuchAccount));
    chat.register(3, "carol");
    let again = chat.ask_as(alice.client, 3, alice.id, early).reply;
    assert_eq!(again, Some(refused(Refusal::NoSuchAccount)));
    // So are a registration and a login.
    let again = chat.ask_as(alice.client, 1, alice.id, register("alice")).reply;
    assert_eq!(again, Some(Reply::Registered { account: alice.id }));
}

#[test]
fn an_acknowledged_reply_is_forgotten_and_its_request_never_repeated() {
    let mut chat = Chat::new();
    let (alice, bob) = (chat.register(1, "alice"), chat.register(2, "bob"));
    chat.send(alice, bob, "hi");
    let command = ClientCommand {
        request: request(alice.client, 3),
        acknowledged: RequestNumber(2),
        account: alice.id,
        command: send(bob, "there"),
    };
    chat.apply(&Operation::Command(command));
    assert_eq!(chat.state.session(alice.client).unwrap().acknowledged, RequestNumber(2));
    assert_eq!(chat.state.known(request(alice.client, 2)), Known::Forgotten);
    assert!(matches!(chat.state.known(request(alice.client, 3)), Known::Applied(Reply::Sent { .. })));
    assert_eq!(chat.state.known(request(alice.client, 4)), Known::New);
    let again = chat.ask_as(alice.client, 2, alice.id, send(bob, "hi")).reply;
    assert_eq!(again, Some(refused(Refusal::SessionExpired)));
    assert_eq!(chat.waiting(bob).len(), 2);
}

#[test]
fn replies_further_back_than_the_window_are_forgotten() {
    let mut chat = Chat::new();
    let alice = chat.register(1, "alice");
    let nothing = || Command::Acknowledge { messages: vec![] };
    chat.ask_as(alice.client, 5, alice.id, nothing());
    chat.ask_as(alice.client, REQUEST_WINDOW + 4, alice.id, nothing());
    assert!(matches!(chat.state.known(request(alice.client, 5)), Known::Applied(_)));
    assert_eq!(chat.state.known(request(alice.client, 4)), Known::Forgotten);
    assert_eq!(chat.state.known(request(alice.client, 6)), Known::New);
    chat.ask_as(alice.client, REQUEST_WINDOW + 5, alice.id, nothing());
    assert_eq!(chat.state.known(request(alice.client, 5)), Known::Forgotten);
}

#[test]
fn a_request_without_a_number_of_its_own_is_not_stored_and_moves_no_window() {
    let mut chat = Chat::new();
    let alice = chat.register(1, "alice");
    let number = u64::from(u32::MAX) + 1;
    let nothing = || Command::Acknowledge { messages: vec![] };
    chat.ask_as(alice.client, number, alice.id, nothing());
    assert_eq!(chat.state.known(request(alice.client, number)), Known::New);
    assert_eq!(chat.state.session(alice.client).unwrap().acknowledged, RequestNumber(0));
    assert_eq!(chat.state.session(alice.client).unwrap().last_used_unix_ms, chat.unix_ms);
}

#[test]
fn what_was_asked_in_an_earlier_session_is_never_executed_again() {
    let mut chat = Chat::new();
    let (alice, bob) = (chat.register(1, "alice"), chat.register(2, "bob"));
    let id = chat.send(alice, bob, "once");
    chat.acknowledge(bob, &[id]);
    chat.reply(bob, Command::Delete { messages: vec![id] });
    chat.ask(alice, Command::Logout { everywhere: false });
    assert_eq!(chat.state.known(id.0), Known::New, "without a session nothing is known");
    chat.log_in(1, alice.id);
    assert_eq!(chat.state.known(id.0), Known::Forgotten);
    let again = chat.ask_as(alice.client, 2, alice.id, send(bob, "once")).reply;
    assert_eq!(again, Some(refused(Refusal::SessionExpired)));
    assert!(chat.waiting(bob).is_empty());
}

#[test]
fn a_message_id_that_is_in_use_is_not_given_to_another_message() {
    let mut chat = Chat::new();
    let (alice, bob) = (chat.register(1, "alice"), chat.register(2, "bob"));
    let id = chat.send(alice, bob, "alice's");
    chat.ask(alice, Command::Logout { everywhere: false });
    // Bob takes over alice's client id and numbers from the beginning.
    let bob_there = User { client: alice.client, id: bob.id };
    chat.numbers[1] = 0;
    chat.log_in(1, bob.id);
    assert_eq!(chat.reply(bob_there, send(bob, "bob's")), refused(Refusal::ClientIdTaken));
    assert_eq!(chat.state.message(id).unwrap().text, "alice's");
}

#[test]
fn sessions_unused_for_long_expire_by_an_entry() {
    let mut chat = Chat::new();
    let alice = chat.register(1, "alice");
    let then = chat.unix_ms;
    chat.unix_ms += DAY_MS;
    let bob = chat.register(2, "bob");
    assert!(!chat.state.has_sessions_unused_since(then));
    assert!(chat.state.has_sessions_unused_since(then + 1));
    let outcome = chat.apply(&Operation::Expire { before_unix_ms: then });
    assert_eq!(outcome.ended, []);
    let outcome = chat.apply(&Operation::Expire { before_unix_ms: then + 1 });
    assert_eq!((outcome.reply, outcome.ended), (None, vec![alice.client]));
    assert_eq!(chat.reply(alice, send(bob, "hi")), refused(Refusal::SessionExpired));
    assert_eq!(chat.state.known(alice.id.0), Known::New);
}

#[test]
fn one_entry_lets_only_so_many_sessions_expire_and_the_next_one_the_others() {
    let mut chat = Chat::new();
    let count = SESSIONS_EXPIRED_AT_ONCE_MAX + 1;
    let users: Vec<User> =
        (1..=count as u64).map(|client| chat.register(client, &format!("user-{client}"))).collect();
    let expire = Operation::Expire { before_unix_ms: chat.unix_ms + 1 };
    let ended = [chat.apply(&expire).ended, chat.apply(&expire).ended];
    assert_eq!(ended[0].len(), SESSIONS_EXPIRED_AT_ONCE_MAX);
    assert_eq!(ended.concat(), users.iter().map(|user| user.client).collect::<Vec<_>>());
}

#[test]
fn a_clock_that_goes_back_does_not_age_a_session() {
    let mut chat = Chat::new();
    let alice = chat.register(1, "alice");
    let then = chat.unix_ms;
    chat.unix_ms -= 500;
    chat.ask(alice, Command::Acknowledge { messages: vec![] });
    assert_eq!(chat.state.session(alice.client).unwrap().last_used_unix_ms, then);
}

#[test]
fn the_digest_depends_on_every_entry_and_every_reply() {
    let operation = Operation::Closed;
    let after = |chain, operation: &Operation| {
        let mut state = State::new();
        state.apply(LogIndex(1), 0, chain, operation);
        state.digest()
    };
    assert_eq!(after(1, &operation), after(1, &operation));
    assert_ne!(after(1, &operation), after(2, &operation));
    assert_ne!(after(1, &operation), State::new().digest());
    let command = |name: &str| {
        let id = request(ClientId(1), 1);
        let (acknowledged, account) = (RequestNumber(0), AccountId(id));
        Operation::Command(ClientCommand { request: id, acknowledged, account, command: register(name) })
    };
    // Only the reply differs here: the entry goes in by its chain.
    assert_ne!(after(1, &operation), after(1, &command("alice")));
}

#[test]
#[should_panic(expected = "entries are applied one after the other")]
fn an_entry_out_of_order_is_our_own_bug() {
    State::new().apply(LogIndex(2), 0, 0, &Operation::Closed);
}

#[test]
fn the_size_estimate_is_near_the_size_of_a_checkpoint() {
    let mut chat = Chat::new();
    let users: Vec<User> = (1..20).map(|client| chat.register(client, &format!("user{client}"))).collect();
    for n in 0..200 {
        chat.send(users[n % 19], users[n * 7 % 19], &"text ".repeat(n % 30));
    }
    let estimate = chat.state.bytes_estimate();
    let bytes: usize = checkpoint(&mut chat.state, 100).iter().map(|(_, rows)| rows.len()).sum();
    let bytes = bytes as u64;
    assert!(estimate > bytes * 2 / 3 && estimate < bytes * 3 / 2, "estimated {estimate}, took {bytes}");
}
