//! A disk for tests and the simulator: what is live and what is durable differ, and a crash keeps a random part of
//! the difference.
//!
//! A file has live bytes and durable bytes; a directory has live names and durable names. A crash keeps of each file
//! what was synced, a random prefix of what was appended since, and random sectors of what was written over it since; and
//! of each directory's unsynced changes a random prefix in their order. Faults can be injected by count, by space, and bit
//! by bit.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use super::disk::{Disk, DiskFile, SECTOR_BYTES};
use crate::prng::Prng;

/// A simulated directory. Clones are handles of the same one; those from before a crash fail afterwards.
#[derive(Clone, Debug)]
pub struct MemoryDisk {
    inner: Arc<Mutex<Inner>>,
    life: u64,
}

/// A file of a [`MemoryDisk`].
#[derive(Debug)]
pub struct MemoryFile {
    inner: Arc<Mutex<Inner>>,
    life: u64,
    node: u64,
}

#[derive(Clone, Debug)]
struct Inner {
    nodes: BTreeMap<u64, Node>,
    next_node: u64,
    life: u64,
    prng: Prng,
    calls: u64,
    syncs: u64,
    fault: Fault,
    space: Option<u64>,
    /// Files of which a sync has failed: the system has forgotten which of their bytes are not on disk, so that
    /// later syncs succeed and bring nothing there (D2).
    unsyncable: BTreeSet<u64>,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    None,
    /// Only this changing call fails.
    At(u64),
    /// This changing call fails, and all after it.
    From(u64),
    /// This sync of a file fails, and all calls after it.
    Sync(u64),
}

#[derive(Clone, Debug)]
enum Node {
    File(Bytes),
    Directory { live: Names, durable: Names, pending: Vec<Change> },
}

/// The bytes of a file.
#[derive(Clone, Debug, Default)]
struct Bytes {
    live: Vec<u8>,
    durable: Durable,
    /// What was written over durable bytes since the last sync: from where on, and what stood there.
    overwritten: Vec<(usize, Vec<u8>)>,
}

/// The durable bytes of a file.
#[derive(Clone, Debug)]
enum Durable {
    /// The first so many of the live ones, but for what is overwritten.
    Prefix(usize),
    /// Others: the file was cut below what had been synced.
    Other(Vec<u8>),
}

impl Default for Durable {
    fn default() -> Self {
        Self::Prefix(0)
    }
}

impl Bytes {
    /// All of them live and durable.
    fn synced(live: Vec<u8>) -> Self {
        Self { durable: Durable::Prefix(live.len()), live, overwritten: Vec::new() }
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = self.live.len().min(offset + bytes.len());
        match self.durable {
            Durable::Prefix(synced) if offset < synced => {
                self.overwritten.push((offset, self.live[offset..end.min(synced)].to_vec()));
            }
            Durable::Prefix(_) => {}
            // What of it a crash would keep is not modelled.
            Durable::Other(_) => {
                assert_eq!(end, offset, "a file that was cut is written over before it is synced")
            }
        }
        self.live[offset..end].copy_from_slice(&bytes[..end - offset]);
        self.live.extend_from_slice(&bytes[end - offset..]);
    }

    fn sync(&mut self) {
        self.durable = Durable::Prefix(self.live.len());
        self.overwritten.clear();
    }

    fn truncate(&mut self, len: usize) {
        if let Durable::Prefix(synced) = self.durable
            && len < synced
        {
            let mut durable = self.before_overwriting();
            durable.truncate(synced);
            self.durable = Durable::Other(durable);
            self.overwritten.clear();
        }
        self.live.truncate(len);
    }

    fn flip_bit(&mut self, byte: usize, bit: u32) {
        self.live[byte] ^= 1 << bit;
        if let Durable::Other(durable) = &mut self.durable
            && let Some(durable) = durable.get_mut(byte)
        {
            *durable ^= 1 << bit;
        }
        for (offset, bytes) in &mut self.overwritten {
            if let Some(before) = byte.checked_sub(*offset).and_then(|at| bytes.get_mut(at)) {
                *before ^= 1 << bit;
            }
        }
    }

