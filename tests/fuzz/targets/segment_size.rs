//! `cargo fuzz run --fuzz-dir tests/fuzz segment_size tests/fuzz/corpus/segment_size`
#![no_main]

#[path = "../bodies/segment_size.rs"]
mod segment_size;
#[path = "../../twin/mod.rs"]
mod twin;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    segment_size::run(data);
});
