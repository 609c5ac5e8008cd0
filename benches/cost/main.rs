//! A run of three servers that takes the same instructions every time, for `scripts/check-cost` to count: sends through
//! frames, cores, prepares, logs in memory and replies. `cost CLIENTSxWINDOW MESSAGES`. The servers don't stop in order:
//! a checkpoint of everything would be no part of a message's cost.
#![allow(clippy::unwrap_used, reason = "a measurement that can't go on fails")]

#[path = "../world/mod.rs"]
mod world;

use bytes::{BufMut as _, BytesMut};
use lastword::config::CHECKPOINT_LOG_BYTES_MIN;
use lastword::message::Request;
use lastword::storage::MemoryDisk;
use lastword::types::{ConnectionId, ViewNumber};
use lastword::wire::client::encode_request;
use world::{World, account};

/// As in the server.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// As in `client bench`.
const TEXT_BYTES: usize = 100;
/// Clients tell so often which replies they have, as `client::Pipeline` does.
const TOLD_EVERY: u32 = 64;
/// Where a frame's request id stands.
const REQUEST_OFFSET: usize = 5;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [point, messages] = &words[..] else {
        eprintln!(
            "nothing is run: found {words:?}, expected CLIENTSxWINDOW MESSAGES (see scripts/check-cost)"
        );
        return;
    };
    let (clients, window) = point.split_once('x').expect("a point as CLIENTSxWINDOW");
    run(clients.parse().unwrap(), window.parse().unwrap(), messages.parse().unwrap());
}

/// So many clients have so many requests under way each: what is under way is taken up in one turn.
fn run(clients: u64, window: u32, messages: u64) {
    let addresses: Vec<String> = (1..=3).map(|server| format!("127.0.0.1:{server}538")).collect();
    let disks = (0..3).map(MemoryDisk::new).collect();
    let mut world = World::start(&addresses, disks, String::new(), CHECKPOINT_LOG_BYTES_MIN);
    // Each sends to an account of its own, which is not connected.
    world.register(0..2 * clients);
    let before = world.done;
    let sends: Vec<BytesMut> = (0..clients).map(|number| send(&account(clients + number).0)).collect();
    let (mut next, mut told) = (2, 0);
    let mut frames = BytesMut::new();
    while world.done - before < messages {
        for (number, send) in (0..clients).zip(&sends) {
            if next > told + TOLD_EVERY {
                let seen = Request::Seen { acknowledged: next - 1, view: ViewNumber::NONE };
                encode_request(&mut frames, 0, &seen);
            }
            for request in next..next + window {
                let start = frames.len();
                frames.put_slice(send);
                frames[start + REQUEST_OFFSET..][..4].copy_from_slice(&request.to_be_bytes());
            }
            world.say(ConnectionId(number), &mut frames);
        }
        if next > told + TOLD_EVERY {
            told = next - 1;
        }
        world.turn();
        next += window;
    }
    assert_eq!(world.done - before, messages, "messages are a multiple of what is under way");
}

fn send(to: &str) -> BytesMut {
    let mut frame = BytesMut::new();
    let request = Request::Send { to: to.to_owned(), text: "x".repeat(TEXT_BYTES) };
    encode_request(&mut frame, 0, &request);
    frame
}
