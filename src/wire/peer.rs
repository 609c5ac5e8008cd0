//! The frames between two servers that have proved themselves to each other.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use memchr::memchr2;

use super::codec::{Frame, write_frame};
use super::field::{DecodeError, Reader, VIEW_BYTES, put_bytes, put_list, put_long_list, put_view};
use super::opcode;
use crate::message::{
    Entry, Mark, PeerMessage, Position, Pulse, Report, Standing, Standpoint, View, ViewStart, ViewTable,
};
use crate::row::Fields;
use crate::types::{ClusterId, Incarnation, LogIndex, Member, ServerId};

/// A member: its id and its incarnation.
const MEMBER_BYTES: usize = 5;
/// A row of the table of views: the view's number and its first index.
const VIEW_START_BYTES: usize = VIEW_BYTES + 8;
/// The shortest entry: an empty row with its length, which no decoder accepts.
const ENTRY_BYTES_MIN: usize = 4;

const PULSE_MEMBER: u8 = 1;
const PULSE_BROKEN: u8 = 2;
const PULSE_DISK_LOW: u8 = 4;
const PULSE_LEAVING: u8 = 8;
const PULSE_REBASING: u8 = 16;
const PULSE_BLANK: u8 = 32;
const PULSE_ANSWERED: u8 = 64;
const PULSE_FLAGS: u32 = 7;

const REPORT_CONTINUOUS: u8 = 1;
const REPORT_EMPTY: u8 = 2;
const REPORT_CLOSED: u8 = 4;
const REPORT_REBASING: u8 = 8;
const REPORT_NEARLY_CONTINUOUS: u8 = 16;
const REPORT_FLAGS: u32 = 5;

/// Appends a message.
pub fn encode(out: &mut BytesMut, message: &PeerMessage) {
    write_frame(out, message_opcode(message), 0, |out| match message {
        PeerMessage::Heartbeat { nonce, pulse } | PeerMessage::HeartbeatOk { nonce, pulse } => {
            out.put_u64(*nonce);
            put_pulse(out, pulse);
        }
        PeerMessage::Prepare { view, previous, entries, commit } => {
            put_view(out, *view);
            put_position(out, *previous);
            out.put_u64(commit.0);
            put_entries(out, entries);
        }
        PeerMessage::PrepareOk { view, incarnation, synced } => {
            put_view(out, *view);
            out.put_u32(incarnation.0);
            out.put_u64(synced.0);
        }
        PeerMessage::Barrier { view, nonce } => {
            put_view(out, *view);
            out.put_u64(*nonce);
        }
        PeerMessage::BarrierOk { view, nonce, incarnation } => {
            put_view(out, *view);
            out.put_u64(*nonce);
            out.put_u32(incarnation.0);
        }
        PeerMessage::PreVote { .. }
        | PeerMessage::PreVoteOk { .. }
        | PeerMessage::Propose { .. }
        | PeerMessage::Promise { .. }
        | PeerMessage::Refuse { .. }
        | PeerMessage::NewView { .. }
        | PeerMessage::NewViewOk { .. } => put_view_change(out, message),
        _ => put_catch_up(out, message),
    });
}

fn put_view_change(out: &mut BytesMut, message: &PeerMessage) {
    match message {
        PeerMessage::PreVote { nonce } => out.put_u64(*nonce),
        PeerMessage::PreVoteOk { nonce, veto, report } => {
            out.put_u64(*nonce);
            out.put_u8(u8::from(*veto));
            put_report(out, report);
        }
        PeerMessage::Propose { number, dropping } => {
            put_view(out, *number);
            put_servers(out, dropping);
        }
        PeerMessage::Promise { number, report } => {
            put_view(out, *number);
            put_report(out, report);
        }
        PeerMessage::Refuse { number, promised } => {
            put_view(out, *number);
            put_view(out, *promised);
        }
        PeerMessage::NewView { cluster, view, start, views, lives } => {
            out.put_u64(cluster.0);
            put_whole_view(out, view);
            put_position(out, *start);
            put_views(out, views);
            put_members(out, lives);
        }
        PeerMessage::NewViewOk { number, incarnation } => {
            put_view(out, *number);
            out.put_u32(incarnation.0);
        }
        other => unreachable!("{other:?} is no message of a view change"),
    }
}

