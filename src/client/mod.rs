//! The failover client: finds the primary by itself, survives crashes of servers, and carries out each request once.
//!
//! - [`policy`] decides whom to ask next; it is pure, and the simulator runs it too.
//! - [`connection`] is one TCP connection: pipelined requests, replies by number, pushes.
//! - [`session_store`] remembers who is logged in, and never gives a request number out twice.
//! - [`Client`] puts them together: one method for each command.
//! - [`Pipeline`] has many requests of one session under way.
//!
//! **Invariant:** a request goes out again only under the number and client id it went out with at first, so that
//! servers recognise it (X3); and a client that can't tell whether a request was carried out says so.

pub mod connection;
mod error;
mod failover;
mod pipeline;
pub mod policy;
pub mod session_store;

pub use error::ClientError;
pub use failover::{
    CONNECT_TIMEOUT, Client, Done, LoggedIn, Notice, PATIENCE, Password, STATUS_TIMEOUT, Sent, Settings,
    status_of, status_of_all,
};
pub use pipeline::{Answer, Arrival, Pipeline};

use crate::config::NAME_BYTES_MAX;
use std::time::Duration;

/// Whoever gets messages one by one waits so long for more, to acknowledge them together: each acknowledgement is an entry
/// of the log. What was shown and is not acknowledged when the client is killed is shown again.
pub const ACKNOWLEDGE_WITHIN: Duration = Duration::from_millis(20);

/// Checks that a text could be an account's name, before it becomes part of a path; servers check names themselves.
///
/// # Errors
/// What was found and what is expected.
pub fn looks_like_a_name(name: &str) -> Result<(), String> {
    // Of two accounts with the same name the later has a number behind it since the split healed (R6).
    let (typed, number) = name.rsplit_once('~').unwrap_or((name, "2"));
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let digits = (1..=20).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit());
    if (1..=NAME_BYTES_MAX).contains(&typed.len()) && typed.bytes().all(allowed) && digits {
        return Ok(());
    }
    Err(format!("found {name:?}, expected a name: 1 to {NAME_BYTES_MAX} of A-Z a-z 0-9 _ . -"))
}

#[cfg(test)]
mod tests {
    use super::looks_like_a_name;

    #[test]
    fn a_name_may_have_a_number_that_a_split_has_given_it() {
        for good in ["a", "Alice.B-c_9", "alice~2", "alice~10"] {
            looks_like_a_name(good).unwrap();
        }
        for bad in ["", "~2", "alice~", "alice~x", "a/b", "../x", "a~2~3", "alice~123456789012345678901"] {
            assert!(looks_like_a_name(bad).is_err(), "{bad}");
        }
    }
}
