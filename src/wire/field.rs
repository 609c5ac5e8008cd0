//! The fields of a frame's body: how each kind is written, and read without trusting a single byte.

use byteorder::{BigEndian, ByteOrder};
use bytes::{BufMut, Bytes, BytesMut};

use super::codec::{BODY_OFFSET, Frame};
use crate::message::ErrorCode;
use crate::row::RowError;
use crate::types::{ClientId, LogIndex, MessageId, RequestId, RequestNumber, ServerId, ViewNumber};

/// Why a frame's body can't be read. Offsets count from the frame's first byte, so the body starts at 9.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// No frame that may come from this side has this opcode.
    #[error("found opcode 0x{opcode:02x}, expected that of {expected}")]
    UnknownOpcode {
        /// The opcode.
        opcode: u8,
        /// What kind of frame could have come.
        expected: &'static str,
    },
    /// The body ends within a field.
    #[error("{field} at byte {offset}: found {left} bytes, expected {wanted}")]
    TooShort {
        /// The field's name in `protocol.md`.
        field: &'static str,
        /// Where it starts.
        offset: usize,
        /// How many bytes it takes.
        wanted: usize,
        /// How many are left.
        left: usize,
    },
    /// A list announces more than the body can hold.
    #[error(
        "{field} at byte {offset}: found a count of {count} in front of {left} bytes, expected at most {max}"
    )]
    Count {
        /// The list's name.
        field: &'static str,
        /// Where its count stands.
        offset: usize,
        /// The count.
        count: usize,
        /// How many bytes are left.
        left: usize,
        /// How many elements these could be.
        max: usize,
    },
    /// A string is not UTF-8.
    #[error("{field} at byte {offset}: found bytes that are not UTF-8 from byte {bad} on, expected UTF-8")]
    Utf8 {
        /// The string's name.
        field: &'static str,
        /// Where its first byte stands, after its length.
        offset: usize,
        /// Where the first bad byte stands.
        bad: usize,
    },
    /// A field holds a value that means nothing.
    #[error("{field} at byte {offset}: found {found}, expected {expected}")]
    Value {
        /// The field's name.
        field: &'static str,
        /// Where it stands.
        offset: usize,
        /// Its value.
        found: u64,
        /// What it could have been.
        expected: &'static str,
    },
    /// There are bytes after the last field.
    #[error("byte {offset}: found {count} bytes after the last field, expected the frame's end")]
    Trailing {
        /// Where the first of them stands.
        offset: usize,
        /// How many there are.
        count: usize,
    },
    /// An entry's row can't be read.
    #[error("entry {number} of the frame, at byte {offset}: {cause}")]
    Row {
        /// Which entry of the frame, counted from 1.
        number: usize,
        /// Where its first byte stands.
        offset: usize,
        /// What is wrong with the row.
        cause: RowError,
    },
    /// An entry's row would not stay on one line.
    #[error("entry {number} of the frame, at byte {offset}: found a line break, expected one line")]
    LineBreak {
        /// Which entry of the frame, counted from 1.
        number: usize,
        /// Where the line break stands.
        offset: usize,
    },
    /// An entry does not follow the one before it.
    #[error("entry {number} of the frame, at byte {offset}: found index {found}, expected {expected}")]
    Gap {
        /// Which entry of the frame, counted from 1.
        number: usize,
        /// Where its first byte stands.
        offset: usize,
        /// Its index.
        found: LogIndex,
        /// The index after the one before.
        expected: LogIndex,
    },
}

impl DecodeError {
    /// What a client that sent such a frame is told.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::UnknownOpcode { .. } => ErrorCode::UnknownOpcode,
            _ => ErrorCode::Malformed,
        }
    }
}

