//! The command line, the environment and the configuration file: flag > environment > file > default.

use crate::output::Stop;
use clap::{Args, Parser, Subcommand, ValueEnum};
use lastword::client::looks_like_a_name;
use lastword::types::{MessageId, RequestId};
use serde::Deserialize;
use std::path::PathBuf;
use std::time::Duration;

/// Where servers are when nobody says otherwise.
const SERVERS_DEFAULT: [&str; 3] = ["127.0.0.1:1538", "127.0.0.1:2538", "127.0.0.1:3538"];
/// How long a request may be retried when nobody says otherwise.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
/// The longest `--timeout`, a year.
const TIMEOUT_SECONDS_MAX: f64 = 365.0 * 86_400.0;

/// Chat over lastword: messages that outlive their servers.
///
/// Without a command: a chat, line by line. Data goes to standard output, everything else to standard error.
/// Exit codes: 0 ok, 1 refused, 2 usage, 3 not logged in or wrong password, 4 not found, 5 no server available,
/// 6 outcome unknown, 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "client", version)]
pub(crate) struct Arguments {
    /// The servers, as HOST:PORT,… [default: 127.0.0.1:1538,127.0.0.1:2538,127.0.0.1:3538] [env: LASTWORD_SERVERS]
    #[arg(long, global = true, value_name = "HOST:PORT,…")]
    pub(crate) servers: Option<String>,
    /// Who acts [default: who logged in last] [env: LASTWORD_USER]
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) user: Option<String>,
    /// Write one JSON object a line
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Read the password from the first line of this file [env: LASTWORD_PASSWORD has the password itself]
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// How long to try, in seconds [default: 10]
    #[arg(long, global = true, value_name = "SECONDS")]
    pub(crate) timeout: Option<f64>,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create an account and log in
    Register {
        /// 1 to 32 of A-Z a-z 0-9 _ . -
        name: String,
    },
    /// Log in
    Login {
        /// The account's name
        name: String,
    },
    /// End the session
    Logout {
        /// End all sessions of the account, on every device
        #[arg(long)]
        all: bool,
    },
    /// Change the password and end all other sessions
    Passwd {
        /// Read the new password from the first line of this file [env: LASTWORD_NEW_PASSWORD]
        #[arg(long, value_name = "FILE")]
        new_password_file: Option<PathBuf>,
    },
    /// List account names
    List {
        /// A pattern with * and ?
        #[arg(default_value = "", hide_default_value = true)]
        glob: String,
    },
    /// Send a message
    Send {
        /// The recipient
        to: String,
        /// The text, 1 to 8,192 bytes
        #[arg(allow_hyphen_values = true, required_unless_present = "stdin", conflicts_with = "stdin")]
        text: Option<String>,
        /// Read the text from standard input
        #[arg(long)]
        stdin: bool,
    },
    /// Print waiting messages, oldest first, and acknowledge them
    Read {
        /// How many at most
        #[arg(value_parser = clap::value_parser!(u64).range(1..))]
        count: Option<u64>,
        /// Leave them waiting
        #[arg(long)]
        peek: bool,
    },
    /// Print the messages exchanged with one account, the latest page first
    History {
        /// The other account
        with: String,
        /// Messages before this cursor
        #[arg(long, default_value_t = 0, hide_default_value = true)]
        before: u64,
        /// How many at most
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=500))]
        limit: u16,
    },
    /// Print what did not fit together when servers that had lost touch met again, and concerns the own account
    Conflicts {
        /// Only what was not printed or told on this machine before
        #[arg(long)]
        new: bool,
    },
    /// Delete messages, for both sides
    Delete {
        /// As printed: CLIENT16HEX-NUMBER
        #[arg(required = true, value_name = "ID", value_parser = parse_message_id)]
        ids: Vec<MessageId>,
    },
    /// Delete the own account and its waiting messages
    DeleteAccount,
    /// Print waiting messages and then new ones as they come, until Ctrl-C
    Listen,
    /// Say how each server is; needs no login
    Status,
    /// Load the servers, measure, and verify that everything acknowledged is there once
    Bench(BenchArguments),
}

