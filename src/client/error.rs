//! What can go wrong for a client, and what a program is told about it.

use super::session_store::StoreError;
use crate::message::{ErrorCode, ErrorResponse};
use std::time::Duration;

/// Why a request has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A server that leads has refused.
    #[error("{}", .0.text)]
    Refused(ErrorResponse),
    /// There is no session to act in, or the one there was has ended.
    #[error("{0}")]
    NotLoggedIn(String),
    /// No server has taken the request in before the deadline: it was not carried out.
    #[error("no server available within {seconds} s, nothing was changed; last tried {last}", seconds = .timeout.as_secs_f64())]
    NoServer {
        /// How long the client tried.
        timeout: Duration,
        /// Which server it tried last, and what it found there.
        last: String,
    },
    /// The request was sent and never answered: it may have been carried out, or not (X3).
    #[error("outcome unknown: the request was sent, but {reason}; it may have been carried out")]
    OutcomeUnknown {
        /// Why there is no answer.
        reason: String,
    },
    /// A server has answered with something that is not an answer to the request.
    #[error("{server} answered {found}, expected {expected}")]
    Unexpected {
        /// Which server.
        server: String,
        /// What it answered.
        found: String,
        /// What would have been an answer.
        expected: &'static str,
    },
    /// The state directory can't be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ClientError {
    /// One word for programs.
    #[must_use]
    pub fn keyword(&self) -> &'static str {
        match self {
            Self::Refused(error) => error.code.keyword(),
            Self::NotLoggedIn(_) => ErrorCode::NotLoggedIn.keyword(),
            Self::NoServer { .. } => "no_server",
            Self::OutcomeUnknown { .. } => "outcome_unknown",
            Self::Unexpected { .. } => "unexpected_answer",
            Self::Store(_) => "state_directory",
        }
    }

    /// The exit code of a program that ends with this error.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(error) => match error.code {
                ErrorCode::NotLoggedIn
                | ErrorCode::WrongPassword
                | ErrorCode::TooManyAttempts
                | ErrorCode::SessionExpired => 3,
                ErrorCode::NoSuchAccount | ErrorCode::NoSuchMessage => 4,
                _ => 1,
            },
            Self::NotLoggedIn(_) => 3,
            Self::NoServer { .. } => 5,
            Self::OutcomeUnknown { .. } => 6,
            Self::Unexpected { .. } | Self::Store(_) => 1,
        }
    }
}
