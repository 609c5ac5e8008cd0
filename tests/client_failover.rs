//! The client library against servers that follow scripts: whom it asks, what it repeats, and what it says when it
//! can't know.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

mod fake_server;

use fake_server::{
    Act, Asked, FakeServer, conflict, conflicts_after, dead_address, done, error, friendly, id, message,
    status,
};
use lastword::chat::command::{ConflictPage, MessagePage, MessageView, Reply};
use lastword::client::session_store::SessionStore;
use lastword::client::{Client, ClientError, Password, Settings};
use lastword::message::{ErrorCode, ErrorResponse, Push, Request, Response};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

fn client_of(servers: &[&FakeServer], timeout: Duration) -> Client {
    client_at(servers.iter().map(|server| server.address.clone()).collect(), timeout)
}

fn client_at(servers: Vec<String>, timeout: Duration) -> Client {
    let settings = Settings {
        servers,
        user: Some("alice".into()),
        password: Some(Password::new("correct horse".into())),
        timeout: Some(timeout),
    };
    Client::new(settings, SessionStore::in_memory()).unwrap()
}

const LONG: Duration = Duration::from_secs(20);

fn sends(server: &FakeServer) -> Vec<Asked> {
    server.asked().into_iter().filter(|asked| matches!(asked.request, Request::Send { .. })).collect()
}

fn answer(asked: &Asked) -> Vec<Act> {
    vec![Act::Answer(friendly(asked))]
}

#[tokio::test]
async fn a_backup_sends_the_client_to_the_primary_even_to_one_it_did_not_know() {
    let primary = FakeServer::start_friendly();
    let address = primary.address.clone();
    let backup = FakeServer::start(move |_| vec![Act::Answer(error(ErrorCode::NotPrimary, &address))]);
    let mut client = client_of(&[&backup], LONG);
    let done = client.send("bob", "hi").await.unwrap();
    assert_eq!((done.copies, done.configured), (3, 3));
    assert_eq!(sends(&backup).len(), 0);
    assert_eq!(sends(&primary).len(), 1);
    assert_eq!(client.servers(), [backup.address.clone(), primary.address.clone()]);
}

#[tokio::test]
async fn a_dead_server_is_passed_over_at_once() {
    let alive = FakeServer::start_friendly();
    let mut client = client_at(vec![dead_address(), alive.address.clone()], LONG);
    let started = Instant::now();
    client.send("bob", "hi").await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(5));
    assert_eq!(sends(&alive).len(), 1);
}

#[tokio::test]
async fn after_a_cut_connection_the_same_number_and_session_come_again() {
    let mut cut = false;
    let server = FakeServer::start(move |asked| {
        if matches!(asked.request, Request::Send { .. }) && !std::mem::replace(&mut cut, true) {
            return vec![Act::Close];
        }
        answer(asked)
    });
    let mut client = client_of(&[&server], LONG);
    client.send("bob", "hi").await.unwrap();
    let sends = sends(&server);
    assert_eq!(sends.len(), 2);
    assert_eq!(sends[0].number, sends[1].number);
    assert_ne!(sends[0].connection, sends[1].connection);
    let asked = server.asked_at_all();
    let login = asked.iter().find_map(|asked| match &asked.request {
        Request::Login { client, token, .. } => Some((*client, *token)),
        _ => None,
    });
    let resume = asked.iter().find_map(|asked| match &asked.request {
        Request::Resume { client, token } => Some((*client, *token)),
        _ => None,
    });
    assert!(login.is_some());
    assert_eq!(login, resume);
}

#[tokio::test]
async fn a_sent_request_without_an_answer_has_an_unknown_outcome() {
    let server = FakeServer::start(|asked| match asked.request {
        Request::Send { .. } => Vec::new(),
        _ => answer(asked),
    });
    let mut client = client_of(&[&server], Duration::from_millis(500));
    let error = client.send("bob", "hi").await.unwrap_err();
    assert!(matches!(error, ClientError::OutcomeUnknown { .. }), "{error}");
    assert_eq!(error.exit_code(), 6);
}

