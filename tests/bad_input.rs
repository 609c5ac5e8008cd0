//! Nonsense of every kind against a real server: a clear answer, nobody else disturbed, nothing overwritten.
#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod support;

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bytes::BytesMut;
use lastword::config::{
    FRAME_BEFORE_LOGIN_BYTES_MAX, FRAME_CLIENT_BYTES_MAX, NAME_BYTES_MAX, PASSWORD_BYTES_MAX, TEXT_BYTES_MAX,
};
use lastword::message::{ErrorCode, Request, Response};
use lastword::prng::Prng;
use lastword::server::limits::FILES_RESERVED;
use lastword::wire::client::encode_request;
use lastword::wire::opcode;
use support::{Client, Cluster, PASSWORD, Person, Server, login, register, send, wait_for};

fn frame(opcode: u8, request: u32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 5).unwrap();
    [&length.to_be_bytes()[..], &[opcode], &request.to_be_bytes(), body].concat()
}

fn encoded(request: u32, body: &Request) -> Vec<u8> {
    let mut out = BytesMut::new();
    encode_request(&mut out, request, body);
    out.to_vec()
}

/// What a fresh connection is answered until the server closes it.
fn last_words(port: u16, bytes: &[u8]) -> Vec<u8> {
    let mut client = Client::connect(port).unwrap();
    client.write(bytes).unwrap();
    client.rest()
}

fn error_of(client: &mut Client) -> (u32, ErrorCode, String) {
    match client.response().expect("an error is said") {
        (request, Response::Error(error)) => (request, error.code, error.text),
        other => panic!("expected an error, found {other:?}"),
    }
}

fn assert_open(client: &mut Client) {
    assert_eq!(client.ask(&Request::Ping).expect("the connection is open"), Response::Pong);
}

#[test]
fn a_full_server_refuses_one_more_in_words_and_goes_on_and_its_peers_take_no_place() {
    const PLACES: usize = 20;
    let mut cluster = Cluster::new(3);
    for at in 0..3 {
        cluster.servers[at] = Some(Server::spawn_with_files(&cluster.arguments(at), FILES_RESERVED + PLACES));
    }
    cluster.wait_ready();
    cluster.wait_members(3);
    let warning =
        format!("this server takes {PLACES} connections instead of 10000 (raise it with `ulimit -n 10128`)");
    wait_for("it warns", || cluster.server(0).err.contains(&warning).then_some(()));
    // Connections that have ended give their places back in a moment: until then one more is told to wait.
    let enter = || {
        let mut client = Client::connect(cluster.ports[0]).unwrap();
        match client.ask_as(0, &Request::Ping).expect("an answer in words") {
            Response::Pong => Some(client),
            Response::Error(error) => {
                assert_eq!((error.code, error.maybe_executed), (ErrorCode::Busy, false));
                assert!(
                    error.text.contains(&format!("has {PLACES} connections, its limit")),
                    "{}",
                    error.text
                );
                assert!(client.rest().is_empty(), "then the connection closes");
                None
            }
            other => panic!("expected a pong or an error, found {other:?}"),
        }
    };
    let mut inside: Vec<Client> = (0..PLACES).map(|_| wait_for("a client gets in", enter)).collect();
    assert!(enter().is_none(), "more got in than have a place");
    inside.iter_mut().for_each(assert_open);
    inside.pop();
    inside.push(wait_for("the next one gets the place", enter));
    inside.iter_mut().for_each(assert_open);
}

