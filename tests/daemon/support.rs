//! Runs `underpass` and shows what it said.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// What one call of `underpass` came to.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The exit code.
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The binary, without what the environment of the tests could change.
pub(crate) fn underpass() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_underpass"));
    for variable in ["CREDENTIALS_DIRECTORY", "UNDERPASS_LOG", "UNDERPASS_LOG_FORMAT", "CLICOLOR_FORCE"] {
        command.env_remove(variable);
    }
    command
}

/// Calls `underpass` with `arguments` and nothing on standard input.
pub(crate) fn call(arguments: &[&str]) -> Outcome {
    outcome(underpass().args(arguments).stdin(Stdio::null()).output().unwrap())
}

/// Calls `underpass` with `arguments` and `input` on standard input.
pub(crate) fn call_with_input(arguments: &[&str], input: &[u8]) -> Outcome {
    let mut command = underpass();
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // It may stop reading before the end: then the pipe is closed, and its answer says why.
    let _ = child.stdin.take().unwrap().write_all(input);
    outcome(child.wait_with_output().unwrap())
}

/// Calls `underpass`, which must succeed, and gives what it printed, without the last line's end.
pub(crate) fn answer(arguments: &[&str]) -> String {
    let outcome = call(arguments);
    assert_eq!(outcome.code, 0, "{arguments:?}: {outcome:?}");
    outcome.stdout.trim_end().to_owned()
}

fn outcome(output: Output) -> Outcome {
    Outcome {
        code: output.status.code().expect("underpass ends by itself, not by a signal"),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A directory with a private key, as an operator would have it.
pub(crate) struct Site {
    directory: TempDir,
}

impl Site {
    /// With `private.key` in it.
    pub(crate) fn new() -> Self {
        let site = Self { directory: tempfile::tempdir().unwrap() };
        answer(&["genkey", "--out", &site.text("private.key")]);
        site
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The path of `name` as an argument.
    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn write(&self, name: &str, mode: u32, content: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        set_mode(&path, mode);
    }

    /// What `underpass check` says to a configuration with this text.
    pub(crate) fn check(&self, text: impl AsRef<[u8]>) -> Outcome {
        self.write("underpass.toml", 0o644, text);
        call(&["check", "--config", &self.text("underpass.toml")])
    }
}

pub(crate) fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// The public key of another machine.
pub(crate) fn a_public_key() -> String {
    let private = answer(&["genkey"]);
    call_with_input(&["pubkey"], private.as_bytes()).stdout.trim_end().to_owned()
}
