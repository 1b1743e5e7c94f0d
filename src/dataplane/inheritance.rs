//! Descriptors that an earlier process left: its TUN queues and UDP sockets, which went on queueing packets meanwhile. What
//! fits the configuration is used again, the rest is refused with a reason.
//!
//! How they come from one process to the next is control's.
#![expect(unsafe_code, reason = "a descriptor that was inherited is known by its number only")]

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};
use std::str::FromStr;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::DataplaneConfig;
use super::sockets::AddressSockets;
use super::tun::Tun;
use super::udp::{BindOptions, UdpSocket};

/// A descriptor with the name under which it was handed on.
#[derive(Debug)]
pub struct Inherited {
    name: String,
    descriptor: OwnedFd,
}

/// What a data plane goes on with; nothing, at a first start.
#[derive(Debug, Default)]
pub struct Inheritance {
    pub(super) tun: Option<Tun>,
    /// Of some of the addresses that we listen on, complete.
    pub(super) sockets: Vec<AddressSockets>,
}

/// A descriptor that was closed.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    /// Its name.
    pub name: String,
    /// What is wrong with it.
    pub reason: Unfit,
}

/// Why a descriptor is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// A name that we give to nothing.
    #[error("nothing has that name")]
    UnknownName,
    /// A second one of that name, where there can be only one.
    #[error("there is another of that name")]
    Twice,
    /// Another file.
    #[error("it is no TUN queue")]
    NotTun,
    /// The interface was deleted.
    #[error("its interface has vanished")]
    TunGone,
    /// A TUN of another name.
    #[error("it is of the interface {0}, which is not the configured one")]
    OtherInterface(String),
    /// Another device mode, or more workers, than the device was made for.
    #[error("its interface was made for another device mode, or for fewer workers")]
    OtherDevice,
    /// Another file.
    #[error("it is no UDP socket")]
    NotUdp,
    /// An option that can't be changed any more, or that the kernel refuses.
    #[error("a socket with its options is of no use")]
    OtherOptions,
    /// An address that is not listened on, or not by so many lanes.
    #[error(
        "it is bound to {0}, where the configuration needs no such socket, or one of several that it needs is missing"
    )]
    OtherAddress(SocketAddr),
    /// Sockets belong to the queues of a TUN.
    #[error("the interface that it belongs to is made anew")]
    WithoutTun,
}

/// What a descriptor is for. The name under which it is handed on says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Role {
    /// A queue of the TUN.
    Tun(u8),
    /// A lane's share of a port that is listened on.
    Listen(u8),
    /// The share of such a port for all that is no transport data.
    Handshakes,
    /// A lane's own port.
    Lane(u8),
}

impl Inherited {
    /// Takes what an earlier process left open as `number`. Before this process opens anything: none that it has opened
    /// itself is taken, since all of those would be closed when another program takes its place.
    pub fn take(number: RawFd, name: String) -> Option<Self> {
        // SAFETY: the request only reads the descriptor's flags, and fails if the number is not open.
        let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
        if number <= libc::STDERR_FILENO || flags < 0 || FdFlag::from_bits_truncate(flags).contains(FdFlag::FD_CLOEXEC)
        {
            return None;
        }
        // SAFETY: it is open, and nothing in this process owns it: what the standard library and every crate opens before
        // is closed on exec, and so is what was taken here before.
        let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
        fcntl(&descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).ok()?;
        Some(Self { name, descriptor })
    }

    /// The name under which it was handed on.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl From<Inherited> for OwnedFd {
    fn from(inherited: Inherited) -> Self {
        inherited.descriptor
    }
}

impl Inheritance {
    /// Whether the interface is there already, with its addresses and routes.
    pub fn has_interface(&self) -> bool {
        self.tun.is_some()
    }

    /// Those of `given` that a data plane of this configuration goes on with. The others are closed.
    pub fn choose(config: &DataplaneConfig, given: Vec<Inherited>) -> (Self, Vec<Refused>) {
        let mut choice = Choice::default();
        let (mut queues, mut sockets) = (Vec::new(), Vec::new());
        for Inherited { name, descriptor } in given {
            match name.parse() {
                Ok(Role::Tun(number)) => queues.push((number, descriptor)),
                Ok(role) => sockets.push((role, descriptor)),
                Err(UnknownRole) => choice.refuse(name, Unfit::UnknownName),
            }
        }
        choice.choose_tun(config, queues);
        choice.choose_sockets(config, sockets);
        (choice.inheritance, choice.refused)
    }
}

#[derive(Debug, Default)]
struct Choice {
    inheritance: Inheritance,
    refused: Vec<Refused>,
}

impl Choice {
    fn refuse(&mut self, name: impl ToString, reason: Unfit) {
        self.refused.push(Refused { name: name.to_string(), reason });
    }

