//! Directed histories in which one rule alone stands between the cluster and a violation: random seeds hardly ever get
//! there. `tests/mutants.csv` says which rule; `network::Censor` loses and delays the messages that matter.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use lastword::message::{PeerMessage, Response, Standpoint};
use lastword::replica::{Event, FirstRole};

use crate::client::{Ended, Op};
use crate::network::Fate;
use crate::runner::{check_disks, describe, heal_and_check, is_whole};
use crate::scenarios::{
    ALICE, BOB, LATER, SOON, await_dropped, await_leader, await_whole, begin, installed_view, is_done,
    leader, new_world, read, running_world, send, world_with,
};
use crate::server::{Death, server_id};
use crate::splits::{await_healed, heal_paths, pin, serves, split};
use crate::swarm::Swarm;
use crate::world::World;

/// The servers that are not this one, in the order of the cluster list.
fn others(world: &World, at: usize) -> Vec<usize> {
    (0..world.servers.len()).filter(|&other| other != at).collect()
}

/// Nobody leads for so long, though some run.
fn assert_nobody_leads(world: &mut World, duration: Duration) {
    let led = world.run_until(duration, |world| leader(world).is_some());
    assert!(!led, "seed {}: somebody leads; {}", world.seed, describe(world));
}

/// N8: a deposed primary does not hear what the others have done, and they hear its barrier. That they have promised
/// another number is all that keeps them from confirming it.
#[test]
fn who_has_promised_another_number_confirms_no_barrier_though_nothing_else_is_heard_of_it() {
    for seed in 0..6 {
        let mut world = running_world(seed);
        let old = await_leader(&mut world);
        let rest = others(&world, old);
        assert!(read(&mut world, BOB).is_empty());
        pin(&mut world, BOB, old);
        pin(&mut world, ALICE, rest[usize::try_from(seed % 2).expect("small")]);
        rest.iter().for_each(|&other| world.block(old, other, false));
        let goes_on = |world: &mut World| rest.iter().any(|&at| serves(world, at));
        assert!(world.run_until(SOON, goes_on), "seed {seed}: {}", describe(&world));
        let now_leads = rest.iter().copied().find(|&at| serves(&world, at)).expect("one of them leads");
        pin(&mut world, ALICE, now_leads);
        send(&mut world, ALICE, BOB, "written elsewhere");
        rest.iter().for_each(|&other| world.unblock(old, other));
        world.network.censor(move |_, to, message| match message {
            PeerMessage::BarrierOk { .. } => Fate::Sent,
            _ if to == old => Fate::Lost,
            _ => Fate::Sent,
        });
        world.wish(BOB, Op::Read);
        world.run_for(Duration::from_millis(1_500));
        heal_paths(&mut world);
        let ended = world.wait_for_client(BOB, LATER);
        let Some(Ended::Answered(Response::Messages(page))) = ended else { panic!("seed {seed}: {ended:?}") };
        assert_eq!(page.messages.len(), 1, "seed {seed}: a stale read");
        heal_and_check(&mut world);
    }
}

/// V10: logs were closed, and one server is not gone yet when another comes back, to which it answers from memory, for
/// its disk is stuck. Together they are a majority, but a crash makes the one forget what it promised: had the other gone
/// on alone, the one and the third would start without it. When the promise is on disk it may.
#[test]
fn who_may_forget_its_promise_is_none_of_a_majority_that_closed_its_logs() {
    const STUCK: Duration = Duration::from_millis(700);
    for seed in 0..12 {
        let mut world = running_world(seed);
        send(&mut world, ALICE, BOB, "before the stop");
        let primary = await_leader(&mut world);
        let slow = others(&world, primary)[usize::try_from(seed / 2 % 2).expect("small")];
        let rest = others(&world, slow);
        world.servers[slow].disk_slowness = 40;
        (0..3).for_each(|at| world.deliver(at, Event::Stop));
        let alone = |world: &mut World| rest.iter().all(|&at| !world.servers[at].is_running());
        assert!(world.run_until(SOON, alone), "seed {seed}: not stopped; {}", describe(&world));
        assert!(world.servers[slow].is_running(), "seed {seed}: the slow one has stopped too");
        world.servers[slow].disk_stuck_until = world.now + STUCK;
        world.start(rest[0]);
        let leads = |world: &mut World| leader(world).is_some();
        let early = world.run_until(STUCK - Duration::from_millis(50), leads);
        if seed % 2 == 0 {
            [slow, rest[0]].iter().for_each(|&at| world.crash(at, Death::Kill));
            world.servers[slow].disk_slowness = 1;
            [slow, rest[1]].iter().for_each(|&at| world.start(at));
            await_leader(&mut world);
        } else {
            assert!(!early, "seed {seed}: leads on a promise from memory; {}", describe(&world));
            let stopped = |world: &mut World| leads(world) && !world.servers[slow].is_running();
            assert!(world.run_until(SOON, stopped), "seed {seed}: {}", describe(&world));
        }
        assert_eq!(read(&mut world, BOB), ["before the stop"]);
        world.servers[slow].disk_slowness = 1;
        world.swarm.slow_disks = true;
        heal_and_check(&mut world);
    }
}

