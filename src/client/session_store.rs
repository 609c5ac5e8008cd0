//! Who is logged in, remembered between runs: one file for each user, holding the session's client id, its token and
//! the next request number.
//!
//! Several processes of one user may run at once (`client listen` in one window, `client send` in a script), and all
//! act in one session, since only its token lets them in without a password. They must not use a number twice, or
//! the second request would be taken for a retry of the first; and none may tell the servers "I have all replies up
//! to N" (N2) while another still retries a lower number. So:
//!
//! - A process *leases* a number before it sends a request. The file is changed under a lock and synced before the
//!   number is used: neither a second process nor a crash of the machine can make it be given out again.
//! - A lease runs for a while, is renewed as long as its owner retries, and is released with the reply. What is
//!   acknowledged to the servers is everything below the oldest lease. A process that dies stops retrying, so that
//!   its lease may simply run out. Should an owner have slept through its lease, then a server refuses its number as
//!   forgotten and the outcome is unknown: never doubled.
//!
//! Files are written aside and renamed; the lock is a file of its own, since a renamed file takes its lock with it.
//! The session belongs to one cluster; for a second one use another directory (`LASTWORD_STATE`).
//!
//! Beside it, and longer than it, a file remembers up to which conflict the user has been told (R6).

use crate::types::{AccountId, ClientId, RequestId};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

/// How long a lease of a request number runs unless it is renewed.
pub const LEASE: Duration = Duration::from_secs(30);
/// An owner renews a lease that has less than this left.
pub const LEASE_RENEWAL: Duration = Duration::from_secs(15);

const _: () = assert!(LEASE_RENEWAL.as_millis() * 2 <= LEASE.as_millis());

/// Why the state directory can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refuses.
    #[error("{path}: {error}", path = .path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What it says.
        error: io::Error,
    },
    /// The file is not a session.
    #[error("{path}: found {found}, expected a session file; remove it and log in again", path = .path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        found: String,
    },
    /// The session in the file is another one than the process began with: somebody has logged in or out meanwhile.
    #[error("the session of {user} was replaced by another login, or ended; log in again")]
    Replaced {
        /// Whose.
        user: String,
    },
    /// All 2^32 - 1 request numbers are used up.
    #[error("the session of {user} has used up its request numbers; log in again")]
    NumbersUsedUp {
        /// Whose.
        user: String,
    },
}

/// A session as the file remembers it. Its token is a secret: this type can't be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct StoredSession {
    /// The account's name as it was typed at creation.
    pub name: String,
    /// The client id drawn at login (X1).
    pub client: ClientId,
    /// The token drawn at login: lets its owner resume the session.
    pub token: [u8; 32],
    /// The server that led when the session was last used; empty if unknown.
    pub primary: String,
}

/// A request number that belongs to one request of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The number.
    pub number: u32,
    /// The session has the replies to everything up to this number, or nobody waits for them any more (N2).
    pub acknowledged: u32,
    /// Until when it runs, milliseconds since 1970.
    pub until_unix_ms: u64,
}

/// The last conflict that a user has been told of.
///
/// Its cursor alone won't do: when another log has won since, cursors above it may have been given anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// The user's account: the name may have changed hands.
    pub account: AccountId,
    /// Where the conflict stands in the order of all.
    pub cursor: u64,
    /// The request that could not be applied.
    pub request: RequestId,
}

/// The content of a session file.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    name: String,
    client: String,
    token: String,
    next: u32,
    leases: Vec<(u32, u64)>,
    primary: String,
}

/// Where sessions are kept.
pub struct SessionStore {
    place: Place,
}

enum Place {
    Directory(PathBuf),
    Memory(Mutex<Remembered>),
}

#[derive(Default)]
struct Remembered {
    session: Option<Content>,
    told: Option<Told>,
}

