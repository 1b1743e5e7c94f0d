//! `underpass audit` tells of a running daemon what an auditor asks, and no secret.

use std::path::Path;

use netns_tests::Host;
use netns_tests::process::Output;
use netns_tests::underpass::{self, Daemon};
use serde_json::Value;

use crate::ends::{Ends, PROXY};

const ENDPOINT: &str = "10.1.0.2:51900";

fn audit(host: &Host, file: &Path, more: &[&str]) -> Output {
    underpass::command(host).args(["audit", "--config"]).arg(file).args(more).output()
}

fn json(output: &Output) -> Value {
    serde_json::from_str(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}{}", output.stdout, output.stderr))
}

/// The cable of [`Ends::wired`]; the backend side, which is the one that exposes something.
#[test]
fn what_an_auditor_asks_is_told_of_a_running_daemon_and_without_one() {
    let ends = Ends::wired("audit");
    let preshared = underpass::command(&ends.proxy).arg("genpsk").run().trim().to_owned();
    let config = ends
        .backend_interface()
        .set("expose", "[\"tcp/8080\"]")
        .peer(ends.proxy_peer().preshared_key(&preshared).endpoint("10.1.0.1:51900"));
    let backend = Daemon::start(&ends.backend, &config);
    let _proxy = Daemon::start(
        &ends.proxy,
        &ends.proxy_interface().peer(ends.backend_peer().preshared_key(&preshared).endpoint(ENDPOINT)),
    );
    backend.wait_for_state("proxy", "up");
    let file = config.write(&ends.backend);

    let told = json(&audit(&ends.backend, &file, &["--json"]));
    let handshakes = told["algorithms"]["handshakes"].as_array().unwrap();
    assert!(handshakes.iter().all(|name| name.as_str().unwrap().starts_with("Noise_IKpsk2_25519_")), "{told:#}");
    assert_eq!(told["private_key"]["public_key"], ends.backend_keys.public.as_str());
    assert_eq!(told["private_key"]["mode"], "0600");
    let now = told["unix_time"].as_u64().unwrap();
    let age = now - told["private_key"]["written"].as_u64().unwrap();
    assert!(age < 120, "{told:#}");
    assert_eq!((&told["daemon"]["runs_by_this_key"], &told["daemon"]["sandbox"]["on"]), (&true.into(), &true.into()));
    let sandbox = &told["daemon"]["sandbox"];
    let capabilities = [&sandbox["capabilities"], &sandbox["privileged"]["capabilities"]];
    assert_eq!(capabilities, [&serde_json::json!([]), &serde_json::json!(["CAP_NET_ADMIN"])]);
    assert_eq!(told["daemon"]["guard"]["state"], "on");
    let peer = &told["peers"][0];
    assert_eq!(
        (&peer["exposes"], &peer["public_key"]),
        (&serde_json::json!(["tcp/8080"]), &ends.proxy_keys.public.as_str().into())
    );
    assert!(peer["preshared_key"]["written"].is_u64() && now - peer["link"]["last_rekey"].as_u64().unwrap() < 60);
    assert!(peer["allowed_ips"].as_array().unwrap().contains(&format!("{}/32", PROXY[0]).into()), "{told:#}");

    let text = audit(&ends.backend, &file, &[]);
    assert_eq!(text.code(), 0, "{text:?}");
    for line in [
        "guard          tunnel addresses are refused on other interfaces",
        "sandbox        on",
        "capabilities   none",
        "may reach      tcp/8080",
        "link           up, ",
    ] {
        assert!(text.stdout.contains(&format!("\n  {line}")), "{line}: {}", text.stdout);
    }
    for secret in [&ends.backend_keys.private, &preshared] {
        assert!(!text.stdout.contains(&**secret) && !told.to_string().contains(&**secret));
    }

    backend.stop();
    let output = audit(&ends.backend, &file, &["--json"]);
    assert_eq!((output.code(), &json(&output)["daemon"]), (7, &Value::Null), "{output:?}");
}
