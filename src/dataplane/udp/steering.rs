//! Which of the sockets that share a port takes a datagram: that of the worker whose lane it came on, or that of whatever is
//! no transport data.

use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd as _;

use nix::errno::Errno;

use crate::packet::message::KIND_TRANSPORT;

use super::UdpSocket;

impl UdpSocket {
    /// Has transport data of lane *i* go to the socket that was bound as number *i* modulo `workers`, and everything else
    /// to the one that was bound after those: for all that share this socket's port.
    pub(in crate::dataplane) fn steer_by_lane(&self, workers: u8) -> io::Result<()> {
        let mut program = program(workers);
        let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        // SAFETY: the option's value is a `sock_fprog`, which the kernel reads during the call only, as it does the
        // program of `len` instructions that it points to.
        let result = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_ATTACH_REUSEPORT_CBPF,
                (&raw const filter).cast(),
                size_of::<libc::sock_fprog>() as libc::socklen_t,
            )
        };
        Errno::result(result).map(drop).map_err(io::Error::from)
    }
}

/// In the language of the kernel's classic socket filters. It sees the UDP payload; loads beyond its end return 0.
fn program(workers: u8) -> [libc::sock_filter; 6] {
    let instruction = |code: u32, operand: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k: operand };
    let load_byte = |offset: u32| instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, offset);
    let kind_is = instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, u32::from(KIND_TRANSPORT));
    [
        load_byte(0),
        libc::sock_filter { jf: 3, ..kind_is },
        load_byte(1),
        instruction(libc::BPF_ALU | libc::BPF_MOD | libc::BPF_K, u32::from(workers)),
        instruction(libc::BPF_RET | libc::BPF_A, 0),
        instruction(libc::BPF_RET | libc::BPF_K, u32::from(workers)),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::tests::{bind, receive};
    use super::super::{BindOptions, RECEIVE_BUFFER_LEN};
    use super::*;
    use crate::packet::message::INITIATION_LEN;
    use crate::packet::traffic_class::TrafficClass;
    use crate::proto::endpoint::Endpoint;

    #[test]
    fn each_lane_goes_to_its_worker_and_everything_else_to_the_socket_behind() {
        let options = BindOptions { shared: true, handshakes: false, fwmark: None, privileges: None };
        let first = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), options).unwrap();
        let share = || UdpSocket::bind(first.local(), options).unwrap();
        let sockets = [&first, &share(), &share(), &share()];
        first.steer_by_lane(3).unwrap();
        let sender = bind("127.0.0.1:0");
        let to = Endpoint::new(first.local());
        let cases: [(&[u8], usize); 9] = [
            (&[4, 0, 9], 0),
            (&[4, 1, 9], 1),
            (&[4, 2, 9], 2),
            (&[4, 3, 9], 0),
            (&[4, 5, 9], 2),
            (&[1, 1, 9], 3),
            (&[3, 2], 3),
            (&[0], 3),
            (&[4], 0),
        ];
        let mut buffer = vec![0; RECEIVE_BUFFER_LEN];
        for (datagram, socket) in cases {
            sender.send(&to, TrafficClass::default(), datagram, datagram.len()).unwrap();
            let received = receive(sockets[socket], &mut buffer);
            assert_eq!(&buffer[..received.length], datagram);
        }
    }

    #[test]
    fn a_flood_of_what_is_no_transport_data_takes_no_room_that_data_needs() {
        let options = BindOptions { shared: true, handshakes: false, fwmark: None, privileges: None };
        let share = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), options).unwrap();
        let handshakes = UdpSocket::bind(share.local(), BindOptions { handshakes: true, ..options }).unwrap();
        share.steer_by_lane(1).unwrap();
        let sender = bind("127.0.0.1:0");
        let to = Endpoint::new(share.local());
        let mut initiation = [0; INITIATION_LEN];
        initiation[0] = 1;
        for _ in 0..20_000 {
            let _ = sender.send(&to, TrafficClass::default(), &initiation, initiation.len());
        }
        sender.send(&to, TrafficClass::default(), &[KIND_TRANSPORT, 0, 9], 3).unwrap();
        let mut buffer = vec![0; RECEIVE_BUFFER_LEN];
        assert_eq!(receive(&share, &mut buffer).length, 3);
        assert_eq!(receive(&handshakes, &mut buffer).length, INITIATION_LEN);
    }
}
