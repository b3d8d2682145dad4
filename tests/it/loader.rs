//! Whatever bytes an operator, an editor or a disk leaves in a file: reading it does not panic, and takes time and memory in
//! proportion to it. `LOADER_SEEDS=500..100000 cargo test --test it -- loader::` tries more of them; a failure names its seed.

use std::fs;
use std::time::{Duration, Instant};

use millrace::config::{self, Problems};

use crate::support::{root, scratch};

/// Runs other seeds than the usual ones: `from..to`, or one.
const SEEDS: &str = "LOADER_SEEDS";
const USUAL: std::ops::Range<u64> = 0..500;

/// What a file may cost at most: of each, so much and so much more for each byte. Many times what is usual, on a machine that
/// is busy and without optimisation, and far below what a square of the length would take.
const TIME: (Duration, Duration) = (Duration::from_secs(3), Duration::from_micros(60));
const MEMORY: (u64, u64) = (64 << 20, 600);

/// Reads a file with these bytes, and shows what is wrong with it in every way. Returns what that took: time, and the most
/// memory at once.
fn cost(bytes: &[u8]) -> (Duration, u64) {
    let file = scratch("loader").with_extension("yaml");
    fs::write(&file, bytes).expect("written");
    let began = Instant::now();
    let memory = allocation_counter::measure(|| {
        let env = |name: &str| (name == "SET").then(|| "value".to_owned());
        let problems = config::load(&file, &env).map_or_else(|problems| problems, |loaded| loaded.warnings);
        shown(&problems);
    });
    let took = began.elapsed();
    fs::remove_file(file).expect("it is ours");
    (took, memory.bytes_max)
}

fn shown(problems: &Problems) {
    assert!(problems.is_empty() || !problems.render(true).is_empty());
    serde_json::to_string(problems).expect("problems are JSON");
    problems.iter().for_each(|problem| assert!(!problem.to_string().is_empty()));
}

#[track_caller]
fn assert_in_proportion(bytes: &[u8], what: &str) {
    let (took, memory) = cost(bytes);
    let length = bytes.len() as u32;
    assert!(took < TIME.0 + TIME.1 * length, "{what}: {took:?} for {length} bytes");
    assert!(memory < MEMORY.0 + MEMORY.1 * u64::from(length), "{what}: {memory} bytes of memory for {length}");
}

/// Files that are right, to be broken.
fn fixtures() -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    for folder in ["tests/it/fixtures/accepted", "examples", "config/routes"] {
        for entry in fs::read_dir(root().join(folder)).expect("the folder") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|extension| extension == "yaml") {
                found.push(fs::read(path).expect("it can be read"));
            }
        }
    }
    found.sort();
    found
}

/// Pieces that YAML, or what is read from it, gives a meaning to; and bytes that are no text.
const PIECES: &[&[u8]] = &[
    b":",
    b": ",
    b"- ",
    b"\n",
    b"\r",
    b"\t",
    b"  ",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b"'",
    b"\"",
    b"|",
    b">",
    b"&a ",
    b"*a",
    b"<<: *a",
    b"!!str ",
    b"!!binary ",
    b"#",
    b"---\n",
    b"...\n",
    b"?",
    b"%",
    b"${SET}",
    b"${",
    b"${file:/dev/zero}",
    b"$$",
    b"\\",
    b"\\x",
    b"\0",
    b"\xff",
    b"\xc3",
    b"\xed\xa0\x80",
    b"\xf0\x9f\x98\x80",
    b"\xef\xbb\xbf",
    b"0x",
    b"-9223372036854775809",
    b"1e999",
    b".nan",
];

/// A fixture after some accidents.
fn broken(fixtures: &[Vec<u8>], random: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = random.choice(fixtures).expect("there are some").clone();
    for _ in 0..random.usize(1..10) {
        let at = random.usize(..=bytes.len());
        let end = (at + random.usize(0..20)).min(bytes.len());
        match random.u8(0..8) {
            0 => bytes.truncate(at),
            1 => {
                let part = bytes[at..end].repeat(random.usize(1..500));
                bytes.splice(at..at, part);
            }
            2 => {
                let other = random.choice(fixtures).expect("there are some");
                let from = random.usize(..=other.len());
                bytes.splice(at..end, other[from..].iter().copied());
            }
            3 if at < bytes.len() => bytes[at] = random.u8(..),
            _ => {
                let piece = random.choice(PIECES).expect("there are some");
                bytes.splice(at..end, piece.iter().copied());
            }
        }
    }
    bytes
}

#[test]
fn bytes_of_any_kind_are_read_without_a_panic_in_time_and_memory_in_proportion() {
    let seeds = match std::env::var(SEEDS) {
        Ok(seeds) => {
            let number =
                |text: &str| text.parse::<u64>().unwrap_or_else(|_| panic!("{SEEDS}={seeds}: a number, or from..to"));
            seeds
                .split_once("..")
                .map_or_else(|| number(&seeds)..number(&seeds) + 1, |(from, to)| number(from)..number(to))
        }
        Err(_) => USUAL,
    };
    let fixtures = fixtures();
    for seed in seeds {
        let bytes = broken(&fixtures, &mut fastrand::Rng::with_seed(seed));
        let read = std::panic::catch_unwind(|| assert_in_proportion(&bytes, "a broken file"));
        assert!(read.is_ok(), "see above: {SEEDS}={seed} cargo test --test it -- loader::");
    }
}

