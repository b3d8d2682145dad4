//! `millrace dlq …`: looks at dead letters, and sends them through their route again.

mod filter;
mod ls;
mod redrive;
mod show;

use clap::Subcommand;

use super::cluster::{connect, failed};
use super::{Failure, environment};
use crate::config::settings::Route;
use crate::config::{self, Loaded};
use crate::model::{RouteName, SourceBatch, TopicName};

#[derive(clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// List the letters of a dead-letter topic, and count them by route, plugin and code.
    ///
    /// Those that a redrive has settled are left out, unless --all is given. Reads the topic as it lies there: nobody's
    /// position moves.
    Ls(ls::Arguments),
    /// Show one letter: the record, its headers, why it is here, and what the route's present plugins make of it.
    Show(show::Arguments),
    /// Send letters through their route again, exactly once.
    ///
    /// Each letter becomes the record that it was, goes through the route's plugins as the configuration has them now, and on to
    /// its destinations, in transactions with the position in the dead-letter topic. A record that is at fault again becomes a letter
    /// again, at the topic's end, with its count of redrives. Letters that a filter leaves out are put back at the end. Can be
    /// interrupted at any time: the same command goes on where it ended. Needs no daemon.
    Redrive(redrive::Arguments),
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    match &arguments.verb {
        Verb::Ls(arguments) => ls::run(arguments),
        Verb::Show(arguments) => show::run(arguments),
        Verb::Redrive(arguments) => redrive::run(arguments),
    }
}

/// Which topic, of which configuration, and how what is found there is shown.
#[derive(clap::Args)]
struct TopicArguments {
    /// The dead-letter topic
    #[arg(value_name = "TOPIC", value_parser = |text: &str| TopicName::new(text))]
    topic: TopicName,
    #[command(flatten)]
    config: super::ConfigArgument,
    /// Print the result as JSON, on stdout
    #[arg(long)]
    json: bool,
}

impl TopicArguments {
    fn load(&self) -> Result<Loaded, Failure> {
        config::load(&self.config.path()?, &environment).map_err(Failure::Invalid)
    }
}

/// The route that is meant: the one that is named, else the only one whose faults go to the topic.
fn route_of<'a>(loaded: &'a Loaded, named: Option<&RouteName>, topic: &TopicName) -> Result<&'a RouteName, Failure> {
    let routes = &loaded.settings.routes;
    if let Some(named) = named {
        let known = || routes.keys().map(RouteName::as_str).collect::<Vec<_>>().join(", ");
        let found = routes.get_key_value(named).map(|(name, _)| name);
        return found.ok_or_else(|| Failure::Usage(anyhow::anyhow!("there is no route \"{named}\": {}", known())));
    }
    let writes = |route: &Route| route.on_error.dead_letter_topic() == Some(topic);
    let found: Vec<_> = routes.iter().filter(|(_, route)| writes(route)).map(|(name, _)| name).collect();
    match found.as_slice() {
        [one] => Ok(one),
        [] => Err(Failure::Usage(anyhow::anyhow!(
            "no route's on_error names \"{topic}\" as its dead-letter topic: say whose letters are meant with --route NAME"
        ))),
        several => {
            let names = several.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
            Err(Failure::Usage(anyhow::anyhow!(
                "several routes ({names}) have \"{topic}\" as their dead-letter topic: say whose letters are meant with \
                 --route NAME"
            )))
        }
    }
}

/// A record's timestamp for people.
fn time_of(batch: &dyn SourceBatch, index: usize) -> String {
    let known = jiff::Timestamp::from_millisecond(batch.timestamp(index)).ok().filter(|_| batch.timestamp(index) >= 0);
    known.map_or_else(|| "-".to_owned(), |time| time.to_string())
}
