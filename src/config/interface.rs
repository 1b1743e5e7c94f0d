//! Judges `[interface]`.
//!
//! Owns the defaults of its keys. The MTU waits for the peers: IPv6 anywhere in the tunnel raises its floor.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZero;
use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use toml::Spanned;

use super::error::Problems;
use super::exposure::exposure;
use super::key_source::KeySource;
use super::peer::OwnEnd;
use super::raw::{Field, FlagOrWord, List, NumberOrWord, RawInterface, RawListen};
use super::scope::{Refusal, Scope};
use super::{
    CONTROL_SOCKET_DIRECTORY, DEFAULT_INTERFACE_NAME, DEFAULT_PORT, DeviceMode, Interface, Mtu, Refuse, Role,
    SandboxPolicy, SuiteChoice, Workers, value,
};
use crate::keys::PrivateKey;
use crate::packet::frame::FRAME_HEADER_LEN;
use crate::packet::message::TRANSPORT_OVERHEAD;
use crate::proto::constants::MAX_LANES;
use crate::proto::noise::Suite;
use crate::proto::policy::Exposure;
use crate::proto::transmit::Dscp;

/// An example for each key, for messages.
pub(super) const EXAMPLES: &[(&str, &str)] = &[
    ("name", "\"underpass0\""),
    ("addresses", "[\"10.77.0.1/24\"]"),
    ("listen", "51900"),
    ("private_key_file", "\"private.key\""),
    ("previous_private_key_file", "\"previous.key\""),
    ("mtu", "\"auto\""),
    ("fwmark", "0"),
    ("dscp", "\"zero\""),
    ("device", "\"auto\""),
    ("workers", "\"auto\""),
    ("pin_workers", "false"),
    ("busy_poll", "true"),
    ("suite", "\"auto\""),
    ("suites", "[\"aes-256-gcm\"]"),
    ("expose", "[\"tcp/8080\"]"),
    ("refuse", "\"drop\""),
    ("control_socket", "\"/run/underpass/underpass0.sock\""),
    ("drain_timeout", "30"),
    ("sandbox", "true"),
    ("drop_capabilities", "true"),
    ("fail_closed", "true"),
    ("open", "[\"10.1.0.0/16\"]"),
];

/// What every IPv4 host takes (RFC 791 §3.1).
const MIN_MTU_IPV4: u16 = 576;
/// What every IPv6 link carries (RFC 8200 §5); the kernel takes IPv6 from an interface below it.
const MIN_MTU_IPV6: u16 = 1280;
/// The largest UDP payload over IPv4, less what a packet gains inside the tunnel: 65,475.
#[expect(clippy::cast_possible_truncation, reason = "65,507 less 32 fits 16 bits")]
const MAX_MTU: u16 = (65_507 - TRANSPORT_OVERHEAD - FRAME_HEADER_LEN) as u16;
/// One lane for each worker.
const MAX_WORKERS: u8 = MAX_LANES;
/// Longer than connections live that anybody waits for, in seconds: a day.
const MAX_DRAIN_TIMEOUT: u32 = 86_400;
/// Bytes of a Unix socket's path: `sun_path` less the closing zero.
const SOCKET_PATH_LEN: usize = 107;

/// `[interface]`, whose header stands at `header`, under judgement.
pub(super) fn scope<'p, 't>(problems: &'p mut Problems<'t>, header: Range<usize>) -> Scope<'p, 't> {
    Scope::new(problems, "interface".to_owned(), header, EXAMPLES)
}

