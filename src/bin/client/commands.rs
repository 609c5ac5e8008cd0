//! The commands for scripts and single uses: one function each.

use crate::arguments::{Arguments, Command};
use crate::conflicts;
use crate::output::{
    Stop, harmless_line, message_json, message_line, rfc3339, say, status_json, status_table, talk,
};
use crate::password::given_or_typed;
use lastword::chat::command::MessageView;
use lastword::client::{
    ACKNOWLEDGE_WITHIN, Client, Done, LoggedIn, Password, STATUS_TIMEOUT, Sent, status_of_all,
};
use lastword::config::{PAGE_MAX, TEXT_BYTES_MAX};
use lastword::message::Status;
use lastword::types::MessageId;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use serde_json::json;
use std::collections::HashSet;
use std::io::Read as _;
use tokio::time::{Instant, sleep_until};

/// How many messages `listen` prints before it acknowledges them together.
const ACKNOWLEDGE_TOGETHER_MAX: usize = 500;

/// Carries out one command.
pub(crate) async fn run(client: &mut Client, arguments: &Arguments, command: &Command) -> Result<(), Stop> {
    let json = arguments.json;
    match command {
        Command::Register { name } => {
            let password = password(arguments, "password", true)?;
            on_login(&client.register(name, &password).await?, "registered and logged in", json)
        }
        Command::Login { name } => {
            let password = password(arguments, "password", false)?;
            on_login(&client.login(name, &password).await?, "logged in", json)?;
            tell_conflicts_unless(json, client).await;
            Ok(())
        }
        Command::Logout { all } => {
            client.logout(*all).await?;
            talk_unless(json, "logged out");
            Ok(())
        }
        Command::Passwd { new_password_file } => {
            client.ensure_session().await?;
            let old = password(arguments, "password", false)?;
            let file = new_password_file.as_deref();
            let new = given_or_typed(file, "LASTWORD_NEW_PASSWORD", "new password", true)?;
            client.change_password(&old, &new).await?;
            talk_unless(json, "password changed");
            Ok(())
        }
        Command::List { glob } => list(client, glob, json).await,
        Command::Send { to, text, .. } => {
            let text = match text {
                Some(text) => text.clone(),
                None => read_stdin()?,
            };
            send(client, to, &text, json).await
        }
        Command::Read { count, peek } => {
            read(client, *count, *peek, json).await?;
            tell_conflicts_unless(json, client).await;
            Ok(())
        }
        Command::History { with, before, limit } => history(client, with, *before, *limit, json).await,
        Command::Conflicts { new } => conflicts::print(client, *new, json, say).await,
        Command::Delete { ids } => delete(client, ids, json).await,
        Command::DeleteAccount => {
            client.ensure_session().await?;
            let password = password(arguments, "password", false)?;
            client.delete_account(&password).await?;
            talk_unless(json, "account deleted");
            Ok(())
        }
        Command::Listen => listen(client, json).await,
        Command::Status => status(client.servers(), json).await,
        Command::Bench(_) => unreachable!("a bench has accounts of its own: main runs it"),
    }
}

fn password(arguments: &Arguments, what: &str, new: bool) -> Result<Password, Stop> {
    given_or_typed(arguments.password_file.as_deref(), "LASTWORD_PASSWORD", what, new)
}

fn talk_unless(json: bool, line: &str) {
    if !json {
        talk(line);
    }
}

/// A program asks by itself.
async fn tell_conflicts_unless(json: bool, client: &mut Client) {
    if !json {
        conflicts::tell_new(client, talk).await;
    }
}

fn on_login(login: &LoggedIn, what: &str, json: bool) -> Result<(), Stop> {
    if json {
        return say(&json!({ "name": login.name, "waiting": login.waiting }).to_string());
    }
    let waiting = match login.waiting {
        0 => String::new(),
        1 => ", 1 message waits".to_owned(),
        n => format!(", {n} messages wait"),
    };
    talk(&format!("{what} as {}{waiting}", harmless_line(&login.name)));
    Ok(())
}