#[test]
fn lost_framing_is_said_and_closes_the_connection_and_nobody_else_is_disturbed() {
    let cluster = Cluster::single();
    let port = cluster.ports[0];
    let mut bystander = Client::connect(port).unwrap();
    bystander.ask(&register("bystander")).unwrap();
    for (length, code) in [
        (0_u32, ErrorCode::Malformed),
        (4, ErrorCode::Malformed),
        (u32::try_from(FRAME_BEFORE_LOGIN_BYTES_MAX).unwrap() + 1, ErrorCode::FrameTooLong),
    ] {
        let mut client = Client::connect(port).unwrap();
        client.write(&[&length.to_be_bytes()[..], &[1, 0, 0, 0, 1]].concat()).unwrap();
        let (_, found, text) = error_of(&mut client);
        assert_eq!(found, code, "length {length}");
        assert!(text.contains(&format!("found a frame of {length} bytes")), "{text}");
        assert!(client.rest().is_empty(), "length {length}: then the connection closes");
        assert_open(&mut bystander);
    }
    for bytes in [
        &b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"[..],
        &[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xfc, 0x03, 0x03],
        b"hello\r\n",
        &[0xff; 64],
        &(u32::try_from(FRAME_CLIENT_BYTES_MAX).unwrap() + 1).to_be_bytes(),
    ] {
        let line = String::from_utf8(last_words(port, bytes)).unwrap();
        assert!(line.starts_with("lastword: ") && line.ends_with("\r\n"), "{bytes:02x?}: {line:?}");
        assert_eq!(line.lines().count(), 1);
        assert_open(&mut bystander);
    }
}

#[test]
fn frames_of_the_greatest_length_are_read() {
    let cluster = Cluster::single();
    let mut client = Client::connect(cluster.ports[0]).unwrap();
    // Well framed, and no request: the answer is an error, and the connection stays open.
    client.write(&frame(0x3f, 7, &vec![0; FRAME_BEFORE_LOGIN_BYTES_MAX - 5])).unwrap();
    assert_eq!(error_of(&mut client).1, ErrorCode::UnknownOpcode);
    client.ask(&register("alice")).unwrap();
    client.write(&frame(0x3f, 8, &vec![0; FRAME_CLIENT_BYTES_MAX - 5])).unwrap();
    assert_eq!(error_of(&mut client).1, ErrorCode::UnknownOpcode);
    client.write(&frame(0x3f, 9, &vec![0; FRAME_CLIENT_BYTES_MAX - 4])).unwrap();
    assert_eq!(error_of(&mut client).1, ErrorCode::FrameTooLong);
    assert!(client.rest().is_empty());
}

#[test]
fn a_body_that_cannot_be_read_is_answered_and_the_connection_stays_open() {
    let cluster = Cluster::single();
    let mut client = Client::connect(cluster.ports[0]).unwrap();
    for unknown in [0x00, 0x3f, opcode::HEARTBEAT, opcode::PREPARE, opcode::DONE, 0xff] {
        client.write(&frame(unknown, 5, &[])).unwrap();
        let (request, code, _) = error_of(&mut client);
        assert_eq!((request, code), (5, ErrorCode::UnknownOpcode), "opcode 0x{unknown:02x}");
    }
    let mut longer = encoded(6, &Request::Ping);
    longer[3] += 1;
    longer.push(0);
    let bad_name = encoded(7, &send("bob", "x"));
    let at = bad_name.windows(3).position(|part| part == b"bob").unwrap();
    let mut bad_name = bad_name;
    bad_name[at] = 0xff;
    for (number, bytes) in [(6, longer), (7, bad_name)] {
        client.write(&bytes).unwrap();
        let (request, code, text) = error_of(&mut client);
        assert_eq!((request, code), (number, ErrorCode::Malformed), "{text}");
    }
    assert_open(&mut client);
}

#[test]
fn frames_arrive_in_any_pieces_and_an_end_within_one_is_harmless() {
    let cluster = Cluster::single();
    let port = cluster.ports[0];
    let whole = encoded(3, &login("nobody", PASSWORD));
    for cut in 0..whole.len() {
        let mut client = Client::connect(port).unwrap();
        client.write(&whole[..cut]).unwrap();
        client.stream.shutdown(std::net::Shutdown::Write).unwrap();
        client.stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut end = Vec::new();
        client.stream.read_to_end(&mut end).unwrap_or_else(|error| panic!("cut at {cut}: {error}"));
    }
    let mut client = Client::connect(port).unwrap();
    client.write(&[encoded(1, &Request::Ping), encoded(2, &Request::Ping)].concat()).unwrap();
    assert_eq!(client.response().unwrap(), (1, Response::Pong));
    assert_eq!(client.response().unwrap(), (2, Response::Pong));
    for byte in encoded(3, &Request::Ping) {
        client.write(&[byte]).unwrap();
    }
    assert_eq!(client.response().unwrap(), (3, Response::Pong));
}

