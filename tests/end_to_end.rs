//! Real processes on real disks: started, killed, stopped and started again.
#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

mod support;

use std::fs;
use std::net::Shutdown;
use std::time::Duration;

use lastword::chat::command::Reply;
use lastword::message::{ErrorCode, Push, Request, Response};
use support::{Client, Cluster, Person, Server, register, send, wait_for};

/// Numbered texts, so that each can be looked for.
fn texts(from: usize, to: usize) -> Vec<String> {
    (from..to).map(|number| format!("message {number:04}")).collect()
}

fn send_all(person: &mut Person, to: &str, texts: &[String]) {
    for text in texts {
        person.send(to, text);
    }
}

/// Everything acknowledged is there once, in order, and nothing else.
fn assert_waiting(person: &mut Person, expected: &[String]) {
    let found: Vec<String> = person.waiting().into_iter().map(|message| message.text).collect();
    assert_eq!(found, expected);
    assert_eq!(person.expired, 0, "nobody had to log in again");
}

#[test]
fn servers_started_in_any_order_become_one_primary_and_two_backups() {
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut cluster = Cluster::new(3);
        order.into_iter().for_each(|at| cluster.start(at));
        cluster.wait_ready();
        cluster.wait_members(3);
        let roles: Vec<String> = (0..3).map(|at| cluster.status(at).unwrap().role).collect();
        assert_eq!(roles.iter().filter(|role| *role == "primary").count(), 1, "{order:?}: {roles:?}");
        let mut alice = Person::register(&cluster, "alice");
        alice.send("alice", "it works");
        assert_waiting(&mut alice, &["it works".to_owned()]);
        for at in 0..3 {
            let expected = format!("ready {}", cluster.address(at));
            assert_eq!(cluster.server(at).out.all(), [expected], "standard output has one line");
        }
    }
}

#[test]
fn a_secondary_that_starts_first_waits_for_the_primary_and_says_so() {
    let mut cluster = Cluster::new(3);
    cluster.start(1);
    wait_for("it says for whom it waits", || cluster.server(1).err.contains("wait").then_some(()));
    assert!(cluster.server(1).out.all().is_empty());
    let status = cluster.status(1).unwrap();
    assert_eq!(status.role, "waiting");
    assert!(!status.note.is_empty());
}

#[test]
fn two_people_chat() {
    let cluster = Cluster::started();
    let primary = cluster.primary();
    let mut alice = Client::connect(cluster.ports[primary]).unwrap();
    let mut bob = Client::connect(cluster.ports[primary]).unwrap();
    assert!(matches!(alice.ask(&register("alice")).unwrap(), Response::Done { .. }));
    assert!(matches!(bob.ask(&register("bob")).unwrap(), Response::Done { .. }));
    assert_eq!(bob.ask(&Request::Subscribe).unwrap(), Response::Subscribed);
    let Response::Done { reply: Reply::Sent { message, .. }, copies, configured, .. } =
        alice.ask(&send("bob", "hi, \"bob\"\n= 1 + 1 🙂")).unwrap()
    else {
        panic!("the message is accepted");
    };
    assert_eq!(configured, 3);
    assert!(copies >= 1);
    let Push::Message(pushed) = bob.push().unwrap() else { panic!("a message is pushed") };
    assert_eq!(
        (pushed.id, pushed.from.as_str(), pushed.text.as_str()),
        (message, "alice", "hi, \"bob\"\n= 1 + 1 🙂")
    );
    let acknowledged = bob.ask(&Request::Acknowledge { messages: vec![message] }).unwrap();
    assert!(matches!(acknowledged, Response::Done { reply: Reply::Acknowledged { count: 1 }, .. }));
    let Response::Messages(page) = bob.ask(&Request::Read { after: 0, limit: 0 }).unwrap() else { panic!() };
    assert!(page.messages.is_empty(), "what was acknowledged waits no longer");
    let history = Request::History { with: "alice".into(), before: 0, limit: 0 };
    let Response::Messages(page) = bob.ask(&history).unwrap() else { panic!() };
    assert_eq!(page.messages.len(), 1);
    assert!(page.messages[0].delivered);
}

#[test]
fn a_backup_names_the_primary_to_whoever_asks_it() {
    let cluster = Cluster::started();
    let primary = cluster.primary();
    let mut client = Client::connect(cluster.ports[(primary + 1) % 3]).unwrap();
    let error = client.expect_error(&register("alice"));
    assert_eq!((error.code, error.primary), (ErrorCode::NotPrimary, cluster.address(primary)));
}

#[test]
fn any_two_crash_one_after_the_other_and_nothing_acknowledged_is_lost() {
    let mut cluster = Cluster::started();
    let mut alice = Person::register(&cluster, "alice");
    send_all(&mut alice, "alice", &texts(0, 20));
    let first = cluster.primary();
    cluster.kill(first);
    send_all(&mut alice, "alice", &texts(20, 40));
    let second = cluster.primary();
    assert_ne!(first, second);
    cluster.kill(second);
    send_all(&mut alice, "alice", &texts(40, 60));
    assert_waiting(&mut alice, &texts(0, 60));
}

