//! Numbers as people read them: times, amounts of data, rates, shares.

/// How long ago something was.
pub(super) fn ago(seconds: u64) -> String {
    if seconds == 0 { "now".to_owned() } else { format!("{} ago", span(seconds)) }
}

/// In the largest unit of which there are at least two, so that it is off by less than half.
pub(super) fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// With binary units.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    // Past 1,023.95 one decimal would show 1024.0: the next unit's.
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Bytes per second as bits per second, in at most 11 characters.
pub(super) fn bit_rate(bytes_per_second: f64) -> String {
    match bytes_per_second * 8.0 {
        bits if bits < 999.5 => format!("{bits:.0} bit/s"),
        bits => scaled(bits / 1e3, &["kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"]),
    }
}

/// A round trip, in at most 7 characters.
pub(super) fn round_trip(microseconds: u64) -> String {
    match microseconds {
        0..1000 => format!("{microseconds} µs"),
        _ => scaled(microseconds as f64 / 1e3, &["ms", "s"]),
    }
}

/// A share between 0 and 1, in at most 5 characters. What is not nothing does not look like it.
pub(super) fn percent(share: f64) -> String {
    match share * 100.0 {
        percent if percent <= 0.0 => "0 %".to_owned(),
        percent if percent < 0.1 => "0.1 %".to_owned(),
        percent if percent < 9.95 => format!("{percent:.1} %"),
        percent => format!("{percent:.0} %"),
    }
}

/// Three digits, in the smallest of `units` that these are enough for; each is a thousand of the one before.
fn scaled(mut value: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1e3;
        unit += 1;
    }
    let decimals = match value {
        value if value < 9.995 => 2,
        value if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_off_by_less_than_half() {
        let texts = [0, 1, 119, 120, 7_199, 7_200, 172_799, 172_800].map(ago);
        assert_eq!(
            texts,
            ["now", "1 s ago", "119 s ago", "2 min ago", "119 min ago", "2 h ago", "47 h ago", "2 d ago"]
        );
    }

    #[test]
    fn bytes_have_binary_units() {
        let texts = [0, 1023, 1024, 1536, (1 << 20) - 1, 1 << 30, u64::MAX].map(bytes);
        assert_eq!(texts, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "1.0 MiB", "1.0 GiB", "16.0 EiB"]);
    }

    #[test]
    fn rates_have_three_digits() {
        let texts = [0.0, 124.9, 125.0, 1249.0, 12_493.0, 124_940.0, 1.25e9, 1.25e12, 1.25e15].map(bit_rate);
        let expected = [
            "0 bit/s",
            "999 bit/s",
            "1.00 kbit/s",
            "9.99 kbit/s",
            "99.9 kbit/s",
            "1.00 Mbit/s",
            "10.0 Gbit/s",
            "10.0 Tbit/s",
            "10000 Tbit/s",
        ];
        assert_eq!(texts, expected);
        assert_eq!(
            [0, 999, 1_000, 12_345, 999_600].map(round_trip),
            ["0 µs", "999 µs", "1.00 ms", "12.3 ms", "1.00 s"]
        );
    }

    #[test]
    fn a_small_share_is_not_nothing() {
        let texts = [0.0, 0.000_1, 0.015, 0.0995, 0.25, 1.0].map(percent);
        assert_eq!(texts, ["0 %", "0.1 %", "1.5 %", "10 %", "25 %", "100 %"]);
    }
}
