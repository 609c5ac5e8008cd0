//! Pages of names and messages.

use super::*;
use crate::config::{LIST_SCAN_MAX, PAGE_BYTES_MAX, PAGE_DEFAULT, PAGE_MAX, TEXT_BYTES_MAX};

fn chat_with(names: &[&str]) -> Chat {
    let mut chat = Chat::new();
    for (client, name) in names.iter().enumerate() {
        chat.register(client as u64 + 1, name);
    }
    chat
}

#[test]
fn a_listing_is_in_the_order_of_lower_case_names_and_shows_them_as_typed() {
    let chat = chat_with(&["bob", "Alice", "Carl", "alan"]);
    let page = chat.state.list("", "", 0);
    assert_eq!((page.names, page.next), (["alan", "Alice", "bob", "Carl"].map(String::from).to_vec(), None));
    assert_eq!(chat.state.list("AL*", "", 0).names, ["alan", "Alice"]);
    assert_eq!(chat.state.list("?o?", "", 0).names, ["bob"]);
    assert_eq!(chat.state.list("*l*", "alice", 0).names, ["Carl"]);
    assert_eq!(chat.state.list("bob", "", 0).names, ["bob"]);
    assert!(chat.state.list("a*", "b", 0).names.is_empty());
    assert!(chat.state.list("é*", "", 0).names.is_empty());
    assert!(chat.state.list(&"?".repeat(60_000), "", 0).names.is_empty());
}

#[test]
fn a_listing_goes_on_where_the_page_before_ended() {
    let chat = chat_with(&["A", "b", "C", "d", "e"]);
    let mut names = Vec::new();
    let mut after = String::new();
    loop {
        let page = chat.state.list("*", &after, 2);
        assert!(page.names.len() <= 2);
        names.extend(page.names);
        let Some(next) = page.next else { break };
        after = next;
    }
    assert_eq!(names.join(""), "AbCde");
}

#[test]
fn a_page_of_a_listing_looks_at_a_bounded_number_of_names() {
    let mut state = State::new();
    for client in 1..=LIST_SCAN_MAX as u64 + 2 {
        let id = request(ClientId(client), 1);
        let command = ClientCommand {
            request: id,
            acknowledged: RequestNumber(0),
            account: AccountId(id),
            command: register(&format!("u{client:06}")),
        };
        state.apply(state.index().next(), 0, 0, &Operation::Command(command));
    }
    let last = format!("*{}", LIST_SCAN_MAX + 2);
    let page = state.list(&last, "", 0);
    assert!(page.names.is_empty());
    let page = state.list(&last, &page.next.expect("two names were not looked at"), 0);
    assert_eq!((page.names.len(), page.next), (1, None));
    let page = state.list("", "", 100_000);
    assert_eq!(page.names.len(), PAGE_MAX);
}

#[test]
fn a_mailbox_is_read_upwards_and_a_history_downwards() {
    let mut chat = chat_with(&["alice", "bob"]);
    let [alice, bob] =
        [1, 2].map(|client| User { client: ClientId(client), id: AccountId(request(ClientId(client), 1)) });
    for n in 0..7 {
        let (from, to) = if n % 2 == 0 { (alice, bob) } else { (bob, alice) };
        chat.send(from, to, &n.to_string());
    }
    let page = chat.state.waiting(bob.id, 0, 3);
    assert_eq!((texts(&page.messages).len(), page.more), (3, true));
    let page = chat.state.waiting(bob.id, page.messages[2].cursor, 3);
    assert_eq!((texts(&page.messages), page.more), (vec!["alice>bob 6".to_owned()], false));

    let page = chat.state.history(alice.id, "bob", 0, 4).unwrap();
    let text = |page: &super::super::command::MessagePage| -> String {
        page.messages.iter().map(|m| m.text.as_str()).collect()
    };
    assert_eq!((text(&page).as_str(), page.more), ("3456", true));
    let page = chat.state.history(alice.id, "bob", page.messages[0].cursor, 4).unwrap();
    assert_eq!((text(&page).as_str(), page.more), ("012", false));
    let page = chat.state.history(alice.id, "bob", page.messages[0].cursor, 4).unwrap();
    assert_eq!((text(&page).as_str(), page.more), ("", false));
    assert_eq!(chat.state.history(alice.id, "carol", 0, 4), None);
    assert_eq!(chat.state.waiting(bob.id, u64::MAX, 4).messages, []);
}

#[test]
fn a_page_is_bounded_in_messages_and_in_bytes() {
    let mut chat = chat_with(&["alice", "bob"]);
    let [alice, bob] =
        [1, 2].map(|client| User { client: ClientId(client), id: AccountId(request(ClientId(client), 1)) });
    for _ in 0..PAGE_MAX + 1 {
        chat.send(alice, bob, "x");
    }
    for (limit, expected) in [(0, PAGE_DEFAULT), (usize::MAX, PAGE_MAX), (1, 1)] {
        let page = chat.state.waiting(bob.id, 0, limit);
        assert_eq!((page.messages.len(), page.more), (expected, true));
    }
    for _ in 0..10 {
        chat.send(bob, alice, &"y".repeat(TEXT_BYTES_MAX));
    }
    let page = chat.state.waiting(alice.id, 0, 0);
    let bytes: usize = page.messages.iter().map(|m| m.text.len()).sum();
    assert!(page.more && bytes <= PAGE_BYTES_MAX && bytes > PAGE_BYTES_MAX - 2 * TEXT_BYTES_MAX);
}
