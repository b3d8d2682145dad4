//! Whether what one route writes can be what another reads: names against patterns, patterns against patterns.
//!
//! Whether two patterns can match the same topic is decided exactly, by a search through both their automata, with an
//! example for the operator. The search is bounded; beyond that the patterns are taken for disjoint.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use regex::Regex;
use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::nfa::thompson;
use regex_automata::util::primitives::StateID;
use regex_automata::util::{start, syntax};
use regex_automata::{Anchored, MatchKind};

use super::settings::{Source, TopicSelector};
use crate::model::TopicName;

/// A topic or a pattern of topics.
#[derive(Clone, Copy)]
pub(super) enum To<'r> {
    Topic(&'r TopicName),
    Pattern(&'r Regex),
}

impl<'r> From<&'r TopicSelector> for To<'r> {
    fn from(selector: &'r TopicSelector) -> Self {
        match selector {
            TopicSelector::Name(topic) => Self::Topic(topic),
            TopicSelector::Pattern(pattern) => Self::Pattern(pattern),
        }
    }
}

/// A topic that a source reads and where the source says so.
pub(super) struct Hit {
    /// Its name, or one that it could have.
    pub(super) topic: String,
    /// Which of `source.topics`.
    pub(super) selector: usize,
}

/// Sources by what they read, so that a thousand routes are not held against each other one by one.
#[derive(Default)]
pub(super) struct Readers {
    names: BTreeMap<String, Vec<usize>>,
    /// Patterns by what their matches begin with.
    patterns: BTreeMap<String, Vec<usize>>,
}

impl Readers {
    pub(super) fn of<'s>(sources: impl Iterator<Item = (usize, &'s Source)>) -> Self {
        let mut readers = Self::default();
        for (index, source) in sources {
            for selector in &source.topics {
                match selector {
                    TopicSelector::Name(name) => readers.names.entry(name.to_string()).or_default().push(index),
                    TopicSelector::Pattern(pattern) => {
                        readers.patterns.entry(fixed(pattern.as_str())).or_default().push(index);
                    }
                }
            }
        }
        readers
    }

    /// All sources that may read it; whether they do is [`Automata::read_by`]'s.
    pub(super) fn candidates(&self, to: To<'_>) -> BTreeSet<usize> {
        let beginning = match to {
            To::Topic(topic) => topic.to_string(),
            To::Pattern(pattern) => fixed(pattern.as_str()),
        };
        let shorter = (0..=beginning.len()).filter_map(|end| self.patterns.get(beginning.get(..end)?));
        let named = self.names.get(&beginning);
        let mut found: BTreeSet<usize> = shorter.chain(named).flatten().copied().collect();
        if let To::Pattern(_) = to {
            for index in [&self.names, &self.patterns] {
                let longer = index.range(beginning.clone()..).take_while(|(text, _)| text.starts_with(&beginning));
                found.extend(longer.flat_map(|(_, readers)| readers));
            }
        }
        found
    }
}

/// Which of the source's selectors takes this topic.
pub(super) fn selects(source: &Source, topic: &str) -> Option<usize> {
    if source.exclude.iter().any(|selector| selector.matches(topic)) {
        return None;
    }
    source.topics.iter().position(|selector| match selector {
        TopicSelector::Name(_) => selector.matches(topic),
        TopicSelector::Pattern(_) => !topic.starts_with("__") && selector.matches(topic),
    })
}

type Dfa = dense::DFA<Vec<u32>>;

/// Names that no topic has, and topics that no pattern takes.
const NO_TOPIC: &str = r"^(?:\.|\.\.|__.*)$";

/// Automata of patterns, built once, and how much has been spent on searching through them.
#[derive(Default)]
pub(super) struct Automata {
    built: HashMap<String, Option<Dfa>>,
    searched: usize,
}

/// Pairs of states that one search visits at most; beyond that the patterns are taken for disjoint.
const SEARCH_MOST: usize = 10_000;
/// The same for all searches of one configuration.
const SEARCH_ALL_MOST: usize = 200_000;
/// What a pair of patterns costs beside the states visited, in states.
const PAIR_COST: usize = 10;
/// The characters of topic names, the pleasant ones first since they make up the examples.
const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789.-_ABCDEFGHIJKLMNOPQRSTUVWXYZ";

impl Automata {
    /// A topic that the source reads among those written.
    pub(super) fn read_by(&mut self, source: &Source, to: To<'_>) -> Option<Hit> {
        match to {
            To::Topic(topic) => {
                selects(source, topic.as_str()).map(|selector| Hit { topic: topic.to_string(), selector })
            }
            To::Pattern(pattern) => self.read_by_pattern(source, pattern, None),
        }
    }

