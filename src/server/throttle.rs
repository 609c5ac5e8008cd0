//! Slows down whoever guesses passwords: per account name and address, before anything is hashed, never a lock-out.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::time::Instant;

/// So many wrong passwords are free.
pub const FREE_ATTEMPTS: u32 = 5;
/// How long the first attempt after them must wait; each further wrong one doubles it.
pub const FIRST_WAIT: Duration = Duration::from_secs(10);
/// The longest wait.
pub const WAIT_MAX: Duration = Duration::from_secs(15 * 60);
/// Most pairs of name and address that are remembered.
const REMEMBERED_MAX: usize = 10_000;

#[derive(Clone, Copy, Debug)]
struct Attempts {
    wrong: u32,
    next: Instant,
    forget: Instant,
}

/// Counts wrong passwords.
#[derive(Debug, Default)]
pub struct Throttle {
    attempts: HashMap<(String, IpAddr), Attempts>,
}

impl Throttle {
    /// Nobody has guessed yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes in an attempt, or says how many seconds it is too early. An attempt counts as wrong until
    /// [`Throttle::forgive`]: so many at once can't slip through.
    ///
    /// # Errors
    /// The seconds to wait, at least 1.
    pub fn admit(&mut self, name: &str, address: IpAddr, now: Instant) -> Result<(), u64> {
        self.make_room(now);
        let fresh = Attempts { wrong: 0, next: now, forget: now };
        let attempts = self.attempts.entry((name.to_lowercase(), address)).or_insert(fresh);
        if attempts.forget <= now {
            *attempts = fresh;
        }
        if now < attempts.next {
            return Err(attempts.next.since(now).as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX));
        }
        attempts.wrong += 1;
        let wait = wait_after(attempts.wrong);
        attempts.next = now + wait;
        attempts.forget = now + WAIT_MAX + wait;
        Ok(())
    }

    /// The password was right: everything is forgotten.
    pub fn forgive(&mut self, name: &str, address: IpAddr) {
        self.attempts.remove(&(name.to_lowercase(), address));
    }

    fn make_room(&mut self, now: Instant) {
        if self.attempts.len() < REMEMBERED_MAX {
            return;
        }
        self.attempts.retain(|_, attempts| attempts.forget > now);
        if self.attempts.len() < REMEMBERED_MAX {
            return;
        }
        // Whoever fills the table pushes out the pairs that would be forgotten first, a quarter at a time, so that
        // the search for them is rare.
        let mut ends: Vec<Instant> = self.attempts.values().map(|attempts| attempts.forget).collect();
        ends.sort_unstable();
        let until = ends[ends.len() / 4];
        self.attempts.retain(|_, attempts| attempts.forget > until);
    }
}

fn wait_after(wrong: u32) -> Duration {
    match wrong.checked_sub(FREE_ATTEMPTS) {
        None => Duration::ZERO,
        Some(doublings) => FIRST_WAIT.saturating_mul(1 << doublings.min(16)).min(WAIT_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    const THERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    #[test]
    fn five_wrong_passwords_are_free_and_waits_double_up_to_fifteen_minutes() {
        let mut throttle = Throttle::new();
        for _ in 0..FREE_ATTEMPTS {
            assert_eq!(throttle.admit("Alice", HERE, at(1)), Ok(()));
        }
        let mut now = 1;
        for wait in [10, 20, 40, 80, 160, 320, 640, 900, 900, 900] {
            assert_eq!(throttle.admit("alice", HERE, at(now)), Err(wait));
            assert_eq!(throttle.admit("ALICE", HERE, at(now + wait - 1)), Err(1));
            now += wait;
            assert_eq!(throttle.admit("alice", HERE, at(now)), Ok(()));
        }
    }

    #[test]
    fn another_address_and_another_name_are_not_held_up() {
        let mut throttle = Throttle::new();
        for _ in 0..FREE_ATTEMPTS {
            throttle.admit("alice", HERE, at(1)).unwrap();
        }
        assert!(throttle.admit("alice", HERE, at(1)).is_err());
        assert_eq!(throttle.admit("alice", THERE, at(1)), Ok(()));
        assert_eq!(throttle.admit("bob", HERE, at(1)), Ok(()));
    }

    #[test]
    fn a_right_password_forgives() {
        let mut throttle = Throttle::new();
        for _ in 0..100 {
            throttle.admit("alice", HERE, at(1)).unwrap();
            throttle.forgive("Alice", HERE);
        }
        assert!(throttle.attempts.is_empty());
    }

    #[test]
    fn the_table_is_bounded() {
        let mut throttle = Throttle::new();
        for number in 0..3 * REMEMBERED_MAX {
            throttle.admit(&format!("user{number}"), HERE, at(number as u64 / 100)).unwrap();
            assert!(throttle.attempts.len() <= REMEMBERED_MAX);
        }
    }
}
