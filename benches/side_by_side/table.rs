//! Ratios with their spread, as a table and as a picture.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use crate::watch::Measured;

/// The contenders at one size of records.
pub(crate) struct Table {
    size: String,
    lines: Vec<Line>,
}

struct Line {
    name: String,
    rate: Spread,
    cpu: Spread,
}

/// Median, lowest and highest of the rounds.
#[derive(Clone, Copy)]
struct Spread {
    median: f64,
    lowest: f64,
    highest: f64,
}

impl Spread {
    fn of(ratios: impl Iterator<Item = f64>) -> Self {
        let mut all: Vec<f64> = ratios.collect();
        all.sort_by(f64::total_cmp);
        Self { median: all[all.len() / 2], lowest: all[0], highest: all[all.len() - 1] }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} ({:.2}–{:.2})", self.median, self.lowest, self.highest)
    }
}

impl Table {
    /// Each round of each contender against the reference of the same round.
    pub(crate) fn new(size: &str, order: &[&str], reference: &str, runs: &BTreeMap<&str, Vec<Measured>>) -> Self {
        let lines = order.iter().map(|name| {
            let both = || runs[name].iter().zip(&runs[reference]);
            let rate = Spread::of(both().map(|(own, other)| own.rate / other.rate));
            let cpu = Spread::of(both().map(|(own, other)| own.cpu / other.cpu));
            Line { name: (*name).to_owned(), rate, cpu }
        });
        Self { size: size.to_owned(), lines: lines.collect() }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n| {} a record | records/s | CPU a record |\n|---|---|---|", self.size)?;
        self.lines.iter().try_for_each(|Line { name, rate, cpu }| writeln!(f, "| {name} | {rate} | {cpu} |"))
    }
}

const BEGIN: &str = "<!-- begin: make bench writes this -->";
const END: &str = "<!-- end -->";

/// Puts the tables between the marks of the page, and the picture beside it.
pub(crate) fn write(path: &Path, told: &str, tables: &[Table], rounds: usize) {
    let page = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let (before, rest) = page.split_once(BEGIN).unwrap_or_else(|| panic!("{} has no {BEGIN}", path.display()));
    let (_, after) = rest.split_once(END).unwrap_or_else(|| panic!("{} has no {END}", path.display()));
    let now = jiff::Timestamp::now().to_string();
    let date = &now[..10];
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let how = format!("{date}, {cores} cores with the broker beside it, medians of {rounds} rounds (lowest–highest).");
    let page = format!(
        "{before}{BEGIN}\n{how}\n{told}\n![Records/s and CPU a record beside the bare loop](images/performance.svg)\n{END}{after}"
    );
    std::fs::write(path, page).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let picture = path.with_file_name("images").join("performance.svg");
    std::fs::write(&picture, svg(tables)).unwrap_or_else(|e| panic!("{}: {e}", picture.display()));
}

/// Bars: the rate of each contender as a part of the bare loop's.
fn svg(tables: &[Table]) -> String {
    const LINE: usize = 26;
    const LEFT: usize = 330;
    const WIDTH: f64 = 300.0;
    let mut body = String::new();
    let mut y = 10;
    for Table { size, lines } in tables {
        y += LINE;
        body += &format!("<text x='10' y='{y}' font-weight='bold'>{size} a record</text>\n");
        for Line { name, rate, cpu } in lines {
            y += LINE;
            let (bar, low, high) = (rate.median * WIDTH, rate.lowest * WIDTH, rate.highest * WIDTH);
            let (top, middle, end) = (y - 14, y - 5, LEFT as f64 + high.max(bar) + 10.0);
            body += &format!(
                "<text x='10' y='{y}'>{name}</text><rect x='{LEFT}' y='{top}' width='{bar:.0}' height='18' fill='#4a7fb5'/>\
                 <line x1='{:.0}' x2='{:.0}' y1='{middle}' y2='{middle}' stroke='#c03030' stroke-width='2'/>\
                 <text x='{end:.0}' y='{y}'>{:.2} records/s, {:.2} CPU</text>\n",
                LEFT as f64 + low,
                LEFT as f64 + high,
                rate.median,
                cpu.median
            );
        }
    }
    let height = y + LINE;
    format!(
        "<svg xmlns='http://www.w3.org/2000/svg' width='860' height='{height}' font-family='sans-serif' font-size='13'>\n\
         <rect width='100%' height='100%' fill='white'/>\n{body}</svg>\n"
    )
}
