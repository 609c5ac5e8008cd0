//! Recovery: what a server finds on its own disk when it starts (D2-D6).
//!
//! First everything is read and judged; nothing is changed before it is clear that the directory is this server's and
//! can be understood. Then what a crash has left half-done is finished or removed.

use std::sync::Arc;

use super::checkpoint::{
    CURRENT, Candidate, Checkpoints, DIRECTORY, Manifest, RECEIVED, WRITING, candidates, link, load,
    remove_others,
};
use super::commit_log::{CommitLog, Head, LIVE_NEW, LIVE_NEXT, attempt, copy_part, rename, write_file};
use super::disk::{Disk, DiskFile};
use super::diverged;
use super::error::StorageError;
use super::log_reader::LogReader;
use super::record::{LIVE, note_view, write_hard_state, write_view};
use super::scan::{Presence, Scan, Tail, log_files, scan};
use crate::chat::State;
use crate::chat::command::Operation;
use crate::message::{Entry, HardState, Position, Recovered, Standing, View, ViewTable};
use crate::row::RowWriter;
use crate::types::{Incarnation, LogIndex, ServerId};

/// How many entries lie between two reports of progress.
const PROGRESS_ENTRIES: u64 = 500_000;

/// A data directory in use.
#[derive(Debug)]
pub struct Opened<D: Disk> {
    /// What was found.
    pub recovered: Recovered,
    /// Writes the log.
    pub log: CommitLog<D>,
    /// Reads the log.
    pub reader: LogReader<D>,
    /// Writes, installs and reads checkpoints.
    pub checkpoints: Checkpoints<D>,
    /// What a person should know: what was repaired, what is damaged.
    pub notices: Vec<String>,
}

/// Recovers a data directory, or begins one. `progress` hears now and then how far a long recovery is.
///
/// # Errors
/// The directory belongs to another server or another cluster list, a header is wrong, or too much is damaged: then
/// nothing was overwritten. Or the disk fails.
pub fn open<D: Disk>(
    disk: D,
    server: ServerId,
    servers: &[String],
    progress: &mut dyn FnMut(String),
) -> Result<Opened<D>, StorageError> {
    open_with(disk, server, servers, super::SEGMENT_BYTES_MAX, progress)
}

/// [`open`] with segments of another size, for tests and the simulator.
///
/// # Errors
/// As [`open`].
pub fn open_with<D: Disk>(
    disk: D,
    server: ServerId,
    servers: &[String],
    segment_bytes_max: u64,
    progress: &mut dyn FnMut(String),
) -> Result<Opened<D>, StorageError> {
    let candidates = candidates(&disk)?;
    prepare_log(&disk, &candidates)?;
    let positions: Vec<Position> = candidates
        .iter()
        .filter_map(|c| c.manifest.as_ref().ok())
        .map(|manifest| manifest.position)
        .collect();
    let mut found = scan(&disk, &positions, progress)?;
    check_identity(&disk, &found, server, servers)?;
    let mut notices = std::mem::take(&mut found.notices);
    let chosen = choose(&disk, candidates, &found, progress, &mut notices)?;
    judge_standing(&mut found, &mut notices);
    if let Some(manifest) = chosen.manifest.as_ref().filter(|_| !chosen.beyond) {
        merge_views(&mut found, manifest);
    }
    let mut recovered = Recovered {
        hard: found.hard.clone(),
        view: found.view.clone(),
        state: chosen.state,
        applied: chosen.position,
        tail: Vec::new(),
        closed: false,
        views: found.views.clone(),
        base: found.base,
        checkpoint: chosen.manifest.as_ref().map_or(LogIndex::ZERO, |manifest| manifest.position.index),
        gaps: found.gaps.iter().map(|gap| (gap.after, gap.through)).collect(),
        diverged: diverged::exist(&disk)?,
    };
    if chosen.anew {
        found.hard.standing = Standing::Partial;
        recovered.hard.standing = Standing::Partial;
    }
    rewrite_live(&disk, &mut found)?;
    settle_checkpoints(&disk, &chosen.kept, &chosen.bad, chosen.aside)?;
    found.index.vouch(recovered.applied)?;
    let commit = found.commit;
    let mut log = CommitLog::resume(disk.clone(), found, segment_bytes_max)?;
    if chosen.anew {
        log.restart(Position::default(), &ViewTable::new())?;
        (recovered.base, recovered.views, recovered.gaps) =
            (Position::default(), ViewTable::new(), Vec::new());
    }
    if let Some(manifest) = chosen.manifest.as_ref().filter(|_| chosen.beyond) {
        notices.push(format!(
            "the log restarts after the checkpoint as of entry {}, which was installed before a crash",
            manifest.position.index
        ));
        log.restart(manifest.position, &manifest.views)?;
        recovered.base = manifest.position;
        recovered.views.clone_from(&manifest.views);
        recovered.gaps.clear();
    }
    let reader = log.reader();
    replay(&disk.display(LIVE), &reader, &mut recovered, commit, progress)?;
    let (_, last) = reader.read(recovered.applied.index, recovered.applied.index)?;
    recovered.closed = last.first().is_some_and(|entry| entry.operation == Operation::Closed);
    let checkpoints = Checkpoints::new(disk, chosen.kept);
    Ok(Opened { recovered, log, reader, checkpoints, notices })
}

