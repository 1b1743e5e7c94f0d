//! The frames inside a datagram's plaintext: IP packets, control frames, padding.
//!
//! `kind (1) | flags (1) | length (2, little-endian) | body`. A plaintext is a sequence of frames; a padding frame, or
//! fewer than four bytes, ends it. An empty plaintext is a keepalive. `docs/protocol.md` is normative.

/// Length in bytes of a frame header.
pub const FRAME_HEADER_LEN: usize = 4;

/// [`PacketFrame::flags`]: the TCP or UDP checksum field holds no checksum; the receiver computes it, or leaves it to
/// its kernel. Only for packets with the transport header directly behind an IP header, and no fragments.
pub const FLAG_CHECKSUM_PARTIAL: u8 = 0x01;
/// [`PacketFrame::flags`]: this packet was cut from the same superpacket as the packet frame before it, in this
/// datagram or at the end of the datagram with the counter before this one's on the same lane: a *train*.
pub const FLAG_CONTINUES: u8 = 0x02;

const KIND_PADDING: u8 = 0;
const KIND_PACKET: u8 = 1;
const KIND_CONTROL: u8 = 2;

const CONTROL_PING: u8 = 1;
const CONTROL_PONG: u8 = 2;
const CONTROL_GOODBYE: u8 = 3;
const CONTROL_PROBE: u8 = 4;
const CONTROL_DRAINING: u8 = 5;

/// Length in bytes of a ping, pong or probe frame with its header.
pub const PING_FRAME_LEN: usize = FRAME_HEADER_LEN + 1 + PING_TOKEN_LEN;
/// Length in bytes of a goodbye frame with its header.
pub const GOODBYE_FRAME_LEN: usize = FRAME_HEADER_LEN + 1;
/// Length in bytes of a draining frame with its header.
pub const DRAINING_FRAME_LEN: usize = FRAME_HEADER_LEN + 2;

const PING_TOKEN_LEN: usize = 8;

/// One frame as read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame<'a> {
    /// An IP packet.
    Packet(PacketFrame<'a>),
    /// A message between the two daemons.
    Control(Control),
}

/// An IP packet inside a datagram. Its bytes are not yet checked in any way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PacketFrame<'a> {
    /// [`FLAG_CHECKSUM_PARTIAL`], [`FLAG_CONTINUES`].
    pub flags: u8,
    /// The packet.
    pub bytes: &'a [u8],
}

/// A control frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Asks for a pong with the same token.
    Ping(u64),
    /// Answers a ping or a probe.
    Pong(u64),
    /// The sender is going away and has forgotten the session.
    Goodbye,
    /// Asks for a pong with the same token, to where the probe came from; moves no endpoint.
    Probe(u64),
    /// Whether the sender wants no new connections. It stands behind the pong to every ping while it does.
    Draining(bool),
    /// A control type this version does not know: ignored, so that later versions can add some.
    Unknown(u8),
}

/// Iterates over the frames of a plaintext. A frame that is longer than what is left gives one `Err` and ends it;
/// frames of unknown kind are passed over.
#[derive(Debug, Clone)]
pub struct Frames<'a> {
    rest: &'a [u8],
}

/// A frame header that contradicts the plaintext it stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed frame")]
pub struct MalformedFrame;

impl<'a> Frames<'a> {
    /// Over a whole opened plaintext.
    pub fn new(plaintext: &'a [u8]) -> Self {
        Self { rest: plaintext }
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Result<Frame<'a>, MalformedFrame>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (&[kind, flags, low, high], rest) = self.rest.split_first_chunk::<FRAME_HEADER_LEN>()?;
            let length = usize::from(u16::from_le_bytes([low, high]));
            if kind == KIND_PADDING {
                self.rest = &[];
                return None;
            }
            let Some((body, rest)) = rest.split_at_checked(length) else {
                self.rest = &[];
                return Some(Err(MalformedFrame));
            };
            self.rest = rest;
            match kind {
                KIND_PACKET if flags & !(FLAG_CHECKSUM_PARTIAL | FLAG_CONTINUES) != 0 => {
                    return Some(Err(MalformedFrame));
                }
                KIND_PACKET => return Some(Ok(Frame::Packet(PacketFrame { flags, bytes: body }))),
                KIND_CONTROL => return Some(Control::decode(body).map(Frame::Control)),
                _ => {}
            }
        }
    }
}

