//! UDP ports on which this machine's kernel ends tunnels, as control last read them: where a superpacket in a tunnel may be
//! handed to it. Any other receiver of such a port would take a superpacket for one datagram.
//!
//! Written by control and read by workers for each UDP packet: plain numbers, no lock.

use std::sync::atomic::{AtomicU32, Ordering};

use crate::packet::ip::{IpPacket, TransportProtocol};
use crate::packet::tunnel::{TunnelKind, Tunnelled};

/// Ports of tunnels, filled from the front; 0 is none.
#[derive(Debug, Default)]
pub(super) struct TunnelPorts([AtomicU32; MAX_TUNNEL_PORTS]);

/// Machines have one or two; packets of further ones are written one by one.
const MAX_TUNNEL_PORTS: usize = 8;
/// Beside the port of a tunnel that is Geneve.
const GENEVE: u32 = 1 << 16;

impl TunnelPorts {
    /// Has these hold from here on. Port 0 is passed over.
    pub(super) fn set(&self, tunnels: impl IntoIterator<Item = (u16, TunnelKind)>) {
        let words = tunnels.into_iter().filter(|(port, _)| *port != 0).map(|(port, kind)| {
            u32::from(port)
                | match kind {
                    TunnelKind::Vxlan => 0,
                    TunnelKind::Geneve => GENEVE,
                }
        });
        for (slot, word) in self.0.iter().zip(words.chain(std::iter::repeat(0))) {
            slot.store(word, Ordering::Relaxed);
        }
    }

    /// The packet in `packet`, if it is one of a tunnel that ends here.
    pub(super) fn find(&self, packet: &IpPacket<'_>) -> Option<Tunnelled> {
        let outer = packet.transport().filter(|outer| outer.protocol == TransportProtocol::Udp)?;
        let port = &packet.bytes()[outer.start + 2..outer.start + 4];
        Tunnelled::find(packet, self.kind(u16::from_be_bytes([port[0], port[1]]))?)
    }

    fn kind(&self, port: u16) -> Option<TunnelKind> {
        let mut words = self.0.iter().map(|slot| slot.load(Ordering::Relaxed)).take_while(|word| *word != 0);
        let word = words.find(|word| word & 0xffff == u32::from(port))?;
        Some(if word & GENEVE == 0 { TunnelKind::Vxlan } else { TunnelKind::Geneve })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_that_were_set_hold() {
        let ports = TunnelPorts::default();
        assert_eq!(ports.kind(4789), None);
        ports.set([(4789, TunnelKind::Vxlan), (0, TunnelKind::Vxlan), (6081, TunnelKind::Geneve)]);
        assert_eq!((ports.kind(4789), ports.kind(6081)), (Some(TunnelKind::Vxlan), Some(TunnelKind::Geneve)));
        assert_eq!(ports.kind(0), None);
        ports.set([(8472, TunnelKind::Vxlan)]);
        assert_eq!((ports.kind(8472), ports.kind(6081)), (Some(TunnelKind::Vxlan), None));
    }

    #[test]
    fn more_than_there_is_room_for_are_left_out() {
        let ports = TunnelPorts::default();
        ports.set((1..100).map(|port| (port, TunnelKind::Geneve)));
        assert_eq!(ports.kind(8), Some(TunnelKind::Geneve));
        assert_eq!(ports.kind(9), None);
    }
}
