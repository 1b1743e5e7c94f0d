use super::*;

const OPTIONS: BindOptions = BindOptions { shared: false, handshakes: false, fwmark: None };

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
