//! Real load balancers in front of unchanged apps.

use std::collections::HashSet;
use std::net::SocketAddr;

use netns_tests::haproxy::HaProxy;
use netns_tests::http::{Client, Extra};
use netns_tests::nginx::{NginxApp, NginxFront};
use netns_tests::random::Random;
use netns_tests::{wait, websocket};
use ring::digest::{SHA256, digest};

use crate::carrier::{Carrier, Site};

/// Which load balancer stands in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Front {
    HaProxy,
    Nginx,
}

/// A site with a load balancer in front (TCP 80 on the proxy's loopback, where its users come from) and apps behind.
struct Stage {
    site: Site,
    apps: [NginxApp; 2],
    haproxy: Option<HaProxy>,
    _nginx: Option<NginxFront>,
}

const FRONT: &str = "127.0.0.1:80";

impl Stage {
    fn new(name: &str, carrier: Carrier, front: Front, kept: bool) -> Stage {
        let site = Site::new(name, carrier);
        let ([app1, app2], sockets) = (site.apps(8080), site.apps(8081));
        let apps = [NginxApp::start(&site.backends[0], app1, "app1"), NginxApp::start(&site.backends[1], app2, "app2")];
        for (host, listen, name) in [(&site.backends[0], sockets[0], "app1"), (&site.backends[1], sockets[1], "app2")] {
            websocket::start_echo_server(host, listen, name);
        }
        let (mut haproxy, mut nginx) = (None, None);
        let (host, listen) = (&site.proxy, front_address());
        match front {
            Front::HaProxy => haproxy = Some(HaProxy::start(host, listen, &[app1, app2], &sockets, kept)),
            Front::Nginx => nginx = Some(NginxFront::start(host, listen, &[app1, app2], &sockets, kept)),
        }
        let stage = Stage { site, apps, haproxy, _nginx: nginx };
        stage.wait_until_both_apps_answer();
        stage
    }

    fn client(&self) -> Client {
        Client::connect(&self.site.proxy, front_address()).unwrap()
    }

    /// A tunnel, and a load balancer's health checks, take a moment to come up.
    fn wait_until_both_apps_answer(&self) {
        if let Some(haproxy) = &self.haproxy {
            haproxy.wait_for_status("app1", "UP");
            haproxy.wait_for_status("app2", "UP");
        }
        let mut client = self.client();
        let mut seen = HashSet::new();
        wait::until("both apps answer through the load balancer", || {
            seen.insert(client.get("/").unwrap().text());
            seen.contains("app1") && seen.contains("app2")
        });
    }

    fn requests_are_served_in_turn(&self) {
        let mut client = self.client();
        let names: Vec<String> = (0..20).map(|_| client.get("/").unwrap().text()).collect();
        for app in ["app1", "app2"] {
            assert_eq!(names.iter().filter(|name| *name == app).count(), 10, "{names:?}");
        }
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "not in turn: {names:?}");
    }

    /// How many connections to the apps 40 requests came over.
    fn connections_of_40_requests(&self) -> usize {
        let mut client = self.client();
        let mut connections = HashSet::new();
        for _ in 0..40 {
            let response = client.get("/connection").unwrap();
            connections.insert((response.header("x-app").map(str::to_owned), response.text()));
        }
        connections.len()
    }

    fn websockets_are_upgraded_and_echo(&self) {
        let mut answered = HashSet::new();
        for n in 0..4 {
            let mut socket = websocket::Client::connect(&self.site.proxy, front_address(), "/ws").unwrap();
            for m in 0..10 {
                let text = format!("message {m} of {n}");
                let [echo, from] = socket.ask(&text).unwrap();
                assert_eq!(echo, text);
                answered.insert(from);
            }
            let bytes = Random::new(n).bytes(300_000);
            assert_eq!(socket.echo(bytes.clone()).unwrap(), bytes);
        }
        assert_eq!(answered, HashSet::from(["from app1".to_owned(), "from app2".to_owned()]));
    }

    /// A body of 100 MiB up, and the same down from the app that got it.
    fn a_large_body_arrives_whole_each_way(&self) {
        let body = Random::new(7).bytes(100 << 20);
        let hash = digest(&SHA256, &body);
        let mut client = self.client();
        let stored = client.request("PUT", "/files/large", Extra { body: &body, ..Extra::default() }).unwrap();
        assert_eq!(stored.status, 201);
        let app = usize::from(stored.header("x-app") == Some("app2"));
        assert_eq!(digest(&SHA256, &std::fs::read(self.apps[app].file("large")).unwrap()).as_ref(), hash.as_ref());
        // The other app has no such file: the one that has it is the next but one.
        let fetched = wait::value("the app that has the file answers", || {
            client.get("/files/large").ok().filter(|response| response.status == 200)
        });
        assert_eq!(digest(&SHA256, &fetched.body).as_ref(), hash.as_ref());
    }

    fn health_checks_pass(&self) {
        let haproxy = self.haproxy.as_ref().expect("only HAProxy checks by itself");
        for app in ["app1", "app2"] {
            wait::until(&format!("{app} is up and has just been checked"), || {
                let row = haproxy.server(app);
                (row["status"].as_str(), row["check_status"].as_str()) == ("UP", "L7OK")
            });
            let row = haproxy.server(app);
            assert_eq!((row["chkdown"].as_str(), row["econ"].as_str()), ("0", "0"), "{row:?}");
        }
    }
}