/// The interface as far as it could be judged: what is missing or refused is `None` and has been reported.
pub(super) struct Draft {
    name: Option<String>,
    addresses: Vec<Spanned<IpNet>>,
    listen: Option<(Vec<SocketAddr>, bool)>,
    private_key: Option<PrivateKey>,
    previous_private_key: Option<PrivateKey>,
    private_key_file: Option<PathBuf>,
    previous_private_key_file: Option<PathBuf>,
    mtu: Option<Spanned<NumberOrWord>>,
    fwmark: Option<u32>,
    dscp: Dscp,
    device: DeviceMode,
    workers: Workers,
    pin_workers: bool,
    busy_poll: bool,
    suite: SuiteChoice,
    suites: Vec<Suite>,
    expose: Vec<Exposure>,
    refuse: Refuse,
    control_socket: Option<PathBuf>,
    drain_timeout: Duration,
    sandbox: SandboxPolicy,
    drop_capabilities: bool,
    fail_closed: bool,
    open: Vec<IpNet>,
}

impl Draft {
    /// Judges `raw`, whatever of it there is.
    pub(super) fn new(
        raw: RawInterface,
        role: Option<Role>,
        scope: &mut Scope<'_, '_>,
        keys: &mut KeySource<'_>,
    ) -> Self {
        let name = check_name(scope, raw.name);
        let private_key_file = scope.get_required("private_key_file", raw.private_key_file);
        let previous_file = scope.get("previous_private_key_file", raw.previous_private_key_file);
        let paths = [&private_key_file, &previous_file].map(|file| keys.path(file.as_ref()));
        let private_key = keys.private(scope, "private_key_file", private_key_file);
        let previous_span = previous_file.as_ref().map(Spanned::span);
        let previous_private_key = keys.private(scope, "previous_private_key_file", previous_file);
        refuse_same_key(scope, &private_key, &previous_private_key, previous_span);
        let [private_key_file, previous_private_key_file] = paths;
        let socket = scope.get("control_socket", raw.control_socket);
        let device = scope.get("device", raw.device);
        let suites = check_suites(scope, raw.suites);
        let suite = scope.get("suite", raw.suite);
        let refuse = scope.get("refuse", raw.refuse);
        Self {
            addresses: check_addresses(scope, raw.addresses),
            listen: check_listen(scope, raw.listen),
            mtu: scope.get("mtu", raw.mtu),
            fwmark: check_fwmark(scope, raw.fwmark),
            dscp: check_dscp(scope, raw.dscp),
            device: scope.check("device", device, |text| value::device(text)).unwrap_or_default(),
            workers: check_workers(scope, raw.workers),
            pin_workers: scope.get("pin_workers", raw.pin_workers).is_some_and(Spanned::into_inner),
            busy_poll: scope.get("busy_poll", raw.busy_poll).is_none_or(Spanned::into_inner),
            suite: scope.check("suite", suite, |text| value::suite(text, &suites)).unwrap_or_default(),
            suites,
            expose: check_expose(scope, raw.expose, role),
            refuse: scope.check("refuse", refuse, |text| value::refuse(text)).unwrap_or_default(),
            control_socket: check_socket(scope, socket, name.as_deref(), keys),
            drain_timeout: check_drain_timeout(scope, raw.drain_timeout),
            fail_closed: scope.get("fail_closed", raw.fail_closed).is_none_or(Spanned::into_inner),
            sandbox: check_sandbox(scope, raw.sandbox),
            drop_capabilities: scope.get("drop_capabilities", raw.drop_capabilities).is_some_and(Spanned::into_inner),
            open: check_open(scope, raw.open),
            name,
            private_key,
            previous_private_key,
            private_key_file,
            previous_private_key_file,
        }
    }

    /// What peers are judged against.
    pub(super) fn own_end(&self) -> OwnEnd {
        let keys = [&self.private_key, &self.previous_private_key];
        OwnEnd {
            public_keys: keys.into_iter().flatten().map(PrivateKey::public_key).collect(),
            addresses: self.addresses.iter().map(|address| *address.get_ref()).collect(),
            has_mark: self.fwmark.is_some(),
            suite: self.suite,
            suites: self.suites.clone(),
            expose: self.expose.clone(),
        }
    }

