//! What scripts and shells rely on: exit codes, pipes, colour, help, completions, manual pages, JSON.

use std::fs;
use std::io::Read as _;
use std::process::{Command, Stdio};

use clap::CommandFactory as _;
use underpass::cli::Arguments;

use crate::support::{Site, a_public_key, answer, call, underpass};

/// All that there are, so that none is forgotten here.
fn subcommands() -> Vec<String> {
    let command = Arguments::command();
    let for_people = command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set());
    for_people.map(|subcommand| subcommand.get_name().to_owned()).collect()
}

fn valid_config() -> String {
    format!(
        "role = \"proxy\"\n[interface]\naddresses = [\"10.77.0.1/24\"]\nprivate_key_file = \"private.key\"\n[[backend]]\n\
         name = \"app1\"\npublic_key = \"{}\"\nendpoint = \"app1.example.com\"\naddresses = [\"10.77.0.11\"]\n\
         allowed_ips = [\"fd00::/8\"]\n",
        a_public_key()
    )
}

#[test]
fn help_names_every_subcommand_and_exit_code() {
    let help = answer(&["--help"]);
    for subcommand in subcommands() {
        assert!(help.contains(&format!("\n  {subcommand} ")), "{subcommand}: {help}");
        assert!(answer(&[&subcommand, "--help"]).contains("Usage: underpass"), "{subcommand}");
    }
    for code in 0..=7 {
        assert!(help.contains(&format!("\n  {code}  ")), "{code}: {help}");
    }
}

#[test]
fn the_version_is_the_packages() {
    assert_eq!(answer(&["--version"]), format!("underpass {}", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_wrong_command_line_ends_with_2() {
    for arguments in [&[][..], &["frobnicate"], &["check"], &["genkey", "--colour"], &["completions", "csh"]] {
        let outcome = call(arguments);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (2, ""), "{arguments:?}: {outcome:?}");
        assert!(outcome.stderr.contains("Usage:") || outcome.stderr.contains("--help"), "{outcome:?}");
    }
}

#[test]
fn run_refuses_what_check_refuses() {
    let site = Site::new();
    let checked = site.check("role = 1");
    let ran = call(&["run", "--config", &site.text("underpass.toml")]);
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr), (3, "", checked.stderr));
    let filter = call(&["run", "--log-level", "a=b=c", "--config", &site.text("underpass.toml")]);
    assert_eq!(filter.code, 2, "{filter:?}");
}

#[test]
fn status_without_a_daemon_ends_with_7() {
    let site = Site::new();
    let outcome = call(&["status", "--socket", &site.text("none.sock")]);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (7, ""), "{outcome:?}");
    assert!(outcome.stderr.contains("none.sock does not exist"), "{outcome:?}");
}

#[test]
fn top_wants_a_terminal() {
    let outcome = call(&["top"]);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (2, ""), "{outcome:?}");
    assert!(outcome.stderr.contains("underpass status"), "{outcome:?}");
}

#[test]
fn a_log_format_that_there_is_not_is_refused() {
    let site = Site::new();
    let config = site.text("underpass.toml");
    let outcome = call(&["run", "--log-format", "xml", "--config", &config]);
    assert_eq!(outcome.code, 2, "{outcome:?}");
    assert!(outcome.stderr.contains("journald"), "{outcome:?}");
    let run = underpass().args(["run", "--config", &config]).env("UNDERPASS_LOG_FORMAT", "xml").output().unwrap();
    let stderr = String::from_utf8(run.stderr).unwrap();
    assert_eq!(run.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("UNDERPASS_LOG_FORMAT: \"xml\" is no log format"), "{stderr}");
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    for arguments in [&["man"][..], &["completions", "bash"], &["genkey"], &["--help"]] {
        let mut child = underpass().args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        assert_eq!((child.wait().unwrap().code(), stderr.as_str()), (Some(0), ""), "{arguments:?}");
    }
}

#[test]
fn a_full_disk_is_a_failure() {
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = underpass().arg("man").stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8(output.stderr).unwrap().contains("No space left"));
}

#[test]
fn no_colour_leaves_a_pipe() {
    let site = Site::new();
    let valid = site.check(valid_config());
    assert_eq!(valid.code, 0, "{valid:?}");
    let refused = site.check("role = 1");
    for text in [valid.stdout, refused.stderr, call(&["--help"]).stdout, call(&["nothing"]).stderr] {
        assert!(!text.is_empty() && !text.contains('\u{1b}'), "{text:?}");
    }
}

