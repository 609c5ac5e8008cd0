//! One CSV row: how a field is written and read, and the checksum that ends every row.
//!
//! RFC 4180, with two additions that keep one row on one line and a spreadsheet harmless: inside text, backslash,
//! newline and carriage return are written `\\`, `\n`, `\r`; and text that begins with one of `= + - @ TAB '` is
//! written with a leading `'`. The last field is the CRC-32 (IEEE) of the row's bytes before its comma, as eight
//! lower-case hexadecimal digits.

use std::cell::RefCell;
use std::fmt::{Display, Write as _};
use std::ops::Range;
use std::str::FromStr;

use memchr::{memchr, memchr2, memchr3};

use crate::types::{RequestId, ViewNumber};

/// How many bytes the checksum takes at the end of a row, its comma included and its newline not.
pub const CHECKSUM_BYTES: usize = 9;

/// A buffer that grew beyond this for a burst is not kept for the next rows.
const KEPT_BYTES_MAX: usize = 1024 * 1024;

/// Hardly a row has more fields.
const FIELDS_USUAL: usize = 16;

/// What is wrong with a row: a phrase of the form `what was found, what was expected`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// The line is too short to end with a checksum, or does not end with one.
    #[error("found no checksum at the end of the row, expected a comma and eight hexadecimal digits")]
    NoChecksum,
    /// The bytes do not match the checksum.
    #[error("found crc {found}, expected {expected:08x}")]
    Checksum {
        /// What the row ends with.
        found: String,
        /// What its bytes amount to.
        expected: u32,
    },
    /// The row does not have the number of fields its header says.
    #[error("found {found} fields, expected {expected}")]
    FieldCount {
        /// How many there are.
        found: usize,
        /// How many there should be.
        expected: usize,
    },
    /// A field is not UTF-8.
    #[error("found bytes that are not UTF-8 in field {field}")]
    Utf8 {
        /// Which field, counted from 1.
        field: usize,
    },
    /// A field can't be read as what it should be.
    #[error("found {found:?} in field {field}, expected {expected}")]
    Field {
        /// Which field, counted from 1.
        field: usize,
        /// What stands there.
        found: String,
        /// What should.
        expected: &'static str,
    },
}

/// Writes rows one after the other into one buffer.
#[derive(Debug, Default)]
pub struct RowWriter {
    buffer: Vec<u8>,
    row_start: usize,
}

