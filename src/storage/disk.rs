//! A directory, as far as storage needs one: a trait, so that the simulator can stand in for the real one, and the
//! real one.
//!
//! What a call has changed may be undone by a crash until it is synced: bytes by [`DiskFile::sync`], names by
//! [`Disk::sync_dir`] of the directory they stand in.

use std::fs;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use super::error::StorageError;
use crate::chat::AtOnce;

/// One directory with everything in it. Paths are relative to it, with `/` between names; the directory itself is
/// the empty path. Clones are handles of the same directory.
pub trait Disk: Clone + std::fmt::Debug + Send + 'static {
    /// An open file.
    type File: DiskFile;

    /// Creates a file, or empties the one that is there.
    fn create(&self, path: &str) -> io::Result<Self::File>;
    /// Opens a file that exists.
    fn open(&self, path: &str) -> io::Result<Self::File>;
    /// Whether a file, directory or link of this name exists. Links are not followed.
    fn exists(&self, path: &str) -> io::Result<bool>;
    /// Renames a file, link or directory within its directory; a file or link of the new name is replaced.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file or link.
    fn remove_file(&self, path: &str) -> io::Result<()>;
    /// Removes a directory with everything in it.
    fn remove_dir_all(&self, path: &str) -> io::Result<()>;
    /// Creates a directory; one that exists is left alone.
    fn create_dir(&self, path: &str) -> io::Result<()>;
    /// The names in a directory, ascending.
    fn list(&self, path: &str) -> io::Result<Vec<String>>;
    /// Makes `link` a symbolic link to `target` by one rename, whatever it was before.
    fn replace_link(&self, target: &str, link: &str) -> io::Result<()>;
    /// Where a symbolic link points; none if there is no link of this name.
    fn read_link(&self, link: &str) -> io::Result<Option<String>>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, path: &str) -> io::Result<()>;
    /// How many bytes can still be written.
    fn space_left(&self) -> io::Result<u64>;
    /// How to name a path to a person.
    fn display(&self, path: &str) -> String;
}

/// An open file.
#[allow(clippy::len_without_is_empty)] // The length is an I/O operation here, not a property.
pub trait DiskFile: std::fmt::Debug + Send + Sync + 'static {
    /// Writes all of `bytes` at the end. After an error some of them may be there.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;
    /// Writes all of `bytes` from `offset` on, at most the file's length, over what is there and beyond. After an error
    /// some of them may be there.
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes the file's bytes durable (fdatasync).
    fn sync(&mut self) -> io::Result<()>;
    /// Reads up to `buffer.len()` bytes from `offset` on; fewer only at the end of the file.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// The file's length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Cuts the file.
    fn truncate(&mut self, len: u64) -> io::Result<()>;
}

/// A disk writes so many bytes at once, or none of them.
pub(super) const SECTOR_BYTES: usize = 512;

/// Holds the lock on a data directory; kept as long as any handle of the directory.
const LOCK_FILE: &str = "lock";

/// A real directory, of mode 0700 with files of mode 0600, locked against other processes.
#[derive(Clone, Debug)]
pub struct OsDisk {
    root: PathBuf,
    _lock: Arc<fs::File>,
}

impl OsDisk {
    /// Creates the directory if need be, and locks it.
    ///
    /// # Errors
    /// [`StorageError::InUse`] if another process has locked it; otherwise what the system says.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self, StorageError> {
        let root = root.into();
        let name = root.display().to_string();
        let failed = |operation| {
            let name = name.clone();
            move |source| StorageError::io(operation, name, source)
        };
        if !root.is_dir() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&root)
                .map_err(failed("create the data directory"))?;
            // The parent too must be synced: without it a crash can undo the directory.
            let parent = root.parent().filter(|parent| !parent.as_os_str().is_empty());
            fs::File::open(parent.unwrap_or(Path::new(".")))
                .and_then(|parent| parent.sync_all())
                .map_err(failed("sync the parent of the data directory"))?;
        }
        let lock = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(root.join(LOCK_FILE))
            .map_err(failed("open the lock file in the data directory"))?;
        match rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { root, _lock: Arc::new(lock) }),
            Err(rustix::io::Errno::WOULDBLOCK) => Err(StorageError::InUse { path: name }),
            Err(error) => Err(failed("lock the data directory")(error.into())),
        }
    }

    /// Where the directory is.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn at(&self, path: &str) -> PathBuf {
        if path.is_empty() { self.root.clone() } else { self.root.join(path) }
    }
}

impl Disk for OsDisk {
    type File = OsFile;

    fn create(&self, path: &str) -> io::Result<OsFile> {
        let mut options = fs::OpenOptions::new();
        let path = self.at(path);
        // Whoever has the old one open keeps it.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        options.read(true).write(true).create_new(true).mode(0o600).open(path).map(OsFile)
    }

    fn open(&self, path: &str) -> io::Result<OsFile> {
        fs::OpenOptions::new().read(true).write(true).open(self.at(path)).map(OsFile)
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        match fs::symlink_metadata(self.at(path)) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.at(from), self.at(to))
    }

    fn remove_file(&self, path: &str) -> io::Result<()> {
        fs::remove_file(self.at(path))
    }

    fn remove_dir_all(&self, path: &str) -> io::Result<()> {
        fs::remove_dir_all(self.at(path))
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(self.at(path))
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.at(path))? {
            // A name that is not UTF-8 is none of ours.
            names.extend(entry?.file_name().into_string().ok());
        }
        names.sort();
        Ok(names)
    }

    fn replace_link(&self, target: &str, link: &str) -> io::Result<()> {
        let aside = self.at(&format!("{link}.new"));
        match fs::remove_file(&aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::os::unix::fs::symlink(target, &aside)?;
        fs::rename(aside, self.at(link))
    }

    fn read_link(&self, link: &str) -> io::Result<Option<String>> {
        match fs::read_link(self.at(link)) {
            Ok(target) => Ok(target.into_os_string().into_string().ok()),
            // Invalid input: something of this name exists and is no link.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidInput) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        fs::File::open(self.at(path))?.sync_all()
    }

    fn space_left(&self) -> io::Result<u64> {
        let statistics = rustix::fs::statvfs(&self.root)?;
        Ok(statistics.f_bavail.saturating_mul(statistics.f_frsize))
    }

    fn display(&self, path: &str) -> String {
        self.at(path).display().to_string()
    }
}

/// A file of an [`OsDisk`].
#[derive(Debug)]
pub struct OsFile(fs::File);

impl DiskFile for OsFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.seek(SeekFrom::End(0))?;
        self.0.write_all(bytes)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.seek(SeekFrom::Start(offset))?;
        self.0.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.0.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
}

/// Does two things at once, the first on a thread of its own, and waits for both. What they hand to each other must come
/// in one order only: storage does the same each time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Threads;

impl AtOnce for Threads {
    fn both<A: Send, B>(&self, first: impl FnOnce() -> A + Send, second: impl FnOnce() -> B) -> (A, B) {
        thread::scope(|scope| {
            let first = scope.spawn(first);
            let second = second();
            (first.join().unwrap_or_else(|panic| resume_unwind(panic)), second)
        })
    }
}
