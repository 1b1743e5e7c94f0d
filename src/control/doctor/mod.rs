//! Finding out why a link is not what it should be, from this side: facts first, then what they most likely mean.
//!
//! ```text
//! daemon, file, kernel, names ─▶ gather ─▶ Facts ─▶ diagnose ─▶ causes, the most likely first, each with its remedy
//! ```
//!
//! Nothing is changed. [`diagnose`] is a function of the facts alone, so that each case is a test.

mod facts;
mod gather;
mod listeners;
mod rules;

pub use facts::{DaemonFacts, Facts, FileFacts, Leads, NameFacts, RouteFacts};
pub use gather::{Question, ask, find_file, gather};
pub use rules::{Cause, CauseKind, Weight, diagnose};
