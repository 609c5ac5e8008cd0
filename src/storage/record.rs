//! The rows of `server_log.csv`.
//!
//! Each row has a sequence number, the replicated fields of an entry (or what another kind of row keeps in those
//! columns), the chain, and the checksum. Rows that are no entries are this server's own: they are never replicated.

use std::ops::Range;

use crate::chat::command::{format_members, parse_members};
use crate::message::{ENTRY_FIELDS, Entry, HardState, Position, Standing, View, ViewStart, ViewTable};
use crate::row::{Fields, RowError, RowWriter, verify};
use crate::types::{ClusterId, Incarnation, LogIndex, ServerId, ViewNumber};

/// The live segment's name.
pub(super) const LIVE: &str = "server_log.csv";

/// The first line of every segment and every file that rows are moved to.
pub(super) const HEADER: &str =
    "sequence,kind,index,view,time_ms,request,acknowledged,account,subject,text,extra,fork,chain,crc\n";

/// How many rows begin a segment: anchor, views, hard state, installed view, commit.
pub(super) const HEAD_ROWS: u64 = 5;

/// A row whose checksum fits, split but not yet read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line<'a> {
    pub(super) sequence: u64,
    /// The replicated fields.
    pub(super) body: &'a [u8],
    chain: &'a [u8],
}

/// What a row says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Row {
    /// The entry before a segment's first.
    Anchor(Position),
    /// The views up to the anchor.
    Views(ViewTable),
    Hard(HardState),
    View(View),
    /// Entries above are no longer part of the log.
    Truncate(LogIndex),
    Commit(LogIndex),
    /// An entry; its position, as the row has it.
    Entry(Position),
}

/// Checks a line's checksum and takes it apart (D4: checksum first, then parse).
pub(super) fn split(line: &[u8]) -> Result<Line<'_>, RowError> {
    let row = verify(line)?;
    let first = row.iter().position(|&b| b == b',');
    let last = row.iter().rposition(|&b| b == b',');
    let (Some(first), Some(last)) = (first, last) else {
        return Err(RowError::FieldCount { found: 2, expected: ENTRY_FIELDS.len() + 3 });
    };
    if first >= last {
        return Err(RowError::FieldCount { found: 3, expected: ENTRY_FIELDS.len() + 3 });
    }
    let sequence = number(&row[..first]).ok_or_else(|| wrong(1, &row[..first], "a sequence number"))?;
    Ok(Line { sequence, body: &row[first + 1..last], chain: &row[last + 1..] })
}

fn number(digits: &[u8]) -> Option<u64> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn wrong(field: usize, found: &[u8], expected: &'static str) -> RowError {
    RowError::Field { field, found: String::from_utf8_lossy(found).chars().take(80).collect(), expected }
}

impl Line<'_> {
    /// Reads what the row says; of an entry only its position.
    pub(super) fn read(&self, fields: &mut Fields) -> Result<Row, RowError> {
        let mut parts = self.body.split(|&b| b == b',');
        let mut part = || parts.next().unwrap_or_default();
        let (kind, index, view) = (part(), part(), part());
        // One more must be an index, too.
        let within = |range: Range<u64>| number(index).filter(|index| range.contains(index)).map(LogIndex);
        let entry_index =
            || within(1..u64::MAX).ok_or_else(|| wrong(3, index, "the index of an entry, from 1 on"));
        let index = || within(0..u64::MAX).ok_or_else(|| wrong(3, index, "an index"));
        let view = || {
            let text = std::str::from_utf8(view).ok();
            text.and_then(|text| text.parse().ok()).ok_or_else(|| wrong(4, view, "a view as COUNTER.SERVER"))
        };
        match kind {
            b"anchor" => Ok(Row::Anchor(Position { index: index()?, view: view()?, chain: self.chain()? })),
            b"commit" => Ok(Row::Commit(index()?)),
            b"truncate" => Ok(Row::Truncate(index()?)),
            b"views" => {
                self.parse(fields)?;
                parse_views(fields.raw(8))
                    .map(Row::Views)
                    .ok_or_else(|| fields.error(8, "views as VIEW@INDEX"))
            }
            b"view_installed" => {
                self.parse(fields)?;
                let members = parse_members(fields.raw(8))
                    .ok_or_else(|| fields.error(8, "members as SERVER:INCARNATION"))?;
                Ok(Row::View(View { number: view()?, members }))
            }
            b"hard_state" => {
                self.parse(fields)?;
                read_hard_state(fields).map(Row::Hard)
            }
            _ => Ok(Row::Entry(Position { index: entry_index()?, view: view()?, chain: self.chain()? })),
        }
    }

    fn parse(&self, fields: &mut Fields) -> Result<(), RowError> {
        fields.parse(self.body, ENTRY_FIELDS.len())
    }

    /// The chain at the end of the row.
    pub(super) fn chain(&self) -> Result<u32, RowError> {
        let text = std::str::from_utf8(self.chain).ok().filter(|text| text.len() == 8);
        text.and_then(|text| u32::from_str_radix(text, 16).ok())
            .ok_or_else(|| wrong(13, self.chain, "a chain of eight hexadecimal digits"))
    }
}

