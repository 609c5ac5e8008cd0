//! Directed histories of split brains: both sides acknowledge, then they meet again (R1-R8).

use std::time::Duration;

use lastword::message::Response;
use lastword::replica::{Event, FirstRole};

use crate::client::{Ended, Op};
use crate::faults::Fault;
use crate::runner::{check_disks, describe, diverged_files, is_whole};
use crate::scenarios::{
    ALICE, BOB, LATER, SOON, await_dropped, await_leader, begin, installed_view, is_done, new_world, send,
    world_with,
};
use crate::server::Death;
use crate::swarm::Swarm;
use crate::world::World;

/// The third client; client 0 stays with server 0, and so on.
const CAROL: usize = 2;
/// After healing everything is where it belongs within this time.
const HEALED_WITHIN: Duration = Duration::from_secs(5);

/// Three servers in one view, and three clients that are registered everywhere.
fn world_of_three(seed: u64) -> World {
    world_of_three_with(seed, Swarm::calm())
}

fn world_of_three_with(seed: u64, swarm: Swarm) -> World {
    let mut world = begin(world_with(seed, swarm));
    assert_eq!(world.add_client(), CAROL);
    assert!(is_done(world.wait_for_client(CAROL, LATER).as_ref()), "{}", describe(&world));
    world
}

/// Cuts all paths between the groups; each client reaches only the server of its own number.
pub(crate) fn split(world: &mut World, groups: &[&[usize]]) {
    world.split = true;
    for (at, group) in groups.iter().enumerate() {
        for other in groups[at + 1..].iter().flat_map(|other| other.iter()) {
            for one in *group {
                world.block(*one, *other, false);
            }
        }
    }
}

pub(crate) fn heal_paths(world: &mut World) {
    world.network.heal();
    for client in &mut world.clients {
        client.pinned = None;
    }
}

pub(crate) fn serves(world: &World, at: usize) -> bool {
    world.servers[at].replica().is_some_and(|replica| replica.is_serving())
}

fn await_serving(world: &mut World, servers: &[usize]) {
    let all = |world: &mut World| servers.iter().all(|&at| serves(world, at));
    assert!(world.run_until(LATER, all), "not all of {servers:?} lead; {}", describe(world));
}

