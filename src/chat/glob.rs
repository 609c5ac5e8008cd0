//! Patterns for names: `*` stands for any run of characters, `?` for one; case does not matter.

use crate::config::NAME_BYTES_MAX;

/// A pattern, in lower case, with each run of `*` shortened to one.
#[derive(Debug)]
pub(super) struct Glob {
    pattern: Vec<u8>,
    prefix: usize,
    /// Whether it asks for more characters than any name has.
    too_long: bool,
}

impl Glob {
    /// Reads a pattern; an empty one fits every name.
    pub(super) fn new(pattern: &str) -> Self {
        let pattern = if pattern.is_empty() { "*" } else { pattern };
        let mut bytes = pattern.to_ascii_lowercase().into_bytes();
        bytes.dedup_by(|next, previous| *next == b'*' && *previous == b'*');
        let prefix = bytes.iter().position(|b| matches!(b, b'*' | b'?')).unwrap_or(bytes.len());
        let too_long = bytes.iter().filter(|b| **b != b'*').count() > NAME_BYTES_MAX;
        Self { pattern: bytes, prefix, too_long }
    }

    /// What every name that fits begins with; none if no name can fit.
    pub(super) fn prefix(&self) -> Option<&str> {
        if self.too_long {
            return None;
        }
        Some(std::str::from_utf8(&self.pattern[..self.prefix]).expect("cut before an ASCII character"))
    }

    /// Whether a name in lower case fits. Names are ASCII: one byte is one character.
    pub(super) fn fits(&self, name: &str) -> bool {
        let (pattern, name) = (&self.pattern, name.as_bytes());
        let (mut p, mut n) = (0, 0);
        // Where to go on when a later character does not fit: after the last star, one more character of the name.
        let mut retry: Option<(usize, usize)> = None;
        while n < name.len() {
            match pattern.get(p) {
                Some(b'*') => {
                    retry = Some((p + 1, n));
                    p += 1;
                }
                Some(&expected) if expected == b'?' || expected == name[n] => {
                    p += 1;
                    n += 1;
                }
                _ => {
                    let Some((after_star, from)) = retry else { return false };
                    retry = Some((after_star, from + 1));
                    (p, n) = (after_star, from + 1);
                }
            }
        }
        pattern[p..].iter().all(|b| *b == b'*')
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The plainest matcher there is.
    fn fits_by_recursion(pattern: &[u8], name: &[u8]) -> bool {
        match (pattern.first(), name.first()) {
            (None, None) => true,
            (Some(b'*'), _) => {
                fits_by_recursion(&pattern[1..], name)
                    || (!name.is_empty() && fits_by_recursion(pattern, &name[1..]))
            }
            (Some(b'?'), Some(_)) => fits_by_recursion(&pattern[1..], &name[1..]),
            (Some(a), Some(b)) if a == b => fits_by_recursion(&pattern[1..], &name[1..]),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn it_agrees_with_the_plainest_matcher(pattern in "[ab*?]{1,10}", name in "[ab]{0,10}") {
            let expected = fits_by_recursion(pattern.as_bytes(), name.as_bytes());
            prop_assert_eq!(Glob::new(&pattern).fits(&name), expected);
        }
    }

    #[test]
    fn the_prefix_ends_before_the_first_wildcard_and_is_in_lower_case() {
        assert_eq!(Glob::new("Al*ce").prefix(), Some("al"));
        assert_eq!(Glob::new("?x").prefix(), Some(""));
        assert_eq!(Glob::new("").prefix(), Some(""));
        assert_eq!(Glob::new("é*").prefix(), Some("é"));
    }

    #[test]
    fn a_pattern_longer_than_any_name_is_known_to_fit_none() {
        assert_eq!(Glob::new(&"?".repeat(33)).prefix(), None);
        assert_eq!(Glob::new(&"*".repeat(60_000)).prefix(), Some(""));
    }
}
