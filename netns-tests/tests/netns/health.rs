//! What load balancers and monitors are told of the links, by the programs that ask in production.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use netns_tests::haproxy::HaProxy;
use netns_tests::http::Client;
use netns_tests::http_load::HttpLoad;
use netns_tests::nginx::{NginxApp, NginxFront};
use netns_tests::outage::Outage;
use netns_tests::underpass::{self, AGENT_CHECK, Config, Daemon, KeyPair, Peer, quote};
use netns_tests::{Host, Lab, Process, wait};
use serde_json::Value;

use crate::carrier::{Carrier, Site};
use crate::ends::Ends;

const FRONT: &str = "127.0.0.1:80";
const HTTP: &str = "127.0.0.1:51902";

/// A file of `config/`, as an operator gets it.
fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../config").join(name)
}

/// Status code and body, as curl gets them.
fn curl(host: &Host, path: &str) -> (u16, String) {
    let command = host.command("curl").args(["--silent", "--max-time", "10", "--write-out", "\n%{http_code}"]);
    let output = command.arg(format!("http://{HTTP}{path}")).run();
    let (body, code) = output.rsplit_once('\n').unwrap();
    (code.parse().unwrap(), body.to_owned())
}

fn metrics(host: &Host) -> String {
    let (code, text) = curl(host, "/metrics");
    assert_eq!(code, 200, "{text}");
    text
}

/// The site of [`Site`] with underpass and an app on each backend.
struct Stage {
    site: Site,
    _apps: [NginxApp; 2],
}

impl Stage {
    #[track_caller]
    fn new(name: &str) -> Stage {
        let site = Site::new(name, Carrier::Underpass("offload"));
        let [app1, app2] = site.apps(8080);
        let apps = [NginxApp::start(&site.backends[0], app1, "app1"), NginxApp::start(&site.backends[1], app2, "app2")];
        Stage { site, _apps: apps }
    }

    /// With the configuration that is shipped.
    #[track_caller]
    fn start_haproxy(&self) -> HaProxy {
        let haproxy = HaProxy::start_with(&self.site.proxy, &shipped("haproxy.cfg"), 80);
        for app in ["app1", "app2"] {
            haproxy.wait_for_status(app, "UP");
            wait_for_agent(&haproxy, app, "L7OK");
        }
        haproxy
    }

    /// Asks again and again, each time over a connection of its own, until both apps have answered.
    #[track_caller]
    fn wait_for_both_apps(&self) {
        let mut seen = BTreeSet::new();
        wait::until("both apps answer", || {
            seen.insert(self.get());
            seen.contains("app1") && seen.contains("app2")
        });
    }

    /// Which app answers. It must.
    #[track_caller]
    fn get(&self) -> String {
        let mut client = Client::connect(&self.site.proxy, FRONT.parse().unwrap()).unwrap();
        let response = client.get("/").unwrap();
        assert_eq!(response.status, 200, "{}", response.text());
        response.text()
    }
}

#[track_caller]
fn wait_for_agent(haproxy: &HaProxy, app: &str, status: &str) {
    wait::until(&format!("the agent's word on {app} is {status}"), || haproxy.server(app)["agent_status"] == status);
}

/// HAProxy with the shipped configuration, in front of the site of [`Site`]. The drain is commanded on the app's machine.
#[test]
fn a_backend_that_drains_gets_no_new_connections_from_haproxy_and_no_client_sees_an_error() {
    let stage = Stage::new("health-drain");
    let haproxy = stage.start_haproxy();
    stage.wait_for_both_apps();
    let backend = &stage.site.daemons[1];
    let proxy = backend.status().peers().remove(0);
    for _ in 0..3 {
        assert_eq!(backend.ask(&["drain", &proxy]).code(), 0);
        wait::until("HAProxy drains the app", || haproxy.server("app1")["status"].starts_with("DRAIN"));
        (0..20).for_each(|_| assert_eq!(stage.get(), "app2"));
        let link = stage.site.proxy_daemon().status().peer("app1");
        assert_eq!([link.text("state"), link.text("reason")], ["draining", "drained-by-peer"]);
        assert_eq!(underpass::agent_check(&stage.site.proxy, "app1").as_deref(), Some("up drain"));
        assert_eq!(curl(&stage.site.proxy, "/check/app1").0, 503);
        assert_eq!(backend.ask(&["undrain", &proxy]).code(), 0);
        stage.wait_for_both_apps();
    }
}

