//! Ways to damage an input.

use lastword::prng::Prng;

/// Numbers at which lengths and counts change what they mean.
const NUMBERS: [u64; 16] = [
    0,
    1,
    4,
    5,
    9,
    0x7f,
    0x80,
    0xff,
    0x100,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    u64::MAX,
];

/// Words at which a row's decoder changes its mind.
const WORDS: [&[u8]; 14] = [
    b",",
    b"\"",
    b"\"\"",
    b"\n",
    b"\r",
    b"\\",
    b"\\n",
    b"'",
    b" ",
    b"@",
    b":",
    b"-1",
    b"18446744073709551616",
    b"\xff\xfe",
];

fn below(prng: &mut Prng, bound: usize) -> usize {
    usize::try_from(prng.below(bound as u64)).unwrap()
}

/// A stretch of up to 64 bytes.
fn stretch(prng: &mut Prng, bytes: &[u8]) -> std::ops::Range<usize> {
    let start = below(prng, bytes.len() + 1);
    start..(start + below(prng, 64)).min(bytes.len())
}

/// Damages `input` in one way; `other` is what may be spliced in.
pub(super) fn mutate(input: &mut Vec<u8>, other: &[u8], prng: &mut Prng) {
    if input.is_empty() {
        input.extend_from_slice(other);
        return;
    }
    let at = below(prng, input.len());
    match prng.below(10) {
        0 => input[at] ^= 1 << prng.below(8),
        1 => input[at] = prng.next_u64().to_le_bytes()[0],
        2 => input.truncate(at),
        3 => {
            let stretch = stretch(prng, other);
            input.splice(at..at, other[stretch].iter().copied());
        }
        4 => {
            let again = input[stretch(prng, input)].to_vec();
            input.splice(at..at, again);
        }
        5 => {
            input.drain(stretch(prng, input));
        }
        6 | 7 => {
            // A number of 1, 2, 4 or 8 bytes, now and then one more or less than it was.
            let width = 1 << prng.below(4);
            let end = (at + width).min(input.len());
            let mut number = NUMBERS[below(prng, NUMBERS.len())];
            if prng.chance(1, 3) {
                let old = input[at..end].iter().fold(0, |old: u64, &byte| (old << 8) | u64::from(byte));
                number = if prng.chance(1, 2) { old.wrapping_add(1) } else { old.wrapping_sub(1) };
            }
            let bytes = &number.to_be_bytes()[8 - (end - at)..];
            input[at..end].copy_from_slice(bytes);
        }
        8 => {
            let word = WORDS[below(prng, WORDS.len())];
            let end = if prng.chance(1, 2) { at } else { at + 1 };
            input.splice(at..end, word.iter().copied());
        }
        _ => {
            // The frame's own length set right again, so that the damage reaches what is behind it.
            if let Some(length) = input.len().checked_sub(4) {
                input[..4].copy_from_slice(&u32::try_from(length).unwrap().to_be_bytes());
            }
        }
    }
}