impl RowWriter {
    /// An empty buffer.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn separate(&mut self) {
        if self.buffer.len() > self.row_start {
            self.buffer.push(b',');
        }
    }

    /// Appends a field that needs no quoting: a number, an id, a keyword. An empty one cannot be a row's first.
    pub fn plain(&mut self, field: impl Display) {
        self.separate();
        // Writing into a vector can't fail; what is written is checked when it is read.
        let _ = write!(Utf8Buffer(&mut self.buffer), "{field}");
    }

    /// Appends a decimal number; the hot path's form of [`RowWriter::plain`].
    pub fn number(&mut self, number: u64) {
        self.separate();
        self.push_number(number);
    }

    fn push_number(&mut self, number: u64) {
        let mut digits = [[0u8; 2]; 10];
        let mut start = 2 * digits.len();
        let mut rest = number;
        for pair in digits.iter_mut().rev() {
            *pair = DECIMAL_PAIRS[(rest % 100) as usize];
            rest /= 100;
            start -= 2;
            if rest == 0 {
                break;
            }
        }
        let digits = digits.as_flattened();
        start += usize::from(digits[start] == b'0');
        self.buffer.extend_from_slice(&digits[start..]);
    }

    /// Appends a view's number; the hot path's form of [`RowWriter::plain`].
    pub fn view(&mut self, view: ViewNumber) {
        self.separate();
        self.push_number(u64::from(view.counter));
        self.buffer.push(b'.');
        self.push_number(u64::from(view.proposer.0));
    }

    /// Appends a request's id; the hot path's form of [`RowWriter::plain`].
    pub fn id(&mut self, id: RequestId) {
        self.separate();
        let mut start = [b'-'; 17];
        start[..16].copy_from_slice(id.client.0.to_be_bytes().map(hex).as_flattened());
        self.buffer.extend_from_slice(&start);
        self.push_number(id.number.0);
    }

    /// Appends a checksum: eight hexadecimal digits.
    pub fn checksum(&mut self, crc: u32) {
        self.separate();
        self.buffer.extend_from_slice(crc.to_be_bytes().map(hex).as_flattened());
    }

    /// Appends a text field, escaped and quoted as this module's documentation says.
    pub fn text(&mut self, text: &str) {
        self.separate();
        let bytes = text.as_bytes();
        let guard = matches!(bytes.first(), Some(b'=' | b'+' | b'-' | b'@' | b'\t' | b'\''));
        let quote = memchr2(b',', b'"', bytes).is_some();
        if quote {
            self.buffer.push(b'"');
        }
        if guard {
            self.buffer.push(b'\'');
        }
        if memchr2(b'"', b'\\', bytes).is_some() || memchr2(b'\n', b'\r', bytes).is_some() {
            self.push_escaped(bytes);
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        if quote {
            self.buffer.push(b'"');
        }
    }

    fn push_escaped(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            match byte {
                b'"' => self.buffer.extend_from_slice(b"\"\""),
                b'\\' => self.buffer.extend_from_slice(b"\\\\"),
                b'\n' => self.buffer.extend_from_slice(b"\\n"),
                b'\r' => self.buffer.extend_from_slice(b"\\r"),
                _ => self.buffer.push(byte),
            }
        }
    }

    /// Appends fields that are already encoded, separated by commas.
    pub fn encoded(&mut self, fields: &[u8]) {
        self.separate();
        self.buffer.extend_from_slice(fields);
    }

    /// The bytes of the row being written.
    #[must_use]
    pub fn row(&self) -> &[u8] {
        &self.buffer[self.row_start..]
    }

    /// Ends the row: appends its checksum and a newline.
    pub fn end(&mut self) {
        let crc = crc32fast::hash(self.row());
        self.checksum(crc);
        self.buffer.push(b'\n');
        self.row_start = self.buffer.len();
    }

    /// How many bytes are written, the unfinished row included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Whether nothing is written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Forgets all rows and starts again in the same space, unless that is unusually much.
    pub fn clear(&mut self) {
        let spent = self.take();
        self.reuse(spent);
    }

    /// Takes all bytes out and starts again.
    #[must_use]
    pub fn take(&mut self) -> Vec<u8> {
        self.row_start = 0;
        std::mem::take(&mut self.buffer)
    }

    /// Takes back the space of what [`RowWriter::take`] gave, unless new rows are begun or it is unusually much.
    pub fn reuse(&mut self, mut spent: Vec<u8>) {
        if self.is_empty() && spent.capacity() <= KEPT_BYTES_MAX {
            spent.clear();
            self.buffer = spent;
        }
    }
}

struct Utf8Buffer<'a>(&'a mut Vec<u8>);

impl std::fmt::Write for Utf8Buffer<'_> {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

/// Checks the checksum of a row (without its newline) and gives the bytes before it.
///
/// # Errors
/// [`RowError::NoChecksum`] or [`RowError::Checksum`].
pub fn verify(line: &[u8]) -> Result<&[u8], RowError> {
    let Some(length) = line.len().checked_sub(CHECKSUM_BYTES) else { return Err(RowError::NoChecksum) };
    let (row, checksum) = line.split_at(length);
    if checksum[0] != b',' || !checksum[1..].iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(RowError::NoChecksum);
    }
    let expected = crc32fast::hash(row);
    if &checksum[1..] == expected.to_be_bytes().map(hex).as_flattened() {
        Ok(row)
    } else {
        Err(RowError::Checksum { found: String::from_utf8_lossy(&checksum[1..]).into_owned(), expected })
    }
}

/// A byte as two lower-case hexadecimal digits.
fn hex(byte: u8) -> [u8; 2] {
    HEX_PAIRS[usize::from(byte)]
}