pub(crate) fn pin(world: &mut World, client: usize, server: usize) {
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

pub(crate) fn await_healed(world: &mut World) {
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

/// Sends to each of the others from each of these clients, on the server it is pinned to, and notes what is to arrive.
fn send_around(world: &mut World, from: &[usize], words: &str, sent: &mut [Vec<String>]) {
    for &from in from {
        for to in (0..3).filter(|&to| to != from) {
            let text = format!("{words}, from {from} to {to}");
            send(world, from, to, &text);
            sent[to].push(text);
        }
    }
}

/// Three primaries, each alone, each with something that only it has acknowledged.
fn three_lonely_primaries(seed: u64) -> (World, Vec<Vec<String>>) {
    lonely_primaries(world_of_three(seed))
}

fn lonely_primaries(mut world: World) -> (World, Vec<Vec<String>>) {
    let mut sent = vec![Vec::new(); 3];
    send_around(&mut world, &[ALICE, BOB, CAROL], "before", &mut sent);
    split(&mut world, &[&[0], &[1], &[2]]);
    await_serving(&mut world, &[0, 1, 2]);
    (0..3).for_each(|at| pin(&mut world, at, at));
    send_around(&mut world, &[ALICE, BOB, CAROL], "alone", &mut sent);
    (world, sent)
}

/// Everything is where it belongs: once, and the same on all servers.
fn check_all(world: &mut World, sent: &[Vec<String>]) {
    heal_paths(world);
    for at in 0..3 {
        if world.servers[at].process.is_none() {
            world.start(at);
        }
    }
    await_healed(world);
    check_mailboxes(world, sent);
    check_disks(world);
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

#[test]
fn a_primary_cut_off_from_both_others_goes_on_alone_and_nothing_is_lost() {
    for seed in 0..12 {
        let mut world = world_of_three(seed);
        let mut sent = vec![Vec::new(); 3];
        let alone = await_leader(&mut world);
        let pair: Vec<usize> = (0..3).filter(|&at| at != alone).collect();
        split(&mut world, &[&[alone], &pair]);
        await_serving(&mut world, &[alone]);
        let leads = |world: &mut World| pair.iter().any(|&at| serves(world, at));
        assert!(world.run_until(LATER, leads), "{}", describe(&world));
        let other = pair.iter().copied().find(|&at| serves(&world, at)).expect("one of them leads");
        pin(&mut world, ALICE, alone);
        pin(&mut world, BOB, other);
        pin(&mut world, CAROL, other);
        await_serving(&mut world, &[alone, other]);
        for round in 0..5 {
            send_around(&mut world, &[ALICE, BOB, CAROL], &format!("round {round}"), &mut sent);
            // Long enough for checkpoints that hold what the other side does not have.
            world.run_for(Duration::from_millis(500 * (seed % 4)));
        }
        check_all(&mut world, &sent);
    }
}

/// First two of three lonely primaries meet, and one yields; then the two of them meet the third, and may lose.
#[test]
fn a_split_within_a_split_loses_nothing_even_if_the_winner_of_one_loses_the_next() {
    let mut lost = 0;
    for seed in 0..24 {
        let (mut world, mut sent) = three_lonely_primaries(seed);
        for _ in 0..seed % 8 {
            // With each start it leads a later view.
            world.crash(2, Death::Kill);
            world.start(2);
            await_serving(&mut world, &[2]);
        }
        world.unblock(0, 1);
        // Sometimes in the middle of it, sometimes when all of it is done.
        world.run_for(Duration::from_millis(40 * (seed / 2)));
        if seed % 2 == 0 {
            let together = |world: &mut World| {
                [0, 1].iter().any(|&at| serves(world, at) && installed_view(world, at).members.len() == 2)
            };
            assert!(world.run_until(LATER, together), "seed {seed}: {}", describe(&world));
            let leads = [0, 1].into_iter().find(|&at| serves(&world, at)).expect("one of them leads");
            let third = installed_view(&world, 2).number;
            lost += u32::from(installed_view(&world, leads).number < third);
            pin(&mut world, ALICE, leads);
            pin(&mut world, BOB, leads);
            send_around(&mut world, &[ALICE, BOB, CAROL], "two against one", &mut sent);
            if seed % 4 == 0 {
                world.run_for(Duration::from_secs(4));
            }
        }
        check_all(&mut world, &sent);
    }
    assert!(lost > 0, "the winner of the first heal has never lost the second");
}

fn crash_after_healing(victim: impl Fn(&World) -> Option<usize>, death: Death) {
    let mut crashed = 0;
    for moment in 0..48 {
        let (mut world, sent) = three_lonely_primaries(moment % 4);
        heal_paths(&mut world);
        world.run_for(Duration::from_millis(12 * moment));
        if let Some(victim) = victim(&world) {
            crashed += 1;
            world.crash(victim, death);
            world.run_for(Duration::from_millis(20 * (moment % 7)));
        }
        check_all(&mut world, &sent);
    }
    assert!(crashed > 24, "hardly anybody was there to crash: {crashed}");
}

/// Who leads the highest view, as far as anybody does.
fn winner(world: &World) -> Option<usize> {
    let leaders = (0..3).filter(|&at| serves(world, at));
    leaders.max_by_key(|&at| installed_view(world, at).number)
}

fn loser(world: &World) -> Option<usize> {
    let winner = winner(world)?;
    (0..3).find(|&at| at != winner && world.servers[at].process.is_some())
}

#[test]
fn a_server_that_crashes_while_it_rebases_repeats_itself_harmlessly() {
    crash_after_healing(loser, Death::Kill);
    crash_after_healing(loser, Death::PowerLoss);
}

#[test]
fn a_primary_that_crashes_while_others_rebase_loses_nothing() {
    crash_after_healing(winner, Death::Kill);
    crash_after_healing(winner, Death::PowerLoss);
}

/// R2, R7: nobody looks for the rows before their file is written, however busy the log's disk is when the split heals.
#[test]
fn rows_that_were_never_applied_are_proposed_again_however_late_their_file_is_written() {
    const BUSY: Duration = Duration::from_secs(12);
    for seed in 0..12 {
        let mut world = world_of_three(seed);
        let mut sent = vec![Vec::new(); 3];
        let alone = await_leader(&mut world);
        let pair: Vec<usize> = (0..3).filter(|&at| at != alone).collect();
        pin(&mut world, ALICE, alone);
        world.run_for(Duration::from_secs(1));
        world.servers[alone].disk_stuck_until = world.now + BUSY;
        split(&mut world, &[&[alone], &pair]);
        let text = "never applied where it was taken";
        world.wish(ALICE, Op::Send { to: BOB, text: text.into() });
        sent[BOB].push(text.to_owned());
        let leads = |world: &mut World| pair.iter().any(|&at| serves(world, at));
        assert!(world.run_until(SOON, leads), "seed {seed}: {}", describe(&world));
        let replica = world.servers[alone].replica().expect("it runs");
        let status = replica.status(world.servers[alone].clock.monotonic(world.now));
        assert!(status.last > status.applied, "seed {seed}: nothing to lose; {}", describe(&world));
        heal_paths(&mut world);
        world.run_for(BUSY);
        check_all(&mut world, &sent);
    }
}

/// N2: a retry finds what the other side has carried out already, on either side.
#[test]
fn a_command_tried_on_both_sides_of_a_split_is_carried_out_once() {
    for seed in 0..12 {
        let (mut world, mut sent) = three_lonely_primaries(seed);
        // The answer is lost, and the next attempt reaches another server.
        world.wish(ALICE, Op::Send { to: BOB, text: "once".into() });
        world.drop_replies = 1;
        assert!(world.run_until(LATER, |world| world.drop_replies == 0), "{}", describe(&world));
        pin(&mut world, ALICE, 1 + usize::try_from(seed % 2).expect("small"));
        let ended = world.wait_for_client(ALICE, LATER);
        assert!(is_done(ended.as_ref()), "seed {seed}: {ended:?}");
        sent[BOB].push("once".into());
        check_all(&mut world, &sent);
    }
}

/// R4: one side refuses a command, for the session has just been ended there, but the client does not hear of it, tries
/// the other side, and is told that it is done. Nobody knows what it has heard: it is a conflict.
#[test]
fn what_one_side_of_a_split_has_refused_and_the_other_carried_out_is_a_conflict() {
    let (text, mut conflicts) = ("refused here, done there", 0);
    for seed in 0..12 {
        let mut world = world_of_three(seed);
        let sender = world.add_client();
        assert!(is_done(world.wait_for_client(sender, LATER).as_ref()), "{}", describe(&world));
        let (mut world, mut sent) = lonely_primaries(world);
        let refuses = winner(&world).expect("each of them leads");
        let other_device = world.add_client();
        let device = &mut world.clients[other_device];
        (device.owner, device.name, device.wishes) = (sender, format!("user{sender}"), [Op::Login].into());
        pin(&mut world, other_device, refuses);
        assert!(is_done(world.wait_for_client(other_device, LATER).as_ref()), "{}", describe(&world));
        pin(&mut world, sender, refuses);
        let before = log_end(&world, refuses);
        world.servers[refuses].disk_stuck_until = world.now + SOON;
        for (client, op) in
            [(other_device, Op::LogoutEverywhere), (sender, Op::Send { to: BOB, text: text.into() })]
        {
            let end = log_end(&world, refuses);
            world.wish(client, op);
            assert!(world.run_until(SOON, |world| log_end(world, refuses) > end), "{}", describe(&world));
        }
        assert_eq!(log_end(&world, refuses), before + 2, "{}", describe(&world));
        pin(&mut world, sender, (refuses + 1) % 3);
        let ended = world.wait_for_client(sender, LATER);
        assert!(is_done(ended.as_ref()), "seed {seed}: {ended:?}");
        world.run_for(SOON);
        heal_paths(&mut world);
        await_healed(&mut world);
        let state = world.servers[0].replica().expect("it runs").state();
        let account = state.account_named(&format!("user{sender}")).expect("it is registered");
        let told: Vec<_> =
            state.conflicts(account, 0, 0).conflicts.into_iter().map(|told| told.text).collect();
        if told.is_empty() {
            sent[BOB].push(text.into()); // The side that has refused it has lost.
        } else {
            assert_eq!(told, [text], "seed {seed}");
            conflicts += 1;
        }
        check_all(&mut world, &sent);
    }
    assert!(conflicts > 0, "no seed has brought the situation about");
}

/// Where a server's log ends.
fn log_end(world: &World, at: usize) -> u64 {
    let replica = world.servers[at].replica().expect("it runs");
    replica.status(world.servers[at].clock.monotonic(world.now)).last
}

/// What the loser has applied is in all of its checkpoints, and the log's beginning is cut: it begins anew, and has its
/// rows proposed again all the same.
#[test]
fn a_split_that_outlasts_the_checkpoints_from_before_it_loses_nothing() {
    for seed in 0..16 {
        let swarm = Swarm { checkpoint_bytes: 2_000, segment_bytes: 1_500, ..Swarm::calm() };
        let mut world = world_of_three_with(seed, swarm);
        let mut early = vec![Vec::new(); 3];
        for round in 0..seed % 6 {
            send_around(&mut world, &[ALICE, BOB, CAROL], &format!("early {round}"), &mut early);
            world.run_for(Duration::from_secs(1));
        }
        let (mut world, mut sent) = lonely_primaries(world);
        for round in 0..6 {
            send_around(&mut world, &[ALICE, BOB, CAROL], &format!("round {round}"), &mut sent);
            world.run_for(Duration::from_millis(1_200));
        }
        if seed % 3 == 0 {
            // D3: little space must not cost rows that only this server has.
            (0..3).for_each(|at| world.deliver(at, Event::DiskSpace { low: true }));
            world.run_for(Duration::from_secs(3));
            (0..3).for_each(|at| world.deliver(at, Event::DiskSpace { low: false }));
        }
        assert!(world.faults.fired(Fault::Checkpoint) > 12, "hardly any checkpoint was taken");
        for (sent, early) in sent.iter_mut().zip(early) {
            sent.extend(early);
        }
        check_all(&mut world, &sent);
    }
}

/// A server that follows one winner, with its own rows aside, meets another winner: what it learned is cut again.
#[test]
fn a_learner_whose_own_log_has_lost_loses_once_more_and_loses_nothing() {
    for moment in 0..40 {
        let (mut world, mut sent) = three_lonely_primaries(moment % 5);
        let order = |world: &World, at| installed_view(world, at).number;
        let mut by_view = [0, 1, 2];
        by_view.sort_by_key(|&at| order(&world, at));
        let [lowest, middle, highest] = by_view;
        world.unblock(lowest, middle);
        world.unblock(middle, lowest);
        world.run_for(Duration::from_millis(15 * moment));
        world.block(lowest, middle, false);
        if moment % 2 == 0 {
            send_around(&mut world, &[highest], "meanwhile", &mut sent);
        }
        world.unblock(lowest, highest);
        world.unblock(highest, lowest);
        world.run_for(Duration::from_millis(30 * (moment % 9)));
        check_all(&mut world, &sent);
    }
}

/// R2, R3: an account that two servers share sends on one of them alone. The rows of that lie aside when the third server's
/// log wins over what the two shared: the account must be there again before its messages are.
#[test]
fn an_account_that_two_of_three_share_comes_back_before_what_it_sent_on_one_of_them() {
    let mut aside = 0;
    for moment in 0..32 {
        let mut world = world_of_three(moment % 5);
        let mut sent = vec![Vec::new(); 4];
        split(&mut world, &[&[0, 2], &[1]]);
        let together = |world: &mut World| {
            serves(world, 1)
                && [0, 2].iter().any(|&at| serves(world, at) && installed_view(world, at).members.len() == 2)
        };
        assert!(world.run_until(LATER, together), "seed {moment}: {}", describe(&world));
        (0..3).for_each(|at| pin(&mut world, at, at));
        let dave = world.add_client();
        let leads = if serves(&world, 0) { 0 } else { 2 };
        pin(&mut world, dave, leads);
        assert!(is_done(world.wait_for_client(dave, LATER).as_ref()), "seed {moment}: {}", describe(&world));
        world.block(0, 2, false);
        await_serving(&mut world, &[0, 1, 2]);
        pin(&mut world, dave, 2);
        for number in 0..3 {
            let text = format!("from a new account, {number}");
            send(&mut world, dave, CAROL, &text);
            sent[CAROL].push(text);
        }
        // With each start it leads a later view: server 2 loses to either of the others.
        for at in [0, 0, 0, 1, 1, 1, 1, 1, 1] {
            world.crash(at, Death::Kill);
            world.start(at);
            await_serving(&mut world, &[at]);
        }
        world.unblock(0, 2);
        world.run_until(SOON, |world| !diverged_files(world).is_empty());
        world.run_for(Duration::from_millis(moment));
        world.crash(0, Death::Kill);
        world.crash(2, Death::Kill);
        aside += u32::from(!diverged_files(&world).is_empty());
        world.unblock(1, 2);
        // Its rows are at hand before it hears that they are not the last to be moved.
        let until = world.now + LATER;
        world.network.slow_down(1, 2, Duration::from_millis(5 * (moment % 9)), until);
        world.start(2);
        world.run_for(Duration::from_millis(500));
        check_all(&mut world, &sent);
    }
    assert!(aside > 4, "hardly ever did rows lie aside: {aside}");
}

/// Two servers are told to create the cluster while they don't reach each other.
#[test]
fn of_two_clusters_the_one_without_users_yields_whatever_its_age() {
    for seed in 0..12 {
        let mut world = new_world(seed);
        world.servers[1].config.first_role = FirstRole::Primary;
        split(&mut world, &[&[0], &[1], &[2]]);
        world.start(0);
        world.start(1);
        await_serving(&mut world, &[0, 1]);
        let (used, empty) = if seed % 2 == 0 { (0, 1) } else { (1, 0) };
        assert_eq!(world.add_client(), ALICE);
        pin(&mut world, ALICE, used);
        assert!(is_done(world.wait_for_client(ALICE, LATER).as_ref()), "{}", describe(&world));
        send(&mut world, ALICE, ALICE, "to myself");
        // The empty one may have gone on further: each start makes a view.
        for _ in 0..seed % 4 {
            world.crash(empty, Death::Kill);
            world.start(empty);
            await_serving(&mut world, &[empty]);
            world.run_for(Duration::from_secs(2 * (seed % 2)));
        }
        heal_paths(&mut world);
        world.start(2);
        assert!(world.run_until(LATER, is_whole), "seed {seed}: {}", describe(&world));
        assert_eq!(mailbox(&mut world, ALICE), ["to myself"]);
        check_disks(&mut world);
    }
}

/// V5: the last to fail is missing, so the others wait, and then go on without it; when it returns, what only it has
/// acknowledged comes back.
#[test]
fn after_a_while_a_cold_start_goes_on_without_the_last_to_fail_and_its_return_brings_everything_back() {
    const WAIT: Duration = Duration::from_secs(15);
    for seed in 0..10 {
        let mut world = world_of_three_with(seed, Swarm { cold_wait: Some(WAIT), ..Swarm::calm() });
        let mut sent = vec![Vec::new(); 3];
        send_around(&mut world, &[ALICE, BOB, CAROL], "before", &mut sent);
        let last = usize::try_from(seed % 3).expect("small");
        let others: Vec<usize> = (0..3).filter(|&at| at != last).collect();
        for &at in &others {
            world.crash(at, Death::Kill);
            await_dropped(&mut world, at);
        }
        send_around(&mut world, &[ALICE, BOB, CAROL], "only on the last", &mut sent);
        world.crash(last, Death::Kill);
        others.iter().for_each(|&at| world.start(at));
        world.run_for(WAIT - Duration::from_secs(2));
        assert!(!others.iter().any(|&at| serves(&world, at)), "it did not wait; {}", describe(&world));
        let leads = |world: &mut World| others.iter().any(|&at| serves(world, at));
        assert!(world.run_until(Duration::from_secs(10), leads), "seed {seed}: {}", describe(&world));
        assert!(describe(&world).contains("provisional"), "{}", describe(&world));
        send_around(&mut world, &[ALICE, BOB, CAROL], "without the last", &mut sent);
        check_all(&mut world, &sent);
        assert!(!describe(&world).contains("provisional"), "{}", describe(&world));
    }
}

/// V2, V5: nor does a survivor wait for ever that had lost touch with the others before they crashed: a restart would help
/// it, so it needs none.
#[test]
fn after_a_while_a_survivor_that_had_lost_touch_goes_on_too() {
    const WAIT: Duration = Duration::from_secs(15);
    for seed in 0..9 {
        let mut world = world_of_three_with(seed, Swarm { cold_wait: Some(WAIT), ..Swarm::calm() });
        let mut sent = vec![Vec::new(); 3];
        send_around(&mut world, &[ALICE, BOB, CAROL], "before", &mut sent);
        let survivor = usize::try_from(seed % 3).expect("small");
        let others: Vec<usize> = (0..3).filter(|&at| at != survivor).collect();
        let until = world.now + Duration::from_millis(420);
        for &other in &others {
            world.network.stall(other, survivor, until);
            world.network.stall(survivor, other, until);
        }
        world.run_for(Duration::from_millis(400));
        others.iter().for_each(|&at| world.crash(at, Death::Kill));
        world.run_for(WAIT - Duration::from_secs(2));
        assert!(!serves(&world, survivor), "seed {seed}: it did not wait; {}", describe(&world));
        let leads = |world: &mut World| serves(world, survivor);
        assert!(world.run_until(Duration::from_secs(10), leads), "seed {seed}: {}", describe(&world));
        assert!(describe(&world).contains("provisional"), "{}", describe(&world));
        send_around(&mut world, &[ALICE, BOB, CAROL], "without the others", &mut sent);
        check_all(&mut world, &sent);
        assert!(!describe(&world).contains("provisional"), "{}", describe(&world));
    }
}

/// V1: it has the rows of a view that it has neither promised nor installed, and its own is a later one all the same.
#[test]
fn a_cold_start_on_rows_that_were_only_learnt_begins_a_view_above_theirs() {
    const WAIT: Duration = Duration::from_secs(5);
    let [late, second, third] = [0, 1, 2];
    for seed in 0..6 {
        let mut world = world_of_three_with(seed, Swarm { cold_wait: Some(WAIT), ..Swarm::calm() });
        let mut sent = vec![Vec::new(); 3];
        for at in [late, second] {
            world.crash(at, Death::Kill);
            await_dropped(&mut world, at);
        }
        send_around(&mut world, &[ALICE, BOB, CAROL], "while it was down", &mut sent);
        // The leader gives its log, and can't begin the view that would take the learner in.
        world.servers[third].disk_stuck_until = world.now + SOON;
        world.start(late);
        let last = installed_view(&world, third).number;
        let has_all = |world: &mut World| {
            let status = |at: usize| {
                let server = &world.servers[at];
                server.replica().expect("it runs").status(server.clock.monotonic(world.now))
            };
            status(late).synced == status(third).last
        };
        assert!(world.run_until(SOON, has_all), "seed {seed}: {}", describe(&world));
        world.crash(late, Death::Kill);
        world.crash(third, Death::Kill);
        world.start(late);
        await_serving(&mut world, &[late]);
        assert!(installed_view(&world, late).number > last, "seed {seed}: {}", describe(&world));
        send_around(&mut world, &[ALICE, BOB, CAROL], "alone", &mut sent);
        check_all(&mut world, &sent);
    }
}

/// Its requests go on being numbered, so that the winner knows a later one than those that it has not seen (R4).
#[test]
fn a_client_that_goes_from_side_to_side_loses_nothing() {
    for seed in 0..6 {
        let (mut world, mut sent) = three_lonely_primaries(seed);
        for round in 0..2 {
            for turn in 0..3 {
                let at = if seed % 2 == 0 { turn } else { 2 - turn };
                pin(&mut world, ALICE, at);
                let text = format!("round {round}, on server {}", at + 1);
                send(&mut world, ALICE, BOB, &text);
                sent[BOB].push(text);
            }
        }
        check_all(&mut world, &sent);
    }
}

/// Whether the hard state that this server wrote last has promised something since the installed view.
fn has_promised(world: &World, at: usize) -> bool {
    const PROMISED: &[u8] = b" outstanding=";
    let log = world.servers[at].disk.bytes("server_log.csv").expect("it has a log");
    let last = log.windows(PROMISED.len()).rposition(|window| window == PROMISED);
    last.is_some_and(|at| log[at + PROMISED.len()] != b' ')
}

/// V3, V5: neither for the log of its own view, which is gone, nor for what may have come of its own proposals.
#[test]
fn who_follows_an_earlier_view_than_its_own_is_not_waited_for_on_behalf_of_that() {
    let mut followed = 0;
    for seed in 0..16 {
        let mut world = world_of_three(seed);
        let mut sent = vec![Vec::new(); 3];
        split(&mut world, &[&[0, 1], &[2]]);
        (ALICE..=CAROL).for_each(|client| pin(&mut world, client, client));
        await_serving(&mut world, &[0, 2]);
        send_around(&mut world, &[ALICE, CAROL], "apart", &mut sent);
        for _ in 0..2 {
            // With each start it leads a later view.
            world.crash(2, Death::Kill);
            world.start(2);
            await_serving(&mut world, &[2]);
        }
        let own = installed_view(&world, 2).number;
        // It is stopped where it has only promised itself the next one, and can't lead when the others meet it.
        world.crash(2, Death::Kill);
        world.start(2);
        assert!(world.run_until(LATER, |world| has_promised(world, 2)), "{}", describe(&world));
        world.crash(2, Death::Kill);
        world.start(2);
        world.run_for(Duration::from_millis(600));
        world.crash(1, Death::Kill);
        let alone = |world: &mut World| serves(world, 0) && installed_view(world, 0).members.len() == 1;
        assert!(world.run_until(LATER, alone), "{}", describe(&world));
        heal_paths(&mut world);
        // Before the one that leads has time to begin a view later than all that it hears of.
        world.connect_to_all(0);
        world.connect_to_all(2);
        let moved = |world: &mut World| {
            let files = world.servers[2].disk.files();
            files.iter().any(|file| file.starts_with("diverged-"))
        };
        followed += u32::from(world.run_until(SOON, moved) && installed_view(&world, 0).number < own);
        world.crash(0, Death::Kill);
        check_all(&mut world, &sent);
    }
    assert!(followed > 3, "hardly ever was the earlier view followed: {followed}");
}
