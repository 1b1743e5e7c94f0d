//! Certificates for whom TLS is compared with.

use std::path::PathBuf;

use crate::host::Host;

/// A certificate that is its own authority, and its key, as PEM files.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// What clients verify, and what the server shows.
    pub certificate: PathBuf,
    /// The server's secret.
    pub key: PathBuf,
}

impl Certificate {
    /// Makes one for a name, with an ECDSA key on P-256: the usual one, and the fastest to verify and to sign with.
    #[track_caller]
    pub fn generate(host: &Host, name: &str) -> Certificate {
        let file = |extension: &str| host.directory().join(format!("{name}.{extension}"));
        let made = Certificate { certificate: file("crt"), key: file("key") };
        let command = host.command("openssl").args(["req", "-x509", "-nodes", "-days", "30", "-newkey", "ec"]);
        let command = command.args(["-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", &format!("/CN={name}")]);
        let command = command.args(["-addext", &format!("subjectAltName=DNS:{name}")]);
        command.arg("-keyout").arg(&made.key).arg("-out").arg(&made.certificate).run();
        made
    }
}
