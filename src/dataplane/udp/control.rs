//! What is said beside a datagram in the control messages of `sendmsg` and `recvmsg`: segment size and stride, the local
//! address and the interface, the traffic class.
#![expect(unsafe_code, reason = "the kernel lays control messages out for pointer arithmetic")]

use std::mem::{size_of, zeroed};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::packet::traffic_class::TrafficClass;

/// Room for a segment size or stride, a packet-info message and a traffic class, aligned as `cmsghdr` wants.
#[repr(C, align(8))]
#[derive(Debug)]
pub(super) struct ControlBuffer([u8; ControlBuffer::LEN]);

impl ControlBuffer {
    /// Length in bytes.
    pub(super) const LEN: usize = 96;

    /// Empty.
    pub(super) fn new() -> Self {
        Self([0; Self::LEN])
    }

    /// For `msg_control`.
    pub(super) fn as_mut_ptr(&mut self) -> *mut libc::c_void {
        self.0.as_mut_ptr().cast()
    }
}

/// Control messages for datagrams to send.
#[derive(Debug)]
pub(super) struct SendControl {
    buffer: ControlBuffer,
    length: usize,
}

impl SendControl {
    /// Cut into segments of that size; sent from that address, by that interface if it is not 0 (IPv6 only).
    pub(super) fn new(segment_size: Option<u16>, source: Option<IpAddr>, interface: u32) -> Self {
        let mut control = Self { buffer: ControlBuffer::new(), length: 0 };
        if let Some(segment_size) = segment_size {
            control.push(libc::SOL_UDP, libc::UDP_SEGMENT, segment_size);
        }
        match source {
            Some(IpAddr::V4(source)) => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: 0,
                    ipi_spec_dst: libc::in_addr { s_addr: u32::from_ne_bytes(source.octets()) },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                control.push(libc::IPPROTO_IP, libc::IP_PKTINFO, info);
            }
            Some(IpAddr::V6(source)) => {
                let ipi6_addr = libc::in6_addr { s6_addr: source.octets() };
                let info = libc::in6_pktinfo { ipi6_addr, ipi6_ifindex: interface as _ };
                control.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
            }
            None => {}
        }
        control
    }

    /// Has the IP headers, of the socket's family, say that.
    pub(super) fn set_traffic_class(&mut self, is_v4: bool, traffic_class: TrafficClass) {
        match is_v4 {
            true => self.push(libc::IPPROTO_IP, libc::IP_TOS, traffic_class.byte()),
            false => self.push(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, libc::c_int::from(traffic_class.byte())),
        }
    }

    /// For `msg_control` and `msg_controllen`.
    pub(super) fn as_parts(&mut self) -> (*mut libc::c_void, usize) {
        (self.buffer.as_mut_ptr(), self.length)
    }

    fn push<T: Copy>(&mut self, level: libc::c_int, kind: libc::c_int, value: T) {
        let (length, space) = cmsg_lengths::<T>();
        assert!(self.length + space <= ControlBuffer::LEN, "room for all that is ever pushed");
        // SAFETY: the message lies within the buffer, by the assertion; the buffer and every message's space are
        // multiples of the alignment of `cmsghdr`; `CMSG_DATA` points behind the header, to room for a `T`.
        unsafe {
            let header = self.buffer.0.as_mut_ptr().add(self.length).cast::<libc::cmsghdr>();
            (*header).cmsg_level = level;
            (*header).cmsg_type = kind;
            (*header).cmsg_len = length as _;
            libc::CMSG_DATA(header).cast::<T>().write_unaligned(value);
        }
        self.length += space;
    }
}

/// Length of a message with a `T`, and the room that it takes.
fn cmsg_lengths<T>() -> (usize, usize) {
    let size = size_of::<T>() as libc::c_uint;
    // SAFETY: both are arithmetic.
    unsafe { (libc::CMSG_LEN(size) as usize, libc::CMSG_SPACE(size) as usize) }
}

/// What the kernel says beside a received datagram.
#[derive(Debug, Default)]
pub(super) struct ReceiveInfo {
    /// Length of each datagram of a gathered receive.
    pub(super) stride: Option<usize>,
    /// The address it was sent to.
    pub(super) local: Option<IpAddr>,
    /// The interface it came in on; IPv6 only.
    pub(super) interface: u32,
    /// That of its IP header.
    pub(super) traffic_class: TrafficClass,
}

