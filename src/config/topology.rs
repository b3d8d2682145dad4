//! How routes hang together through topics: loops, and groups that two routes share.
//!
//! Whether two patterns can name the same topic is decided exactly, by a search through both their automata, and told
//! with an example. What cannot be decided within bounds is left to the running system, which knows the real topics.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use regex::Regex;
use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::util::primitives::StateID;
use regex_automata::util::start;
use regex_automata::{Anchored, MatchKind};

use super::places::Places;
use super::problem::{Problem, Problems};
use super::settings::{Route, Source, Target, TopicSelector};
use super::source::Place;
use crate::model::{RouteName, TopicName};

/// Tells loops through one route or several, routes that share a group and topics, and patterns that reach for another
/// route's dead-letter topic. Disabled routes are looked at alone only.
pub(super) fn check(routes: &BTreeMap<RouteName, Route>, places: &Places, problems: &mut Problems) {
    let mut topology = Topology { nodes: nodes(routes, places), automata: Automata::default(), problems };
    for index in 0..topology.nodes.len() {
        topology.check_own_loop(index);
    }
    topology.nodes.retain(|node| node.route.enabled);
    topology.check_groups();
    topology.check_loops();
    topology.check_dead_letters();
}

struct Topology<'r, 'p> {
    nodes: Vec<RouteNode<'r>>,
    automata: Automata,
    problems: &'p mut Problems,
}

struct RouteNode<'r> {
    route: &'r Route,
    name_place: &'r Place,
    /// The places of `source.topics`.
    topic_places: Vec<Option<&'r Place>>,
    outputs: Vec<Written<'r>>,
}

/// Something that a route writes to.
#[derive(Clone, Copy)]
struct Written<'r> {
    what: &'static str,
    to: To<'r>,
    place: &'r Place,
}

#[derive(Clone, Copy)]
enum To<'r> {
    Topic(&'r TopicName),
    Pattern(&'r Regex),
}

fn nodes<'r>(routes: &'r BTreeMap<RouteName, Route>, places: &'r Places) -> Vec<RouteNode<'r>> {
    let node = |route: &'r Route| {
        let name = &route.name;
        let destinations = route.destinations.iter().enumerate().filter_map(|(index, destination)| {
            let to = match &destination.target {
                Target::Topic(topic) => To::Topic(topic),
                Target::Pattern(pattern) => To::Pattern(pattern),
            };
            Some(Written { what: "destination", to, place: places.destination(name, index)? })
        });
        let dead_letter = route.on_error.dead_letter_topic().zip(places.dead_letter(name));
        let dead_letter = dead_letter.map(|(topic, place)| Written { what: DEAD_LETTER, to: To::Topic(topic), place });
        Some(RouteNode {
            route,
            name_place: places.route(name)?,
            topic_places: (0..route.source.topics.len()).map(|index| places.source_topic(name, index)).collect(),
            outputs: destinations.chain(dead_letter).collect(),
        })
    };
    routes.values().filter_map(node).collect()
}

const DEAD_LETTER: &str = "dead-letter topic";

/// A topic that a source reads and where the source says so.
struct Hit {
    /// Its name, or one that it could have.
    topic: String,
    /// Which of `source.topics`.
    selector: usize,
}

impl Topology<'_, '_> {
    fn check_own_loop(&mut self, index: usize) {
        let node = &self.nodes[index];
        for written in &node.outputs {
            let Some(hit) = self.automata.read_by(&node.route.source, written.to) else { continue };
            let message = match written.to {
                To::Topic(topic) => format!("a loop: the source of this route reads its {} `{topic}`", written.what),
                To::Pattern(_) => {
                    format!(
                        "a loop: the source of this route reads what goes to this pattern, for example `{}`",
                        hit.topic
                    )
                }
            };
            let mut problem = Problem::at(written.place, message).code("loop");
            if let Some(place) = node.topic_places.get(hit.selector).copied().flatten() {
                problem = problem.related(place, "read here");
            }
            let pattern = matches!(node.route.source.topics.get(hit.selector), Some(TopicSelector::Pattern(_)));
            self.problems.push(match (pattern, written.to) {
                (true, To::Topic(topic)) => problem.help(format!("leave it out of the source: `exclude: [{topic}]`")),
                (true, To::Pattern(_)) => problem.help("leave such topics out of the source with `exclude`"),
                (false, _) => problem.help("write to another topic"),
            });
        }
    }

