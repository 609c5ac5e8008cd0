//! The floor: a primary that relays whatever comes to two backups and answers when all three have synced it. It reads
//! nothing in the bytes but where a frame ends: no chat, no accounts, nothing per message.
//!
//! Group commit: while one sync runs, what arrives gathers for the next. The primary's own sync runs beside the
//! backups', not before them.

use bytes::{Bytes, BytesMut};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;
use std::path::Path;
use std::rc::Rc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{LocalSet, spawn_local};

/// The word that makes this program a backup of the floor.
pub(crate) const BACKUP: &str = "floor-backup";
/// The word that makes this program the primary of the floor.
pub(crate) const PRIMARY: &str = "floor-primary";
/// Bytes of a frame: a number of 8 bytes, and a text of 100.
pub(crate) const FRAME_BYTES: usize = 108;
/// How much is read at once.
const READ_BYTES: usize = 64 * 1024;

/// Runs a backup: syncs whatever has come, and says how many bytes that were in all.
pub(crate) fn run_backup(port: u16, directory: &Path) {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    let mut file = File::create(directory.join("backup.log")).unwrap();
    // The first connection only asks whether somebody listens; whoever says something is the primary.
    for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut buffer = vec![0; 4 * READ_BYTES];
        let mut synced: u64 = 0;
        while let Ok(read @ 1..) = stream.read(&mut buffer) {
            file.write_all(&buffer[..read]).unwrap();
            file.sync_data().unwrap();
            synced += read as u64;
            if stream.write_all(&synced.to_be_bytes()).is_err() {
                break;
            }
        }
    }
}

/// One of the three disks: what waits for it, and how far it has synced.
#[derive(Default)]
struct Disk {
    waiting: RefCell<BytesMut>,
    wake: Notify,
    synced: Cell<u64>,
}

impl Disk {
    async fn next_batch(&self) -> BytesMut {
        loop {
            let batch = self.waiting.take();
            if !batch.is_empty() {
                return batch;
            }
            self.wake.notified().await;
        }
    }
}

/// What has come from clients and is not answered.
#[derive(Default)]
struct Floor {
    disks: [Disk; 3],
    received: Cell<u64>,
    unanswered: RefCell<VecDeque<(u64, Rc<TcpStream>, Bytes)>>,
}

/// Runs the primary.
pub(crate) async fn run_primary(port: u16, directory: &Path, backups: [u16; 2]) {
    let file = File::create(directory.join("primary.log")).unwrap();
    LocalSet::new().run_until(serve(port, file, backups)).await;
}

async fn serve(port: u16, file: File, backups: [u16; 2]) {
    let floor = Rc::new(Floor::default());
    spawn_local(sync_own(Rc::clone(&floor), file));
    for (place, backup) in backups.into_iter().enumerate() {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, backup)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (mut reader, mut writer) = stream.into_split();
        let sender = Rc::clone(&floor);
        spawn_local(async move {
            loop {
                let batch = sender.disks[place].next_batch().await;
                writer.write_all(&batch).await.expect("the backup is there");
            }
        });
        let receiver = Rc::clone(&floor);
        spawn_local(async move {
            while let Ok(synced) = reader.read_u64().await {
                receiver.on_synced(place, synced);
            }
            panic!("a backup is gone");
        });
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.unwrap();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        spawn_local(serve_client(Rc::clone(&floor), Rc::new(stream)));
    }
}

async fn sync_own(floor: Rc<Floor>, mut file: File) {
    let mut synced = 0;
    loop {
        let batch = floor.disks[2].next_batch().await;
        synced += batch.len() as u64;
        let written = tokio::task::spawn_blocking(move || {
            file.write_all(&batch).unwrap();
            file.sync_data().unwrap();
            file
        });
        file = written.await.unwrap();
        floor.on_synced(2, synced);
    }
}

async fn serve_client(floor: Rc<Floor>, stream: Rc<TcpStream>) {
    let mut incoming = BytesMut::new();
    loop {
        incoming.reserve(READ_BYTES);
        if stream.readable().await.is_err() {
            return;
        }
        match stream.try_read_buf(&mut incoming) {
            Ok(1..) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Ok(0) | Err(_) => return,
        }
        let whole = incoming.len() / FRAME_BYTES * FRAME_BYTES;
        if whole > 0 {
            floor.take_in(&stream, incoming.split_to(whole).freeze());
        }
    }
}

impl Floor {
    fn take_in(&self, stream: &Rc<TcpStream>, frames: Bytes) {
        let received = self.received.get() + frames.len() as u64;
        self.received.set(received);
        for disk in &self.disks {
            disk.waiting.borrow_mut().extend_from_slice(&frames);
            disk.wake.notify_one();
        }
        self.unanswered.borrow_mut().push_back((received, Rc::clone(stream), frames));
    }

    /// Answers what all three have synced, by sending it back.
    fn on_synced(&self, place: usize, synced: u64) {
        self.disks[place].synced.set(synced);
        let committed = self.disks.iter().map(|disk| disk.synced.get()).min().expect("three disks");
        let mut unanswered = self.unanswered.borrow_mut();
        while let Some((_, stream, frames)) = unanswered.pop_front_if(|(end, _, _)| *end <= committed) {
            // A client has few enough bytes under way for any buffer; one that is gone gets nothing.
            match stream.try_write(&frames) {
                Ok(written) => assert_eq!(written, frames.len(), "a client doesn't read its answers"),
                Err(error) => {
                    assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "a client doesn't read")
                }
            }
        }
    }
}
