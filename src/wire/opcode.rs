//! The numbers of all frames: 0x01 to 0x3f from clients, 0x40 to 0x7f between servers, 0x80 to 0xbf answers, 0xc0 to
//! 0xff pushes. An answer that belongs to one request has the request's number plus 0x80.

macro_rules! opcodes {
    ($($(#[doc = $doc:literal])* $name:ident = $number:literal;)*) => {
        $($(#[doc = $doc])* pub const $name: u8 = $number;)*

        /// Every opcode with its name, ascending.
        pub const ALL: &[(&str, u8)] = &[$((stringify!($name), $number)),*];
    };
}

opcodes! {
    /// Asks for an answer.
    PING = 0x01;
    /// Asks how the server is.
    STATUS = 0x02;
    /// Says what the client knows; not answered.
    SEEN = 0x03;
    /// Creates an account and logs in.
    REGISTER = 0x10;
    /// Logs in with a password.
    LOGIN = 0x11;
    /// Binds the connection to a session.
    RESUME = 0x12;
    /// Ends one session or all.
    LOGOUT = 0x13;
    /// Changes the password.
    CHANGE_PASSWORD = 0x14;
    /// Deletes the own account.
    DELETE_ACCOUNT = 0x15;
    /// Lists accounts.
    LIST = 0x20;
    /// Sends a message.
    SEND = 0x21;
    /// Reads waiting messages.
    READ = 0x22;
    /// Takes messages out of the mailbox.
    ACKNOWLEDGE = 0x23;
    /// Deletes messages.
    DELETE = 0x24;
    /// Reads what was exchanged with one account.
    HISTORY = 0x25;
    /// Asks for pushes.
    SUBSCRIBE = 0x26;
    /// Reads what could not be applied as it was after a split.
    CONFLICTS = 0x27;

    /// Opens the handshake of two servers.
    PEER_HELLO = 0x40;
    /// Asks the connecting server to prove that it knows the key.
    PEER_CHALLENGE = 0x41;
    /// Proves that.
    PEER_PROOF = 0x42;
    /// Proves the same in the other direction.
    PEER_WELCOME = 0x43;
    /// Says why a handshake failed.
    PEER_REFUSED = 0x44;
    /// [`crate::message::PeerMessage::Heartbeat`]
    HEARTBEAT = 0x50;
    /// [`crate::message::PeerMessage::HeartbeatOk`]
    HEARTBEAT_OK = 0x51;
    /// [`crate::message::PeerMessage::Prepare`]
    PREPARE = 0x52;
    /// [`crate::message::PeerMessage::PrepareOk`]
    PREPARE_OK = 0x53;
    /// [`crate::message::PeerMessage::Barrier`]
    BARRIER = 0x54;
    /// [`crate::message::PeerMessage::BarrierOk`]
    BARRIER_OK = 0x55;
    /// [`crate::message::PeerMessage::PreVote`]
    PRE_VOTE = 0x56;
    /// [`crate::message::PeerMessage::PreVoteOk`]
    PRE_VOTE_OK = 0x57;
    /// [`crate::message::PeerMessage::Propose`]
    PROPOSE = 0x58;
    /// [`crate::message::PeerMessage::Promise`]
    PROMISE = 0x59;
    /// [`crate::message::PeerMessage::Refuse`]
    REFUSE = 0x5a;
    /// [`crate::message::PeerMessage::NewView`]
    NEW_VIEW = 0x5b;
    /// [`crate::message::PeerMessage::NewViewOk`]
    NEW_VIEW_OK = 0x5c;
    /// [`crate::message::PeerMessage::Fetch`]
    FETCH = 0x5d;
    /// [`crate::message::PeerMessage::Fetched`]
    FETCHED = 0x5e;
    /// [`crate::message::PeerMessage::Diverged`]
    DIVERGED = 0x5f;
    /// [`crate::message::PeerMessage::UseCheckpoint`]
    USE_CHECKPOINT = 0x60;
    /// [`crate::message::PeerMessage::FetchCheckpoint`]
    FETCH_CHECKPOINT = 0x61;
    /// [`crate::message::PeerMessage::CheckpointPart`]
    CHECKPOINT_PART = 0x62;
    /// [`crate::message::PeerMessage::FetchRows`]
    FETCH_ROWS = 0x63;
    /// [`crate::message::PeerMessage::Rows`]
    ROWS = 0x64;
    /// [`crate::message::PeerMessage::Rebase`]
    REBASE = 0x65;
    /// [`crate::message::PeerMessage::RebaseOk`]
    REBASE_OK = 0x66;
    /// [`crate::message::PeerMessage::Differs`]
    DIFFERS = 0x67;

    /// Answers a ping.
    PONG = 0x81;
    /// Says how the server is.
    STATUS_IS = 0x82;
    /// A command was carried out.
    DONE = 0x90;
    /// The connection is bound to a session.
    RESUMED = 0x92;
    /// Account names.
    ACCOUNTS = 0xa0;
    /// Messages.
    MESSAGES = 0xa2;
    /// New messages will be pushed.
    SUBSCRIBED = 0xa6;
    /// What could not be applied as it was.
    CONFLICTS_ARE = 0xa7;
    /// The request failed.
    ERROR = 0xbf;

    /// A new message.
    PUSH_MESSAGE = 0xc0;
    /// The session has ended.
    PUSH_SESSION_ENDED = 0xc1;
}

/// An opcode's name; none if no frame has it.
#[must_use]
pub fn name(opcode: u8) -> Option<&'static str> {
    ALL.iter().find(|(_, number)| *number == opcode).map(|(name, _)| *name)
}
