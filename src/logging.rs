//! Where log lines go and how they look.
//!
//! Owns the subscriber: standard error, one line for each event, colour only on a terminal, no time of its own where the
//! journal adds one. It decides no level for anybody: `docs/configuration.md` names the filter's syntax.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// The filter where none is given.
pub const DEFAULT_FILTER: &str = "info";
/// The environment variable that holds a filter.
pub const FILTER_VARIABLE: &str = "UNDERPASS_LOG";

/// Starts logging to standard error by `filter`, else by `$UNDERPASS_LOG`, else from INFO on. Once per process.
pub fn start(filter: Option<&str>) -> Result<(), ParseError> {
    let variable = std::env::var(FILTER_VARIABLE).ok();
    let filter = filter.or(variable.as_deref().filter(|text| !text.is_empty())).unwrap_or(DEFAULT_FILTER);
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::builder().parse(filter)?)
        .with_writer(std::io::stderr)
        .with_ansi(wants_colour());
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        subscriber.without_time().init();
    } else {
        subscriber.init();
    }
    Ok(())
}

fn wants_colour() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}