async fn list(client: &mut Client, glob: &str, json: bool) -> Result<(), Stop> {
    let mut after = String::new();
    loop {
        let page = client.list(glob, &after, PAGE_LIMIT).await?;
        for name in &page.names {
            say(&if json { json!({ "name": name }).to_string() } else { harmless_line(name) })?;
        }
        match page.next {
            Some(next) => after = next,
            None => return Ok(()),
        }
    }
}

/// A whole page.
#[allow(clippy::cast_possible_truncation)]
const PAGE_LIMIT: u16 = PAGE_MAX as u16;
const _: () = assert!(PAGE_MAX <= u16::MAX as usize);

fn read_stdin() -> Result<String, Stop> {
    let mut bytes = Vec::new();
    // One byte more than allowed is read, so that the server's limit is not met by cutting silently.
    let limit = u64::try_from(TEXT_BYTES_MAX + 2).unwrap_or(u64::MAX);
    std::io::stdin()
        .lock()
        .take(limit)
        .read_to_end(&mut bytes)
        .map_err(|error| Stop::Local(format!("standard input: {error}")))?;
    let mut text = String::from_utf8(bytes).map_err(|error| {
        Stop::Usage(format!(
            "standard input: found bytes that are not UTF-8 at offset {}, or more than {TEXT_BYTES_MAX} bytes",
            error.utf8_error().valid_up_to()
        ))
    })?;
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}

async fn send(client: &mut Client, to: &str, text: &str, json: bool) -> Result<(), Stop> {
    let Done { value: Sent { message, unix_ms }, copies, configured } = client.send(to, text).await?;
    let (id, time) = (message.to_string(), rfc3339(unix_ms));
    if json {
        return say(&json!({ "id": id, "to": to, "time": time, "copies": copies }).to_string());
    }
    say(&id)?;
    talk(&format!("sent to {}, copies {copies}/{configured}", harmless_line(to)));
    Ok(())
}

/// Prints one message.
fn print(message: &MessageView, json: bool) -> Result<(), Stop> {
    say(&if json { message_json(message).to_string() } else { message_line(message) })
}

/// Prints waiting messages page by page, and acknowledges each page once it is out.
async fn read(client: &mut Client, count: Option<u64>, peek: bool, json: bool) -> Result<(), Stop> {
    let mut left = count.unwrap_or(u64::MAX);
    let mut after = 0;
    // R9: the pages may come from servers whose logs were in different orders.
    let mut seen = HashSet::new();
    while left > 0 {
        let limit = u16::try_from(left.min(u64::from(PAGE_LIMIT))).expect("a page is shorter");
        let page = client.read(after, limit).await?;
        let mut printed = Vec::with_capacity(page.messages.len());
        let mut new = page.messages.iter().filter(|message| seen.insert(message.id));
        let result: Result<(), Stop> = new.try_for_each(|message| {
            print(message, json)?;
            printed.push(message.id);
            Ok(())
        });
        if !peek && !printed.is_empty() {
            client.acknowledge(&printed).await?;
        }
        result?;
        left = left.saturating_sub(u64::try_from(printed.len()).unwrap_or(u64::MAX));
        match page.messages.last() {
            Some(last) if page.more => after = last.cursor,
            _ => return Ok(()),
        }
    }
    Ok(())
}

async fn history(client: &mut Client, with: &str, before: u64, limit: u16, json: bool) -> Result<(), Stop> {
    let page = client.history(with, before, limit).await?;
    page.messages.iter().try_for_each(|message| print(message, json))?;
    if let Some(first) = page.messages.first().filter(|_| page.more) {
        talk_unless(json, &format!("there are earlier ones: --before {}", first.cursor));
    }
    Ok(())
}

async fn delete(client: &mut Client, ids: &[MessageId], json: bool) -> Result<(), Stop> {
    let mut count = 0;
    for part in ids.chunks(lastword::config::IDS_PER_REQUEST_MAX) {
        count += client.delete(part).await?.value;
    }
    if json {
        return say(&json!({ "deleted": count }).to_string());
    }
    talk(&format!("deleted {count} of {}", ids.len()));
    Ok(())
}

/// Prints messages until there is a reason to end. The time limit holds for the first connection; afterwards only
/// Ctrl-C or a closed standard output ends the waiting.
async fn listen(client: &mut Client, json: bool) -> Result<(), Stop> {
    tokio::select! {
        result = listen_on(client, json) => result,
        () = reader_gone() => Err(Stop::NobodyReads),
    }
}