    /// A topic that the source reads among those that the pattern matches, and that `other`, whose pattern it is, takes.
    pub(super) fn read_by_pattern(&mut self, source: &Source, pattern: &Regex, other: Option<&Source>) -> Option<Hit> {
        let taken = |topic: &str| pattern.is_match(topic) && other.is_none_or(|other| selects(other, topic).is_some());
        let mut forbidden = exclusions(source);
        forbidden.extend(other.into_iter().flat_map(exclusions));
        source.topics.iter().enumerate().find_map(|(selector, written)| {
            let topic = match written {
                TopicSelector::Name(topic) => {
                    let topic = topic.as_str();
                    (taken(topic) && selects(source, topic).is_some()).then(|| topic.to_owned())
                }
                TopicSelector::Pattern(own) => self.common(own.as_str(), pattern.as_str(), &forbidden),
            };
            topic.map(|topic| Hit { topic, selector })
        })
    }

    /// A topic that both patterns match and none of the forbidden ones, nor one that no pattern takes.
    fn common(&mut self, a: &str, b: &str, forbidden: &[String]) -> Option<String> {
        if !prefixes_agree(a, b) || self.searched > SEARCH_ALL_MOST {
            return None;
        }
        let required = [a, b];
        let forbidden: Vec<&str> = forbidden.iter().map(String::as_str).chain([NO_TOPIC]).collect();
        for pattern in required.iter().chain(&forbidden).copied() {
            self.built.entry(pattern.to_owned()).or_insert_with(|| build(pattern));
        }
        let automaton = |pattern: &&str| self.built.get(*pattern).and_then(Option::as_ref);
        let required: Vec<&Dfa> = required.iter().map(automaton).collect::<Option<_>>()?;
        // One that cannot be built forbids nothing here.
        let forbidden: Vec<&Dfa> = forbidden.iter().filter_map(automaton).collect();
        let (found, visited) = search(&required, &forbidden);
        self.searched += PAIR_COST + visited;
        found
    }
}

/// What a source leaves out, as patterns; the names together are one.
fn exclusions(source: &Source) -> Vec<String> {
    let (mut patterns, mut names) = (Vec::new(), Vec::new());
    for selector in &source.exclude {
        match selector {
            TopicSelector::Pattern(pattern) => patterns.push(pattern.as_str().to_owned()),
            TopicSelector::Name(name) => names.push(regex::escape(name.as_str())),
        }
    }
    if !names.is_empty() {
        patterns.push(format!("^(?:{})$", names.join("|")));
    }
    patterns
}

/// What every name that the pattern matches begins with. Settles most pairs without an automaton.
pub fn fixed(pattern: &str) -> String {
    let inner = pattern.strip_prefix("^(?:").and_then(|rest| rest.strip_suffix(")$")).unwrap_or("");
    let Some(inner) = inner.strip_prefix('^') else { return String::new() };
    // An alternative may begin otherwise, and a flag may change what follows.
    if inner.contains('|') || inner.contains("(?") {
        return String::new();
    }
    let mut fixed = String::new();
    let mut characters = inner.chars().peekable();
    while let Some(next) = characters.next() {
        match next {
            '\\' => match characters.next_if(|c| matches!(c, '.' | '-')) {
                Some(escaped) => fixed.push(escaped),
                None => break,
            },
            c if c.is_ascii_alphanumeric() || matches!(c, '-' | '_') => fixed.push(c),
            // What may be repeated may be absent.
            '*' | '?' | '{' => {
                fixed.pop();
                break;
            }
            _ => break,
        }
    }
    fixed
}

fn prefixes_agree(a: &str, b: &str) -> bool {
    let (a, b) = (fixed(a), fixed(b));
    a.starts_with(&b) || b.starts_with(&a)
}

/// Topic names are ASCII, for which an automaton without Unicode says the same and is far smaller. A pattern that does not
/// go without, such as one with `\p{…}`, gets it.
fn build(pattern: &str) -> Option<Dfa> {
    const BYTES_MOST: usize = 1 << 20;
    let config = dense::Config::new()
        .start_kind(StartKind::Anchored)
        .match_kind(MatchKind::All)
        .dfa_size_limit(Some(BYTES_MOST))
        .determinize_size_limit(Some(BYTES_MOST))
        .unicode_word_boundary(true);
    let build = |unicode: bool| {
        let syntax = syntax::Config::new().unicode(unicode).utf8(unicode);
        let thompson = thompson::Config::new().utf8(unicode);
        dense::Builder::new().configure(config.clone()).syntax(syntax).thompson(thompson).build(pattern).ok()
    };
    build(false).or_else(|| build(true))
}

