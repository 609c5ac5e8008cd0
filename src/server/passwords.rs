//! Password jobs: slow by design, so they run beside the event loop, two at a time.

use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use argon2::password_hash::phc::{Output, ParamsString, PasswordHash, Salt};
use argon2::{Algorithm, Argon2, Block, Params, Version};
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
    /// What earlier jobs have worked in. It stays: blocks of this size given back on many threads stay with the
    /// allocator, once for each thread.
    memories: Mutex<Vec<Memory>>,
}

/// What a job works in.
type Memory = Vec<Block>;

impl Default for Passwords {
    fn default() -> Self {
        Self {
            permits: Semaphore::new(JOBS_AT_ONCE),
            throttle: Mutex::new(Throttle::new()),
            under_way: AtomicUsize::new(0),
            memories: Mutex::default(),
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

    fn memories(&self) -> MutexGuard<'_, Vec<Memory>> {
        self.memories.lock().expect("giving a memory back doesn't panic")
    }

    async fn perform_when_possible(self: &Arc<Self>, job: HashJob) -> Hashed {
        if self.under_way.fetch_add(1, Ordering::Relaxed) >= JOBS_MAX {
            self.under_way.fetch_sub(1, Ordering::Relaxed);
            return Hashed::Failed(format!("{JOBS_MAX} passwords wait to be hashed already: try again"));
        }
        let permit = self.permits.acquire().await;
        let passwords = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || {
            let mut memory = passwords.memories().pop().unwrap_or_default();
            let hashed = perform(&job, &mut memory);
            passwords.memories().push(memory);
            hashed
        });
        let done = done.await;
        drop(permit);
        self.under_way.fetch_sub(1, Ordering::Relaxed);
        done.unwrap_or_else(|error| Hashed::Failed(format!("the password job ended early: {error}")))
    }
}

fn argon2() -> Argon2<'static> {
    let params = Params::new(MEMORY_KIB, PASSES, 1, None).expect("the parameters are within their bounds");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

fn perform(job: &HashJob, memory: &mut Memory) -> Hashed {
    match job {
        HashJob::New { password } => match hash(password, memory) {
            Ok(phc) => Hashed::New(phc),
            Err(error) => Hashed::Failed(error),
        },
        HashJob::Verify { password, hash: Some(hash) } => match verify(password, hash, memory) {
            Ok(right) => Hashed::Verified(right),
            Err(error) => Hashed::Failed(error),
        },
        // An unknown name must not be told from a wrong password by the time it takes.
        HashJob::Verify { password, hash: None } => match hash(password, memory) {
            Ok(_) => Hashed::Verified(false),
            Err(error) => Hashed::Failed(error),
        },
    }
}

fn hash(password: &str, memory: &mut Memory) -> Result<String, String> {
    let mut salt = [0; SALT_BYTES];
    SysRng.try_fill_bytes(&mut salt).map_err(|error| format!("no random salt: {error}"))?;
    let failed = |error: &dyn std::fmt::Display| format!("hashing the password failed: {error}");
    let argon2 = argon2();
    let phc = PasswordHash {
        algorithm: Algorithm::Argon2id.ident(),
        version: Some(Version::V0x13.into()),
        params: ParamsString::try_from(argon2.params()).map_err(|error| failed(&error))?,
        salt: Some(Salt::new(&salt).map_err(|error| failed(&error))?),
        hash: Some(digest(&argon2, password, &salt, memory).map_err(|error| failed(&error))?),
    };
    Ok(phc.to_string())
}

/// Whether this is the password; a hash names the parameters that it was made with.
fn verify(password: &str, phc: &str, memory: &mut Memory) -> Result<bool, String> {
    let unreadable =
        |error: &dyn std::fmt::Display| format!("the stored password hash can't be read: {error}");
    let parsed = PasswordHash::new(phc).map_err(|error| unreadable(&error))?;
    let (Some(salt), Some(expected)) = (&parsed.salt, &parsed.hash) else {
        return Err(unreadable(&"found no salt or no hash in it"));
    };
    let algorithm = Algorithm::try_from(parsed.algorithm.as_str()).map_err(|error| unreadable(&error))?;
    let version = parsed.version.map_or(Ok(Version::default()), Version::try_from);
    let version = version.map_err(|error| unreadable(&error))?;
    let params = Params::try_from(&parsed).map_err(|error| unreadable(&error))?;
    let found = digest(&Argon2::new(algorithm, version, params), password, salt, memory);
    // In constant time: see `Output`.
    found.map(|found| found == *expected).map_err(|error| format!("comparing the password failed: {error}"))
}

fn digest(argon2: &Argon2<'_>, password: &str, salt: &[u8], memory: &mut Memory) -> Result<Output, String> {
    memory.resize(argon2.params().block_count(), Block::new());
    let mut bytes = [0; Output::MAX_LENGTH];
    let output = &mut bytes[..argon2.params().output_len().unwrap_or(Params::DEFAULT_OUTPUT_LEN)];
    argon2
        .hash_password_into_with_memory(password.as_bytes(), salt, &mut *output, memory)
        .map_err(|error| error.to_string())?;
    Output::new(output).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::super::throttle::FREE_ATTEMPTS;
    use super::*;
    use argon2::{PasswordHasher as _, PasswordVerifier as _};
    use std::net::Ipv4Addr;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn check(password: &str, hash: Option<&str>) -> HashJob {
        HashJob::Verify { password: password.into(), hash: hash.map(str::to_owned) }
    }

    #[test]
    fn a_new_hash_names_its_parameters_and_verifies() {
        let mut memory = Memory::new();
        let mut perform = |job| super::perform(&job, &mut memory);
        let Hashed::New(phc) = perform(HashJob::New { password: "secret words".into() }) else { panic!() };
        assert!(phc.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{phc}");
        argon2().verify_password(b"secret words", phc.as_str()).unwrap();
        assert_eq!(perform(check("secret words", Some(&phc))), Hashed::Verified(true));
        assert_eq!(perform(check("other words", Some(&phc))), Hashed::Verified(false));
        assert_eq!(perform(check("secret words", None)), Hashed::Verified(false));
        assert!(matches!(perform(check("secret words", Some("nonsense"))), Hashed::Failed(_)));
    }

    #[test]
    fn a_hash_with_other_parameters_is_compared_by_them() {
        let other = Argon2::new(Algorithm::Argon2id, Version::V0x13, Params::new(64, 1, 1, None).unwrap());
        let phc = other.hash_password_with_salt(b"secret words", &[1; SALT_BYTES]).unwrap().to_string();
        let mut memory = Memory::new();
        assert_eq!(verify("secret words", &phc, &mut memory), Ok(true));
        assert_eq!(verify("other words", &phc, &mut memory), Ok(false));
    }

    #[tokio::test]
    async fn jobs_keep_two_memories_at_most() {
        let passwords = Arc::new(Passwords::new());
        let jobs: Vec<_> = (0..6)
            .map(|number| {
                let job = HashJob::New { password: format!("password {number}") };
                tokio::spawn(Arc::clone(&passwords).perform("a".into(), HERE, Instant::ZERO, job))
            })
            .collect();
        for job in jobs {
            assert!(matches!(job.await.unwrap(), Hashed::New(_)));
        }
        assert!((1..=JOBS_AT_ONCE).contains(&passwords.memories().len()));
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