    /// The interface, if all of it was accepted. `ipv6` says whether the tunnel carries IPv6.
    pub(super) fn finish(self, scope: &mut Scope<'_, '_>, ipv6: bool) -> Option<Interface> {
        let mtu = match self.mtu {
            None => Mtu::Auto,
            mtu => check_mtu(scope, mtu, ipv6)?,
        };
        let (listen, listen_is_default) = self.listen?;
        Some(Interface {
            name: self.name?,
            addresses: self.addresses.into_iter().map(Spanned::into_inner).collect(),
            listen,
            listen_is_default,
            private_key: self.private_key?,
            private_key_file: self.private_key_file?,
            previous_private_key: self.previous_private_key,
            previous_private_key_file: self.previous_private_key_file,
            mtu,
            fwmark: self.fwmark,
            dscp: self.dscp,
            device: self.device,
            workers: self.workers,
            pin_workers: self.pin_workers,
            busy_poll: self.busy_poll,
            suite: self.suite,
            suites: self.suites,
            expose: self.expose,
            refuse: self.refuse,
            control_socket: self.control_socket?,
            drain_timeout: self.drain_timeout,
            sandbox: self.sandbox,
            drop_capabilities: self.drop_capabilities,
            fail_closed: self.fail_closed,
            open: self.open,
        })
    }
}

fn check_name(scope: &mut Scope<'_, '_>, raw: Option<Field<String>>) -> Option<String> {
    if raw.is_none() {
        return Some(DEFAULT_INTERFACE_NAME.to_owned());
    }
    let name = scope.get("name", raw);
    scope.check("name", name, |name| value::interface_name(name))
}

fn check_addresses(scope: &mut Scope<'_, '_>, raw: Option<Field<List>>) -> Vec<Spanned<IpNet>> {
    let list = scope.get_required("addresses", raw);
    if let Some(empty) = list.as_ref().filter(|list| list.get_ref().is_empty()) {
        let remedy = "write this machine's tunnel address, such as [\"10.77.0.1/24\"]";
        scope.refuse("addresses", empty.span(), Refusal::new("the list is empty", remedy));
    }
    let addresses = scope.check_each("addresses", list, value::interface_address);
    for (index, address) in addresses.iter().enumerate() {
        let twice = addresses[..index].iter().any(|earlier| earlier.get_ref().addr() == address.get_ref().addr());
        if twice {
            let what = format!("{} stands here twice", address.get_ref().addr());
            scope.refuse("addresses", address.span(), Refusal::new(what, "delete one of them"));
        }
    }
    addresses
}

/// The addresses, and whether they are "any of both families".
fn check_listen(scope: &mut Scope<'_, '_>, raw: Option<Field<RawListen>>) -> Option<(Vec<SocketAddr>, bool)> {
    if raw.is_none() {
        return Some((any_address(DEFAULT_PORT), true));
    }
    let listen = scope.get("listen", raw)?;
    let span = listen.span();
    match listen.into_inner() {
        RawListen::Port(port) => {
            let why = "a UDP port that peers can send to has 16 bits and is not 0";
            let port =
                scope.check("listen", Some(Spanned::new(span, port)), |p| value::number(*p, 1..=u16::MAX, why))?;
            Some((any_address(port), true))
        }
        RawListen::Addresses(list) => check_listen_list(scope, span, list).map(|addresses| (addresses, false)),
    }
}

fn check_listen_list(scope: &mut Scope<'_, '_>, span: Range<usize>, list: List) -> Option<Vec<SocketAddr>> {
    if list.is_empty() {
        let remedy = "leave the key out to listen on all addresses, or write a port such as 51900";
        scope.refuse("listen", span, Refusal::new("the list is empty", remedy));
        return None;
    }
    let written = list.len();
    let addresses = scope.check_each("listen", Some(Spanned::new(span, list)), value::listen_address);
    for (index, address) in addresses.iter().enumerate() {
        if addresses[..index].contains(address) {
            let what = format!("{} stands here twice", address.get_ref());
            scope.refuse("listen", address.span(), Refusal::new(what, "delete one of them"));
        }
    }
    (addresses.len() == written).then(|| addresses.into_iter().map(Spanned::into_inner).collect())
}