impl ReceiveInfo {
    /// Reads what `recvmsg` left in the first `length` bytes of `buffer`.
    pub(super) fn read(buffer: &mut ControlBuffer, length: usize) -> Self {
        let mut info = Self::default();
        // SAFETY: all zeros is a valid `msghdr`: null pointers with zero lengths.
        let mut message: libc::msghdr = unsafe { zeroed() };
        message.msg_control = buffer.as_mut_ptr();
        message.msg_controllen = length.min(ControlBuffer::LEN) as _;
        // SAFETY: `message` points to its buffer with the length of what is in it, and the macros stay within that; the
        // kernel writes whole messages, each with a value of the type that is read for its level and kind.
        unsafe {
            let mut header = libc::CMSG_FIRSTHDR(&message);
            while !header.is_null() {
                info.take((*header).cmsg_level, (*header).cmsg_type, libc::CMSG_DATA(header));
                header = libc::CMSG_NXTHDR(&message, header);
            }
        }
        info
    }

    /// # Safety
    /// `data` points to a value of the type that the kernel documents for the level and kind.
    unsafe fn take(&mut self, level: libc::c_int, kind: libc::c_int, data: *const u8) {
        match (level, kind) {
            (libc::SOL_UDP, libc::UDP_GRO) => {
                // SAFETY: the value is a `c_int`.
                let stride = unsafe { data.cast::<libc::c_int>().read_unaligned() };
                self.stride = usize::try_from(stride).ok().filter(|stride| *stride > 0);
            }
            (libc::IPPROTO_IP, libc::IP_TOS) => {
                // SAFETY: the value is a byte.
                self.traffic_class = TrafficClass::from_byte(unsafe { data.read() });
            }
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                // SAFETY: the value is a `c_int`.
                let class = unsafe { data.cast::<libc::c_int>().read_unaligned() };
                self.traffic_class = TrafficClass::from_byte(u8::try_from(class).unwrap_or_default());
            }
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                // SAFETY: the value is an `in_pktinfo`.
                let info = unsafe { data.cast::<libc::in_pktinfo>().read_unaligned() };
                // `ipi_spec_dst` is the local address to answer from even where `ipi_addr` is a broadcast.
                self.local = Some(Ipv4Addr::from(info.ipi_spec_dst.s_addr.to_ne_bytes()).into());
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                // SAFETY: the value is an `in6_pktinfo`.
                let info = unsafe { data.cast::<libc::in6_pktinfo>().read_unaligned() };
                self.local = Some(Ipv6Addr::from(info.ipi6_addr.s6_addr).into());
                self.interface = info.ipi6_ifindex as _;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_messages_are_read_as_they_were_written() {
        for (source, interface) in [("192.0.2.1", 0), ("fe80::1", 7)] {
            let source: IpAddr = source.parse().unwrap();
            let mut control = SendControl::new(Some(1452), Some(source), interface);
            let (_, length) = control.as_parts();
            let info = ReceiveInfo::read(&mut control.buffer, length);
            assert_eq!((info.local, info.interface), (Some(source), interface));
            assert_eq!(info.stride, None, "UDP_SEGMENT is not UDP_GRO");
        }
    }

    #[test]
    fn a_traffic_class_is_read_as_it_was_written_beside_all_else() {
        for (source, is_v4) in [("192.0.2.1", true), ("fe80::1", false)] {
            for class in [0x01, 0xb8, 0xff].map(TrafficClass::from_byte) {
                let mut control = SendControl::new(Some(1452), Some(source.parse().unwrap()), 7);
                control.set_traffic_class(is_v4, class);
                let (_, length) = control.as_parts();
                assert_eq!(ReceiveInfo::read(&mut control.buffer, length).traffic_class, class);
            }
        }
    }

    #[test]
    fn nothing_said_is_an_empty_message() {
        assert_eq!(SendControl::new(None, None, 3).as_parts().1, 0);
        let info = ReceiveInfo::read(&mut ControlBuffer::new(), 0);
        assert_eq!((info.stride, info.local, info.interface), (None, None, 0));
    }

    #[test]
    fn a_stride_is_read_and_one_of_zero_is_none() {
        for (value, stride) in [(1452, Some(1452)), (0, None), (-1, None)] {
            let mut control = SendControl::new(None, None, 0);
            control.push::<libc::c_int>(libc::SOL_UDP, libc::UDP_GRO, value);
            let length = control.length;
            assert_eq!(ReceiveInfo::read(&mut control.buffer, length).stride, stride);
        }
    }
}
