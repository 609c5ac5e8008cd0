//! The driver's side of the links to peers: which are up, and what that means to the core.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::outgoing::Outgoing;
use crate::message::PeerMessage;
use crate::replica::LinkState;
use crate::types::ServerId;
use crate::wire::peer::encode;

/// What happens on the links to one peer.
#[derive(Debug)]
pub(super) enum PeerInput {
    /// The peer has accepted this server's proof, and proved itself.
    OutgoingUp(Arc<Outgoing>),
    /// That link has ended.
    OutgoingDown(Arc<Outgoing>),
    /// An attempt to connect came to nothing.
    NotConnected(LinkState),
    /// A probe came to nothing; it was begun when the link had come up so many times.
    Probed(u64, LinkState),
    /// The peer has proved itself on a link that it opened; the token ends it.
    IncomingUp(u64, CancellationToken),
    /// That link has ended.
    IncomingDown(u64),
    /// The peer says something on it.
    Message(u64, PeerMessage),
}

/// What the core is to hear.
#[derive(Debug, PartialEq)]
pub(super) enum PeerNews {
    /// Nothing.
    Nothing,
    /// How the link is now.
    Link(LinkState),
    /// An established link has ended while the other direction stands: a fresh connect must tell why (V11).
    ClosedOneWay,
    /// What the peer says.
    Message(PeerMessage),
}

/// The links to one peer.
#[derive(Debug, Default)]
pub(super) struct PeerLinks {
    outgoing: Option<Arc<Outgoing>>,
    /// At most one: a new one takes the place of the old.
    incoming: Option<(u64, CancellationToken)>,
    /// Whether the core was told that the link is up, and not since that it is closed.
    up: bool,
    /// How often it came up.
    ups: u64,
}

impl PeerLinks {
    /// How often the link has come up, for a probe to carry.
    pub(super) fn ups(&self) -> u64 {
        self.ups
    }

    /// Queues a message for [`Peers::flush`]; it is lost if there is no link.
    pub(super) fn send(&self, message: &PeerMessage) {
        if let Some(outgoing) = &self.outgoing {
            outgoing.push(|out| encode(out, message));
        }
    }

    /// Whether nothing waits to be sent.
    pub(super) fn is_flushed(&self) -> bool {
        self.outgoing.as_ref().is_none_or(|outgoing| outgoing.waiting() == 0 || outgoing.is_closed())
    }

    /// Ends both directions (V2); the outgoing one is opened anew by its own task.
    pub(super) fn reset(&mut self) {
        if let Some(outgoing) = &self.outgoing {
            outgoing.close();
        }
        if let Some((_, incoming)) = self.incoming.take() {
            incoming.cancel();
        }
    }

    /// Takes in what happened, and says what the core is to hear.
    pub(super) fn on_input(&mut self, input: PeerInput) -> PeerNews {
        match input {
            PeerInput::OutgoingUp(outgoing) => {
                self.outgoing = Some(outgoing);
                self.become_up()
            }
            PeerInput::OutgoingDown(outgoing) => self.on_outgoing_down(&outgoing),
            PeerInput::NotConnected(state) => PeerNews::Link(state),
            // The link has come up after the probe had begun: what it saw is void (V11).
            PeerInput::Probed(ups, _) if ups != self.ups => PeerNews::Nothing,
            PeerInput::Probed(_, state) => PeerNews::Link(state),
            PeerInput::IncomingUp(link, token) => self.on_incoming_up(link, token),
            PeerInput::IncomingDown(link) => self.on_incoming_down(link),
            PeerInput::Message(link, message) if self.is_incoming(link) => PeerNews::Message(message),
            PeerInput::Message(..) => PeerNews::Nothing,
        }
    }

    fn is_incoming(&self, link: u64) -> bool {
        self.incoming.as_ref().is_some_and(|(current, _)| *current == link)
    }

    fn become_up(&mut self) -> PeerNews {
        self.up = true;
        self.ups += 1;
        PeerNews::Link(LinkState::Up)
    }

    fn on_outgoing_down(&mut self, ended: &Arc<Outgoing>) -> PeerNews {
        if self.outgoing.as_ref().is_some_and(|current| Arc::ptr_eq(current, ended)) {
            self.outgoing = None;
        }
        if std::mem::take(&mut self.up) { PeerNews::Link(LinkState::Closed) } else { PeerNews::Nothing }
    }

    fn on_incoming_up(&mut self, link: u64, token: CancellationToken) -> PeerNews {
        if let Some((_, old)) = self.incoming.replace((link, token)) {
            old.cancel();
        }
        // The other direction has stood all the while: with this one back the link is whole again.
        if self.outgoing.is_some() && !self.up { self.become_up() } else { PeerNews::Nothing }
    }