/// V1: one backup gets no answer of the primary for a second, while everyone else is in touch with it.
#[test]
fn a_server_that_alone_gets_no_answer_of_the_primary_does_not_overthrow_it() {
    for seed in 0..6 {
        let mut world = running_world(seed);
        let primary = await_leader(&mut world);
        let deaf = others(&world, primary)[usize::try_from(seed % 2).expect("small")];
        let before = installed_view(&world, primary).number;
        world.network.censor(move |from, to, message| match message {
            PeerMessage::HeartbeatOk { .. } if (from, to) == (primary, deaf) => Fate::Lost,
            _ => Fate::Sent,
        });
        world.run_for(Duration::from_secs(1));
        world.network.heal();
        world.run_for(Duration::from_secs(1));
        let after = installed_view(&world, primary).number;
        assert_eq!(after, before, "seed {seed}: the view has changed; {}", describe(&world));
        heal_and_check(&mut world);
    }
}

/// V2: a backup hears nothing of anybody for a second, in which the others go on without it. When it hears again they
/// are dead. That it was not in touch with its primary until the end is all that it knows.
#[test]
fn a_server_that_was_out_of_touch_before_the_others_died_does_not_lead_with_old_data() {
    for seed in 0..6 {
        let mut world = running_world(seed);
        let primary = await_leader(&mut world);
        let away = others(&world, primary)[usize::try_from(seed % 2).expect("small")];
        let rest = others(&world, away);
        rest.iter().for_each(|&other| world.block(away, other, false));
        await_dropped(&mut world, away);
        send(&mut world, ALICE, BOB, "while it was away");
        rest.iter().for_each(|&other| world.crash(other, Death::Kill));
        rest.iter().for_each(|&other| world.unblock(away, other));
        assert_nobody_leads(&mut world, Duration::from_secs(8));
        heal_and_check(&mut world);
    }
}

fn world_of_five(seed: u64) -> World {
    let mut world = world_with(seed, Swarm { servers: 5, ..Swarm::calm() });
    for at in [3, 4] {
        world.start(at);
    }
    begin(world)
}

/// V2, with five servers: a backup is in touch with its primary until that dies, but with nobody else, and the others
/// go on without it. Then it hears of their view, from one that does not lead it, before they die too.
#[test]
fn a_server_that_has_heard_of_a_view_without_it_does_not_lead_with_old_data() {
    for seed in 0..6 {
        let mut world = world_of_five(seed);
        let primary = await_leader(&mut world);
        let away = others(&world, primary)[usize::try_from(seed % 4).expect("small")];
        let rest: Vec<usize> = others(&world, away).into_iter().filter(|&at| at != primary).collect();
        rest.iter().for_each(|&other| world.block(away, other, false));
        world.run_for(Duration::from_millis(700));
        world.crash(primary, Death::Kill);
        await_dropped(&mut world, away);
        send(&mut world, ALICE, BOB, "while it was away");
        let leads = await_leader(&mut world);
        let teller = rest.iter().copied().find(|&at| at != leads).expect("three are left");
        world.unblock(away, teller);
        world.run_for(Duration::from_millis(300));
        rest.iter().for_each(|&other| world.crash(other, Death::Kill));
        rest.iter().for_each(|&other| world.unblock(away, other));
        assert_nobody_leads(&mut world, Duration::from_secs(8));
        heal_and_check(&mut world);
    }
}

/// V2: those who have dropped it are all gone, and it was in touch with its primary to the end.
#[test]
fn a_backup_that_lost_touch_with_the_others_does_not_lead_with_old_data_when_they_are_gone() {
    for seed in 0..6 {
        let mut world = world_of_five(seed);
        let primary = await_leader(&mut world);
        let away = others(&world, primary)[usize::try_from(seed % 4).expect("small")];
        let rest: Vec<usize> = others(&world, away).into_iter().filter(|&at| at != primary).collect();
        rest.iter().for_each(|&other| world.block(away, other, false));
        world.run_for(Duration::from_millis(700));
        world.crash(primary, Death::Kill);
        await_dropped(&mut world, away);
        send(&mut world, ALICE, BOB, "while it was away");
        rest.iter().for_each(|&other| world.crash(other, Death::Kill));
        rest.iter().for_each(|&other| world.unblock(away, other));
        assert_nobody_leads(&mut world, Duration::from_secs(8));
        heal_and_check(&mut world);
    }
}

