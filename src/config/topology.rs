//! How routes hang together through topics: loops, and groups that two routes share.
//!
//! Knows nothing about how patterns are held against each other: that is `overlap`'s. What it cannot decide is left to the
//! running system, which knows the real topics.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use super::overlap::{Automata, Readers, To, selects};
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
        let mut groups: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (index, node) in self.nodes.iter().enumerate() {
            groups.entry(node.route.source.group.as_str()).or_default().push(index);
        }
        for members in groups.into_values().filter(|members| members.len() > 1) {
            let readers = Readers::of(members.iter().map(|index| (*index, &self.nodes[*index].route.source)));
            for &later in &members {
                let topics = self.nodes[later].route.source.topics.iter();
                let candidates: BTreeSet<usize> = topics.flat_map(|topic| readers.candidates(topic.into())).collect();
                // One partner is enough to tell: a thousand routes in one group are not half a million problems.
                let mut earlier = candidates.range(..later);
                let clash = earlier.find_map(|&earlier| Some((earlier, self.overlap(earlier, later)?)));
                if let Some((earlier, topic)) = clash {
                    self.tell_shared_group(earlier, later, &topic);
                }
            }
        }
    }

    fn tell_shared_group(&mut self, earlier: usize, later: usize, topic: &str) {
        let (earlier, later) = (&self.nodes[earlier], &self.nodes[later]);
        let message = format!(
            "the routes `{}` and `{}` share the group `{}` and the topic `{topic}`: each would get only a part of it",
            earlier.route.name, later.route.name, later.route.source.group
        );
        let problem = Problem::at(later.name_place, message).code("shared_group");
        let problem = problem.related(earlier.name_place, "the other route");
        self.problems.push(problem.help("give each route a `source.group` of its own, or leave `group` out"));
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
        let readers = self.readers();
        let dead_letters: HashSet<&TopicName> =
            self.nodes.iter().filter_map(|node| node.route.on_error.dead_letter_topic()).collect();
        let mut edges = Vec::with_capacity(self.nodes.len());
        for (from, node) in self.nodes.iter().enumerate() {
            let mut next: Vec<(usize, Step)> = Vec::new();
            for (output, written) in node.outputs.iter().enumerate() {
                for to in readers.candidates(written.to).into_iter().filter(|to| *to != from) {
                    let source = &self.nodes[to].route.source;
                    // A pattern never takes a dead-letter topic: only who names it reads it.
                    let closed =
                        matches!(written.to, To::Topic(topic) if dead_letters.contains(topic) && !names(source, topic));
                    if let Some(hit) = self.automata.read_by(source, written.to).filter(|_| !closed) {
                        next.push((to, Step { output, topic: hit.topic }));
                    }
                }
            }
            edges.push(next);
        }
        edges
    }

    fn readers(&self) -> Readers {
        Readers::of(self.nodes.iter().map(|node| &node.route.source).enumerate())
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
        let readers = self.readers();
        let mut told: HashSet<usize> = HashSet::new();
        for owner in &self.nodes {
            for written in owner.outputs.iter().filter(|written| written.what == DEAD_LETTER) {
                let To::Topic(topic) = written.to else { continue };
                for reader in readers.candidates(written.to) {
                    let node = &self.nodes[reader];
                    if node.route.on_error.dead_letter_topic() == Some(topic) || names(&node.route.source, topic) {
                        continue;
                    }
                    let Some(selector) = selects(&node.route.source, topic.as_str()) else { continue };
                    let Some(at) = node.topic_places.get(selector).copied().flatten() else { continue };
                    if told.insert(reader) {
                        self.problems.push(dead_letter_in_pattern(at, topic, &owner.route.name, written.place));
                    }
                }
            }
        }
    }
}

fn dead_letter_in_pattern(pattern: &Place, topic: &TopicName, owner: &RouteName, place: &Place) -> Problem {
    let message =
        format!("this pattern also matches `{topic}`, the dead-letter topic of `{owner}`, and will not read it");
    let help = format!("patterns never read dead letters: name the topic to read it, or write `exclude: [{topic}]`");
    let problem = Problem::at(pattern, message).code("dead_letter_in_pattern");
    problem.related(place, "the dead-letter topic").help(help).warning()
}

/// Whether the source names the topic, rather than matching it.
fn names(source: &Source, topic: &TopicName) -> bool {
    source.topics.iter().any(|selector| matches!(selector, TopicSelector::Name(name) if name == topic))
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