#[test]
fn random_bytes_end_their_own_connection_and_memory_stays_flat() {
    let mut cluster = Cluster::single();
    let port = cluster.ports[0];
    let mut bystander = Client::connect(port).unwrap();
    let mut prng = Prng::new(0x1538);
    let mut shower = |rounds: usize| {
        for _ in 0..rounds {
            let mut client = Client::connect(port).unwrap();
            let length = usize::try_from(prng.below(200)).unwrap();
            let mut bytes: Vec<u8> = (0..length).map(|_| prng.next_u64().to_le_bytes()[0]).collect();
            if prng.chance(1, 2) && bytes.len() >= 9 {
                // Framed well, so that the garbage gets further.
                let rest = u8::try_from(bytes.len() - 4).unwrap();
                bytes[..4].copy_from_slice(&[0, 0, 0, rest]);
            }
            // The server may have closed already.
            let _ = client.stream.write_all(&bytes);
            let _ = client.stream.shutdown(std::net::Shutdown::Write);
            client.rest();
        }
    };
    shower(100);
    let before = cluster.server(0).resident_bytes();
    shower(500);
    let after = cluster.server(0).resident_bytes();
    assert!(after < before + 32 * 1024 * 1024, "resident memory went from {before} to {after}");
    assert_open(&mut bystander);
}

#[test]
fn strangers_that_greet_like_servers_are_refused_and_logged_once() {
    let mut cluster = Cluster::single();
    for version in 2_u16..30 {
        let mut client = Client::connect(cluster.ports[0]).unwrap();
        let body = [&version.to_be_bytes()[..], &[2, 1], &[7; 32]].concat();
        client.write(&frame(opcode::PEER_HELLO, 0, &body)).unwrap();
        assert_eq!(client.frame().unwrap().expect("it says why").opcode, opcode::PEER_REFUSED);
    }
    wait_for("the refusal is logged", || cluster.server(0).err.contains("speaks version").then_some(()));
    let lines = cluster.server(0).err.all();
    let complaints = lines.iter().filter(|line| line.contains("speaks version")).count();
    assert_eq!(complaints, 1, "whatever numbers they draw:\n{}", lines.join("\n"));
}

#[test]
fn a_client_that_never_reads_is_closed_and_memory_stays_bounded() {
    let mut cluster = Cluster::single();
    let mut client = Client::connect(cluster.ports[0]).unwrap();
    client.ask(&register("alice")).unwrap();
    for _ in 0..6 {
        client.ask(&send("alice", &"x".repeat(TEXT_BYTES_MAX))).unwrap();
    }
    client.stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
    let read = encoded(0, &Request::Read { after: 0, limit: 0 });
    let requests = read.repeat(100);
    wait_for("megabytes of answers that nobody reads close the connection", || {
        client.write(&requests).is_err().then_some(())
    });
    let resident = cluster.server(0).resident_bytes();
    assert!(resident < 256 * 1024 * 1024, "resident memory is {resident}");
    assert_open(&mut Client::connect(cluster.ports[0]).unwrap());
}

#[test]
fn names_passwords_and_texts_out_of_bounds_are_refused_with_the_limit() {
    let cluster = Cluster::single();
    let mut client = Client::connect(cluster.ports[0]).unwrap();
    let long = "a".repeat(NAME_BYTES_MAX + 1);
    for name in ["", "a b", "ä", "a,b", long.as_str()] {
        let error = client.expect_error(&register(name));
        assert_eq!(error.code, ErrorCode::InvalidName, "{name:?}");
        assert!(error.text.contains("expected"), "the text names the limit: {}", error.text);
    }
    for password in ["short", &"p".repeat(PASSWORD_BYTES_MAX + 1)] {
        let mut request = register("alice");
        if let Request::Register { password: field, .. } = &mut request {
            *field = password.to_owned();
        }
        let error = client.expect_error(&request);
        assert_eq!(error.code, ErrorCode::InvalidPassword);
        assert!(error.text.contains("expected 8 to"), "the text names the limit: {}", error.text);
    }
    assert_eq!(client.expect_error(&send("alice", "x")).code, ErrorCode::NotLoggedIn);
    client.ask(&register("alice")).unwrap();
    for text in ["", "bell \u{7}", &"t".repeat(TEXT_BYTES_MAX + 1)] {
        let error = client.expect_error(&send("alice", text));
        assert_eq!(error.code, ErrorCode::InvalidText, "{} bytes", text.len());
    }
    assert_eq!(client.expect_error(&send("nobody", "x")).code, ErrorCode::NoSuchAccount);
    let mut other = Client::connect(cluster.ports[0]).unwrap();
    assert_eq!(other.expect_error(&register("ALICE")).code, ErrorCode::NameTaken);
}

