//! The chat, line by line. Incoming messages never break the line being typed; without a terminal it reads plain
//! lines and prints no prompt.
//!
//! One future works off what the person asks, in order, each request until it is done: it owns the client. Beside
//! it lines are read and banners shown, so that typing goes on while no server answers.

use crate::arguments::Arguments;
use crate::commands::{ask_all, warning};
use crate::conflicts;
use crate::input::{Input, Lines, Printer};
use crate::output::{
    Banner, Stop, harmless_line, harmless_text, late_mark, message_json, message_line, status_table, talk,
};
use crate::password::given_or_typed;
use lastword::chat::command::MessageView;
use lastword::client::{Client, ClientError, Notice, looks_like_a_name};
use lastword::types::{MessageId, RequestId};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::pin::pin;
use std::rc::Rc;
use std::time::Instant;
use tokio::sync::mpsc;

/// Most lines that may wait for a server; typing then has to wait too.
const PENDING_MAX: usize = 1000;
/// How many messages `/history` shows unless told otherwise.
const HISTORY_DEFAULT: u16 = 20;

/// What `/help` says.
const HELP: &str = "\
TEXT                 send TEXT to the present correspondent
//TEXT               send /TEXT
/msg NAME [TEXT]     talk to NAME: shows what is unread from there, and sends TEXT
/read                show all unread messages
/history [NAME] [N]  show the last N messages exchanged with NAME
/list [GLOB]         list accounts; * and ? match
/delete ID…          delete messages, for both sides
/conflicts           print what did not fit together after the servers had lost touch
/who                 say who you are, whom you talk to, and what is unread
/status              say how the servers are
/quit                end (also Ctrl-D); lines that wait are sent first";

/// The words that begin a command, for Tab.
pub(crate) const COMMANDS: [&str; 10] =
    ["/conflicts", "/delete", "/help", "/history", "/list", "/msg", "/quit", "/read", "/status", "/who"];

/// What a typed line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Action {
    Nothing,
    Send(String),
    Talk { name: String, text: Option<String> },
    Read,
    History { name: Option<String>, limit: u16 },
    List(String),
    Delete(Vec<MessageId>),
    Conflicts,
    Who,
    Status,
    Help,
    Quit,
}

/// Reads a typed line.
fn parse(line: &str) -> Result<Action, String> {
    let Some(command) = line.strip_prefix('/') else {
        let empty = line.trim().is_empty();
        return Ok(if empty { Action::Nothing } else { Action::Send(line.to_owned()) });
    };
    if command.starts_with('/') {
        return Ok(Action::Send(command.to_owned()));
    }
    let (word, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
    let rest = rest.trim();
    let mut words = rest.split_whitespace();
    match word {
        "msg" => {
            let (name, text) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            looks_like_a_name(name)?;
            let text = Some(text.trim().to_owned()).filter(|text| !text.is_empty());
            Ok(Action::Talk { name: name.to_owned(), text })
        }
        "history" => {
            let (mut name, mut limit) = (None, HISTORY_DEFAULT);
            for word in words.by_ref() {
                match word.parse::<u16>() {
                    Ok(number) if (1..=500).contains(&number) => limit = number,
                    _ => {
                        looks_like_a_name(word)?;
                        name = Some(word.to_owned());
                    }
                }
            }
            Ok(Action::History { name, limit })
        }
        "list" => Ok(Action::List(rest.to_owned())),
        "delete" => {
            let ids: Result<Vec<_>, _> = words.map(|word| word.parse::<RequestId>().map(MessageId)).collect();
            match ids {
                Ok(ids) if !ids.is_empty() => Ok(Action::Delete(ids)),
                _ => Err("expected ids of the form CLIENT16HEX-NUMBER; /history shows them".to_owned()),
            }
        }
        "conflicts" => Ok(Action::Conflicts),
        "read" => Ok(Action::Read),
        "who" => Ok(Action::Who),
        "status" => Ok(Action::Status),
        "help" => Ok(Action::Help),
        "quit" => Ok(Action::Quit),
        _ => Err(format!("found /{}, expected a command: /help lists them", harmless_line(word))),
    }
}

/// What the one who types and the one who works both know.
#[derive(Default)]
pub(crate) struct Shared {
    /// Lines that were typed and not sent.
    pending: usize,
}

/// The chat's work: owns the client and what is unread.
struct Worker<'a> {
    client: &'a mut Client,
    printer: Printer,
    lines: Rc<Lines>,
    shared: Rc<RefCell<Shared>>,
    json: bool,
    correspondent: Option<String>,
    /// What came from others than the correspondent, by lower-case name; it waits on the servers too.
    unread: BTreeMap<String, Vec<MessageView>>,
    /// Shown, not yet acknowledged.
    shown: Vec<MessageId>,
}

