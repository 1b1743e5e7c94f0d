//! The real binary, as a shell or a service manager calls it: arguments, output, exit codes.

#![expect(clippy::unwrap_used, reason = "in a test, a panic is the report")]

mod examples;
mod key_files;
mod keys;
mod malformed;
mod output;
mod privileged;
mod support;
