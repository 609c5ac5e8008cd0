//! What a name, a password and a text may be. Checked by the primary before an entry exists.

use crate::config::{NAME_BYTES_MAX, PASSWORD_BYTES_MAX, PASSWORD_BYTES_MIN, TEXT_BYTES_MAX};

/// Checks the name of an account to be: 1 to 32 of `A-Z a-z 0-9 _ . -`.
///
/// # Errors
/// What was found and what was expected.
pub fn valid_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(format!("found a name of {} bytes, expected 1 to {NAME_BYTES_MAX}", name.len()));
    }
    match name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))) {
        Some(wrong) => Err(format!("found {wrong:?} in a name, expected only A-Z a-z 0-9 _ . -")),
        None => Ok(()),
    }
}

/// Whether an account can have this name: a valid one, or one that got a number behind `~` when two were the same (R6).
pub(super) fn valid_given_name(name: &str) -> bool {
    let (typed, number) = name.rsplit_once('~').unwrap_or((name, "2"));
    valid_name(typed).is_ok() && number.parse::<u64>().is_ok_and(|n| n >= 2 && n.to_string() == number)
}

/// Checks a password: 8 to 1,024 bytes of any UTF-8.
///
/// # Errors
/// What was found and what was expected; never the password.
pub fn valid_password(password: &str) -> Result<(), String> {
    if (PASSWORD_BYTES_MIN..=PASSWORD_BYTES_MAX).contains(&password.len()) {
        return Ok(());
    }
    Err(format!(
        "found a password of {} bytes, expected {PASSWORD_BYTES_MIN} to {PASSWORD_BYTES_MAX}",
        password.len()
    ))
}

/// Checks the text of a message: 1 to 8,192 bytes of UTF-8, newline and tab but no other control characters.
///
/// # Errors
/// What was found and what was expected.
pub fn valid_text(text: &str) -> Result<(), String> {
    if text.is_empty() || text.len() > TEXT_BYTES_MAX {
        return Err(format!("found a text of {} bytes, expected 1 to {TEXT_BYTES_MAX}", text.len()));
    }
    // Nearly all texts are plain, and bytes are looked at many at a time.
    if text.bytes().fold(true, |plain, byte| plain & matches!(byte, b' '..=b'~')) {
        return Ok(());
    }
    match text.chars().find(|c| c.is_control() && !matches!(c, '\n' | '\t')) {
        Some(wrong) => Err(format!(
            "found the control character U+{:04X} in a text, expected none but newline and tab",
            u32::from(wrong)
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_1_to_32_of_the_allowed_characters() {
        for good in ["a", "A-Z_a.z-09", &"x".repeat(32)] {
            assert_eq!(valid_name(good), Ok(()));
        }
        assert_eq!(valid_name("").unwrap_err(), "found a name of 0 bytes, expected 1 to 32");
        assert_eq!(valid_name(&"x".repeat(33)).unwrap_err(), "found a name of 33 bytes, expected 1 to 32");
        for bad in ["[deleted]", "a b", "é", "a\n", "a,b", "*"] {
            assert!(valid_name(bad).unwrap_err().contains("expected only"), "{bad}");
        }
    }

    #[test]
    fn passwords_are_8_to_1024_bytes_and_never_repeated_in_an_error() {
        assert_eq!(valid_password("12345678"), Ok(()));
        assert_eq!(valid_password(&"é".repeat(512)), Ok(()));
        assert_eq!(valid_password("geheim").unwrap_err(), "found a password of 6 bytes, expected 8 to 1024");
        assert!(valid_password(&"x".repeat(1025)).is_err());
    }

    #[test]
    fn texts_are_1_to_8192_bytes_without_control_characters_but_newline_and_tab() {
        assert_eq!(valid_text("a\n\tb 👋, \"c\""), Ok(()));
        assert_eq!(valid_text(&"x".repeat(8192)), Ok(()));
        assert!(valid_text("").is_err());
        assert!(valid_text(&"x".repeat(8193)).is_err());
        for bad in ["a\rb", "\0", "\u{1b}[31m", "\u{7f}", "\u{9b}"] {
            assert!(valid_text(bad).unwrap_err().contains("control character U+"), "{bad:?}");
        }
    }
}
