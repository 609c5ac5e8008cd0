//! What a checkpoint looks like, and what is wrong with a bad one.

use super::super::{InTurn, Restore, TableRow};
use super::*;
use crate::row::{Fields, RowWriter};

fn small_chat() -> Chat {
    let mut chat = Chat::new();
    let (alice, bob) = (chat.register(1, "alice"), chat.register(2, "bob"));
    let first = chat.send(alice, bob, "hi, \"bob\"\nsecond line");
    chat.send(bob, alice, "=1+1");
    chat.acknowledge(bob, &[first]);
    chat
}

/// The rows without checksums.
fn lines(rows: &[u8]) -> Vec<String> {
    let text = std::str::from_utf8(rows).unwrap();
    text.lines().map(|line| line[..line.len() - crate::row::CHECKSUM_BYTES].to_owned()).collect()
}

#[test]
fn a_checkpoint_is_readable_csv() {
    let mut chat = small_chat();
    let tables = checkpoint(&mut chat.state, 2);
    let rows: Vec<Vec<String>> = tables.iter().map(|(_, rows)| lines(rows)).collect();
    assert_eq!(
        rows[0],
        [
            "0000000000000001-1,alice,$argon2id$1,0000000000000001-1,1000001,0",
            "0000000000000002-1,bob,$argon2id$1,0000000000000002-1,1000002,0"
        ]
    );
    assert_eq!(rows[1], ["0000000000000002-2,4,0000000000000002-1,0000000000000001-1,1000004,,'=1+1"]);
    assert_eq!(
        rows[2],
        [
            "0000000000000001-2,3,0000000000000001-1,0000000000000002-1,1000003,,\"hi, \"\"bob\"\"\\nsecond line\""
        ]
    );
    let token = "01".repeat(32);
    assert_eq!(
        rows[3],
        [
            format!("0000000000000001,0000000000000001-1,{token},0,1000003,3"),
            format!("0000000000000002,0000000000000002-1,{token},0,1000005,5")
        ]
    );
    assert_eq!(
        rows[4],
        [
            "0000000000000001,1,registered,0000000000000001-1,",
            "0000000000000001,2,sent,0000000000000001-2,1000003",
            "0000000000000002,1,registered,0000000000000002-1,",
            "0000000000000002,2,sent,0000000000000002-2,1000004",
            "0000000000000002,3,acknowledged,,1"
        ]
    );
    assert_eq!(rows[5], ["ids,0,0000000000000001,1,2", "ids,0,0000000000000002,1,3"]);
    assert!(rows[6].is_empty());
}

#[test]
fn every_table_has_a_slice_even_without_rows() {
    let mut state = State::new();
    assert_eq!(state.next_slice(9), None, "no checkpoint is under way");
    state.begin_checkpoint();
    for table in Table::ALL {
        assert_eq!(state.next_slice(9), Some(Slice { table, rows: Vec::new(), count: 0 }));
    }
    assert_eq!(state.next_slice(9), None);
}

#[test]
fn a_slice_of_long_texts_has_fewer_rows() {
    let mut chat = Chat::new();
    let alice = chat.register(1, "alice");
    for _ in 0..100 {
        chat.send(alice, alice, &"x".repeat(8192));
    }
    chat.state.begin_checkpoint();
    let mut count = 0;
    while let Some(slice) = chat.state.next_slice(1024) {
        assert!(slice.rows.len() < 300_000);
        count += slice.count * u64::from(slice.table == Table::Queued);
    }
    assert_eq!(count, 100);
}

#[test]
fn an_abandoned_checkpoint_has_no_more_slices_and_the_next_starts_afresh() {
    let mut chat = small_chat();
    chat.state.begin_checkpoint();
    chat.state.next_slice(1);
    chat.state.abandon_checkpoint();
    assert_eq!(chat.state.next_slice(1), None);
    let expected = checkpoint(&mut chat.state, 1000);
    chat.state.begin_checkpoint();
    chat.state.next_slice(1);
    assert_eq!(checkpoint(&mut chat.state, 1), expected);
}

#[test]
fn a_handle_is_not_given_out_again_while_a_checkpoint_names_its_account() {
    let mut chat = Chat::new();
    let (alice, bob) = (chat.register(1, "alice"), chat.register(2, "bob"));
    let id = chat.send(alice, bob, "hi");
    chat.acknowledge(bob, &[id]);
    chat.delete_account(alice);
    let expected = checkpoint(&mut chat.state, 100);
    chat.state.begin_checkpoint();
    chat.reply(bob, Command::Delete { messages: vec![id] });
    chat.register(3, "carol");
    let mut tables: Vec<_> = Table::ALL.map(|table| (table, Vec::new())).to_vec();
    while let Some(slice) = chat.state.next_slice(1) {
        collect(&mut tables, &slice, 1);
    }
    assert_eq!(tables, expected);
}

