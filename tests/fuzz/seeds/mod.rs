//! Inputs to begin with, that reach deep and say how: `tests/fuzz_corpus.rs` keeps them in the corpora.

pub(crate) mod datagram;
pub(crate) mod inbound;
pub(crate) mod outbound;
pub(crate) mod policy;
mod read;
pub(crate) mod segment_size;