    fn before_overwriting(&self) -> Vec<u8> {
        let mut before = self.live.clone();
        for (offset, bytes) in self.overwritten.iter().rev() {
            before[*offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        before
    }

    fn crash(&mut self, prng: &mut Prng) {
        match &mut self.durable {
            Durable::Prefix(length) => {
                let unsynced = self.live.len() - *length;
                // Nothing, everything and a torn row are all worth seeing often.
                let keep = match prng.below(4) {
                    0 => 0,
                    1 => unsynced as u64,
                    _ => prng.below(unsynced as u64 + 1),
                };
                let length = *length;
                let mut kept = length + usize::try_from(keep).expect("a length");
                if !self.overwritten.is_empty() && self.lose_overwriting(prng) == length {
                    // What was appended begins in a sector that has not reached the disk.
                    kept = length;
                }
                self.live.truncate(kept);
            }
            Durable::Other(bytes) => {
                if prng.chance(1, 2) {
                    self.live = std::mem::take(bytes);
                }
            }
        }
        self.sync();
    }

    /// Puts back part of what was overwritten: a disk keeps no order between its sectors. Gives where the last part ends
    /// that was put back.
    fn lose_overwriting(&mut self, prng: &mut Prng) -> usize {
        let before = self.before_overwriting();
        let start = self.overwritten.iter().map(|(offset, _)| *offset).min().expect("something is");
        let end = self.overwritten.iter().map(|(offset, bytes)| offset + bytes.len()).max();
        let end = end.expect("something is");
        let sectors = (start / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES))
            .map(|at| (at * SECTOR_BYTES).max(start)..((at + 1) * SECTOR_BYTES).min(end));
        let mut lost: Vec<Range<usize>> = sectors.collect();
        match prng.below(4) {
            0 => {}
            1 => lost.clear(),
            2 => {
                let kept = prng.below(lost.len() as u64 + 1);
                lost.drain(..usize::try_from(kept).expect("few sectors"));
            }
            _ => lost.retain(|_| prng.chance(1, 2)),
        }
        for range in &lost {
            self.live[range.clone()].copy_from_slice(&before[range.clone()]);
        }
        lost.last().map_or(0, |range| range.end)
    }
}

type Names = BTreeMap<String, Target>;

#[derive(Clone, Debug)]
enum Target {
    Node(u64),
    Link(String),
}

#[derive(Clone, Debug)]
enum Change {
    Set(String, Target),
    Remove(String),
    Rename(String, String),
}

const ROOT: u64 = 0;

fn not_found(path: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("no such file: {path}"))
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn apply(names: &mut Names, change: &Change) {
    match change {
        Change::Set(name, target) => {
            names.insert(name.clone(), target.clone());
        }
        Change::Remove(name) => {
            names.remove(name);
        }
        Change::Rename(from, to) => {
            if let Some(target) = names.remove(from) {
                names.insert(to.clone(), target);
            }
        }
    }
}

impl Inner {
    /// Counts a call that changes something, and lets it fail if a fault says so.
    fn change(&mut self, life: u64, sync: bool) -> io::Result<()> {
        if life != self.life {
            return Err(io::Error::other("the machine has crashed since this was opened"));
        }
        self.calls += 1;
        self.syncs += u64::from(sync);
        let fails = match self.fault {
            Fault::None => false,
            Fault::At(call) => self.calls == call,
            Fault::From(call) => self.calls >= call,
            Fault::Sync(call) if sync && self.syncs == call => {
                self.fault = Fault::From(self.calls);
                true
            }
            Fault::Sync(_) => false,
        };
        if fails { Err(io::Error::other("an injected fault")) } else { Ok(()) }
    }

    fn names(&self, node: u64) -> &Names {
        match &self.nodes[&node] {
            Node::Directory { live, .. } => live,
            Node::File(_) => panic!("node {node} was used as a directory"),
        }
    }

    fn resolve(&self, path: &str) -> io::Result<Target> {
        let mut at = Target::Node(ROOT);
        for name in path.split('/').filter(|name| !name.is_empty()) {
            let Target::Node(node) = at else { return Err(not_found(path)) };
            let Node::Directory { live, .. } = &self.nodes[&node] else { return Err(not_found(path)) };
            at = live.get(name).cloned().ok_or_else(|| not_found(path))?;
        }
        Ok(at)
    }

    fn directory(&self, path: &str) -> io::Result<u64> {
        match self.resolve(path)? {
            Target::Node(node) if matches!(self.nodes[&node], Node::Directory { .. }) => Ok(node),
            _ => Err(not_found(path)),
        }
    }