/// Rows that are wrong, each with the error that says so.
#[test]
fn a_row_that_does_not_fit_is_refused_with_what_was_found_and_expected() {
    const A: &str = "0000000000000001-1";
    const B: &str = "0000000000000002-1";
    let token = "00".repeat(32);
    let user = |id: &str, name: &str| (Table::Users, format!("{id},{name},p,{A},0,0"));
    let message = |table, id: &str, order: u64, from: &str, to: &str| {
        (table, format!("{id},{order},{from},{to},0,,text"))
    };
    let session =
        |client: &str, account: &str| (Table::Sessions, format!("{client},{account},{token},4,0,0"));
    let applied = |row: &str| (Table::Applied, row.to_owned());
    let conflict = |row: &str| (Table::Conflicts, row.to_owned());
    let (alice, one) = (user(A, "alice"), session("0000000000000001", A));
    let queued = |id: &str, order, to: &str| message(Table::Queued, id, order, A, to);
    let cases = [
        (vec![user("x", "alice")], "found \"x\" in field 1, expected an account id"),
        (vec![alice.clone(), alice.clone()], "in field 1, expected an id above that of the row before"),
        (vec![user(A, "[deleted]")], "found \"[deleted]\" in field 2, expected a name of 1 to 32"),
        (vec![alice.clone(), queued("1-1", 1, A)], "found \"1-1\" in field 1, expected a message id"),
        (vec![alice.clone(), queued(B, 1, B)], "in field 4, expected the id of an account in user_table.csv"),
        (vec![alice.clone(), queued(B, 11, A)], "found \"11\" in field 2, expected an order up to"),
        (
            vec![alice.clone(), queued(A, 2, A), queued(B, 2, A)],
            "expected an order above that of the row before",
        ),
        (
            vec![alice.clone(), queued(A, 2, A), message(Table::Delivered, B, 2, A, A)],
            "expected an order that no queued message has",
        ),
        (vec![alice.clone(), message(Table::Delivered, A, 1, B, B)], "expected the sender or the recipient"),
        (vec![alice.clone(), session("0000000000000001", B)], "in field 2, expected the id of an account"),
        (vec![alice.clone(), session("1", A)], "found \"1\" in field 1, expected a client id of 16"),
        (vec![alice.clone(), one.clone(), one.clone()], "expected a client id above that of the row before"),
        (
            vec![alice.clone(), (Table::Replies, "0000000000000001,5,logged_out,,".into())],
            "expected the client id of a session in sessions.csv",
        ),
        (
            vec![alice.clone(), one.clone(), (Table::Replies, "0000000000000001,4,logged_out,,".into())],
            "found \"4\" in field 2, expected a 32-bit request number above",
        ),
        (
            vec![alice.clone(), one, (Table::Replies, "0000000000000001,5,shrugged,,".into())],
            "found \"shrugged\" in field 3, expected the keyword of a reply",
        ),
        (vec![user(A, "alice~1")], "found \"alice~1\" in field 2, expected a name of 1 to 32"),
        (vec![(Table::Users, format!("{A},alice,p,0,0,0"))], "expected the id of the request that set the"),
        (vec![alice, (Table::Queued, format!("{A},2,{A},{A},0,yes,text"))], "expected late or nothing"),
        (vec![applied("since,1,,,")], "found \"since\" in field 1, expected from, absent, ids or refused"),
        (vec![applied("from,11,,,")], "found \"11\" in field 2, expected an index up to the checkpoint's"),
        (
            vec![applied("absent,3,2,,"), applied("absent,3,2,,")],
            "expected a server above that of the row before",
        ),
        (vec![applied("ids,0,0000000000000001,3,2")], "expected a last number that is not below the first"),
        (vec![applied("ids,1,0000000000000001,2,2")], "expected a generation from that of the row before to"),
        (
            vec![applied("ids,0,0000000000000001,2,4"), applied("ids,0,0000000000000001,4,5")],
            "expected an id above those of the row before",
        ),
        (vec![conflict(&format!("11,renamed,send,{A},0,{A},,"))], "expected an order up to the checkpoint's"),
        (vec![conflict(&format!("1,odd,send,{A},0,{A},,"))], "found \"odd\" in field 2, expected the reason"),
        (vec![conflict(&format!("1,renamed,shout,{A},0,{A},,"))], "expected a command's keyword"),
    ];
    for (rows, expected) in cases {
        let mut restore = Restore::new(LogIndex(10), [0; 32]);
        let mut fields = Fields::new();
        let mut error = None;
        for (table, row) in &rows {
            assert_eq!(error, None, "only the last row of {rows:?} is wrong");
            fields.parse(row.as_bytes(), table.header().len()).unwrap();
            let parsed = TableRow::parse(*table, &fields);
            let added = parsed.and_then(|row| restore.add(vec![row]).map_err(|(_, error)| error));
            error = added.err().map(|error| error.to_string());
        }
        let error = error.unwrap_or_else(|| panic!("{rows:?} was taken"));
        assert!(error.contains(expected), "{error}\nshould contain\n{expected}");
    }
}