#[test]
fn wrong_names_and_wrong_passwords_look_alike_and_the_sixth_must_wait() {
    let cluster = Cluster::single();
    let mut client = Client::connect(cluster.ports[0]).unwrap();
    client.ask(&register("alice")).unwrap();
    let mut guesser = Client::connect(cluster.ports[0]).unwrap();
    let unknown = guesser.expect_error(&login("nobody", "wrong password"));
    for _ in 0..5 {
        let wrong = guesser.expect_error(&login("alice", "wrong password"));
        assert_eq!((wrong.code, &wrong.text), (ErrorCode::WrongPassword, &unknown.text));
    }
    let sixth = guesser.expect_error(&login("alice", PASSWORD));
    assert_eq!(sixth.code, ErrorCode::TooManyAttempts);
    assert!(sixth.text.contains("10"), "it says how long: {}", sixth.text);
    assert_open(&mut client);
}

/// All files below a directory with their bytes.
fn contents(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            all.extend(contents(&path));
        } else if let Ok(bytes) = fs::read(&path) {
            all.push((path, bytes));
        }
    }
    all.sort();
    all
}

/// A stopped server that holds some messages.
fn stopped_with_messages() -> Cluster {
    let mut cluster = Cluster::single();
    let mut alice = Person::register(&cluster, "alice");
    for number in 0..10 {
        alice.send("alice", &format!("message {number}"));
    }
    cluster.kill(0);
    cluster
}

fn refused(cluster: &Cluster, arguments: &[String]) -> (Option<i32>, String) {
    let before = contents(&cluster.data(0));
    let mut server = Server::spawn(arguments);
    let code = server.wait().code();
    wait_for("it says why", || server.err.contains("ERROR").then_some(()));
    assert!(contents(&cluster.data(0)) == before, "nothing is overwritten");
    assert!(server.out.all().is_empty());
    (code, server.err.text())
}

#[test]
fn the_directory_of_another_server_is_refused() {
    let mut cluster = Cluster::started();
    (0..3).for_each(|at| cluster.kill(at));
    let mut arguments = cluster.arguments(1);
    arguments[5] = cluster.data(0).display().to_string();
    let (code, said) = refused(&cluster, &arguments);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("found") && said.contains("expected"), "{said}");
}

#[test]
fn the_directory_of_another_cluster_list_is_refused() {
    let cluster = stopped_with_messages();
    let mut arguments = cluster.arguments(0);
    arguments[3] = format!("{},127.0.0.1:1", arguments[3]);
    let (code, said) = refused(&cluster, &arguments);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("found") && said.contains("expected"), "{said}");
}

#[test]
fn a_directory_that_cannot_be_written_is_a_disk_error() {
    let cluster = Cluster::new(1);
    let file = cluster.directory.path().join("file");
    fs::write(&file, "not a directory").unwrap();
    let mut arguments = cluster.arguments(0);
    arguments[5] = file.join("data").display().to_string();
    let key = cluster.directory.path().join("cluster.key").display().to_string();
    arguments.extend(["--key".to_owned(), key]);
    let mut server = Server::spawn(&arguments);
    assert_eq!(server.wait().code(), Some(3));
    wait_for("it names the directory", || server.err.contains("file/data").then_some(()));
}

fn log_file(cluster: &Cluster) -> PathBuf {
    cluster.data(0).join("server_log.csv")
}

