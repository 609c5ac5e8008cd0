//! A session with many requests under way, against servers that follow scripts: nothing is repeated that has its answer,
//! everything else is, in its order and under its number.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic like tests")]

mod fake_server;

use fake_server::{Act, Asked, FakeServer, dead_address, error, friendly, message, status};
use lastword::client::session_store::StoredSession;
use lastword::client::{Arrival, ClientError, Pipeline};
use lastword::message::{ErrorCode, Push, Request, Response};
use lastword::types::ClientId;
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(20);

fn pipeline(servers: Vec<String>, timeout: Duration) -> Pipeline {
    let primary = servers[0].clone();
    let session = StoredSession { name: "alice".into(), client: ClientId(5), token: [7; 32], primary };
    Pipeline::new(servers, session, 2, timeout)
}

fn begin_sends(pipeline: &mut Pipeline, count: u32) {
    for number in 0..count {
        let request = Request::Send { to: "bob".into(), text: number.to_string() };
        pipeline.begin(request, Instant::now());
    }
}

/// Waits for everything; gives the numbers in the order of their answers.
async fn drain(pipeline: &mut Pipeline) -> Result<Vec<u32>, ClientError> {
    let (mut arrivals, mut numbers) = (Vec::new(), Vec::new());
    while pipeline.in_flight() > 0 {
        pipeline.next(&mut arrivals).await?;
        for arrival in arrivals.drain(..) {
            let Arrival::Answer(answer) = arrival else { continue };
            assert!(matches!(answer.response, Response::Done { .. }), "{answer:?}");
            numbers.push(answer.number);
        }
    }
    Ok(numbers)
}

/// The numbers of the sends that a server was asked for over one of its connections.
fn sends(server: &FakeServer, connection: usize) -> Vec<u32> {
    let asked = server.asked().into_iter();
    let sends = asked.filter(|asked| asked.connection == connection);
    sends.filter(|asked| matches!(asked.request, Request::Send { .. })).map(|asked| asked.number).collect()
}

fn answer(asked: &Asked) -> Vec<Act> {
    vec![Act::Answer(friendly(asked))]
}

#[tokio::test]
async fn after_a_cut_connection_what_has_no_answer_comes_again_in_its_order_and_under_its_numbers() {
    let server = FakeServer::start(|asked| match asked.number {
        4.. if asked.connection == 0 && matches!(asked.request, Request::Send { .. }) => vec![Act::Close],
        _ => answer(asked),
    });
    let mut pipeline = pipeline(vec![server.address.clone()], LONG);
    begin_sends(&mut pipeline, 5);
    assert_eq!(drain(&mut pipeline).await.unwrap(), [2, 3, 4, 5, 6]);
    assert_eq!(sends(&server, 0), [2, 3, 4]);
    assert_eq!(sends(&server, 1), [4, 5, 6]);
    let resumed = server
        .asked_at_all()
        .into_iter()
        .filter(|asked| asked.request == Request::Resume { client: ClientId(5), token: [7; 32] });
    assert_eq!(resumed.map(|asked| asked.connection).collect::<Vec<_>>(), [0, 1]);
}

#[tokio::test]
async fn everything_moves_to_the_server_that_a_backup_names() {
    let primary = FakeServer::start_friendly();
    let address = primary.address.clone();
    let backup = FakeServer::start(move |_| vec![Act::Answer(error(ErrorCode::NotPrimary, &address))]);
    let servers = vec![backup.address.clone(), dead_address(), primary.address.clone()];
    let mut pipeline = pipeline(servers, LONG);
    begin_sends(&mut pipeline, 3);
    assert_eq!(drain(&mut pipeline).await.unwrap(), [2, 3, 4]);
    assert_eq!(sends(&primary, 0), [2, 3, 4]);
}

