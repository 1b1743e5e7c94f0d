//! `cargo fuzz run --fuzz-dir tests/fuzz inbound tests/fuzz/corpus/inbound`
#![no_main]

#[path = "../bodies/choices.rs"]
mod choices;
#[path = "../bodies/inbound.rs"]
mod inbound;
#[path = "../bodies/links.rs"]
mod links;
#[path = "../../twin/policy.rs"]
mod policy_twin;
#[path = "../../twin/mod.rs"]
mod twin;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    inbound::run(data);
});
