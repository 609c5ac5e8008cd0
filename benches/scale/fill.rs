//! Fills the directories of servers that don't run, by running their cores without sockets.

use crate::world::{PASSWORD, World, account};
use bytes::BytesMut;
use lastword::config::CHECKPOINT_LOG_BYTES_MIN;
use lastword::message::Request;
use lastword::replica::{HashJob, Hashed};
use lastword::server::passwords::Passwords;
use lastword::storage::OsDisk;
use lastword::time;
use lastword::types::{ConnectionId, ViewNumber};
use lastword::wire::client::encode_request;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// So many commands are under way at once.
const BATCH: u64 = 4096;
const TEXT_BYTES: usize = 100;
/// Each account writes to so many others.
const PARTNERS: u64 = 4;
/// How many commands lie between two reports.
const REPORT_EVERY: u64 = 1 << 20;
/// The number of an account's first request after its registration.
pub(crate) const FIRST_NUMBER: u32 = 2;

/// Registers accounts, numbered from 0, and lets them send messages that nobody reads; then stops in order. One
/// password is hashed, and taken for that of all. Gives the number of the next request of each account.
pub(crate) async fn fill(addresses: &[String], data: &[PathBuf], accounts: u64, messages: u64) -> u32 {
    let job = HashJob::New { password: PASSWORD.to_owned() };
    let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let hashed = Arc::new(Passwords::new()).perform(String::new(), here, time::Instant::ZERO, job).await;
    let Hashed::New(hash) = hashed else { panic!("found {hashed:?}, expected a hash") };
    let disks = data.iter().map(|directory| OsDisk::open(directory).unwrap()).collect();
    let begun = Instant::now();
    let mut world = World::start(addresses, disks, hash, CHECKPOINT_LOG_BYTES_MIN);
    let mut registered = 0;
    while registered < accounts {
        let next = accounts.min(registered + BATCH);
        world.register(registered..next);
        registered = next;
        report(world.done, accounts + messages, begun);
    }
    let mut frames = BytesMut::new();
    for sent in 0..messages {
        let (from, round) = (sent % accounts, sent / accounts);
        let number = FIRST_NUMBER + u32::try_from(round).unwrap();
        let to = from.wrapping_mul(7919).wrapping_add(1 + round % PARTNERS) % accounts;
        let text = format!("{sent:0TEXT_BYTES$}");
        let seen = Request::Seen { acknowledged: number - 1, view: ViewNumber::NONE };
        encode_request(&mut frames, 0, &seen);
        encode_request(&mut frames, number, &Request::Send { to: account(to).0, text });
        world.say(ConnectionId(from), &mut frames);
        if (sent + 1) % BATCH == 0 {
            world.turn();
            report(world.done, accounts + messages, begun);
        }
    }
    world.turn();
    assert_eq!(world.done, accounts + messages, "every command is done");
    world.stop();
    println!(
        "filled with {accounts} accounts and {messages} messages in {:.1} s",
        begun.elapsed().as_secs_f64()
    );
    FIRST_NUMBER + u32::try_from(messages.div_ceil(accounts)).unwrap()
}

fn report(done: u64, all: u64, begun: Instant) {
    if done / REPORT_EVERY != (done - BATCH.min(done)) / REPORT_EVERY {
        eprintln!("{done} of {all} commands after {:.0} s", begun.elapsed().as_secs_f64());
    }
}
