//! Storage in a real directory: modes, the lock, links, and files that any CSV reader loads.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)] // A test that can't go on has failed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use lastword::chat::State;
use lastword::chat::command::{ClientCommand, Command, Operation};
use lastword::message::{CheckpointResult, CheckpointStep, Entry, HardState, Position, ViewStart, Write};
use lastword::storage::{Disk, Opened, OsDisk, StorageError, open};
use lastword::types::{AccountId, ClientId, LogIndex, RequestId, RequestNumber, ServerId, ViewNumber};

fn servers() -> Vec<String> {
    vec!["127.0.0.1:1538".into()]
}

fn open_at(path: &Path) -> Result<Opened<OsDisk>, StorageError> {
    open(OsDisk::open(path)?, ServerId(1), &servers(), &mut |_| {})
}

fn register(after: Position, name: &str) -> Entry {
    let request = RequestId { client: ClientId(5), number: RequestNumber(after.index.0 + 1) };
    let command = Command::Register { name: name.into(), password: "$x".into(), token: [1; 32] };
    let account = AccountId(request);
    let command = ClientCommand { request, acknowledged: RequestNumber(0), account, command };
    let view = ViewNumber { counter: 1, proposer: ServerId(1) };
    Entry::new(after.index.next(), view, 1_700_000_000_000, Operation::Command(command), after.chain)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Writes a log of one account and a checkpoint of it.
fn fill(path: &Path) -> (Position, [u8; 32]) {
    let mut opened = open_at(path).unwrap();
    let hard = HardState { server: Some(ServerId(1)), servers: servers(), ..HardState::default() };
    opened.log.write(&Write::HardState(hard)).unwrap();
    let entry = Arc::new(register(Position::default(), "alice"));
    let position = entry.position();
    opened.log.write(&Write::Append(vec![Arc::clone(&entry)])).unwrap();
    opened.log.write(&Write::Commit(LogIndex(1))).unwrap();
    opened.log.sync().unwrap();
    let mut state = State::new();
    let _ = state.apply(entry.index, entry.unix_ms, entry.chain, &entry.operation);
    let (digest, views) = (state.digest(), vec![ViewStart { view: entry.view, start: LogIndex(1) }]);
    state.begin_checkpoint();
    let mut step = |step| match opened.checkpoints.step(step) {
        CheckpointResult::Ok | CheckpointResult::Finished { .. } => {}
        other => panic!("{other:?}"),
    };
    step(CheckpointStep::Begin { position, views, digest });
    while let Some(slice) = state.next_slice(10) {
        step(CheckpointStep::Rows(slice));
    }
    step(CheckpointStep::Finish);
    (position, digest)
}

#[test]
fn a_directory_is_private_survives_a_restart_and_shows_its_tables() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("data/1538");
    let (position, digest) = fill(&path);
    assert_eq!(mode(&path), 0o700);
    for file in
        ["server_log.csv", "user_table.csv", "queued_messages.csv", "checkpoints/current/checkpoint.csv"]
    {
        assert_eq!(mode(&path.join(file)), 0o600, "{file}");
        let mut reader = csv::Reader::from_path(path.join(file)).unwrap();
        let columns = reader.headers().unwrap().len();
        assert!(reader.records().all(|row| row.unwrap().len() == columns), "{file}");
    }
    assert!(fs::read_to_string(path.join("user_table.csv")).unwrap().contains("alice"));
    let opened = open_at(&path).unwrap();
    assert_eq!(opened.recovered.applied, position);
    assert_eq!(opened.recovered.checkpoint, LogIndex(1));
    assert_eq!(opened.recovered.state.digest(), digest);
    assert!(opened.notices.is_empty(), "{:?}", opened.notices);
    let left: Vec<_> = OsDisk::list(&OsDisk::open(root.path().join("other")).unwrap(), "").unwrap();
    assert_eq!(left, ["lock"]);
}

#[test]
fn a_directory_in_use_is_refused_and_named() {
    let root = tempfile::tempdir().unwrap();
    let opened = open_at(root.path()).unwrap();
    let error = OsDisk::open(root.path()).unwrap_err();
    assert!(matches!(error, StorageError::InUse { .. }));
    assert!(error.to_string().contains(&root.path().display().to_string()), "{error}");
    drop(opened);
    assert!(open_at(root.path()).is_ok());
}

#[test]
fn a_log_that_is_missing_beside_a_checkpoint_is_refused() {
    let root = tempfile::tempdir().unwrap();
    fill(root.path());
    fs::remove_file(root.path().join("server_log.csv")).unwrap();
    let error = open_at(root.path()).unwrap_err().to_string();
    assert!(error.contains("server_log.csv: found no such file, expected the log beside"), "{error}");
}

#[test]
fn a_disk_tells_how_much_space_is_left() {
    let root = tempfile::tempdir().unwrap();
    assert!(OsDisk::open(root.path()).unwrap().space_left().unwrap() > 0);
}
