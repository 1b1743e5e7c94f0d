//! A small HTTP/1.1 client.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::host::Host;

/// One connection to a server.
pub struct Client {
    stream: BufReader<TcpStream>,
    host: String,
}

/// An answer.
#[derive(Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The whole body.
    pub body: Vec<u8>,
}

/// A request's parts beside method and path.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extra<'a> {
    /// More headers.
    pub headers: &'a [(&'a str, &'a str)],
    /// The body.
    pub body: &'a [u8],
}

impl Client {
    /// Connects from a host to a server.
    pub fn connect(host: &Host, server: SocketAddr) -> anyhow::Result<Client> {
        let stream = host.run(|| TcpStream::connect_timeout(&server, Duration::from_secs(5)))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.set_write_timeout(Some(Duration::from_secs(30)))?;
        stream.set_nodelay(true)?;
        Ok(Client { stream: BufReader::with_capacity(1 << 16, stream), host: server.to_string() })
    }

    /// Asks for a path.
    pub fn get(&mut self, path: &str) -> anyhow::Result<Response> {
        self.request("GET", path, Extra::default())
    }

    /// Sends a request and reads the whole answer.
    pub fn request(&mut self, method: &str, path: &str, extra: Extra) -> anyhow::Result<Response> {
        let length = extra.body.len();
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nContent-Length: {length}\r\n", self.host);
        extra.headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
        head.push_str("\r\n");
        let mut stream = self.stream.get_ref();
        stream.write_all(head.as_bytes())?;
        stream.write_all(extra.body)?;
        self.read_response()
    }

    fn read_response(&mut self) -> anyhow::Result<Response> {
        let status_line = self.read_line()?;
        let status = status_line.split(' ').nth(1).and_then(|code| code.parse().ok());
        let status = status.with_context(|| format!("not a status line: {status_line:?}"))?;
        let mut headers = vec![];
        loop {
            let line = self.read_line()?;
            match line.split_once(':') {
                Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.trim().to_owned())),
                None if line.is_empty() => break,
                None => bail!("not a header: {line:?}"),
            }
        }
        let mut response = Response { status, headers, body: vec![] };
        response.body = self.read_body(&response)?;
        Ok(response)
    }

    fn read_body(&mut self, response: &Response) -> anyhow::Result<Vec<u8>> {
        let mut body = vec![];
        if let Some(length) = response.header("content-length") {
            body.resize(length.parse()?, 0);
            self.stream.read_exact(&mut body)?;
        } else if response.header("transfer-encoding") == Some("chunked") {
            while let length @ 1.. = usize::from_str_radix(&self.read_line()?, 16)? {
                let start = body.len();
                body.resize(start + length, 0);
                self.stream.read_exact(&mut body[start..])?;
                self.read_line()?;
            }
            self.read_line()?;
        } else if !matches!(response.status, 204 | 304) {
            bail!("a body of unknown length: {response:?}");
        }
        Ok(body)
    }

    fn read_line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        match line.strip_suffix("\r\n") {
            Some(line) => Ok(line.to_owned()),
            None => bail!("the connection ended in a line: {line:?}"),
        }
    }
}

impl Response {
    /// The value of a header, by its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(candidate, _)| candidate == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}
