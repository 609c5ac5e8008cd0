//! Whom to ask next, and how long to wait before: pure, so that the simulator runs the very same decisions.
//!
//! A *round* tries every server once, without waiting in between. When a whole round has failed, the policy waits,
//! a little at first (a failover takes a few dozen milliseconds) and longer the longer nobody answers.

use crate::prng::Prng;
use crate::time::Instant;
use std::time::Duration;

/// The wait after the first failed round.
pub const WAIT_MIN: Duration = Duration::from_millis(2);
/// The longest wait while the failure is young.
pub const WAIT_YOUNG_MAX: Duration = Duration::from_millis(100);
/// The longest wait.
pub const WAIT_MAX: Duration = Duration::from_secs(1);
/// How long a failure is young.
pub const YOUNG: Duration = Duration::from_secs(3);

const _: () = assert!(WAIT_MIN.as_millis() < WAIT_YOUNG_MAX.as_millis());
const _: () = assert!(WAIT_YOUNG_MAX.as_millis() <= WAIT_MAX.as_millis());

/// Why an attempt did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The server follows another one.
    NotPrimary {
        /// Which, as its place in the list, if the server knows and the list has it.
        hint: Option<usize>,
    },
    /// Nobody listens at the address.
    Refused,
    /// The connection was closed under the request.
    Closed,
    /// No answer in time.
    TimedOut,
    /// The server answers, but no server leads at the moment.
    NoPrimary,
    /// The server has too much to do, or can't write at the moment.
    Busy,
}

/// What to do after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Next {
    /// Whom to ask, as a place in the list.
    pub server: usize,
    /// How long to wait before.
    pub wait: Duration,
}

/// What this round knows of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tried {
    /// It was asked and is no use in this round.
    done: bool,
    /// It was asked and is not there.
    absent: bool,
    /// It has closed a connection once: it gets a second chance, since idle connections are closed too.
    closed: bool,
}

/// The state of the search for the primary.
#[derive(Clone, Debug)]
pub struct Policy {
    prng: Prng,
    target: usize,
    /// Invariant: has one element for each server, at least one, and `target` is the place of one.
    tried: Vec<Tried>,
    wait: Duration,
    failing_since: Option<Instant>,
}

impl Policy {
    /// Begins with the first of `servers` servers. Equal seeds make equal decisions.
    ///
    /// # Panics
    /// If there is no server.
    #[must_use]
    pub fn new(servers: usize, seed: u64) -> Self {
        assert!(servers > 0, "a client without a server to ask");
        Self {
            prng: Prng::new(seed),
            target: 0,
            tried: vec![Tried::default(); servers],
            wait: WAIT_MIN,
            failing_since: None,
        }
    }

    /// Whom to ask.
    #[must_use]
    pub fn target(&self) -> usize {
        self.target
    }

    /// Asks this server next, for instance the one that led when the client last ran.
    ///
    /// # Panics
    /// If there is no such server.
    pub fn prefer(&mut self, server: usize) {
        assert!(server < self.tried.len(), "server {server} of {}", self.tried.len());
        self.target = server;
    }

    /// The list has grown by one server; its place is the result.
    pub fn add_server(&mut self) -> usize {
        self.tried.push(Tried::default());
        self.tried.len() - 1
    }

    /// The target has answered: it leads.
    pub fn on_success(&mut self) {
        self.tried.fill(Tried::default());
        self.wait = WAIT_MIN;
        self.failing_since = None;
    }

    /// The target has failed. Says whom to ask next; that is then the target.
    pub fn on_failure(&mut self, now: Instant, failure: Failure) -> Next {
        let failing_since = *self.failing_since.get_or_insert(now);
        let asked = &mut self.tried[self.target];
        match failure {
            Failure::Closed if !asked.closed => {
                // A dead server refuses the next connection, which tells more than a guess.
                asked.closed = true;
                return self.ask(self.target, Duration::ZERO);
            }
            Failure::Busy => {
                let wait = self.next_wait(now.since(failing_since));
                return self.ask(self.target, wait);
            }
            Failure::Refused | Failure::TimedOut => asked.absent = true,
            Failure::Closed | Failure::NotPrimary { .. } | Failure::NoPrimary => asked.absent = false,
        }
        asked.done = true;
        if let Failure::NotPrimary { hint: Some(hint) } = failure
            && self.tried.get(hint).is_some_and(|hinted| !hinted.done)
        {
            return self.ask(hint, Duration::ZERO);
        }
        match self.next_untried() {
            Some(server) => self.ask(server, Duration::ZERO),
            None => self.begin_round(now.since(failing_since)),
        }
    }

    fn ask(&mut self, server: usize, wait: Duration) -> Next {
        self.target = server;
        Next { server, wait }
    }

    /// The next server after the target, in the order of the list, that was not asked in this round.
    fn next_untried(&self) -> Option<usize> {
        let servers = self.tried.len();
        (1..=servers).map(|step| (self.target + step) % servers).find(|&server| !self.tried[server].done)
    }

    /// Begins with the first server that is there: it leads soon, or knows who does.
    fn begin_round(&mut self, failing_for: Duration) -> Next {
        let first = self.tried.iter().position(|t| !t.absent).unwrap_or((self.target + 1) % self.tried.len());
        self.tried.fill(Tried::default());
        let wait = self.next_wait(failing_for);
        self.ask(first, wait)
    }