impl SessionStore {
    /// Keeps sessions in a directory, which is made (mode 0700) if it doesn't exist.
    ///
    /// # Errors
    /// [`StoreError::Io`] if it can't be made.
    pub fn open(directory: &Path) -> Result<Self, StoreError> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700);
        builder.create(directory).map_err(|error| io_error(directory, error))?;
        Ok(Self { place: Place::Directory(directory.to_owned()) })
    }

    /// Keeps one session for as long as the process runs.
    #[must_use]
    pub fn in_memory() -> Self {
        Self { place: Place::Memory(Mutex::default()) }
    }

    /// The session of a user, by any spelling of the name; of whoever logged in last if none is named.
    ///
    /// # Errors
    /// [`StoreError`] if a file is there but can't be read.
    pub fn load(&self, user: Option<&str>) -> Result<Option<StoredSession>, StoreError> {
        let Some(user) = (match user {
            Some(user) => Some(user.to_owned()),
            None => self.last_user()?,
        }) else {
            return Ok(None);
        };
        self.read(&user)?.map(|content| self.session(&user, &content)).transpose()
    }

    /// Who logged in last.
    ///
    /// # Errors
    /// [`StoreError::Io`] if that can't be read.
    pub fn last_user(&self) -> Result<Option<String>, StoreError> {
        match &self.place {
            Place::Memory(memory) => Ok(lock(memory).session.as_ref().map(|c| c.name.clone())),
            Place::Directory(directory) => {
                let path = directory.join("last_user");
                match fs::read_to_string(&path) {
                    Ok(name) => Ok(Some(name.trim().to_owned()).filter(|name| !name.is_empty())),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(io_error(&path, error)),
                }
            }
        }
    }

    /// Remembers a new session, in place of an earlier one of the same user. `used` request numbers are taken already.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the file can't be written.
    pub fn remember(&self, session: &StoredSession, used: u32) -> Result<(), StoreError> {
        let content = Content {
            name: session.name.clone(),
            client: session.client.to_string(),
            token: session.token.iter().map(|byte| format!("{byte:02x}")).collect(),
            next: used + 1,
            leases: Vec::new(),
            primary: session.primary.clone(),
        };
        let _guard = self.exclusive(&session.name)?;
        self.write(&session.name, &content)?;
        if let Place::Directory(directory) = &self.place {
            write_file(&directory.join("last_user"), format!("{}\n", session.name).as_bytes())?;
        }
        Ok(())
    }

    /// Forgets a session, unless another one has taken its place.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the file can't be removed.
    pub fn forget(&self, session: &StoredSession) -> Result<(), StoreError> {
        let _guard = self.exclusive(&session.name)?;
        if self.read(&session.name)?.is_none_or(|content| content.client != session.client.to_string()) {
            return Ok(());
        }
        match &self.place {
            Place::Memory(memory) => lock(memory).session = None,
            Place::Directory(directory) => {
                let path = session_path(directory, &session.name);
                fs::remove_file(&path).map_err(|error| io_error(&path, error))?;
            }
        }
        Ok(())
    }

    /// Leases the next request number.
    ///
    /// # Errors
    /// [`StoreError::Replaced`] if the session is no longer the one remembered; [`StoreError::NumbersUsedUp`].
    pub fn lease(&self, session: &StoredSession) -> Result<Lease, StoreError> {
        self.update(session, |content| {
            let number = content.next;
            let next = number.checked_add(1);
            content.next = next.ok_or_else(|| StoreError::NumbersUsedUp { user: session.name.clone() })?;
            let now = unix_ms_now();
            content.leases.retain(|&(_, until)| until > now);
            let until_unix_ms = now + millis(LEASE);
            content.leases.push((number, until_unix_ms));
            Ok(Lease { number, acknowledged: acknowledged(content), until_unix_ms })
        })
    }

    /// Renews a lease if it has not long to run. Its owner has to do so for as long as it retries.
    ///
    /// # Errors
    /// [`StoreError::Replaced`] if the session is no longer the one remembered.
    pub fn renew(&self, session: &StoredSession, lease: &mut Lease) -> Result<(), StoreError> {
        if lease.until_unix_ms > unix_ms_now() + millis(LEASE_RENEWAL) {
            return Ok(());
        }
        let number = lease.number;
        lease.until_unix_ms = unix_ms_now() + millis(LEASE);
        self.update(session, |content| {
            content.leases.retain(|&(leased, _)| leased != number);
            content.leases.push((number, lease.until_unix_ms));
            Ok(())
        })
    }

    /// Gives a lease back: nobody will send a request under this number again. Remembers who leads.
    ///
    /// # Errors
    /// [`StoreError::Replaced`] if the session is no longer the one remembered.
    pub fn release(&self, session: &StoredSession, lease: Lease, primary: &str) -> Result<(), StoreError> {
        self.update(session, |content| {
            content.leases.retain(|&(number, _)| number != lease.number);
            primary.clone_into(&mut content.primary);
            Ok(())
        })
    }

    /// The last conflict that a user has been told of. A file that can't be understood counts as none: to be told twice
    /// does no harm.
    ///
    /// # Errors
    /// [`StoreError::Io`] if a file is there but can't be read.
    pub fn told(&self, user: &str) -> Result<Option<Told>, StoreError> {
        let directory = match &self.place {
            Place::Memory(memory) => return Ok(lock(memory).told),
            Place::Directory(directory) => directory,
        };
        let path = told_path(directory, user);
        match fs::read(&path) {
            Ok(bytes) => Ok(parse_told(&bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error(&path, error)),
        }
    }

    /// Remembers that a user has been told of the conflicts up to this one.
    ///
    /// # Errors
    /// [`StoreError::Io`] if the file can't be written.
    pub fn note_told(&self, user: &str, told: Told) -> Result<(), StoreError> {
        match &self.place {
            Place::Memory(memory) => {
                lock(memory).told = Some(told);
                Ok(())
            }
            Place::Directory(directory) => {
                let _guard = self.exclusive(user)?;
                let line = format!("{} {} {}\n", told.account, told.cursor, told.request);
                write_file(&told_path(directory, user), line.as_bytes())
            }
        }
    }

    fn update<T>(
        &self,
        session: &StoredSession,
        change: impl FnOnce(&mut Content) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let _guard = self.exclusive(&session.name)?;
        let mut content = self
            .read(&session.name)?
            .filter(|content| content.client == session.client.to_string())
            .ok_or_else(|| StoreError::Replaced { user: session.name.clone() })?;
        let result = change(&mut content)?;
        self.write(&session.name, &content)?;
        Ok(result)
    }

    /// Holds the lock of a user's file until the result is dropped.
    fn exclusive(&self, user: &str) -> Result<Option<File>, StoreError> {
        let Place::Directory(directory) = &self.place else { return Ok(None) };
        let path = session_path(directory, user).with_extension("lock");
        let mut options = OpenOptions::new();
        let file = options.create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = file.map_err(|error| io_error(&path, error))?;
        flock(&file, FlockOperation::LockExclusive).map_err(|error| io_error(&path, error.into()))?;
        Ok(Some(file))
    }

    fn read(&self, user: &str) -> Result<Option<Content>, StoreError> {
        let directory = match &self.place {
            Place::Memory(memory) => {
                let content = lock(memory).session.clone();
                return Ok(content.filter(|c| c.name.eq_ignore_ascii_case(user)));
            }
            Place::Directory(directory) => directory,
        };
        if crate::client::looks_like_a_name(user).is_err() {
            return Ok(None);
        }
        let path = session_path(directory, user);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io_error(&path, error)),
        };
        // The parser's message may quote the file, and so its token: only the place is told.
        serde_json::from_slice(&bytes).map(Some).map_err(|error| StoreError::Damaged {
            path,
            found: format!("something else at line {}, column {}", error.line(), error.column()),
        })
    }

    fn write(&self, user: &str, content: &Content) -> Result<(), StoreError> {
        match &self.place {
            Place::Memory(memory) => {
                lock(memory).session = Some(content.clone());
                Ok(())
            }
            Place::Directory(directory) => {
                let json = serde_json::to_vec(content).expect("numbers and text can be written as JSON");
                write_file(&session_path(directory, user), &json)
            }
        }
    }

    fn session(&self, user: &str, content: &Content) -> Result<StoredSession, StoreError> {
        let damaged = |found: &str| StoreError::Damaged {
            path: match &self.place {
                Place::Directory(directory) => session_path(directory, user),
                Place::Memory(_) => PathBuf::from("memory"),
            },
            found: found.to_owned(),
        };
        let client = u64::from_str_radix(&content.client, 16).map_err(|_| damaged("a bad client id"))?;
        let token = parse_token(&content.token).ok_or_else(|| damaged("a bad token"))?;
        Ok(StoredSession {
            name: content.name.clone(),
            client: ClientId(client),
            token,
            primary: content.primary.clone(),
        })
    }
}