/// Reads a body field by field.
pub(super) struct Reader<'a> {
    body: &'a Bytes,
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(frame: &'a Frame) -> Self {
        Self { body: &frame.body, at: 0 }
    }

    /// Where the next field starts, counted from the frame's first byte.
    pub(super) const fn offset(&self) -> usize {
        BODY_OFFSET + self.at
    }

    fn left(&self) -> usize {
        self.body.len() - self.at
    }

    fn take(&mut self, field: &'static str, wanted: usize) -> Result<&'a [u8], DecodeError> {
        let left = self.left();
        if left < wanted {
            return Err(DecodeError::TooShort { field, offset: self.offset(), wanted, left });
        }
        let bytes = &self.body[self.at..self.at + wanted];
        self.at += wanted;
        Ok(bytes)
    }

    pub(super) fn u8(&mut self, field: &'static str) -> Result<u8, DecodeError> {
        Ok(self.take(field, 1)?[0])
    }

    pub(super) fn u16(&mut self, field: &'static str) -> Result<u16, DecodeError> {
        Ok(BigEndian::read_u16(self.take(field, 2)?))
    }

    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, DecodeError> {
        Ok(BigEndian::read_u32(self.take(field, 4)?))
    }

    pub(super) fn u64(&mut self, field: &'static str) -> Result<u64, DecodeError> {
        Ok(BigEndian::read_u64(self.take(field, 8)?))
    }

    /// A byte that is 0 or 1.
    pub(super) fn bool(&mut self, field: &'static str) -> Result<bool, DecodeError> {
        let offset = self.offset();
        match self.u8(field)? {
            0 => Ok(false),
            1 => Ok(true),
            found => Err(DecodeError::Value { field, offset, found: u64::from(found), expected: "0 or 1" }),
        }
    }

    /// A byte of flags of which only the lowest `count` may be set.
    pub(super) fn flags(&mut self, field: &'static str, count: u32) -> Result<u8, DecodeError> {
        let offset = self.offset();
        let found = self.u8(field)?;
        if u32::from(found) >> count != 0 {
            let expected = "no other flags than the known ones";
            return Err(DecodeError::Value { field, offset, found: u64::from(found), expected });
        }
        Ok(found)
    }

    /// A byte that stands for one of a few values.
    pub(super) fn choice<T>(
        &mut self,
        field: &'static str,
        expected: &'static str,
        choose: impl FnOnce(u8) -> Option<T>,
    ) -> Result<T, DecodeError> {
        let offset = self.offset();
        let found = self.u8(field)?;
        choose(found).ok_or(DecodeError::Value { field, offset, found: u64::from(found), expected })
    }

    pub(super) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], DecodeError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(field, N)?);
        Ok(array)
    }

    /// A string: its length in two bytes, then UTF-8.
    pub(super) fn string(&mut self, field: &'static str) -> Result<String, DecodeError> {
        let length = usize::from(self.u16(field)?);
        let offset = self.offset();
        let bytes = self.take(field, length)?;
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => Err(DecodeError::Utf8 { field, offset, bad: offset + error.valid_up_to() }),
        }
    }

    /// Bytes: their length in four bytes, then themselves, shared with the frame.
    pub(super) fn bytes(&mut self, field: &'static str) -> Result<Bytes, DecodeError> {
        let length = usize::try_from(self.u32(field)?).unwrap_or(usize::MAX);
        let start = self.at;
        self.take(field, length)?;
        Ok(self.body.slice(start..self.at))
    }

    /// A list: its count in two bytes, then the elements, each of which takes at least `element_bytes_min`.
    pub(super) fn list<T>(
        &mut self,
        field: &'static str,
        element_bytes_min: usize,
        element: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let offset = self.offset();
        let count = usize::from(self.u16(field)?);
        self.elements(field, offset, count, element_bytes_min, element)
    }

    /// A long list: its count in four bytes.
    pub(super) fn long_list<T>(
        &mut self,
        field: &'static str,
        element_bytes_min: usize,
        element: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let offset = self.offset();
        let count = usize::try_from(self.u32(field)?).unwrap_or(usize::MAX);
        self.elements(field, offset, count, element_bytes_min, element)
    }

    fn elements<T>(
        &mut self,
        field: &'static str,
        offset: usize,
        count: usize,
        element_bytes_min: usize,
        mut element: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let max = self.left() / element_bytes_min;
        if count > max {
            return Err(DecodeError::Count { field, offset, count, left: self.left(), max });
        }
        let mut elements = Vec::with_capacity(count);
        for _ in 0..count {
            elements.push(element(self)?);
        }
        Ok(elements)
    }

    pub(super) fn client(&mut self, field: &'static str) -> Result<ClientId, DecodeError> {
        self.u64(field).map(ClientId)
    }

    /// The id of a request, an account or a message.
    pub(super) fn id(&mut self, field: &'static str) -> Result<RequestId, DecodeError> {
        let bytes = self.take(field, ID_BYTES)?;
        Ok(RequestId {
            client: ClientId(BigEndian::read_u64(bytes)),
            number: RequestNumber(BigEndian::read_u64(&bytes[8..])),
        })
    }

    pub(super) fn message_ids(&mut self, field: &'static str) -> Result<Vec<MessageId>, DecodeError> {
        self.list(field, ID_BYTES, |reader| reader.id(field).map(MessageId))
    }

    pub(super) fn strings(&mut self, field: &'static str) -> Result<Vec<String>, DecodeError> {
        self.list(field, 2, |reader| reader.string(field))
    }

    pub(super) fn server(&mut self, field: &'static str) -> Result<ServerId, DecodeError> {
        self.u8(field).map(ServerId)
    }

    pub(super) fn index(&mut self, field: &'static str) -> Result<LogIndex, DecodeError> {
        self.u64(field).map(LogIndex)
    }

    pub(super) fn view(&mut self, field: &'static str) -> Result<ViewNumber, DecodeError> {
        let bytes = self.take(field, VIEW_BYTES)?;
        Ok(ViewNumber { counter: BigEndian::read_u32(bytes), proposer: ServerId(bytes[4]) })
    }

    /// Checks that nothing is left.
    pub(super) fn finish(self) -> Result<(), DecodeError> {
        match self.left() {
            0 => Ok(()),
            count => Err(DecodeError::Trailing { offset: self.offset(), count }),
        }
    }
}

