//! A name server that answers every question for IPv4 addresses with as many as it is told, by UDP and TCP.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use nix::mount::{MsFlags, mount};

use crate::background::{Background, End};
use crate::host::Host;
use crate::wait;

/// A running name server.
pub struct NameServer {
    _udp: Background,
    _tcp: Background,
}

impl NameServer {
    /// Answers on a machine at `address`, always with the first `count` addresses of 198.18.0.0/15.
    #[track_caller]
    pub fn start(host: &Host, address: &str, count: u16) -> NameServer {
        let bound =
            host.run(|| Ok::<_, std::io::Error>((UdpSocket::bind((address, 53))?, TcpListener::bind((address, 53))?)));
        let (udp, tcp) = bound.unwrap_or_else(|e| panic!("no name server at {address}: {e}"));
        udp.set_read_timeout(Some(LOOK_INTERVAL)).expect("a socket takes a timeout");
        tcp.set_nonblocking(true).expect("a socket can be non-blocking");
        let udp = Background::new(|end| std::thread::spawn(move || answer_datagrams(&udp, count, &end)));
        let tcp = Background::new(|end| std::thread::spawn(move || answer_connections(&tcp, count, &end)));
        NameServer { _udp: udp, _tcp: tcp }
    }
}

/// Has programs that are started on a machine from here on ask the name server at `address`, and no other.
#[track_caller]
pub fn use_name_server(host: &Host, address: &str) {
    let file = host.write_file("resolv.conf", format!("nameserver {address}\n"));
    let mounted =
        host.call(move || mount(Some(&file), "/etc/resolv.conf", None::<&str>, MsFlags::MS_BIND, None::<&str>));
    mounted.expect("root may mount in a namespace of its own");
}

fn answer_datagrams(socket: &UdpSocket, count: u16, end: &End) {
    let mut query = [0; 512];
    while !end.has_come() {
        let Ok((length, client)) = socket.recv_from(&mut query) else { continue };
        let mut answer = answer(&query[..length], count);
        if answer.len() > MAX_UDP_ANSWER {
            // Cut off: the client asks again by TCP.
            answer = self::answer(&query[..length], 0);
            answer[2] |= 0x02;
        }
        let _ = socket.send_to(&answer, client);
    }
}

fn answer_connections(listener: &TcpListener, count: u16, end: &End) {
    while !end.has_come() {
        match listener.accept() {
            Ok((stream, _)) => drop(answer_connection(stream, count)),
            Err(_) => wait::pass(LOOK_INTERVAL),
        }
    }
}

fn answer_connection(mut stream: TcpStream, count: u16) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut query = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut query)?;
    let answer = answer(&query, count);
    let length = u16::try_from(answer.len()).expect("4,000 addresses fit one message");
    stream.write_all(&length.to_be_bytes())?;
    stream.write_all(&answer)
}

/// RFC 1035 §4: the question again, and `count` addresses if it asks for IPv4, none if for anything else.
fn answer(query: &[u8], count: u16) -> Vec<u8> {
    let end_of_name = 12 + query[12..].iter().position(|byte| *byte == 0).expect("a name ends with the root");
    let question = &query[12..end_of_name + 5];
    let is_v4 = question[question.len() - 4..question.len() - 2] == [0, 1];
    let count = if is_v4 { count } else { 0 };
    let mut answer = vec![query[0], query[1], 0x84, 0x00, 0, 1];
    answer.extend(count.to_be_bytes());
    answer.extend([0, 0, 0, 0]);
    answer.extend(question);
    for number in 0..count {
        // The question's name, type A, class IN, a minute, four bytes.
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 198, 18]);
        answer.extend(number.to_be_bytes());
    }
    answer
}

const LOOK_INTERVAL: Duration = Duration::from_millis(20);
const MAX_UDP_ANSWER: usize = 512;
