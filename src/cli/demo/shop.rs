//! The demo's app, a till that charges credit cards, and the customer who pays there.
//!
//! Both speak plain HTTP and know nothing of tunnels. The till keeps its books, so that the demo can compare what was
//! charged with what the customers meant to pay.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};

use super::http::{Connection, Message, Server};
use super::namespace::Namespace;

/// The port the apps listen on.
pub(super) const PORT: u16 = 8080;
/// The customer's card (a number that card companies reserve for tests).
pub(super) const CARD: &str = "4242-4242-4242-4242";
/// The customer's session cookie: whoever has it is the customer.
pub(super) const COOKIE: &str = "session=alice-7f3c9d1e";
/// What each payment is for.
pub(super) const AMOUNT: &str = "120.00";

/// Size of the page that speed is measured with.
const PAGE_SIZE: usize = 1024;

/// One line of a till's books.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Charge {
    /// The order's number, unique in the demo.
    pub(super) order: u32,
    /// The amount the app saw.
    pub(super) amount: String,
}

/// An app: answers `POST /pay` and `GET /`.
#[derive(Debug)]
pub(super) struct Till {
    books: Arc<Mutex<Vec<Charge>>>,
    _server: Server,
}

impl Till {
    /// Starts the app in its namespace.
    pub(super) fn start(namespace: &Namespace, name: &'static str) -> Result<Self> {
        let books = Arc::<Mutex<Vec<Charge>>>::default();
        let shared = Arc::clone(&books);
        let server = Server::start(namespace, SocketAddr::from(([0, 0, 0, 0], PORT)), move || {
            let books = Arc::clone(&shared);
            move |request| answer(name, &books, &request)
        })?;
        Ok(Self { books, _server: server })
    }

    /// Closes the books: what was charged since they were last closed.
    pub(super) fn close_books(&self) -> Vec<Charge> {
        std::mem::take(&mut *self.books.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn answer(name: &str, books: &Mutex<Vec<Charge>>, request: &Message) -> Message {
    if request.head.starts_with("GET / ") {
        return response("200 OK", name, ".".repeat(PAGE_SIZE));
    }
    let charge = request.head.starts_with("POST /pay ").then(|| read_charge(&request.body)).flatten();
    let Some(charge) = charge else {
        return response("400 Bad Request", name, "not a payment\n".into());
    };
    let receipt = format!("order={:05}&charged={}\n", charge.order, charge.amount);
    books.lock().unwrap_or_else(PoisonError::into_inner).push(charge);
    response("200 OK", name, receipt)
}

fn read_charge(body: &[u8]) -> Option<Charge> {
    let body = std::str::from_utf8(body).ok()?;
    Some(Charge { order: field(body, "order")?.parse().ok()?, amount: field(body, "sum")?.to_owned() })
}

fn response(status: &str, name: &str, body: String) -> Message {
    let head = format!("HTTP/1.1 {status}\r\nServer: {name}\r\nContent-Length: {}\r\n\r\n", body.len());
    Message { head, body: body.into_bytes() }
}

fn field<'b>(body: &'b str, name: &str) -> Option<&'b str> {
    body.trim_end()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value)
}

/// What a customer has in hand after paying.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Receipt {
    /// The app that served, by its own word.
    pub(super) app: String,
    /// The order and the amount charged, as the customer reads them.
    pub(super) charge: Charge,
}

/// Customers who are connected and have paid once.
#[derive(Debug, Default)]
pub(super) struct Queue {
    connections: Vec<Connection>,
    receipts: Vec<Receipt>,
}

/// Customers: count their orders through.
#[derive(Debug, Default)]
pub(super) struct Customers {
    orders: AtomicU32,
}

impl Customers {
    /// Pays `times` at the load balancer, one after the other, from `namespace`.
    pub(super) fn pay(&self, namespace: &Namespace, balancer: SocketAddr, times: u32) -> Result<Vec<Receipt>> {
        namespace.run(|| {
            let mut connection = Connection::open(balancer).context("connecting to the load balancer")?;
            (0..times).map(|_| self.pay_once(&mut connection)).collect()
        })
    }

    /// Lets `customers` connect to the load balancer and pay once each.
    pub(super) fn queue_up(&self, namespace: &Namespace, balancer: SocketAddr, customers: usize) -> Result<Queue> {
        namespace.run(|| {
            let mut queue = Queue::default();
            for _ in 0..customers {
                let mut connection = Connection::open(balancer).context("connecting to the load balancer")?;
                queue.receipts.push(self.pay_once(&mut connection)?);
                queue.connections.push(connection);
            }
            Ok(queue)
        })
    }

    /// Everyone in the queue pays `times` more, all at once. Returns all receipts.
    pub(super) fn pay_at_once(&self, queue: Queue, times: u32) -> Result<Vec<Receipt>> {
        let Queue { connections, mut receipts } = queue;
        std::thread::scope(|scope| {
            let pay = |mut connection| (0..times).map(|_| self.pay_once(&mut connection)).collect::<Result<Vec<_>>>();
            let threads: Vec<_> =
                connections.into_iter().map(|connection| scope.spawn(move || pay(connection))).collect();
            for thread in threads {
                receipts.extend(thread.join().expect("a panic in the demo ends the process in its hook")?);
            }
            Ok(receipts)
        })
    }

    fn pay_once(&self, connection: &mut Connection) -> Result<Receipt> {
        let order = self.orders.fetch_add(1, Ordering::Relaxed) + 1;
        let response = connection.exchange(&payment(order)).with_context(|| format!("paying for order {order}"))?;
        receipt(&response).with_context(|| format!("no receipt for order {order}: {:?}", response.head))
    }
}

fn receipt(response: &Message) -> Option<Receipt> {
    let body = std::str::from_utf8(&response.body).ok()?;
    let app = response.head.lines().find_map(|line| line.strip_prefix("Server: "))?.to_owned();
    let charge = Charge { order: field(body, "order")?.parse().ok()?, amount: field(body, "charged")?.to_owned() };
    Some(Receipt { app, charge })
}

fn payment(order: u32) -> Message {
    let body = format!("card={CARD}&sum={AMOUNT}&order={order:05}");
    let length = body.len();
    let head =
        format!("POST /pay HTTP/1.1\r\nHost: shop.example\r\nCookie: {COOKIE}\r\nContent-Length: {length}\r\n\r\n");
    Message { head, body: body.into_bytes() }
}

/// The request that speed is measured with.
pub(super) fn page_request() -> Message {
    Message { head: "GET / HTTP/1.1\r\nHost: shop.example\r\n\r\n".into(), body: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_till_books_what_it_read_and_says_so() {
        let books = Mutex::default();
        let response = answer("app1", &books, &payment(7));
        let charge = Charge { order: 7, amount: AMOUNT.into() };
        assert_eq!(receipt(&response), Some(Receipt { app: "app1".into(), charge: charge.clone() }));
        assert_eq!(books.into_inner().unwrap(), [charge]);
    }

    #[test]
    fn what_is_not_a_payment_is_not_booked() {
        let books = Mutex::default();
        let request = Message { head: "POST /pay HTTP/1.1\r\n\r\n".into(), body: b"sum=1".to_vec() };
        assert!(answer("app1", &books, &request).head.starts_with("HTTP/1.1 400"));
        assert!(books.into_inner().unwrap().is_empty());
    }
}
