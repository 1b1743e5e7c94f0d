//! `cargo fuzz run --fuzz-dir tests/fuzz policy tests/fuzz/corpus/policy`
#![no_main]

#[path = "../bodies/choices.rs"]
mod choices;
#[path = "../bodies/policy.rs"]
mod policy;
#[path = "../../twin/policy.rs"]
mod policy_twin;
#[path = "../../twin/mod.rs"]
mod twin;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    policy::run(data);
});