fn put_catch_up(out: &mut BytesMut, message: &PeerMessage) {
    match message {
        PeerMessage::Fetch { view, last, views } => {
            put_view(out, *view);
            put_position(out, *last);
            put_views(out, views);
        }
        PeerMessage::Fetched { view, previous, entries, commit, last } => {
            put_view(out, *view);
            put_position(out, *previous);
            out.put_u64(commit.0);
            out.put_u64(last.0);
            put_entries(out, entries);
        }
        PeerMessage::Diverged { view, last, shared } => {
            put_view(out, *view);
            put_position(out, *last);
            out.put_u64(shared.0);
        }
        PeerMessage::UseCheckpoint { view, last } => {
            put_view(out, *view);
            put_position(out, *last);
        }
        PeerMessage::FetchCheckpoint { view, index, offset } => {
            put_view(out, *view);
            out.put_u64(index.0);
            out.put_u64(*offset);
        }
        PeerMessage::CheckpointPart { view, index, offset, total, bytes } => {
            put_view(out, *view);
            out.put_u64(index.0);
            out.put_u64(*offset);
            out.put_u64(*total);
            put_bytes(out, bytes);
        }
        PeerMessage::FetchRows { after, through } => {
            put_position(out, *after);
            out.put_u64(through.0);
        }
        PeerMessage::Rows { after, entries } => {
            put_position(out, *after);
            put_entries(out, entries);
        }
        PeerMessage::Rebase { view, incarnation, nonce, fork, rows } => {
            put_view(out, *view);
            out.put_u32(incarnation.0);
            out.put_u64(*nonce);
            out.put_u64(fork.0);
            put_entries(out, rows);
        }
        PeerMessage::RebaseOk { view, nonce } => {
            put_view(out, *view);
            out.put_u64(*nonce);
        }
        PeerMessage::Differs { view, mark } => {
            put_view(out, *view);
            put_mark(out, mark);
        }
        other => unreachable!("{other:?} is no message of catching up"),
    }
}

const fn message_opcode(message: &PeerMessage) -> u8 {
    match message {
        PeerMessage::Heartbeat { .. } => opcode::HEARTBEAT,
        PeerMessage::HeartbeatOk { .. } => opcode::HEARTBEAT_OK,
        PeerMessage::Prepare { .. } => opcode::PREPARE,
        PeerMessage::PrepareOk { .. } => opcode::PREPARE_OK,
        PeerMessage::Barrier { .. } => opcode::BARRIER,
        PeerMessage::BarrierOk { .. } => opcode::BARRIER_OK,
        PeerMessage::PreVote { .. } => opcode::PRE_VOTE,
        PeerMessage::PreVoteOk { .. } => opcode::PRE_VOTE_OK,
        PeerMessage::Propose { .. } => opcode::PROPOSE,
        PeerMessage::Promise { .. } => opcode::PROMISE,
        PeerMessage::Refuse { .. } => opcode::REFUSE,
        PeerMessage::NewView { .. } => opcode::NEW_VIEW,
        PeerMessage::NewViewOk { .. } => opcode::NEW_VIEW_OK,
        PeerMessage::Fetch { .. } => opcode::FETCH,
        PeerMessage::Fetched { .. } => opcode::FETCHED,
        PeerMessage::Diverged { .. } => opcode::DIVERGED,
        PeerMessage::UseCheckpoint { .. } => opcode::USE_CHECKPOINT,
        PeerMessage::FetchCheckpoint { .. } => opcode::FETCH_CHECKPOINT,
        PeerMessage::CheckpointPart { .. } => opcode::CHECKPOINT_PART,
        PeerMessage::FetchRows { .. } => opcode::FETCH_ROWS,
        PeerMessage::Rows { .. } => opcode::ROWS,
        PeerMessage::Rebase { .. } => opcode::REBASE,
        PeerMessage::RebaseOk { .. } => opcode::REBASE_OK,
        PeerMessage::Differs { .. } => opcode::DIFFERS,
    }
}

