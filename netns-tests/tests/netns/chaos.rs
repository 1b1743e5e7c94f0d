//! All that happens to links in production, one thing after the other, while everything that tells of them is asked all the
//! time.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use netns_tests::Host;
use netns_tests::http::Client;
use netns_tests::outage::Outage;
use netns_tests::underpass::{self, KeyPair, Peer, Status};
use serde_json::Value;

use crate::carrier::{Carrier, Site};

/// The site of [`Site`]: cables are cut and healed, links drained, a backend's daemon stopped and started, peers added and
/// removed by reloads, again and again, while status, agent checks, HTTP checks and metrics are compared as fast as they answer.
#[test]
fn status_checks_and_metrics_agree_at_every_moment_of_chaos() {
    let mut site = Site::new("chaos", Carrier::Underpass("offload"));
    let (proxy, over) = (site.proxy.clone(), AtomicBool::new(false));
    let compared = thread::scope(|scope| {
        let comparing = scope.spawn(|| compare_until(&proxy, &over));
        // Also when it fails, so that the failure is seen.
        let _stop = StopOnDrop(&over);
        for _ in 0..5 {
            cause_chaos(&mut site);
            assert!(!comparing.is_finished(), "there was a contradiction");
        }
        over.store(true, Ordering::Relaxed);
        comparing.join().unwrap()
    });
    println!("{compared:?}");
    assert!(compared.rounds >= 50, "{compared:?}");
    for state in ["up", "down", "draining"] {
        assert!(compared.states.contains(state), "{compared:?}");
    }
}

struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn cause_chaos(site: &mut Site) {
    let outage = Outage::cut(&site.network, "to-backend1");
    site.proxy_daemon().wait_for_state("app1", "down");
    drain(site, "drain", "app2");
    outage.heal();
    site.proxy_daemon().wait_for_state("app1", "up");

    let other = KeyPair::generate(&site.proxy);
    let peer = Peer::new("app3", &other.public, ["10.77.0.13"]).endpoint("10.1.2.2:51999");
    site.reload_proxy(|config| config.peer(peer));
    site.stop_first_backend();
    drain(site, "undrain", "app2");
    site.proxy_daemon().wait_for_state("app1", "down");
    drain(site, "drain", "app3");
    site.start_first_backend();
    site.proxy_daemon().wait_for_state("app1", "up");
    site.reload_proxy(|config| config);

    drain(site, "drain", "app1");
    let outages = ["to-backend1", "to-backend2"].map(|cable| Outage::cut(&site.network, cable));
    site.proxy_daemon().wait_for_state("app2", "down");
    drain(site, "undrain", "app1");
    site.proxy_daemon().wait_for_state("app1", "down");
    outages.into_iter().for_each(Outage::heal);
    ["app1", "app2"].iter().for_each(|app| site.proxy_daemon().wait_for_state(app, "up"));
}

fn drain(site: &Site, command: &str, app: &str) {
    let output = site.proxy_daemon().ask(&[command, app]);
    assert_eq!(output.code(), 0, "{output:?}");
}

#[derive(Debug, Default)]
struct Compared {
    /// Rounds of questions in which nothing changed.
    rounds: usize,
    /// Rounds in which something did: it may have been told before or after.
    changed: usize,
    states: BTreeSet<String>,
}

fn compare_until(proxy: &Host, over: &AtomicBool) -> Compared {
    let mut http = Client::connect(proxy, "127.0.0.1:51902".parse().unwrap()).unwrap();
    let mut compared = Compared::default();
    while !over.load(Ordering::Relaxed) {
        let before = underpass::status(proxy);
        let told = ask_everything(proxy, &mut http, &before.peers());
        let after = underpass::status(proxy);
        if story(&before) != story(&after) {
            compared.changed += 1;
            continue;
        }
        compared.rounds += 1;
        compared.states.extend(before.peers().iter().map(|name| before.peer(name).text("state")));
        told.links.iter().for_each(|link| link.must_agree(&before.peer(&link.name), &told.metrics));
    }
    compared
}

/// What every link is doing, why, and since when: the same before and after if nothing has happened.
fn story(status: &Status) -> Vec<String> {
    let link = |name: String| {
        let peer = status.peer(&name);
        format!("{name} {} {} {}", peer.text("state"), peer.text("reason"), peer.seconds("state_since"))
    };
    status.peers().into_iter().map(link).collect()
}

/// What all who may ask are told.
struct Told {
    links: Vec<Link>,
    metrics: String,
}

/// What is told of one link.
struct Link {
    name: String,
    agent: String,
    code: u16,
    body: String,
}

fn ask_everything(proxy: &Host, http: &mut Client, names: &[String]) -> Told {
    let mut get = |path: &str| {
        let response = http.get(path).unwrap();
        (response.status, response.text())
    };
    let link = |name: &String| {
        let agent = underpass::agent_check(proxy, name).expect("the agent answers");
        let (code, body) = get(&format!("/check/{name}"));
        Link { name: name.clone(), agent, code, body }
    };
    let links = names.iter().map(link).collect();
    Told { links, metrics: get("/metrics").1 }
}

impl Link {
    /// Panics unless all of it is what `status` says of the same moment.
    #[track_caller]
    fn must_agree(&self, status: &Status, metrics: &str) {
        let (state, reason) = (status.text("state"), status.text("reason"));
        let words = match state.as_str() {
            "up" | "idle" | "degraded" => "up ready 100%".to_owned(),
            "draining" => "up drain".to_owned(),
            _ => format!("down #{reason}"),
        };
        assert_eq!(self.agent, words, "{status:?}");
        assert_eq!(self.code == 200, self.agent.starts_with("up ready"), "{status:?} {}", self.code);
        let body: Value = serde_json::from_str(&self.body).unwrap();
        assert_eq!((body["state"].as_str(), body["reason"].as_str().unwrap_or_default()), (Some(&*state), &*reason));
        let line = format!("underpass_link_state{{peer=\"{}\",state=\"{state}\"}} 1", self.name);
        assert!(metrics.lines().any(|candidate| candidate == line), "{line}\n{metrics}");
    }
}