#[tokio::test]
async fn what_was_never_sent_was_certainly_not_carried_out() {
    let error =
        client_at(vec![dead_address()], Duration::from_millis(300)).send("bob", "hi").await.unwrap_err();
    assert!(matches!(error, ClientError::NoServer { .. }), "{error}");
    assert_eq!(error.exit_code(), 5);

    let mute = FakeServer::start(|asked| match asked.request {
        Request::Resume { .. } => Vec::new(),
        Request::Send { .. } => vec![Act::Close],
        _ => answer(asked),
    });
    let mut client = client_of(&[&mute], Duration::from_millis(500));
    client.ensure_session().await.unwrap();
    assert_eq!(client.send("bob", "hi").await.unwrap_err().exit_code(), 6, "sent once, then cut");
    assert_eq!(
        client.send("bob", "hi").await.unwrap_err().exit_code(),
        5,
        "never sent: the session was not resumed"
    );
}

#[tokio::test]
async fn a_refusal_after_a_lost_attempt_is_still_a_refusal() {
    let mut cut = false;
    let server = FakeServer::start(move |asked| match asked.request {
        Request::Send { .. } if !std::mem::replace(&mut cut, true) => vec![Act::Close],
        Request::Send { .. } => vec![Act::Answer(error(ErrorCode::NoSuchAccount, ""))],
        _ => answer(asked),
    });
    let error = client_of(&[&server], LONG).send("bob", "hi").await.unwrap_err();
    assert_eq!((error.exit_code(), error.keyword()), (4, "no_such_account"));
}

#[tokio::test]
async fn an_interrupted_request_that_may_be_executed_stays_uncertain() {
    let server = FakeServer::start(|asked| match asked.request {
        Request::Send { .. } => vec![Act::Answer(Response::Error(ErrorResponse {
            code: ErrorCode::Interrupted,
            maybe_executed: true,
            text: "stopping".into(),
            primary: String::new(),
        }))],
        _ => answer(asked),
    });
    let error = client_of(&[&server], Duration::from_millis(300)).send("bob", "hi").await.unwrap_err();
    assert_eq!(error.exit_code(), 6, "{error}");
}

#[tokio::test]
async fn a_busy_server_is_asked_again_under_the_same_number() {
    let mut busy = 3;
    let server = FakeServer::start(move |asked| {
        if matches!(asked.request, Request::Send { .. }) && busy > 0 {
            busy -= 1;
            return vec![Act::Answer(error(ErrorCode::Busy, ""))];
        }
        answer(asked)
    });
    client_of(&[&server], LONG).send("bob", "hi").await.unwrap();
    let numbers: Vec<_> = sends(&server).iter().map(|asked| asked.number).collect();
    assert_eq!(numbers, [2; 4]);
}

#[tokio::test]
async fn a_second_copy_of_a_reply_is_not_taken_for_another_requests() {
    let server = FakeServer::start(|asked| vec![Act::Answer(friendly(asked)), Act::Answer(friendly(asked))]);
    let mut client = client_of(&[&server], LONG);
    for _ in 0..3 {
        client.send("bob", "hi").await.unwrap();
        assert_eq!(client.list("", "", 0).await.unwrap().names.len(), 2);
    }
    let sent = client.send("bob", "last").await.unwrap().value;
    assert_eq!(sent.message, id(1, 5));
}

#[tokio::test]
async fn a_paused_primary_does_not_hold_a_client_when_another_server_leads() {
    let next = FakeServer::start_friendly();
    let paused = FakeServer::start(|asked| match asked.request {
        Request::Send { .. } | Request::Status => Vec::new(),
        _ => answer(asked),
    });
    let mut client = client_of(&[&paused, &next], Duration::from_secs(60));
    let started = Instant::now();
    client.send("bob", "hi").await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    assert_eq!(sends(&paused).len(), 1);
    assert_eq!(sends(&next)[0].number, sends(&paused)[0].number);
}

#[tokio::test]
async fn an_ended_session_is_begun_anew_when_the_password_is_known() {
    let server = FakeServer::start({
        let mut logins = 0;
        move |asked| match asked.request {
            Request::Login { .. } => {
                logins += 1;
                answer(asked)
            }
            Request::Send { .. } if logins == 1 => vec![Act::Answer(error(ErrorCode::SessionExpired, ""))],
            _ => answer(asked),
        }
    });
    client_of(&[&server], LONG).send("bob", "hi").await.unwrap();
    let clients: Vec<_> = server
        .asked()
        .iter()
        .filter_map(|asked| match asked.request {
            Request::Login { client, .. } => Some(client),
            _ => None,
        })
        .collect();
    assert_eq!(clients.len(), 2);
    assert_ne!(clients[0], clients[1]);
}

