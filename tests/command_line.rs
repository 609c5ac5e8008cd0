//! The `client` program as a person or a script meets it: exit codes, JSON, what goes to which stream.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

mod fake_server;

use fake_server::{
    Act, Asked, FakeServer, VIEW, conflict, conflicts_after, dead_address, error, friendly, id, message,
};
use lastword::chat::command::{MessagePage, MessageView};
use lastword::message::{ErrorCode, Push, Request, Response};
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;

/// One user's machine: a home of its own.
struct Home {
    directory: TempDir,
    servers: String,
}

impl Home {
    fn at(servers: &str) -> Self {
        Self { directory: tempfile::tempdir().unwrap(), servers: servers.to_owned() }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_client"));
        command
            .env_clear()
            .env("HOME", self.directory.path())
            .env("LASTWORD_SERVERS", &self.servers)
            .env("LASTWORD_PASSWORD", "correct horse")
            .stdin(Stdio::null())
            .args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that succeeds; its standard output.
    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// Runs a command with input.
    fn feed(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut child = spawn(self.command(arguments).stdin(Stdio::piped()));
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap()
    }
}

fn spawn(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn lines(output: &str) -> Vec<Value> {
    output.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn answer(asked: &Asked) -> Vec<Act> {
    vec![Act::Answer(friendly(asked))]
}

#[test]
fn usage_errors_exit_with_2_and_say_what_is_expected() {
    let home = Home::at("127.0.0.1:1");
    for arguments in [
        &["nonsense"][..],
        &["send", "bob"],
        &["send", "bob", "x", "--stdin"],
        &["read", "0"],
        &["history", "bob", "--limit", "501"],
        &["delete"],
        &["delete", "not-an-id"],
        &["status", "--servers", "nowhere"],
        &["status", "--timeout", "-1"],
        &["status", "--user", "a/b"],
    ] {
        let output = home.run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}");
    }
    let error = lines(&text(&home.run(&["read", "0", "--json"]).stderr));
    assert_eq!(error[0]["code"], "usage");
}

#[test]
fn the_version_is_told() {
    let home = Home::at("127.0.0.1:1");
    assert_eq!(home.ok(&["--version"]), concat!("client ", env!("CARGO_PKG_VERSION"), "\n"));
    assert!(home.ok(&["--help"]).contains("register"));
}

#[test]
fn without_a_server_the_exit_code_is_5() {
    let home = Home::at(&dead_address());
    for arguments in [&["register", "alice"][..], &["send", "bob", "hi", "--user", "alice"], &["status"]] {
        let mut arguments = arguments.to_vec();
        arguments.extend(["--timeout", "0.2", "--json"]);
        let output = home.run(&arguments);
        assert_eq!(output.status.code(), Some(5), "{arguments:?}");
        let stderr = text(&output.stderr);
        let error: Value = serde_json::from_str(stderr.lines().last().unwrap()).unwrap();
        assert_eq!(error["code"], "no_server");
        assert!(error["error"].is_string());
    }
}

#[test]
fn a_request_that_is_never_answered_exits_with_6() {
    let mute = FakeServer::start(|_| Vec::new());
    let home = Home::at(&mute.address);
    let output = home.run(&["register", "alice", "--timeout", "0.5"]);
    assert_eq!(output.status.code(), Some(6));
    assert!(text(&output.stderr).contains("outcome unknown"));
}

#[test]
fn nobody_logged_in_and_a_wrong_password_exit_with_3() {
    let server = FakeServer::start(|asked| match asked.request {
        Request::Login { .. } => vec![Act::Answer(error(ErrorCode::WrongPassword, ""))],
        _ => answer(asked),
    });
    let home = Home::at(&server.address);
    assert_eq!(home.run(&["list"]).status.code(), Some(3));
    assert_eq!(home.run(&["login", "alice"]).status.code(), Some(3));
    assert_eq!(home.run(&[]).status.code(), Some(3));
}

#[test]
fn a_taken_name_exits_with_1_and_an_unknown_one_with_4() {
    let server = FakeServer::start(|asked| match asked.request {
        Request::Register { .. } => vec![Act::Answer(error(ErrorCode::NameTaken, ""))],
        _ => answer(asked),
    });
    let home = Home::at(&server.address);
    assert_eq!(home.run(&["register", "alice"]).status.code(), Some(1));
    home.ok(&["login", "alice"]);
    let output = home.run(&["send", "nobody", "hi", "--json"]);
    assert_eq!(output.status.code(), Some(4));
    assert_eq!(lines(&text(&output.stderr))[0]["code"], "no_such_account");
}

#[test]
fn json_has_the_promised_keys() {
    let server = FakeServer::start_friendly();
    let home = Home::at(&server.address);
    home.ok(&["register", "alice", "--json"]);
    let sent = lines(&home.ok(&["send", "bob", "hi", "--json"]));
    assert_eq!(sent[0]["id"], "0000000000000001-2");
    assert_eq!(sent[0]["to"], "bob");
    assert_eq!(sent[0]["time"], "2026-11-20T23:11:01.042Z");
    assert_eq!(sent[0]["copies"], 3);
    let names = lines(&home.ok(&["list", "--json"]));
    assert_eq!(names, [serde_json::json!({ "name": "alice" }), serde_json::json!({ "name": "bob" })]);
    for messages in [home.ok(&["read", "--json"]), home.ok(&["history", "bob", "--json"])] {
        let messages = lines(&messages);
        for key in ["id", "from", "to", "time", "text"] {
            assert!(messages[0][key].is_string(), "{key}");
        }
    }
    let status = &lines(&home.ok(&["status", "--json"]))[0];
    assert_eq!(status["role"], "primary");
    assert_eq!(status["view"], VIEW.to_string());
    assert_eq!((&status["commit"], &status["synced"], &status["last"]), (&10.into(), &11.into(), &12.into()));
    assert_eq!(status["reachable"], true);
    assert!(status["members"].is_array() && status["server"].is_string());
}

#[test]
fn status_names_unreachable_servers_and_is_loud_about_missing_ones() {
    let server = FakeServer::start(|asked| {
        let Response::Status(mut status) = friendly(asked) else { panic!("only the status is asked for") };
        status.configured = vec![status.server.clone(), "127.0.0.1:2".into(), "127.0.0.1:3".into()];
        vec![Act::Answer(Response::Status(status))]
    });
    let home = Home::at(&format!("{},{}", server.address, dead_address()));
    let output = home.run(&["status", "--json"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stderr).contains("WARNING: only 1 of 3 servers"), "{}", text(&output.stderr));
    let roles: Vec<_> = lines(&text(&output.stdout)).iter().map(|line| line["reachable"].clone()).collect();
    assert_eq!(roles, [true, false, false, false], "the two listed, and the two it speaks of");
    let table = home.ok(&["status"]);
    assert!(table.contains("unreachable") && !table.contains('\x1b'), "{table}");
}

#[test]
fn what_others_wrote_is_harmless_on_a_terminal_and_exact_in_json() {
    let server = FakeServer::start_friendly();
    let home = Home::at(&server.address);
    home.ok(&["login", "alice"]);
    let shown = home.ok(&["read", "--peek"]);
    assert!(shown.contains("t␛[31mwo\n    lines") && !shown.contains('\x1b'), "{shown:?}");
    assert_eq!(lines(&home.ok(&["read", "--peek", "--json"]))[1]["text"], "t\u{1b}[31mwo\nlines");
}

#[test]
fn read_acknowledges_what_it_printed_and_a_peek_does_not() {
    let server = FakeServer::start_friendly();
    let home = Home::at(&server.address);
    home.ok(&["login", "alice"]);
    let acknowledged = || {
        let asked = server.asked();
        asked.into_iter().filter(|a| matches!(a.request, Request::Acknowledge { .. })).collect::<Vec<_>>()
    };
    home.ok(&["read", "--peek"]);
    assert_eq!(acknowledged(), []);
    home.ok(&["read"]);
    let both = Request::Acknowledge { messages: vec![id(0xb0b, 1), id(0xb0b, 2)] };
    assert_eq!(acknowledged().iter().map(|a| &a.request).collect::<Vec<_>>(), [&both]);
}

/// A server with two conflicts for alice.
fn server_after_a_split() -> FakeServer {
    FakeServer::start(|asked| match asked.request {
        Request::Conflicts { after, limit } => {
            let all = [conflict(5, "are you\u{1b}[31m there?"), conflict(7, "hello?")];
            vec![Act::Answer(conflicts_after(&all, after, limit))]
        }
        Request::Subscribe => vec![Act::Answer(Response::Subscribed)],
        _ => answer(asked),
    })
}

#[test]
fn a_login_tells_once_what_did_not_fit_together() {
    let server = server_after_a_split();
    let home = Home::at(&server.address);
    let told = |arguments: &[&str]| text(&home.run(arguments).stderr);
    let first = told(&["login", "alice"]);
    assert!(first.contains("your message has no recipient") && first.contains("hello?"), "{first}");
    assert!(first.contains("are you␛[31m there?"), "{first:?}");
    for arguments in [&["login", "alice"][..], &["read"]] {
        assert!(!told(arguments).contains("no recipient"), "{arguments:?} tells it again");
    }
    home.ok(&["logout"]);
    assert!(!told(&["login", "alice"]).contains("no recipient"), "a logout forgets it");
}

#[test]
fn whoever_stays_logged_in_hears_of_conflicts_by_reading_or_chatting() {
    let server = server_after_a_split();
    for (arguments, input) in [(&["read", "--peek"][..], ""), (&[], "/who\n")] {
        let home = Home::at(&server.address);
        home.ok(&["login", "alice", "--json"]);
        let output = home.feed(arguments, input.as_bytes());
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(text(&output.stderr).contains("your message has no recipient"), "{arguments:?}");
        assert!(!text(&output.stdout).contains("no recipient"), "{arguments:?}: it is talk, not data");
    }
}

#[test]
fn whoever_stays_hears_of_conflicts_when_a_late_message_shows_that_a_split_has_healed() {
    for arguments in [&["listen"][..], &[]] {
        let mut rounds = 0;
        let server = FakeServer::start(move |asked| match asked.request {
            Request::Conflicts { .. } => {
                rounds += 1;
                let all = if rounds == 1 { vec![] } else { vec![conflict(5, "hello?")] };
                let page = Act::Answer(conflicts_after(&all, 0, 0));
                let late = Push::Message(MessageView { late: true, ..message(2, "late") });
                // The split heals after the client has asked for the first time.
                if rounds == 1 { vec![page, Act::Push(late)] } else { vec![page] }
            }
            Request::Read { .. } => {
                vec![Act::Answer(Response::Messages(MessagePage { messages: vec![], more: false }))]
            }
            Request::Subscribe => vec![Act::Answer(Response::Subscribed)],
            _ => answer(asked),
        });
        let home = Home::at(&server.address);
        home.ok(&["login", "alice", "--json"]);
        // Kept open: the chat ends with its input.
        let mut child = spawn(home.command(arguments).stdin(Stdio::piped()));
        let told = BufReader::new(child.stderr.take().unwrap())
            .lines()
            .find(|line| line.as_ref().unwrap().contains("your message has no recipient"));
        assert!(told.is_some(), "{arguments:?}");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn conflicts_are_printed_as_often_as_asked_and_in_json_with_all_there_is_to_know() {
    let server = server_after_a_split();
    let home = Home::at(&server.address);
    home.ok(&["login", "alice", "--json"]);
    assert_eq!(home.ok(&["conflicts", "--new"]).lines().count(), 2, "programs are told nothing unasked");
    assert_eq!(home.ok(&["conflicts", "--new"]), "");
    let all = lines(&home.ok(&["conflicts", "--json"]));
    assert_eq!(
        all[0],
        serde_json::json!({
            "cursor": 5,
            "request": "0000000000000001-5",
            "time": "2026-11-20T23:11:01.042Z",
            "reason": "no_such_recipient",
            "command": "send",
            "account": "alice",
            "other": "[deleted]",
            "text": "are you\u{1b}[31m there?",
        })
    );
    assert_eq!(all.len(), 2);
    let output = home.feed(&[], b"/conflicts\n");
    assert_eq!(text(&output.stdout).lines().count(), 2, "{}", text(&output.stdout));
}

#[test]
fn late_messages_are_marked_and_a_message_on_two_pages_is_printed_once() {
    let server = FakeServer::start(|asked| match asked.request {
        Request::Read { after, .. } => {
            // Between the pages another server has taken over, whose log has the first message later.
            let late = MessageView { late: true, cursor: 12, ..message(2, "late") };
            let (messages, more) = match after {
                0 => (vec![message(1, "one"), message(2, "two")], true),
                _ => (vec![late, MessageView { late: true, ..message(13, "three") }], false),
            };
            vec![Act::Answer(Response::Messages(MessagePage { messages, more }))]
        }
        _ => answer(asked),
    });
    let home = Home::at(&server.address);
    home.ok(&["login", "alice"]);
    let shown = home.ok(&["read", "--peek"]);
    let shown: Vec<_> = shown.lines().map(|line| line.split_once("bob -> ").unwrap().1).collect();
    assert_eq!(shown, ["alice: one", "alice: two", "alice (late): three"]);
    let read = lines(&home.ok(&["read", "--json"]));
    assert_eq!(read.iter().map(|line| line["late"] == true).collect::<Vec<_>>(), [false, false, true]);
    let acknowledged: Vec<_> = server
        .asked()
        .into_iter()
        .filter_map(|asked| match asked.request {
            Request::Acknowledge { messages } => Some(messages),
            _ => None,
        })
        .collect();
    assert_eq!(acknowledged, [vec![id(0xb0b, 1), id(0xb0b, 2)], vec![id(0xb0b, 13)]]);
}

#[test]
fn text_comes_from_standard_input_without_its_last_newline() {
    let server = FakeServer::start_friendly();
    let home = Home::at(&server.address);
    home.ok(&["login", "alice"]);
    let output = home.feed(&["send", "bob", "--stdin"], "zwei\nZeilen: 😀\n".as_bytes());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let expected = Request::Send { to: "bob".into(), text: "zwei\nZeilen: 😀".into() };
    assert_eq!(server.asked().last().unwrap().request, expected);
    assert_eq!(home.feed(&["send", "bob", "--stdin"], b"\xff\xfe").status.code(), Some(2));
}

#[test]
fn the_password_comes_from_a_file_and_is_never_printed() {
    let server = FakeServer::start_friendly();
    let home = Home::at(&server.address);
    let file = home.directory.path().join("password");
    std::fs::write(&file, "from a file\n").unwrap();
    let mut command = home.command(&["login", "alice", "--password-file", file.to_str().unwrap()]);
    let output = command.env("LASTWORD_LOG", "trace").output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(
        matches!(&server.asked()[0].request, Request::Login { password, .. } if password == "from a file")
    );
    assert!(!text(&output.stderr).contains("from a file") && !text(&output.stdout).contains("from a file"));
    let output = home.command(&["login", "alice"]).env_remove("LASTWORD_PASSWORD").output().unwrap();
    assert_eq!(output.status.code(), Some(2), "no password and no terminal to type it");
}

#[test]
fn several_processes_of_one_session_never_share_a_number() {
    let server = FakeServer::start_friendly();
    let home = Home::at(&server.address);
    home.ok(&["login", "alice"]);
    let children: Vec<_> = (0..6).map(|_| spawn(&mut home.command(&["send", "bob", "hi"]))).collect();
    for child in children {
        assert!(child.wait_with_output().unwrap().status.success());
    }
    let mut numbers: Vec<_> = server
        .asked()
        .iter()
        .filter(|asked| matches!(asked.request, Request::Send { .. }))
        .map(|asked| asked.number)
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [2, 3, 4, 5, 6, 7]);
}

#[test]
fn listen_prints_waiting_and_new_messages_until_it_is_interrupted() {
    let server = FakeServer::start(|asked| match asked.request {
        Request::Subscribe => {
            vec![Act::Answer(Response::Subscribed), Act::Push(Push::Message(message(3, "new")))]
        }
        _ => answer(asked),
    });
    let home = Home::at(&server.address);
    home.ok(&["login", "alice"]);
    let mut child = spawn(&mut home.command(&["listen", "--json"]));
    let mut output = BufReader::new(child.stdout.take().unwrap());
    for expected in ["one", "t\u{1b}[31mwo\nlines", "new"] {
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["text"], expected);
    }
    server.wait_for(|asked| {
        matches!(&asked.request, Request::Acknowledge { messages } if messages.contains(&id(0xb0b, 3)))
    });
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn listen_ends_when_nobody_reads_it_although_nothing_comes() {
    let server = FakeServer::start(|asked| match asked.request {
        Request::Subscribe => vec![Act::Answer(Response::Subscribed)],
        _ => answer(asked),
    });
    let home = Home::at(&server.address);
    home.ok(&["login", "alice"]);
    let mut child = spawn(&mut home.command(&["listen"]));
    let mut output = BufReader::new(child.stdout.take().unwrap());
    for _ in 0..3 {
        output.read_line(&mut String::new()).unwrap();
    }
    server.wait_for(|asked| matches!(asked.request, Request::Acknowledge { .. }));
    drop(output);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn status_needs_no_place_to_remember_a_login() {
    let server = FakeServer::start_friendly();
    let home = Home::at(&server.address);
    let output = home.command(&["status"]).env("LASTWORD_STATE", "/dev/null/x").output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let output = home.command(&["list"]).env("LASTWORD_STATE", "/dev/null/x").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("/dev/null/x"));
}

#[test]
fn a_reader_that_goes_away_ends_the_program_quietly() {
    let server = FakeServer::start(|asked| match asked.request {
        Request::History { .. } => {
            let messages = (0..400).map(|number| message(number, &"x".repeat(1000))).collect();
            let page = lastword::chat::command::MessagePage { messages, more: false };
            vec![Act::Answer(Response::Messages(page))]
        }
        _ => answer(asked),
    });
    let home = Home::at(&server.address);
    home.ok(&["login", "alice"]);
    let mut child = spawn(&mut home.command(&["history", "bob"]));
    drop(child.stdout.take());
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!((child.wait().unwrap().code(), stderr.as_str()), (Some(0), ""));
}

#[test]
fn a_chat_from_a_pipe_has_no_prompt_and_sends_each_line_once() {
    let server = FakeServer::start(|asked| match asked.request {
        Request::Subscribe => vec![Act::Answer(Response::Subscribed)],
        _ => answer(asked),
    });
    let home = Home::at(&server.address);
    home.ok(&["login", "alice"]);
    let output = home.feed(&[], b"/msg carol\nhello\n//slash\n/history bob\n/nonsense\n/quit\nnever\n");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let sent: Vec<_> = server
        .asked()
        .into_iter()
        .filter_map(|asked| match asked.request {
            Request::Send { to, text } => Some((to, text)),
            _ => None,
        })
        .collect();
    assert_eq!(sent, [("carol".into(), "hello".into()), ("carol".into(), "/slash".to_owned())]);
    let stdout = text(&output.stdout);
    assert!(stdout.contains("bob -> alice: one") && !stdout.contains("> \n"), "{stdout}");
    assert!(text(&output.stderr).contains("found /nonsense"));
}

#[test]
fn a_chat_from_a_pipe_tells_a_failure_by_its_exit_code() {
    let server = FakeServer::start(|asked| match asked.request {
        Request::Subscribe => vec![Act::Answer(Response::Subscribed)],
        _ => answer(asked),
    });
    let home = Home::at(&server.address);
    home.ok(&["login", "alice"]);
    assert_eq!(home.feed(&[], b"/msg nobody hi\n").status.code(), Some(4));
}