/// HAProxy with the shipped configuration, in front of the site of [`Site`].
#[test]
fn haproxy_as_shipped_learns_of_a_backend_that_stops_and_returns_and_its_clients_see_no_error() {
    let mut stage = Stage::new("health-haproxy");
    let haproxy = stage.start_haproxy();
    stage.wait_for_both_apps();
    for _ in 0..3 {
        let began = wait::now();
        stage.site.stop_first_backend();
        let row = wait::value("the agent has told of it", || {
            Some(haproxy.server("app1")).filter(|row| row["agent_status"] == "L7STS")
        });
        println!("HAProxy knew {:?} after the signal that stopped it", began.elapsed());
        assert!(row["status"].starts_with("DOWN"), "{row:?}");
        assert_eq!(haproxy.server("app2")["status"], "UP");
        (0..20).for_each(|_| assert_eq!(stage.get(), "app2"));
        let began = wait::now();
        stage.site.start_first_backend();
        haproxy.wait_for_status("app1", "UP");
        println!("and that it was back {:?} after its start", began.elapsed());
        wait_for_agent(&haproxy, "app1", "L7OK");
        stage.wait_for_both_apps();
    }
    for row in haproxy.show_stat() {
        let answered_with_errors = row["hrsp_5xx"].parse::<u64>().unwrap_or_default();
        assert!(row["svname"] != "FRONTEND" || answered_with_errors == 0, "{row:?}");
    }
}

/// HAProxy with the shipped configuration, in front of the site of [`Site`], where the first backend's cable is pulled. Requests
/// come over kept connections at both sides, so that one is under way to a backend that is gone.
#[test]
fn haproxy_as_shipped_hides_from_its_clients_that_a_cable_is_pulled() {
    let stage = Stage::new("health-unplugged");
    let haproxy = stage.start_haproxy();
    stage.wait_for_both_apps();
    let mut client = Client::connect(&stage.site.proxy, FRONT.parse().unwrap()).unwrap();
    let mut get = || {
        let response = client.get("/").unwrap();
        assert_eq!(response.status, 200, "{}", response.text());
        response.text()
    };
    (0..20).for_each(|_| drop(get()));
    let began = wait::now();
    stage.site.network.ip("link set to-backend1 down");
    let waiting = std::thread::scope(|scope| {
        let down = scope.spawn(|| {
            wait::until("HAProxy finds app1 down", || haproxy.server("app1")["status"].starts_with("DOWN"));
            began.elapsed()
        });
        while !down.is_finished() {
            get();
        }
        down.join().unwrap()
    });
    println!("HAProxy knew {waiting:?} after the cable was pulled");
    (0..20).for_each(|_| assert_eq!(get(), "app2"));
    stage.site.network.ip("link set to-backend1 up");
    wait::until("app1 answers again", || get() == "app1");
}

/// What a load balancer must know of within this time, on a machine however busy. The benchmark has the bars.
const SOON: Duration = Duration::from_secs(2);

/// HAProxy with the shipped configuration, in front of the site of [`Site`], whose first backend is cut off so that nobody is
/// told; then its daemon is stopped, and started. Sixteen clients ask all the time.
#[test]
fn haproxy_as_shipped_knows_soon_of_a_backend_that_is_cut_off_stopped_or_started_and_no_client_sees_an_error() {
    let mut stage = Stage::new("health-soon");
    let haproxy = stage.start_haproxy();
    stage.wait_for_both_apps();
    let load = HttpLoad::start(&stage.site.proxy, FRONT.parse().unwrap(), 16);
    load.wait_for_progress();
    let becomes_within = |status: &str, what: &str| {
        let began = wait::now();
        wait::until_within(SOON, what, || haproxy.server("app1")["status"].starts_with(status));
        println!("HAProxy knew of a backend that was {what} {:?} later", began.elapsed());
        load.wait_for_progress();
    };
    let outage = Outage::cut(&stage.site.network, "to-backend1");
    becomes_within("DOWN (agent)", "cut off");
    outage.heal();
    haproxy.wait_for_status("app1", "UP");
    stage.site.stop_first_backend();
    becomes_within("DOWN (agent)", "stopped");
    stage.site.start_first_backend();
    becomes_within("UP", "started");
    let answers = load.stop();
    println!("{} answers, the slowest after {:?}", answers.answered, answers.slowest);
    assert!(answers.errors.is_empty(), "{:?}", answers.errors);
}

