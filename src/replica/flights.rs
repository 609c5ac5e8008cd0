//! The commands under way, and who waits for each (N2).

use std::collections::{BTreeMap, VecDeque};

use crate::chat::command::TokenHash;
use crate::types::{ClientId, ConnectionId, RequestId, RequestNumber};

/// A command that is being hashed or is in the log.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) waiters: Waiters,
    /// For a register or a login: only who knows the token may wait for it.
    pub(super) token: Option<Box<TokenHash>>,
    /// It is in the log, so it may be executed although this server stops leading.
    pub(super) logged: bool,
    /// It is there because it was proposed again (R3): no client has asked for it here.
    pub(super) rebased: bool,
}

/// The connections that wait for one command, each with its request's number: hardly ever more than one.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    first: Option<(ConnectionId, u32)>,
    others: Vec<(ConnectionId, u32)>,
}

impl Waiters {
    pub(super) fn one(connection: ConnectionId, request: u32) -> Self {
        Self { first: Some((connection, request)), others: Vec::new() }
    }

    pub(super) fn add(&mut self, connection: ConnectionId, request: u32) {
        match self.first {
            None => self.first = Some((connection, request)),
            Some(_) => self.others.push((connection, request)),
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(ConnectionId, u32)> {
        self.first.iter().chain(&self.others)
    }
}

impl IntoIterator for Waiters {
    type Item = (ConnectionId, u32);
    type IntoIter = std::iter::Chain<std::option::IntoIter<Self::Item>, std::vec::IntoIter<Self::Item>>;

    fn into_iter(self) -> Self::IntoIter {
        self.first.into_iter().chain(self.others)
    }
}

/// All commands under way, by client. A client's are in the order of their numbers, in which nearly all of them come and go.
#[derive(Debug, Default)]
pub(super) struct Flights {
    by_client: BTreeMap<ClientId, VecDeque<(RequestNumber, Flight)>>,
}

impl Flights {
    pub(super) fn get_mut(&mut self, id: RequestId) -> Option<&mut Flight> {
        let flights = self.by_client.get_mut(&id.client)?;
        let at = place(flights, id.number).ok()?;
        flights.get_mut(at).map(|(_, flight)| flight)
    }

    /// The lowest number of a client's commands under way.
    pub(super) fn oldest(&self, client: ClientId) -> Option<RequestNumber> {
        self.by_client.get(&client)?.front().map(|(number, _)| *number)
    }

    /// Adds a command, unless it is under way.
    pub(super) fn add(&mut self, id: RequestId, flight: Flight) {
        let flights = self.by_client.entry(id.client).or_default();
        if let Err(at) = place(flights, id.number) {
            flights.insert(at, (id.number, flight));
        }
    }

    /// Takes a command out.
    pub(super) fn land(&mut self, id: RequestId) -> Option<Flight> {
        let flights = self.by_client.get_mut(&id.client)?;
        let (_, flight) = flights.remove(place(flights, id.number).ok()?)?;
        if flights.is_empty() {
            self.by_client.remove(&id.client);
        }
        Some(flight)
    }

    /// Takes all out.
    pub(super) fn land_all(&mut self) -> impl Iterator<Item = Flight> + use<> {
        std::mem::take(&mut self.by_client).into_values().flatten().map(|(_, flight)| flight)
    }
}

/// Where a number is, or belongs: mostly at one of the ends.
fn place(flights: &VecDeque<(RequestNumber, Flight)>, number: RequestNumber) -> Result<usize, usize> {
    match (flights.front(), flights.back()) {
        (Some((first, _)), _) if *first == number => Ok(0),
        (_, Some((last, _))) if *last < number => Err(flights.len()),
        _ => flights.binary_search_by_key(&number, |(number, _)| *number),
    }
}