fn any_address(port: u16) -> Vec<SocketAddr> {
    let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    any.into_iter().map(|ip| SocketAddr::new(ip, port)).collect()
}

fn check_mtu(scope: &mut Scope<'_, '_>, mtu: Option<Spanned<NumberOrWord>>, ipv6: bool) -> Option<Mtu> {
    let (floor, family) = if ipv6 { (MIN_MTU_IPV6, "IPv6") } else { (MIN_MTU_IPV4, "IPv4") };
    let why = format!("{family} needs {floor} bytes, and {MAX_MTU} are what fits one UDP datagram when sealed");
    scope.check("mtu", mtu, |mtu| match mtu {
        NumberOrWord::Number(number) => value::number(*number, floor..=MAX_MTU, &why).map(Mtu::Bytes),
        NumberOrWord::Word(word) if word == "auto" => Ok(Mtu::Auto),
        NumberOrWord::Word(word) => {
            let remedy = format!("write \"auto\", or a number of bytes from {floor} to {MAX_MTU}");
            Err(Refusal::new(format!("{word:?} is no MTU"), remedy))
        }
    })
}

fn check_fwmark(scope: &mut Scope<'_, '_>, raw: Option<Field<i64>>) -> Option<u32> {
    let mark = scope.get("fwmark", raw);
    let mark = scope.check("fwmark", mark, |mark| value::number(*mark, 0..=u32::MAX, "a mark has 32 bits"));
    mark.filter(|mark| *mark != 0)
}

fn check_dscp(scope: &mut Scope<'_, '_>, raw: Option<Field<NumberOrWord>>) -> Dscp {
    let dscp = scope.get("dscp", raw);
    let dscp = scope.check("dscp", dscp, |dscp| match dscp {
        NumberOrWord::Number(number) => value::number(*number, 0..=63, "a DSCP has 6 bits").map(Dscp::Value),
        NumberOrWord::Word(word) => value::dscp(word),
    });
    dscp.unwrap_or_default()
}

fn check_sandbox(scope: &mut Scope<'_, '_>, raw: Option<Field<FlagOrWord>>) -> SandboxPolicy {
    let sandbox = scope.get("sandbox", raw);
    let sandbox = scope.check("sandbox", sandbox, |sandbox| match sandbox {
        FlagOrWord::Flag(true) => Ok(SandboxPolicy::BestEffort),
        FlagOrWord::Flag(false) => Ok(SandboxPolicy::Off),
        FlagOrWord::Word(word) if word == "required" => Ok(SandboxPolicy::Required),
        FlagOrWord::Word(word) => {
            let remedy = "write true, false, or \"required\" to start with the whole sandbox or not at all";
            Err(Refusal::new(format!("{word:?} is not a kind of sandbox"), remedy))
        }
    });
    sandbox.unwrap_or_default()
}

fn check_workers(scope: &mut Scope<'_, '_>, raw: Option<Field<NumberOrWord>>) -> Workers {
    let why = format!("each worker is a thread with a lane of its own, and a session has {MAX_WORKERS} lanes");
    let workers = scope.get("workers", raw);
    let workers = scope.check("workers", workers, |workers| match workers {
        NumberOrWord::Number(number) => {
            let number = value::number(*number, 1..=MAX_WORKERS, &why)?;
            Ok(NonZero::new(number).map_or(Workers::Auto, Workers::Number))
        }
        NumberOrWord::Word(word) if word == "auto" => Ok(Workers::Auto),
        NumberOrWord::Word(word) => {
            let remedy = format!("write \"auto\", or a number from 1 to {MAX_WORKERS}");
            Err(Refusal::new(format!("{word:?} is no number of workers"), remedy))
        }
    });
    workers.unwrap_or_default()
}