/// HAProxy with the shipped configuration, in front of the site of [`Site`]; the first backend is drained and undrained.
#[test]
fn haproxy_as_shipped_logs_a_drain_once_and_not_at_every_check() {
    let stage = Stage::new("health-drain-log");
    let mut haproxy = stage.start_haproxy();
    let lines = |haproxy: &mut HaProxy| haproxy.process().log().lines().filter(|line| line.contains("app1")).count();
    let mut logged = lines(&mut haproxy);
    for (command, status) in [("drain", "DRAIN"), ("undrain", "UP"), ("drain", "DRAIN")] {
        assert_eq!(stage.site.proxy_daemon().ask(&[command, "app1"]).code(), 0);
        wait::until("HAProxy follows", || haproxy.server("app1")["status"].starts_with(status));
        // Twenty checks or so.
        wait::pass(Duration::from_secs(1));
        let before = std::mem::replace(&mut logged, lines(&mut haproxy));
        let added = logged - before;
        println!("{command}: {added} lines");
        assert!((1..=2).contains(&added), "{command}: {added} lines\n{}", haproxy.process().log());
    }
}

/// nginx with the shipped configuration, in front of the site of [`Site`].
#[test]
fn nginx_as_shipped_tries_another_backend_when_one_has_stopped() {
    let mut stage = Stage::new("health-nginx");
    let _nginx = NginxFront::start_with(&stage.site.proxy, &shipped("nginx.conf"), 80);
    stage.wait_for_both_apps();
    stage.site.stop_first_backend();
    (0..20).for_each(|_| assert_eq!(stage.get(), "app2"));
    stage.site.start_first_backend();
    stage.wait_for_both_apps();
}

/// The site of [`Site`]; curl asks.
#[test]
fn http_checks_follow_a_backend_that_stops_and_returns() {
    let mut stage = Stage::new("health-http");
    let proxy = stage.site.proxy.clone();
    let is = |code| move |answer: (u16, String)| answer.0 == code;
    wait::until("app1 is up", || is(200)(curl(&proxy, "/check/app1")));
    assert_eq!(curl(&proxy, "/readyz").0, 200);
    stage.site.stop_first_backend();
    wait::until("app1 is down", || is(503)(curl(&proxy, "/check/app1")));
    let body: Value = serde_json::from_str(&curl(&proxy, "/check/app1").1).unwrap();
    assert_eq!((body["name"].as_str(), body["state"].as_str()), (Some("app1"), Some("down")));
    assert_eq!((curl(&proxy, "/check/app2").0, curl(&proxy, "/readyz").0, curl(&proxy, "/livez").0), (200, 200, 200));
    assert_eq!(curl(&proxy, "/check/app3").0, 404);
    stage.site.start_first_backend();
    wait::until("app1 is up again", || is(200)(curl(&proxy, "/check/app1")));
}

/// The site of [`Site`].
#[test]
fn promtool_finds_nothing_wrong_with_metrics_and_alerts() {
    let stage = Stage::new("health-promtool");
    let command = stage.site.proxy.command("promtool").args(["check", "metrics"]);
    let output = command.stdin(metrics(&stage.site.proxy)).output();
    assert_eq!((output.code(), output.stdout.as_str(), output.stderr.as_str()), (0, "", ""));
    stage
        .site
        .proxy
        .command("promtool")
        .args(["check", "rules", "--lint-fatal"])
        .arg(shipped("prometheus-alerts.yml"))
        .run();
}

/// Series as Prometheus would have scraped them; the alerts on them are those of [`ALERTS`]. Without any series, the daemon is gone.
const ALERT_TESTS: &str = r#"
rule_files: [ RULES ]
evaluation_interval: 30s
tests:
  - interval: 30s
    input_series: []
    alert_rule_test:
      - eval_time: 2m
        alertname: UnderpassDaemonGone
        exp_alerts: [ { exp_labels: { severity: page, job: underpass } } ]
  - interval: 30s
    input_series:
      - { series: 'up{job="underpass", instance="lb1"}', values: '1x4 0x20' }
      - { series: 'up{job="underpass", instance="lb2"}', values: '1x30' }
      - { series: 'process_start_time_seconds{job="underpass", instance="lb2"}', values: '100x9 400x3 500x3 600x9' }
      - { series: 'underpass_clock_synchronized{job="underpass", instance="lb2"}', values: '0x300' }
      - { series: 'underpass_private_key_written_timestamp_seconds{job="underpass", instance="lb2"}', values: '-31535900x300' }
      - { series: 'underpass_drops_total{job="underpass", instance="lb2", reason="stale_initiation"}', values: '0+2x300' }
      - { series: 'underpass_link_route_diverted{job="underpass", instance="lb2", peer="app1"}', values: '0x3 1x30' }
      - { series: 'underpass_route_repairs_total{job="underpass", instance="lb2"}', values: '0x9 1+1x300' }
      - { series: 'underpass_guard_set{job="underpass", instance="lb1"}', values: '1x30' }
      - { series: 'underpass_guard_set{job="underpass", instance="lb2"}', values: '1x3 0x30' }
      - { series: 'underpass_guard_restored_total{job="underpass", instance="lb2"}', values: '0x9 1+1x300' }
    alert_rule_test:
      - { eval_time: 20m, alertname: UnderpassHandshakesRefused }
