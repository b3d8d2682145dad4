//! What is told: figures with their spread, and the sections of the page.

use std::fmt;
use std::path::Path;

/// Median, lowest and highest of the rounds.
#[derive(Clone, Copy)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) lowest: f64,
    pub(crate) highest: f64,
}

impl Spread {
    pub(crate) fn of(figures: impl IntoIterator<Item = f64>) -> Self {
        let mut all: Vec<f64> = figures.into_iter().collect();
        all.sort_by(f64::total_cmp);
        Self { median: all[all.len() / 2], lowest: all[0], highest: all[all.len() - 1] }
    }

    /// Of each round's figure over another's of the same round.
    pub(crate) fn of_ratios<'a, T>(own: &'a [T], other: &'a [T], figure: impl Fn(&'a T) -> f64) -> Self {
        assert_eq!(own.len(), other.len(), "each ran once in each round");
        Self::of(own.iter().zip(other).map(|(own, other)| figure(own) / figure(other)))
    }
}

/// With two decimals, or as many as are asked for.
impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = f.precision().unwrap_or(2);
        write!(f, "{:.digits$} ({:.digits$}–{:.digits$})", self.median, self.lowest, self.highest)
    }
}

/// When and where, and how often.
pub(crate) fn how(rounds: usize) -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{}, {cores} cores with the broker beside it, medians of {rounds} rounds (lowest–highest).", today())
}

pub(crate) fn today() -> String {
    jiff::Timestamp::now().to_string()[..10].to_owned()
}

/// A rate to be read: `1,234,000`.
pub(crate) fn thousands(rate: f64) -> String {
    let thousands = (rate / 1e3).round() as u64;
    match (thousands / 1_000, thousands % 1_000) {
        (0, below) => format!("{below},000"),
        (millions, below) => format!("{millions},{below:03},000"),
    }
}

/// Puts what a part tells between its marks on the page.
pub(crate) fn write(path: &Path, part: &str, told: &str) {
    let page = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (begin, end) = (format!("<!-- begin {part}: make bench writes this -->"), format!("<!-- end {part} -->"));
    let (before, rest) = page.split_once(&begin).unwrap_or_else(|| panic!("{} has no {begin}", path.display()));
    let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("{} has no {end}", path.display()));
    let page = format!("{before}{begin}\n{}\n{end}{after}", told.trim());
    std::fs::write(path, page).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}