/// An id: a client id and a number, eight bytes each.
pub(super) const ID_BYTES: usize = 16;
/// A view number: a counter in four bytes and the proposer in one.
pub(super) const VIEW_BYTES: usize = 5;

/// Appends a string. What two bytes can't count is cut off: the limits of every field are far lower, so the receiver
/// refuses the rest just as it would have refused the whole.
pub(super) fn put_string(out: &mut BytesMut, text: &str) {
    let text = &text[..text.floor_char_boundary(usize::from(u16::MAX))];
    out.put_u16(u16::try_from(text.len()).expect("cut to fit"));
    out.extend_from_slice(text.as_bytes());
}

/// Appends bytes with their length in front.
pub(super) fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32(u32::try_from(bytes.len()).expect("a field is shorter than 4 GiB"));
    out.extend_from_slice(bytes);
}

/// Appends a list, cut like a string if two bytes can't count it.
pub(super) fn put_list<T>(out: &mut BytesMut, elements: &[T], mut put: impl FnMut(&mut BytesMut, &T)) {
    let count = u16::try_from(elements.len()).unwrap_or(u16::MAX);
    out.put_u16(count);
    for element in &elements[..usize::from(count)] {
        put(out, element);
    }
}

/// Appends a long list.
pub(super) fn put_long_list<T>(out: &mut BytesMut, elements: &[T], mut put: impl FnMut(&mut BytesMut, &T)) {
    out.put_u32(u32::try_from(elements.len()).expect("a list has fewer than 2^32 elements"));
    for element in elements {
        put(out, element);
    }
}

pub(super) fn put_id(out: &mut BytesMut, id: RequestId) {
    out.put_u64(id.client.0);
    out.put_u64(id.number.0);
}

pub(super) fn put_message_ids(out: &mut BytesMut, ids: &[MessageId]) {
    put_list(out, ids, |out, id| put_id(out, id.0));
}

pub(super) fn put_strings(out: &mut BytesMut, texts: &[String]) {
    put_list(out, texts, |out, text| put_string(out, text));
}

pub(super) fn put_view(out: &mut BytesMut, view: ViewNumber) {
    out.put_u32(view.counter);
    out.put_u8(view.proposer.0);
}
