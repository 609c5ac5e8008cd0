//! What could not be applied as it was when a split healed, told to those whom it concerns.

use crate::output::{Stop, harmless_line, harmless_text, rfc3339};
use lastword::chat::command::ConflictView;
use lastword::client::Client;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

/// How often somebody who stays is told of new conflicts.
const INTERVAL: Duration = Duration::from_secs(30);
/// How many conflicts are told unasked; who wants to know more asks.
const UNASKED_MAX: u16 = 10;

/// Prints all conflicts, or those that the user has not been told of; afterwards they have been.
pub(crate) async fn print(
    client: &mut Client,
    new: bool,
    json: bool,
    say: impl Fn(&str) -> Result<(), Stop>,
) -> Result<(), Stop> {
    let mut page = if new { client.new_conflicts(0).await? } else { client.conflicts(0, 0).await? };
    loop {
        let me = client.name().unwrap_or_default().to_owned();
        for conflict in &page.conflicts {
            say(&if json { conflict_json(conflict).to_string() } else { line(conflict, &me) })?;
        }
        let Some(last) = page.conflicts.last() else { return Ok(()) };
        client.note_told(last)?;
        if !page.more {
            return Ok(());
        }
        page = client.conflicts(last.cursor, 0).await?;
    }
}

/// When somebody who stays has to be told of new conflicts after the first time: every 30 s. A message that arrives
/// late shows that a split has healed: then it is reset, so that nobody wonders for so long.
pub(crate) fn rounds() -> Interval {
    let mut rounds = interval_at(Instant::now() + INTERVAL, INTERVAL);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    rounds
}

/// Tells of conflicts that the user has not been told of. Nobody has asked for it: if it fails it is tried again another
/// time.
pub(crate) async fn tell_new(client: &mut Client, tell: impl Fn(&str)) {
    let page = match client.new_conflicts(UNASKED_MAX).await {
        Ok(page) => page,
        Err(error) => return tracing::debug!("asking for conflicts: {error}"),
    };
    let Some(last) = page.conflicts.last() else { return };
    let me = client.name().unwrap_or_default();
    tell("* the servers had lost touch with each other, and these did not fit together:");
    page.conflicts.iter().for_each(|conflict| tell(&line(conflict, me)));
    if page.more {
        tell("* there are more: `client conflicts --new` prints them");
    }
    if let Err(error) = client.note_told(last) {
        tracing::debug!("remembering that conflicts were told: {error}");
    }
}

fn conflict_json(conflict: &ConflictView) -> Value {
    json!({
        "cursor": conflict.cursor,
        "request": conflict.request.to_string(),
        "time": rfc3339(conflict.unix_ms),
        "reason": conflict.reason,
        "command": conflict.command,
        "account": conflict.account,
        "other": conflict.other,
        "text": conflict.text,
    })
}

fn line(conflict: &ConflictView, me: &str) -> String {
    let time = rfc3339(conflict.unix_ms);
    format!("{} {}  {} {}", &time[..10], &time[11..19], conflict.request, sentence(conflict, me))
}

/// What has happened, in the words of who reads it.
fn sentence(conflict: &ConflictView, me: &str) -> String {
    let (account, other) = (harmless_line(&conflict.account), harmless_line(&conflict.other));
    let text = harmless_text(&conflict.text);
    match (conflict.reason.as_str(), conflict.command.as_str()) {
        ("renamed", _) if conflict.account.eq_ignore_ascii_case(me) => {
            format!(
                "your account is {account} now: another one was created as {other}, earlier, on the other side"
            )
        }
        ("renamed", _) => {
            format!("another account was created with your name, on the other side: it is {account} now")
        }
        ("no_such_recipient", _) => {
            format!("your message has no recipient: the account was deleted on the other side: {text}")
        }
        ("account_active", _) => {
            format!("{account} was not deleted after all: it was used on the other side")
        }
        ("password_changed", "change_password") => {
            "the new password was not taken over: it was changed on the other side too, and that one holds"
                .to_owned()
        }
        ("password_changed", "delete_account") => {
            format!("{account} was not deleted after all: its password was changed on the other side")
        }
        ("password_changed", _) => {
            "a login was not taken over: the password was changed on the other side".to_owned()
        }
        ("client_id_taken", _) => {
            "a login was not taken over: on the other side another account uses its client id".to_owned()
        }
        ("undecidable", "send") => format!(
            "a message from {account} to {other} may be missing, nobody can tell any more whether it was sent: {text}"
        ),
        ("refused", "send") => format!(
            "a message from {account} to {other} was not delivered: one side refused it, the other may have taken it: {text}"
        ),
        (reason, command) => {
            let command = harmless_line(command).replace('_', " ");
            let reason = harmless_line(reason).replace('_', " ");
            let of = if text.is_empty() { String::new() } else { format!(": {text}") };
            format!("{account}'s {command} was not taken over ({reason}){of}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lastword::types::{ClientId, RequestId, RequestNumber};

    fn conflict(reason: &str, command: &str) -> ConflictView {
        ConflictView {
            cursor: 42,
            request: RequestId { client: ClientId(0xfeed), number: RequestNumber(7) },
            unix_ms: 1_795_216_261_042,
            reason: reason.into(),
            command: command.into(),
            account: "Alice~2".into(),
            other: "alice".into(),
            text: "a\u{1b}[31mb".into(),
        }
    }

    #[test]
    fn a_renamed_account_and_the_one_with_its_name_are_told_differently() {
        let renamed = conflict("renamed", "register");
        assert!(sentence(&renamed, "alice~2").starts_with("your account is Alice~2 now"));
        assert!(sentence(&renamed, "alice").ends_with("it is Alice~2 now"));
    }

    #[test]
    fn every_conflict_is_one_harmless_line_that_says_when_and_which() {
        for reason in ["undecidable", "refused", "no_such_recipient", "no_such_account", "a\u{1b}new one"] {
            for command in ["send", "acknowledge", "change_password"] {
                let line = line(&conflict(reason, command), "alice");
                assert!(line.starts_with("2026-11-20 23:11:01  000000000000feed-7 "), "{line}");
                assert!(!line.contains('\u{1b}') && !line.contains('\n'), "{line:?}");
            }
        }
        assert!(line(&conflict("undecidable", "send"), "alice").ends_with("a␛[31mb"));
    }
}
