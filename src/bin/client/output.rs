//! What leaves the program: data on standard output, talk on standard error, nothing raw that others have written.

use lastword::chat::command::MessageView;
use lastword::client::{ClientError, Notice};
use lastword::message::Status;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant, SystemTime};

/// Why the program ends without having done everything it was asked.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The client library says so.
    Client(ClientError),
    /// The command line, the environment or the configuration makes no sense.
    Usage(String),
    /// A local file or stream fails.
    Local(String),
    /// Nobody reads standard output any more: nothing is wrong.
    NobodyReads,
    /// Ctrl-C.
    Interrupted,
}

impl Stop {
    /// The exit codes of features.md.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Client(error) => error.exit_code(),
            Self::Usage(_) => 2,
            Self::Local(_) => 1,
            Self::NobodyReads => 0,
            Self::Interrupted => 130,
        }
    }

    /// Says on standard error what happened, if there is something to say.
    pub(crate) fn report(&self, json: bool) {
        let (text, code) = match self {
            Self::Client(error) => (error.to_string(), error.keyword()),
            Self::Usage(text) => (text.clone(), "usage"),
            Self::Local(text) => (text.clone(), "local"),
            Self::NobodyReads | Self::Interrupted => return,
        };
        if json {
            talk(&json!({ "error": text, "code": code }).to_string());
        } else {
            talk(&format!("client: {}", harmless_line(&text)));
        }
    }
}

impl From<ClientError> for Stop {
    fn from(error: ClientError) -> Self {
        Self::Client(error)
    }
}

/// Writes one line of talk to standard error; nothing can be done if that fails.
pub(crate) fn talk(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Writes one line of data to standard output, at once.
pub(crate) fn say(line: &str) -> Result<(), Stop> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{line}").and_then(|()| stdout.flush()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Stop::NobodyReads,
        _ => Stop::Local(format!("standard output: {error}")),
    })
}

/// A message as one JSON object.
pub(crate) fn message_json(message: &MessageView) -> Value {
    json!({
        "id": message.id.to_string(),
        "from": message.from,
        "to": message.to,
        "time": rfc3339(message.unix_ms),
        "text": message.text,
        "delivered": message.delivered,
        "late": message.late,
        "cursor": message.cursor,
    })
}

/// A message for a person: the id is there so that it can be deleted.
pub(crate) fn message_line(message: &MessageView) -> String {
    let time = rfc3339(message.unix_ms);
    format!(
        "{} {}  {} {} -> {}{}: {}",
        &time[..10],
        &time[11..19],
        message.id,
        harmless_line(&message.from),
        harmless_line(&message.to),
        late_mark(message),
        harmless_text(&message.text)
    )
}

/// R10: marks a message that comes from the other side of a split: it stands later than its time says.
pub(crate) fn late_mark(message: &MessageView) -> &'static str {
    if message.late { " (late)" } else { "" }
}

/// Text of several lines, made harmless; later lines are indented, so that none can pass for a line of ours.
pub(crate) fn harmless_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\n    "),
            '\t' => out.push('\t'),
            c => push_harmless(&mut out, c),
        }
    }
    out
}

/// Text on one line, made harmless: a name, an error.
pub(crate) fn harmless_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    text.chars().for_each(|c| push_harmless(&mut out, c));
    out
}

/// Control characters become the pictures Unicode has for them; what is invisible or turns the reading direction
/// is shown by its number.
fn push_harmless(out: &mut String, c: char) {
    let code = u32::from(c);
    match c {
        '\u{00}'..='\u{1f}' => {
            out.push(char::from_u32(0x2400 + code).expect("pictures of all of them exist"))
        }
        '\u{7f}' => out.push('\u{2421}'),
        c if is_invisible(c) => {
            let _ = write!(out, "<U+{code:04X}>");
        }
        c => out.push(c),
    }
}

fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{80}'..='\u{9f}' // C1 controls
        | '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
        | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' // zero width, left-to-right and right-to-left marks
        | '\u{2028}'..='\u{202e}' // separators, embeddings and overrides
        | '\u{2060}'..='\u{206f}' // joiners and isolates
        | '\u{3164}' | '\u{feff}' | '\u{ffa0}'
        | '\u{fff0}'..='\u{fffb}'
        | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e0fff}' // tags
    )
}

/// A moment as RFC 3339 in UTC with milliseconds. The year has four digits up to 9999.
pub(crate) fn rfc3339(unix_ms: u64) -> String {
    let (seconds, millis) = (unix_ms / 1000, unix_ms % 1000);
    let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// The date so many days after 1970-01-01, in the Gregorian calendar.
fn date(days: u64) -> (u64, u64, u64) {
    // Count from 1600-03-01, so that the leap day is the last day of a year and 400 years repeat exactly.
    const DAYS_1600_03_01_TO_1970: u64 = 135_080;
    const DAYS_400_YEARS: u64 = 146_097;
    let days = days + DAYS_1600_03_01_TO_1970;
    let (era, day) = (days / DAYS_400_YEARS, days % DAYS_400_YEARS);
    let century = (day / 36_524).min(3);
    let day = day - century * 36_524;
    let four = day / 1461;
    let day = day - four * 1461;
    let year = (day / 365).min(3);
    let day = day - year * 365;
    // Months from March: 31 30 31 30 31 | 31 30 31 30 31 | 31 …, five months are always 153 days.
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let year = 1600 + era * 400 + century * 100 + four * 4 + year;
    if month < 10 { (year, month + 3, day_of_month) } else { (year + 1, month - 9, day_of_month) }
}

/// A server's state as one JSON object; of a server that does not answer only what is known.
pub(crate) fn status_json(address: &str, status: Option<&Status>) -> Value {
    let Some(status) = status else {
        return json!({
            "server": address, "role": "unreachable", "view": null, "commit": null, "synced": null,
            "members": [], "reachable": false, "last": null, "lag": null, "since": null,
        });
    };
    json!({
        "server": status.server,
        "role": status.role,
        "view": status.view.to_string(),
        "commit": status.commit,
        "synced": status.synced,
        "members": status.members,
        "reachable": true,
        "last": status.last,
        "lag": status.lag,
        "since": rfc3339(unix_ms_now().saturating_sub(status.since_ms)),
        "note": status.note,
    })
}

/// The servers' states as a table for people.
pub(crate) fn status_table(answers: &[(String, Result<Status, String>)]) -> String {
    let colour = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let width = answers.iter().map(|(address, _)| address.len()).max().unwrap_or(0).max(6);
    let mut table = format!(
        "{:width$}  {:11}  {:>6}  {:>9}  {:>9}  {:>9}  {:>6}  {:>7}",
        "server", "role", "view", "last", "synced", "commit", "lag", "since"
    );
    for (address, answer) in answers {
        table.push('\n');
        let (role, numbers, note) = match answer {
            Ok(s) => {
                let since = short_duration(Duration::from_millis(s.since_ms));
                let view = s.view.to_string();
                let numbers = format!(
                    "  {view:>6}  {:>9}  {:>9}  {:>9}  {:>6}  {since:>7}",
                    s.last, s.synced, s.commit, s.lag
                );
                (harmless_line(&s.role), numbers, harmless_line(&s.note))
            }
            Err(reason) => ("unreachable".to_owned(), String::new(), harmless_line(reason)),
        };
        let (on, off) = match (colour, role.as_str()) {
            (true, "primary") => ("\x1b[32m", "\x1b[0m"),
            (true, "backup") | (false, _) => ("", ""),
            (true, _) => ("\x1b[31m", "\x1b[0m"),
        };
        let _ = write!(table, "{:width$}  {on}{role:11}{off}{numbers}", harmless_line(address));
        if !note.is_empty() {
            let _ = write!(table, "  {note}");
        }
    }
    table
}

fn short_duration(duration: Duration) -> String {
    match duration.as_secs() {
        s @ 0..60 => format!("{s}s"),
        s @ 60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        s @ 3600..86_400 => format!("{}h{:02}m", s / 3600, s / 60 % 60),
        s => format!("{}d{:02}h", s / 86_400, s / 3600 % 24),
    }
}

fn unix_ms_now() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Makes lines for a waiting person out of notices: none for a failover that is over at once, and not a storm.
#[derive(Default)]
pub(crate) struct Banner {
    troubled_since: Option<Instant>,
    shown_at: Option<Instant>,
}

impl Banner {
    const PATIENCE: Duration = Duration::from_millis(300);
    const PAUSE: Duration = Duration::from_secs(2);

    /// The line to show, if one is due.
    pub(crate) fn on_notice(&mut self, now: Instant, notice: &Notice) -> Option<String> {
        match notice {
            Notice::Connected { server } => {
                self.troubled_since = None;
                self.shown_at.take().map(|_| format!("connected to {}", harmless_line(server)))
            }
            Notice::Retrying { wait, reason } => {
                let since = *self.troubled_since.get_or_insert(now);
                let recent = self.shown_at.is_some_and(|shown| now.duration_since(shown) < Self::PAUSE);
                if now.duration_since(since) < Self::PATIENCE || recent {
                    return None;
                }
                self.shown_at = Some(now);
                let wait = wait.as_secs_f64();
                Some(format!("no server answers; retrying in {wait:.1} s ({})", harmless_line(reason)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_and_direction_overrides_are_shown_as_symbols() {
        assert_eq!(harmless_line("a\x1b[31mb"), "a␛[31mb");
        assert_eq!(harmless_line("x\u{202e}y\u{200b}z"), "x<U+202E>y<U+200B>z");
        assert_eq!(harmless_line("\u{9b}31m\x7f\n\t"), "<U+009B>31m␡␊␉");
        assert_eq!(harmless_line("plain, ümläut, 日本, 😀"), "plain, ümläut, 日本, 😀");
    }

    #[test]
    fn no_line_of_a_text_can_pass_for_another_message() {
        assert_eq!(harmless_text("one\ntwo\tx\r"), "one\n    two\tx␍");
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(951_782_399_999), "2000-02-28T23:59:59.999Z");
        assert_eq!(rfc3339(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(rfc3339(951_868_800_000), "2000-03-01T00:00:00.000Z");
        assert_eq!(rfc3339(1_795_216_261_042), "2026-11-20T23:11:01.042Z");
        assert_eq!(rfc3339(4_107_542_400_000), "2100-03-01T00:00:00.000Z");
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut before = date(0);
        for day in 1..100_000 {
            let today = date(day);
            let next_day = today == (before.0, before.1, before.2 + 1);
            let next_month = today == (before.0, before.1 + 1, 1) && before.2 >= 28;
            let next_year = today == (before.0 + 1, 1, 1) && (before.1, before.2) == (12, 31);
            assert!(next_day || next_month || next_year, "{before:?} {today:?}");
            before = today;
        }
        assert_eq!(date(99_999), (2243, 10, 16));
    }

    #[test]
    fn a_banner_waits_a_little_and_does_not_repeat_itself_at_once() {
        let mut banner = Banner::default();
        let start = Instant::now();
        let retrying = Notice::Retrying { wait: Duration::from_millis(400), reason: "x".into() };
        let connected = Notice::Connected { server: "s".into() };
        assert_eq!(banner.on_notice(start, &retrying), None);
        assert_eq!(banner.on_notice(start, &connected), None, "nobody has noticed");
        banner.on_notice(start, &retrying);
        let later = start + Duration::from_millis(500);
        let line = banner.on_notice(later, &retrying).unwrap();
        assert!(line.starts_with("no server answers; retrying in 0.4 s"), "{line}");
        assert_eq!(banner.on_notice(later, &retrying), None);
        assert_eq!(banner.on_notice(later, &connected).unwrap(), "connected to s");
    }
}
