//! What must hold after every step, one property a file.

pub(crate) mod account;
mod bounds;
mod committed;
mod digest;
mod durable;
mod followed;
pub(crate) mod linear;
mod one_primary;
mod order;
pub(crate) mod searches;
pub(crate) mod shelf;
pub(crate) mod tables;

use lastword::chat::command::{Command, Operation};
use lastword::message::{Recovered, Write};
use lastword::replica::Effect;
use lastword::types::WriteId;

use crate::faults::Fault;
use crate::world::World;

/// What a server holds is looked at when it has moved on, and each so many steps: that costs more than most steps.
const BOUNDS_EVERY: u64 = 16;

/// The memory of all checks.
#[derive(Debug)]
pub(crate) struct Checks {
    one_primary: one_primary::OnePrimary,
    committed: committed::Committed,
    digest: digest::EqualDigests,
    order: order::Order,
    durable: durable::Durable,
    followed: followed::Followed,
    bounds: bounds::Bounds,
    /// Logs have parted.
    split_seen: bool,
    /// A registration was proposed again.
    name_claimed: bool,
    /// How many steps were checked.
    pub steps: u64,
}

impl Checks {
    /// Nothing seen yet.
    pub(crate) fn new(servers: usize) -> Self {
        Self {
            one_primary: one_primary::OnePrimary::default(),
            committed: committed::Committed::new(servers),
            digest: digest::EqualDigests::new(servers),
            order: order::Order::new(servers),
            durable: durable::Durable::new(servers),
            followed: followed::Followed::default(),
            bounds: bounds::Bounds::new(servers),
            split_seen: false,
            name_claimed: false,
            steps: 0,
        }
    }

    /// A server starts anew: what held within its last life need not hold across.
    pub(crate) fn forget_process(&mut self, at: usize) {
        self.order.forget(at);
        self.committed.forget(at);
        self.digest.forget(at);
        self.bounds.forget(at);
    }

    /// A process has opened its directory.
    pub(crate) fn on_start(&mut self, at: usize, recovered: &Recovered) {
        self.forget_process(at);
        self.durable.on_start(at, recovered);
    }

    /// A directory was emptied, restored from a copy, or damaged: it need not hold what it held.
    pub(crate) fn forget_disk(&mut self, at: usize) {
        self.durable.forget(at);
    }

    /// The core wants something done.
    pub(crate) fn on_effect(&mut self, at: usize, effect: &Effect) {
        self.durable.on_effect(at, effect);
        self.bounds.on_effect(at, effect);
        if let Effect::Write { write: Write::Append(entries), .. } = effect {
            self.name_claimed |= entries.iter().any(|entry| claims_name(&entry.operation));
        }
    }

    /// The core is going to hear that its writes are on disk.
    pub(crate) fn on_synced(&mut self, at: usize, through: WriteId) {
        self.durable.on_synced(at, through);
        self.bounds.on_synced(at, through);
    }

    /// The latest view that anyone was seen leading.
    pub(crate) fn latest_view(&self) -> lastword::types::ViewNumber {
        self.one_primary.latest()
    }

    /// How many entries are known to be committed.
    pub(crate) fn committed(&self) -> u64 {
        self.committed.count()
    }
}

/// A registration of unknown outcome that is proposed again. It may take its name from a later account (R6).
fn claims_name(operation: &Operation) -> bool {
    matches!(operation, Operation::Rebased { command, .. } if matches!(command.command, Command::Register { .. }))
}

impl World {
    /// Looks at a server that has just done something.
    pub(crate) fn check_after_step(&mut self, at: usize) {
        self.checks.bounds.on_drained(at);
        if self.servers[at].given_up {
            return;
        }
        let Some(replica) = self.servers[at].replica() else { return };
        let now = self.servers[at].clock.monotonic(self.now);
        self.checks.steps += 1;
        let changed = self.checks.order.check(at, replica);
        if changed || self.checks.steps.is_multiple_of(BOUNDS_EVERY) {
            bounds::Bounds::check(at, &replica.holdings());
        }
        if !changed {
            return;
        }
        let chain = |index| replica.entry_chain(index);
        self.checks.committed.check(at, replica.commit_index(), self.split, chain);
        if self.checks.committed.parted() && !self.checks.split_seen {
            self.checks.split_seen = true;
            self.faults.count(Fault::SplitBrain);
        }
        self.oracle.split |= self.checks.split_seen || self.checks.name_claimed;
        let state = replica.state();
        if !self.servers[at].spoilt {
            self.checks.digest.check(at, state.index(), replica.entry_chain(state.index()), state.digest());
        }
        let status = replica.status(now);
        self.trace.mix(status.commit);
        self.trace.mix(status.last);
        self.checks.order.check_status(at, &status);
        self.checks.one_primary.check(at, &status);
        let others = self.servers.iter().filter(|server| server.at != at);
        let others = others.filter_map(|server| Some((server.at, server.replica()?.status(now))));
        self.checks.followed.check(at, &status, others);
    }
}

/// Whether this panics. For tests that show a check can fail.
#[cfg(test)]
pub(crate) fn panics(what: impl FnOnce()) -> bool {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(what)).is_err()
}