fn front_address() -> SocketAddr {
    FRONT.parse().unwrap()
}

/// All that a load balancer and its apps do, once with kept connections and once with one per request.
fn a_site_works(name: &str, carrier: Carrier, front: Front) {
    {
        let stage = Stage::new(&format!("{name}-kept"), carrier, front, true);
        stage.requests_are_served_in_turn();
        let connections = stage.connections_of_40_requests();
        assert!(connections <= 8, "40 requests over kept connections came over {connections} of them");
        stage.websockets_are_upgraded_and_echo();
        stage.a_large_body_arrives_whole_each_way();
        if front == Front::HaProxy {
            stage.health_checks_pass();
        }
    }
    let stage = Stage::new(&format!("{name}-per-request"), carrier, front, false);
    stage.requests_are_served_in_turn();
    assert_eq!(stage.connections_of_40_requests(), 40);
    stage.a_large_body_arrives_whole_each_way();
    if front == Front::HaProxy {
        stage.health_checks_pass();
    }
}

/// The site of [`Site`], without a tunnel: shows that the test can pass.
#[test]
fn haproxy_serves_unchanged_apps_in_the_plain() {
    a_site_works("haproxy-plain", Carrier::Plain, Front::HaProxy);
}

/// The site of [`Site`], without a tunnel.
#[test]
fn nginx_serves_unchanged_apps_in_the_plain() {
    a_site_works("nginx-plain", Carrier::Plain, Front::Nginx);
}

/// The site of [`Site`], with another tunnel than ours: shows that the laboratory carries one.
#[test]
fn haproxy_serves_unchanged_apps_through_wireguard_go() {
    a_site_works("haproxy-wireguard", Carrier::WireguardGo, Front::HaProxy);
}

/// The site of [`Site`].
#[test]
fn haproxy_serves_unchanged_apps_through_the_tunnel() {
    a_site_works("haproxy-offload", Carrier::Underpass("offload"), Front::HaProxy);
}

/// The site of [`Site`].
#[test]
fn haproxy_serves_unchanged_apps_through_plain_devices() {
    a_site_works("haproxy-device-plain", Carrier::Underpass("plain"), Front::HaProxy);
}

/// The site of [`Site`].
#[test]
fn nginx_serves_unchanged_apps_through_the_tunnel() {
    a_site_works("nginx-offload", Carrier::Underpass("offload"), Front::Nginx);
}

/// The site of [`Site`].
#[test]
fn nginx_serves_unchanged_apps_through_plain_devices() {
    a_site_works("nginx-device-plain", Carrier::Underpass("plain"), Front::Nginx);
}