    /// All queues or none: without one of them its flows would stand.
    fn choose_tun(&mut self, config: &DataplaneConfig, mut queues: Vec<(u8, OwnedFd)>) {
        queues.sort_by_key(|(number, _)| *number);
        let mut numbers: Vec<u8> = Vec::new();
        queues.retain(|(number, _)| {
            let is_first = numbers.last() != Some(number);
            if is_first {
                numbers.push(*number);
            } else {
                self.refuse(Role::Tun(*number), Unfit::Twice);
            }
            is_first
        });
        if queues.is_empty() {
            return;
        }
        let queues = queues.into_iter().map(|(_, descriptor)| descriptor).collect();
        let tun = if numbers.iter().copied().eq((0..=u8::MAX).take(numbers.len())) {
            Tun::adopt(&config.interface_name, config.mode, config.lanes.max(1), queues)
        } else {
            Err(Unfit::OtherDevice)
        };
        match tun {
            Ok(tun) => self.inheritance.tun = Some(tun),
            Err(reason) => numbers.into_iter().for_each(|number| self.refuse(Role::Tun(number), reason.clone())),
        }
    }

    fn choose_sockets(&mut self, config: &DataplaneConfig, sockets: Vec<(Role, OwnedFd)>) {
        let lanes = self.inheritance.tun.as_ref().map(|tun| tun.queues.len() as u8);
        let mut adopted = Vec::new();
        for (role, descriptor) in sockets {
            let socket = lanes.ok_or(Unfit::WithoutTun).and_then(|_| {
                let (shared, handshakes) = (!matches!(role, Role::Lane(_)), role == Role::Handshakes);
                let privileges = config.privileges.as_deref();
                UdpSocket::adopt(descriptor, BindOptions { shared, handshakes, fwmark: config.fwmark, privileges })
            });
            match socket {
                Ok(socket) => adopted.push(Some((role, socket))),
                Err(reason) => self.refuse(role, reason),
            }
        }
        for address in &config.listen {
            let complete = lanes.and_then(|lanes| claim(*address, lanes, &mut adopted));
            self.inheritance.sockets.extend(complete);
        }
        for (role, socket) in adopted.into_iter().flatten() {
            self.refuse(role, Unfit::OtherAddress(socket.local()));
        }
    }
}

/// Takes all sockets of an address, if none is missing.
fn claim(address: SocketAddr, lanes: u8, adopted: &mut [Option<(Role, UdpSocket)>]) -> Option<AddressSockets> {
    let position = |role, fits: &dyn Fn(SocketAddr) -> bool| {
        adopted
            .iter()
            .position(|entry| entry.as_ref().is_some_and(|(own, socket)| *own == role && fits(socket.local())))
    };
    let serves = |local: SocketAddr| local.ip() == address.ip() && (address.port() == 0 || local == address);
    let local = adopted[position(Role::Listen(0), &serves)?].as_ref()?.1.local();
    let share = |lane| position(Role::Listen(lane), &|other| other == local);
    let handshakes = position(Role::Handshakes, &|other| other == local)?;
    if position(Role::Listen(lanes), &|other| other == local).is_some() {
        // The kernel chooses among more than are read.
        return None;
    }
    let of_lane = |lane| position(Role::Lane(lane), &|other| other.ip() == local.ip());
    let shares = (0..lanes).map(share).collect::<Option<Vec<usize>>>()?;
    let of_lane = (1..lanes).map(of_lane).collect::<Option<Vec<usize>>>()?;
    let mut take = |positions: Vec<usize>| {
        positions.into_iter().filter_map(|position| Some(adopted[position].take()?.1)).collect::<Vec<UdpSocket>>()
    };
    let (shares, of_lane) = (take(shares), take(of_lane));
    let (_, handshakes) = adopted[handshakes].take()?;
    Some(AddressSockets { shares, handshakes, of_lane })
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tun(number) => write!(f, "tun-{number}"),
            Self::Listen(number) => write!(f, "listen-{number}"),
            Self::Handshakes => write!(f, "handshakes"),
            Self::Lane(number) => write!(f, "lane-{number}"),
        }
    }
}

/// A name that stands for none.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct UnknownRole;

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(name: &str) -> Result<Self, UnknownRole> {
        if name == "handshakes" {
            return Ok(Self::Handshakes);
        }
        let (kind, number) = name.split_once('-').ok_or(UnknownRole)?;
        let number = number.parse().map_err(|_| UnknownRole)?;
        match kind {
            "tun" => Ok(Self::Tun(number)),
            "listen" => Ok(Self::Listen(number)),
            "lane" => Ok(Self::Lane(number)),
            _ => Err(UnknownRole),
        }
    }
}

#[cfg(test)]
mod tests;
