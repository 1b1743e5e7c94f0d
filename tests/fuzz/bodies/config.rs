//! A configuration file is judged: it is accepted, or every problem names a place in it.

use std::path::Path;

use underpass::config::{Config, KeyFileError, KeyFiles};
use zeroize::Zeroizing;

/// Every key file holds the same good key.
struct OneKey;

impl KeyFiles for OneKey {
    fn read(&mut self, _path: &Path) -> Result<Zeroizing<String>, KeyFileError> {
        Ok(Zeroizing::new("yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=\n".to_owned()))
    }
}

pub(crate) fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Config::parse(text, Path::new("fuzz.toml"), &mut OneKey) {
        Ok(config) => assert!(!config.peers.is_empty(), "a configuration without a peer carries nothing"),
        Err(error) => {
            let message = error.to_string();
            assert!(message.contains("fuzz.toml:"), "no place is named: {message}");
            assert!(message.contains("help:"), "no remedy is named: {message}");
        }
    }
}
