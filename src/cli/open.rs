//! `underpass open`: lets a network that is no longer configured be reached in the clear.

use std::io::Write;

use ipnet::IpNet;

use super::arguments::OpenArguments;
use super::lines::texts;
use super::{Exit, Failure};
use crate::control::api::Opened;
use crate::control::client::{self, ClientError};
use crate::control::netlink::NetlinkError;
use crate::control::open;

/// Asks the daemon, or does it where none runs, and says to `out` what is open.
pub fn run(arguments: &OpenArguments, out: &mut dyn Write) -> Result<(), Failure> {
    let prefix = arguments.prefix;
    let asked = arguments.daemon.socket().and_then(|socket| client::open(&socket, prefix));
    let opened = match asked {
        Err(ClientError::NoneRunning { .. } | ClientError::NotRunning { .. } | ClientError::Dead { .. }) => {
            let opened = open::without_daemon(prefix, arguments.daemon.interface.as_deref()).map_err(failure)?;
            Opened { opened, ..Opened::default() }
        }
        asked => asked?,
    };
    Ok(out.write_all(render(prefix, &opened).as_bytes())?)
}

fn failure(error: NetlinkError) -> Failure {
    let exit = if matches!(error, NetlinkError::NoPermission { .. }) { Exit::Permission } else { Exit::Other };
    Failure::new(exit, error)
}

fn render(prefix: IpNet, Opened { opened, configured, refused }: &Opened) -> String {
    let line = |what: &str, networks: &[IpNet]| match networks {
        [] => String::new(),
        networks => format!("{what}: {}\n", texts(networks).join(", ")),
    };
    let nothing = if opened.is_empty() {
        format!("nothing in {prefix} was refused beside what is configured\n")
    } else {
        String::new()
    };
    nothing
        + &line("open", opened)
        + &line("still configured, so refused without the tunnel", configured)
        + &line("still refused", refused)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_is_open_and_what_is_not() {
        let nets = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpNet>>();
        let opened = Opened {
            opened: nets(&["10.1.0.0/16"]),
            configured: nets(&["10.77.0.0/24"]),
            refused: nets(&["fd01::/64"]),
        };
        let expected = "\
open: 10.1.0.0/16
still configured, so refused without the tunnel: 10.77.0.0/24
still refused: fd01::/64
";
        assert_eq!(render("10.0.0.0/8".parse().unwrap(), &opened), expected);
        let text = render("10.0.0.0/8".parse().unwrap(), &Opened::default());
        assert_eq!(text, "nothing in 10.0.0.0/8 was refused beside what is configured\n");
    }
}