/// Everything below the oldest lease.
fn acknowledged(content: &Content) -> u32 {
    content.leases.iter().map(|&(number, _)| number).min().unwrap_or(content.next) - 1
}

/// Writes a file as a whole: aside, synced, renamed.
fn write_file(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let aside = PathBuf::from(format!("{}.new", path.display()));
    let written = (|| {
        let mut options = OpenOptions::new();
        let mut file = options.create(true).truncate(true).write(true).mode(0o600).open(&aside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&aside, path)?;
        // The directory too must be synced: without it a crash can undo the rename, and a number be given out twice.
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    })();
    written.map_err(|error| io_error(path, error))
}

fn session_path(directory: &Path, user: &str) -> PathBuf {
    directory.join(format!("{}.session", user.to_ascii_lowercase()))
}

fn told_path(directory: &Path, user: &str) -> PathBuf {
    session_path(directory, user).with_extension("told")
}

fn parse_told(bytes: &[u8]) -> Option<Told> {
    let mut words = std::str::from_utf8(bytes).ok()?.split_ascii_whitespace();
    let account = AccountId(words.next()?.parse().ok()?);
    Some(Told { account, cursor: words.next()?.parse().ok()?, request: words.next()?.parse().ok()? })
}

fn parse_token(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut token = [0; 32];
    for (at, byte) in token.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).ok()?;
    }
    Some(token)
}