#[test]
fn a_torn_last_row_is_cut_and_everything_acknowledged_is_there() {
    let mut cluster = stopped_with_messages();
    let mut log = fs::OpenOptions::new().append(true).open(log_file(&cluster)).unwrap();
    log.write_all(b"send,12,1.1,17000\"000").unwrap();
    cluster.start(0);
    cluster.wait_ready();
    wait_for("the file is named", || cluster.server(0).err.contains("server_log.csv").then_some(()));
    let mut client = Client::connect(cluster.ports[0]).unwrap();
    client.ask(&login("alice", PASSWORD)).unwrap();
    let Response::Messages(page) = client.ask(&Request::Read { after: 0, limit: 100 }).unwrap() else {
        panic!()
    };
    assert_eq!(page.messages.len(), 10);
}

#[test]
fn a_rotten_row_that_nobody_else_has_is_named_and_never_cut() {
    let mut cluster = stopped_with_messages();
    let path = log_file(&cluster);
    let mut log = fs::read(&path).unwrap();
    let at = log.windows(9).position(|part| part == b"message 5").unwrap();
    log[at] ^= 1;
    fs::write(&path, &log).unwrap();
    let line = log[..at].iter().filter(|&&byte| byte == b'\n').count() + 1;
    cluster.start(0);
    let place = format!("server_log.csv, line {line}");
    wait_for("the row is named", || cluster.server(0).err.contains(&place).then_some(()));
    let now = fs::read(&path).unwrap();
    assert!(now.starts_with(&log[..at + 200]), "the row and what follows it stay");
}

#[test]
fn a_log_with_a_wrong_header_is_refused() {
    let cluster = stopped_with_messages();
    let path = log_file(&cluster);
    let log = fs::read_to_string(&path).unwrap();
    let (_, rows) = log.split_once('\n').unwrap();
    fs::write(&path, format!("a,b,c\n{rows}")).unwrap();
    let (code, said) = refused(&cluster, &cluster.arguments(0));
    assert!(matches!(code, Some(1 | 3)), "{code:?}");
    assert!(said.contains("server_log.csv, line 1: found") && said.contains("expected"), "{said}");
}

#[test]
fn a_disk_that_takes_no_more_loses_nothing_that_was_acknowledged() {
    let mut cluster = Cluster::new(1);
    // The limit on the size of a file makes writes fail; the signal that goes with it is ignored.
    let script = "trap '' XFSZ; ulimit -f 64; exec \"$@\"";
    let mut server = Command::new("bash")
        .args(["-c", script, "bash", env!("CARGO_BIN_EXE_server")])
        .args(cluster.arguments(0))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let port = cluster.ports[0];
    let mut client = wait_for("the server listens", || Client::connect(port).ok());
    wait_for("the server leads", || {
        matches!(client.ask(&register("alice")), Ok(Response::Done { .. })).then_some(())
    });
    let mut acknowledged = 0;
    for number in 1..200 {
        let text = format!("{number} {}", "x".repeat(4000));
        match client.ask_as(1000 + number, &send("alice", &text)) {
            Ok(Response::Done { .. }) => acknowledged += 1,
            Ok(Response::Error(_)) | Err(_) => break,
            Ok(other) => panic!("{other:?}"),
        }
    }
    assert!((1..199).contains(&acknowledged), "{acknowledged} acknowledged: the limit was not reached");
    let _ = server.kill();
    let _ = server.wait();
    cluster.start(0);
    cluster.wait_ready();
    let mut client = Client::connect(port).unwrap();
    let Response::Done { .. } = client.ask(&login("alice", PASSWORD)).unwrap() else {
        panic!("alice is there")
    };
    let (mut found, mut after) = (0, 0);
    loop {
        let Response::Messages(page) = client.ask(&Request::Read { after, limit: 500 }).unwrap() else {
            panic!()
        };
        found += page.messages.len();
        after = page.messages.last().map_or(after, |message| message.cursor);
        if !page.more {
            break;
        }
    }
    assert!(found >= acknowledged, "{acknowledged} acknowledged, {found} found");
}