/// Reads a message.
///
/// # Errors
/// What is wrong with the frame: a peer that sends such a one is disconnected.
pub fn decode(frame: &Frame) -> Result<PeerMessage, DecodeError> {
    let mut reader = Reader::new(frame);
    let message = match frame.opcode {
        opcode::HEARTBEAT..=opcode::BARRIER_OK => read_normal(frame.opcode, &mut reader)?,
        opcode::PRE_VOTE..=opcode::NEW_VIEW_OK => read_view_change(frame.opcode, &mut reader)?,
        opcode::FETCH..=opcode::DIFFERS => read_catch_up(frame.opcode, &mut reader)?,
        opcode => return Err(unknown(opcode)),
    };
    reader.finish()?;
    Ok(message)
}

const fn unknown(opcode: u8) -> DecodeError {
    DecodeError::UnknownOpcode { opcode, expected: "a message between servers" }
}

fn read_normal(opcode: u8, r: &mut Reader<'_>) -> Result<PeerMessage, DecodeError> {
    Ok(match opcode {
        opcode::HEARTBEAT => PeerMessage::Heartbeat { nonce: r.u64("nonce")?, pulse: read_pulse(r)? },
        opcode::HEARTBEAT_OK => PeerMessage::HeartbeatOk { nonce: r.u64("nonce")?, pulse: read_pulse(r)? },
        opcode::PREPARE => {
            let (view, previous) = (r.view("view")?, read_position(r, "previous")?);
            let commit = r.index("commit")?;
            PeerMessage::Prepare { view, previous, entries: read_entries(r, previous)?, commit }
        }
        opcode::PREPARE_OK => PeerMessage::PrepareOk {
            view: r.view("view")?,
            incarnation: read_incarnation(r)?,
            synced: r.index("synced")?,
        },
        opcode::BARRIER => PeerMessage::Barrier { view: r.view("view")?, nonce: r.u64("nonce")? },
        opcode::BARRIER_OK => PeerMessage::BarrierOk {
            view: r.view("view")?,
            nonce: r.u64("nonce")?,
            incarnation: read_incarnation(r)?,
        },
        opcode => return Err(unknown(opcode)),
    })
}

fn read_view_change(opcode: u8, r: &mut Reader<'_>) -> Result<PeerMessage, DecodeError> {
    Ok(match opcode {
        opcode::PRE_VOTE => PeerMessage::PreVote { nonce: r.u64("nonce")? },
        opcode::PRE_VOTE_OK => {
            PeerMessage::PreVoteOk { nonce: r.u64("nonce")?, veto: r.bool("veto")?, report: read_report(r)? }
        }
        opcode::PROPOSE => {
            PeerMessage::Propose { number: r.view("number")?, dropping: read_servers(r, "dropping")? }
        }
        opcode::PROMISE => PeerMessage::Promise { number: r.view("number")?, report: read_report(r)? },
        opcode::REFUSE => PeerMessage::Refuse { number: r.view("number")?, promised: r.view("promised")? },
        opcode::NEW_VIEW => PeerMessage::NewView {
            cluster: ClusterId(r.u64("cluster")?),
            view: read_whole_view(r)?,
            start: read_position(r, "start")?,
            views: read_views(r)?,
            lives: read_members(r, "lives")?,
        },
        opcode::NEW_VIEW_OK => {
            PeerMessage::NewViewOk { number: r.view("number")?, incarnation: read_incarnation(r)? }
        }
        opcode => return Err(unknown(opcode)),
    })
}