    fn check_groups(&mut self) {
        let mut groups: HashMap<&str, Vec<usize>> = HashMap::new();
        for (index, node) in self.nodes.iter().enumerate() {
            groups.entry(node.route.source.group.as_str()).or_default().push(index);
        }
        let mut shared: Vec<_> = groups.into_values().filter(|members| members.len() > 1).collect();
        shared.sort_unstable();
        for members in shared {
            for (at, &later) in members.iter().enumerate() {
                // One partner is enough to tell: a thousand routes in one group are not half a million problems.
                let clash = members[..at].iter().find_map(|&earlier| Some((earlier, self.overlap(earlier, later)?)));
                let Some((earlier, topic)) = clash else { continue };
                let (later, earlier) = (&self.nodes[later], &self.nodes[earlier]);
                let message = format!(
                    "the routes `{}` and `{}` share the group `{}` and the topic `{topic}`: each would get only a part of it",
                    earlier.route.name, later.route.name, later.route.source.group
                );
                let problem = Problem::at(later.name_place, message).code("shared_group");
                let problem = problem.related(earlier.name_place, "the other route");
                self.problems.push(problem.help("give each route a `source.group` of its own, or leave `group` out"));
            }
        }
    }

    /// A topic that both routes read.
    fn overlap(&mut self, a: usize, b: usize) -> Option<String> {
        let (a, b) = (&self.nodes[a].route.source, &self.nodes[b].route.source);
        a.topics.iter().find_map(|selector| match selector {
            TopicSelector::Name(topic) if selects(a, topic.as_str()).is_some() => {
                selects(b, topic.as_str()).map(|_| topic.to_string())
            }
            TopicSelector::Name(_) => None,
            TopicSelector::Pattern(pattern) => self.automata.read_by_pattern(b, pattern, Some(a)).map(|hit| hit.topic),
        })
    }

    fn check_loops(&mut self) {
        let edges = self.edges();
        let mut told: HashSet<usize> = HashSet::new();
        for start in leading_on(&edges) {
            if told.contains(&start) {
                continue;
            }
            let Some(path) = shortest_loop(&edges, start) else { continue };
            told.extend(path.iter().map(|(from, _)| *from));
            self.tell_loop(&path);
        }
    }

