//! Tables for people, and the same for programs.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::bars::{Verdict, verdict};
use crate::costs::Cost;
use crate::measurement::Figure;
use crate::results::{Better, Series, Table};
use crate::starting::AGAINST;

/// Prints who was measured.
pub(crate) fn print_versions(versions: &[(&str, String)]) {
    let heads = ["contender", "version"].map(str::to_owned).to_vec();
    let rows = versions.iter().map(|(name, version)| vec![(*name).to_owned(), version.clone()]);
    print_rows([heads].into_iter().chain(rows).collect());
}

/// Prints one test's table.
pub(crate) fn print(table: &Table) {
    println!("\n{} ({})\n", table.title, table.key());
    let figures: BTreeSet<Figure> = table.series.iter().flat_map(|series| series.figures().into_keys()).collect();
    let heads = ["contender", "median", "least", "p99", "most", "of plain", "of best peer", "of underpass"].into_iter();
    let heads = heads.chain(figures.iter().map(|figure| figure.title()));
    let mut rows = vec![heads.map(str::to_owned).collect::<Vec<_>>()];
    for series in &table.series {
        let [least, most] = series.extremes();
        let seen = series.figures();
        let numbers = [Some(series.median()), least, series.p99(), most].into_iter().chain(ratios(table, series));
        let numbers = numbers.chain(figures.iter().map(|figure| seen.get(figure).copied()));
        rows.push([series.contender.to_owned()].into_iter().chain(numbers.map(number)).collect());
    }
    print_rows(rows);
    for series in &table.series {
        if series.disturbed() > 0 {
            let (disturbed, rounds) = (series.disturbed(), series.rounds.len());
            println!("  {}: others disturbed {disturbed} of {rounds} rounds", series.contender);
        }
        series.failures().for_each(|reason| println!("  {} FAILED: {}", series.contender, first_lines(reason)));
    }
}

/// Of no tunnel, of the best other tunnel, and, for another build, of underpass itself.
fn ratios(table: &Table, series: &Series) -> [Option<f64>; 3] {
    let rank = |series: &Series| if table.better == Better::More { series.median() } else { -series.median() };
    let itself = if series.contender == AGAINST { table.named("underpass") } else { None };
    [table.named("plain"), table.best_peer(rank), itself].map(|other| series.ratio_to(other?))
}

/// As a table in Markdown, without the columns that have only a head.
fn print_rows(mut rows: Vec<Vec<String>>) {
    let heads = rows.remove(0);
    let used: Vec<usize> = (0..heads.len()).filter(|column| rows.iter().any(|row| !row[*column].is_empty())).collect();
    let width =
        |column: &usize| [&heads].into_iter().chain(&rows).map(|row| row[*column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = used.iter().map(width).collect();
    print_row(&used.iter().map(|column| heads[*column].clone()).collect::<Vec<_>>(), &widths);
    let rule = widths.iter().enumerate().map(|(n, width)| match n {
        0 => "-".repeat(*width),
        _ => format!("{}:", "-".repeat(width - 1)),
    });
    print_row(&rule.collect::<Vec<_>>(), &widths);
    for row in rows {
        print_row(&used.iter().map(|column| row[*column].clone()).collect::<Vec<_>>(), &widths);
    }
}

fn print_row(cells: &[String], widths: &[usize]) {
    let cells = cells.iter().zip(widths).enumerate().map(|(n, (cell, width))| match n {
        0 => format!("{cell:width$}"),
        _ => format!("{cell:>width$}"),
    });
    println!("| {} |", cells.collect::<Vec<_>>().join(" | "));
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

/// Prints the bars.
pub(crate) fn print_bars(verdicts: &[Verdict], costs: &[Cost]) {
    println!("\nBars (medians of the ratios within each round)\n");
    let heads = ["bar", "load", "at", "measured", "against", "verdict"].map(str::to_owned).to_vec();
    let costs = costs.iter().map(|cost| {
        let (bar, measured) = (format!("< {}", cost.below), format!("{:.2}", cost.measured));
        [cost.title.to_owned(), "idle".to_owned(), bar, measured, String::new(), verdict(cost.is_met()).to_owned()]
    });
    let rows = verdicts.iter().map(Verdict::row).chain(costs).map(Vec::from);
    print_rows([heads].into_iter().chain(rows).collect());
}

/// All tests, by name.
pub(crate) fn json(tables: &[Table]) -> Value {
    tables.iter().map(|table| (table.key(), table_json(table))).collect::<Map<_, _>>().into()
}

fn table_json(table: &Table) -> Value {
    let contenders = table.series.iter().map(|series| {
        let [of_plain, of_peer, of_underpass] = ratios(table, series);
        let figures: Map<String, Value> =
            series.figures().iter().map(|(figure, value)| (figure.title().to_owned(), json!(value))).collect();
        let failures: Vec<_> = series.failures().collect();
        let contender = json!({
            "median": series.median(), "p99": series.p99(), "rounds": series.values(), "of_plain": of_plain, "of_best_peer": of_peer,
            "of_underpass": of_underpass, "figures": figures, "failures": failures,
            "foreign": series.seen(Figure::Foreign), "disturbed": series.disturbed(),
        });
        (series.contender.to_owned(), contender)
    });
    json!({ "title": table.title, "test": table.name, "load": table.load.name(), "better": table.better.name(), "contenders": contenders.collect::<Map<_, _>>() })
}
