//! The protocol as others have it: known answers, and a second implementation.
//!
//! `peer.py` was written from `docs/protocol.md` alone, in Python without any library. It computes the transcripts in this
//! directory, which the real implementation must agree with byte for byte, and it talks to a real device in both roles.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod interoperation;
mod link;
mod packets;
mod python;
mod transcript;