#[tokio::test]
async fn a_request_that_may_be_executed_is_not_repeated_in_another_session() {
    let mut cut = false;
    let server = FakeServer::start(move |asked| match asked.request {
        Request::Send { .. } if !std::mem::replace(&mut cut, true) => vec![Act::Close],
        Request::Resume { .. } => vec![Act::Answer(error(ErrorCode::SessionExpired, ""))],
        _ => answer(asked),
    });
    let error = client_of(&[&server], LONG).send("bob", "hi").await.unwrap_err();
    assert_eq!(error.exit_code(), 6, "{error}");
    assert_eq!(sends(&server).len(), 1);
}

#[tokio::test]
async fn a_logout_whose_answer_was_lost_is_a_logout() {
    let mut cut = false;
    let server = FakeServer::start(move |asked| match asked.request {
        Request::Logout { .. } if !std::mem::replace(&mut cut, true) => vec![Act::Close],
        Request::Resume { .. } => vec![Act::Answer(error(ErrorCode::SessionExpired, ""))],
        _ => answer(asked),
    });
    let mut client = client_of(&[&server], LONG);
    client.logout(false).await.unwrap();
    assert_eq!(client.name(), None);
}

#[tokio::test]
async fn servers_are_told_what_the_client_has_seen() {
    let server = FakeServer::start_friendly();
    let mut client = client_of(&[&server], LONG);
    client.send("bob", "one").await.unwrap();
    client.send("bob", "two").await.unwrap();
    let seen: Vec<_> = server
        .asked_at_all()
        .iter()
        .filter_map(|asked| match asked.request {
            Request::Seen { acknowledged, view } => Some((acknowledged, view)),
            _ => None,
        })
        .collect();
    assert_eq!(seen.last(), Some(&(2, fake_server::VIEW)), "{seen:?}");
}

#[tokio::test]
async fn a_listener_gets_each_message_once_over_a_cut_connection() {
    let (mut subscriptions, mut cut) = (0, false);
    let server = FakeServer::start(move |asked| match asked.request {
        Request::Subscribe => {
            subscriptions += 1;
            let subscribed = Act::Answer(Response::Subscribed);
            let push = |number| Act::Push(Push::Message(message(number, "pushed")));
            // The first connection pushes a message that is also read, and a new one, and is cut at the acknowledgement.
            if subscriptions == 1 { vec![subscribed, push(2), push(3)] } else { vec![subscribed, push(4)] }
        }
        Request::Acknowledge { .. } if !std::mem::replace(&mut cut, true) => vec![Act::Close],
        Request::Read { after: 0, .. } => {
            // Nothing was acknowledged, so that the second connection reads all again.
            let messages = if subscriptions == 1 { vec![1, 2] } else { vec![1, 2, 3] };
            let messages = messages.into_iter().map(|number| message(number, "read")).collect();
            vec![Act::Answer(Response::Messages(MessagePage { messages, more: false }))]
        }
        _ => answer(asked),
    });
    let mut client = client_of(&[&server], LONG);
    let mut got = Vec::new();
    for _ in 0..3 {
        got.push(client.next_message().await.unwrap().id);
    }
    client.acknowledge(&got).await.unwrap();
    got.push(client.next_message().await.unwrap().id);
    assert_eq!(got, [1, 2, 3, 4].map(|number| id(0xb0b, number)));
}