/// V2, V11: one of those who have dropped it was no member of the view, but counts as one of the majority.
#[test]
fn a_backup_that_lost_touch_with_a_majority_that_is_not_all_in_the_view_does_not_lead_with_old_data() {
    for seed in 0..6 {
        let mut world = world_of_five(seed);
        let primary = await_leader(&mut world);
        let place = usize::try_from(seed % 4).expect("small");
        let (away, learner) = (others(&world, primary)[place], others(&world, primary)[(place + 1) % 4]);
        let rest: Vec<usize> = others(&world, away).into_iter().filter(|&at| at != primary).collect();
        // Who was too slow is kept out for a while (N9).
        world.servers[learner].disk_slowness = 1_000;
        for number in 0..30 {
            send(&mut world, ALICE, BOB, &format!("message {number}"));
        }
        await_dropped(&mut world, learner);
        world.servers[learner].disk_slowness = 1;
        world.run_for(Duration::from_secs(2));
        assert_eq!(leader(&world), Some(primary), "seed {seed}: {}", describe(&world));
        assert_eq!(installed_view(&world, primary).members.len(), 4, "seed {seed}: {}", describe(&world));
        rest.iter().for_each(|&other| world.block(away, other, false));
        world.run_for(Duration::from_millis(700));
        world.crash(primary, Death::Kill);
        await_dropped(&mut world, away);
        send(&mut world, ALICE, BOB, "while it was away");
        rest.iter().for_each(|&other| world.crash(other, Death::Kill));
        rest.iter().for_each(|&other| world.unblock(away, other));
        assert_nobody_leads(&mut world, Duration::from_secs(8));
        world.swarm.slow_disks = true;
        heal_and_check(&mut world);
    }
}

/// V11: two backups are cut off from each other for a second, and both in touch with their primary until it dies. Each
/// is alone then, and waits for the other.
#[test]
fn two_backups_that_lost_touch_for_a_second_wait_for_each_other_when_their_primary_dies() {
    for seed in 0..12 {
        let mut world = running_world(seed);
        let primary = await_leader(&mut world);
        let (one, other) = (others(&world, primary)[0], others(&world, primary)[1]);
        world.block(one, other, false);
        world.run_for(Duration::from_millis(700));
        world.crash(primary, if seed % 2 == 0 { Death::Kill } else { Death::PowerLoss });
        assert_nobody_leads(&mut world, Duration::from_millis(800));
        world.unblock(one, other);
        send(&mut world, ALICE, BOB, "of the two that are left");
        let next = await_leader(&mut world);
        assert_eq!(installed_view(&world, next).members.len(), 2, "seed {seed}: {}", describe(&world));
        world.crash(next, Death::Kill);
        assert_eq!(read(&mut world, BOB), ["of the two that are left"], "seed {seed}");
        heal_and_check(&mut world);
    }
}

/// V11: the same, when their primary stops or its disk is stuck: it is there, but the next view is not to have it.
#[test]
fn two_backups_that_lost_touch_for_a_second_wait_for_each_other_when_their_primary_is_to_lead_no_more() {
    for seed in 0..12 {
        let mut world = running_world(seed);
        let primary = await_leader(&mut world);
        let rest = others(&world, primary);
        world.block(rest[0], rest[1], false);
        world.run_for(Duration::from_millis(500));
        if seed % 2 == 0 {
            world.deliver(primary, Event::Stop);
        } else {
            world.servers[primary].disk_stuck_until = world.now + Duration::from_secs(20);
            world.wish(ALICE, Op::Send { to: BOB, text: "it gets stuck".into() });
        }
        let leads = |world: &mut World| rest.iter().any(|&at| serves(world, at));
        let led = world.run_until(Duration::from_millis(1_500), leads);
        assert!(!led, "seed {seed}: one goes on without the other; {}", describe(&world));
        world.unblock(rest[0], rest[1]);
        let both = |world: &mut World| {
            rest.iter().any(|&at| serves(world, at) && installed_view(world, at).members.len() == 2)
        };
        assert!(world.run_until(SOON, both), "seed {seed}: {}", describe(&world));
        let stopped = |world: &mut World| seed % 2 == 1 || world.servers[primary].process.is_none();
        assert!(world.run_until(SOON, stopped), "seed {seed}: it does not stop; {}", describe(&world));
        world.swarm.slow_disks = true;
    }
}

/// V2, V10: three servers are cut off from each other, and all but one path open again. Both its ends reach the third
/// server and count each other as dead. That one has just been told by its primary that it is dropped: the primary may
/// lead without both.
#[test]
fn who_was_passed_over_hears_so_from_the_third_server() {
    for seed in 0..6 {
        let mut world = running_world(seed);
        let primary = await_leader(&mut world);
        let mut rest = others(&world, primary);
        rest.rotate_left(usize::try_from(seed % 2).expect("small"));
        let (third, away) = (rest[0], rest[1]);
        for (one, other) in [(primary, third), (primary, away), (third, away)] {
            world.block(one, other, false);
        }
        world.run_for(Duration::from_millis(1_600));
        let (told, promised, formed) = (Rc::new(Cell::new(false)), Rc::default(), Rc::default());
        let seen: [Rc<Cell<bool>>; 3] = [told, Rc::clone(&promised), Rc::clone(&formed)];
        world.network.censor(move |from, to, message| {
            let [told, promised, formed] = &seen;
            match message {
                PeerMessage::Propose { dropping, .. } if from == primary => {
                    told.set(told.get() || dropping.iter().any(|&id| id == server_id(third)));
                }
                PeerMessage::Promise { .. } if to == primary && told.get() => {
                    promised.set(true);
                    return Fate::Held;
                }
                PeerMessage::HeartbeatOk { .. } if to == away && !promised.get() => return Fate::Lost,
                PeerMessage::Promise { .. } | PeerMessage::Refuse { .. } if to == primary => {
                    return Fate::Lost;
                }
                PeerMessage::PreVote { .. } if from == third => return Fate::Lost,
                PeerMessage::NewView { .. } if from == away => {
                    formed.set(true);
                    return Fate::Held;
                }
                _ => {}
            }
            Fate::Sent
        });
        world.unblock(primary, third);
        world.unblock(third, away);
        assert!(world.run_until(SOON, |_| promised.get()), "seed {seed}: {}", describe(&world));
        world.run_until(Duration::from_millis(300), |_| formed.get());
        world.release_held();
        let alone = world.run_until(Duration::from_millis(600), |world| serves(world, primary));
        assert!(alone && !formed.get(), "seed {seed}: {}", describe(&world));
        send(&mut world, ALICE, BOB, "only the one that leads alone has it");
        heal_paths(&mut world);
        heal_and_check(&mut world);
    }
}

