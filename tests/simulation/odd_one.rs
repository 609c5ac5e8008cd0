//! Directed histories of servers whose answers differ from the others' although their logs are the same (D7).

use std::time::Duration;

use lastword::replica::Exit;

use crate::runner::{check_disks, describe};
use crate::scenarios::{
    ALICE, BOB, LATER, await_dropped, await_leader, await_whole, installed_view, running_world, send,
};
use crate::server::{Death, server_id};
use crate::world::World;

/// Starts a server again, with a state that has once answered otherwise.
fn restart_spoilt(world: &mut World, at: usize) {
    world.crash(at, Death::Kill);
    world.servers[at].spoilt = true;
    world.start(at);
}

/// Waits until it has stopped by itself, and looks at what it said.
fn await_stopped(world: &mut World, at: usize) {
    let stopped = |world: &mut World| world.servers[at].process.is_none();
    assert!(world.run_until(LATER, stopped), "seed {}: it goes on; {}", world.seed, describe(world));
    let Some(Exit::Refused(why)) = &world.servers[at].exited else {
        panic!("server {} ended otherwise: {:?}", at + 1, world.servers[at].exited)
    };
    assert!(why.contains("differ from"), "{why}");
}

/// It is started again as it is, takes everything from the others, and all are the same in the end.
fn heal(world: &mut World, at: usize) {
    world.servers[at].spoilt = false;
    world.start(at);
    await_whole(world);
    check_disks(world);
}

/// Sends so much that the next mark is reached, whatever the view entries before it.
fn fill(world: &mut World) {
    for number in 0..8 {
        send(world, ALICE, BOB, &format!("message {number}"));
    }
}

#[test]
fn a_backup_whose_answers_differ_stops_and_takes_everything_anew_from_the_others() {
    for seed in 0..10 {
        let mut world = running_world(seed);
        fill(&mut world);
        let leader = await_leader(&mut world);
        let odd = (leader + 1 + usize::try_from(seed % 2).expect("small")) % 3;
        // As soon as it is in the view, the view's first entry shows it.
        restart_spoilt(&mut world, odd);
        await_stopped(&mut world, odd);
        assert_ne!(await_leader(&mut world), odd);
        await_dropped(&mut world, odd);
        fill(&mut world);
        heal(&mut world, odd);
    }
}

#[test]
fn a_primary_whose_answers_differ_from_those_of_both_backups_stops() {
    for seed in 0..10 {
        let mut world = running_world(seed);
        fill(&mut world);
        world.run_for(Duration::from_secs(2));
        // Nobody is in a view while all are down, so the odd one may lead.
        for at in 0..3 {
            world.crash(at, Death::Kill);
        }
        world.servers[0].spoilt = true;
        (0..3).for_each(|at| world.start(at));
        await_stopped(&mut world, 0);
        assert_ne!(await_leader(&mut world), 0);
        await_dropped(&mut world, 0);
        fill(&mut world);
        heal(&mut world, 0);
    }
}

/// With two nobody can tell who is wrong, so the one stops that clients can do without.
#[test]
fn of_two_whose_answers_differ_the_backup_stops() {
    for seed in 0..10 {
        let mut world = running_world(seed);
        fill(&mut world);
        let leader = await_leader(&mut world);
        let (gone, odd) = ((leader + 1) % 3, (leader + 2) % 3);
        world.crash(gone, Death::Kill);
        await_dropped(&mut world, gone);
        restart_spoilt(&mut world, odd);
        await_stopped(&mut world, odd);
        await_dropped(&mut world, odd);
        assert!(installed_view(&world, leader).member(server_id(leader)).is_some(), "{}", describe(&world));
        fill(&mut world);
        world.start(gone);
        heal(&mut world, odd);
    }
}
