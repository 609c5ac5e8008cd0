//! Password jobs: slow by design, so they run beside the event loop, two at a time.

use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{Error as HashError, PasswordHasher as _, PasswordVerifier as _};
use argon2::{Algorithm, Argon2, Params, Version};
use rand::TryRng as _;
use rand::rngs::SysRng;
use tokio::sync::Semaphore;

use super::throttle::Throttle;
use crate::replica::{HashJob, Hashed};
use crate::time::Instant;

/// Memory of one hash, in KiB; with two at a time the server needs 38 MiB for passwords.
const MEMORY_KIB: u32 = 19_456;
/// Passes over it.
const PASSES: u32 = 2;
/// Jobs that run at once.
const JOBS_AT_ONCE: usize = 2;
/// Jobs that may wait or run; what goes beyond fails.
const JOBS_MAX: usize = 1024;
const SALT_BYTES: usize = 16;

/// Runs password jobs.
#[derive(Debug)]
pub struct Passwords {
    permits: Semaphore,
    throttle: Mutex<Throttle>,
    under_way: AtomicUsize,
}

impl Default for Passwords {
    fn default() -> Self {
        Self {
            permits: Semaphore::new(JOBS_AT_ONCE),
            throttle: Mutex::new(Throttle::new()),
            under_way: AtomicUsize::new(0),
        }
    }
}

impl Passwords {
    /// No job is under way, and nobody has guessed yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Does one job for a client at `address`; comparing is throttled by account name and address.
    pub async fn perform(
        self: Arc<Self>,
        name: String,
        address: IpAddr,
        now: Instant,
        job: HashJob,
    ) -> Hashed {
        let verifies = matches!(job, HashJob::Verify { .. });
        if verifies && let Err(seconds) = self.throttle().admit(&name, address, now) {
            return Hashed::Throttled { seconds };
        }
        let result = self.perform_when_possible(job).await;
        // Only a wrong password counts as an attempt: not one that could not be compared.
        if verifies && result != Hashed::Verified(false) {
            self.throttle().forgive(&name, address);
        }
        result
    }

    fn throttle(&self) -> MutexGuard<'_, Throttle> {
        self.throttle.lock().expect("counting attempts doesn't panic")
    }

    async fn perform_when_possible(&self, job: HashJob) -> Hashed {
        if self.under_way.fetch_add(1, Ordering::Relaxed) >= JOBS_MAX {
            self.under_way.fetch_sub(1, Ordering::Relaxed);
            return Hashed::Failed(format!("{JOBS_MAX} passwords wait to be hashed already: try again"));
        }
        let permit = self.permits.acquire().await;
        let done = tokio::task::spawn_blocking(move || perform(&job)).await;
        drop(permit);
        self.under_way.fetch_sub(1, Ordering::Relaxed);
        done.unwrap_or_else(|error| Hashed::Failed(format!("the password job ended early: {error}")))
    }
}

fn argon2() -> Argon2<'static> {
    let params = Params::new(MEMORY_KIB, PASSES, 1, None).expect("the parameters are within their bounds");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

fn perform(job: &HashJob) -> Hashed {
    match job {
        HashJob::New { password } => match hash(password) {
            Ok(phc) => Hashed::New(phc),
            Err(error) => Hashed::Failed(error),
        },
        HashJob::Verify { password, hash: Some(hash) } => verify(password, hash),
        // An unknown name must not be told from a wrong password by the time it takes.
        HashJob::Verify { password, hash: None } => match hash(password) {
            Ok(_) => Hashed::Verified(false),
            Err(error) => Hashed::Failed(error),
        },
    }
}

fn hash(password: &str) -> Result<String, String> {
    let mut salt = [0; SALT_BYTES];
    SysRng.try_fill_bytes(&mut salt).map_err(|error| format!("no random salt: {error}"))?;
    let phc: PasswordHash = argon2()
        .hash_password_with_salt(password.as_bytes(), &salt)
        .map_err(|error| format!("hashing the password failed: {error}"))?;
    Ok(phc.to_string())
}

fn verify(password: &str, phc: &str) -> Hashed {
    let parsed = match PasswordHash::new(phc) {
        Ok(parsed) => parsed,
        Err(error) => return Hashed::Failed(format!("the stored password hash can't be read: {error}")),
    };
    match argon2().verify_password(password.as_bytes(), &parsed) {
        Ok(()) => Hashed::Verified(true),
        Err(HashError::PasswordInvalid) => Hashed::Verified(false),
        Err(error) => Hashed::Failed(format!("comparing the password failed: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::throttle::FREE_ATTEMPTS;
    use super::*;
    use std::net::Ipv4Addr;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn check(password: &str, hash: Option<&str>) -> HashJob {
        HashJob::Verify { password: password.into(), hash: hash.map(str::to_owned) }
    }

    #[test]
    fn a_new_hash_names_its_parameters_and_verifies() {
        let Hashed::New(phc) = perform(&HashJob::New { password: "secret words".into() }) else { panic!() };
        assert!(phc.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{phc}");
        assert_eq!(perform(&check("secret words", Some(&phc))), Hashed::Verified(true));
        assert_eq!(perform(&check("other words", Some(&phc))), Hashed::Verified(false));
        assert_eq!(perform(&check("secret words", None)), Hashed::Verified(false));
        assert!(matches!(perform(&check("secret words", Some("nonsense"))), Hashed::Failed(_)));
    }

    #[tokio::test]
    async fn the_sixth_wrong_password_is_not_even_hashed() {
        let passwords = Arc::new(Passwords::new());
        let attempt =
            || Arc::clone(&passwords).perform("a".into(), HERE, Instant::ZERO, check("wrong", None));
        for _ in 0..FREE_ATTEMPTS {
            assert_eq!(attempt().await, Hashed::Verified(false));
        }
        assert_eq!(attempt().await, Hashed::Throttled { seconds: 10 });
    }
}