"#;

/// An alert, a time at which it is silent, one at which it fires, its severity and where it fires.
const ALERTS: [(&str, &str, &str, &str, &str); 9] = [
    ("UnderpassRouteAroundTunnel", "1m", "3m", "page", "instance: lb2, peer: app1"),
    ("UnderpassRoutesTakenAway", "4m", "12m", "ticket", "instance: lb2"),
    ("UnderpassGuardMissing", "2m", "4m", "ticket", "instance: lb2"),
    ("UnderpassGuardTakenAway", "4m", "12m", "ticket", "instance: lb2"),
    ("UnderpassDaemonGone", "1m", "5m", "page", "instance: lb1"),
    ("UnderpassRestarts", "3m", "11m", "ticket", "instance: lb2"),
    ("UnderpassClockNotKept", "30m", "90m", "ticket", "instance: lb2"),
    ("UnderpassPrivateKeyOld", "1m", "5m", "ticket", "instance: lb2"),
    ("UnderpassHandshakesFromThePast", "1m", "20m", "ticket", "instance: lb2"),
];

/// One machine. promtool compares labels; of the texts, that there are some.
#[test]
fn alerts_fire_for_a_daemon_that_is_gone_for_routes_for_clocks_and_for_old_keys_and_not_before() {
    let lab = Lab::new("health-alerts");
    let host = lab.host("monitor");
    let rules: String = alerts().lines().filter(|line| !is_annotation(line)).map(|line| format!("{line}\n")).collect();
    let rules = host.write_file("rules.yml", rules);
    let mut tests = ALERT_TESTS.replace("RULES", &rules.display().to_string());
    for (alert, silent, fires, severity, place) in ALERTS {
        let labels = format!("severity: {severity}, job: underpass, {place}");
        let _ = writeln!(tests, "      - {{ eval_time: {silent}, alertname: {alert} }}");
        let expected = format!("exp_alerts: [ {{ exp_labels: {{ {labels} }} }} ]");
        let _ = writeln!(tests, "      - {{ eval_time: {fires}, alertname: {alert}, {expected} }}");
    }
    let tests = host.write_file("tests.yml", tests);
    let output = host.command("promtool").args(["test", "rules"]).arg(tests).output();
    assert_eq!(output.code(), 0, "{}{}", output.stdout, output.stderr);
}

fn is_annotation(line: &str) -> bool {
    ["annotations:", "summary:", "description:"].iter().any(|key| line.trim_start().starts_with(key))
}

/// The site of [`Site`].
#[test]
fn metrics_tell_the_age_of_the_key_and_whether_the_clock_is_kept() {
    let stage = Stage::new("health-key-age");
    let host = &stage.site.proxy;
    let value = |name: &str| metrics(host).lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
    let written = || value("underpass_private_key_written_timestamp_seconds").unwrap();
    let age = wait::unix_time().as_secs_f64() - written();
    assert!((0.0..600.0).contains(&age), "{age}");
    assert!(matches!(value("underpass_clock_synchronized"), Some(0.0 | 1.0)), "{}", metrics(host));
    let key = host.directory().join("underpass0.key");
    host.command("touch").args(["--date", "@1600000000"]).arg(&key).run();
    assert!(written() > 1_600_000_000.0, "the key in use is the one that was read");
    assert_eq!(stage.site.proxy_daemon().ask(&["reload"]).code(), 0);
    assert_eq!(written(), 1_600_000_000.0);
}

