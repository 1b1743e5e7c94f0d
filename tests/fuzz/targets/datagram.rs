//! `cargo fuzz run --fuzz-dir tests/fuzz datagram tests/fuzz/corpus/datagram`
#![no_main]

#[path = "../bodies/datagram.rs"]
mod datagram;

libfuzzer_sys::fuzz_target!(|data: &[u8]| datagram::run(data));