fn read_catch_up(opcode: u8, r: &mut Reader<'_>) -> Result<PeerMessage, DecodeError> {
    Ok(match opcode {
        opcode::FETCH => PeerMessage::Fetch {
            view: r.view("view")?,
            last: read_position(r, "last")?,
            views: read_views(r)?,
        },
        opcode::FETCHED => {
            let (view, previous) = (r.view("view")?, read_position(r, "previous")?);
            let (commit, last) = (r.index("commit")?, r.index("last")?);
            PeerMessage::Fetched { view, previous, entries: read_entries(r, previous)?, commit, last }
        }
        opcode::DIVERGED => PeerMessage::Diverged {
            view: r.view("view")?,
            last: read_position(r, "last")?,
            shared: r.index("shared")?,
        },
        opcode::USE_CHECKPOINT => {
            PeerMessage::UseCheckpoint { view: r.view("view")?, last: read_position(r, "last")? }
        }
        opcode::FETCH_CHECKPOINT => PeerMessage::FetchCheckpoint {
            view: r.view("view")?,
            index: r.index("index")?,
            offset: r.u64("offset")?,
        },
        opcode::CHECKPOINT_PART => PeerMessage::CheckpointPart {
            view: r.view("view")?,
            index: r.index("index")?,
            offset: r.u64("offset")?,
            total: r.u64("total")?,
            bytes: r.bytes("bytes")?,
        },
        opcode::FETCH_ROWS => {
            PeerMessage::FetchRows { after: read_position(r, "after")?, through: r.index("through")? }
        }
        opcode::ROWS => {
            let after = read_position(r, "after")?;
            PeerMessage::Rows { after, entries: read_entries(r, after)? }
        }
        opcode::REBASE => PeerMessage::Rebase {
            view: r.view("view")?,
            incarnation: read_incarnation(r)?,
            nonce: r.u64("nonce")?,
            fork: r.index("fork")?,
            rows: read_rows(r)?,
        },
        opcode::REBASE_OK => PeerMessage::RebaseOk { view: r.view("view")?, nonce: r.u64("nonce")? },
        opcode::DIFFERS => PeerMessage::Differs { view: r.view("view")?, mark: read_mark(r)? },
        opcode => return Err(unknown(opcode)),
    })
}

fn put_position(out: &mut BytesMut, position: Position) {
    out.put_u64(position.index.0);
    put_view(out, position.view);
    out.put_u32(position.chain);
}

fn read_position(r: &mut Reader<'_>, field: &'static str) -> Result<Position, DecodeError> {
    Ok(Position { index: r.index(field)?, view: r.view(field)?, chain: r.u32(field)? })
}

fn read_incarnation(r: &mut Reader<'_>) -> Result<Incarnation, DecodeError> {
    r.u32("incarnation").map(Incarnation)
}

fn put_servers(out: &mut BytesMut, servers: &[ServerId]) {
    put_list(out, servers, |out, server| out.put_u8(server.0));
}

fn read_servers(r: &mut Reader<'_>, field: &'static str) -> Result<Vec<ServerId>, DecodeError> {
    r.list(field, 1, |r| r.server(field))
}

fn put_whole_view(out: &mut BytesMut, view: &View) {
    put_view(out, view.number);
    put_members(out, &view.members);
}

fn put_members(out: &mut BytesMut, members: &[Member]) {
    put_list(out, members, |out, member| {
        out.put_u8(member.server.0);
        out.put_u32(member.incarnation.0);
    });
}

fn read_whole_view(r: &mut Reader<'_>) -> Result<View, DecodeError> {
    let number = r.view("view")?;
    Ok(View { number, members: read_members(r, "members")? })
}

fn read_members(r: &mut Reader<'_>, field: &'static str) -> Result<Vec<Member>, DecodeError> {
    r.list(field, MEMBER_BYTES, |r| {
        Ok(Member { server: r.server("member")?, incarnation: read_incarnation(r)? })
    })
}

fn put_views(out: &mut BytesMut, views: &ViewTable) {
    put_long_list(out, views, |out, row| {
        put_view(out, row.view);
        out.put_u64(row.start.0);
    });
}

fn read_views(r: &mut Reader<'_>) -> Result<ViewTable, DecodeError> {
    r.long_list("views", VIEW_START_BYTES, |r| {
        Ok(ViewStart { view: r.view("view")?, start: r.index("start")? })
    })
}