/// Shows every packet frame of a plaintext to `each`, with its flags, to be changed where it lies.
pub fn for_each_packet_mut(mut plaintext: &mut [u8], mut each: impl FnMut(u8, &mut [u8])) {
    while let Some((&mut [kind, flags, low, high], rest)) = plaintext.split_first_chunk_mut::<FRAME_HEADER_LEN>() {
        let length = usize::from(u16::from_le_bytes([low, high]));
        let Some((body, rest)) = rest.split_at_mut_checked(length).filter(|_| kind != KIND_PADDING) else { return };
        if kind == KIND_PACKET {
            each(flags, body);
        }
        plaintext = rest;
    }
}

impl Control {
    fn decode(body: &[u8]) -> Result<Self, MalformedFrame> {
        let (&control, body) = body.split_first().ok_or(MalformedFrame)?;
        let token = || body.first_chunk().map(|token| u64::from_le_bytes(*token)).ok_or(MalformedFrame);
        Ok(match control {
            CONTROL_PING => Self::Ping(token()?),
            CONTROL_PONG => Self::Pong(token()?),
            CONTROL_GOODBYE => Self::Goodbye,
            CONTROL_PROBE => Self::Probe(token()?),
            CONTROL_DRAINING => Self::Draining(body.first() != Some(&0)),
            unknown => Self::Unknown(unknown),
        })
    }

    /// Appends this control frame with its header. An `Unknown` is written as a bare type byte.
    pub fn encode(self, plaintext: &mut Vec<u8>) {
        let (control, rest): (u8, &[u8]) = match self {
            Self::Ping(token) => (CONTROL_PING, &token.to_le_bytes()),
            Self::Pong(token) => (CONTROL_PONG, &token.to_le_bytes()),
            Self::Goodbye => (CONTROL_GOODBYE, &[]),
            Self::Probe(token) => (CONTROL_PROBE, &token.to_le_bytes()),
            Self::Draining(is_draining) => (CONTROL_DRAINING, &[u8::from(is_draining)]),
            Self::Unknown(control) => (control, &[]),
        };
        plaintext.extend_from_slice(&header(KIND_CONTROL, 0, 1 + rest.len() as u16));
        plaintext.push(control);
        plaintext.extend_from_slice(rest);
    }
}

/// The header in front of an IP packet of `length` bytes.
pub fn packet_header(flags: u8, length: u16) -> [u8; FRAME_HEADER_LEN] {
    header(KIND_PACKET, flags, length)
}

/// Whether a plaintext carries data, not only control frames or nothing: senders put packets first.
pub fn starts_with_packet(plaintext: &[u8]) -> bool {
    plaintext.first() == Some(&KIND_PACKET)
}

/// Whether a plaintext begins with a control frame.
pub fn starts_with_control(plaintext: &[u8]) -> bool {
    plaintext.first() == Some(&KIND_CONTROL)
}

/// Whether a plaintext begins with a probe or a pong: such a datagram moves no endpoint.
pub fn starts_with_probe_or_pong(plaintext: &[u8]) -> bool {
    matches!(plaintext, [KIND_CONTROL, _, _, _, CONTROL_PROBE | CONTROL_PONG, ..])
}

/// Fills `tail` with padding: what a datagram needs to be as long as its neighbours in one send.
pub fn pad(tail: &mut [u8]) {
    // All zeros is a padding header of length zero, and fewer than four zero bytes are padding too.
    tail.fill(0);
}

