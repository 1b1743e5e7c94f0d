//! The systemd unit as it is shipped.

use std::fs;
use std::path::Path;

use netns_tests::Lab;

/// One machine; systemd's own judgement of the unit.
#[test]
fn the_unit_exposes_no_more_than_the_manual_says() {
    let lab = Lab::new("service-unit");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let unit = root.join("config/underpass@.service");
    let manual = fs::read_to_string(root.join("docs/operations.md")).unwrap();
    let command = lab.host("analyst").command("systemd-analyze");
    let said = command.args(["security", "--offline=true", "--no-pager"]).arg(unit).run();
    let words: Vec<&str> = said.split_whitespace().collect();
    let level = words.iter().position(|word| *word == "level").map(|position| words[position + 3]);
    let level: f64 = level.and_then(|level| level.parse().ok()).unwrap_or_else(|| panic!("{said}"));
    let stated = manual.split("overall exposure of").nth(1).unwrap().split_whitespace().next().unwrap();
    let stated: f64 = stated.trim_end_matches([',', '.', ':']).parse().unwrap();
    assert!(level <= stated, "{level}, where the manual says {stated}:\n{said}");
}