#[tokio::test]
async fn a_silent_server_is_left_when_another_says_that_it_leads() {
    let silent = FakeServer::start(|_| Vec::new());
    let leading = FakeServer::start(|asked| match asked.request {
        Request::Status => vec![Act::Answer(status("primary", ""))],
        _ => answer(asked),
    });
    let mut pipeline = pipeline(vec![silent.address.clone(), leading.address.clone()], LONG);
    begin_sends(&mut pipeline, 2);
    assert_eq!(drain(&mut pipeline).await.unwrap(), [2, 3]);
}

#[tokio::test]
async fn only_what_a_busy_server_refused_comes_again() {
    let mut refused = false;
    let server = FakeServer::start(move |asked| match asked.number {
        3 if !std::mem::replace(&mut refused, true) => {
            vec![Act::Answer(error(ErrorCode::Busy, ""))]
        }
        _ => answer(asked),
    });
    let mut pipeline = pipeline(vec![server.address.clone()], LONG);
    begin_sends(&mut pipeline, 3);
    assert_eq!(drain(&mut pipeline).await.unwrap(), [2, 4, 3]);
    assert_eq!(sends(&server, 0), [2, 3, 4, 3]);
}

#[tokio::test]
async fn a_server_that_is_always_busy_is_given_up_after_the_timeout() {
    let sends_refused = |asked: &Asked| matches!(asked.request, Request::Send { .. });
    let everything_refused = |_: &Asked| true;
    for refuses in [sends_refused as fn(&Asked) -> bool, everything_refused] {
        let server = FakeServer::start(move |asked| {
            let busy = vec![Act::Answer(error(ErrorCode::Busy, ""))];
            if refuses(asked) { busy } else { answer(asked) }
        });
        let mut pipeline = pipeline(vec![server.address.clone()], Duration::from_millis(300));
        begin_sends(&mut pipeline, 2);
        let error = drain(&mut pipeline).await.unwrap_err();
        assert_eq!(error.exit_code(), 5, "{error}");
        assert!(error.to_string().contains("busy"), "{error}");
    }
}

#[tokio::test]
async fn a_session_that_is_over_ends_the_pipeline() {
    let server = FakeServer::start(|_| vec![Act::Answer(error(ErrorCode::SessionExpired, ""))]);
    let mut pipeline = pipeline(vec![server.address.clone()], LONG);
    begin_sends(&mut pipeline, 1);
    let error = drain(&mut pipeline).await.unwrap_err();
    assert_eq!(error.keyword(), "session_expired");
}

#[tokio::test]
async fn messages_are_pushed_again_after_a_cut_connection_and_that_is_told() {
    let server = FakeServer::start(|asked| match asked.request {
        Request::Subscribe => {
            let number = 1 + u64::try_from(asked.connection).unwrap();
            let push = Act::Push(Push::Message(message(number, "hi")));
            let subscribed = Act::Answer(friendly(asked));
            if asked.connection == 0 { vec![subscribed, push, Act::Close] } else { vec![subscribed, push] }
        }
        _ => answer(asked),
    });
    let mut pipeline = pipeline(vec![server.address.clone()], LONG);
    pipeline.subscribe();
    let mut arrivals = Vec::new();
    while arrivals.len() < 4 {
        pipeline.next(&mut arrivals).await.unwrap();
    }
    let told: Vec<u64> = arrivals
        .iter()
        .map(|arrival| match arrival {
            Arrival::Subscribed => 0,
            Arrival::Message(message) => message.id.0.number.0,
            Arrival::Answer(answer) => panic!("nothing was asked: {answer:?}"),
        })
        .collect();
    assert_eq!(told, [0, 1, 0, 2]);
}

#[tokio::test]
async fn no_more_commands_than_the_window_run_ahead_of_the_oldest_unanswered_one() {
    let mut pipeline = pipeline(vec![dead_address()], LONG);
    let mut begun = 0;
    while pipeline.has_room() {
        begin_sends(&mut pipeline, 1);
        begun += 1;
    }
    assert_eq!(begun, lastword::config::REQUEST_WINDOW);
    pipeline.abandon();
    assert!(pipeline.has_room());
}