    /// For each route the routes that read what it writes, with the output that leads there and the topic.
    fn edges(&mut self) -> Vec<Vec<(usize, Step)>> {
        let dead_letters: HashSet<&str> = self
            .nodes
            .iter()
            .filter_map(|node| node.route.on_error.dead_letter_topic())
            .map(TopicName::as_str)
            .collect();
        let mut by_name: HashMap<&str, Vec<usize>> = HashMap::new();
        let mut with_patterns = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            for selector in &node.route.source.topics {
                match selector {
                    TopicSelector::Name(topic) => by_name.entry(topic.as_str()).or_default().push(index),
                    TopicSelector::Pattern(_) => with_patterns.push(index),
                }
            }
        }
        with_patterns.dedup();
        let mut edges = Vec::with_capacity(self.nodes.len());
        for (from, node) in self.nodes.iter().enumerate() {
            let mut next: Vec<(usize, Step)> = Vec::new();
            for (output, written) in node.outputs.iter().enumerate() {
                let named: &[usize] = match written.to {
                    To::Topic(topic) => by_name.get(topic.as_str()).map_or(&[], Vec::as_slice),
                    To::Pattern(_) => &[],
                };
                // A pattern never takes a dead-letter topic: only who names it reads it.
                let by_pattern: &[usize] = match written.to {
                    To::Topic(topic) if dead_letters.contains(topic.as_str()) => &[],
                    To::Topic(_) => &with_patterns,
                    To::Pattern(_) => &[],
                };
                let everyone: Vec<usize> = match written.to {
                    To::Topic(_) => named.iter().chain(by_pattern).copied().collect(),
                    To::Pattern(_) => (0..self.nodes.len()).collect(),
                };
                for to in everyone.into_iter().filter(|to| *to != from) {
                    if let Some(hit) = self.automata.read_by(&self.nodes[to].route.source, written.to) {
                        next.push((to, Step { output, topic: hit.topic }));
                    }
                }
            }
            edges.push(next);
        }
        edges
    }

    fn tell_loop(&mut self, path: &[(usize, Step)]) {
        let name = |index: usize| &self.nodes[index].route.name;
        let mut way = String::new();
        for (from, step) in path {
            way += &format!("`{}` -> topic `{}` -> ", name(*from), step.topic);
        }
        let (first, first_step) = &path[0];
        let message = format!("a loop through several routes: {way}`{}`", name(*first));
        let place = |index: usize, step: &Step| self.nodes[index].outputs[step.output].place;
        let mut problem = Problem::at(place(*first, first_step), message).code("loop");
        for (from, step) in &path[1..] {
            problem = problem.related(place(*from, step), format!("`{}` goes on here", name(*from)));
        }
        self.problems.push(
            problem.help("let one of them write to another topic, or leave the topic out of a source with `exclude`"),
        );
    }

    fn check_dead_letters(&mut self) {
        let mut topics: BTreeMap<&TopicName, (&RouteName, &Place)> = BTreeMap::new();
        for node in &self.nodes {
            for written in node.outputs.iter().filter(|written| written.what == DEAD_LETTER) {
                if let To::Topic(topic) = written.to {
                    topics.entry(topic).or_insert((&node.route.name, written.place));
                }
            }
        }
        for node in &self.nodes {
            let own = node.route.on_error.dead_letter_topic();
            let caught = topics.iter().filter(|(topic, _)| own != Some(**topic)).find_map(|(topic, (route, place))| {
                let selector = selects(&node.route.source, topic.as_str())?;
                let by_name = node
                    .route
                    .source
                    .topics
                    .iter()
                    .any(|selector| matches!(selector, TopicSelector::Name(name) if name == *topic));
                (!by_name).then_some((topic, route, place, selector))
            });
            let Some((topic, route, place, selector)) = caught else { continue };
            let Some(at) = node.topic_places.get(selector).copied().flatten() else { continue };
            let message = format!(
                "this pattern also matches `{topic}`, the dead-letter topic of `{route}`, and will not read it"
            );
            let problem =
                Problem::at(at, message).code("dead_letter_in_pattern").related(place, "the dead-letter topic");
            let help =
                format!("patterns never read dead letters: name the topic to read it, or write `exclude: [{topic}]`");
            self.problems.push(problem.help(help).warning());
        }
    }
}

/// How records get from one route to the next.
#[derive(Debug, Clone)]
struct Step {
    output: usize,
    topic: String,
}

/// Routes from which the way never ends: all others are struck out, from the ends of the ways backwards.
fn leading_on(edges: &[Vec<(usize, Step)>]) -> Vec<usize> {
    let mut from: Vec<Vec<usize>> = vec![Vec::new(); edges.len()];
    let mut ways_on: Vec<usize> = edges.iter().map(Vec::len).collect();
    for (index, next) in edges.iter().enumerate() {
        next.iter().for_each(|(to, _)| from[*to].push(index));
    }
    let mut ends: Vec<usize> = (0..edges.len()).filter(|index| ways_on[*index] == 0).collect();
    while let Some(end) = ends.pop() {
        for &before in &from[end] {
            ways_on[before] -= 1;
            if ways_on[before] == 0 {
                ends.push(before);
            }
        }
    }
    (0..edges.len()).filter(|index| ways_on[*index] > 0).collect()
}

/// The shortest way from a route back to itself.
fn shortest_loop(edges: &[Vec<(usize, Step)>], start: usize) -> Option<Vec<(usize, Step)>> {
    let mut came_from: HashMap<usize, (usize, &Step)> = HashMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(at) = queue.pop_front() {
        for (next, step) in &edges[at] {
            if *next == start {
                let mut path = vec![(at, step.clone())];
                while let Some((from, step)) = came_from.get(&path[path.len() - 1].0) {
                    path.push((*from, (*step).clone()));
                }
                path.reverse();
                return Some(path);
            }
            if *next != start && !came_from.contains_key(next) {
                came_from.insert(*next, (at, step));
                queue.push_back(*next);
            }
        }
    }
    None
}

