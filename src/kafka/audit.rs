//! What a cluster says of topics and groups when it is asked on purpose, for `millrace check --connect`: settings that
//! durability rests on, and what this client may do.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::raw_describe::{Configs, GroupRights, Rights, TopicRights};
use super::topics::Cluster;
use crate::model::{GroupId, TopicName};

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

/// What a cluster says.
#[derive(Debug, Clone, Default)]
pub struct Audit {
    /// Of each topic.
    pub topics: BTreeMap<TopicName, TopicAudit>,
    /// What we may do with each group; none where the cluster does not say.
    pub groups: BTreeMap<GroupId, Option<BTreeSet<Operation>>>,
}

impl Audit {
    /// Asks about these topics, which are there, and groups. What is not answered in time is left out.
    pub fn of(cluster: &Cluster, topics: &[TopicName], groups: &[GroupId], within: Duration) -> Self {
        let client = cluster.client();
        let names: Vec<String> = topics.iter().map(ToString::to_string).collect();
        // All are asked before any is waited for.
        let some = !names.is_empty();
        let configs = some.then(|| Configs::ask(client, &names, within)).flatten();
        let rights = some.then(|| TopicRights::ask(client, &names, within)).flatten();
        let of_groups: Vec<_> = groups.iter().map(|group| GroupRights::ask(client, group.as_str(), within)).collect();
        let configs = configs.and_then(|asked| asked.answer(within));
        let rights = rights.and_then(|asked| asked.answer(within)).and_then(Result::ok).map(|rights| rights.0);
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
        let group = |(group, asked): (&GroupId, Option<super::raw_admin::Asked<GroupRights>>)| {
            let rights = asked.and_then(|asked| asked.answer(within)).and_then(Result::ok);
            (group.clone(), rights.and_then(|rights| may(&rights.0, group.as_str())))
        };
        Self {
            topics: topics.iter().map(|name| (name.clone(), topic(name))).collect(),
            groups: groups.iter().zip(of_groups).map(group).collect(),
        }
    }
}

/// What of ours the numbers stand for; an empty list is a broker that does not say.
fn may(rights: &Rights, name: &str) -> Option<BTreeSet<Operation>> {
    let numbers = rights.0.get(name).filter(|numbers| !numbers.is_empty())?;
    let granted = |operation: &Operation| numbers.contains(&operation.number()) || numbers.contains(&Operation::ALL);
    Some([Operation::Read, Operation::Write, Operation::Describe].into_iter().filter(granted).collect())
}