/// Begins a log in an empty directory, and finishes the sealing of a segment that a crash has interrupted.
fn prepare_log<D: Disk>(disk: &D, candidates: &[Candidate]) -> Result<(), StorageError> {
    let (sealed, live) = log_files(disk)?;
    if live {
        return Ok(());
    }
    if !sealed.is_empty() {
        if attempt(disk, "look for", LIVE_NEXT, disk.exists(LIVE_NEXT))? {
            rename(disk, LIVE_NEXT, LIVE)?;
        }
        return Ok(());
    }
    if let Some(candidate) = candidates.first() {
        return Err(StorageError::File {
            path: disk.display(LIVE),
            found: "no such file".into(),
            expected: format!("the log beside {}", candidate.directory()),
        });
    }
    let head = Head {
        sequence: 1,
        anchor: Position::default(),
        views: &[],
        hard: &HardState::default(),
        view: &View::default(),
        commit: LogIndex::ZERO,
    };
    write_file(disk, LIVE_NEW, &head.encode())?;
    rename(disk, LIVE_NEW, LIVE)
}

/// Refuses the directory of another server, or of another cluster list.
fn check_identity<D: Disk>(
    disk: &D,
    found: &Scan<D::File>,
    server: ServerId,
    servers: &[String],
) -> Result<(), StorageError> {
    let (name, line) = &found.hard_at;
    let wrong = |found: String, expected: String| {
        Err(StorageError::Line { path: disk.display(name), line: *line, found, expected })
    };
    let hard = &found.hard;
    if let Some(owner) = hard.server
        && owner != server
    {
        return wrong(format!("the data of server {owner}"), format!("those of server {server}"));
    }
    if !hard.servers.is_empty() && hard.servers != servers {
        return wrong(format!("the cluster list {}", hard.servers.join(",")), servers.join(","));
    }
    if found.rows == 0 || found.hard_at.1 == 0 || (found.lost_control && hard.server.is_none()) {
        return Err(StorageError::File {
            path: disk.display(LIVE),
            found: "no hard state that can be read".into(),
            expected: "a row of kind hard_state (to join the cluster afresh, start with an empty directory)"
                .into(),
        });
    }
    Ok(())
}

/// The checkpoint from which recovery starts.
struct Chosen {
    state: State,
    position: Position,
    manifest: Option<Manifest>,
    /// The log does not have the checkpoint's entry: it was installed, and a crash came before the log's restart.
    beyond: bool,
    /// Nothing here can be started from, and nothing needs to be: this disk counts for nothing before it has caught up.
    /// The log begins anew, from nothing; its rows go to files of their own.
    anew: bool,
    /// The directories that stay, the current one first.
    kept: Vec<String>,
    /// The directories that can't be read, or must not be.
    bad: Vec<String>,
    /// What their names begin with from now on.
    aside: &'static str,
}

/// What damaged checkpoints are called, and good ones that were given up with the whole log.
const ROTTEN: &str = "rotten";
const GIVEN_UP: &str = "given-up";