/// Registers accounts named bench-…, loads the servers with their requests, says how fast that went, and looks whether
/// everything that was acknowledged is there once: exit code 1 if not. A request without an answer counts as nothing.
/// The accounts are deleted at the end (what they sent to each other stays in the log); after Ctrl-C they are left.
#[derive(Clone, Debug, Args)]
pub(crate) struct BenchArguments {
    /// How many clients
    #[arg(long, value_name = "C", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub(crate) clients: u16,
    /// How many requests each client has under way
    #[arg(long, value_name = "W", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) window: u16,
    /// How long the texts of messages are
    #[arg(long, value_name = "BYTES", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=8192))]
    pub(crate) size: u16,
    /// How long the load runs
    #[arg(long, value_name = "S", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub(crate) seconds: u32,
    /// What the clients do
    #[arg(long, value_enum, default_value_t = Mix::Send)]
    pub(crate) mix: Mix,
    /// Leave the accounts instead of deleting them
    #[arg(long)]
    pub(crate) keep: bool,
}

/// What the clients of a bench do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mix {
    /// Each client sends to an account of its own, which is not connected. Verified in history and mailbox
    Send,
    /// The same to a connected account: sent and received is one. The recipient acknowledges what it gets within 20 ms
    /// together. Verified as received once, in the history and no longer waiting. At most 5,000 clients, each with two
    /// connections
    Deliver,
    /// Password logins, hash and all, each over a new connection into a new session: this measures how many passwords
    /// the primary hashes (two at a time). A window of at most 5. The 16 latest sessions of each account are verified
    Login,
    /// A page of up to 50 account names; each answer is compared with what it must be. All the answers of a window must
    /// fit into 1 MiB, or servers would close the connection
    List,
    /// A page of up to 50 messages; the same
    History,
}

fn parse_message_id(text: &str) -> Result<MessageId, &'static str> {
    text.parse::<RequestId>().map(MessageId)
}

/// What the configuration file may say.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigFile {
    servers: Option<Vec<String>>,
    user: Option<String>,
    timeout: Option<f64>,
}

/// What the command line, the environment and the file say together.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) servers: Vec<String>,
    pub(crate) user: Option<String>,
    pub(crate) timeout: Duration,
    pub(crate) state_directory: PathBuf,
}

/// Reads environment variables; a parameter, so that tests need not change the process's own.
pub(crate) type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Arguments {
    /// Fills in what the command line leaves open.
    pub(crate) fn resolve(&self, environment: Environment<'_>) -> Result<Resolved, Stop> {
        let file = read_config_file(environment)?;
        let servers = match self.servers.clone().or_else(|| environment("LASTWORD_SERVERS")) {
            Some(list) => list.split(',').map(|server| server.trim().to_owned()).collect(),
            None => file.servers.unwrap_or_else(|| SERVERS_DEFAULT.map(str::to_owned).to_vec()),
        };
        if servers.is_empty() {
            return Err(Stop::Usage("found an empty list of servers, expected HOST:PORT,…".to_owned()));
        }
        servers.iter().try_for_each(|server| check_address(server))?;
        let user = self.user.clone().or_else(|| environment("LASTWORD_USER")).or(file.user);
        if let Some(user) = &user {
            looks_like_a_name(user).map_err(Stop::Usage)?;
        }
        let timeout = match self.timeout.or(file.timeout) {
            None => TIMEOUT_DEFAULT,
            Some(s) if s > 0.0 && s <= TIMEOUT_SECONDS_MAX => Duration::from_secs_f64(s),
            Some(s) => {
                return Err(Stop::Usage(format!(
                    "found a timeout of {s} s, expected more than 0 and at most a year"
                )));
            }
        };
        Ok(Resolved { servers, user, timeout, state_directory: state_directory(environment)? })
    }
}

fn read_config_file(environment: Environment<'_>) -> Result<ConfigFile, Stop> {
    let base = environment("XDG_CONFIG_HOME").map(PathBuf::from);
    let base = base.or_else(|| environment("HOME").map(|home| PathBuf::from(home).join(".config")));
    let Some(path) = base.map(|base| base.join("lastword/config.toml")) else {
        return Ok(ConfigFile::default());
    };
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(ConfigFile::default()),
        Err(error) => return Err(Stop::Usage(format!("{}: {error}", path.display()))),
    };
    toml::from_str(&text).map_err(|error| Stop::Usage(format!("{}: {error}", path.display())))
}

