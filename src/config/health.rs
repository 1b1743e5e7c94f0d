//! Judges `[health]`: where load balancers and monitors may ask for the state of the links.
//!
//! Owns the defaults of its keys, which differ by role: who balances load stands beside the proxy side.

use std::net::SocketAddr;
use std::ops::Range;

use toml::Spanned;

use super::error::Problems;
use super::raw::{Field, RawHealth, RawServe};
use super::scope::{Refusal, Scope};
use super::{DEFAULT_AGENT_CHECK, DEFAULT_DEGRADED_WEIGHT, DEFAULT_HEALTH_HTTP, Health, Role, value};

/// An example for each key, for messages.
pub(super) const EXAMPLES: &[(&str, &str)] =
    &[("agent_check", "\"127.0.0.1:51901\""), ("http", "\"127.0.0.1:51902\""), ("degraded_weight", "100")];

/// The word for no address at all.
const OFF: &str = "off";

impl Health {
    /// What holds where the file says nothing.
    pub(super) fn default_of(role: Role) -> Self {
        let serve = |address: SocketAddr| match role {
            Role::Proxy => vec![address],
            Role::Backend => Vec::new(),
        };
        Self {
            agent_check: serve(DEFAULT_AGENT_CHECK),
            http: serve(DEFAULT_HEALTH_HTTP),
            degraded_weight: DEFAULT_DEGRADED_WEIGHT,
        }
    }
}

/// The table, or what stands for it. Refused values were reported, and have their default.
pub(super) fn check(role: Role, raw: Option<Spanned<RawHealth>>, problems: &mut Problems<'_>) -> Health {
    let default = Health::default_of(role);
    let Some(raw) = raw else { return default };
    let header = raw.span();
    let raw = raw.into_inner();
    let scope = &mut Scope::new(problems, "health".to_owned(), header, EXAMPLES);
    let agent_check = check_serve(scope, "agent_check", raw.agent_check);
    let http = check_serve(scope, "http", raw.http);
    refuse_shared(scope, agent_check.as_deref(), http.as_deref());
    let weight = scope.get("degraded_weight", raw.degraded_weight);
    let why = "it is a share, in percent, of the weight that the load balancer gives a server";
    let weight = scope.check("degraded_weight", weight, |weight| value::number(*weight, 1..=100, why));
    let plain = |list: Vec<Spanned<SocketAddr>>| list.into_iter().map(Spanned::into_inner).collect();
    Health {
        agent_check: agent_check.map_or(default.agent_check, plain),
        http: http.map_or(default.http, plain),
        degraded_weight: weight.unwrap_or(default.degraded_weight),
    }
}

/// `None` when the key is absent or was refused.
fn check_serve(
    scope: &mut Scope<'_, '_>,
    key: &'static str,
    raw: Option<Field<RawServe>>,
) -> Option<Vec<Spanned<SocketAddr>>> {
    let value = scope.get(key, raw)?;
    let span = value.span();
    let list = match value.into_inner() {
        RawServe::Word(word) if word == OFF => return Some(Vec::new()),
        RawServe::Word(word) => vec![Spanned::new(span.clone(), word)],
        RawServe::List(list) => list,
    };
    if list.is_empty() {
        refuse_empty(scope, key, span);
        return None;
    }
    let addresses = scope.check_each(key, Some(Spanned::new(span, list)), value::service_address);
    for (index, address) in addresses.iter().enumerate() {
        if addresses[..index].contains(address) {
            let what = format!("{} stands here twice", address.get_ref());
            scope.refuse(key, address.span(), Refusal::new(what, "delete one of them"));
        }
    }
    Some(addresses)
}

fn refuse_empty(scope: &mut Scope<'_, '_>, key: &str, span: Range<usize>) {
    let remedy = format!("write {key} = \"{OFF}\" to turn it off, or delete the line for the default");
    scope.refuse(key, span, Refusal::new("the list is empty", remedy));
}

fn refuse_shared(
    scope: &mut Scope<'_, '_>,
    agent_check: Option<&[Spanned<SocketAddr>]>,
    http: Option<&[Spanned<SocketAddr>]>,
) {
    for address in http.unwrap_or_default() {
        if agent_check.unwrap_or_default().iter().any(|other| other.get_ref() == address.get_ref()) {
            let what = format!("health.agent_check has {} too", address.get_ref());
            scope.refuse("http", address.span(), Refusal::new(what, "give each a port of its own"));
        }
    }
}