fn header(kind: u8, flags: u8, length: u16) -> [u8; FRAME_HEADER_LEN] {
    let [low, high] = length.to_le_bytes();
    [kind, flags, low, high]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(plaintext: &[u8]) -> Vec<Result<Frame<'_>, MalformedFrame>> {
        Frames::new(plaintext).collect()
    }

    #[test]
    fn an_empty_plaintext_has_no_frame() {
        assert_eq!(frames(&[]), []);
    }

    #[test]
    fn reads_packed_packets_up_to_the_padding() {
        let mut plaintext = Vec::new();
        plaintext.extend(packet_header(FLAG_CHECKSUM_PARTIAL, 3));
        plaintext.extend([1, 2, 3]);
        Control::Ping(7).encode(&mut plaintext);
        plaintext.extend(packet_header(FLAG_CONTINUES, 1));
        plaintext.push(9);
        let end = plaintext.len();
        for padding in 0..20 {
            plaintext.resize(end + padding, 0xff);
            pad(&mut plaintext[end..]);
            assert_eq!(
                frames(&plaintext),
                [
                    Ok(Frame::Packet(PacketFrame { flags: FLAG_CHECKSUM_PARTIAL, bytes: &[1, 2, 3] })),
                    Ok(Frame::Control(Control::Ping(7))),
                    Ok(Frame::Packet(PacketFrame { flags: FLAG_CONTINUES, bytes: &[9] })),
                ]
            );
        }
    }

    #[test]
    fn packets_can_be_changed_where_they_lie() {
        let mut plaintext = Vec::new();
        for byte in [5, 6] {
            plaintext.extend(packet_header(byte, 1));
            plaintext.push(byte);
            Control::Ping(7).encode(&mut plaintext);
        }
        plaintext.extend(packet_header(0, 9));
        let before = plaintext.clone();
        for_each_packet_mut(&mut plaintext, |flags, packet| {
            assert_eq!(packet, [flags]);
            packet[0] += 10;
        });
        let changed: Vec<_> = (0..before.len()).filter(|at| before[*at] != plaintext[*at]).collect();
        assert_eq!(changed, [4, 4 + 1 + PING_FRAME_LEN + 4]);
    }

    #[test]
    fn a_frame_longer_than_the_plaintext_is_malformed_and_ends_it() {
        let mut plaintext = packet_header(0, 5).to_vec();
        plaintext.extend([0; 4]);
        assert_eq!(frames(&plaintext), [Err(MalformedFrame)]);
    }

    #[test]
    fn unknown_kinds_and_unknown_control_frames_are_passed_over() {
        let plaintext =
            [9, 0, 2, 0, 0xaa, 0xbb, KIND_CONTROL, 0, 3, 0, 200, 1, 2, KIND_CONTROL, 0, 1, 0, CONTROL_GOODBYE];
        assert_eq!(
            frames(&plaintext),
            [Ok(Frame::Control(Control::Unknown(200))), Ok(Frame::Control(Control::Goodbye))]
        );
    }

    #[test]
    fn a_packet_frame_with_an_unknown_flag_is_refused() {
        assert_eq!(frames(&[KIND_PACKET, 0x80, 1, 0, 0x45]), [Err(MalformedFrame)]);
    }

    #[test]
    fn a_control_frame_cut_short_is_malformed() {
        assert_eq!(frames(&[KIND_CONTROL, 0, 0, 0]), [Err(MalformedFrame)]);
        assert_eq!(frames(&[KIND_CONTROL, 0, 2, 0, CONTROL_PING, 1]), [Err(MalformedFrame)]);
    }

    #[test]
    fn control_frames_have_the_stated_lengths() {
        for (control, length) in [
            (Control::Ping(1), PING_FRAME_LEN),
            (Control::Pong(1), PING_FRAME_LEN),
            (Control::Goodbye, GOODBYE_FRAME_LEN),
            (Control::Draining(true), DRAINING_FRAME_LEN),
            (Control::Draining(false), DRAINING_FRAME_LEN),
        ] {
            let mut plaintext = Vec::new();
            control.encode(&mut plaintext);
            assert_eq!(plaintext.len(), length);
            assert_eq!(frames(&plaintext), [Ok(Frame::Control(control))]);
        }
    }
}
