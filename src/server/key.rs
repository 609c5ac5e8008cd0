//! The key file that the servers of a cluster share, and the cluster's id beside it.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rand::TryRng as _;
use rand::rngs::SysRng;

use crate::chat::command::{Hex, parse_hash};
use crate::types::ClusterId;

/// The secret that servers prove to each other that they know.
pub type ClusterKey = [u8; 32];

/// The name of the key file unless `--key` says otherwise.
pub const KEY_FILE: &str = "cluster.key";
/// The name of the file with the cluster's id; it lies beside the key file.
pub const ID_FILE: &str = "cluster.id";

/// A whole key file: 64 digits and a newline.
const KEY_FILE_BYTES: usize = 65;

/// What is wrong with a key file or with the file of the cluster's id.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file can't be read or written.
    #[error("{path}: {action} failed: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{path}: found {found}, expected {expected}")]
    Content {
        /// Which file.
        path: PathBuf,
        /// What it holds; never the key itself.
        found: String,
        /// What it should hold.
        expected: &'static str,
    },
    /// `keygen` never overwrites a key.
    #[error("{path} exists already; found a file, expected none (remove it first if no server needs it)")]
    Exists {
        /// Which file.
        path: PathBuf,
    },
}

fn io_error(path: &Path, action: &'static str, source: io::Error) -> KeyError {
    KeyError::Io { path: path.to_owned(), action, source }
}

/// The key of a file, and what a person should know about it.
#[derive(Debug)]
pub struct LoadedKey {
    /// The key.
    pub key: ClusterKey,
    /// Whether this call has made the file.
    pub created: bool,
    /// A warning, if other users can read the file.
    pub warning: Option<String>,
}

/// Reads the key file; makes it first if there is none. Of several processes that do so at once one makes it, and
/// all read the same.
///
/// # Errors
/// [`KeyError`]: the file can't be read, made, or is no key file.
pub fn load_or_create(path: &Path) -> Result<LoadedKey, KeyError> {
    if let Some(loaded) = load(path)? {
        return Ok(loaded);
    }
    let created = match create(path) {
        Ok(()) => true,
        Err(KeyError::Exists { .. }) => false,
        Err(error) => return Err(error),
    };
    let loaded = load(path)?.ok_or_else(|| io_error(path, "reading", io::ErrorKind::NotFound.into()))?;
    Ok(LoadedKey { created, ..loaded })
}

fn load(path: &Path) -> Result<Option<LoadedKey>, KeyError> {
    const EXPECTED: &str = "64 hexadecimal digits and a newline, as `server keygen` writes them";
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(path, "opening", error)),
    };
    let mut text = Vec::new();
    let limit = u64::try_from(KEY_FILE_BYTES + 1).expect("a small number");
    (&file).take(limit).read_to_end(&mut text).map_err(|error| io_error(path, "reading", error))?;
    let mode =
        file.metadata().map_err(|error| io_error(path, "reading", error))?.permissions().mode() & 0o777;
    let content = |found: String| KeyError::Content { path: path.to_owned(), found, expected: EXPECTED };
    let digits = text.strip_suffix(b"\n").unwrap_or(&text);
    if digits.len() != KEY_FILE_BYTES - 1 {
        return Err(content(format!("{} bytes", text.len())));
    }
    let key = std::str::from_utf8(digits).ok().and_then(parse_hash);
    let key = key.ok_or_else(|| content("other characters than hexadecimal digits".to_owned()))?;
    let warning = (mode & 0o077 != 0).then(|| {
        format!(
            "{}: found mode {mode:04o}, expected 0600: other users can read the cluster key",
            path.display()
        )
    });
    Ok(Some(LoadedKey { key, created: false, warning }))
}

/// Makes a key file with a fresh key. It is written aside and linked into place: nobody ever sees half a key, and
/// of several makers one wins.
///
/// # Errors
/// [`KeyError::Exists`] if there is a file already; [`KeyError::Io`].
pub fn create(path: &Path) -> Result<(), KeyError> {
    let mut key = ClusterKey::default();
    SysRng
        .try_fill_bytes(&mut key)
        .map_err(|error| io_error(path, "drawing a key", io::Error::other(error)))?;
    let directory = directory_of(path)?;
    let aside = write_aside(path, &format!("{}\n", Hex(&key)))?;
    let linked = fs::hard_link(&aside, path);
    let _ = fs::remove_file(&aside);
    match linked {
        Ok(()) => sync_directory(&directory),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(KeyError::Exists { path: path.to_owned() })
        }
        Err(error) => Err(io_error(path, "linking it into place", error)),
    }
}