fn put_entries(out: &mut BytesMut, entries: &[Arc<Entry>]) {
    // A byte too little, and the last entry has everything copied to where there is twice the space.
    let bytes: usize = entries.iter().map(|entry| ENTRY_BYTES_MIN + entry.bytes.len()).sum();
    out.reserve(size_of::<u32>() + bytes);
    put_long_list(out, entries, |out, entry| put_bytes(out, &entry.bytes));
}

/// Reads entries that follow `previous`; their chains start from its chain.
fn read_entries(r: &mut Reader<'_>, previous: Position) -> Result<Vec<Arc<Entry>>, DecodeError> {
    let mut last = (previous.index, previous.chain);
    read_each_row(r, |number, offset, bytes, fields| {
        let cause = |cause| DecodeError::Row { number, offset, cause };
        let entry = Entry::decode(bytes, last.1, fields).map_err(cause)?;
        let expected = LogIndex(last.0.0.wrapping_add(1));
        if entry.index != expected {
            return Err(DecodeError::Gap { number, offset, found: entry.index, expected });
        }
        last = (entry.index, entry.chain);
        Ok(entry)
    })
}

/// Reads rows of another log, of which some are left out; their chains mean nothing.
fn read_rows(r: &mut Reader<'_>) -> Result<Vec<Arc<Entry>>, DecodeError> {
    read_each_row(r, |number, offset, bytes, fields| {
        Entry::decode(bytes, 0, fields).map_err(|cause| DecodeError::Row { number, offset, cause })
    })
}

fn read_each_row(
    r: &mut Reader<'_>,
    mut read: impl FnMut(usize, usize, Bytes, &mut Fields) -> Result<Entry, DecodeError>,
) -> Result<Vec<Arc<Entry>>, DecodeError> {
    let mut fields = Fields::new();
    let mut number = 0;
    r.long_list("entries", ENTRY_BYTES_MIN, |r| {
        number += 1;
        let bytes = r.bytes("entry")?;
        let offset = r.offset() - bytes.len();
        if let Some(at) = memchr2(b'\n', b'\r', &bytes) {
            return Err(DecodeError::LineBreak { number, offset: offset + at });
        }
        read(number, offset, bytes, &mut fields).map(Arc::new)
    })
}

const fn flag(set: bool, flag: u8) -> u8 {
    if set { flag } else { 0 }
}

fn put_pulse(out: &mut BytesMut, pulse: &Pulse) {
    put_cluster(out, pulse.cluster);
    out.put_u32(pulse.incarnation.0);
    out.put_u32(pulse.known_incarnation.0);
    out.put_u8(match pulse.standpoint {
        Standpoint::Primary => 1,
        Standpoint::Backup => 2,
        Standpoint::Learner => 3,
        Standpoint::Waiting => 4,
        Standpoint::Empty => 5,
    });
    put_view(out, pulse.view);
    out.put_u8(pulse.primary.map_or(0, |server| server.0));
    out.put_u64(pulse.last.0);
    out.put_u64(pulse.synced.0);
    out.put_u64(pulse.commit.0);
    out.put_u32(pulse.sync_age_ms);
    out.put_u8(
        flag(pulse.member, PULSE_MEMBER)
            | flag(pulse.broken, PULSE_BROKEN)
            | flag(pulse.disk_low, PULSE_DISK_LOW)
            | flag(pulse.leaving, PULSE_LEAVING)
            | flag(pulse.rebasing, PULSE_REBASING)
            | flag(pulse.blank, PULSE_BLANK)
            | flag(pulse.answered, PULSE_ANSWERED),
    );
    put_mark(out, &pulse.mark);
}