#[tokio::test]
async fn a_message_that_another_log_has_elsewhere_comes_once() {
    let (mut subscriptions, mut acknowledged) = (0, false);
    let server = FakeServer::start(move |asked| match asked.request {
        Request::Subscribe => {
            subscriptions += 1;
            let elsewhere = MessageView { late: true, cursor: 12, ..message(2, "again") };
            let mut acts = vec![Act::Answer(Response::Subscribed)];
            if subscriptions == 2 {
                // What was acknowledged on one side of a split waits again on the other until that is made up for.
                acts.extend([elsewhere, message(13, "new")].map(|view| Act::Push(Push::Message(view))));
            }
            acts
        }
        Request::Acknowledge { .. } if !std::mem::replace(&mut acknowledged, true) => {
            vec![Act::Answer(friendly(asked)), Act::Close]
        }
        Request::Read { after: 0, .. } if subscriptions == 2 => {
            let elsewhere = MessageView { late: true, cursor: 11, ..message(1, "again") };
            let page = MessagePage { messages: vec![message(10, "other"), elsewhere], more: false };
            vec![Act::Answer(Response::Messages(page))]
        }
        _ => answer(asked),
    });
    let mut client = client_of(&[&server], LONG);
    let mut got = Vec::new();
    for _ in 0..2 {
        got.push(client.next_message().await.unwrap());
    }
    client.acknowledge(&got.iter().map(|view| view.id).collect::<Vec<_>>()).await.unwrap();
    for _ in 0..2 {
        got.push(client.next_message().await.unwrap());
    }
    let mut got: Vec<_> = got.iter().map(|view| view.id).collect();
    got.sort();
    assert_eq!(got, [1, 2, 10, 13].map(|number| id(0xb0b, number)));
}

#[tokio::test]
async fn a_late_message_says_so() {
    let server = FakeServer::start(|asked| match asked.request {
        Request::Read { .. } => {
            let messages = vec![message(1, "in order"), MessageView { late: true, ..message(2, "late") }];
            vec![Act::Answer(Response::Messages(MessagePage { messages, more: false }))]
        }
        _ => answer(asked),
    });
    let page = client_of(&[&server], LONG).read(0, 0).await.unwrap();
    assert_eq!(page.messages.iter().map(|message| message.late).collect::<Vec<_>>(), [false, true]);
}

#[tokio::test]
async fn each_conflict_is_new_until_it_is_told_and_all_are_when_another_log_has_won() {
    let all = Arc::new(Mutex::new(vec![conflict(5, "one"), conflict(7, "two"), conflict(9, "three")]));
    let of_the_server = Arc::clone(&all);
    let server = FakeServer::start(move |asked| match asked.request {
        Request::Conflicts { after, limit } => {
            vec![Act::Answer(conflicts_after(&of_the_server.lock().unwrap(), after, limit))]
        }
        _ => answer(asked),
    });
    let directory = tempfile::tempdir().unwrap();
    let client = || {
        let settings = Settings {
            servers: vec![server.address.clone()],
            user: Some("alice".into()),
            password: Some(Password::new("correct horse".into())),
            timeout: Some(LONG),
        };
        Client::new(settings, SessionStore::open(directory.path()).unwrap()).unwrap()
    };
    let cursors = |page: &ConflictPage| page.conflicts.iter().map(|c| c.cursor).collect::<Vec<_>>();

    let mut first = client();
    let page = first.new_conflicts(2).await.unwrap();
    assert_eq!((cursors(&page), page.more), (vec![5, 7], true));
    first.note_told(&page.conflicts[1]).unwrap();
    let page = client().new_conflicts(2).await.unwrap();
    assert_eq!((cursors(&page), page.more), (vec![9], false));
    client().note_told(&page.conflicts[0]).unwrap();
    let mut second = client();
    second.ensure_session().await.unwrap();
    assert_eq!(cursors(&second.new_conflicts(0).await.unwrap()), [9], "a client that knows no account yet");
    second.note_told(&page.conflicts[0]).unwrap();
    assert_eq!(cursors(&client().new_conflicts(0).await.unwrap()), Vec::<u64>::new());

    // The log that gave out these cursors has lost: the same conflicts stand elsewhere now.
    *all.lock().unwrap() = vec![conflict(4, "three"), conflict(8, "one"), conflict(10, "new")];
    assert_eq!(cursors(&client().new_conflicts(0).await.unwrap()), [4, 8, 10]);
}

#[tokio::test]
async fn an_account_that_was_renamed_is_known_by_its_new_name() {
    let server = FakeServer::start(|asked| match (&asked.request, friendly(asked)) {
        (Request::Resume { .. }, Response::Resumed { account, waiting, view, .. }) => {
            vec![Act::Answer(Response::Resumed { account, name: "alice~2".into(), waiting, view })]
        }
        (Request::Send { .. }, _) if asked.connection == 0 => vec![Act::Close],
        (_, friendly) => vec![Act::Answer(friendly)],
    });
    let mut client = client_of(&[&server], LONG);
    client.ensure_session().await.unwrap();
    assert_eq!(client.name(), Some("alice"));
    client.send("bob", "hi").await.unwrap();
    assert_eq!(client.name(), Some("alice~2"));
}

