//! `genkey`, `pubkey` and `genpsk`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::support::{Site, answer, call, call_with_input, set_mode};

#[test]
fn a_generated_key_has_a_public_key() {
    let private = answer(&["genkey"]);
    assert_eq!(private.len(), 44);
    let public = call_with_input(&["pubkey"], format!("{private}\n").as_bytes());
    assert_eq!((public.code, public.stdout.trim_end().len(), public.stderr.as_str()), (0, 44, ""));
    assert_ne!(public.stdout.trim_end(), private);
}

#[test]
fn the_public_key_is_that_of_rfc_7748_section_6_1() {
    let alice = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
    let outcome = call_with_input(&["pubkey"], alice.as_bytes());
    assert_eq!(outcome.stdout, "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=\n");
}

#[test]
fn no_two_generated_keys_are_equal() {
    assert_ne!(answer(&["genkey"]), answer(&["genkey"]));
    assert_ne!(answer(&["genpsk"]), answer(&["genpsk"]));
}

#[test]
fn a_new_key_file_is_its_owners_alone_and_the_public_key_is_printed() {
    let site = Site::new();
    let file = site.text("new.key");
    let printed = answer(&["genkey", "--out", &file]);
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o600);
    assert_eq!(printed, answer(&["pubkey", &file]));
    assert_eq!(answer(&["genpsk", "--out", &site.text("new.psk")]), "");
    assert_eq!(fs::metadata(site.path("new.psk")).unwrap().permissions().mode() & 0o7777, 0o600);
}

#[test]
fn a_key_file_is_never_overwritten() {
    let site = Site::new();
    let before = fs::read(site.path("private.key")).unwrap();
    for command in ["genkey", "genpsk"] {
        let outcome = call(&[command, "--out", &site.text("private.key")]);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (1, ""));
        assert!(outcome.stderr.contains("a key is never overwritten"), "{outcome:?}");
    }
    assert_eq!(fs::read(site.path("private.key")).unwrap(), before);
}

#[test]
fn a_missing_directory_is_named_with_its_remedy() {
    let outcome = call(&["genkey", "--out", "/nonexistent/private.key"]);
    assert_eq!(outcome.code, 1);
    assert!(outcome.stderr.contains("install -d -m 700"), "{outcome:?}");
}

#[test]
fn what_is_no_private_key_is_refused_and_not_repeated() {
    for input in ["", "swordfish", &"A".repeat(43), &format!("{}=", "A".repeat(43)), &"x".repeat(100_000)] {
        let outcome = call_with_input(&["pubkey"], input.as_bytes());
        assert_eq!((outcome.code, outcome.stdout.as_str()), (3, ""), "{outcome:?}");
        assert!(outcome.stderr.contains("not a private key") && !outcome.stderr.contains("swordfish"), "{outcome:?}");
    }
    let binary = call_with_input(&["pubkey"], &[0xff; 44]);
    assert_eq!(binary.code, 3);
    assert!(binary.stderr.contains("not text"), "{binary:?}");
}

#[test]
fn pubkey_refuses_a_file_that_others_can_read() {
    let site = Site::new();
    set_mode(&site.path("private.key"), 0o644);
    let outcome = call(&["pubkey", &site.text("private.key")]);
    assert_eq!(outcome.code, 3);
    assert!(outcome.stderr.contains("its mode is 0644"), "{outcome:?}");
}
