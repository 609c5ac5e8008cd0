//! Where passwords come from: a file, the environment, or a prompt without echo. Never from arguments.

use crate::arguments::process_environment;
use crate::output::Stop;
use lastword::client::Password;
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::path::Path;

/// The longest password file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024;

/// A password that needs no one to type it.
pub(crate) fn given(file: Option<&Path>, variable: &str) -> Result<Option<Password>, Stop> {
    let Some(path) = file else { return Ok(process_environment(variable).map(Password::new)) };
    let failed = |error: io::Error| Stop::Local(format!("{}: {error}", path.display()));
    let mut text = String::new();
    File::open(path).and_then(|file| file.take(FILE_BYTES_MAX).read_to_string(&mut text)).map_err(failed)?;
    let line = text.lines().next().unwrap_or_default();
    Ok(Some(Password::new(line.to_owned())))
}

/// A password, typed if it isn't given otherwise; typed twice if it is a new one.
pub(crate) fn given_or_typed(
    file: Option<&Path>,
    variable: &str,
    what: &str,
    new: bool,
) -> Result<Password, Stop> {
    if let Some(password) = given(file, variable)? {
        return Ok(password);
    }
    if !io::stdin().is_terminal() {
        return Err(Stop::Usage(format!(
            "no {what}: give it in a file (see --help) or in {variable}, or run in a terminal to type it"
        )));
    }
    let typed = prompt(&format!("{what}: "))?;
    if new && prompt(&format!("{what}, once more: "))? != typed {
        return Err(Stop::Usage("the two passwords differ".to_owned()));
    }
    Ok(Password::new(typed))
}

/// Asks on the terminal, without echo.
fn prompt(question: &str) -> Result<String, Stop> {
    let failed = |error: io::Error| Stop::Local(format!("/dev/tty: {error}"));
    let terminal = OpenOptions::new().read(true).write(true).open("/dev/tty").map_err(failed)?;
    (&terminal).write_all(question.as_bytes()).map_err(failed)?;
    let quiet = Quiet::begin(&terminal).map_err(failed)?;
    let typed = read_line(&terminal);
    drop(quiet);
    let _ = (&terminal).write_all(b"\n");
    typed.map_err(failed)?.ok_or(Stop::Interrupted)
}

/// While this lives, the terminal echoes nothing, and passes Ctrl-C on as a byte: so nothing ends the program
/// before the terminal is as it was.
struct Quiet<'a> {
    terminal: &'a File,
    before: Termios,
}

impl<'a> Quiet<'a> {
    fn begin(terminal: &'a File) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
        quiet.special_codes[SpecialCodeIndex::VMIN] = 1;
        quiet.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(terminal, OptionalActions::Flush, &quiet)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        // The terminal may be gone; then there is nothing to put back.
        let _ = tcsetattr(self.terminal, OptionalActions::Now, &self.before);
    }
}

/// Reads a line byte by byte; none: interrupted.
fn read_line(mut input: impl io::Read) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        if input.read(&mut byte)? == 0 {
            break;
        }
        match byte[0] {
            b'\r' | b'\n' => break,
            0x03 => return Ok(None),
            0x04 if line.is_empty() => return Ok(None),
            0x15 => line.clear(),
            0x08 | 0x7f => {
                // One character, however many bytes it has.
                while line.pop().is_some_and(|last: u8| last & 0xc0 == 0x80) {}
            }
            byte => line.push(byte),
        }
    }
    String::from_utf8(line).map(Some).map_err(|_| {
        io::Error::new(io::ErrorKind::InvalidData, "found bytes that are not UTF-8 in a password")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typed_line_can_be_corrected_and_given_up() {
        let typed = |bytes: &[u8]| read_line(bytes).unwrap();
        assert_eq!(typed(b"secret\nrest").as_deref(), Some("secret"));
        assert_eq!(typed("aü\u{7f}b\r".as_bytes()).as_deref(), Some("ab"));
        assert_eq!(typed(b"wrong\x15right\n").as_deref(), Some("right"));
        assert_eq!(typed(b"half\x03"), None);
        assert_eq!(typed(b"\x04"), None);
        assert!(read_line(&b"\xff\n"[..]).is_err());
    }

    #[test]
    fn a_file_gives_its_first_line() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("password");
        std::fs::write(&path, "correct horse\nnot this\n").unwrap();
        assert!(given(Some(&path), "X").unwrap().is_some());
        assert!(matches!(given(Some(&directory.path().join("none")), "X"), Err(Stop::Local(_))));
    }
}