/// V2, V5: the answers of a primary come late, and it dies before the next one. It can't have gone on without either of
/// two that have promised it nothing.
#[test]
fn two_of_three_go_on_though_neither_has_heard_its_primary_shortly_before_it_died() {
    for seed in 0..12 {
        let mut world = running_world(seed);
        let primary = await_leader(&mut world);
        send(&mut world, ALICE, BOB, "before");
        world.network.censor(move |from, _, message| match message {
            PeerMessage::HeartbeatOk { .. } if from == primary => Fate::Lost,
            _ => Fate::Sent,
        });
        world.run_for(Duration::from_millis(350));
        assert_eq!(leader(&world), Some(primary), "seed {seed}: {}", describe(&world));
        world.crash(primary, Death::Kill);
        let next = await_leader(&mut world);
        assert_eq!(installed_view(&world, next).members.len(), 2, "seed {seed}: {}", describe(&world));
        heal_and_check(&mut world);
    }
}

/// V2: a backup loses touch with the other one, and with its primary when that is killed; started again, the primary goes
/// on with the other backup. Both die within 3 s, and nobody has told the one that is left.
#[test]
fn a_backup_that_the_other_one_left_behind_with_their_restarted_primary_does_not_lead_with_old_data() {
    for seed in 0..12 {
        let mut world = running_world(seed);
        let primary = await_leader(&mut world);
        let mut rest = others(&world, primary);
        rest.rotate_left(usize::try_from(seed % 2).expect("small"));
        let (next, away) = (rest[0], rest[1]);
        world.block(next, away, false);
        world.run_for(Duration::from_millis(700));
        world.crash(primary, Death::Kill);
        world.run_for(Duration::from_millis(50));
        world.block(primary, away, false);
        world.start(primary);
        await_dropped(&mut world, away);
        send(&mut world, ALICE, BOB, "of the two");
        world.crash(primary, Death::Kill);
        world.crash(next, Death::Kill);
        world.unblock(next, away);
        world.unblock(primary, away);
        assert_nobody_leads(&mut world, Duration::from_secs(8));
        heal_and_check(&mut world);
    }
}

/// V2: its heartbeats are answered to the end, but none of its own answers arrives. It is dropped unawares, and whoever has
/// dropped it dies before it could say so.
#[test]
fn who_is_answered_but_not_heard_does_not_lead_with_old_data() {
    for seed in 0..6 {
        let mut world = running_world(seed);
        let primary = await_leader(&mut world);
        let mut rest = others(&world, primary);
        rest.rotate_left(usize::try_from(seed % 2).expect("small"));
        let (unheard, other) = (rest[0], rest[1]);
        let number = installed_view(&world, primary).number;
        world.network.censor(move |from, to, message| match message {
            PeerMessage::Heartbeat { .. } if from == unheard => Fate::Sent,
            PeerMessage::HeartbeatOk { pulse, .. } if to == unheard && pulse.view == number => Fate::Sent,
            _ if [from, to].contains(&unheard) => Fate::Lost,
            _ => Fate::Sent,
        });
        await_dropped(&mut world, unheard);
        send(&mut world, ALICE, BOB, "while it was not heard");
        [primary, other].into_iter().for_each(|at| world.crash(at, Death::Kill));
        world.network.heal();
        assert_nobody_leads(&mut world, Duration::from_secs(8));
        heal_and_check(&mut world);
    }
}