#[test]
fn shapes_that_are_dear_to_read_are_read_in_proportion_too() {
    const HEAD: &str = "kafka: { bootstrap.servers: b:1 }\n";
    let many = |count: usize, each: &dyn Fn(usize) -> String| (0..count).map(each).collect::<String>();
    let bomb = many(12, &|n| format!("k{n}: &a{n} [{}]\n", format!("*a{}, ", n.wrapping_sub(1)).repeat(9)));
    let shapes = [
        ("lists within each other", "[".repeat(200_000)),
        ("mappings within each other", "{a: ".repeat(100_000)),
        ("blocks within each other", many(2_000, &|n| format!("{}a:\n", " ".repeat(n)))),
        ("aliases of aliases", bomb.replacen("*a18446744073709551615", "x", 9)),
        ("one alias again and again", format!("a: &a [{}]\nb: [{}]\n", "x, ".repeat(1_000), "*a, ".repeat(20_000))),
        ("a huge scalar", format!("{HEAD}log: {}\n", "x".repeat(1 << 20))),
        ("a huge quoted scalar", format!("{HEAD}log: \"{}\"\n", "\\u00e9".repeat(100_000))),
        ("a huge key", format!("{HEAD}{}: 1\n", "x".repeat(1 << 20))),
        ("many wrong keys", many(20_000, &|n| format!("key{n}: 1\n"))),
        ("many wrong keys in one line", format!("{{ {} }}", many(20_000, &|n| format!("key{n}: 1, ")))),
        (
            "many wrong keys in one line that is not ASCII",
            format!("{{ {} }}", many(20_000, &|n| format!("ключ{n}: 1, "))),
        ),
        ("one key again and again", "a: 1\n".repeat(20_000)),
        ("many secrets", format!("kafka: {{ {} }}", many(10_000, &|n| format!("password{n}: x, ")))),
        ("colons", format!("{HEAD}{}", ":".repeat(200_000))),
        ("a line of colons above a mistake", format!("a{}\n  }}\n", ":x".repeat(200_000))),
        ("many variables", format!("{HEAD}log: \"{}\"\n", "${UNSET}".repeat(20_000))),
        ("a variable without an end", format!("{HEAD}log: \"{}\"\n", "${".repeat(100_000))),
        (
            "many routes",
            many(1_000, &|n| {
                format!(
                    "{}r{n}: {{ source: {{ topics: [\"^a{n}.*\"], start: latest }}, destinations: [{{ topic: b{n} }}] }}\n",
                    if n == 0 { "routes:\n  " } else { "  " }
                )
            }),
        ),
        ("many comments", "# comment\n".repeat(100_000)),
        ("empty lines", "\r\n".repeat(200_000)),
        (
            "a huge regular expression",
            format!(
                "{HEAD}routes: {{ r: {{ source: {{ topics: [\"^({})\"], start: latest }}, destinations: [{{ topic: b }}] }} }}\n",
                "a|".repeat(50_000)
            ),
        ),
        (
            "a regular expression that repeats",
            format!(
                "{HEAD}routes: {{ r: {{ source: {{ topics: [\"^(a{{1000}}){{1000}}\"], start: latest }}, destinations: [{{ topic: b }}] }} }}\n"
            ),
        ),
        (
            "a huge condition",
            format!(
                "{HEAD}routes: {{ r: {{ source: {{ topics: [a], start: latest }}, destinations: [{{ topic: b, when: \"{}true\" }}] }} }}\n",
                "!".repeat(100_000)
            ),
        ),
        (
            "conditions within each other",
            format!(
                "{HEAD}routes: {{ r: {{ source: {{ topics: [a], start: latest }}, destinations: [{{ topic: b, when: \"{}true{}\" }}] }} }}\n",
                "(".repeat(20_000),
                ")".repeat(20_000)
            ),
        ),
    ];
    // (each call of a parser to itself takes of the stack, which has an end)
    for (what, condition) in [
        ("nots", format!("{}true", "!".repeat(4_000))),
        ("minuses", format!("{}1 == 1", "-".repeat(4_000))),
        ("a chain of fields", format!("value{} == 1", ".a".repeat(2_000))),
        ("a long sum", format!("{}1 == 1", "1+".repeat(2_000))),
        ("many ands", format!("{}true", "true&&".repeat(600))),
        ("choices within each other", format!("{}true", "true?true:".repeat(400))),
        ("lists within each other", format!("{}1{} == 1", "[".repeat(30), "]".repeat(30))),
    ] {
        let route =
            format!("source: {{ topics: [a], start: latest }}, destinations: [{{ topic: b, when: \"{condition}\" }}]");
        assert_in_proportion(format!("{HEAD}routes: {{ r: {{ {route} }} }}\n").as_bytes(), what);
    }
    for (what, text) in shapes {
        assert_in_proportion(text.as_bytes(), what);
    }
    for (what, bytes) in [
        ("nothing but zeros", vec![0; 1 << 20]),
        ("no text at all", (0..1 << 20).map(|n: u32| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()),
        ("Latin-1", b"a: \xe9\n".repeat(50_000)),
        ("UTF-16", "a: b\n".repeat(50_000).encode_utf16().flat_map(u16::to_le_bytes).collect()),
    ] {
        assert_in_proportion(&bytes, what);
    }
}