/// Where the cluster's id is kept: beside the key file.
#[must_use]
pub fn id_path(key_path: &Path) -> PathBuf {
    key_path.with_file_name(ID_FILE)
}

/// Reads the cluster's id; none if there is no such file.
///
/// # Errors
/// [`KeyError`]: the file can't be read, or holds no id.
pub fn read_cluster_id(path: &Path) -> Result<Option<ClusterId>, KeyError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io_error(path, "reading", error)),
    };
    let digits = text.trim_end();
    let id = u64::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 16);
    id.map(|id| Some(ClusterId(id))).ok_or_else(|| KeyError::Content {
        path: path.to_owned(),
        found: format!("{:?}", digits.chars().take(40).collect::<String>()),
        expected: "16 hexadecimal digits",
    })
}

/// Writes the cluster's id, replacing what was there by one rename.
///
/// # Errors
/// [`KeyError::Io`].
pub fn write_cluster_id(path: &Path, id: ClusterId) -> Result<(), KeyError> {
    let directory = directory_of(path)?;
    let aside = write_aside(path, &format!("{id}\n"))?;
    fs::rename(&aside, path).map_err(|error| io_error(path, "renaming", error))?;
    sync_directory(&directory)
}

/// The directory a file lies in, made if it is missing.
fn directory_of(path: &Path) -> Result<PathBuf, KeyError> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
    made.map_err(|error| io_error(&directory, "making the directory", error))?;
    Ok(directory)
}

fn write_aside(path: &Path, text: &str) -> Result<PathBuf, KeyError> {
    let aside = path.with_extension(format!("{}.{:08x}.new", std::process::id(), rand::random::<u32>()));
    let mut options = OpenOptions::new();
    let written = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&aside)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()));
    match written {
        Ok(()) => Ok(aside),
        Err(error) => {
            let _ = fs::remove_file(&aside);
            Err(io_error(&aside, "writing", error))
        }
    }
}

/// Without it a crash can undo the link.
fn sync_directory(directory: &Path) -> Result<(), KeyError> {
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(|error| io_error(directory, "syncing the directory", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_makers_at_once_share_one_key() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys").join(KEY_FILE);
        let makers: Vec<_> = (0..8)
            .map(|_| {
                let path = path.clone();
                std::thread::spawn(move || load_or_create(&path).unwrap())
            })
            .collect();
        let keys: Vec<_> = makers.into_iter().map(|maker| maker.join().unwrap()).collect();
        assert!(keys.iter().all(|loaded| loaded.key == keys[0].key && loaded.warning.is_none()));
        assert_eq!(keys.iter().filter(|loaded| loaded.created).count(), 1);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no file is left aside");
    }

    #[test]
    fn keygen_never_overwrites_a_key() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(KEY_FILE);
        create(&path).unwrap();
        let before = fs::read(&path).unwrap();
        assert!(matches!(create(&path), Err(KeyError::Exists { .. })));
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    #[test]
    fn a_file_that_is_no_key_is_named_and_its_content_is_not_shown() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(KEY_FILE);
        fs::write(&path, "secret").unwrap();
        let text = load_or_create(&path).unwrap_err().to_string();
        assert!(text.contains(KEY_FILE) && text.contains("found 6 bytes, expected 64"), "{text}");
        assert!(!text.contains("secret"));
    }

    #[test]
    fn open_permissions_are_warned_of() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(KEY_FILE);
        create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let warning = load_or_create(&path).unwrap().warning.unwrap();
        assert!(warning.contains("found mode 0644, expected 0600"), "{warning}");
    }

    #[test]
    fn the_cluster_id_reads_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = id_path(&directory.path().join(KEY_FILE));
        assert_eq!(read_cluster_id(&path).unwrap(), None);
        write_cluster_id(&path, ClusterId(7)).unwrap();
        write_cluster_id(&path, ClusterId(0x1538)).unwrap();
        assert_eq!(read_cluster_id(&path).unwrap(), Some(ClusterId(0x1538)));
        fs::write(&path, "xyz").unwrap();
        assert!(read_cluster_id(&path).is_err());
    }
}
