//! What a cluster says when it is asked on purpose, for `millrace check --connect`: settings that durability and transactions
//! rest on, and what this client may do.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::client_options;
use super::errors::{About, trouble};
use super::positions;
use super::raw::describe::{Configs, GroupRights, Rights, TopicRights};
use super::raw::{Client, Context, Kind, Known};
use super::topics::{Cluster, reason};
use crate::model::{GroupId, TopicName};
use crate::pipeline::ports::Trouble;

/// Something that one may do with a topic or a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Fetch a topic's records; join a group and commit its offsets.
    Read,
    /// Produce to a topic.
    Write,
    /// Look it up.
    Describe,
}

impl Operation {
    /// As Kafka's tools spell it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "Read",
            Self::Write => "Write",
            Self::Describe => "Describe",
        }
    }

    /// Kafka's number for it.
    const fn number(self) -> u32 {
        match self {
            Self::Read => 3,
            Self::Write => 4,
            Self::Describe => 8,
        }
    }

    /// Kafka's number for all of them.
    const ALL: u32 = 2;
}

/// What a cluster says of a topic.
#[derive(Debug, Clone)]
pub struct TopicAudit {
    /// Its settings; why they cannot be had.
    pub settings: Result<BTreeMap<String, String>, String>,
    /// What we may do with it; none where the cluster does not say.
    pub may: Option<BTreeSet<Operation>>,
}

/// What is asked about.
#[derive(Debug, Default)]
pub struct Questions {
    /// Topics that are there.
    pub topics: BTreeSet<TopicName>,
    /// Topics that are needed and not seen.
    pub unseen: BTreeSet<TopicName>,
    /// Groups.
    pub groups: BTreeSet<GroupId>,
    /// Groups whose records go out in transactions.
    pub transactional: BTreeSet<GroupId>,
}

/// What a cluster says.
#[derive(Debug, Default)]
pub struct Audit {
    /// Of each topic.
    pub topics: BTreeMap<TopicName, TopicAudit>,
    /// Topics that are not seen since we may not.
    pub denied: BTreeSet<TopicName>,
    /// What we may do with each group; none where the cluster does not say.
    pub groups: BTreeMap<GroupId, Option<BTreeSet<Operation>>>,
    /// Why no transaction can begin for a group.
    pub transactions: BTreeMap<GroupId, Trouble>,
    /// The settings of a broker, where we may see them.
    pub broker: Option<BTreeMap<String, String>>,
}

impl Audit {
    /// Asks; each answer has so long. What is not answered in time is left out. Nothing of the cluster's changes, but that
    /// it hears of a transactional id for each group that has transactions, as at each start of a process.
    pub fn of(cluster: &Cluster, questions: &Questions, within: Duration) -> Self {
        let client = cluster.client();
        let names: Vec<String> = questions.topics.iter().map(ToString::to_string).collect();
        // All are asked before any is waited for.
        let some = !names.is_empty();
        let configs = some.then(|| Configs::ask(client, &names, within)).flatten();
        let rights = some.then(|| TopicRights::ask(client, &names, within)).flatten();
        let broker = Configs::ask_a_broker(client, within);
        let groups = &questions.groups;
        let of_groups: Vec<_> = groups.iter().map(|group| GroupRights::ask(client, group.as_str(), within)).collect();
        let configs = configs.and_then(|asked| asked.answer(within));
        let rights = rights.and_then(|asked| asked.answer(within)).and_then(Result::ok).map(|rights| rights.0);
        let broker = broker.and_then(|asked| asked.answer(within)).and_then(Result::ok);
        let topic = |name: &TopicName| TopicAudit {
            settings: match &configs {
                None => Err("the brokers did not answer".to_owned()),
                Some(Err(error)) => Err(error.message.clone()),
                Some(Ok(configs)) => match configs.0.get(name.as_str()) {
                    Some(settings) => settings.clone(),
                    None => Err("the brokers did not say".to_owned()),
                },
            },
            may: rights.as_ref().and_then(|rights| may(rights, name.as_str())),
        };
        let group = |(group, asked): (&GroupId, Option<super::raw::admin::Asked<GroupRights>>)| {
            let rights = asked.and_then(|asked| asked.answer(within)).and_then(Result::ok);
            (group.clone(), rights.and_then(|rights| may(&rights.0, group.as_str())))
        };
        let is_denied = |topic: &&TopicName| {
            let denied = Known::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED.into();
            cluster.look_up(topic, within).is_err_and(|error| error.code == denied)
        };
        Self {
            topics: questions.topics.iter().map(|name| (name.clone(), topic(name))).collect(),
            denied: questions.unseen.iter().filter(is_denied).cloned().collect(),
            groups: groups.iter().zip(of_groups).map(group).collect(),
            transactions: transactions(cluster, &questions.transactional, within),
            broker: broker.and_then(|brokers| brokers.0.into_values().find_map(Result::ok)),
        }
    }
}

/// Begins what comes before each transaction, under an id of its own that fences nobody: only that asks whether we may, and
/// whether the brokers allow our `transaction.timeout.ms`.
fn transactions(cluster: &Cluster, groups: &BTreeSet<GroupId>, within: Duration) -> BTreeMap<GroupId, Trouble> {
    let kafka = cluster.kafka();
    let ask = |group: &GroupId| {
        let id = format!("{}.{group}.check-connect.0", kafka.prefix);
        let context = Context::new("check of transactions", None);
        let client = Client::new(Kind::Producer, &client_options::transacting(kafka, &id), context);
        let client = client.map_err(|message| trouble(&positions::configuration(message), About::Cluster))?;
        client.init_transactions(within).map_err(|error| {
            client.serve(Duration::ZERO);
            match error.code == Known::RD_KAFKA_RESP_ERR__TIMED_OUT.into() {
                true => reason(&error, client.context().take_errors()),
                false => trouble(&error, About::Transaction(&id)),
            }
        })
    };
    groups.iter().filter_map(|group| Some((group.clone(), ask(group).err()?))).collect()
}

/// What of ours the numbers stand for.
fn may(rights: &Rights, name: &str) -> Option<BTreeSet<Operation>> {
    let numbers = rights.0.get(name)?.as_ref()?;
    let granted = |operation: &Operation| numbers.contains(&operation.number()) || numbers.contains(&Operation::ALL);
    Some([Operation::Read, Operation::Write, Operation::Describe].into_iter().filter(granted).collect())
}
