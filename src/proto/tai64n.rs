//! TAI64N timestamps (<https://cr.yp.to/libtai/tai64.html>): what makes an old initiation refusable.

use std::time::Duration;

use crate::packet::message::TIMESTAMP_LEN;

/// Seconds of the TAI64 label of the Unix epoch, with the ten seconds by which TAI was ahead then.
const UNIX_EPOCH: u64 = (1 << 62) + 10;

/// A timestamp that compares as its bytes do: 8 bytes of seconds and 4 of nanoseconds, big-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tai64N([u8; TIMESTAMP_LEN]);

impl Tai64N {
    /// The label of a time since the Unix epoch. Leap seconds are ignored: only the order matters.
    pub fn from_unix(time: Duration) -> Self {
        let mut label = [0; TIMESTAMP_LEN];
        label[..8].copy_from_slice(&UNIX_EPOCH.saturating_add(time.as_secs()).to_be_bytes());
        label[8..].copy_from_slice(&time.subsec_nanos().to_be_bytes());
        Self(label)
    }

    /// As received. Any bytes are a label; strange ones only harm who sends them.
    pub fn from_bytes(label: [u8; TIMESTAMP_LEN]) -> Self {
        Self(label)
    }

    /// The bytes of the wire.
    pub fn as_bytes(&self) -> &[u8; TIMESTAMP_LEN] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_the_unix_epoch_as_libtai_does() {
        assert_eq!(Tai64N::from_unix(Duration::ZERO).as_bytes(), &[0x40, 0, 0, 0, 0, 0, 0, 0x0a, 0, 0, 0, 0]);
    }

    #[test]
    fn later_times_have_greater_labels() {
        let times = [0, 1, 999_999_999, 1_000_000_000, 1_700_000_000_000_000_000].map(Duration::from_nanos);
        assert!(times.map(Tai64N::from_unix).is_sorted());
    }
}
