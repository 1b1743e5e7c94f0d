//! Tables for people, and the same for programs.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::catalogue::{Better, Test};
use crate::measurement::Figure;
use crate::results::{Series, TestResults};

/// Prints one test's table.
pub(crate) fn print(test: &Test, results: &TestResults) {
    println!("\n{} ({})", test.title, test.name);
    let figures: BTreeSet<Figure> = results.series.iter().flat_map(|series| series.figures().into_keys()).collect();
    let heads = ["contender", "median", "of plain", "of best peer"].into_iter().map(str::to_owned);
    let mut rows = vec![heads.chain(figures.iter().map(|figure| figure.title().to_owned())).collect::<Vec<_>>()];
    for series in &results.series {
        let [of_plain, of_peer] = ratios(test, results, series);
        let seen = series.figures();
        let numbers = [Some(series.median()), of_plain, of_peer].into_iter();
        let numbers = numbers.chain(figures.iter().map(|figure| seen.get(figure).copied()));
        rows.push([series.contender.to_owned()].into_iter().chain(numbers.map(number)).collect());
    }
    print_rows(&rows);
    for series in &results.series {
        series.failures().for_each(|reason| println!("  {} FAILED: {}", series.contender, first_lines(reason)));
    }
}

/// Of no tunnel, and of the best other tunnel.
fn ratios(test: &Test, results: &TestResults, series: &Series) -> [Option<f64>; 2] {
    let rank = |series: &Series| if test.better == Better::More { series.median() } else { -series.median() };
    [results.named("plain"), results.best_peer(rank)].map(|other| series.ratio_to(other?))
}

fn print_rows(rows: &[Vec<String>]) {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for (n, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| match column {
            0 => format!("{cell:width$}"),
            _ => format!("{cell:>width$}"),
        });
        println!("| {} |", cells.collect::<Vec<_>>().join(" | "));
        if n == 0 {
            let lines = widths.iter().enumerate().map(|(column, width)| match column {
                0 => "-".repeat(*width),
                _ => format!("{}:", "-".repeat(width - 1)),
            });
            println!("| {} |", lines.collect::<Vec<_>>().join(" | "));
        }
    }
}

/// With about three digits that mean something.
fn number(value: Option<f64>) -> String {
    match value {
        None => String::new(),
        Some(value) if value.is_nan() => "failed".to_owned(),
        Some(value) if value == 0.0 || value.abs() >= 100.0 => format!("{value:.0}"),
        Some(value) if value.abs() >= 10.0 => format!("{value:.1}"),
        Some(value) if value.abs() >= 1.0 => format!("{value:.2}"),
        Some(value) => format!("{value:.3}"),
    }
}

fn first_lines(reason: &str) -> String {
    reason.lines().take(3).collect::<Vec<_>>().join(" / ")
}

/// All tests, by name.
pub(crate) fn json(results: &[(&'static Test, TestResults)]) -> Value {
    results.iter().map(|(test, results)| (test.name.to_owned(), test_json(test, results))).collect::<Map<_, _>>().into()
}

fn test_json(test: &Test, results: &TestResults) -> Value {
    let contenders = results.series.iter().map(|series| {
        let [of_plain, of_peer] = ratios(test, results, series);
        let figures: Map<String, Value> =
            series.figures().iter().map(|(figure, value)| (figure.title().to_owned(), json!(value))).collect();
        let failures: Vec<_> = series.failures().collect();
        let contender = json!({
            "median": series.median(), "rounds": series.values(), "of_plain": of_plain, "of_best_peer": of_peer,
            "figures": figures, "failures": failures,
        });
        (series.contender.to_owned(), contender)
    });
    json!({ "title": test.title, "contenders": contenders.collect::<Map<_, _>>() })
}