#[test]
fn two_crash_at_once_and_the_third_goes_on() {
    for survivor in 0..3 {
        let mut cluster = Cluster::started();
        let mut alice = Person::register(&cluster, "alice");
        send_all(&mut alice, "alice", &texts(0, 10));
        (0..3).filter(|&at| at != survivor).for_each(|at| cluster.kill(at));
        send_all(&mut alice, "alice", &texts(10, 20));
        assert_eq!(cluster.primary(), survivor);
        assert_waiting(&mut alice, &texts(0, 20));
    }
}

#[test]
fn all_three_crash_and_restart_with_everything() {
    let mut cluster = Cluster::started();
    let mut alice = Person::register(&cluster, "alice");
    send_all(&mut alice, "alice", &texts(0, 30));
    (0..3).for_each(|at| cluster.kill(at));
    (0..3).rev().for_each(|at| cluster.start(at));
    cluster.wait_ready();
    assert_waiting(&mut alice, &texts(0, 30));
    send_all(&mut alice, "alice", &texts(30, 40));
    cluster.wait_members(3);
    assert_waiting(&mut alice, &texts(0, 40));
}

#[test]
fn a_killed_primary_that_restarts_by_the_same_command_follows() {
    let mut cluster = Cluster::started();
    let mut alice = Person::register(&cluster, "alice");
    let first = cluster.primary();
    cluster.kill(first);
    send_all(&mut alice, "alice", &texts(0, 10));
    let second = cluster.primary();
    cluster.start(first);
    cluster.wait_ready();
    cluster.wait_members(3);
    assert_eq!(cluster.status(first).unwrap().role, "backup");
    assert_eq!(cluster.primary(), second);
    // It is a full member: the others may go.
    (0..3).filter(|&at| at != first).for_each(|at| cluster.kill(at));
    assert_waiting(&mut alice, &texts(0, 10));
}

#[test]
fn an_empty_directory_fills_itself_again() {
    let mut cluster = Cluster::started();
    let mut alice = Person::register(&cluster, "alice");
    send_all(&mut alice, "alice", &texts(0, 20));
    let primary = cluster.primary();
    let lost = (primary + 1) % 3;
    cluster.kill(lost);
    fs::remove_dir_all(cluster.data(lost)).unwrap();
    send_all(&mut alice, "alice", &texts(20, 30));
    cluster.start(lost);
    cluster.wait_ready();
    cluster.wait_members(3);
    (0..3).filter(|&at| at != lost).for_each(|at| cluster.kill(at));
    assert_waiting(&mut alice, &texts(0, 30));
}

#[test]
fn a_backup_that_was_paused_and_dropped_does_not_lead_with_old_data() {
    let mut cluster = Cluster::started();
    let mut alice = Person::register(&cluster, "alice");
    send_all(&mut alice, "alice", &texts(0, 5));
    let primary = cluster.primary();
    let paused = (primary + 1) % 3;
    cluster.pause(paused);
    send_all(&mut alice, "alice", &texts(5, 10));
    wait_for("the paused backup is dropped", || (cluster.status(primary)?.members.len() == 2).then_some(()));
    // As close together as a test can do it.
    cluster.resume(paused);
    (0..3).filter(|&at| at != paused).for_each(|at| cluster.kill(at));
    let note = wait_for("it knows that it may lack something, and waits", || {
        let status = cluster.status(paused)?;
        assert_ne!(status.role, "primary", "it leads with old data");
        (status.role == "waiting" && !status.note.is_empty()).then_some(status.note)
    });
    let missing: Vec<String> = (0..3).filter(|&at| at != paused).map(|at| cluster.address(at)).collect();
    assert!(missing.iter().any(|address| note.contains(address)), "it says for whom: {note}");
    (0..3).filter(|&at| at != paused).for_each(|at| cluster.start(at));
    cluster.wait_ready();
    assert_waiting(&mut alice, &texts(0, 10));
}

#[test]
fn servers_stop_in_order_and_any_two_start_without_the_third_afterwards() {
    let mut cluster = Cluster::started();
    let mut alice = Person::register(&cluster, "alice");
    send_all(&mut alice, "alice", &texts(0, 5));
    for at in 0..3 {
        cluster.server(at).signal(rustix::process::Signal::TERM);
    }
    for at in 0..3 {
        assert_eq!(cluster.server(at).wait().code(), Some(0), "{}", cluster.server(at).err.text());
        cluster.servers[at] = None;
    }
    cluster.start(1);
    cluster.start(2);
    cluster.wait_ready();
    assert_waiting(&mut alice, &texts(0, 5));
}

#[test]
fn one_server_that_stops_in_order_hands_over() {
    let mut cluster = Cluster::started();
    let mut alice = Person::register(&cluster, "alice");
    let primary = cluster.primary();
    assert_eq!(cluster.stop(primary).code(), Some(0));
    send_all(&mut alice, "alice", &texts(0, 5));
    assert_waiting(&mut alice, &texts(0, 5));
}