fn choose<D: Disk>(
    disk: &D,
    candidates: Vec<Candidate>,
    found: &Scan<D::File>,
    progress: &mut dyn FnMut(String),
    notices: &mut Vec<String>,
) -> Result<Chosen, StorageError> {
    let mut chosen: Option<Chosen> = None;
    let (mut bad, mut first_error) = (Vec::new(), None);
    let nothing = |anew, bad| {
        let (state, position, kept) = (State::new(), Position::default(), Vec::new());
        Chosen { state, position, manifest: None, beyond: false, anew, kept, bad, aside: ROTTEN }
    };
    if found.hard.standing == Standing::Distrusted {
        notices.push("what stood here was given up: this server begins anew, from the others".into());
        bad.extend(candidates.into_iter().map(|candidate| candidate.name).take(1));
        return Ok(Chosen { aside: GIVEN_UP, ..nothing(true, bad) });
    }
    for candidate in candidates {
        if let Some(chosen) = &mut chosen {
            if candidate.manifest.is_ok() && chosen.kept.len() < 2 {
                chosen.kept.push(candidate.name);
            }
            continue;
        }
        let beyond = match &candidate.manifest {
            Ok(manifest) => fit(found, manifest.position, candidate.current),
            Err(_) => Some(false),
        };
        let directory = candidate.directory();
        let Some(beyond) = beyond else {
            notices
                .push(format!("{directory} is not used: the log no longer has the entry as of which it is"));
            continue;
        };
        match candidate.manifest.and_then(|_| load(disk, &directory, progress)) {
            Ok((state, manifest)) => {
                let (position, kept) = (manifest.position, vec![candidate.name]);
                let manifest = Some(manifest);
                let nothing = nothing(false, Vec::new());
                chosen = Some(Chosen { state, position, manifest, beyond, kept, ..nothing });
            }
            Err(error) => {
                notices.push(format!("a checkpoint is damaged, an older one or the log stands in: {error}"));
                bad.push(candidate.name);
                first_error.get_or_insert(error);
            }
        }
    }
    if let Some(chosen) = chosen {
        return Ok(Chosen { bad, ..chosen });
    }
    if found.base.index > LogIndex::ZERO && found.hard.standing == Standing::Partial {
        let why = "no checkpoint fits what is left of the log: this server begins anew, from the others";
        notices.push(why.into());
        return Ok(nothing(true, bad));
    }
    if found.base.index > LogIndex::ZERO {
        return Err(first_error.unwrap_or_else(|| StorageError::File {
            path: disk.display(DIRECTORY),
            found: "no checkpoint".into(),
            expected: format!("one as of entry {} or later, where the log begins", found.base.index),
        }));
    }
    Ok(nothing(false, bad))
}

/// Whether recovery can start from a checkpoint; if so, whether the log must be restarted after it.
fn fit<F>(found: &Scan<F>, position: Position, current: bool) -> Option<bool> {
    let presence =
        found.of_interest.iter().find(|(wanted, _)| *wanted == position).map(|(_, presence)| *presence);
    let in_gap =
        found.gaps.iter().any(|gap| gap.after.index < position.index && position.index <= gap.through);
    match presence {
        Some(Presence::Present) => Some(false),
        Some(Presence::Unknown) if in_gap => Some(false),
        Some(Presence::Unknown) if current && position.index > found.base.index => Some(true),
        _ => None,
    }
}

/// D4, D5: what the damage says about the rows that may have been acknowledged.
fn judge_standing<F>(found: &mut Scan<F>, notices: &mut Vec<String>) {
    let before = found.hard.standing;
    if found.lost_control {
        found.hard.standing = Standing::Partial;
        // V6: what it may have forgotten, the start that follows can't know.
        found.hard.born = Incarnation(found.hard.incarnation.0.saturating_add(1));
    } else if found.tail == Tail::Damaged && !removed!("D4-suspect") && before == Standing::Whole {
        found.hard.standing = Standing::Suspect;
    }
    match found.tail {
        Tail::Whole => {}
        Tail::Torn => notices.push(format!("{LIVE}: an incomplete last row was cut; it was never synced")),
        Tail::Damaged => notices.push(format!("{LIVE}: a damaged last row was cut; this disk is suspect")),
    }
    if found.lost_control && before != Standing::Partial {
        notices.push(format!(
            "{LIVE}: rows are lost to rot; this disk counts for nothing until it has caught up"
        ));
    }
    for gap in &found.gaps {
        let (first, through) = (gap.after.index.next(), gap.through);
        notices
            .push(format!("{LIVE}: entries {first} to {through} are lost to rot and must come from a peer"));
    }
}

/// D2: the live segment is written anew and synced before anything in it counts as synced; the page cache may show
/// rows that never reached the disk. What the tail scan cuts is left out (D4). A new standing is added, and the view as it
/// is remembered: what is lost before them is judged once, and not anew at each start (V6).
fn rewrite_live<D: Disk>(disk: &D, found: &mut Scan<D::File>) -> Result<(), StorageError> {
    let Some(segment) = found.index.segments.last_entry() else { return Ok(()) };
    let segment = segment.into_mut();
    if found.tail == Tail::Whole && !found.lost_control && removed!("D2-rewrite") {
        return Ok(());
    }
    let mut file = attempt(disk, "create", LIVE_NEW, disk.create(LIVE_NEW))?;
    copy_part(disk, (LIVE, &segment.file), 0..found.good_end, (LIVE_NEW, &mut file))?;
    if found.lost_control || found.tail == Tail::Damaged {
        let mut row = RowWriter::new();
        write_view(&mut row, found.next_sequence, &found.view);
        write_hard_state(&mut row, found.next_sequence + 1, &found.hard);
        let row = row.take();
        attempt(disk, "write", LIVE_NEW, file.append(&row))?;
        found.next_sequence += 2;
        found.live_lines += 2;
        found.good_end += row.len() as u64;
    }
    attempt(disk, "sync", LIVE_NEW, file.sync())?;
    rename(disk, LIVE_NEW, LIVE)?;
    segment.file = Arc::new(attempt(disk, "open", LIVE, disk.open(LIVE))?);
    for name in attempt(disk, "list", "", disk.list(""))? {
        let ours =
            ["server_log", "diverged-", "replaced-", "rotten-"].iter().any(|start| name.starts_with(start));
        if ours && (name.ends_with(".new") || name == LIVE_NEXT) {
            attempt(disk, "remove", &name, disk.remove_file(&name))?;
        }
    }
    Ok(())
}