/// V4: only the backup that comes second has the last entries of a primary that dies. The first one takes them over
/// before it leads; otherwise the other could not follow it, and the view would come about without that one, later.
#[test]
fn a_view_with_the_rows_of_one_backup_is_led_by_another_within_half_a_second() {
    for seed in 0..6 {
        let mut world = running_world(seed);
        let primary = await_leader(&mut world);
        let rest = others(&world, primary);
        let (first, second) = (rest[0], rest[1]);
        world.network.censor(move |from, to, message| match message {
            PeerMessage::Prepare { .. } | PeerMessage::Fetched { .. } if (from, to) == (primary, first) => {
                Fate::Lost
            }
            _ => Fate::Sent,
        });
        world.wish(ALICE, Op::Send { to: BOB, text: "on its way".into() });
        world.run_for(Duration::from_millis(20));
        let last = |world: &World, at: usize| {
            let server = &world.servers[at];
            server.replica().expect("it runs").status(server.clock.monotonic(world.now)).last
        };
        assert!(last(&world, second) > last(&world, first), "seed {seed}: {}", describe(&world));
        world.crash(primary, Death::Kill);
        let begun = world.now;
        let ended = world.wait_for_client(ALICE, LATER);
        let took = world.now.since(begun);
        assert!(
            is_done(ended.as_ref()) && took < Duration::from_millis(500),
            "seed {seed}: {took:?}, {ended:?}"
        );
        let members = installed_view(&world, first).members.len();
        assert!(serves(&world, first) && members == 2, "seed {seed}: {}", describe(&world));
        assert_eq!(read(&mut world, BOB), ["on its way"]);
        heal_and_check(&mut world);
    }
}

/// A view of two servers reaches only its leader's disk, as that dies: the other one, `promised`, has not installed it.
/// It promises two numbers to the third server, `alone`, which goes on without it at last, and all fail. With `late`
/// the first view arrives after all, after the promises. Those two are all members of the last view that they know
/// of, but what `promised` has promised says that `alone` may have gone further (V2, V5, V7).
fn go_on_alone_after_a_view_that_was_half_installed(late: bool) {
    for seed in 0..6 {
        let mut world = running_world(seed);
        let third = await_leader(&mut world);
        let mut rest = others(&world, third);
        rest.rotate_left(usize::try_from(seed % 2).expect("small"));
        let (promised, alone) = (rest[0], rest[1]);
        world.network.censor(move |from, to, message| match message {
            PeerMessage::NewView { .. } if (from, to) == (third, promised) => Fate::Held,
            PeerMessage::NewView { .. } | PeerMessage::PreVoteOk { .. }
                if (from, to) == (alone, promised) =>
            {
                Fate::Lost
            }
            PeerMessage::Heartbeat { pulse, .. } | PeerMessage::HeartbeatOk { pulse, .. }
                if (from, to) == (alone, promised) && pulse.standpoint == Standpoint::Primary =>
            {
                Fate::Lost
            }
            _ => Fate::Sent,
        });
        world.crash(alone, Death::Kill);
        let of_two = |world: &mut World| installed_view(world, third).members.len() == 2;
        assert!(world.run_until(SOON, of_two), "seed {seed}: {}", describe(&world));
        world.run_for(Duration::from_millis(20));
        assert_eq!(installed_view(&world, promised).members.len(), 3, "seed {seed}: {}", describe(&world));
        world.crash(third, Death::Kill);
        world.start(alone);
        assert!(world.run_until(SOON, |world| serves(world, alone)), "seed {seed}: {}", describe(&world));
        if late {
            assert!(world.release_held() > 0, "seed {seed}: no view was held");
            world.run_for(Duration::from_millis(50));
        }
        world.crash(promised, Death::Kill);
        send(&mut world, ALICE, BOB, "only the one that went on alone has it");
        world.crash(alone, Death::Kill);
        world.network.heal();
        world.start(promised);
        world.start(third);
        assert_nobody_leads(&mut world, Duration::from_secs(8));
        world.start(alone);
        await_whole(&mut world);
        assert_eq!(read(&mut world, BOB), ["only the one that went on alone has it"], "seed {seed}");
        heal_and_check(&mut world);
    }
}

#[test]
fn who_was_promised_a_number_and_went_on_alone_is_awaited_after_a_view_that_was_half_installed() {
    go_on_alone_after_a_view_that_was_half_installed(false);
}

#[test]
fn a_view_below_a_promise_that_comes_late_does_not_make_the_promise_forgotten() {
    go_on_alone_after_a_view_that_was_half_installed(true);
}

/// V6: a directory that was restored from a copy is an earlier life's, and others know later ones.
#[test]
fn a_last_survivor_that_was_restored_from_a_copy_has_not_answered() {
    for seed in 0..6 {
        let mut world = running_world(seed);
        let last = usize::try_from(seed % 3).expect("small");
        let copy = world.servers[last].disk.copy();
        for _ in 0..2 {
            world.crash(last, Death::Kill);
            world.start(last);
            await_whole(&mut world);
        }
        let rest = others(&world, last);
        rest.iter().for_each(|&at| world.crash(at, Death::Kill));
        send(&mut world, ALICE, BOB, "only the last one has it");
        world.crash(last, Death::Kill);
        world.servers[last].disk = copy.restart();
        world.checks.forget_disk(last);
        (0..3).for_each(|at| world.start(at));
        assert_nobody_leads(&mut world, Duration::from_secs(20));
    }
}