/// Writes an entry's row.
pub(super) fn write_entry(row: &mut RowWriter, sequence: u64, entry: &Entry) {
    row.number(sequence);
    row.encoded(&entry.bytes);
    row.checksum(entry.chain);
    row.end();
}

/// What the columns of a row that is no entry hold; empty ones by default.
#[derive(Default)]
struct Columns {
    index: Option<LogIndex>,
    view: Option<ViewNumber>,
    request: String,
    acknowledged: String,
    account: &'static str,
    subject: String,
    text: String,
    extra: String,
    chain: Option<u32>,
}

fn write_columns(row: &mut RowWriter, sequence: u64, kind: &str, columns: &Columns) {
    row.number(sequence);
    row.plain(kind);
    row.plain(columns.index.map(|index| index.to_string()).unwrap_or_default());
    row.plain(columns.view.map(|view| view.to_string()).unwrap_or_default());
    row.encoded(b"");
    row.plain(&columns.request);
    row.plain(&columns.acknowledged);
    row.plain(columns.account);
    row.text(&columns.subject);
    row.text(&columns.text);
    row.text(&columns.extra);
    row.encoded(b"");
    row.plain(columns.chain.map(|chain| format!("{chain:08x}")).unwrap_or_default());
    row.end();
}

/// The row that begins a segment.
pub(super) fn write_anchor(row: &mut RowWriter, sequence: u64, position: Position) {
    let Position { index, view, chain } = position;
    let columns = Columns { index: Some(index), view: Some(view), chain: Some(chain), ..Columns::default() };
    write_columns(row, sequence, "anchor", &columns);
}

/// Where each view starts.
pub(super) fn write_views(row: &mut RowWriter, sequence: u64, views: &[ViewStart]) {
    write_columns(row, sequence, "views", &Columns { text: format_views(views), ..Columns::default() });
}

/// The installed view.
pub(super) fn write_view(row: &mut RowWriter, sequence: u64, view: &View) {
    let text = format_members(&view.members);
    let columns = Columns { view: Some(view.number), text, ..Columns::default() };
    write_columns(row, sequence, "view_installed", &columns);
}

/// A truncation; `moved_to` names the file that has the rows now.
pub(super) fn write_truncate(row: &mut RowWriter, sequence: u64, after: LogIndex, moved_to: &str) {
    let columns = Columns { index: Some(after), extra: moved_to.to_owned(), ..Columns::default() };
    write_columns(row, sequence, "truncate", &columns);
}

/// A hint: everything up to `index` was committed.
pub(super) fn write_commit(row: &mut RowWriter, sequence: u64, index: LogIndex) {
    write_columns(row, sequence, "commit", &Columns { index: Some(index), ..Columns::default() });
}

/// The hard state: the promise in `view`, the cluster in `request`, the incarnation in `acknowledged`, the standing
/// in `account`, the server in `subject`, the cluster list in `text`, the rest in `extra`.
pub(super) fn write_hard_state(row: &mut RowWriter, sequence: u64, hard: &HardState) {
    let outstanding: Vec<String> = hard.outstanding.iter().map(ToString::to_string).collect();
    let incarnations = format_members(&hard.incarnations).replace(' ', "/");
    let columns = Columns {
        view: Some(hard.promised),
        request: hard.cluster.map(|cluster| cluster.to_string()).unwrap_or_default(),
        acknowledged: hard.incarnation.0.to_string(),
        account: match hard.standing {
            Standing::Whole => "whole",
            Standing::Suspect => "suspect",
            Standing::Partial => "partial",
            Standing::Distrusted => "distrusted",
        },
        subject: hard.server.map(|server| server.to_string()).unwrap_or_default(),
        text: hard.servers.join(" "),
        extra: format!(
            "born={} outstanding={} incarnations={incarnations}",
            hard.born.0,
            outstanding.join("/")
        ),
        ..Columns::default()
    };
    write_columns(row, sequence, "hard_state", &columns);
}

