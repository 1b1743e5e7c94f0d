//! Why a datagram or a packet was refused: counted by reason, never a panic, never an answer to a stranger.

use super::peer_table::PeerId;

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $label:literal,)+) => {
        /// Why one datagram or packet was refused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl DropReason {
            /// All reasons, in the order of their index (`reason as usize`).
            pub const ALL: [Self; Self::COUNT] = [$(Self::$variant),+];

            /// How many reasons there are.
            pub const COUNT: usize = [$($label),+].len();

            /// The stable name in status and metrics.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $label,)+
                }
            }
        }
    };
}

drop_reasons! {
    /// The datagram is of no known kind or version, or not as long as its kind demands.
    Malformed = "malformed",
    /// A handshake message whose mac1 is not made with our public key.
    InvalidMac1 = "invalid_mac1",
    /// A handshake message without a valid cookie while one is demanded: answered with a cookie reply.
    CookieDemanded = "cookie_demanded",
    /// A source address that sends handshake messages faster than the limit, though it has a cookie.
    RateLimited = "rate_limited",
    /// A handshake message that names a suite this version does not know, or another than was proposed.
    UnknownSuite = "unknown_suite",
    /// An initiation that proposes a suite that the configuration does not accept.
    SuiteNotAccepted = "suite_not_accepted",
    /// A handshake message that does not decrypt or verify.
    HandshakeFailed = "handshake_failed",
    /// A handshake message from a static key that is not configured.
    UnknownPeer = "unknown_peer",
    /// An initiation with the timestamp of the last one from that key: the same again.
    ReplayedInitiation = "replayed_initiation",
    /// An initiation with an older timestamp than the last one from that key: a replay, or a clock that was set back.
    StaleInitiation = "stale_initiation",
    /// Initiations of one peer too close together.
    InitiationTooSoon = "initiation_too_soon",
    /// A response or cookie reply to no handshake message of ours.
    UnexpectedAnswer = "unexpected_answer",
    /// A cookie reply that does not decrypt.
    InvalidCookieReply = "invalid_cookie_reply",
    /// Transport data for a session index that we have not given out.
    UnknownSession = "unknown_session",
    /// Transport data on a lane that the peer did not announce.
    UnknownLane = "unknown_lane",
    /// Transport data whose counter was already received.
    Replayed = "replayed",
    /// Transport data whose counter is behind the replay window.
    TooOld = "too_old",
    /// Transport data that does not verify.
    InvalidTag = "invalid_tag",
    /// A session past its time or number of datagrams.
    SessionExpired = "session_expired",
    /// An authenticated datagram with a frame that contradicts its length or has unknown flags.
    MalformedFrame = "malformed_frame",
    /// A control frame of a peer that sends more of them than any honest one, or the rest of a datagram after too many frames
    /// that bring no packet.
    ControlLimit = "control_limit",
    /// An inner packet that is not one whole IP packet.
    MalformedPacket = "malformed_packet",
    /// An inner packet from a source address that its peer may not use.
    SourceNotAllowed = "source_not_allowed",
    /// An inner packet that opens a connection or exchange with what its peer may not reach, or answers nothing.
    NotExposed = "not_exposed",
    /// An inner packet for an address that is neither a tunnel address of ours nor in a network that is exposed to its peer,
    /// which answers nothing.
    DestinationNotExposed = "destination_not_exposed",
    /// An inner ICMP answer or error about nothing that was sent to its peer.
    Unsolicited = "unsolicited",
    /// An inner fragment whose packet's first fragment was refused or not seen, or is too short to judge.
    StrayFragment = "stray_fragment",
    /// An inner packet of a protocol, or with headers, that its peer may not use.
    ProtocolNotExposed = "protocol_not_exposed",
    /// An inner packet whose flow does not understand marks, in a datagram that the network marked instead of dropping it.
    CongestionExperienced = "congestion_experienced",
    /// A packet for a destination that no peer has.
    NoPeerForDestination = "no_peer_for_destination",
    /// A packet for a peer whose endpoint is not known.
    NoEndpoint = "no_endpoint",
    /// A packet for a peer whose link is known to be down.
    LinkDown = "link_down",
    /// A packet that gave way to newer ones while waiting for a session.
    StagedOverflow = "staged_overflow",
    /// A packet whose peer did not answer any handshake in time.
    HandshakeGivenUp = "handshake_given_up",
    /// A packet larger than the interface's MTU that cannot be cut.
    TooLarge = "too_large",
    /// A packet longer than the path to its peer carries that may not be cut: its sender is told.
    PathTooNarrow = "path_too_narrow",
    /// A packet for a peer's endpoint that would enter its own tunnel again.
    RoutingLoop = "routing_loop",
    /// A queue between threads was full.
    QueueFull = "queue_full",
    /// A packet of a bulk flow, lost on purpose to tell its sender that it fills a queue faster than it empties.
    StandingQueue = "standing_queue",
    /// The kernel refused a datagram.
    SendFailed = "send_failed",
    /// The kernel refused a packet on the TUN.
    TunWriteFailed = "tun_write_failed",
}

/// Why the fast path could not finish by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Miss {
    /// Refused.
    Drop(DropReason),
    /// The peer has no session: hand the packet to the slow path, which stages it.
    NoSession(PeerId),
    /// A handshake message, or a packet that only fragments of a datagram can carry: hand it to the slow path.
    SlowPath,
}

impl From<DropReason> for Miss {
    fn from(reason: DropReason) -> Self {
        Self::Drop(reason)
    }
}