/// The site of [`Site`]: names in the dashboard and in the alerts are names of metrics.
#[test]
fn the_dashboard_and_the_alerts_ask_for_metrics_that_exist() {
    let stage = Stage::new("health-dashboard");
    let metrics = metrics(&stage.site.proxy);
    // Of samples, and of metrics that have none at the moment.
    let names: BTreeSet<&str> = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ").unwrap_or(line).split(['{', ' ']).next())
        .collect();
    let dashboard = std::fs::read_to_string(shipped("grafana-dashboard.json")).unwrap();
    let json: Value = serde_json::from_str(&dashboard).unwrap();
    assert!(json["panels"].as_array().is_some_and(|panels| panels.len() >= 8), "no panels");
    for (file, text) in [("dashboard", expressions(&json)), ("alerts", alerts())] {
        let asked = named_metrics(&text);
        assert!(asked.len() >= 4, "{file}: {asked:?}");
        let missing: Vec<_> = asked.iter().filter(|name| !names.contains(name.as_str())).collect();
        assert!(missing.is_empty(), "{file} asks for {missing:?}");
    }
}

fn alerts() -> String {
    std::fs::read_to_string(shipped("prometheus-alerts.yml")).unwrap()
}

/// All `expr` of a dashboard and the queries of its variables.
fn expressions(json: &Value) -> String {
    match json {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| match value {
                Value::String(text) if matches!(name.as_str(), "expr" | "query" | "definition") => format!("{text}\n"),
                value => expressions(value),
            })
            .collect(),
        Value::Array(items) => items.iter().map(expressions).collect(),
        _ => String::new(),
    }
}

fn named_metrics(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("underpass_") || word.starts_with("process_")).map(str::to_owned).collect()
}

/// A Prometheus on the proxy side of the site of [`Site`], with the shipped alerts.
struct Prometheus {
    host: Host,
    _process: Process,
}

impl Prometheus {
    #[track_caller]
    fn start(host: &Host) -> Prometheus {
        let config = format!(
            "global: {{ scrape_interval: 250ms, evaluation_interval: 250ms }}\n\
             rule_files: [ {} ]\n\
             scrape_configs: [ {{ job_name: underpass, static_configs: [ {{ targets: [ '{HTTP}' ] }} ] }} ]\n",
            shipped("prometheus-alerts.yml").display()
        );
        let config = host.write_file("prometheus.yml", config);
        let storage = host.directory().join("prometheus");
        let command = host.command("prometheus").arg(format!("--config.file={}", config.display()));
        let command = command.arg(format!("--storage.tsdb.path={}", storage.display()));
        let process = command.arg("--web.listen-address=127.0.0.1:9090").start("prometheus");
        host.wait_for_tcp_listener(9090);
        Prometheus { host: host.clone(), _process: process }
    }

    /// What its API answers.
    fn get(&self, path: &str) -> Value {
        let mut client = Client::connect(&self.host, "127.0.0.1:9090".parse().unwrap()).unwrap();
        serde_json::from_slice(&client.get(path).unwrap().body).unwrap_or_default()
    }

    /// The first value of a query.
    fn value(&self, query: &str) -> Option<String> {
        self.query(query)["data"]["result"][0]["value"][1].as_str().map(str::to_owned)
    }

    fn query(&self, query: &str) -> Value {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        self.get(&format!("/api/v1/query?query={encoded}"))
    }
}

/// The site of [`Site`], with a real Prometheus beside the load balancer.
#[test]
fn prometheus_scrapes_a_link_that_goes_down_and_its_alert_is_pending() {
    let mut stage = Stage::new("health-prometheus");
    let prometheus = Prometheus::start(&stage.site.proxy);
    let state = |state: &str| format!("underpass_link_state{{peer=\"app1\",state=\"{state}\"}}");
    wait::until("Prometheus knows that app1 is up", || prometheus.value(&state("up")).as_deref() == Some("1"));
    assert_eq!(prometheus.value("up").as_deref(), Some("1"));
    stage.site.stop_first_backend();
    wait::until("Prometheus knows that app1 is down", || prometheus.value(&state("down")).as_deref() == Some("1"));
    wait::until("the alert is pending", || {
        prometheus.value("ALERTS{alertname=\"UnderpassLinkDown\",peer=\"app1\"}").is_some()
    });
    assert_eq!(prometheus.value("underpass_link_state{peer=\"app2\",state=\"up\"}").as_deref(), Some("1"));
}