#[test]
fn more_sessions_than_an_account_may_have_are_refused_at_the_end() {
    let mut restore = Restore::new(LogIndex(10), [0; 32]);
    let mut fields = Fields::new();
    let mut take = |table: Table, row: &str| {
        fields.parse(row.as_bytes(), table.header().len()).unwrap();
        restore.add(vec![TableRow::parse(table, &fields).unwrap()]).unwrap();
    };
    take(Table::Users, "0000000000000001-1,alice,p,0000000000000001-1,0,0");
    for client in 1..=33 {
        let token = "00".repeat(32);
        take(Table::Sessions, &format!("{client:016x},0000000000000001-1,{token},0,0,0"));
    }
    let error = restore.finish(&InTurn).unwrap_err();
    assert_eq!(error.to_string(), "found 33 sessions of account 0000000000000001-1, expected at most 32");
}

#[test]
fn of_two_accounts_with_one_name_the_later_row_is_refused_at_the_end() {
    let mut restore = Restore::new(LogIndex(10), [0; 32]);
    let mut fields = Fields::new();
    let rows = ["1-1,alice", "1-2,Bob", "1-3,Alice", "1-4,bob"].map(|begin| {
        let row = format!("000000000000000{begin},p,0000000000000001-1,0,0");
        fields.parse(row.as_bytes(), Table::Users.header().len()).unwrap();
        TableRow::parse(Table::Users, &fields).unwrap()
    });
    restore.add(rows.into()).unwrap();
    let error = restore.finish(&InTurn).unwrap_err().to_string();
    assert_eq!(
        error,
        "row 3 of user_table.csv: found \"Alice\" in field 2, expected a name that no other account has"
    );
}

#[test]
fn of_two_messages_with_one_id_the_later_row_is_refused_at_the_end() {
    const A: &str = "0000000000000001-1";
    let later_row = |messages: [(Table, u64, &str); 4]| {
        let mut restore = Restore::new(LogIndex(10), [0; 32]);
        let mut fields = Fields::new();
        let mut take = |table: Table, row: &str| {
            fields.parse(row.as_bytes(), table.header().len()).unwrap();
            restore.add(vec![TableRow::parse(table, &fields).unwrap()]).unwrap();
        };
        take(Table::Users, &format!("{A},alice,p,{A},0,0"));
        for (table, order, number) in messages {
            take(table, &format!("0000000000000001-{number},{order},{A},{A},0,,text"));
        }
        let error = restore.finish(&InTurn).unwrap_err().to_string();
        let suffix = ": found \"0000000000000001-7\" in field 1, expected an id that no other message has";
        error.strip_suffix(suffix).unwrap_or_else(|| panic!("{error}")).to_owned()
    };
    let (queued, delivered) = (Table::Queued, Table::Delivered);
    assert_eq!(
        later_row([(queued, 2, "7"), (queued, 3, "9"), (queued, 5, "7"), (delivered, 4, "8")]),
        "row 3 of queued_messages.csv"
    );
    assert_eq!(
        later_row([(queued, 2, "7"), (queued, 3, "9"), (delivered, 4, "8"), (delivered, 5, "7")]),
        "row 2 of delivered_messages.csv"
    );
    assert_eq!(
        later_row([(queued, 6, "7"), (queued, 8, "9"), (delivered, 4, "7"), (delivered, 5, "8")]),
        "row 1 of delivered_messages.csv"
    );
}

#[test]
fn headers_match_their_rows() {
    let mut chat = small_chat();
    for (table, rows) in checkpoint(&mut chat.state, 7) {
        let mut header = RowWriter::new();
        table.header().iter().for_each(|column| header.plain(column));
        let mut all = header.row().to_vec();
        all.extend_from_slice(b",crc\n");
        all.extend_from_slice(&rows);
        let mut reader = csv::Reader::from_reader(&all[..]);
        assert!(reader.records().all(|record| record.unwrap().len() == table.header().len() + 1));
    }
}
