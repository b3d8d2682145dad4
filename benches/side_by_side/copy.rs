//! The copy itself beside the bare loop: without a plugin and with.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::contenders::{How, PLAIN, measure};
use crate::records::Kafka;
use crate::table::{Spread, how};
use crate::watch::Measured;
use crate::{Options, root};

/// Bytes of a value, and of how many times `--records` the records are, so that each run takes seconds.
const SIZES: [(&str, usize, usize); 2] = [("1 KiB", 1024, 1), ("100 B", 100, 4)];
const REFERENCE: &str = "bare loop";
const NATIVELY: &str = "bare loop with the JSON transform, natively";
const NO_PLUGIN: &str = "millrace, no plugin";
const NO_PLUGIN_HEADERS: &str = "millrace, no plugin, records with two headers";

struct Contender {
    name: &'static str,
    how: How,
    /// Another one, whose CPU time its own is told in, too.
    beside: Option<&'static str>,
    headers: bool,
}

const fn contender(name: &'static str, how: How, beside: Option<&'static str>) -> Contender {
    Contender { name, how, beside, headers: false }
}

const fn plugin(plugins: &'static str) -> How {
    How::Millrace { plugins, route: "pipeline: [{ plugin: p }]" }
}

const CONTENDERS: &[Contender] = &[
    contender(REFERENCE, How::Loop { keeps: false, edits: false }, None),
    contender("bare loop that keeps timestamps", How::Loop { keeps: true, edits: false }, None),
    contender(NATIVELY, How::Loop { keeps: false, edits: true }, None),
    contender(NO_PLUGIN, PLAIN, None),
    contender("millrace, a filter that keeps all", plugin("{ p: { path: DIST/identity-pass.wasm } }"), Some(NO_PLUGIN)),
    contender("millrace, a filter that scans the value", plugin("{ p: { path: DIST/scan.wasm } }"), Some(NO_PLUGIN)),
    contender(
        "millrace, a transform that rewrites the value",
        plugin("{ p: { path: DIST/rewrite.wasm } }"),
        Some(NO_PLUGIN),
    ),
    contender("millrace, the JSON transform", plugin("{ p: { path: DIST/json-edit.wasm } }"), Some(NATIVELY)),
    Contender { name: NO_PLUGIN_HEADERS, how: PLAIN, beside: None, headers: true },
    Contender {
        name: "millrace, a filter that looks at a header, records with two headers",
        how: plugin("{ p: { path: DIST/header-filter.wasm } }"),
        beside: Some(NO_PLUGIN_HEADERS),
        headers: true,
    },
];

/// Each contender's rounds.
type Runs = BTreeMap<&'static str, Vec<Measured>>;

pub(crate) fn run(options: &Options) -> String {
    let kafka = &Kafka::start();
    let rounds = options.rounds(5);
    let chosen: Vec<&Contender> = CONTENDERS.iter().filter(|contender| is_chosen(contender, options)).collect();
    let (mut told, mut bars) = (format!("{}\n", how(rounds)), Bars::default());
    for (label, size, times) in SIZES {
        let count = options.records * times;
        eprintln!("copy: {count} records of {label} …");
        let [without, with] =
            [false, true].map(|headers| kafka.fill(&format!("source-{size}-{headers}"), count, size, headers));
        let mut runs = Runs::new();
        for round in 1..=rounds {
            for contender in &chosen {
                let source = if contender.headers { &with } else { &without };
                let measured = measure(kafka, &contender.how, source, 0, round == 1);
                eprintln!("{label}, round {round}: {}: {measured:?}", contender.name);
                runs.entry(contender.name).or_default().push(measured);
            }
        }
        table(&mut told, label, &chosen, &runs);
        bars.add(label, &chosen, &runs);
    }
    if options.write.is_some() && options.contender.is_none() {
        let picture = root().join("docs/images/performance.svg");
        std::fs::write(&picture, bars.svg()).unwrap_or_else(|e| panic!("{}: {e}", picture.display()));
    }
    told + "\n![Records/s and CPU a record beside the bare loop](images/performance.svg)\n"
}

fn is_chosen(contender: &Contender, options: &Options) -> bool {
    // (and what they are held against)
    let always = [REFERENCE, NATIVELY, NO_PLUGIN, NO_PLUGIN_HEADERS];
    let wanted = options.contender.as_deref();
    wanted.is_none_or(|wanted| always.contains(&contender.name) || contender.name.contains(wanted))
}

fn table(told: &mut String, label: &str, chosen: &[&Contender], runs: &Runs) {
    let mut line = |line: String| writeln!(told, "{line}").expect("a text takes all");
    line(format!("\n| {label} a record | records/s | CPU a record | CPU, of … |\n|---|---|---|---|"));
    for contender in chosen {
        let (own, bare) = (&runs[contender.name], &runs[REFERENCE]);
        let rate = Spread::of_ratios(own, bare, |run| run.rate);
        let cpu = Spread::of_ratios(own, bare, |run| run.cpu);
        let beside = contender.beside.map_or_else(String::new, |name| {
            let of = if name == NATIVELY { "the same natively" } else { "no plugin" };
            format!("{:.3} of {of}", Spread::of_ratios(own, &runs[name], |run| run.cpu))
        });
        line(format!("| {} | {rate} | {cpu} | {beside} |", contender.name));
    }
}

/// The picture: the rate of each contender as a part of the bare loop's.
#[derive(Default)]
struct Bars {
    body: String,
    y: usize,
}

impl Bars {
    const LINE: usize = 26;
    const LEFT: usize = 450;
    const WIDTH: f64 = 300.0;

    fn add(&mut self, label: &str, chosen: &[&Contender], runs: &Runs) {
        self.y += Self::LINE;
        let mut body = format!("<text x='10' y='{}' font-weight='bold'>{label} a record</text>\n", self.y + 10);
        for contender in chosen {
            self.y += Self::LINE;
            let (own, bare) = (&runs[contender.name], &runs[REFERENCE]);
            let rate = Spread::of_ratios(own, bare, |run| run.rate);
            let cpu = Spread::of_ratios(own, bare, |run| run.cpu).median;
            let [bar, low, high] = [rate.median, rate.lowest, rate.highest].map(|part| part * Self::WIDTH);
            let (name, y, left, end) =
                (contender.name, self.y + 10, Self::LEFT, Self::LEFT as f64 + high.max(bar) + 10.0);
            let (top, middle, from, to) = (y - 14, y - 5, left as f64 + low, left as f64 + high);
            body += &format!(
                "<text x='10' y='{y}'>{name}</text><rect x='{left}' y='{top}' width='{bar:.0}' height='18' fill='#4a7fb5'/>\
                 <line x1='{from:.0}' x2='{to:.0}' y1='{middle}' y2='{middle}' stroke='#c03030' stroke-width='2'/>\
                 <text x='{end:.0}' y='{y}'>{:.2} records/s, {cpu:.2} CPU</text>\n",
                rate.median
            );
        }
        self.body += &body;
    }

    fn svg(&self) -> String {
        let (height, body) = (self.y + Self::LINE + 10, &self.body);
        format!(
            "<svg xmlns='http://www.w3.org/2000/svg' width='980' height='{height}' font-family='sans-serif' font-size='13'>\n\
             <rect width='100%' height='100%' fill='white'/>\n{body}</svg>\n"
        )
    }
}