/// The site of [`Site`], with a real Prometheus beside the load balancer, which is asked what Grafana would ask.
#[test]
fn prometheus_understands_every_question_of_the_dashboard() {
    let stage = Stage::new("health-questions");
    let prometheus = Prometheus::start(&stage.site.proxy);
    wait::until("Prometheus has scraped", || prometheus.value("underpass_link_up").is_some());
    let dashboard = std::fs::read_to_string(shipped("grafana-dashboard.json")).unwrap();
    let questions = expressions(&serde_json::from_str(&dashboard).unwrap());
    let questions =
        questions.lines().filter(|question| question.contains("underpass_") && !question.contains("label_values"));
    let mut asked = 0;
    for question in questions {
        let filled_in = [("$__rate_interval", "1m"), ("$instance", ".*"), ("$peer", ".*")];
        let question = filled_in.iter().fold(question.to_owned(), |text, (name, value)| text.replace(name, value));
        let answer = prometheus.query(&question);
        assert_eq!(answer["status"], "success", "{question}: {answer}");
        asked += 1;
    }
    assert!(asked >= 15, "{asked}");
    let states = "sum by (instance, peer) (underpass_link_state)";
    assert_eq!(prometheus.value(states).as_deref(), Some("1"), "a link is in one state");
}

/// One machine.
#[test]
fn a_port_for_checks_that_is_taken_is_named_with_its_key() {
    let ends = Ends::new("health-port-taken");
    let config = ends.proxy_calling("10.1.0.2:51900");
    for (key, address) in [("agent_check", AGENT_CHECK), ("http", HTTP)] {
        let taken = ends.proxy.run(|| TcpListener::bind(address)).unwrap();
        let output = underpass::run_to_the_end(&ends.proxy, &config);
        assert_eq!(output.code(), 5, "{output:?}");
        for words in [&format!("health.{key}: TCP port "), &format!("{key} = \"off\"")] {
            assert!(output.stderr.contains(words), "{words}: {}", output.stderr);
        }
        assert!(!ends.proxy.has_interface("underpass0"));
        drop(taken);
    }
    let off = config.health("agent_check", quote("off")).health("http", quote("127.0.0.1:9000"));
    let _daemon = Daemon::start(&ends.proxy, &off);
    let _free = ends.proxy.run(|| TcpListener::bind(AGENT_CHECK)).unwrap();
    let command = ends.proxy.command("curl").args(["--silent", "--fail", "--max-time", "10"]);
    assert_eq!(command.arg("http://127.0.0.1:9000/livez").run(), "ok\n");
}

/// One machine with a proxy side that has 200 backends, none of which answers, and a HAProxy that asks for each of them twenty
/// times a second.
#[test]
fn two_hundred_backends_are_checked_twenty_times_a_second() {
    let ends = Ends::wired("health-many");
    let names: Vec<String> = (0..200).map(|n| format!("app{n}")).collect();
    let mut config: Config = ends.proxy_interface();
    for (n, name) in names.iter().enumerate() {
        let keys = KeyPair::generate(&ends.proxy);
        let address = format!("10.77.1.{n}");
        config = config.peer(Peer::new(name, &keys.public, [address.as_str()]));
    }
    let mut proxy = Daemon::start(&ends.proxy, &config);
    let servers: String =
        names.iter().map(|name| format!("  server {name} 10.1.0.2:80 agent-send \"{name}\\n\"\n")).collect();
    let options = "default-server agent-check agent-addr 127.0.0.1 agent-port 51901 agent-inter 50ms";
    let haproxy = format!(
        "global\n  stats socket /run/haproxy/admin.sock\ndefaults\n  mode tcp\n  timeout connect 1s\n  timeout client 1s\n  \
         timeout server 1s\nfrontend front\n  bind 127.0.0.1:80\n  default_backend apps\nbackend apps\n  {options}\n{servers}"
    );
    let file = ends.proxy.write_file("haproxy.cfg", haproxy);
    let haproxy = HaProxy::start_with(&ends.proxy, &file, 80);
    let told = || haproxy.show_stat().iter().filter(|row| row["agent_status"] == "L7STS").count();
    wait::until("every backend was told of", || told() == names.len());
    const DURING: Duration = Duration::from_secs(3);
    let before = proxy.process().cpu_time();
    wait::pass(DURING);
    let spent = proxy.process().cpu_time() - before;
    let late = names.len() - told();
    let share = spent.as_secs_f64() / DURING.as_secs_f64() * 100.0;
    println!(
        "200 backends, checked twenty times a second: the daemon takes {share:.1} % of a processor; {late} checks are late"
    );
    for row in haproxy.show_stat().iter().filter(|row| names.contains(&row["svname"])) {
        assert_eq!(row["status"], "DOWN (agent)", "{row:?}");
    }
}