    fn file(&self, path: &str) -> io::Result<u64> {
        match self.resolve(path)? {
            Target::Node(node) if matches!(self.nodes[&node], Node::File(_)) => Ok(node),
            _ => Err(not_found(path)),
        }
    }

    fn change_names(&mut self, directory: u64, change: Change) {
        match self.nodes.get_mut(&directory) {
            Some(Node::Directory { live, pending, .. }) => {
                apply(live, &change);
                pending.push(change);
            }
            _ => panic!("node {directory} was used as a directory"),
        }
    }

    fn add(&mut self, node: Node) -> u64 {
        self.next_node += 1;
        self.nodes.insert(self.next_node, node);
        self.next_node
    }

    fn used(&self) -> u64 {
        let bytes = |node: &Node| match node {
            Node::File(bytes) => bytes.live.len() as u64,
            Node::Directory { .. } => 0,
        };
        self.nodes.values().map(bytes).sum()
    }

    fn bytes(&self, node: u64) -> &Bytes {
        match &self.nodes[&node] {
            Node::File(bytes) => bytes,
            Node::Directory { .. } => panic!("node {node} was used as a file"),
        }
    }

    fn bytes_mut(&mut self, node: u64) -> &mut Bytes {
        match self.nodes.get_mut(&node) {
            Some(Node::File(bytes)) => bytes,
            _ => panic!("node {node} was used as a file"),
        }
    }

    fn crash(&mut self) {
        let Self { nodes, prng, unsyncable, .. } = self;
        unsyncable.clear();
        for node in nodes.values_mut() {
            match node {
                Node::File(bytes) => bytes.crash(prng),
                Node::Directory { live, durable, pending } => {
                    let keep = usize::try_from(prng.below(pending.len() as u64 + 1)).expect("a length");
                    pending[..keep].iter().for_each(|change| apply(durable, change));
                    pending.clear();
                    live.clone_from(durable);
                }
            }
        }
        self.forget_unreachable();
    }

    fn forget_unreachable(&mut self) {
        let mut reached = vec![ROOT];
        let mut at = 0;
        while at < reached.len() {
            if let Node::Directory { live, durable, pending } = &self.nodes[&reached[at]] {
                let added = pending.iter().filter_map(|change| match change {
                    Change::Set(_, target) => Some(target),
                    _ => None,
                });
                for target in live.values().chain(durable.values()).chain(added) {
                    if let Target::Node(node) = target
                        && !reached.contains(node)
                    {
                        reached.push(*node);
                    }
                }
            }
            at += 1;
        }
        self.nodes.retain(|node, _| reached.contains(node));
    }
}

impl MemoryDisk {
    /// An empty directory. The same seed and the same calls leave the same bytes after a crash.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let root = Node::Directory { live: Names::new(), durable: Names::new(), pending: Vec::new() };
        let inner = Inner {
            nodes: BTreeMap::from([(ROOT, root)]),
            next_node: ROOT,
            life: 0,
            prng: Prng::new(seed),
            calls: 0,
            syncs: 0,
            fault: Fault::None,
            space: None,
            unsyncable: BTreeSet::new(),
        };
        Self { inner: Arc::new(Mutex::new(inner)), life: 0 }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder of the lock panics")
    }

    /// The power fails: keeps what was synced and a random part of the rest. Faults end. Gives a handle for the
    /// next life; handles from before fail from now on.
    #[must_use]
    pub fn crash(&self) -> Self {
        let mut inner = self.lock();
        inner.crash();
        Self::revive(&self.inner, inner)
    }

    /// The process ends, and everything it has written stays. Faults end. Gives a handle for the next life.
    #[must_use]
    pub fn restart(&self) -> Self {
        let mut inner = self.lock();
        inner.forget_unreachable();
        Self::revive(&self.inner, inner)
    }

    fn revive(shared: &Arc<Mutex<Inner>>, mut inner: MutexGuard<'_, Inner>) -> Self {
        inner.life += 1;
        inner.fault = Fault::None;
        Self { inner: Arc::clone(shared), life: inner.life }
    }

    /// How many calls have changed something so far, syncs included.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    /// How many times a file was synced so far.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// Lets only the changing call of this number fail, counted from 1 since the disk was made.
    pub fn fail_at(&self, call: u64) {
        self.lock().fault = Fault::At(call);
    }

