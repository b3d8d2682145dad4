//! Another live process with the same `instance`: where it is, and whether it still is. Of two, the younger keeps the work.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::GroupId;
use crate::pipeline::ports::{Trouble, TroubleKind};

use super::raw::{Client, Member};

/// How long a twin that has taken our place in a transaction may take to be seen in the group, too.
pub(super) const SEEN_WITHIN: Duration = Duration::from_secs(3);
/// Between two questions.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// A UUID's, as text.
const UUID_LENGTH: usize = 36;

/// The member of `group` with this `group.instance.id`, other than the one with the member id `own`. In the `consumer` protocol the
/// younger is not let in, and cannot be seen: the group is not of the kind that is asked about.
pub(super) fn find(
    client: &Arc<Client>,
    group: &GroupId,
    instance: &str,
    own: Option<&str>,
    within: Duration,
) -> Option<Member> {
    let deadline = Instant::now() + within;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let members = client.group(group, left).ok().flatten().map_or(Vec::new(), |group| group.members);
        let is_twin = |member: &Member| is_of(instance, &member.id) && Some(member.id.as_str()) != own;
        let found = members.into_iter().find(is_twin);
        if found.is_some() || Instant::now() + ASK_EVERY >= deadline {
            return found;
        }
        client.serve(ASK_EVERY);
    }
}

/// Whether the coordinator has made this member id for this `group.instance.id`: of it, a dash and a UUID (KIP-345).
fn is_of(instance: &str, member_id: &str) -> bool {
    let uuid = member_id.strip_prefix(instance).and_then(|rest| rest.strip_prefix('-'));
    uuid.is_some_and(|uuid| uuid.len() == UUID_LENGTH)
}

/// What an operator reads. `said`: what the cluster said, if that is how it came out.
pub(super) fn trouble(instance: &str, twin: Option<&Member>, said: Option<&Trouble>) -> Trouble {
    let place = twin.map_or(String::new(), |twin| format!(" (client {} at {})", twin.client_id, twin.host));
    let said = said.map_or(String::new(), |said| format!("; {}: {}", said.code, said.message));
    Trouble {
        code: "duplicate_instance".into(),
        message: format!(
            "another live process{place} has the same `instance`, so that both would be the member {instance}: it keeps \
             the work; give each process an `instance` of its own{said}"
        ),
        kind: TroubleKind::Duplicate,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_id_is_that_of_a_static_member_whose_name_and_no_longer_one_it_begins_with() {
        let uuid = "0b8f6a4e-5f0c-4f0e-9a53-4d7c4b1d2c11";
        assert!(is_of("pod-1.0", &format!("pod-1.0-{uuid}")));
        for other in
            [format!("pod-1.0-a-{uuid}"), format!("pod-1.{uuid}"), "pod-1.0".to_owned(), format!("rdkafka-{uuid}")]
        {
            assert!(!is_of("pod-1.0", &other), "{other}");
        }
    }
}
