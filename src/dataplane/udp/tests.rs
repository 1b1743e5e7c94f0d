use super::*;

const OPTIONS: BindOptions<'static> = BindOptions { shared: false, handshakes: false, fwmark: None, privileges: None };

/// A socket of a test.
pub(in super::super) fn bind(address: &str) -> UdpSocket {
    UdpSocket::bind(address.parse().unwrap(), OPTIONS).unwrap()
}

/// Waits for a datagram: loopback delivers before `sendmsg` returns, but not always on another core.
pub(in super::super) fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> Received {
    let mut descriptors = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    poll(&mut descriptors, 5000u16).unwrap();
    socket.receive(buffer).unwrap().expect("a datagram within five seconds")
}

#[test]
fn a_taken_port_is_an_error_that_names_it() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let first = bind(address);
        let error = UdpSocket::bind(first.local(), OPTIONS).unwrap_err();
        assert!(matches!(error, BindError::PortTaken(taken) if taken == first.local()));
        assert!(error.to_string().contains(&first.local().port().to_string()));
    }
}

#[test]
fn an_address_of_another_host_is_an_error_that_names_it() {
    let address: SocketAddr = "192.0.2.1:51900".parse().unwrap();
    assert!(
        matches!(UdpSocket::bind(address, OPTIONS), Err(BindError::AddressNotAvailable(named)) if named == address)
    );
}

#[test]
fn both_families_share_a_port() {
    let v4 = bind("0.0.0.0:0");
    let v6 = UdpSocket::bind(SocketAddr::new("::".parse().unwrap(), v4.local().port()), OPTIONS).unwrap();
    assert_eq!(v4.local().port(), v6.local().port());
}

#[test]
fn the_socket_bound_to_the_contacted_address_answers() {
    let sockets = [bind("127.0.0.2:0"), bind("0.0.0.0:0"), bind("[::1]:0")];
    let fitness = |local: Option<&str>, remote: &str| {
        let endpoint =
            Endpoint { local: local.map(|local| local.parse().unwrap()), ..Endpoint::new(remote.parse().unwrap()) };
        sockets.each_ref().map(|socket| socket.fitness(&endpoint))
    };
    assert_eq!(fitness(Some("127.0.0.2"), "127.0.0.1:1"), [3, 2, 0]);
    assert_eq!(fitness(Some("127.0.0.3"), "127.0.0.1:1"), [1, 2, 0]);
    assert_eq!(fitness(None, "[::1]:1"), [0, 0, 1]);
}

#[test]
fn what_the_network_says_of_a_closed_port_is_told_and_costs_no_other_datagram() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let (socket, other) = (bind(address), bind(address));
        let closed = bind(address).local();
        let mut told = Vec::new();
        for round in 0..50 {
            // The answer may come before the next send, which then meets it.
            socket.send(&Endpoint::new(closed), TrafficClass::default(), b"anybody there?", 14).unwrap();
            socket.send(&Endpoint::new(other.local()), TrafficClass::default(), &[round], 1).unwrap();
            socket.take_errors(|error| told.push(error));
        }
        let expected = IcmpError {
            endpoint: closed,
            kind: crate::dataplane::NetworkErrorKind::PortUnreachable,
            from: closed.ip(),
        };
        assert!(told.len() > 1 && told.iter().all(|error| *error == expected), "{told:?}");
        let mut buffer = vec![0; RECEIVE_BUFFER_LEN];
        let mut arrived = 0;
        while let Some(received) = other.receive(&mut buffer).unwrap() {
            arrived += received.length;
        }
        assert_eq!(arrived, 50, "of the datagrams to a port that is open");
        assert_eq!(socket.receive(&mut buffer).unwrap(), None, "errors are no failure");
    }
}
