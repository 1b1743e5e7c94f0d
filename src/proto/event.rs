//! What a device has to tell its owner: packets for the TUN, and changes worth a log line.

use std::net::SocketAddr;
use std::time::Duration;

use crate::keys::PublicKey;

use super::endpoint::Endpoint;
use super::error::DropReason;
use super::noise::Suite;
use super::stats::{LinkReason, LinkState};

/// Why a device's sessions may not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interruption {
    /// The machine was suspended for so long: its memory may be on a disk, and sessions are older than they seem.
    Suspended(Duration),
    /// The virtual machine was copied, or set back to a copy: another may go on with the same keys and counters.
    Copied,
}

/// An output of [`Device::poll_event`](super::device::Device::poll_event). Keys name peers by their configured key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An inner packet that the slow path opened: write it to the TUN.
    Packet {
        /// The peer that sent it; its source is allowed.
        peer: PublicKey,
        /// One whole IP packet.
        bytes: Vec<u8>,
        /// Its TCP or UDP checksum field is to be computed.
        checksum_partial: bool,
    },
    /// A session was agreed and confirmed.
    SessionEstablished {
        /// With whom.
        peer: PublicKey,
        /// Whether our initiation made it.
        initiator: bool,
        /// Its cipher.
        suite: Suite,
    },
    /// The last session ended and no other took its place.
    SessionEnded {
        /// With whom.
        peer: PublicKey,
    },
    /// All sessions were ended, and are made anew.
    SessionsRenewed {
        /// Why.
        cause: Interruption,
    },
    /// A link's state, or the reason for it, is another.
    LinkChanged {
        /// Whose.
        peer: PublicKey,
        /// The state that it has come to.
        state: LinkState,
        /// Why; none for one that is up.
        reason: Option<LinkReason>,
    },
    /// The interface is to take packets of up to so many bytes: paths have proven to carry them, or carry them no longer.
    MtuChanged {
        /// Length of its longest packets.
        mtu: u16,
    },
    /// A ping was answered.
    RoundTrip {
        /// By whom.
        peer: PublicKey,
        /// How long it took.
        round_trip: Duration,
    },
    /// Nobody has answered the first initiations of an attempt, which goes on.
    HandshakeUnanswered {
        /// Who does not answer.
        peer: PublicKey,
    },
    /// Nobody answered for [`GIVE_UP_AFTER`](super::constants::GIVE_UP_AFTER).
    HandshakeGivenUp {
        /// Who did not answer.
        peer: PublicKey,
    },
    /// Somebody initiated and was refused without a word. Told at most once a second for each peer, and for all others
    /// together; not of initiations that were only too many.
    InitiationRefused {
        /// The static key that it came from, which need not be a peer's; none if it did not get that far.
        peer: Option<PublicKey>,
        /// Apparent source: an address that anyone can write.
        from: SocketAddr,
        /// The reason for the refusal.
        reason: DropReason,
    },
    /// The peer said that it is going away.
    Goodbye {
        /// Who.
        peer: PublicKey,
    },
    /// An authenticated datagram came from a new address.
    EndpointChanged {
        /// Whose.
        peer: PublicKey,
        /// Where datagrams go from here on.
        endpoint: Endpoint,
    },
}

impl Event {
    /// Whose it is, by the configured key; none of what a stranger may have done, or what is about all.
    pub fn peer(&self) -> Option<PublicKey> {
        match self {
            Self::InitiationRefused { .. } | Self::SessionsRenewed { .. } | Self::MtuChanged { .. } => None,
            Self::Packet { peer, .. }
            | Self::SessionEstablished { peer, .. }
            | Self::SessionEnded { peer }
            | Self::LinkChanged { peer, .. }
            | Self::RoundTrip { peer, .. }
            | Self::HandshakeUnanswered { peer }
            | Self::HandshakeGivenUp { peer }
            | Self::Goodbye { peer }
            | Self::EndpointChanged { peer, .. } => Some(*peer),
        }
    }
}
