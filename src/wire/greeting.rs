//! The one readable line for whoever reached this port with something that is not a frame.

use byteorder::{BigEndian, ByteOrder};

use crate::config::FRAME_CLIENT_BYTES_MAX;

/// How a first line begins that is a request of HTTP.
const HTTP_METHODS: [&[u8]; 9] =
    [b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH ", b"CONNECT ", b"TRACE "];

/// What to say to a fresh connection whose first bytes can't be a frame, before closing it; none if they may become
/// one. Four bytes are enough to tell, since every length that is allowed begins with a zero byte.
#[must_use]
pub fn greeting(first: &[u8]) -> Option<String> {
    let seen = if HTTP_METHODS.iter().any(|method| begins_like(first, method)) {
        "an HTTP request".to_owned()
    } else if first.starts_with(&[0x16, 0x03]) {
        "a TLS hello; there is no TLS here".to_owned()
    } else if begins_like(first, b"SSH-") {
        "an SSH client".to_owned()
    } else {
        let length = first.get(..4).map(BigEndian::read_u32)?;
        let max = u32::try_from(FRAME_CLIENT_BYTES_MAX).unwrap_or(u32::MAX);
        if length <= max {
            return None;
        }
        if first.iter().all(|&byte| matches!(byte, b'\t' | b'\n' | b'\r' | b' '..=b'~')) {
            "a line of text".to_owned()
        } else {
            format!("a frame length of {length}, expected 5 to {max}")
        }
    };
    Some(format!("lastword: this port speaks lastword's binary protocol, see protocol.md; got {seen}\r\n"))
}

/// Whether `bytes` begin with `word`, or with as much of it as tells it from a frame.
fn begins_like(bytes: &[u8], word: &[u8]) -> bool {
    let length = bytes.len().min(word.len());
    length >= 4.min(word.len()) && bytes[..length] == word[..length]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::FRAME_PEER_BYTES_MAX;

    fn line(first: &[u8]) -> String {
        let line = greeting(first).expect("these bytes are no frame");
        assert!(line.starts_with("lastword: "), "{line:?}");
        assert!(line.is_ascii(), "{line:?}");
        assert!(line.ends_with("\r\n"), "{line:?}");
        assert_eq!(line.matches('\n').count(), 1, "{line:?}");
        line
    }

    #[test]
    fn whoever_speaks_another_protocol_is_told_so() {
        assert!(line(b"GET / HTTP/1.1\r\nHost: x\r\n").contains("an HTTP request"));
        assert!(line(b"POST").contains("an HTTP request"));
        assert!(line(&[0x16, 0x03, 0x01, 0x02, 0x00]).contains("a TLS hello"));
        assert!(line(b"SSH-2.0-OpenSSH_9.6\r\n").contains("an SSH client"));
        assert!(line(b"hello\n").contains("a line of text"));
        assert!(line(&[0xff; 9]).contains("4294967295"));
    }

    #[test]
    fn a_length_just_above_the_limit_is_no_frame_and_the_limit_itself_is_one() {
        let max = u32::try_from(FRAME_CLIENT_BYTES_MAX).unwrap();
        assert_eq!(greeting(&max.to_be_bytes()), None);
        assert!(line(&(max + 1).to_be_bytes()).contains("65537"));
        let peer = u32::try_from(FRAME_PEER_BYTES_MAX).unwrap();
        assert!(line(&peer.to_be_bytes()).contains("8388608"), "a first frame is never a proven peer's");
    }

    #[test]
    fn too_few_bytes_are_waited_for() {
        for first in [&b""[..], b"G", b"GE", &[0x16], &[0, 0], &[0, 0, 0]] {
            assert_eq!(greeting(first), None, "{first:?}");
        }
    }
}
