//! Whether `underpass verify` and `underpass doctor` name the true cause first, of many, and none where nothing is wrong.

mod case;
mod sound;
mod table;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use netns_tests::Lab;
use serde_json::Value;

use self::case::{Bench, Case, Side};
use self::table::{Command, HEARD, ROWS, Row};

/// Laboratories in which rows are tried beside each other: most of the time somebody waits for somebody's silence.
const BENCHES: usize = 3;

/// The first cause that was named.
struct Verdict {
    name: &'static str,
    command: Command,
    expected: &'static str,
    check: String,
    what: String,
    is_right: bool,
}

/// The first finding: each stands before what follows from it.
fn first_finding(findings: &[Value]) -> (String, String) {
    words(findings.iter().find(|found| is_alarm(found)), "check")
}

/// The most likely cause.
fn first_cause(causes: &[Value]) -> (String, String) {
    words(causes.iter().find(|cause| is_fault(cause)), "cause")
}

fn words(found: Option<&Value>, word: &str) -> (String, String) {
    let text = |field: &str| found.and_then(|found| found[field].as_str()).unwrap_or("-").to_owned();
    (text(word), text("what"))
}

/// Whether `verify` finds something wrong. The laboratory's clock is the machine's.
fn is_alarm(found: &Value) -> bool {
    found["outcome"].as_str().is_some_and(|outcome| outcome == "failed" || outcome == "warning")
        && found["check"] != "clock"
}

/// Whether `doctor` finds something wrong.
fn is_fault(cause: &Value) -> bool {
    cause["weight"] != "notice"
}

/// Breaks an installation as the row says, asks, and puts it right.
fn try_row(bench: &Bench, row: &'static Row) -> Verdict {
    let mut case = Case::sound(bench);
    (row.before)(&mut case);
    case.start();
    if let Some(after) = row.after {
        case.wait_for(Side::Proxy, "up");
        after(&mut case);
    }
    match row.settles {
        "" => {}
        HEARD => case.wait_until_heard(row.side),
        state => case.wait_for(row.side, state),
    }
    let (check, what) = match row.command {
        Command::Verify => first_finding(&case.verify(row.side)),
        Command::Doctor => first_cause(&case.doctor(row.side)),
    };
    case.end();
    let is_right = check == row.cause.0 && what.contains(row.cause.1);
    Verdict { name: row.name, command: row.command, expected: row.cause.0, check, what, is_right }
}

/// Runs `work` for each of `items` on some benches side by side.
fn on_benches<T: Sync, R: Send>(
    name: &str,
    items: &'static [T],
    work: impl Fn(&Bench, &'static T) -> R + Sync,
) -> Vec<R> {
    let lab = Lab::new(name);
    let labs: Vec<Lab> = (0..BENCHES).map(|number| lab.beside(&format!("{name}-{number}"))).collect();
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for lab in labs {
            scope.spawn(|| {
                let bench = Bench::new(lab);
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = work(&bench, item);
                    results.lock().expect("no thread panics while it adds a result").push(result);
                }
            });
        }
    });
    results.into_inner().expect("no thread panics while it adds a result")
}

/// Benches of [`Bench`].
#[test]
fn the_true_cause_of_nearly_every_fault_is_named_first() {
    let verdicts = on_benches("faults", ROWS, try_row);
    for Verdict { name, command, expected, check, what, is_right } in &verdicts {
        let mark = if *is_right { " " } else { "✗" };
        println!("{mark} {command:?}, {name}: {check} ({expected} is true): {what}");
    }
    let right = verdicts.iter().filter(|verdict| verdict.is_right).count();
    println!("{right} of {} true causes are named first", verdicts.len());
    // 38 of 40.
    assert!(verdicts.len() >= 40 && 40 * right >= 38 * verdicts.len(), "{right} of {}", verdicts.len());
}