fn read_pulse(r: &mut Reader<'_>) -> Result<Pulse, DecodeError> {
    let cluster = read_cluster(r)?;
    let (incarnation, known_incarnation) = (read_incarnation(r)?, Incarnation(r.u32("known incarnation")?));
    let standpoint = r.choice("standpoint", "1 to 5", |number| match number {
        1 => Some(Standpoint::Primary),
        2 => Some(Standpoint::Backup),
        3 => Some(Standpoint::Learner),
        4 => Some(Standpoint::Waiting),
        5 => Some(Standpoint::Empty),
        _ => None,
    })?;
    let view = r.view("view")?;
    let primary = Some(r.server("primary")?).filter(|server| server.0 != 0);
    let (last, synced, commit) = (r.index("last")?, r.index("synced")?, r.index("commit")?);
    let sync_age_ms = r.u32("sync age")?;
    let flags = r.flags("flags", PULSE_FLAGS)?;
    Ok(Pulse {
        cluster,
        incarnation,
        known_incarnation,
        standpoint,
        view,
        member: flags & PULSE_MEMBER != 0,
        primary,
        last,
        synced,
        commit,
        sync_age_ms,
        broken: flags & PULSE_BROKEN != 0,
        disk_low: flags & PULSE_DISK_LOW != 0,
        leaving: flags & PULSE_LEAVING != 0,
        rebasing: flags & PULSE_REBASING != 0,
        answered: flags & PULSE_ANSWERED != 0,
        blank: flags & PULSE_BLANK != 0,
        mark: read_mark(r)?,
    })
}

fn put_mark(out: &mut BytesMut, mark: &Mark) {
    out.put_u64(mark.index.0);
    out.put_u32(mark.chain);
    out.put_slice(&mark.digest);
}

fn read_mark(r: &mut Reader<'_>) -> Result<Mark, DecodeError> {
    Ok(Mark { index: r.index("mark index")?, chain: r.u32("mark chain")?, digest: r.array("mark digest")? })
}

/// A cluster's id after a byte that says whether there is one.
fn put_cluster(out: &mut BytesMut, cluster: Option<ClusterId>) {
    out.put_u8(u8::from(cluster.is_some()));
    if let Some(cluster) = cluster {
        out.put_u64(cluster.0);
    }
}

fn read_cluster(r: &mut Reader<'_>) -> Result<Option<ClusterId>, DecodeError> {
    if r.bool("cluster known")? { Ok(Some(ClusterId(r.u64("cluster")?))) } else { Ok(None) }
}

fn put_report(out: &mut BytesMut, report: &Report) {
    out.put_u32(report.incarnation.0);
    out.put_u32(report.born.0);
    put_view(out, report.promised);
    put_list(out, &report.outstanding, |out, number| put_view(out, *number));
    put_whole_view(out, &report.installed);
    put_position(out, report.last);
    out.put_u8(match report.standing {
        Standing::Whole => 1,
        Standing::Suspect => 2,
        Standing::Partial | Standing::Distrusted => 3,
    });
    out.put_u8(
        flag(report.continuous, REPORT_CONTINUOUS)
            | flag(report.empty, REPORT_EMPTY)
            | flag(report.closed, REPORT_CLOSED)
            | flag(report.rebasing, REPORT_REBASING)
            | flag(report.nearly_continuous, REPORT_NEARLY_CONTINUOUS),
    );
}

fn read_report(r: &mut Reader<'_>) -> Result<Report, DecodeError> {
    let incarnation = read_incarnation(r)?;
    let born = read_incarnation(r)?;
    let promised = r.view("promised")?;
    let outstanding = r.list("outstanding", VIEW_BYTES, |r| r.view("outstanding"))?;
    let installed = read_whole_view(r)?;
    let last = read_position(r, "last")?;
    let standing = r.choice("standing", "1 to 3", |number| match number {
        1 => Some(Standing::Whole),
        2 => Some(Standing::Suspect),
        3 => Some(Standing::Partial),
        _ => None,
    })?;
    let flags = r.flags("flags", REPORT_FLAGS)?;
    Ok(Report {
        incarnation,
        born,
        promised,
        outstanding,
        installed,
        last,
        standing,
        continuous: flags & REPORT_CONTINUOUS != 0,
        nearly_continuous: flags & REPORT_NEARLY_CONTINUOUS != 0,
        empty: flags & REPORT_EMPTY != 0,
        closed: flags & REPORT_CLOSED != 0,
        rebasing: flags & REPORT_REBASING != 0,
    })
}