/// Waits until nobody reads standard output any more; for ever if it is a file.
async fn reader_gone() {
    let (gone, wait) = tokio::sync::oneshot::channel();
    // A thread of its own, since it has nothing to wait for but the end: the program's exit takes it along.
    std::thread::spawn(move || {
        let stdout = std::io::stdout();
        // Without any event asked for, only an error or a hang-up is reported.
        while poll(&mut [PollFd::new(&stdout, PollFlags::empty())], None).is_err_and(|e| e == Errno::INTR) {}
        // Nobody waits any more if the listening has ended otherwise.
        let _ = gone.send(());
    });
    if wait.await.is_err() {
        std::future::pending().await
    }
}

async fn listen_on(client: &mut Client, json: bool) -> Result<(), Stop> {
    client.ensure_session().await?;
    client.read(0, 1).await?;
    tell_conflicts_unless(json, client).await;
    let mut conflict_rounds = conflicts::rounds();
    client.set_timeout(None);
    loop {
        let mut printed = Vec::new();
        let mut acknowledge_at = Instant::now();
        loop {
            let message = tokio::select! {
                message = client.next_message() => message?,
                () = sleep_until(acknowledge_at), if !printed.is_empty() => break,
                _ = conflict_rounds.tick(), if printed.is_empty() => {
                    tell_conflicts_unless(json, client).await;
                    continue;
                }
            };
            if message.late {
                conflict_rounds.reset_immediately();
            }
            if let Err(stop) = print(&message, json) {
                client.acknowledge(&printed).await?;
                return Err(stop);
            }
            if printed.is_empty() {
                acknowledge_at = Instant::now() + ACKNOWLEDGE_WITHIN;
            }
            printed.push(message.id);
            if printed.len() >= ACKNOWLEDGE_TOGETHER_MAX {
                break;
            }
        }
        client.acknowledge(&printed).await?;
    }
}

/// Asks every server, also those that only the servers know of.
pub(crate) async fn ask_all(servers: &[String]) -> Vec<(String, Result<Status, String>)> {
    let answers = status_of_all(servers, STATUS_TIMEOUT).await;
    let mut known: Vec<String> = servers.to_vec();
    let mut others: Vec<String> = Vec::new();
    for status in answers.iter().flatten() {
        known.push(status.server.clone());
        others.extend(status.configured.iter().cloned());
    }
    others.retain(|server| !known.contains(server));
    others.sort();
    others.dedup();
    let more = status_of_all(&others, STATUS_TIMEOUT).await;
    servers.iter().cloned().chain(others).zip(answers.into_iter().chain(more)).collect()
}

/// What has to be said loudly: fewer servers hold the data than should.
pub(crate) fn warning(answers: &[(String, Result<Status, String>)]) -> Option<String> {
    let statuses = || answers.iter().filter_map(|(_, answer)| answer.as_ref().ok());
    let Some(newest) = statuses().max_by_key(|status| status.view) else {
        return Some("WARNING: no server answers".to_owned());
    };
    let (members, configured) = (newest.members.len(), newest.configured.len());
    if !statuses().any(|status| status.role == "primary") {
        return Some(format!("WARNING: no server leads; the last view known is {}", newest.view));
    }
    (members < configured).then(|| {
        format!("WARNING: only {members} of {configured} servers hold every message (view {})", newest.view)
    })
}

pub(crate) async fn status(servers: &[String], json: bool) -> Result<(), Stop> {
    let answers = ask_all(servers).await;
    if json {
        for (address, answer) in &answers {
            say(&status_json(address, answer.as_ref().ok()).to_string())?;
        }
    } else {
        say(&status_table(&answers))?;
    }
    if let Some(warning) = warning(&answers) {
        talk(&warning);
    }
    if answers.iter().any(|(_, answer)| answer.is_ok()) { Ok(()) } else { Err(no_server()) }
}

fn no_server() -> Stop {
    Stop::Client(lastword::client::ClientError::NoServer {
        timeout: STATUS_TIMEOUT,
        last: "all of them".to_owned(),
    })
}