/// The numbers below 100, two digits each.
const DECIMAL_PAIRS: [[u8; 2]; 100] = pairs(b"0123456789");
/// The numbers below 256, two digits each.
const HEX_PAIRS: [[u8; 2]; 256] = pairs(b"0123456789abcdef");

/// The numbers of up to two of these digits, in order.
const fn pairs<const BASE: usize, const COUNT: usize>(digits: &[u8; BASE]) -> [[u8; 2]; COUNT] {
    let mut pairs = [[0; 2]; COUNT];
    let mut number = 0;
    while number < COUNT {
        pairs[number] = [digits[number / BASE], digits[number % BASE]];
        number += 1;
    }
    pairs
}

/// Calls `found` with the place of every comma, in order; eight bytes at a time, since most fields are short: a search
/// that starts anew after each field takes longer.
fn each_comma(row: &[u8], mut found: impl FnMut(usize)) {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    const LOW: u64 = ONES * 0x7f;
    let (words, rest) = row.as_chunks::<8>();
    for (at, word) in words.iter().enumerate() {
        let differs = u64::from_le_bytes(*word) ^ (ONES * u64::from(b','));
        // The highest bit of each byte that is a comma, and no other bit.
        let mut commas = !(((differs & LOW) + LOW) | differs | LOW);
        while commas != 0 {
            found(at * 8 + (commas.trailing_zeros() / 8) as usize);
            commas &= commas - 1;
        }
    }
    for (at, byte) in rest.iter().enumerate() {
        if *byte == b',' {
            found(words.len() * 8 + at);
        }
    }
}

thread_local! {
    /// Reads rows with quotes. It is made once a thread: making its tables takes much longer than to read a row. Neither
    /// the default nor a clone will do: those lack tables, and take a whole row for one field.
    static READER: RefCell<csv_core::Reader> = RefCell::new(csv_core::Reader::new());
}

/// The fields of one row; reused from row to row so that reading allocates nothing.
#[derive(Debug)]
pub struct Fields {
    /// The fields without quotes; with the commas between them if none was quoted.
    text: String,
    /// Where each field stands in `text`.
    ranges: Vec<Range<usize>>,
    /// For rows with quotes.
    unquoted: Vec<u8>,
    ends: Vec<usize>,
}

impl Default for Fields {
    fn default() -> Self {
        Self {
            text: String::new(),
            ranges: Vec::with_capacity(FIELDS_USUAL),
            unquoted: Vec::new(),
            ends: Vec::new(),
        }
    }
}

impl Fields {
    /// Holds no row yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Splits a row (without its newline) into fields.
    ///
    /// # Errors
    /// [`RowError::FieldCount`] unless there are `expected` fields; [`RowError::Utf8`].
    pub fn parse(&mut self, row: &[u8], expected: usize) -> Result<(), RowError> {
        self.text.clear();
        self.ranges.clear();
        if row.is_empty() || memchr3(b'"', b'\r', b'\n', row).is_some() {
            self.parse_quoted(row, expected)
        } else {
            self.parse_plain(row, expected)
        }
    }

    /// Most rows have no quotes: their fields stand between the commas.
    fn parse_plain(&mut self, row: &[u8], expected: usize) -> Result<(), RowError> {
        let mut start = 0;
        each_comma(row, |at| {
            self.ranges.push(start..at);
            start = at + 1;
        });
        self.ranges.push(start..row.len());
        if self.ranges.len() != expected {
            return Err(RowError::FieldCount { found: self.ranges.len(), expected });
        }
        let text = std::str::from_utf8(row).map_err(|error| {
            let before = self.ranges.iter().take_while(|range| range.end < error.valid_up_to()).count();
            RowError::Utf8 { field: before + 1 }
        })?;
        self.text.push_str(text);
        Ok(())
    }

    fn parse_quoted(&mut self, row: &[u8], expected: usize) -> Result<(), RowError> {
        READER.with_borrow_mut(|reader| self.parse_with(reader, row, expected))
    }

