//! Files that hold secrets: which are refused, and with what words.

use std::fs;
use std::process::Stdio;

use crate::support::{Outcome, Site, a_public_key, answer, call, call_with_input, set_mode, underpass};

fn config_with(line: &str) -> String {
    format!(
        "role = \"proxy\"\n[interface]\naddresses = [\"10.77.0.1/24\"]\nprivate_key_file = \"private.key\"\n[[backend]]\n\
         name = \"app1\"\npublic_key = \"{}\"\naddresses = [\"10.77.0.11\"]\n{line}\n",
        a_public_key()
    )
}

fn assert_refused(outcome: &Outcome, line: usize, parts: &[&str]) {
    assert_eq!(outcome.code, 3, "{outcome:#?}");
    assert!(outcome.stderr.contains(&format!("underpass.toml:{line}:")), "{outcome:#?}");
    for part in parts {
        assert!(outcome.stderr.contains(part), "{part}: {outcome:#?}");
    }
}

#[test]
fn a_key_file_open_to_others_is_refused_with_the_command_that_closes_it() {
    let site = Site::new();
    let config = config_with("preshared_key_file = \"app1.psk\"");
    answer(&["genpsk", "--out", &site.text("app1.psk")]);
    assert_eq!(site.check(&config).code, 0);
    for mode in [0o640, 0o604, 0o660, 0o644, 0o777] {
        set_mode(&site.path("private.key"), mode);
        let remedy = format!("`chmod 600 {}`", site.text("private.key"));
        let shown = format!("its mode is 0{mode:o}");
        assert_refused(&site.check(&config), 4, &["interface.private_key_file", &shown, &remedy]);
    }
    set_mode(&site.path("private.key"), 0o400);
    set_mode(&site.path("app1.psk"), 0o644);
    assert_refused(&site.check(&config), 9, &["backend \"app1\".preshared_key_file", "app1.psk`"]);
    set_mode(&site.path("app1.psk"), 0o600);
    assert_eq!(site.check(&config).code, 0);
}

#[test]
fn each_useless_key_file_is_refused_with_its_remedy() {
    let site = Site::new();
    site.write("empty.psk", 0o600, "\n");
    site.write("large.psk", 0o600, "x".repeat(2000));
    site.write("words.psk", 0o600, "correct horse battery staple");
    site.write("binary.psk", 0o600, [0xff; 44]);
    site.write("zero.psk", 0o600, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n");
    fs::create_dir(site.path("directory.psk")).unwrap();
    for (name, what, remedy) in [
        ("none.psk", "there is no such file", "underpass genpsk --out"),
        ("empty.psk", "it is empty", "underpass genpsk --out"),
        ("large.psk", "larger than 1024 bytes", "one key and nothing else"),
        ("words.psk", "does not hold a key: a key is 44 characters", "underpass genpsk --out"),
        ("binary.psk", "it is not text", "one key and nothing else"),
        ("zero.psk", "this key is all zeros", "underpass genpsk --out"),
        ("directory.psk", "it is not a regular file", "one key and nothing else"),
        ("/dev/null", "it is not a regular file", "one key and nothing else"),
        ("", "cannot name a file", "the path of the key file"),
    ] {
        let outcome = site.check(config_with(&format!("preshared_key_file = \"{name}\"")));
        assert_refused(&outcome, 9, &["backend \"app1\".preshared_key_file", what, remedy]);
        assert!(!outcome.stderr.contains("correct horse"), "no message repeats what a key file holds");
    }
}

#[test]
fn a_previous_key_that_is_the_present_one_is_refused() {
    let site = Site::new();
    let config = config_with("").replace("[[backend]]", "previous_private_key_file = \"private.key\"\n[[backend]]");
    assert_refused(
        &site.check(config),
        5,
        &["interface.previous_private_key_file", "the same key", "delete this line"],
    );
}

#[test]
fn a_key_comes_from_standard_input_too() {
    let site = Site::new();
    let config = config_with("").replace("private.key", "/dev/stdin");
    site.write("underpass.toml", 0o644, config);
    let private = fs::read(site.path("private.key")).unwrap();
    let arguments = ["check", "--config", &site.text("underpass.toml")];
    let piped = call_with_input(&arguments, &private);
    assert_eq!(piped.code, 0, "{piped:?}");
    assert!(piped.stdout.contains(&answer(&["pubkey", &site.text("private.key")])));
    // A file redirected to standard input is judged as that file.
    set_mode(&site.path("private.key"), 0o644);
    let file = fs::File::open(site.path("private.key")).unwrap();
    let redirected = underpass().args(arguments).stdin(Stdio::from(file)).output().unwrap();
    assert_eq!(redirected.status.code(), Some(3), "{redirected:?}");
}

#[test]
fn a_credential_of_systemd_may_be_readable_by_its_group() {
    let site = Site::new();
    site.write("underpass.toml", 0o644, config_with(""));
    set_mode(&site.path("private.key"), 0o440);
    let arguments = ["check", "--config", &site.text("underpass.toml")];
    assert_eq!(call(&arguments).code, 3);
    let output = underpass().args(arguments).env("CREDENTIALS_DIRECTORY", site.path("")).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}