fn check_suites(scope: &mut Scope<'_, '_>, raw: Option<Field<List>>) -> Vec<Suite> {
    let list = scope.get("suites", raw);
    if let Some(empty) = list.as_ref().filter(|list| list.get_ref().is_empty()) {
        let remedy = "leave the key out to accept every suite, or write those that peers may propose";
        scope.refuse("suites", empty.span(), Refusal::new("the list is empty: nobody could call", remedy));
    }
    let named = scope.check_each("suites", list, value::accepted_suite);
    let named: Vec<Suite> = named.into_iter().map(Spanned::into_inner).collect();
    // In one order, whatever that of the file.
    let suites: Vec<Suite> = Suite::ALL.into_iter().filter(|suite| named.contains(suite)).collect();
    if suites.is_empty() { Suite::ALL.to_vec() } else { suites }
}

/// Whoever runs an app server knows its ports, and they are all that its load balancers need. A load balancer needs nobody
/// to call it.
fn check_expose(scope: &mut Scope<'_, '_>, raw: Option<Field<List>>, role: Option<Role>) -> Vec<Exposure> {
    if raw.is_none() && role == Some(Role::Backend) {
        let what = "this key is missing: the peers of a backend reach only what is named";
        let remedy = "write it as `expose = [\"tcp/8080\"]`, with the ports of the app; [] for none";
        scope.refuse_table("expose", Refusal::new(what, remedy));
    }
    let list = scope.get("expose", raw);
    scope.check_each("expose", list, exposure).into_iter().map(Spanned::into_inner).collect()
}

fn check_socket(
    scope: &mut Scope<'_, '_>,
    socket: Option<Spanned<String>>,
    name: Option<&str>,
    keys: &KeySource<'_>,
) -> Option<PathBuf> {
    let Some(socket) = socket else {
        return name.map(|name| PathBuf::from(format!("{CONTROL_SOCKET_DIRECTORY}/{name}.sock")));
    };
    scope.check("control_socket", Some(socket), |socket| {
        let path = keys.resolve(socket);
        let len = path.as_os_str().len();
        let remedy = "write a short absolute path, such as \"/run/underpass/underpass0.sock\"";
        if socket.is_empty() || socket.contains('\0') || socket.ends_with('/') {
            return Err(Refusal::new("this cannot name a socket", remedy));
        }
        if len > SOCKET_PATH_LEN {
            return Err(Refusal::new(format!("the path has {len} bytes, a socket's takes {SOCKET_PATH_LEN}"), remedy));
        }
        Ok(path)
    })
}

fn check_drain_timeout(scope: &mut Scope<'_, '_>, raw: Option<Field<i64>>) -> Duration {
    let seconds = scope.get("drain_timeout", raw);
    let why = "this is in seconds, 0 ends at once";
    let seconds = scope.check("drain_timeout", seconds, |s| value::number(*s, 0..=MAX_DRAIN_TIMEOUT, why));
    Duration::from_secs(seconds.unwrap_or_default().into())
}

fn check_open(scope: &mut Scope<'_, '_>, raw: Option<Field<List>>) -> Vec<IpNet> {
    let list = scope.get("open", raw);
    scope.check_each("open", list, value::allowed_prefix).into_iter().map(Spanned::into_inner).collect()
}

fn refuse_same_key(
    scope: &mut Scope<'_, '_>,
    private: &Option<PrivateKey>,
    previous: &Option<PrivateKey>,
    span: Option<Range<usize>>,
) {
    if let (Some(private), Some(previous), Some(span)) = (private, previous, span)
        && private.public_key() == previous.public_key()
    {
        let remedy = "name the file of the key before, or delete this line once all peers know the present one";
        scope.refuse(
            "previous_private_key_file",
            span,
            Refusal::new("this is the same key as private_key_file's", remedy),
        );
    }
}