/// Which of the source's selectors takes this topic.
fn selects(source: &Source, topic: &str) -> Option<usize> {
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
struct Automata {
    built: HashMap<String, Option<Dfa>>,
    searched: usize,
}

/// Pairs of states that one search visits at most; beyond that the patterns are taken for disjoint.
const SEARCH_MOST: usize = 20_000;
/// The same for all searches of one configuration.
const SEARCH_ALL_MOST: usize = 2_000_000;
/// The characters of topic names, the pleasant ones first since they make up the examples.
const ALPHABET: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789.-_ABCDEFGHIJKLMNOPQRSTUVWXYZ";

impl Automata {
    /// A topic that the source reads among those written.
    fn read_by(&mut self, source: &Source, to: To<'_>) -> Option<Hit> {
        match to {
            To::Topic(topic) => {
                selects(source, topic.as_str()).map(|selector| Hit { topic: topic.to_string(), selector })
            }
            To::Pattern(pattern) => self.read_by_pattern(source, pattern, None),
        }
    }

    /// A topic that the source reads among those that the pattern matches, and that `other`, whose pattern it is, takes.
    fn read_by_pattern(&mut self, source: &Source, pattern: &Regex, other: Option<&Source>) -> Option<Hit> {
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
        self.searched += visited;
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

/// Whether the patterns' fixed beginnings allow a common name. Settles most pairs without an automaton.
fn prefixes_agree(a: &str, b: &str) -> bool {
    fn fixed(pattern: &str) -> &str {
        let inner = pattern.strip_prefix("^(?:").and_then(|rest| rest.strip_suffix(")$")).unwrap_or("");
        let Some(inner) = inner.strip_prefix('^') else { return "" };
        // An alternative may begin otherwise.
        if inner.contains('|') || inner.contains("(?") {
            return "";
        }
        let literal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let end = inner.find(|c| !literal(c)).unwrap_or(inner.len());
        // What follows may make the last character optional.
        match inner[end..].starts_with(['*', '?', '{']) {
            true => &inner[..end.saturating_sub(1)],
            false => &inner[..end],
        }
    }
    let (a, b) = (fixed(a), fixed(b));
    a.starts_with(b) || b.starts_with(a)
}

fn build(pattern: &str) -> Option<Dfa> {
    const BYTES_MOST: usize = 1 << 20;
    let config = dense::Config::new()
        .start_kind(StartKind::Anchored)
        .match_kind(MatchKind::All)
        .dfa_size_limit(Some(BYTES_MOST))
        .determinize_size_limit(Some(BYTES_MOST))
        .unicode_word_boundary(true);
    dense::Builder::new().configure(config).build(pattern).ok()
}

/// Breadth first through the product of all automata: the shortest topic that all of `required` and none of `forbidden`
/// match. Also says how many states were visited.
fn search(required: &[&Dfa], forbidden: &[&Dfa]) -> (Option<String>, usize) {
    let all: Vec<&Dfa> = required.iter().chain(forbidden).copied().collect();
    let begin = start::Config::new().anchored(Anchored::Yes);
    let Ok(first) = all.iter().map(|dfa| dfa.start_state(&begin)).collect::<Result<Vec<StateID>, _>>() else {
        return (None, 0);
    };
    // Each visited state with the one it was reached from and the character that led there.
    let mut visited: Vec<(Vec<StateID>, usize, u8)> = vec![(first.clone(), 0, 0)];
    let mut known: HashSet<Vec<StateID>> = HashSet::from([first]);
    let mut at = 0;
    while at < visited.len() && visited.len() < SEARCH_MOST {
        for &byte in ALPHABET {
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
            (r"^ab?c*$", r"^a$", Some("a")),
        ] {
            let found = Automata::default().common(whole(a).as_str(), whole(b).as_str(), &[]);
            assert_eq!(found.as_deref(), common, "{a} and {b}");
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