/// Chats until the person has enough.
pub(crate) async fn run(
    client: &mut Client,
    notices: mpsc::Receiver<Notice>,
    arguments: &Arguments,
) -> Result<(), Stop> {
    let terminal = std::io::stdin().is_terminal();
    log_in(client, arguments, terminal).await?;
    let (lines, inputs, printer) = Lines::begin(terminal)?;
    let lines = Rc::new(lines);
    if terminal {
        // A person waits, and sees that they do; a script has its deadline.
        client.set_timeout(None);
        talk(&format!("you are {}; /help lists commands", harmless_line(client.name().unwrap_or("?"))));
    }
    let shared = Rc::new(RefCell::new(Shared::default()));
    let (actions_in, actions) = mpsc::channel(PENDING_MAX);
    let worker = Worker {
        client,
        printer: printer.clone(),
        lines: Rc::clone(&lines),
        shared: Rc::clone(&shared),
        json: arguments.json,
        correspondent: None,
        unread: BTreeMap::new(),
        shown: Vec::new(),
    };
    let reading = Reading { lines, shared, printer, terminal };
    reading.attend(worker.work(actions), inputs, notices, actions_in).await
}

/// Makes sure of a session; on a terminal the password may be typed.
async fn log_in(client: &mut Client, arguments: &Arguments, terminal: bool) -> Result<(), Stop> {
    match client.ensure_session().await {
        Err(ClientError::NotLoggedIn(_)) if terminal && client.user().is_some() => {
            let user = client.user().expect("just seen").to_owned();
            let what = format!("password of {user}");
            let file = arguments.password_file.as_deref();
            let password = given_or_typed(file, "LASTWORD_PASSWORD", &what, false)?;
            Ok(client.login(&user, &password).await.map(|_| ())?)
        }
        Err(ClientError::NotLoggedIn(text)) => Err(Stop::Client(ClientError::NotLoggedIn(format!(
            "{text}; begin with `client register NAME` or `client login NAME`"
        )))),
        result => Ok(result?),
    }
}

/// The side of the chat that reads lines.
struct Reading {
    lines: Rc<Lines>,
    shared: Rc<RefCell<Shared>>,
    printer: Printer,
    terminal: bool,
}

impl Reading {
    /// Attends to lines, banners and Ctrl-C while the worker works; ends with the worker.
    async fn attend(
        self,
        work: impl Future<Output = Result<(), Stop>>,
        mut inputs: mpsc::Receiver<Input>,
        mut notices: mpsc::Receiver<Notice>,
        actions: mpsc::Sender<Action>,
    ) -> Result<(), Stop> {
        let mut work = pin!(work);
        let mut banner = Banner::default();
        // Dropped when no more lines come: the worker ends when it has worked off what waits.
        let mut actions = Some(actions);
        loop {
            let room = actions.as_ref().is_some_and(|actions| actions.capacity() > 0);
            tokio::select! {
                result = &mut work => return result,
                input = inputs.recv(), if room => {
                    let goes_on = match (input, &actions) {
                        (Some(Input::Line(line)), Some(actions)) => self.on_line(&line, actions),
                        (Some(Input::Interrupted), _) => return Err(self.give_up()),
                        _ => false,
                    };
                    if goes_on {
                        self.lines.next();
                    } else {
                        actions = None;
                        self.tell_pending();
                    }
                }
                Some(notice) = notices.recv() => {
                    if let Some(line) = banner.on_notice(Instant::now(), &notice) {
                        self.printer.talk(&format!("* {line}"));
                    }
                }
                stop = crate::interrupted(), if !self.terminal || actions.is_none() => {
                    self.give_up();
                    return Err(stop);
                }
            }
        }
    }

    /// Hands a line to the worker; false: it was the last one.
    fn on_line(&self, line: &str, actions: &mpsc::Sender<Action>) -> bool {
        match parse(line) {
            Ok(Action::Quit) => return false,
            Ok(Action::Nothing) => {}
            Ok(Action::Help) => self.printer.talk(HELP),
            Ok(action) => {
                if let Action::Talk { name, .. } = &action {
                    self.lines.set_prompt(name);
                }
                let before = self.shared.borrow().pending;
                if before > 0 && self.terminal {
                    self.printer.talk(&format!("* waits behind {before} unsent"));
                }
                if actions.try_send(action).is_ok() {
                    self.shared.borrow_mut().pending += 1;
                }
            }
            Err(text) => self.printer.talk(&format!("* {text}")),
        }
        true
    }

    fn tell_pending(&self) {
        let pending = self.shared.borrow().pending;
        if pending > 0 && self.terminal {
            talk(&format!("* {pending} lines wait to be sent; Ctrl-C gives them up"));
        }
    }