    fn parse_with(
        &mut self,
        reader: &mut csv_core::Reader,
        row: &[u8],
        expected: usize,
    ) -> Result<(), RowError> {
        reader.reset();
        if self.unquoted.len() < row.len() + 1 {
            self.unquoted.resize(row.len() + 1, 0);
        }
        let (mut read, mut written, mut ended) = (0, 0, 0);
        loop {
            // An empty input tells the reader that the row ends here.
            let (result, took, wrote, ends) =
                reader.read_record(&row[read..], &mut self.unquoted[written..], &mut self.ends[ended..]);
            read += took;
            written += wrote;
            ended += ends;
            match result {
                csv_core::ReadRecordResult::InputEmpty => {}
                csv_core::ReadRecordResult::OutputFull => self.unquoted.resize(self.unquoted.len() * 2, 0),
                csv_core::ReadRecordResult::OutputEndsFull => {
                    self.ends.resize(FIELDS_USUAL.max(self.ends.len() * 2), 0);
                }
                csv_core::ReadRecordResult::Record | csv_core::ReadRecordResult::End => break,
            }
        }
        if read != row.len() || ended != expected {
            return Err(RowError::FieldCount { found: ended, expected });
        }
        let mut start = 0;
        for (at, &end) in self.ends[..ended].iter().enumerate() {
            let field = std::str::from_utf8(&self.unquoted[start..end]);
            self.text.push_str(field.map_err(|_| RowError::Utf8 { field: at + 1 })?);
            self.ranges.push(start..end);
            start = end;
        }
        Ok(())
    }

    /// How many fields the row has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// A field as it stands in the row, unquoted; fields count from 0.
    ///
    /// # Panics
    /// If the row has no such field: the number was checked by [`Fields::parse`].
    #[must_use]
    pub fn raw(&self, field: usize) -> &str {
        &self.text[self.ranges[field].clone()]
    }

    /// A text field, its escapes undone.
    ///
    /// # Errors
    /// [`RowError::Field`] if a backslash is followed by anything but `\`, `n` or `r`.
    pub fn text(&self, field: usize) -> Result<String, RowError> {
        let raw = self.raw(field);
        let mut rest = raw.strip_prefix('\'').unwrap_or(raw);
        let mut text = String::with_capacity(rest.len());
        while let Some(at) = memchr(b'\\', rest.as_bytes()) {
            text.push_str(&rest[..at]);
            text.push(match rest.as_bytes().get(at + 1) {
                Some(b'\\') => '\\',
                Some(b'n') => '\n',
                Some(b'r') => '\r',
                _ => return Err(self.error(field, "\\\\, \\n or \\r after a backslash")),
            });
            rest = &rest[at + 2..];
        }
        text.push_str(rest);
        Ok(text)
    }

    /// A field that reads as a `T`.
    ///
    /// # Errors
    /// [`RowError::Field`], naming `expected`.
    pub fn value<T: FromStr>(&self, field: usize, expected: &'static str) -> Result<T, RowError> {
        self.raw(field).parse().map_err(|_| self.error(field, expected))
    }

    /// An error about a field of this row.
    #[must_use]
    pub fn error(&self, field: usize, expected: &'static str) -> RowError {
        RowError::Field { field: field + 1, found: self.raw(field).chars().take(80).collect(), expected }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ClientId, RequestNumber, ServerId};
    use proptest::prelude::*;

    fn written(texts: &[String]) -> Vec<u8> {
        let mut writer = RowWriter::new();
        writer.plain("x");
        for text in texts {
            writer.text(text);
        }
        writer.end();
        writer.take()
    }

    fn one_field(write: impl FnOnce(&mut RowWriter)) -> String {
        let mut writer = RowWriter::new();
        write(&mut writer);
        String::from_utf8(writer.take()).unwrap()
    }

    #[test]
    fn numbers_of_every_length_are_written_as_the_standard_library_does() {
        let powers = (0..20).map(|zeros| 10u64.pow(zeros));
        for number in powers.flat_map(|power| [power - 1, power, power + 1]).chain([u64::MAX, 0x1234_5678]) {
            assert_eq!(one_field(|row| row.number(number)), number.to_string());
        }
    }