fn lock(memory: &Mutex<Remembered>) -> std::sync::MutexGuard<'_, Remembered> {
    memory.lock().expect("nothing that holds the lock panics")
}

fn io_error(path: &Path, error: io::Error) -> StoreError {
    StoreError::Io { path: path.to_owned(), error }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn unix_ms_now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, millis)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::RequestNumber;
    use std::os::unix::fs::PermissionsExt as _;

    fn alice() -> StoredSession {
        StoredSession { name: "Alice".into(), client: ClientId(7), token: [9; 32], primary: String::new() }
    }

    #[test]
    fn a_session_is_found_again_by_any_spelling_and_as_the_last_user() {
        let directory = tempfile::tempdir().unwrap();
        SessionStore::open(directory.path()).unwrap().remember(&alice(), 1).unwrap();
        let store = SessionStore::open(directory.path()).unwrap();
        assert!(store.load(Some("aLICE")).unwrap() == Some(alice()));
        assert!(store.load(None).unwrap() == Some(alice()));
        assert!(store.load(Some("bob")).unwrap().is_none());
        assert!(store.load(Some("../x")).unwrap().is_none());
        store.forget(&alice()).unwrap();
        assert!(store.load(None).unwrap().is_none());
    }

    #[test]
    fn files_are_readable_by_their_owner_only() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("state");
        SessionStore::open(&directory).unwrap().remember(&alice(), 1).unwrap();
        assert_eq!(fs::metadata(&directory).unwrap().permissions().mode() & 0o777, 0o700);
        for entry in fs::read_dir(&directory).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
        }
    }

    #[test]
    fn numbers_are_never_given_out_twice_by_concurrent_users_of_one_file() {
        let directory = tempfile::tempdir().unwrap();
        SessionStore::open(directory.path()).unwrap().remember(&alice(), 1).unwrap();
        let mut numbers: Vec<u32> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let store = SessionStore::open(directory.path()).unwrap();
                        (0..25).map(|_| store.lease(&alice()).unwrap().number).collect::<Vec<_>>()
                    })
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        numbers.sort_unstable();
        assert_eq!(numbers, (2..102).collect::<Vec<_>>());
    }

    #[test]
    fn what_another_process_still_retries_is_not_acknowledged() {
        let directory = tempfile::tempdir().unwrap();
        let first = SessionStore::open(directory.path()).unwrap();
        let second = SessionStore::open(directory.path()).unwrap();
        first.remember(&alice(), 1).unwrap();
        let slow = first.lease(&alice()).unwrap();
        let quick = second.lease(&alice()).unwrap();
        assert_eq!((slow.number, slow.acknowledged), (2, 1));
        assert_eq!((quick.number, quick.acknowledged), (3, 1));
        second.release(&alice(), quick, "").unwrap();
        assert_eq!(second.lease(&alice()).unwrap().acknowledged, 1);
        first.release(&alice(), slow, "").unwrap();
        assert_eq!(first.lease(&alice()).unwrap().acknowledged, 3, "the lease of 4 still runs");
    }

    #[test]
    fn a_lease_of_a_process_that_died_runs_out() {
        let store = SessionStore::in_memory();
        store.remember(&alice(), 1).unwrap();
        store.lease(&alice()).unwrap();
        store
            .update(&alice(), |content| {
                content.leases[0].1 = 1;
                Ok(())
            })
            .unwrap();
        assert_eq!(store.lease(&alice()).unwrap().acknowledged, 2);
    }

    #[test]
    fn a_replaced_session_gives_out_no_numbers() {
        let store = SessionStore::in_memory();
        store.remember(&alice(), 1).unwrap();
        store.remember(&StoredSession { client: ClientId(8), ..alice() }, 1).unwrap();
        assert!(matches!(store.lease(&alice()), Err(StoreError::Replaced { .. })));
        store.forget(&alice()).unwrap();
        assert!(store.load(None).unwrap().is_some(), "forgetting the old one leaves the new one");
    }

    #[test]
    fn what_a_user_was_told_of_outlives_the_session() {
        let directory = tempfile::tempdir().unwrap();
        let store = SessionStore::open(directory.path()).unwrap();
        store.remember(&alice(), 1).unwrap();
        assert_eq!(store.told("alice").unwrap(), None);
        let id = |number| RequestId { client: ClientId(7), number: RequestNumber(number) };
        let told = Told { account: AccountId(id(1)), cursor: 42, request: id(9) };
        store.note_told("Alice", told).unwrap();
        store.forget(&alice()).unwrap();
        let store = SessionStore::open(directory.path()).unwrap();
        assert_eq!(store.told("aLICE").unwrap(), Some(told));
        assert_eq!(store.told("bob").unwrap(), None);
        fs::write(directory.path().join("alice.told"), b"nonsense").unwrap();
        assert_eq!(store.told("alice").unwrap(), None, "it is told again");
    }

    #[test]
    fn a_damaged_file_is_named_without_its_secrets() {
        let directory = tempfile::tempdir().unwrap();
        let store = SessionStore::open(directory.path()).unwrap();
        fs::write(directory.path().join("alice.session"), b"{\"token\":\"secret\"").unwrap();
        let Err(error) = store.load(Some("alice")) else { panic!("it is damaged") };
        let text = error.to_string();
        assert!(text.contains("alice.session") && text.contains("log in again"), "{text}");
        assert!(!text.contains("secret"), "{text}");
    }
}
