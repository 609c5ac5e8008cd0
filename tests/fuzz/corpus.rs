//! What is damaged: the frames and rows of protocol.md, and logs and tables as they are written.

use std::path::Path;

use lastword::message::Write;
use lastword::prng::Prng;
use lastword::storage::MemoryDisk;
use lastword::types::LogIndex;

use super::log_model::{Known, hard, open, rows_of, take_checkpoint, view_of};

/// Inputs: those it began with, and some that have decoded since.
#[derive(Clone, Debug, Default)]
pub(super) struct Corpus {
    seeds: Vec<Vec<u8>>,
    kept: Vec<Vec<u8>>,
}

impl Corpus {
    fn new(seeds: Vec<Vec<u8>>) -> Self {
        assert!(!seeds.is_empty(), "there is nothing to damage");
        Self { seeds, kept: Vec::new() }
    }

    pub(super) fn draw(&self, prng: &mut Prng) -> &[u8] {
        let from = if self.kept.is_empty() || prng.chance(1, 2) { &self.seeds } else { &self.kept };
        &from[usize::try_from(prng.below(from.len() as u64)).unwrap()]
    }

    /// Keeps an input that decodes, in the place of another one if there are many.
    pub(super) fn keep(&mut self, input: Vec<u8>, max: usize, prng: &mut Prng) {
        if self.kept.len() < max {
            self.kept.push(input);
        } else {
            let at = usize::try_from(prng.below(max as u64)).unwrap();
            self.kept[at] = input;
        }
    }
}

/// The lines of all blocks of one kind in protocol.md, block by block.
fn blocks(kind: &str) -> Vec<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("protocol.md");
    let document =
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut blocks = Vec::new();
    let mut open: Option<(bool, Vec<String>)> = None;
    for line in document.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(fence)) => open = Some((fence.split(' ').next() == Some(kind), Vec::new())),
            (None, None) => {}
            (Some((_, lines)), None) => lines.push(line.to_owned()),
            (Some(_), Some(_)) => {
                blocks.extend(open.take().filter(|(wanted, _)| *wanted).map(|(_, lines)| lines))
            }
        }
    }
    assert!(!blocks.is_empty(), "protocol.md has no blocks of kind {kind}");
    blocks
}

fn example_frames() -> Vec<Vec<u8>> {
    let bytes = |block: Vec<String>| {
        let words = block.iter().flat_map(|line| line.split('#').next().unwrap().split_ascii_whitespace());
        words.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
    };
    blocks("frame").into_iter().chain(blocks("invalid")).map(bytes).collect()
}

fn with_opcodes(opcodes: std::ops::RangeInclusive<u8>) -> Corpus {
    let fits = |frame: &Vec<u8>| frame.get(4).is_some_and(|opcode| opcodes.contains(opcode));
    Corpus::new(example_frames().into_iter().filter(fits).collect())
}

pub(super) fn requests() -> Corpus {
    with_opcodes(0x00..=0x3f)
}

pub(super) fn handshakes() -> Corpus {
    with_opcodes(0x40..=0x4f)
}

pub(super) fn peer_messages() -> Corpus {
    with_opcodes(0x50..=0x7f)
}

pub(super) fn responses() -> Corpus {
    with_opcodes(0x80..=0xff)
}

/// Several frames behind each other, and the first bytes of other protocols.
pub(super) fn streams() -> Corpus {
    let mut streams: Vec<Vec<u8>> = example_frames().chunks(3).map(<[Vec<u8>]>::concat).collect();
    streams.extend(
        ["GET / HTTP/1.1\r\n", "SSH-2.0-x\r\n", "hello\n", "\u{16}\u{3}\u{1}"].map(|text| text.into()),
    );
    Corpus::new(streams)
}

/// A log with rows of all kinds, and the tables of its checkpoint by their paths.
fn directory() -> (Vec<u8>, Vec<(String, Vec<u8>)>) {
    let mut known = Known::default();
    let disk = MemoryDisk::new(1);
    let mut opened = open(&disk, u64::MAX).unwrap();
    opened.log.write(&Write::HardState(hard(1, 0))).unwrap();
    opened.log.write(&Write::View(view_of(1))).unwrap();
    for index in 1..=26 {
        let entry = known.make(opened.log.last(), 1, index);
        opened.log.write(&Write::Append(vec![entry])).unwrap();
    }
    opened.log.write(&Write::Commit(LogIndex(20))).unwrap();
    opened.log.write(&Write::Truncate { after: LogIndex(25) }).unwrap();
    opened.log.write(&Write::HardState(hard(1, 2))).unwrap();
    opened.log.sync().unwrap();
    let position = known.position_at(opened.log.last(), LogIndex(24));
    take_checkpoint(&mut opened, &known, position).unwrap();
    let tables = disk.files().into_iter().filter(|path| path.starts_with("checkpoints/"));
    let tables = tables.map(|path| (path.clone(), disk.bytes(&path).unwrap())).collect();
    (rows_of(&disk), tables)
}

/// Single rows, without checksum and newline: those of the log, of the tables, and of protocol.md.
pub(super) fn rows() -> Corpus {
    let (log, tables) = directory();
    let mut rows: Vec<Vec<u8>> = blocks("rows").concat().into_iter().map(String::into_bytes).collect();
    for bytes in tables.into_iter().map(|(_, bytes)| bytes).chain([log]) {
        rows.extend(bytes.split(|&byte| byte == b'\n').map(<[u8]>::to_vec));
    }
    rows.retain(|row| row.len() > 9);
    rows.iter_mut().for_each(|row| row.truncate(row.len() - 9));
    Corpus::new(rows)
}

/// What an entry's row holds between its sequence number and its chain.
pub(super) fn entries() -> Corpus {
    let mut known = Known::default();
    let mut entries = Vec::new();
    let mut last = lastword::message::Position::default();
    for index in 1..=60 {
        let entry = known.make(last, 1, index);
        last = entry.position();
        entries.push(entry.bytes.to_vec());
    }
    let kinds = [
        "closed,3,1.1,1000,,,,,,",
        "expire,3,1.1,1000,,,,,99,",
        "login,3,1.1,1000,00000000000c11e1-2,1,00000000000c11e1-1,1,0707070707070707070707070707070707070707070707070707070707070707,",
        "delete,9,1.1,1000,00000000000c11e1-3,1,00000000000c11e1-1,,00000000000c11e1-2,",
        "acknowledge,9,1.1,1000,00000000000c11e1-3,1,00000000000c11e1-1,,00000000000c11e1-2,",
        "logout,9,1.1,1000,00000000000c11e1-4,1,00000000000c11e1-1,all,,",
    ];
    entries.extend(kinds.map(|row| row.as_bytes().to_vec()));
    Corpus::new(entries)
}

pub(super) fn logs() -> Corpus {
    Corpus::new(vec![directory().0])
}

/// A table's number in front of its bytes.
pub(super) fn tables() -> Corpus {
    let (_, files) = directory();
    let tables = lastword::chat::Table::ALL.iter().enumerate().map(|(at, table)| {
        let (_, bytes) = files.iter().find(|(path, _)| path.ends_with(table.file_name())).unwrap();
        [&[u8::try_from(at).unwrap()], &bytes[..]].concat()
    });
    Corpus::new(tables.collect())
}