/// V6: a member's directory is replaced by one of another cluster, which holds nothing of any user and yields. Its primary
/// dies before it has noticed. It can't know then what the directory before had acknowledged.
#[test]
fn a_member_that_comes_back_from_a_cluster_of_its_own_has_not_answered() {
    let mut joined = 0;
    for seed in 0..16 {
        let (replaced, gone) = if seed % 2 == 0 { (1, 2) } else { (2, 1) };
        let mut elsewhere = new_world(seed + 100);
        elsewhere.servers[replaced].config.first_role = FirstRole::Primary;
        elsewhere.start(replaced);
        assert!(elsewhere.run_until(LATER, |world| serves(world, replaced)), "{}", describe(&elsewhere));
        let other = elsewhere.servers[replaced].disk.copy();
        let mut world = running_world(seed);
        let primary = await_leader(&mut world);
        assert_eq!(primary, 0, "seed {seed}: {}", describe(&world));
        world.crash(gone, Death::Kill);
        await_dropped(&mut world, gone);
        world.network.censor(
            move |from, to, _| {
                if (from, to) == (replaced, primary) { Fate::Lost } else { Fate::Sent }
            },
        );
        world.crash(replaced, Death::PowerLoss);
        world.servers[replaced].disk = other.restart();
        world.servers[replaced].config.known_cluster = None;
        world.checks.forget_disk(replaced);
        world.split = true;
        world.start(replaced);
        let joins = |world: &mut World| {
            let server = &world.servers[replaced];
            server.replica().is_some_and(|it| it.status(server.clock.monotonic(world.now)).role == "learner")
        };
        joined += u32::from(world.run_until(Duration::from_secs(2), joins));
        world.crash(primary, Death::Kill);
        world.network.heal();
        world.start(primary);
        assert_nobody_leads(&mut world, Duration::from_secs(8));
    }
    assert!(joined > 0, "whoever comes back never joins");
}

/// D5: after a split a server alone has begun to give up what it had for the others' log, and all fail. It has neither
/// log whole, and waits for the others; its last view was of itself alone.
#[test]
fn a_server_that_was_giving_up_its_log_does_not_lead_with_neither() {
    let mut gave_up = 0;
    for seed in 0..8 {
        let mut world = running_world(seed);
        let (one, other) = (1, 2);
        split(&mut world, &[&[0], &[one, other]]);
        pin(&mut world, ALICE, 0);
        pin(&mut world, BOB, one);
        let apart = |world: &mut World| serves(world, 0) && [one, other].iter().any(|&at| serves(world, at));
        assert!(world.run_until(LATER, apart), "seed {seed}: {}", describe(&world));
        // With each start the others lead a later view than the first server does.
        for _ in 0..2 {
            world.crash(other, Death::Kill);
            world.run_for(Duration::from_secs(1));
            world.start(other);
            let both =
                |world: &mut World| serves(world, one) && installed_view(world, one).members.len() == 2;
            assert!(world.run_until(LATER, both), "seed {seed}: {}", describe(&world));
        }
        assert!(installed_view(&world, 0).number < installed_view(&world, one).number, "seed {seed}");
        send(&mut world, ALICE, BOB, "on the side that loses");
        send(&mut world, BOB, ALICE, "on the side that wins");
        heal_paths(&mut world);
        if !await_giving_up(&mut world, 0) {
            continue; // It had gone on to a later view once more, and the others follow it.
        }
        gave_up += 1;
        (0..3).for_each(|at| world.crash(at, Death::Kill));
        world.run_for(Duration::from_millis(100));
        if world.servers[0].process.is_none() {
            world.start(0);
        }
        assert_nobody_leads(&mut world, Duration::from_secs(8));
        [one, other].into_iter().for_each(|at| world.start(at));
        await_healed(&mut world);
        assert_eq!(read(&mut world, ALICE), ["on the side that wins"]);
        assert_eq!(read(&mut world, BOB), ["on the side that loses"]);
        check_disks(&mut world);
    }
    assert!(gave_up > 0, "the others have followed the first server each time");
}

/// Whether the server begins to give up rows for another log, before all is well again.
fn await_giving_up(world: &mut World, at: usize) -> bool {
    let begun = world.now;
    while world.now.since(begun) < SOON {
        if world.servers[at].disk.files().iter().any(|file| file.starts_with("diverged-")) {
            return true;
        }
        world.run_for(Duration::from_micros(50));
    }
    false
}

