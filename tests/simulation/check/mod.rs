//! What must hold after every step, one property a file.

pub(crate) mod account;
mod committed;
mod digest;
pub(crate) mod linear;
mod one_primary;
mod order;
pub(crate) mod searches;
pub(crate) mod shelf;

use crate::world::World;

/// The memory of all checks.
#[derive(Debug)]
pub(crate) struct Checks {
    one_primary: one_primary::OnePrimary,
    committed: committed::Committed,
    digest: digest::EqualDigests,
    order: order::Order,
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
            steps: 0,
        }
    }

    /// A server starts anew: what held within its last life need not hold across.
    pub(crate) fn forget_process(&mut self, at: usize) {
        self.order.forget(at);
        self.committed.forget(at);
        self.digest.forget(at);
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

impl World {
    /// Looks at a server that has just done something.
    pub(crate) fn check_after_step(&mut self, at: usize) {
        if self.servers[at].given_up {
            return;
        }
        let Some(replica) = self.servers[at].replica() else { return };
        let now = self.servers[at].clock.monotonic(self.now);
        self.checks.steps += 1;
        let changed = self.checks.order.check(at, replica);
        if !changed {
            return;
        }
        if !self.split {
            self.checks.committed.check(at, replica);
        }
        self.checks.digest.check(at, replica);
        let status = replica.status(now);
        self.trace.mix(status.commit);
        self.trace.mix(status.last);
        self.checks.order.check_status(at, &status);
        self.checks.one_primary.check(at, &status);
    }
}
