//! As much HTTP/1.1 as the demo's customers, load balancer and apps speak: kept connections and `Content-Length`.
//!
//! No chunks, no pipelining, no trailers: all three parties are the demo's own.

use std::io::{self, BufRead, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::namespace::Namespace;

/// Longest head and longest body that are read.
const MAX_PART: u64 = 1 << 20;

/// How long a party waits for another. A lost packet costs a second at most; this is for a dead link.
const PATIENCE: Duration = Duration::from_secs(5);

const STOP_CHECK_MILLISECONDS: u16 = 20;

/// A request or a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    /// Start line and headers with the empty line that ends them.
    pub(super) head: String,
    /// What follows.
    pub(super) body: Vec<u8>,
}

impl Message {
    /// Reads the next message; `None` when the other side has closed the connection between two.
    pub(super) fn read(from: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut head = String::new();
        let mut limited = from.by_ref().take(MAX_PART);
        while !head.ends_with("\r\n\r\n") {
            if limited.read_line(&mut head)? == 0 {
                return if head.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
        let mut body = vec![0; content_length(&head)?];
        from.read_exact(&mut body)?;
        Ok(Some(Self { head, body }))
    }

    /// Writes head and body at once, so that a small message is one segment.
    pub(super) fn write(&self, to: &mut TcpStream) -> io::Result<()> {
        to.write_all(&[self.head.as_bytes(), &self.body].concat())
    }
}

fn content_length(head: &str) -> io::Result<usize> {
    let value = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim())
    });
    match value.unwrap_or("0").parse::<u64>() {
        Ok(length) if length <= MAX_PART => Ok(usize::try_from(length).expect("a mebibyte fits")),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "not a length this demo reads")),
    }
}

/// A connection that carries one request after the other.
#[derive(Debug)]
pub(super) struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Connects from the namespace this thread is in.
    pub(super) fn open(to: SocketAddr) -> io::Result<Self> {
        Self::from_stream(TcpStream::connect_timeout(&to, PATIENCE)?)
    }

    fn from_stream(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends a request and waits for its response.
    pub(super) fn exchange(&mut self, request: &Message) -> io::Result<Message> {
        request.write(self.stream.get_mut())?;
        Message::read(&mut self.stream)?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

/// A listening HTTP server: a thread per connection, each with a handler of its own.
#[derive(Debug)]
pub(super) struct Server {
    stop: Arc<AtomicBool>,
    /// `None` once joined.
    thread: Option<JoinHandle<Result<()>>>,
}

impl Server {
    /// Listens on `address` in `namespace`. `new_handler` makes what answers the requests of one
    /// connection, on that connection's thread.
    pub(super) fn start<H>(
        namespace: &Namespace,
        address: SocketAddr,
        new_handler: impl Fn() -> H + Send + Sync + 'static,
    ) -> Result<Self>
    where
        H: FnMut(Message) -> Message,
    {
        let listener = namespace.run(|| {
            let listener = TcpListener::bind(address).with_context(|| format!("listening on {address}"))?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        })?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let new_handler = Arc::new(new_handler);
        let thread = namespace.spawn(move || accept(&listener, &new_handler, &stopped));
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Server {
    /// Ends listening; a connection's thread ends when its client goes.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It can only have failed to accept, which the clients have noticed.
            drop(thread.join());
        }
    }
}

fn accept<H, N>(listener: &TcpListener, new_handler: &Arc<N>, stop: &AtomicBool) -> Result<()>
where
    H: FnMut(Message) -> Message,
    N: Fn() -> H + Send + Sync + 'static,
{
    while !stop.load(Ordering::Relaxed) {
        let mut events = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        if poll(&mut events, PollTimeout::from(STOP_CHECK_MILLISECONDS))? > 0 {
            let (stream, _) = listener.accept()?;
            stream.set_nonblocking(false)?;
            let new_handler = Arc::clone(new_handler);
            std::thread::spawn(move || serve(stream, new_handler()));
        }
    }
    Ok(())
}

/// Answers until the client closes the connection or falls silent. Errors end it too: the client sees the end.
fn serve(stream: TcpStream, mut handler: impl FnMut(Message) -> Message) -> io::Result<()> {
    let mut connection = Connection::from_stream(stream)?;
    while let Some(request) = Message::read(&mut connection.stream)? {
        handler(request).write(connection.stream.get_mut())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_two_messages_from_one_connection() {
        let mut bytes: &[u8] = b"POST / HTTP/1.1\r\ncontent-length: 2\r\n\r\nhiGET / HTTP/1.1\r\n\r\n";
        assert_eq!(Message::read(&mut bytes).unwrap().unwrap().body, b"hi");
        assert_eq!(Message::read(&mut bytes).unwrap().unwrap().head, "GET / HTTP/1.1\r\n\r\n");
        assert_eq!(Message::read(&mut bytes).unwrap(), None);
    }

    #[test]
    fn a_message_cut_short_is_an_error() {
        for cut in [&b"POST / HTTP"[..], b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nhi"] {
            let mut bytes = cut;
            assert_eq!(Message::read(&mut bytes).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn an_absurd_length_is_refused() {
        let mut bytes: &[u8] = b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n";
        assert_eq!(Message::read(&mut bytes).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