/// Moves damaged and given up checkpoints out of the way, removes half-written ones, and makes the chosen one current.
fn settle_checkpoints<D: Disk>(
    disk: &D,
    kept: &[String],
    bad: &[String],
    prefix: &str,
) -> Result<(), StorageError> {
    attempt(disk, "create", DIRECTORY, disk.create_dir(DIRECTORY))?;
    attempt(disk, "sync the directory", "", disk.sync_dir(""))?;
    for path in [WRITING, RECEIVED] {
        if attempt(disk, "look for", path, disk.exists(path))? {
            let removed = if path == WRITING { disk.remove_dir_all(path) } else { disk.remove_file(path) };
            attempt(disk, "remove", path, removed)?;
        }
    }
    if let Some(name) = kept.first() {
        link(disk, name)?;
    } else if attempt(disk, "look for", CURRENT, disk.exists(CURRENT))? {
        attempt(disk, "remove", CURRENT, disk.remove_file(CURRENT))?;
    }
    for name in bad {
        let path = format!("{DIRECTORY}/{name}");
        let (mut aside, mut copy) = (format!("{DIRECTORY}/{prefix}-{name}"), 1);
        while attempt(disk, "look for", &aside, disk.exists(&aside))? {
            copy += 1;
            aside = format!("{DIRECTORY}/{prefix}-{name}-{copy}");
        }
        attempt(disk, "rename", &path, disk.rename(&path, &aside))?;
    }
    attempt(disk, "sync the directory", DIRECTORY, disk.sync_dir(DIRECTORY))?;
    remove_others(disk, kept)
}

/// The log's own table of views is damaged, so that its first view seems to start with the first entry that is left, or the
/// rows in which a view starts are: the checkpoint's is as good up to its entry.
fn merge_views<F>(found: &mut Scan<F>, manifest: &Manifest) {
    let through = manifest.position.index;
    let first = found.base.index.max(LogIndex(1));
    let damaged = found.views.first().is_none_or(|view| view.start > first)
        || found.gaps.iter().any(|gap| gap.after.index < through);
    if !damaged {
        return;
    }
    let later = std::mem::replace(&mut found.views, manifest.views.clone());
    for view in later.into_iter().filter(|view| view.start > through) {
        note_view(&mut found.views, Position { index: view.start, view: view.view, chain: 0 });
    }
}

/// Applies what is known to be committed, and gathers the rest.
fn replay<D: Disk>(
    path: &str,
    reader: &LogReader<D>,
    recovered: &mut Recovered,
    commit: LogIndex,
    progress: &mut dyn FnMut(String),
) -> Result<(), StorageError> {
    let Recovered { state, applied, tail, .. } = recovered;
    let first = applied.index.next();
    let mut unfit = None;
    let mut take = |previous: Position, entry: Entry| {
        let last = tail.last().map_or(*applied, |last: &Arc<Entry>| last.position());
        if previous != last {
            unfit = Some((previous, last));
            return false;
        }
        if entry.index > commit {
            tail.push(Arc::new(entry));
            return true;
        }
        let _ = state.apply(entry.index, entry.unix_ms, entry.chain, &entry.operation);
        *applied = entry.position();
        if entry.index.0.is_multiple_of(PROGRESS_ENTRIES) {
            progress(format!("applied entry {} of {commit}", entry.index));
        }
        true
    };
    reader.visit(first, LogIndex(u64::MAX), &mut take)?;
    let Some((previous, last)) = unfit else { return Ok(()) };
    Err(StorageError::File {
        path: path.to_owned(),
        found: format!("a log that goes on after entry {} of view {}", previous.index, previous.view),
        expected: format!("one that goes on after entry {} of view {}", last.index, last.view),
    })
}
