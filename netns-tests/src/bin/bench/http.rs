//! Requests through a real load balancer, by wrk on the proxy.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use netns_tests::http::Client;
use netns_tests::http_rate::{self, Rate};
use netns_tests::{Host, Process};

use crate::Bench;
use crate::contender::{Contender, Reach};
use crate::measurement::{Figure, Measurement};
use crate::meter::{Meter, Usage};
use crate::site::Connections;

/// Requests for one small file from 64 clients at once.
pub(crate) fn requests(bench: &Bench, contender: &Contender, connections: Connections) -> Measurement {
    let url = url(bench, contender, connections, "1k");
    let (load, usage) = run_wrk(bench, contender, 64, &[&url]);
    load.measurement(load.per_second, usage)
}

/// Requests for a large file from 16 clients at once, as gigabits of bodies per second.
pub(crate) fn large_bodies(bench: &Bench, contender: &Contender) -> Measurement {
    let url = url(bench, contender, Connections::Kept, "1m");
    let (load, usage) = run_wrk(bench, contender, 16, &[&url]);
    let body = f64::from(1 << 20);
    let measurement = Measurement::new(load.per_second * body * 8.0 / 1e9).with(Figure::P99, load.p99_microseconds);
    measurement.with(Figure::Errors, load.errors).with_usage_per_gigabyte(usage, load.requests * body)
}

/// As many requests each second as a busy site has, and how long each takes.
pub(crate) fn at_a_rate(bench: &Bench, contender: &Contender, path: &str) -> Measurement {
    let meter = Meter::start(contender.processes());
    let frontend = bench.site.frontend(contender.name, Connections::Kept);
    let rate = Rate { path, per_second: 5000, connections: 64 };
    let trips = http_rate::ask(&bench.field.proxy, frontend, rate, bench.during());
    assert!(!trips.times.is_empty(), "not one of {} requests was answered", trips.lost);
    let measurement = Measurement::of_times(&trips.times).with(Figure::Errors, trips.lost as f64);
    measurement.with_usage_per_request(meter.read(), trips.times.len() as f64)
}

/// Fails unless HAProxy's TLS sessions with the backend are resumed, or are not, as they should be.
pub(crate) fn check_resumption(bench: &Bench, contender: &Contender) {
    let Reach::Tls { resumed } = contender.reach else { return };
    let frontend = bench.site.frontend(contender.name, Connections::New);
    // nginx says `r` of a connection with a resumed session, and `.` of another. Each of HAProxy's threads has its own first.
    let said = |_| Client::connect(&bench.field.proxy, frontend)?.get("/resumed").map(|response| response.text());
    let said: anyhow::Result<Vec<String>> = (0..16).map(said).collect();
    let said = said.unwrap_or_else(|error| panic!("{}: {error:#}", contender.name)).concat();
    assert_eq!(said.ends_with("rrrr"), resumed, "{}: sessions resumed as in {said}", contender.name);
}

/// Requests for files of several lengths from 64 clients at once.
pub(crate) fn mixed(bench: &Bench, contender: &Contender) -> Measurement {
    let script = bench.field.proxy.write_file("mixed.lua", MIX);
    let url = url(bench, contender, Connections::Kept, "");
    let (load, usage) = run_wrk(bench, contender, 64, &["-s", &script.display().to_string(), &url]);
    load.measurement(load.per_second, usage)
}

/// The same order for everyone: wrk's generator is seeded.
const MIX: &str = r#"
math.randomseed(1)
request = function()
   local n = math.random(100)
   local file = n <= 80 and "/1k" or n <= 98 and "/16k" or "/256k"
   return wrk.format("GET", file)
end
"#;

fn url(bench: &Bench, contender: &Contender, connections: Connections, file: &str) -> String {
    format!("http://{}/{file}", bench.site.frontend(contender.name, connections))
}

fn run_wrk(bench: &Bench, contender: &Contender, clients: u32, what: &[&str]) -> (Load, Usage) {
    let meter = Meter::start(contender.processes());
    let load = wrk(&bench.field.proxy, clients, bench.seconds, what);
    (load, meter.read())
}