#[tokio::test]
async fn a_session_that_is_ended_elsewhere_ends_the_listening() {
    let server = FakeServer::start(|asked| match asked.request {
        Request::Subscribe => vec![Act::Answer(Response::Subscribed), Act::Push(Push::SessionEnded)],
        Request::Read { .. } => vec![Act::Answer(Response::Messages(MessagePage::default()))],
        _ => answer(asked),
    });
    let error = client_of(&[&server], LONG).next_message().await.unwrap_err();
    assert_eq!(error.exit_code(), 3, "{error}");
}

#[tokio::test]
async fn a_session_on_disk_goes_on_in_the_next_process_under_new_numbers() {
    let server = FakeServer::start_friendly();
    let directory = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        let settings = Settings {
            servers: vec![server.address.clone()],
            user: Some("alice".into()),
            password: Some(Password::new("correct horse".into())),
            timeout: Some(LONG),
        };
        let store = SessionStore::open(directory.path()).unwrap();
        Client::new(settings, store).unwrap().send("bob", "hi").await.unwrap();
    }
    let asked = server.asked();
    assert_eq!(asked.iter().filter(|asked| matches!(asked.request, Request::Login { .. })).count(), 1);
    assert_eq!(sends(&server).iter().map(|asked| asked.number).collect::<Vec<_>>(), [2, 3, 4]);
}

#[tokio::test]
async fn a_server_that_speaks_another_protocol_is_no_server() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ =
                tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let error = client_at(vec![address], Duration::from_millis(300)).list("", "", 0).await.unwrap_err();
    assert!(error.exit_code() == 5 || error.exit_code() == 6, "{error}");
}

#[tokio::test]
async fn every_server_is_asked_for_its_status_at_once() {
    let leader =
        FakeServer::start(|asked| vec![Act::Answer(status("primary", &format!("x:{}", asked.number)))]);
    let mute = FakeServer::start(|_| Vec::new());
    let servers = [leader.address.clone(), mute.address.clone(), dead_address()];
    let answers = lastword::client::status_of_all(&servers, Duration::from_millis(500)).await;
    assert_eq!(answers[0].as_ref().unwrap().role, "primary");
    assert!(answers[1].as_ref().unwrap_err().contains("does not answer"));
    assert!(answers[2].as_ref().unwrap_err().contains("refused"));
}

#[tokio::test]
async fn an_answer_that_is_none_is_named() {
    let server = FakeServer::start(|asked| match asked.request {
        Request::List { .. } => vec![Act::Answer(done(Reply::LoggedOut))],
        _ => answer(asked),
    });
    let error = client_of(&[&server], LONG).list("", "", 0).await.unwrap_err();
    assert!(error.to_string().contains("answered done, expected account names"), "{error}");
}

#[tokio::test]
async fn a_login_of_another_process_replaces_the_session_of_a_running_one() {
    let server = FakeServer::start_friendly();
    let directory = tempfile::tempdir().unwrap();
    let client = |password: Option<&str>| {
        let settings = Settings {
            servers: vec![server.address.clone()],
            user: Some("alice".into()),
            password: password.map(|password| Password::new(password.into())),
            timeout: Some(LONG),
        };
        Client::new(settings, SessionStore::open(directory.path()).unwrap()).unwrap()
    };
    client(Some("correct horse")).ensure_session().await.unwrap();
    let mut running = client(None);
    running.send("bob", "in the first session").await.unwrap();
    client(None).login("alice", &Password::new("correct horse".into())).await.unwrap();
    running.send("bob", "in the second").await.unwrap();
    assert_eq!(sends(&server).iter().map(|asked| asked.number).collect::<Vec<_>>(), [2, 2]);
    let resumed: Vec<_> = server
        .asked_at_all()
        .iter()
        .filter_map(|asked| match asked.request {
            Request::Resume { client, .. } => Some(client),
            _ => None,
        })
        .collect();
    assert_eq!(resumed.len(), 2);
    assert_ne!(resumed[0], resumed[1]);
}