/// R6, R10: of two accounts of one name the earlier keeps it, whichever side of a split it comes from, and the other
/// one is told. What comes from the side that has lost keeps its time, and is marked late.
#[test]
fn of_two_accounts_of_one_name_the_earlier_keeps_it_and_a_message_of_the_other_side_its_time() {
    for seed in 0..6 {
        let mut world = running_world(seed);
        let alone = await_leader(&mut world);
        let pair = others(&world, alone);
        split(&mut world, &[&[alone], &pair]);
        let apart = |world: &mut World| serves(world, alone) && pair.iter().any(|&at| serves(world, at));
        assert!(world.run_until(LATER, apart), "seed {seed}: {}", describe(&world));
        let leads = pair.iter().copied().find(|&at| serves(&world, at)).expect("one of them leads");
        let sides = if seed % 2 == 0 { [alone, leads] } else { [leads, alone] };
        let mut accounts = Vec::new();
        for at in sides {
            let client = world.add_client();
            world.clients[client].name = "namesake".into();
            pin(&mut world, client, at);
            assert!(
                is_done(world.wait_for_client(client, LATER).as_ref()),
                "seed {seed}: {}",
                describe(&world)
            );
            accounts.push(world.clients[client].account.expect("it is registered"));
            world.run_for(Duration::from_millis(100));
        }
        pin(&mut world, ALICE, alone);
        pin(&mut world, BOB, leads);
        send(&mut world, ALICE, BOB, "from one side");
        send(&mut world, BOB, BOB, "from the other side");
        let sent = world.servers[alone].clock.unix_ms(world.now);
        world.run_for(Duration::from_secs(2));
        heal_paths(&mut world);
        assert!(world.run_until(LATER, is_whole), "seed {seed}: {}", describe(&world));
        let state = world.servers[alone].replica().expect("it runs").state();
        assert_eq!(
            state.account_named("namesake"),
            Some(accounts[0]),
            "seed {seed}: the earlier has lost its name"
        );
        let told = state.conflicts(accounts[1], 0, 0).conflicts.len();
        assert_eq!(told, 1, "seed {seed}: who has lost its name is not told");
        world.wish(BOB, Op::Read);
        let ended = world.wait_for_client(BOB, LATER);
        let Some(Ended::Answered(Response::Messages(page))) = ended else { panic!("seed {seed}: {ended:?}") };
        let late = page.messages.iter().filter(|message| message.late).count();
        assert_eq!((page.messages.len(), late), (2, 1), "seed {seed}: messages, and those that are late");
        for message in &page.messages {
            let apart = sent.abs_diff(message.unix_ms);
            assert!(apart < 1_000, "seed {seed}: {} has another time, by {apart} ms", message.text);
        }
        check_disks(&mut world);
    }
}

/// Two servers, of which the first has begun with an empty directory and has never met the third: that was dead
/// already. The second leads them, and has met it.
fn world_of_one_that_has_not_met_another(seed: u64) -> (World, [usize; 3]) {
    let mut world = running_world(seed);
    let first = await_leader(&mut world);
    let (second, third) = (others(&world, first)[0], others(&world, first)[1]);
    world.crash(third, Death::Kill);
    await_dropped(&mut world, third);
    world.crash(first, Death::Kill);
    world.wipe(first);
    world.run_for(Duration::from_millis(100));
    world.start(first);
    assert!(world.run_until(SOON, leads_a_view_of(second, 2)), "seed {seed}: {}", describe(&world));
    (world, [first, second, third])
}

fn leads_a_view_of(at: usize, members: usize) -> impl Fn(&mut World) -> bool {
    move |world| serves(world, at) && installed_view(world, at).members.len() == members
}

/// V6: a directory that was emptied gives itself a number that nobody can tell from an earlier one. Whoever knew a later
/// life must be heard before a view names this one, or the name is void as soon as it is given: then everything fails
/// before its bearer has installed that view, and the others wait for a disk that no longer exists.
#[test]
fn who_begins_anew_asks_everyone_before_a_view_names_it() {
    for seed in 0..24 {
        let (mut world, [leads, teller, emptied]) = world_of_one_that_has_not_met_another(seed);
        world.crash(teller, Death::Kill);
        world.run_for(Duration::from_millis(100));
        world.start(teller);
        assert!(world.run_until(SOON, leads_a_view_of(leads, 2)), "seed {seed}: {}", describe(&world));
        world.wipe(emptied);
        world.start(emptied);
        let (named, heard, renamed) =
            (Rc::new(Cell::new(None)), Rc::new(Cell::new(false)), Rc::new(Cell::new(false)));
        let (name, is_heard, is_renamed) = (Rc::clone(&named), Rc::clone(&heard), Rc::clone(&renamed));
        world.network.censor(move |from, to, message| match message {
            PeerMessage::NewView { view, .. } if to == emptied => {
                name.set(view.member(server_id(emptied)).map(|member| member.incarnation).or(name.get()));
                Fate::Lost
            }
            PeerMessage::Heartbeat { pulse, .. } | PeerMessage::HeartbeatOk { pulse, .. }
                if from == emptied && name.get().is_some_and(|name| name != pulse.incarnation) =>
            {
                is_renamed.set(true);
                Fate::Lost
            }
            _ if (from, to) == (teller, emptied) && !is_heard.get() => Fate::Lost,
            _ => Fate::Sent,
        });
        let since = world.now;
        while !renamed.get() && world.now.since(since) < Duration::from_millis(600) {
            world.run_for(Duration::from_millis(1));
            heard.set(named.get().is_some() || world.now.since(since) > Duration::from_millis(300));
        }
        assert!(named.get().is_some(), "seed {seed}: {}", describe(&world));
        for at in 0..3 {
            world.crash(at, Death::Kill);
        }
        heal_paths(&mut world);
        for at in 0..3 {
            world.start(at);
        }
        heal_and_check(&mut world);
    }
}