    /// Lets all changing calls fail from this number on.
    pub fn fail_from(&self, call: u64) {
        self.lock().fault = Fault::From(call);
    }

    /// Lets the sync of a file of this number fail, counted from 1 since the disk was made, and all after it.
    pub fn fail_at_sync(&self, sync: u64) {
        self.lock().fault = Fault::Sync(sync);
    }

    /// No call fails by injection any more.
    pub fn fail_no_more(&self) {
        self.lock().fault = Fault::None;
    }

    /// A copy of the whole directory as processes see it now, on another disk.
    #[must_use]
    pub fn copy(&self) -> Self {
        let inner = self.lock().clone();
        Self { inner: Arc::new(Mutex::new(inner)), life: self.life }
    }

    /// How many bytes all files have together.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.lock().used()
    }

    /// How many bytes all files may have together; none: no limit.
    pub fn set_space(&self, bytes: Option<u64>) {
        self.lock().space = bytes;
    }

    /// Flips one bit of a file, live and durable.
    ///
    /// # Panics
    /// If there is no such byte.
    pub fn flip_bit(&self, path: &str, byte: usize, bit: u32) {
        let mut inner = self.lock();
        let node = inner.file(path).expect("the file to damage exists");
        inner.bytes_mut(node).flip_bit(byte, bit);
    }

    /// All bytes of a file; none if there is no such file. Links are followed once.
    #[must_use]
    pub fn bytes(&self, path: &str) -> Option<Vec<u8>> {
        let inner = self.lock();
        let node = inner.file(path).ok()?;
        Some(inner.bytes(node).live.clone())
    }

    /// Makes a file of these bytes, live and durable.
    ///
    /// # Panics
    /// If its directory does not exist.
    pub fn put(&self, path: &str, bytes: &[u8]) {
        let mut inner = self.lock();
        let node = inner.add(Node::File(Bytes::synced(bytes.to_vec())));
        let (parent, name) = split(path);
        let parent = inner.directory(parent).expect("the directory exists");
        inner.change_names(parent, Change::Set(name.to_owned(), Target::Node(node)));
        sync_names(&mut inner, parent);
    }

    /// Every file's path, ascending.
    #[must_use]
    pub fn files(&self) -> Vec<String> {
        let inner = self.lock();
        let mut files = Vec::new();
        let mut open = vec![(String::new(), ROOT)];
        while let Some((path, node)) = open.pop() {
            for (name, target) in inner.names(node) {
                let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
                match target {
                    Target::Node(node) if matches!(inner.nodes[node], Node::Directory { .. }) => {
                        open.push((path, *node));
                    }
                    Target::Node(_) => files.push(path),
                    Target::Link(_) => {}
                }
            }
        }
        files.sort();
        files
    }
}

fn sync_names(inner: &mut Inner, directory: u64) {
    if let Some(Node::Directory { durable, pending, .. }) = inner.nodes.get_mut(&directory) {
        for change in std::mem::take(pending) {
            apply(durable, &change);
        }
    }
}

impl Disk for MemoryDisk {
    type File = MemoryFile;

    fn create(&self, path: &str) -> io::Result<MemoryFile> {
        let mut inner = self.lock();
        inner.change(self.life, false)?;
        let (parent, name) = split(path);
        let parent = inner.directory(parent)?;
        let node = inner.add(Node::File(Bytes::default()));
        inner.change_names(parent, Change::Set(name.to_owned(), Target::Node(node)));
        Ok(MemoryFile { inner: Arc::clone(&self.inner), life: self.life, node })
    }

    fn open(&self, path: &str) -> io::Result<MemoryFile> {
        let node = self.lock().file(path)?;
        Ok(MemoryFile { inner: Arc::clone(&self.inner), life: self.life, node })
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        Ok(self.lock().resolve(path).is_ok())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut inner = self.lock();
        inner.change(self.life, false)?;
        let ((parent, from_name), (to_parent, to_name)) = (split(from), split(to));
        assert_eq!(parent, to_parent, "a rename stays within its directory");
        inner.resolve(from)?;
        if let Ok(node) = inner.directory(to)
            && !inner.names(node).is_empty()
        {
            return Err(io::Error::new(io::ErrorKind::DirectoryNotEmpty, format!("{to} is not empty")));
        }
        let parent = inner.directory(parent)?;
        inner.change_names(parent, Change::Rename(from_name.to_owned(), to_name.to_owned()));
        Ok(())
    }