/// Breadth first through the product of all automata: the shortest topic that all of `required` and none of `forbidden`
/// match. Also says how many states were visited.
fn search(required: &[&Dfa], forbidden: &[&Dfa]) -> (Option<String>, usize) {
    let all: Vec<&Dfa> = required.iter().chain(forbidden).copied().collect();
    let begin = start::Config::new().anchored(Anchored::Yes);
    let Ok(first) = all.iter().map(|dfa| dfa.start_state(&begin)).collect::<Result<Vec<StateID>, _>>() else {
        return (None, 0);
    };
    let alphabet = representatives(&all);
    // Each visited state with the one it was reached from and the character that led there.
    let mut visited: Vec<(Vec<StateID>, usize, u8)> = vec![(first.clone(), 0, 0)];
    let mut known: HashSet<Vec<StateID>> = HashSet::from([first]);
    let mut at = 0;
    while at < visited.len() && visited.len() < SEARCH_MOST {
        for &byte in &alphabet {
            let states = &visited[at].0;
            let next: Vec<StateID> = all.iter().zip(states).map(|(dfa, state)| dfa.next_state(*state, byte)).collect();
            let dead =
                required.iter().zip(&next).any(|(dfa, state)| dfa.is_dead_state(*state) || dfa.is_quit_state(*state));
            if dead || !known.insert(next.clone()) {
                continue;
            }
            visited.push((next, at, byte));
            let matches = |(dfa, state): (&&Dfa, &StateID)| dfa.is_match_state(dfa.next_eoi_state(*state));
            let states = &visited[visited.len() - 1].0;
            let wanted = required.iter().zip(states).all(matches)
                && !forbidden.iter().zip(&states[required.len()..]).any(matches);
            if wanted {
                let name = spell(&visited, visited.len() - 1);
                return (TopicName::new(&name).is_ok().then_some(name), visited.len());
            }
        }
        at += 1;
    }
    (None, visited.len())
}

/// One character of each kind that all the automata treat alike.
fn representatives(all: &[&Dfa]) -> Vec<u8> {
    let mut kinds: HashSet<Vec<u8>> = HashSet::new();
    let kind = |byte: u8| all.iter().map(|dfa| dfa.byte_classes().get(byte)).collect();
    ALPHABET.iter().copied().filter(|byte| kinds.insert(kind(*byte))).collect()
}

fn spell(visited: &[(Vec<StateID>, usize, u8)], mut at: usize) -> String {
    let mut name = Vec::new();
    while at != 0 {
        name.push(char::from(visited[at].2));
        at = visited[at].1;
    }
    name.iter().rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(pattern: &str) -> Regex {
        Regex::new(&format!("^(?:{pattern})$")).unwrap()
    }

    #[test]
    fn two_patterns_overlap_exactly_where_some_topic_matches_both() {
        for (a, b, common) in [
            (r"^orders\..*", r"^orders\.region\.[a-z]+$", Some("orders.region.a")),
            (r"^orders\.in\..*", r"^orders\.region\.[a-z]+$", None),
            (r"^[a-m]+$", r"^[n-z]+$", None),
            (r"^a|b", r"^b|c", Some("b")),
            (r"^.*\.eu$", r"^orders\..*", Some("orders.eu")),
            (r"^(?i)ORDERS$", r"^orders$", Some("orders")),
            (r"^__.*", r"^.*$", None),
            (r"^[а-я]+$", r"^.*$", None),
            (r"^\p{Lu}+$", r"^.*$", Some("A")),
            (r"^\w\.[^a]$", r"^a.*$", Some("a.b")),
            (r"^ab?c*$", r"^a$", Some("a")),
        ] {
            let found = Automata::default().common(whole(a).as_str(), whole(b).as_str(), &[]);
            assert_eq!(found.as_deref(), common, "{a} and {b}");
        }
    }

    #[test]
    fn the_fixed_beginning_of_a_pattern_is_what_all_its_matches_share() {
        for (pattern, beginning) in [
            (r"^orders\.in\..*", "orders.in."),
            (r"^orders?", "order"),
            (r"^orders+", "orders"),
            (r"^a{0}b", ""),
            (r"^ab|c", ""),
            (r"^(?i)ab", ""),
            (r"^a\d", "a"),
            (r"^a.b", "a"),
        ] {
            assert_eq!(fixed(whole(pattern).as_str()), beginning, "{pattern}");
        }
    }

    #[test]
    fn what_is_excluded_is_no_overlap() {
        let (a, b) = (whole(r"^orders\..*"), whole(r"^orders\.(in|out)$"));
        let found = |forbidden: &[&str]| {
            let forbidden: Vec<String> = forbidden.iter().map(|pattern| whole(pattern).as_str().to_owned()).collect();
            Automata::default().common(a.as_str(), b.as_str(), &forbidden)
        };
        assert_eq!(found(&[]).as_deref(), Some("orders.in"));
        assert_eq!(found(&[r"^.*\.in$"]).as_deref(), Some("orders.out"));
        assert_eq!(found(&[r"^orders\.[io].*$"]), None);
    }
}
