//! Lines from a person or a pipe, and printing beside the line that is being typed.

use crate::interactive::COMMANDS;
use crate::output::{Stop, say, talk};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::DefaultHistory;
use rustyline::validate::Validator;
use rustyline::{Context, Editor, Helper};
use std::collections::BTreeSet;
use std::io::BufRead as _;
use std::rc::Rc;
use std::sync::mpsc as blocking;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::mpsc;

/// Names that Tab remembers, at most.
const NAMES_MAX: usize = 10_000;

/// What the person did.
#[derive(Debug)]
pub(crate) enum Input {
    /// A line.
    Line(String),
    /// Ctrl-D, or the end of the pipe.
    End,
    /// Ctrl-C.
    Interrupted,
}

/// What the reading thread is told.
#[derive(Default)]
struct Told {
    prompt: String,
    names: BTreeSet<String>,
}

/// Reads lines on a thread of its own, one at a time: the next only when the last was looked at, since a command
/// may change the prompt.
pub(crate) struct Lines {
    told: Arc<Mutex<Told>>,
    next: blocking::Sender<()>,
    /// How the terminal was: the thread may still be reading a line when the chat ends.
    terminal_before: Option<Termios>,
}

impl Drop for Lines {
    fn drop(&mut self) {
        if let Some(before) = &self.terminal_before {
            // The terminal may be gone; then there is nothing to put back.
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// Prints without breaking the line that is being typed.
#[derive(Clone)]
pub(crate) struct Printer {
    external: Option<Rc<Mutex<Box<dyn rustyline::ExternalPrinter>>>>,
}

impl Lines {
    /// Begins to read.
    pub(crate) fn begin(terminal: bool) -> Result<(Self, mpsc::Receiver<Input>, Printer), Stop> {
        let told = Arc::new(Mutex::new(Told { prompt: "> ".to_owned(), ..Told::default() }));
        let (next, wait_for_next) = blocking::channel();
        let (inputs_in, inputs) = mpsc::channel(1);
        let mut external = None;
        let terminal_before = if terminal { tcgetattr(std::io::stdin()).ok() } else { None };
        if terminal {
            let failed = |error: ReadlineError| Stop::Local(format!("the terminal: {error}"));
            let mut editor = Editor::<Completion, DefaultHistory>::new().map_err(failed)?;
            editor.set_helper(Some(Completion { told: Arc::clone(&told) }));
            let printer: Box<dyn rustyline::ExternalPrinter> =
                Box::new(editor.create_external_printer().map_err(failed)?);
            external = Some(Rc::new(Mutex::new(printer)));
            let told = Arc::clone(&told);
            std::thread::spawn(move || read_terminal(&mut editor, &told, &inputs_in, &wait_for_next));
        } else {
            std::thread::spawn(move || read_pipe(&inputs_in, &wait_for_next));
        }
        Ok((Self { told, next, terminal_before }, inputs, Printer { external }))
    }

    /// The last line was looked at: the next one may be typed.
    pub(crate) fn next(&self) {
        // The thread is gone after the last line.
        let _ = self.next.send(());
    }

    /// Shows with whom the person talks.
    pub(crate) fn set_prompt(&self, name: &str) {
        lock(&self.told).prompt = format!("{name}> ");
    }

    /// From now on Tab knows the name.
    pub(crate) fn learn_name(&self, name: &str) {
        let mut told = lock(&self.told);
        if told.names.len() < NAMES_MAX && lastword::client::looks_like_a_name(name).is_ok() {
            told.names.insert(name.to_owned());
        }
    }
}

fn lock(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().expect("nothing that holds the lock panics")
}

fn read_terminal(
    editor: &mut Editor<Completion, DefaultHistory>,
    told: &Mutex<Told>,
    inputs: &mpsc::Sender<Input>,
    next: &blocking::Receiver<()>,
) {
    loop {
        let prompt = lock(told).prompt.clone();
        let input = match editor.readline(&prompt) {
            Ok(line) => {
                // A history that can't take the line is no reason to refuse it.
                let _ = editor.add_history_entry(&line);
                Input::Line(line)
            }
            Err(ReadlineError::Interrupted) => Input::Interrupted,
            Err(_) => Input::End,
        };
        let last = !matches!(input, Input::Line(_));
        if inputs.blocking_send(input).is_err() || last || next.recv().is_err() {
            return;
        }
    }
}

fn read_pipe(inputs: &mpsc::Sender<Input>, next: &blocking::Receiver<()>) {
    for line in std::io::stdin().lock().lines() {
        // Bytes that are not UTF-8 end the input like its end does.
        let Ok(line) = line else { break };
        if inputs.blocking_send(Input::Line(line)).is_err() || next.recv().is_err() {
            return;
        }
    }
    let _ = inputs.blocking_send(Input::End);
}

impl Printer {
    /// Whether a person reads along.
    pub(crate) fn is_terminal(&self) -> bool {
        self.external.is_some()
    }

    /// Prints data.
    pub(crate) fn say(&self, line: &str) -> Result<(), Stop> {
        if self.beside_the_line(line) { Ok(()) } else { say(line) }
    }

    /// Prints talk.
    pub(crate) fn talk(&self, line: &str) {
        if !self.beside_the_line(line) {
            talk(line);
        }
    }

    fn beside_the_line(&self, line: &str) -> bool {
        self.external.as_ref().is_some_and(|printer| {
            let mut printer = printer.lock().expect("printing doesn't panic");
            printer.print(format!("{line}\n")).is_ok()
        })
    }
}

/// Completes commands at the beginning of a line, and names after them.
struct Completion {
    told: Arc<Mutex<Told>>,
}

impl Completer for Completion {
    type Candidate = String;

    fn complete(&self, line: &str, at: usize, _: &Context<'_>) -> rustyline::Result<(usize, Vec<String>)> {
        Ok(complete(&line[..at], &lock(&self.told).names))
    }
}

impl Hinter for Completion {
    type Hint = String;
}
impl Highlighter for Completion {}
impl Validator for Completion {}
impl Helper for Completion {}

/// Where the word begins that is completed, and what it may become.
fn complete(typed: &str, names: &BTreeSet<String>) -> (usize, Vec<String>) {
    let Some(start) = typed.rfind(' ').map(|blank| blank + 1) else {
        let commands = COMMANDS.iter().filter(|command| typed.starts_with('/') && command.starts_with(typed));
        return (0, commands.map(|command| format!("{command} ")).collect());
    };
    let word = typed[start..].to_ascii_lowercase();
    let takes_name = ["/msg ", "/history "].iter().any(|command| typed[..start] == **command);
    let fits = |name: &&String| takes_name && name.to_ascii_lowercase().starts_with(&word);
    (start, names.iter().filter(fits).map(|name| format!("{name} ")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tab_completes_commands_and_then_names() {
        let names = BTreeSet::from(["Alice".to_owned(), "bob".to_owned()]);
        assert_eq!(complete("/m", &names), (0, vec!["/msg ".to_owned()]));
        assert_eq!(complete("/h", &names).1.len(), 2);
        assert_eq!(complete("/msg a", &names), (5, vec!["Alice ".to_owned()]));
        assert_eq!(complete("/history ", &names).1.len(), 2);
        assert!(complete("hello a", &names).1.is_empty());
        assert!(complete("hel", &names).1.is_empty());
    }
}