/// V6: two directories are emptied one after the other while a third knows their lives, and is gone when the second of them
/// asks. The first knows from its first view: or it names the second by a number that is void as soon as the third is back,
/// and who has died before the view was installed is awaited in vain.
#[test]
fn who_begins_anew_is_told_which_lives_were_the_last() {
    for seed in 0..24 {
        let (mut world, [leads, teller, emptied]) = world_of_one_that_has_not_met_another(seed);
        world.crash(teller, Death::Kill);
        assert!(world.run_until(SOON, leads_a_view_of(leads, 1)), "seed {seed}: {}", describe(&world));
        world.wipe(emptied);
        world.start(emptied);
        let named = Rc::new(Cell::new(false));
        let is_named = Rc::clone(&named);
        world.network.censor(move |_, to, message| match message {
            PeerMessage::NewView { view, .. } if to == emptied => {
                is_named.set(is_named.get() || view.member(server_id(emptied)).is_some());
                Fate::Lost
            }
            _ => Fate::Sent,
        });
        assert!(world.run_until(SOON, |_| named.get()), "seed {seed}: {}", describe(&world));
        for at in [leads, emptied] {
            world.crash(at, Death::Kill);
        }
        heal_paths(&mut world);
        for at in 0..3 {
            world.start(at);
        }
        heal_and_check(&mut world);
    }
}

/// V6: a directory is put back as it was before the last start, so that the next one has the same number. That it was
/// about to stop then is no longer so.
#[test]
fn a_life_with_the_number_of_one_that_left_has_not_left() {
    for seed in 0..6 {
        let mut world = running_world(seed);
        let leads = await_leader(&mut world);
        let leaves = others(&world, leads)[usize::try_from(seed % 2).expect("small")];
        let kept = world.servers[leaves].disk.copy();
        world.crash(leaves, Death::Kill);
        world.start(leaves);
        await_whole(&mut world);
        world.deliver(leaves, Event::Stop);
        assert!(world.run_until(SOON, |world| world.servers[leaves].process.is_none()), "seed {seed}");
        await_dropped(&mut world, leaves);
        world.servers[leaves].disk = kept.restart();
        world.checks.forget_disk(leaves);
        world.start(leaves);
        await_whole(&mut world);
        let view = installed_view(&world, leads).number;
        world.run_for(Duration::from_secs(3));
        assert_eq!(installed_view(&world, leads).number, view, "seed {seed}: {}", describe(&world));
        heal_and_check(&mut world);
    }
}

/// T1, T3: the answer to an earlier question comes when all that it speaks of has been made good.
#[test]
fn a_late_word_to_start_from_a_checkpoint_takes_nobody_back() {
    for seed in 0..6 {
        let swarm = Swarm { checkpoint_bytes: 2_000, segment_bytes: 1_500, ..Swarm::calm() };
        let mut world = begin(world_with(seed, swarm));
        for _ in 0..40 {
            send(&mut world, ALICE, BOB, &"kept ".repeat(40));
        }
        world.run_for(Duration::from_secs(2)); // The log's beginning is cut.
        let behind = await_leader(&mut world);
        world.crash(behind, Death::Kill);
        world.wipe(behind);
        await_dropped(&mut world, behind);
        // Who starts anew has nothing in memory from before its checkpoint.
        for at in others(&world, behind) {
            world.crash(at, Death::Kill);
            await_leader(&mut world);
            world.start(at);
            world.run_for(Duration::from_secs(2));
        }
        let leads = await_leader(&mut world);
        send(&mut world, ALICE, BOB, "behind the checkpoint");
        let words = Rc::new(Cell::new(0));
        let counted = Rc::clone(&words);
        world.network.censor(move |_, to, message| match message {
            PeerMessage::UseCheckpoint { .. } if to == behind => {
                counted.set(counted.get() + 1);
                if counted.get() == 1 { Fate::Held } else { Fate::Sent }
            }
            PeerMessage::Propose { .. } => Fate::Lost, // It stays a learner.
            _ => Fate::Sent,
        });
        world.start(behind);
        let all = world.servers[leads].replica().expect("it runs").commit_index();
        let has_all = |world: &mut World| {
            world.servers[behind].replica().is_some_and(|replica| replica.commit_index() >= all)
        };
        assert!(world.run_until(LATER, has_all), "seed {seed}: {}", describe(&world));
        assert_eq!(world.release_held(), 1, "seed {seed}: {} words", words.get());
        world.run_for(Duration::from_millis(50));
        let commit = world.servers[behind].replica().expect("it runs").commit_index();
        assert!(commit >= all, "seed {seed}: {}", describe(&world));
        world.network.heal();
        await_whole(&mut world);
        assert_eq!(words.get(), 2, "seed {seed}: it has started from a checkpoint again");
        heal_and_check(&mut world);
    }
}
