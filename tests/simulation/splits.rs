//! Directed histories of split brains: both sides acknowledge, then they meet again (R1-R8).

use std::time::Duration;

use lastword::message::Response;

use crate::client::{Ended, Op};
use crate::runner::{check_disks, describe, is_whole};
use crate::scenarios::{ALICE, BOB, LATER, await_whole, is_done, leader, running_world, send};
use crate::server::Death;
use crate::world::World;

/// The third client; client 0 stays with server 0, and so on.
const CAROL: usize = 2;
/// After healing everything is where it belongs within this time.
const HEALED_WITHIN: Duration = Duration::from_secs(5);

/// Three servers in one view, and three clients that are registered everywhere.
fn world_of_three(seed: u64) -> World {
    let mut world = running_world(seed);
    assert_eq!(world.add_client(), CAROL);
    assert!(is_done(world.wait_for_client(CAROL, LATER).as_ref()), "{}", describe(&world));
    world
}

/// Cuts all paths between the groups; each client reaches only the server of its own number.
fn split(world: &mut World, groups: &[&[usize]]) {
    world.split = true;
    world.oracle.split = true;
    for (at, group) in groups.iter().enumerate() {
        for other in groups[at + 1..].iter().flat_map(|other| other.iter()) {
            for one in *group {
                world.block(*one, *other, false);
            }
        }
    }
}

fn heal_paths(world: &mut World) {
    world.network.heal();
    for client in &mut world.clients {
        client.pinned = None;
    }
}

fn serves(world: &World, at: usize) -> bool {
    world.servers[at].replica().is_some_and(|replica| replica.is_serving())
}

fn await_serving(world: &mut World, servers: &[usize]) {
    let all = |world: &mut World| servers.iter().all(|&at| serves(world, at));
    assert!(world.run_until(LATER, all), "not all of {servers:?} lead; {}", describe(world));
}

fn pin(world: &mut World, client: usize, server: usize) {
    world.clients[client].pinned = Some(server);
}

/// What a client reads waiting, all pages of it.
fn mailbox(world: &mut World, who: usize) -> Vec<String> {
    world.wish(who, Op::Read);
    match world.wait_for_client(who, LATER) {
        Some(Ended::Answered(Response::Messages(page))) => {
            assert!(!page.more, "a test that needs more than a page");
            page.messages.into_iter().map(|message| message.text).collect()
        }
        other => panic!("seed {}: a read ended as {other:?}; {}", world.seed, describe(world)),
    }
}

fn await_healed(world: &mut World) {
    let begun = world.now;
    assert!(
        world.run_until(HEALED_WITHIN, is_whole),
        "seed {}: not whole {HEALED_WITHIN:?} after the split; {}",
        world.seed,
        describe(world)
    );
    let took = world.now.since(begun);
    assert!(took <= HEALED_WITHIN, "seed {}: it took {took:?}", world.seed);
}

/// Each message of each mailbox is there, once.
fn check_mailboxes(world: &mut World, expected: &[Vec<String>]) {
    for (who, expected) in expected.iter().enumerate() {
        let (mut found, mut expected) = (mailbox(world, who), expected.clone());
        found.sort();
        expected.sort();
        assert_eq!(found, expected, "seed {}: the mailbox of client {who}", world.seed);
    }
}

#[test]
fn thirty_seconds_of_three_lonely_primaries_lose_nothing_and_double_nothing() {
    for seed in 0..10 {
        let mut world = world_of_three(seed);
        split(&mut world, &[&[0], &[1], &[2]]);
        let begun = world.now;
        await_serving(&mut world, &[0, 1, 2]);
        let mut sent = vec![Vec::new(); 3];
        (0..3).for_each(|at| pin(&mut world, at, at));
        let mut number = 0;
        while world.now.since(begun) < Duration::from_secs(30) {
            number += 1;
            for from in [ALICE, BOB, CAROL] {
                let to = (from + 1 + number % 2) % 3;
                let text = format!("{number} from {from} on its own server");
                send(&mut world, from, to, &text);
                sent[to].push(text);
            }
            world.run_for(Duration::from_millis(400));
        }
        heal_paths(&mut world);
        await_healed(&mut world);
        check_mailboxes(&mut world, &sent);
        check_disks(&mut world);
    }
}