    /// Waits grow by half each time, so that a wait is never much longer than what was waited before; the jitter
    /// takes away up to half, so that clients don't come back all at once.
    fn next_wait(&mut self, failing_for: Duration) -> Duration {
        let wait = self.wait;
        let limit = if failing_for < YOUNG { WAIT_YOUNG_MAX } else { WAIT_MAX };
        self.wait = (wait * 3 / 2).min(limit);
        let half = u64::try_from(wait.as_nanos() / 2).expect("a wait is at most a second");
        Duration::from_nanos(half + self.prng.below(half + 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Instant = Instant::ZERO;

    #[test]
    fn a_hint_is_followed_at_once() {
        let mut policy = Policy::new(3, 1);
        let next = policy.on_failure(NOW, Failure::NotPrimary { hint: Some(2) });
        assert_eq!(next, Next { server: 2, wait: Duration::ZERO });
        assert_eq!(policy.target(), 2);
    }

    #[test]
    fn refused_servers_are_passed_over_without_waiting_until_all_were_tried() {
        let mut policy = Policy::new(3, 1);
        assert_eq!(policy.on_failure(NOW, Failure::Refused), Next { server: 1, wait: Duration::ZERO });
        assert_eq!(policy.on_failure(NOW, Failure::Refused), Next { server: 2, wait: Duration::ZERO });
        let next = policy.on_failure(NOW, Failure::Refused);
        assert!(next.wait >= WAIT_MIN / 2 && next.wait <= WAIT_MIN);
    }

    #[test]
    fn a_hint_at_a_dead_server_does_not_make_a_loop() {
        let mut policy = Policy::new(3, 1);
        policy.on_failure(NOW, Failure::Refused);
        let next = policy.on_failure(NOW, Failure::NotPrimary { hint: Some(0) });
        assert_eq!(next, Next { server: 2, wait: Duration::ZERO });
        let next = policy.on_failure(NOW, Failure::NotPrimary { hint: Some(0) });
        assert!(!next.wait.is_zero());
        assert_eq!(next.server, 1, "the first that is there");
    }

    #[test]
    fn two_servers_that_name_each_other_are_not_asked_in_a_busy_loop() {
        let mut policy = Policy::new(2, 1);
        let mut waited = 0;
        for _ in 0..10 {
            let hint = Some(1 - policy.target());
            let next = policy.on_failure(NOW, Failure::NotPrimary { hint });
            waited += u32::from(!next.wait.is_zero());
        }
        assert_eq!(waited, 5);
    }

    #[test]
    fn a_closed_connection_is_opened_again_once() {
        let mut policy = Policy::new(2, 1);
        assert_eq!(policy.on_failure(NOW, Failure::Closed), Next { server: 0, wait: Duration::ZERO });
        assert_eq!(policy.on_failure(NOW, Failure::Closed), Next { server: 1, wait: Duration::ZERO });
    }

    #[test]
    fn a_busy_server_is_asked_again_after_a_wait() {
        let mut policy = Policy::new(3, 1);
        let next = policy.on_failure(NOW, Failure::Busy);
        assert_eq!(next.server, 0);
        assert!(!next.wait.is_zero());
    }

    #[test]
    fn waits_are_fine_at_first_and_bounded_later() {
        let mut policy = Policy::new(1, 7);
        let mut now = Instant::ZERO;
        let mut waits = Vec::new();
        while now < Instant::from_nanos(60_000_000_000) {
            let next = policy.on_failure(now, Failure::NoPrimary);
            waits.push((now, next.wait));
            now = now + next.wait;
        }
        for (at, wait) in &waits {
            let elapsed = at.since(Instant::ZERO);
            assert!(*wait <= WAIT_MAX);
            assert!(elapsed >= YOUNG || *wait <= WAIT_YOUNG_MAX, "{wait:?} after {elapsed:?}");
            // A failover that ends at any moment is noticed before its length has passed once more.
            assert!(*wait <= elapsed.max(WAIT_MIN) * 2, "{wait:?} after {elapsed:?}");
        }
        assert!(waits.last().unwrap().1 >= WAIT_MAX / 2);
    }

    #[test]
    fn success_forgets_all_failures() {
        let mut policy = Policy::new(1, 7);
        for _ in 0..50 {
            policy.on_failure(NOW, Failure::Refused);
        }
        policy.on_success();
        assert!(policy.on_failure(NOW, Failure::Refused).wait <= WAIT_MIN);
    }

    #[test]
    fn every_server_is_asked_within_two_rounds_whatever_happens() {
        for seed in 0..200 {
            let mut prng = Prng::new(seed);
            let mut policy = Policy::new(3, seed);
            let mut asked = [false; 3];
            for _ in 0..12 {
                asked[policy.target()] = true;
                let hint = usize::try_from(prng.below(4)).unwrap();
                let failure = match prng.below(5) {
                    0 => Failure::NotPrimary { hint: (hint < 3).then_some(hint) },
                    1 => Failure::Refused,
                    2 => Failure::Closed,
                    3 => Failure::TimedOut,
                    _ => Failure::NoPrimary,
                };
                policy.on_failure(NOW, failure);
            }
            assert_eq!(asked, [true; 3], "seed {seed}");
        }
    }

    #[test]
    fn a_server_that_is_learned_of_later_is_asked_too() {
        let mut policy = Policy::new(1, 1);
        let added = policy.add_server();
        let next = policy.on_failure(NOW, Failure::NotPrimary { hint: Some(added) });
        assert_eq!(next, Next { server: 1, wait: Duration::ZERO });
    }
}
