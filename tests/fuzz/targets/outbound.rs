//! `cargo fuzz run --fuzz-dir tests/fuzz outbound tests/fuzz/corpus/outbound`
#![no_main]

#[path = "../bodies/choices.rs"]
mod choices;
#[path = "../bodies/links.rs"]
mod links;
#[path = "../bodies/outbound.rs"]
mod outbound;
#[path = "../../twin/mod.rs"]
mod twin;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    outbound::run(data);
});