    fn give_up(&self) -> Stop {
        let pending = self.shared.borrow().pending;
        if pending > 0 {
            talk(&format!("* {pending} lines were not carried out, or it is unknown whether the first was"));
        }
        Stop::Interrupted
    }
}

impl Worker<'_> {
    /// Works off what is asked and shows what comes in. Ends when nobody can ask any more, with the first failure
    /// if there was one.
    async fn work(mut self, mut actions: mpsc::Receiver<Action>) -> Result<(), Stop> {
        let mut first_failure = None;
        self.learn_names().await;
        if !self.json {
            conflicts::tell_new(self.client, |line| self.printer.talk(line)).await;
        }
        let mut conflict_rounds = conflicts::rounds();
        loop {
            tokio::select! {
                biased;
                _ = conflict_rounds.tick(), if !self.json => {
                    conflicts::tell_new(self.client, |line| self.printer.talk(line)).await;
                }
                action = actions.recv() => {
                    let Some(action) = action else { break };
                    let result = self.perform(action).await;
                    self.shared.borrow_mut().pending -= 1;
                    match result {
                        Ok(()) => {}
                        Err(Stop::Client(error)) if !ends_the_chat(&error) => {
                            self.printer.talk(&format!("* {}", harmless_line(&error.to_string())));
                            first_failure.get_or_insert(error);
                        }
                        Err(stop) => return Err(stop),
                    }
                }
                message = self.client.next_message() => {
                    let message = message?;
                    if message.late {
                        conflict_rounds.reset_immediately();
                    }
                    self.on_message(message).await?;
                }
            }
        }
        // On a terminal the person has seen each failure.
        match first_failure.filter(|_| !self.printer.is_terminal()) {
            Some(error) => Err(error.into()),
            None => Ok(()),
        }
    }

    async fn perform(&mut self, action: Action) -> Result<(), Stop> {
        match action {
            Action::Nothing | Action::Help | Action::Quit => Ok(()),
            Action::Send(text) => match self.correspondent.clone() {
                Some(to) => self.send(&to, &text).await,
                None => {
                    self.printer.talk("* nobody to send to: /msg NAME chooses");
                    Ok(())
                }
            },
            Action::Talk { name, text } => {
                self.correspondent = Some(name.clone());
                self.lines.learn_name(&name);
                let unread = self.unread.remove(&name.to_ascii_lowercase()).unwrap_or_default();
                self.show_all(unread).await?;
                match text {
                    Some(text) => self.send(&name, &text).await,
                    None => Ok(()),
                }
            }
            Action::Read => {
                let unread = std::mem::take(&mut self.unread);
                let mut messages: Vec<_> = unread.into_values().flatten().collect();
                messages.sort_by_key(|message| message.cursor);
                self.show_all(messages).await
            }
            Action::History { name, limit } => self.history(name, limit).await,
            Action::List(glob) => self.list(&glob).await,
            Action::Delete(ids) => {
                let count = self.client.delete(&ids).await?.value;
                self.printer.talk(&format!("* deleted {count} of {}", ids.len()));
                Ok(())
            }
            Action::Conflicts => {
                let printer = &self.printer;
                conflicts::print(self.client, false, self.json, |line| printer.say(line)).await
            }
            Action::Who => {
                self.who();
                Ok(())
            }
            Action::Status => {
                let answers = ask_all(self.client.servers()).await;
                self.printer.say(&status_table(&answers))?;
                if let Some(warning) = warning(&answers) {
                    self.printer.talk(&warning);
                }
                Ok(())
            }
        }
    }

    async fn send(&mut self, to: &str, text: &str) -> Result<(), Stop> {
        let done = self.client.send(to, text).await?;
        self.printer.talk(&format!("✓ {} copies {}/{}", harmless_line(to), done.copies, done.configured));
        Ok(())
    }

    async fn history(&mut self, name: Option<String>, limit: u16) -> Result<(), Stop> {
        let Some(name) = name.or_else(|| self.correspondent.clone()) else {
            self.printer.talk("* whose history? /history NAME, or choose somebody by /msg NAME");
            return Ok(());
        };
        let page = self.client.history(&name, 0, limit).await?;
        if page.messages.is_empty() {
            self.printer.talk(&format!("* nothing was exchanged with {}", harmless_line(&name)));
        }
        page.messages.iter().try_for_each(|message| self.printer.say(&self.format(message, true)))
    }

    async fn list(&mut self, glob: &str) -> Result<(), Stop> {
        let mut after = String::new();
        loop {
            let page = self.client.list(glob, &after, 0).await?;
            for name in &page.names {
                self.lines.learn_name(name);
                self.printer.say(&harmless_line(name))?;
            }
            match page.next {
                Some(next) => after = next,
                None => return Ok(()),
            }
        }
    }

    /// For Tab: the first page of names. If no server answers, Tab knows fewer names.
    async fn learn_names(&mut self) {
        if !self.printer.is_terminal() {
            return;
        }
        if let Ok(page) = self.client.list("", "", 500).await {
            page.names.iter().for_each(|name| self.lines.learn_name(name));
        }
    }

    fn who(&self) {
        let me = harmless_line(self.client.name().unwrap_or("?"));
        let partner = self.correspondent.as_deref().map_or("nobody".to_owned(), harmless_line);
        self.printer.talk(&format!("* you are {me}, talking to {partner}"));
        self.tell_unread();
    }

    /// Shows a message of the correspondent; keeps one of somebody else until it is asked for.
    async fn on_message(&mut self, message: MessageView) -> Result<(), Stop> {
        self.lines.learn_name(&message.from);
        let from = message.from.to_ascii_lowercase();
        let open = self.correspondent.as_ref().is_some_and(|name| name.eq_ignore_ascii_case(&from));
        // Nobody can ask for the messages of a deleted account by name.
        if open || looks_like_a_name(&from).is_err() {
            self.show(&message)?;
        } else {
            self.unread.entry(from).or_default().push(message);
            if !self.client.has_messages_at_hand() {
                self.tell_unread();
            }
        }
        if !self.client.has_messages_at_hand() {
            self.acknowledge_shown().await?;
        }
        Ok(())
    }

    fn tell_unread(&self) {
        for (name, messages) in &self.unread {
            let from = messages.first().map_or(name.as_str(), |message| message.from.as_str());
            let name = harmless_line(from);
            self.printer.talk(&format!("* {} unread from {name}: /msg {name} shows them", messages.len()));
        }
    }

    async fn show_all(&mut self, messages: Vec<MessageView>) -> Result<(), Stop> {
        messages.iter().try_for_each(|message| self.show(message))?;
        self.acknowledge_shown().await
    }

    fn show(&mut self, message: &MessageView) -> Result<(), Stop> {
        self.printer.say(&self.format(message, false))?;
        self.shown.push(message.id);
        Ok(())
    }

    async fn acknowledge_shown(&mut self) -> Result<(), Stop> {
        if !self.shown.is_empty() {
            self.client.acknowledge(&self.shown).await?;
            self.shown.clear();
        }
        Ok(())
    }

    fn format(&self, message: &MessageView, with_id: bool) -> String {
        if self.json {
            message_json(message).to_string()
        } else if with_id {
            message_line(message)
        } else {
            let time = crate::output::rfc3339(message.unix_ms);
            let (from, text) = (harmless_line(&message.from), harmless_text(&message.text));
            format!("{} {from}{}: {text}", &time[11..16], late_mark(message))
        }
    }
}