    proptest! {
        #[test]
        fn the_hot_forms_write_what_the_plain_one_does(
            number in any::<u64>(), bits in 0..64u32, client in any::<u64>(), counter in any::<u32>(), server in any::<u8>(),
        ) {
            let number = number >> bits;
            let id = RequestId { client: ClientId(client), number: RequestNumber(number) };
            let view = ViewNumber { counter: counter >> (bits / 2), proposer: ServerId(server) };
            prop_assert_eq!(one_field(|row| row.number(number)), one_field(|row| row.plain(number)));
            prop_assert_eq!(one_field(|row| row.id(id)), one_field(|row| row.plain(id)));
            prop_assert_eq!(one_field(|row| row.view(view)), one_field(|row| row.plain(view)));
            prop_assert_eq!(one_field(|row| row.checksum(counter)), format!("{counter:08x}"));
        }

        #[test]
        fn every_comma_is_found(row in prop::collection::vec(prop::sample::select(&b",,-+.\xac\x2b\x2d\0\xff"[..]), 0..60)) {
            let mut found = Vec::new();
            each_comma(&row, |at| found.push(at));
            let expected: Vec<usize> = (0..row.len()).filter(|at| row[*at] == b',').collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn any_text_reads_back_and_stays_on_one_line(texts in prop::collection::vec(".*", 0..6)) {
            let line = written(&texts);
            prop_assert_eq!(line.iter().filter(|&&b| b == b'\n').count(), 1);
            let row = verify(&line[..line.len() - 1]).unwrap();
            let mut fields = Fields::new();
            fields.parse(row, texts.len() + 1).unwrap();
            for (at, text) in texts.iter().enumerate() {
                prop_assert_eq!(&fields.text(at + 1).unwrap(), text);
            }
        }

        #[test]
        fn an_ordinary_csv_reader_sees_the_same_fields(texts in prop::collection::vec("[a-z,\" ]{0,9}", 1..5)) {
            let line = written(&texts);
            let mut reader = csv::ReaderBuilder::new().has_headers(false).from_reader(&line[..]);
            let record = reader.records().next().unwrap().unwrap();
            prop_assert_eq!(record.len(), texts.len() + 2);
            for (at, text) in texts.iter().enumerate() {
                prop_assert_eq!(&record[at + 1], text.as_str());
            }
        }

        #[test]
        fn a_row_without_quotes_reads_alike_both_ways(
            row in prop::collection::vec(prop_oneof![Just(b','), Just(b'a'), Just(0xc3u8), Just(0xa9u8)], 1..20),
            expected in 1..6usize,
        ) {
            let (mut plain, mut quoted) = (Fields::new(), Fields::new());
            prop_assert_eq!(plain.parse_plain(&row, expected), quoted.parse_quoted(&row, expected));
            let all = |fields: &Fields| (0..fields.len()).map(|at| fields.raw(at).to_owned()).collect::<Vec<_>>();
            if quoted.len() == expected && plain.parse(&row, expected).is_ok() {
                prop_assert_eq!(all(&plain), all(&quoted));
            }
        }

        #[test]
        fn a_flipped_bit_is_noticed(text in "[a-z,]{0,20}", at in any::<prop::sample::Index>(), bit in 0..8u32) {
            let mut line = written(&[text]);
            line.pop();
            let at = at.index(line.len());
            line[at] ^= 1 << bit;
            prop_assert!(verify(&line).is_err());
        }
    }

    #[test]
    fn formulas_are_defused() {
        let line = written(&["=1+1".into(), "'quoted".into(), "plain".into()]);
        assert!(line.starts_with(b"x,'=1+1,''quoted,plain,"));
    }

    #[test]
    fn an_empty_row_has_no_fields() {
        let mut fields = Fields::new();
        assert_eq!(fields.parse(b"", 1), Err(RowError::FieldCount { found: 0, expected: 1 }));
        assert_eq!(verify(b"short"), Err(RowError::NoChecksum));
    }
}