    fn remove_file(&self, path: &str) -> io::Result<()> {
        let mut inner = self.lock();
        inner.change(self.life, false)?;
        inner.resolve(path)?;
        let (parent, name) = split(path);
        let parent = inner.directory(parent)?;
        inner.change_names(parent, Change::Remove(name.to_owned()));
        Ok(())
    }

    fn remove_dir_all(&self, path: &str) -> io::Result<()> {
        let mut inner = self.lock();
        inner.change(self.life, false)?;
        let (parent, name) = split(path);
        inner.directory(path)?;
        let parent = inner.directory(parent)?;
        inner.change_names(parent, Change::Remove(name.to_owned()));
        Ok(())
    }

    fn create_dir(&self, path: &str) -> io::Result<()> {
        let mut inner = self.lock();
        inner.change(self.life, false)?;
        if inner.directory(path).is_ok() {
            return Ok(());
        }
        let (parent, name) = split(path);
        let parent = inner.directory(parent)?;
        let directory = Node::Directory { live: Names::new(), durable: Names::new(), pending: Vec::new() };
        let node = inner.add(directory);
        inner.change_names(parent, Change::Set(name.to_owned(), Target::Node(node)));
        Ok(())
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let inner = self.lock();
        let node = inner.directory(path)?;
        Ok(inner.names(node).keys().cloned().collect())
    }

    fn replace_link(&self, target: &str, link: &str) -> io::Result<()> {
        let mut inner = self.lock();
        inner.change(self.life, false)?;
        let (parent, name) = split(link);
        let parent = inner.directory(parent)?;
        inner.change_names(parent, Change::Set(name.to_owned(), Target::Link(target.to_owned())));
        Ok(())
    }

    fn read_link(&self, link: &str) -> io::Result<Option<String>> {
        match self.lock().resolve(link) {
            Ok(Target::Link(target)) => Ok(Some(target)),
            _ => Ok(None),
        }
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        let mut inner = self.lock();
        inner.change(self.life, false)?;
        let node = inner.directory(path)?;
        sync_names(&mut inner, node);
        Ok(())
    }

    fn space_left(&self) -> io::Result<u64> {
        let inner = self.lock();
        Ok(inner.space.map_or(u64::MAX, |space| space.saturating_sub(inner.used())))
    }

    fn display(&self, path: &str) -> String {
        path.to_owned()
    }
}

impl DiskFile for MemoryFile {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let end = self.len()?;
        self.write_at(end, bytes)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.inner.lock().expect("no holder of the lock panics");
        inner.change(self.life, false)?;
        let left = inner.space.map_or(u64::MAX, |space| space.saturating_sub(inner.used()));
        let file = inner.bytes_mut(self.node);
        let offset = usize::try_from(offset).expect("a length");
        let fits = usize::try_from(left).unwrap_or(usize::MAX).saturating_add(file.live.len() - offset);
        let written = &bytes[..bytes.len().min(fits)];
        file.write(offset, written);
        if written.len() == bytes.len() { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut inner = self.inner.lock().expect("no holder of the lock panics");
        if matches!(inner.fault, Fault::Sync(call) if inner.syncs + 1 == call) {
            inner.unsyncable.insert(self.node);
        }
        inner.change(self.life, true)?;
        if inner.unsyncable.contains(&self.node) {
            return Ok(());
        }
        inner.bytes_mut(self.node).sync();
        Ok(())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let inner = self.inner.lock().expect("no holder of the lock panics");
        let Some(Node::File(Bytes { live, .. })) = inner.nodes.get(&self.node) else {
            return Err(not_found("a file that was removed before the last crash"));
        };
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(live.len());
        let count = buffer.len().min(live.len() - start);
        buffer[..count].copy_from_slice(&live[start..start + count]);
        Ok(count)
    }

    fn len(&self) -> io::Result<u64> {
        let inner = self.inner.lock().expect("no holder of the lock panics");
        match inner.nodes.get(&self.node) {
            Some(Node::File(bytes)) => Ok(bytes.live.len() as u64),
            _ => Err(not_found("a file that was removed before the last crash")),
        }
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        let mut inner = self.inner.lock().expect("no holder of the lock panics");
        inner.change(self.life, false)?;
        inner.bytes_mut(self.node).truncate(usize::try_from(len).unwrap_or(usize::MAX));
        Ok(())
    }
}