    fn on_incoming_down(&mut self, link: u64) -> PeerNews {
        if !self.is_incoming(link) {
            return PeerNews::Nothing;
        }
        self.incoming = None;
        if std::mem::take(&mut self.up) { PeerNews::ClosedOneWay } else { PeerNews::Nothing }
    }
}

/// The links to all peers, by server id.
#[derive(Debug)]
pub(super) struct Peers(Vec<PeerLinks>);

impl Peers {
    pub(super) fn new(servers: usize) -> Self {
        Self((0..servers).map(|_| PeerLinks::default()).collect())
    }

    pub(super) fn links(&mut self, peer: ServerId) -> &mut PeerLinks {
        &mut self.0[usize::from(peer.0) - 1]
    }

    pub(super) fn reset(&mut self) {
        self.0.iter_mut().for_each(PeerLinks::reset);
    }

    /// Sends what is queued.
    pub(super) fn flush(&self) {
        self.0.iter().filter_map(|links| links.outgoing.as_ref()).for_each(|outgoing| outgoing.flush());
    }

    pub(super) fn is_flushed(&self) -> bool {
        self.0.iter().all(PeerLinks::is_flushed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::outgoing::tests::connected;
    use crate::time::Instant;

    async fn outgoing() -> Arc<Outgoing> {
        connected(1000).await.0
    }

    fn token() -> CancellationToken {
        CancellationToken::new()
    }

    #[tokio::test]
    async fn a_peer_that_dies_is_closed_once_whichever_direction_ends_first() {
        for outgoing_first in [true, false] {
            let mut links = PeerLinks::default();
            let out = outgoing().await;
            let up = links.on_input(PeerInput::OutgoingUp(Arc::clone(&out)));
            assert_eq!(up, PeerNews::Link(LinkState::Up));
            assert_eq!(links.on_input(PeerInput::IncomingUp(1, token())), PeerNews::Nothing);
            let ends = [PeerInput::OutgoingDown(out), PeerInput::IncomingDown(1)];
            let ends = if outgoing_first { Vec::from(ends) } else { ends.into_iter().rev().collect() };
            let news: Vec<_> = ends.into_iter().map(|end| links.on_input(end)).collect();
            let first =
                if outgoing_first { PeerNews::Link(LinkState::Closed) } else { PeerNews::ClosedOneWay };
            assert_eq!(news, [first, PeerNews::Nothing]);
        }
    }

    #[tokio::test]
    async fn a_new_incoming_link_takes_the_place_of_the_old_one_and_silences_it() {
        let mut links = PeerLinks::default();
        links.on_input(PeerInput::OutgoingUp(outgoing().await));
        let old = token();
        links.on_input(PeerInput::IncomingUp(1, old.clone()));
        links.on_input(PeerInput::IncomingUp(2, token()));
        assert!(old.is_cancelled());
        let late = PeerMessage::PreVote { nonce: 1 };
        assert_eq!(links.on_input(PeerInput::Message(1, late.clone())), PeerNews::Nothing);
        assert_eq!(links.on_input(PeerInput::IncomingDown(1)), PeerNews::Nothing);
        assert_eq!(links.on_input(PeerInput::Message(2, late.clone())), PeerNews::Message(late));
    }

    #[tokio::test]
    async fn a_link_is_up_again_when_the_direction_that_ended_is_back() {
        let mut links = PeerLinks::default();
        links.on_input(PeerInput::OutgoingUp(outgoing().await));
        links.on_input(PeerInput::IncomingUp(1, token()));
        assert_eq!(links.on_input(PeerInput::IncomingDown(1)), PeerNews::ClosedOneWay);
        assert_eq!(links.on_input(PeerInput::IncomingUp(2, token())), PeerNews::Link(LinkState::Up));
    }

    #[tokio::test]
    async fn a_probe_from_before_the_link_came_up_is_void() {
        let mut links = PeerLinks::default();
        let before = links.ups();
        links.on_input(PeerInput::OutgoingUp(outgoing().await));
        let refused = LinkState::Refused { begun: Instant::ZERO };
        assert_eq!(links.on_input(PeerInput::Probed(before, refused)), PeerNews::Nothing);
        assert_eq!(links.on_input(PeerInput::Probed(links.ups(), refused)), PeerNews::Link(refused));
    }

    #[tokio::test]
    async fn a_reset_ends_both_directions() {
        let mut links = PeerLinks::default();
        let (out, incoming) = (outgoing().await, token());
        links.on_input(PeerInput::OutgoingUp(Arc::clone(&out)));
        links.on_input(PeerInput::IncomingUp(1, incoming.clone()));
        links.reset();
        assert!(out.is_closed() && incoming.is_cancelled());
    }
}
