//! Logs in by password, hash and all, each time over a new connection and into a new session.

use super::audit::Verdict;
use super::{Bench, Load};
use lastword::client::session_store::StoredSession;
use lastword::client::{ClientError, Password};
use lastword::config::SESSIONS_PER_ACCOUNT_MAX;
use lastword::message::ErrorCode;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Instant;
use tokio::task::JoinSet;

/// Sessions that are looked for afterwards: an account keeps twice as many, and those whose login was never answered
/// may be among them.
const SESSIONS_VERIFIED: usize = SESSIONS_PER_ACCOUNT_MAX / 2;

/// An account that logs in again and again.
pub(super) struct Login {
    name: String,
    /// The latest sessions, oldest first; at least the one that the registration began.
    sessions: Arc<Mutex<VecDeque<StoredSession>>>,
}

impl Load for Login {
    async fn prepare(bench: Arc<Bench>, index: u16) -> Result<Self, ClientError> {
        let name = bench.name(index, "s");
        let session = bench.register(&name).await?;
        Ok(Self { name, sessions: Arc::new(Mutex::new(VecDeque::from([session]))) })
    }

    async fn run(self, bench: Arc<Bench>, end: Instant) -> Result<Self, ClientError> {
        let mut devices = JoinSet::new();
        for _ in 0..bench.window() {
            devices.spawn(log_in(Arc::clone(&bench), self.name.clone(), Arc::clone(&self.sessions), end));
        }
        while let Some(joined) = devices.join_next().await {
            joined.expect("a login doesn't panic")?;
        }
        Ok(self)
    }

    async fn finish(self, bench: Arc<Bench>) -> Result<Verdict, ClientError> {
        let sessions = std::mem::take(&mut *self.sessions.lock().expect("nothing that holds it panics"));
        let mut verdict = Verdict::default();
        let mut alive = None;
        for session in sessions {
            let mut pipeline = bench.pipeline(session);
            match bench.connect(&mut pipeline).await {
                Ok(()) => alive = Some(pipeline),
                Err(ClientError::Refused(error)) if error.code == ErrorCode::SessionExpired => {
                    verdict.lost += 1;
                }
                Err(error) => return Err(error),
            }
        }
        if let Some(mut pipeline) = alive {
            bench.delete_account(&mut pipeline).await?;
        }
        Ok(verdict)
    }
}

/// One device: logs in until the end.
async fn log_in(
    bench: Arc<Bench>,
    name: String,
    sessions: Arc<Mutex<VecDeque<StoredSession>>>,
    end: Instant,
) -> Result<(), ClientError> {
    let mut client = bench.client()?;
    let password = Password::new(bench.password.clone());
    loop {
        let begun = Instant::now();
        if begun >= end {
            return Ok(());
        }
        match client.login(&name, &password).await {
            Ok(_) => {
                bench.meter().acknowledge(begun, Instant::now());
                let session = client.session().expect("a login begins a session").clone();
                let mut sessions = sessions.lock().expect("nothing that holds it panics");
                sessions.push_back(session);
                let old = sessions.len().saturating_sub(SESSIONS_VERIFIED);
                sessions.drain(..old);
            }
            Err(ClientError::OutcomeUnknown { .. }) => bench.meter().give_up(1),
            Err(error) => return Err(error),
        }
    }
}