fn wrk(host: &Host, clients: u32, seconds: u32, what: &[&str]) -> Load {
    let (clients, duration) = (format!("-c{clients}"), format!("-d{seconds}s"));
    let command = host.command("wrk").args(["-t1", &clients, &duration, "--latency"]).args(what);
    let text = command.within(Duration::from_secs(u64::from(seconds) + 20)).run();
    Load::parse(&text).unwrap_or_else(|error| panic!("wrk: {error:#}:\n{text}"))
}

/// Requests for one small file from 64 clients at once, where no contender of the bench is measured.
pub(crate) fn requests_at(host: &Host, frontend: SocketAddr, seconds: u32, daemon: Option<&Process>) -> Measurement {
    let meter = Meter::start(daemon);
    let load = wrk(host, 64, seconds, &[&format!("http://{frontend}/1k")]);
    load.measurement(load.per_second, meter.read())
}

/// What wrk says.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Load {
    requests: f64,
    per_second: f64,
    /// Connections refused, broken off, or silent for two seconds.
    errors: f64,
    p99_microseconds: f64,
}

impl Load {
    fn measurement(self, value: f64, usage: Usage) -> Measurement {
        let measurement = Measurement::new(value).with(Figure::P99, self.p99_microseconds);
        measurement.with(Figure::Errors, self.errors).with_usage_per_request(usage, self.requests)
    }

    /// An answer other than 200 is a failure: it may have been quick to give.
    fn parse(text: &str) -> anyhow::Result<Load> {
        let after = |start: &str| {
            let line = text.lines().find_map(|line| line.trim_start().strip_prefix(start));
            line.map(str::trim).with_context(|| format!("no line that begins with {start:?}"))
        };
        ensure!(!text.contains("Non-2xx"), "some answers were not 200");
        let total = text.lines().find_map(|line| line.trim().split_once(" requests in "));
        let load = Load {
            requests: total.context("no number of requests")?.0.parse()?,
            per_second: after("Requests/sec:")?.parse()?,
            errors: after("Socket errors:").map_or(0.0, sum_of_numbers),
            p99_microseconds: with_unit(after("99%")?, &[("us", 1.0), ("ms", 1e3), ("s", 1e6)])?,
        };
        ensure!(load.requests > 0.0, "not one request was answered");
        Ok(load)
    }
}

fn sum_of_numbers(text: &str) -> f64 {
    text.split([' ', ',']).filter_map(|word| word.parse::<f64>().ok()).sum()
}

/// A number with one of some units behind it, of which one that ends like another comes first.
fn with_unit(text: &str, units: &[(&str, f64)]) -> anyhow::Result<f64> {
    let known = units.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)));
    let (number, factor) = known.with_context(|| format!("no unit in {text:?}"))?;
    Ok(number.parse::<f64>()? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "Running 2s test @ http://127.0.0.1:9000/1k
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     2.71ms    1.02ms  19.92ms   83.66%
    Req/Sec    23.71k     2.17k   27.57k    70.00%
  Latency Distribution
     50%    2.55ms
     75%    3.04ms
     90%    3.81ms
     99%    6.50ms
  47309 requests in 2.01s, 56.44MB read
Requests/sec:  23543.16
Transfer/sec:     28.09MB
";

    #[test]
    fn what_wrk_says_is_read() {
        let load = Load::parse(GOOD).unwrap();
        assert_eq!((load.requests, load.per_second), (47309.0, 23543.16));
        assert_eq!((load.p99_microseconds, load.errors), (6500.0, 0.0));
    }

    #[test]
    fn socket_errors_are_counted() {
        let errors = "  Socket errors: connect 0, read 1, write 0, timeout 12\nRequests/sec";
        assert_eq!(Load::parse(&GOOD.replace("Requests/sec", errors)).unwrap().errors, 13.0);
    }

    #[test]
    fn answers_that_are_errors_do_not_count_as_speed() {
        assert!(Load::parse(&GOOD.replace("Requests/sec", "  Non-2xx or 3xx responses: 3\nRequests/sec")).is_err());
        assert!(Load::parse(&GOOD.replace("47309 ", "0 ")).is_err());
        assert!(Load::parse("").is_err());
    }

    #[test]
    fn units_are_told_apart_by_their_whole_name() {
        let times = [("us", 1.0), ("ms", 1e3), ("s", 1e6)];
        assert_eq!(with_unit("812.00us", &times).unwrap(), 812.0);
        assert_eq!(with_unit("1.02s", &times).unwrap(), 1.02e6);
        assert!(with_unit("3", &times).is_err());
    }
}
