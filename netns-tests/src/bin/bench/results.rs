//! All that was measured, and the rows of the tables that follow from it. Knows no test in person.

use std::collections::BTreeMap;

use crate::contender::Kind;
use crate::foreign::DISTURBING;
use crate::load::Load;
use crate::measurement::{Figure, Measurement};
use crate::statistics::{median, median_ratio, percentile};

/// With fewer, a percentile says no more than the median and the extremes.
const MANY_ROUNDS: usize = 10;

/// What a contender's result of one test in one round was, or why there is none.
pub(crate) type Outcome = Result<Measurement, String>;

/// One test's outcomes.
pub(crate) struct Table {
    /// The test's name on the command line.
    pub(crate) name: &'static str,
    /// Other work on the machine meanwhile.
    pub(crate) load: Load,
    /// What it is, with its unit.
    pub(crate) title: &'static str,
    pub(crate) better: Better,
    /// In the order of the rows.
    pub(crate) series: Vec<Series>,
}

/// Which values are better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Better {
    More,
    Less,
}

impl Better {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Better::More => "more",
            Better::Less => "less",
        }
    }
}

/// One contender's outcomes of one test.
pub(crate) struct Series {
    pub(crate) contender: &'static str,
    pub(crate) kind: Kind,
    /// One for each round.
    pub(crate) rounds: Vec<Outcome>,
}

impl Table {
    pub(crate) fn new(name: &'static str, title: &'static str, better: Better) -> Table {
        Table { name, load: Load::Idle, title, better, series: vec![] }
    }

    /// The table of a machine that has other work.
    pub(crate) fn under(self, load: Load) -> Table {
        Table { load, ..self }
    }

    /// The test's name, with the load behind it if there is one.
    pub(crate) fn key(&self) -> String {
        match self.load {
            Load::Idle => self.name.to_owned(),
            load => format!("{}@{}", self.name, load.name()),
        }
    }

    /// Adds a round's outcome, and says so.
    pub(crate) fn add(&mut self, round: usize, contender: &'static str, kind: Kind, outcome: Outcome) {
        let text = outcome.as_ref().map_or_else(|_| "failed".to_owned(), |measured| format!("{:.2}", measured.value));
        eprintln!("round {}: {:24} {contender:19} {text}", round + 1, self.key());
        self.series_of(contender, kind).rounds.push(outcome);
    }

    pub(crate) fn series_of(&mut self, contender: &'static str, kind: Kind) -> &mut Series {
        let found = self.series.iter().position(|series| series.contender == contender);
        let index = found.unwrap_or_else(|| {
            self.series.push(Series { contender, kind, rounds: vec![] });
            self.series.len() - 1
        });
        &mut self.series[index]
    }

    pub(crate) fn named(&self, contender: &str) -> Option<&Series> {
        self.series.iter().find(|series| series.contender == contender)
    }

    /// The peer for which `rank` says the most.
    pub(crate) fn best_peer(&self, rank: impl Fn(&Series) -> f64) -> Option<&Series> {
        let peers = self.series.iter().filter(|series| series.kind == Kind::Peer);
        let ranked = peers.map(|series| (rank(series), series)).filter(|(rank, _)| !rank.is_nan());
        ranked.max_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, series)| series)
    }
}

impl Series {
    pub(crate) fn values(&self) -> Vec<Option<f64>> {
        self.rounds.iter().map(|outcome| outcome.as_ref().ok().map(|measurement| measurement.value)).collect()
    }

    /// What else was seen in each round.
    pub(crate) fn seen(&self, figure: Figure) -> Vec<Option<f64>> {
        let of =
            |measurement: &Measurement| measurement.figures.iter().find(|(seen, _)| *seen == figure).map(|(_, v)| *v);
        self.rounds.iter().map(|outcome| outcome.as_ref().ok().and_then(of)).collect()
    }

    /// Not a number if no round succeeded.
    pub(crate) fn median(&self) -> f64 {
        median(&self.values().into_iter().flatten().collect::<Vec<_>>())
    }

    /// The 99th percentile, where there are rounds enough to ask for it.
    pub(crate) fn p99(&self) -> Option<f64> {
        let values: Vec<f64> = self.values().into_iter().flatten().collect();
        (values.len() >= MANY_ROUNDS).then(|| percentile(&values, 99.0))
    }

    /// The least and the most of all rounds.
    pub(crate) fn extremes(&self) -> [Option<f64>; 2] {
        let values: Vec<f64> = self.values().into_iter().flatten().collect();
        [values.iter().copied().reduce(f64::min), values.into_iter().reduce(f64::max)]
    }

    /// The median of the ratios within each round.
    pub(crate) fn ratio_to(&self, other: &Series) -> Option<f64> {
        median_ratio(&self.values(), &other.values())
    }

    /// What else was seen: medians over the rounds, but the highest of what must not be high even once.
    pub(crate) fn figures(&self) -> BTreeMap<Figure, f64> {
        let mut seen = BTreeMap::<Figure, Vec<f64>>::new();
        let measured = self.rounds.iter().filter_map(|outcome| outcome.as_ref().ok());
        for (figure, value) in measured.flat_map(|measurement| &measurement.figures) {
            seen.entry(*figure).or_default().push(*value);
        }
        let summary = |(figure, values): (Figure, Vec<f64>)| match figure {
            // One that is rare must not vanish in a median.
            Figure::Errors
            | Figure::PeakMebibytes
            | Figure::SlowestRequest
            | Figure::Told
            | Figure::PingSilence
            | Figure::Paired
            | Figure::GrownMebibytes
            | Figure::GrownDescriptors
            | Figure::GrownThreads => (figure, values.into_iter().fold(0.0, f64::max)),
            _ => (figure, median(&values)),
        };
        seen.into_iter().map(summary).collect()
    }

    /// Rounds that others disturbed.
    pub(crate) fn disturbed(&self) -> usize {
        self.seen(Figure::Foreign).into_iter().flatten().filter(|percent| *percent > DISTURBING).count()
    }

    /// Why rounds failed.
    pub(crate) fn failures(&self) -> impl Iterator<Item = &String> {
        self.rounds.iter().filter_map(|outcome| outcome.as_ref().err())
    }
}
