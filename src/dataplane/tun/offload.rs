//! What a TUN is asked to take and give beyond single packets. All of it belongs to the device, not to a queue, and a device
//! that was made beforehand keeps it from one daemon to the next: so it is set anew each time, the length of the virtio
//! header too.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use nix::errno::Errno;

use super::super::virtio::{Segmentation, TUNNEL_HEADER_LEN, TunnelHeader, VIRTIO_HEADER_LEN, VirtioHeader};
use super::Offload;

/// Asks for as much as the kernel gives.
pub(super) fn set(queue: BorrowedFd<'_>) -> io::Result<Offload> {
    if let Some(shift) = set_tunnels(queue) {
        return Ok(Offload::Tunnels { shift });
    }
    set_header_len(queue, VIRTIO_HEADER_LEN)?;
    if set_features(queue, TCP | UDP).is_ok() {
        return Ok(Offload::TcpAndUdp);
    }
    set_features(queue, TCP).map(|()| Offload::Tcp)
}

/// Asks for what every daemon before this one knew, which may be who reads the device next.
pub(super) fn set_without_tunnels(queue: BorrowedFd<'_>) -> io::Result<()> {
    set_features(queue, TCP | UDP)?;
    set_header_len(queue, VIRTIO_HEADER_LEN)
}

/// Asks for nothing.
pub(super) fn clear(queue: BorrowedFd<'_>) -> io::Result<()> {
    set_features(queue, 0)
}

/// Asks for superpackets in tunnels as well. Returns by how much the kernel wants their UDP header further back than it is;
/// `None` where it knows none of this.
fn set_tunnels(queue: BorrowedFd<'_>) -> Option<u16> {
    set_header_len(queue, TUNNEL_HEADER_LEN).ok()?;
    set_features(queue, TCP | UDP | TUNNELS).ok()?;
    [0, ETHERNET_LEN].into_iter().find(|shift| takes_tunnel(queue, *shift))
}

/// Whether the kernel takes a superpacket in a tunnel. Linux up to 6.18 at least counts an Ethernet header in front of the
/// tunnel's that a TUN does not have; the place is of no use to it, since it looks for the UDP header itself once it has read
/// the IP header in front. What is written here ends there: it has no right checksum.
fn takes_tunnel(queue: BorrowedFd<'_>, shift: u16) -> bool {
    let mut packet = [0; PROBE_LEN];
    packet[..20].copy_from_slice(&[0x45, 0, 0, PROBE_LEN as u8, 0, 0, 0, 0, 1, 17, 0xba, 0xad, 0, 0, 0, 0, 0, 0, 0, 0]);
    packet[50] = 0x45;
    packet[70 + 12] = 0x50;
    let header = VirtioHeader {
        needs_checksum: true,
        segmentation: Segmentation::TcpV4,
        ecn: false,
        header_len: 90,
        segment_size: 1,
        checksum_start: 70,
        checksum_offset: 16,
        tunnel: Some(TunnelHeader { is_v6: false, has_checksum: false, udp_start: 20 + shift, inner_start: 50 }),
    };
    let write = [&header.encode_with_tunnel()[..], &packet].concat();
    match rustix::io::write(queue, &write) {
        // The link is down, which it is asked about last.
        Ok(_) | Err(rustix::io::Errno::IO) => true,
        Err(_) => false,
    }
}

fn set_features(queue: BorrowedFd<'_>, features: libc::c_uint) -> io::Result<()> {
    // SAFETY: the request's argument is the number itself.
    let set = unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(features)) };
    Errno::result(set).map(drop).map_err(io::Error::from)
}

fn set_header_len(queue: BorrowedFd<'_>, length: usize) -> io::Result<()> {
    let length = libc::c_int::try_from(length).expect("a header has some bytes");
    // SAFETY: the request reads one `int`, which outlives the call.
    let set = unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const length) };
    Errno::result(set).map(drop).map_err(io::Error::from)
}

const TCP: libc::c_uint = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
const UDP: libc::c_uint = libc::TUN_F_USO4 | libc::TUN_F_USO6;
/// `TUN_F_UDP_TUNNEL_GSO` and `TUN_F_UDP_TUNNEL_GSO_CSUM` of `linux/if_tun.h`.
const TUNNELS: libc::c_uint = 0x080 | 0x100;
const ETHERNET_LEN: u16 = 14;
/// Outer IPv4 and UDP, VXLAN, Ethernet, inner IPv4 and TCP, and two bytes that make two segments.
const PROBE_LEN: usize = 20 + 8 + 8 + 14 + 20 + 20 + 2;