/// Whether no further line can succeed.
fn ends_the_chat(error: &ClientError) -> bool {
    matches!(error, ClientError::NotLoggedIn(_) | ClientError::Store(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_text_unless_they_begin_with_one_slash() {
        assert_eq!(parse("hi there"), Ok(Action::Send("hi there".into())));
        assert_eq!(parse("//etc/hosts"), Ok(Action::Send("/etc/hosts".into())));
        assert_eq!(parse("  "), Ok(Action::Nothing));
        assert!(parse("/nonsense").unwrap_err().contains("/help"));
    }

    #[test]
    fn commands_take_their_arguments() {
        let talk = |name: &str, text: Option<&str>| Action::Talk {
            name: name.into(),
            text: text.map(str::to_owned),
        };
        assert_eq!(parse("/msg bob"), Ok(talk("bob", None)));
        assert_eq!(parse("/msg bob  hi  you "), Ok(talk("bob", Some("hi  you"))));
        assert!(parse("/msg").is_err());
        assert!(parse("/msg ../x").is_err());
        assert_eq!(parse("/history"), Ok(Action::History { name: None, limit: HISTORY_DEFAULT }));
        assert_eq!(parse("/history bob 3"), Ok(Action::History { name: Some("bob".into()), limit: 3 }));
        assert_eq!(parse("/list a*"), Ok(Action::List("a*".into())));
        assert!(matches!(parse("/delete 0000000000000007-3"), Ok(Action::Delete(ids)) if ids.len() == 1));
        assert!(parse("/delete").is_err());
        assert!(parse("/delete x").is_err());
        assert_eq!(parse("/conflicts"), Ok(Action::Conflicts));
        assert_eq!(parse("/quit"), Ok(Action::Quit));
    }

    #[test]
    fn help_names_every_command() {
        for command in COMMANDS.iter().filter(|command| **command != "/help") {
            assert!(HELP.contains(command), "{command}");
        }
    }
}