fn state_directory(environment: Environment<'_>) -> Result<PathBuf, Stop> {
    if let Some(directory) = environment("LASTWORD_STATE") {
        return Ok(PathBuf::from(directory));
    }
    if let Some(base) = environment("XDG_STATE_HOME") {
        return Ok(PathBuf::from(base).join("lastword"));
    }
    match environment("HOME") {
        Some(home) => Ok(PathBuf::from(home).join(".local/state/lastword")),
        None => {
            Err(Stop::Usage("no place to remember who is logged in: set LASTWORD_STATE or HOME".to_owned()))
        }
    }
}

/// Checks the form `host:port`; an IPv6 address stands in brackets.
fn check_address(address: &str) -> Result<(), Stop> {
    let wrong = || {
        Stop::Usage(format!(
            "found server {address:?}, expected HOST:PORT, for instance 127.0.0.1:1538 or [::1]:1538"
        ))
    };
    let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
    let host_fits = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']').is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok()),
        None => !host.is_empty() && !host.contains([':', '[', ']', '/', ' ']),
    };
    let port_fits =
        port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0);
    if host_fits && port_fits { Ok(()) } else { Err(wrong()) }
}

/// The process's environment; an empty variable counts as unset.
pub(crate) fn process_environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &[&str]) -> Arguments {
        Arguments::try_parse_from([&["client"], line].concat()).unwrap()
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Arguments::command().debug_assert();
    }

    #[test]
    fn flag_beats_environment_beats_file_beats_default() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().to_str().unwrap().to_owned();
        let resolve = |line: &[&str], variables: &'static [(&str, &str)]| {
            let path = path.clone();
            parse(line)
                .resolve(&|name| match name {
                    "HOME" => Some(path.clone()),
                    name => variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()),
                })
                .unwrap()
        };
        assert_eq!(resolve(&["status"], &[]).servers, SERVERS_DEFAULT);
        assert_eq!(resolve(&["status"], &[]).timeout, TIMEOUT_DEFAULT);
        std::fs::create_dir_all(home.path().join(".config/lastword")).unwrap();
        let config = "servers = [\"file:1\"]\nuser = \"file\"\ntimeout = 3\n";
        std::fs::write(home.path().join(".config/lastword/config.toml"), config).unwrap();
        let found = resolve(&["status"], &[]);
        assert_eq!((found.servers, found.timeout), (vec!["file:1".to_owned()], Duration::from_secs(3)));
        let environment = &[("LASTWORD_SERVERS", "env:1, [::1]:2"), ("LASTWORD_USER", "env")];
        let found = resolve(&["status"], environment);
        assert_eq!(found.servers, ["env:1", "[::1]:2"]);
        assert_eq!(found.user.as_deref(), Some("env"));
        let found = resolve(&["status", "--servers", "flag:1", "--user", "flag"], environment);
        assert_eq!((found.servers, found.user.as_deref()), (vec!["flag:1".to_owned()], Some("flag")));
    }

    #[test]
    fn a_mistyped_configuration_is_refused_with_its_path() {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join("lastword")).unwrap();
        std::fs::write(home.path().join("lastword/config.toml"), "severs = []").unwrap();
        let path = home.path().to_str().unwrap().to_owned();
        let stop = parse(&["status"]).resolve(&|name| (name == "XDG_CONFIG_HOME").then(|| path.clone()));
        let Err(Stop::Usage(text)) = stop else { panic!("it is refused") };
        assert!(text.contains("config.toml") && text.contains("severs"), "{text}");
    }

    #[test]
    fn addresses_are_checked() {
        for good in ["127.0.0.1:1538", "localhost:1", "[::1]:65535", "a.example:22"] {
            check_address(good).unwrap();
        }
        for bad in
            ["", "1538", ":1538", "host:", "host:0", "host:65536", "::1:1538", "[x]:1", "host:+1", "a b:1"]
        {
            assert!(check_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_text_may_begin_with_a_hyphen() {
        let arguments = parse(&["send", "bob", "-- no --", "--json"]);
        assert!(arguments.json);
        assert!(
            matches!(arguments.command, Some(Command::Send { text: Some(text), .. }) if text == "-- no --")
        );
        assert!(matches!(
            parse(&["send", "bob", "--stdin"]).command,
            Some(Command::Send { stdin: true, .. })
        ));
        assert!(Arguments::try_parse_from(["client", "send", "bob"]).is_err());
        assert!(Arguments::try_parse_from(["client", "send", "bob", "x", "--stdin"]).is_err());
    }
}