fn read_hard_state(fields: &Fields) -> Result<HardState, RowError> {
    const EXTRA: &str = "born=N outstanding=VIEW/… incarnations=SERVER:INCARNATION/…";
    let optional = |field: usize| (!fields.raw(field).is_empty()).then_some(fields.raw(field));
    let cluster = optional(4).map(|text| u64::from_str_radix(text, 16).map(ClusterId)).transpose();
    let extra = fields.raw(9).strip_prefix("born=").and_then(|rest| rest.split_once(" outstanding="));
    let (born, extra) = extra.ok_or_else(|| fields.error(9, EXTRA))?;
    let (outstanding, incarnations) =
        extra.split_once(" incarnations=").ok_or_else(|| fields.error(9, EXTRA))?;
    let outstanding: Result<Vec<ViewNumber>, _> =
        outstanding.split('/').filter(|text| !text.is_empty()).map(str::parse).collect();
    Ok(HardState {
        server: optional(7).map(|_| fields.value(7, "a server's number").map(ServerId)).transpose()?,
        cluster: cluster.map_err(|_| fields.error(4, "a cluster id of 16 hexadecimal digits"))?,
        incarnation: Incarnation(fields.value(5, "an incarnation")?),
        born: Incarnation(born.parse().map_err(|_| fields.error(9, EXTRA))?),
        promised: fields.value(2, "a view as COUNTER.SERVER")?,
        outstanding: outstanding.map_err(|_| fields.error(9, EXTRA))?,
        standing: match fields.raw(6) {
            "whole" => Standing::Whole,
            "suspect" => Standing::Suspect,
            "partial" => Standing::Partial,
            "distrusted" => Standing::Distrusted,
            _ => return Err(fields.error(6, "whole, suspect, partial or distrusted")),
        },
        incarnations: parse_members(&incarnations.replace('/', " ")).ok_or_else(|| fields.error(9, EXTRA))?,
        servers: fields.text(8)?.split_ascii_whitespace().map(str::to_owned).collect(),
    })
}

/// Views as `VIEW@INDEX`, separated by blanks.
pub(super) fn format_views(views: &[ViewStart]) -> String {
    views.iter().map(|v| format!("{}@{}", v.view, v.start)).collect::<Vec<_>>().join(" ")
}

/// The reverse of [`format_views`].
pub(super) fn parse_views(text: &str) -> Option<ViewTable> {
    text.split_ascii_whitespace()
        .map(|part| {
            let (view, start) = part.split_once('@')?;
            Some(ViewStart { view: view.parse().ok()?, start: LogIndex(start.parse().ok()?) })
        })
        .collect()
}

/// Adds an entry to a table of views.
pub(super) fn note_view(views: &mut ViewTable, position: Position) {
    if views.last().is_none_or(|last| last.view != position.view) {
        views.push(ViewStart { view: position.view, start: position.index });
    }
}

/// The name of a sealed segment.
pub(super) fn sealed_name(number: u64) -> String {
    format!("server_log-{number:08}.csv")
}

/// The first sequence number of a sealed segment, from its name.
pub(super) fn sealed_number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("server_log-")?.strip_suffix(".csv")?;
    digits.parse().ok().filter(|&number| sealed_name(number) == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Member;

    fn read(row: &mut RowWriter) -> (u64, Row) {
        let line = row.take();
        let line = split(&line[..line.len() - 1]).unwrap();
        (line.sequence, line.read(&mut Fields::new()).unwrap())
    }

    #[test]
    fn the_header_names_the_replicated_fields_and_what_stands_around_them() {
        assert_eq!(HEADER, format!("sequence,{},chain,crc\n", ENTRY_FIELDS.join(",")));
    }

    #[test]
    fn every_kind_of_row_reads_back() {
        let mut row = RowWriter::new();
        let number = ViewNumber { counter: 7, proposer: ServerId(1) };
        let members = vec![Member { server: ServerId(2), incarnation: Incarnation(5) }];
        let position = Position { index: LogIndex(9), view: number, chain: 0xab };
        write_anchor(&mut row, 1, position);
        assert_eq!(read(&mut row), (1, Row::Anchor(position)));
        let views = vec![ViewStart { view: number, start: LogIndex(4) }];
        write_views(&mut row, 2, &views);
        assert_eq!(read(&mut row), (2, Row::Views(views)));
        for hard in [
            HardState::default(),
            HardState {
                server: Some(ServerId(3)),
                cluster: Some(ClusterId(77)),
                incarnation: Incarnation(4),
                born: Incarnation(2),
                promised: number,
                outstanding: vec![number],
                standing: Standing::Suspect,
                incarnations: members.clone(),
                servers: vec!["[::1]:1538".into(), "b:2".into()],
            },
        ] {
            write_hard_state(&mut row, 3, &hard);
            assert_eq!(read(&mut row), (3, Row::Hard(hard)));
        }
        let view = View { number, members };
        write_view(&mut row, 4, &view);
        assert_eq!(read(&mut row), (4, Row::View(view)));
        write_truncate(&mut row, 5, LogIndex(8), "diverged.csv");
        assert_eq!(read(&mut row), (5, Row::Truncate(LogIndex(8))));
        write_commit(&mut row, 6, LogIndex(8));
        assert_eq!(read(&mut row), (6, Row::Commit(LogIndex(8))));
    }
}