#[test]
fn check_prints_what_would_happen() {
    let outcome = Site::new().check(valid_config());
    assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""));
    for part in [
        "This machine is the proxy side of 1 link.",
        "interface underpass0",
        "10.77.0.1/24",
        "UDP 0.0.0.0:51900, [::]:51900",
        "1420 bytes",
        "app1.example.com:51900",
        "10.77.0.11/32, fd00::/8",
        "look again: app1: it may use fd00::/8, but interface.addresses holds no IPv6 address",
    ] {
        assert!(outcome.stdout.contains(part), "{part}: {}", outcome.stdout);
    }
}

#[test]
fn check_speaks_json_and_tells_no_secret() {
    let site = Site::new();
    site.write("underpass.toml", 0o644, valid_config());
    let text = answer(&["check", "--json", "--config", &site.text("underpass.toml")]);
    let plan: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(plan["schema_version"], 1);
    assert_eq!(plan["interface"]["public_key"], answer(&["pubkey", &site.text("private.key")]));
    assert_eq!(plan["peers"][0]["endpoints"][0], "app1.example.com:51900");
    assert_eq!(plan["routes"][1]["destination"], "fd00::/8");
    let secret = fs::read_to_string(site.path("private.key")).unwrap();
    assert!(!text.contains(secret.trim()));
}

#[test]
fn check_speaks_json_of_a_refused_file_too() {
    let site = Site::new();
    site.write("underpass.toml", 0o644, valid_config().replace("role = \"proxy\"", "role = \"proxi\"\nports = 1"));
    let file = site.text("underpass.toml");
    let outcome = call(&["check", "--json", "--config", &file]);
    assert_eq!(outcome.code, 3);
    let refused: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(
        (&refused["schema_version"], &refused["valid"], &refused["count"]),
        (&1.into(), &false.into(), &2.into())
    );
    assert_eq!(refused["config"], file.as_str());
    let expected = serde_json::json!({
        "file": file,
        "line": 1,
        "column": 8,
        "key": "role",
        "message": "\"proxi\" is not known",
        "help": "write `role = \"proxy\"` beside the load balancer, `role = \"backend\"` beside an app server",
    });
    assert_eq!(refused["problems"][0], expected);
    assert_eq!((&refused["problems"][1]["line"], &refused["problems"][1]["key"]), (&2.into(), &"ports".into()));

    let outcome = call(&["check", "--json", "--config", &site.text("none.toml")]);
    assert_eq!(outcome.code, 3);
    let refused: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    let problem = &refused["problems"][0];
    assert_eq!((problem["line"].as_u64(), problem["key"].as_str()), (None, None));
    assert!(problem["message"].as_str().is_some_and(|message| !message.is_empty()));
    let valid = answer(&["check", "--json", "--config", &{
        site.write("underpass.toml", 0o644, valid_config());
        file
    }]);
    assert_eq!(serde_json::from_str::<serde_json::Value>(&valid).unwrap()["valid"], true);
}

#[test]
fn ten_thousand_peers_are_judged_in_a_moment() {
    use std::fmt::Write as _;
    let site = Site::new();
    let mut config = String::from(
        "role = \"proxy\"\n[interface]\naddresses = [\"10.0.0.1/8\"]\nprivate_key_file = \"private.key\"\n",
    );
    for number in 0..10_000 {
        // Nearly every 32 bytes are a public key: these differ in the last characters.
        let (high, low) = (number / 250, number % 250);
        write!(
            config,
            "[[backend]]\nname = \"app{number}\"\npublic_key = \"{number:0>42}0=\"\naddresses = [\"10.1.{high}.{low}\"]\n"
        )
        .unwrap();
    }
    let outcome = site.check(config);
    assert_eq!(outcome.code, 0, "{}", outcome.stderr);
    assert!(outcome.stdout.contains("10000 links"));
}

#[test]
fn the_shells_at_hand_accept_their_completions() {
    let site = Site::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = answer(&["completions", shell]);
        for subcommand in subcommands() {
            assert!(script.contains(&subcommand), "{shell}: {subcommand}");
        }
        site.write(shell, 0o644, script);
    }
    let parsed = Command::new("bash").args(["-n", &site.text("bash")]).status().unwrap();
    assert!(parsed.success());
}

#[test]
fn there_is_a_manual_page_for_every_subcommand() {
    let site = Site::new();
    let directory = site.text("man");
    fs::create_dir(&directory).unwrap();
    answer(&["man", "--out", &directory]);
    let printed = answer(&["man"]);
    let names = subcommands().into_iter().map(|subcommand| format!("underpass-{subcommand}.1"));
    for name in names.chain(["underpass.1".to_owned()]) {
        let page = fs::read_to_string(site.path("man").join(&name)).unwrap();
        assert!(page.contains(".TH underpass") && printed.contains(page.trim_end()), "{name}");
    }
    assert!(printed.contains("Exit codes"));
}