#[test]
fn a_server_with_another_key_is_refused_and_logged_once() {
    let mut cluster = Cluster::started();
    let primary = cluster.primary();
    let stranger = (primary + 1) % 3;
    cluster.kill(stranger);
    let key = cluster.directory.path().join("other.key").display().to_string();
    cluster.start_with(stranger, &["--key", &key]);
    wait_for("the stranger learns why", || {
        cluster.server(stranger).err.contains("keys differ").then_some(())
    });
    wait_for("the others say it", || cluster.server(primary).err.contains("keys differ").then_some(()));
    // Time for another refused attempt; there is nothing to wait for, since nothing is to be said.
    std::thread::sleep(Duration::from_millis(1200));
    let lines = cluster.server(primary).err.all();
    let complaints = lines.iter().filter(|line| line.contains("keys differ")).count();
    assert!(complaints <= 2, "once in each direction, not in a storm:\n{}", lines.join("\n"));
    assert!(cluster.server(stranger).out.all().is_empty(), "it is not ready");
    let mut alice = Person::register(&cluster, "alice");
    alice.send("alice", "the others go on");
}

#[test]
fn a_second_process_on_the_same_directory_is_refused() {
    let mut cluster = Cluster::single();
    let mut arguments = cluster.arguments(0);
    let port = support::free_port();
    arguments[1] = port.to_string();
    arguments[3] = format!("127.0.0.1:{port}");
    let mut second = Server::spawn(&arguments);
    assert_eq!(second.wait().code(), Some(1));
    assert!(second.err.contains("in use by another process"), "{}", second.err.text());
    assert!(cluster.server(0).is_running());
}

#[test]
fn a_second_process_on_the_same_port_is_refused() {
    let cluster = Cluster::single();
    let mut arguments = cluster.arguments(0);
    arguments[5] = cluster.directory.path().join("elsewhere").display().to_string();
    let mut second = Server::spawn(&arguments);
    assert_eq!(second.wait().code(), Some(1));
    assert!(second.err.contains("can't listen on"), "{}", second.err.text());
}

#[test]
fn complete_requests_are_answered_after_the_clients_end_of_stream() {
    let cluster = Cluster::single();
    let mut client = Client::connect(cluster.ports[0]).unwrap();
    let mut out = bytes::BytesMut::new();
    lastword::wire::client::encode_request(&mut out, 1, &register("alice"));
    lastword::wire::client::encode_request(&mut out, 2, &send("alice", &"x".repeat(8192)));
    lastword::wire::client::encode_request(&mut out, 3, &Request::Read { after: 0, limit: 0 });
    client.write(&out).unwrap();
    client.stream.shutdown(Shutdown::Write).unwrap();
    let mut answers = std::collections::BTreeMap::new();
    for _ in 0..3 {
        let (request, response) = client.response().unwrap();
        answers.insert(request, response);
    }
    assert!(matches!(answers[&1], Response::Done { .. }), "{answers:?}");
    assert!(matches!(answers[&2], Response::Done { reply: Reply::Sent { .. }, .. }), "{answers:?}");
    assert!(matches!(answers[&3], Response::Messages(_)), "{answers:?}");
    assert!(client.frame().unwrap().is_none(), "then the connection closes");
}

#[test]
fn arguments_that_do_not_fit_exit_with_2_and_a_reason() {
    let directory = tempfile::tempdir().unwrap();
    for (arguments, reason) in [
        (vec!["primary", "9"], "found no address of this machine with port 9"),
        (vec!["primary", "0"], "0 is not in"),
        (vec!["primary", "1538", "--cluster", "127.0.0.1"], "expected HOST:PORT"),
        (vec!["primary", "1538", "--advertise", "h:1"], "--advertise h:1"),
        (vec!["primary", "1538", "--min-copies", "4"], "--min-copies 4"),
        (vec!["leader", "1538"], "leader"),
        (vec![], "Usage"),
    ] {
        let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
        let mut server = Server::spawn_in(&arguments, directory.path());
        assert_eq!(server.wait().code(), Some(2), "{arguments:?}");
        wait_for("the reason is said", || server.err.contains(reason).then_some(()));
        assert!(server.out.all().is_empty());
    }
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "nothing was made");
}

#[test]
fn keygen_makes_a_key_once() {
    let directory = tempfile::tempdir().unwrap();
    let mut first = Server::spawn_in(&["keygen".to_owned()], directory.path());
    assert_eq!(first.wait().code(), Some(0));
    let key = fs::read_to_string(directory.path().join("cluster.key")).unwrap();
    assert_eq!((key.len(), key.ends_with('\n')), (65, true));
    let mut second = Server::spawn_in(&["keygen".to_owned()], directory.path());
    assert_eq!(second.wait().code(), Some(1));
    assert_eq!(fs::read_to_string(directory.path().join("cluster.key")).unwrap(), key);
}
