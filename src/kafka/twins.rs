//! Another live process with the same `instance`: where it is, and whether it still is. Of two, the younger keeps the work.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::GroupId;
use crate::pipeline::ports::{Trouble, TroubleKind};

use super::raw::Client;
use super::raw::admin::{Member, Members};

/// How long a twin that has taken our place in a transaction may take to be seen in the group, too.
pub(super) const SEEN_WITHIN: Duration = Duration::from_secs(3);
/// Between two questions.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// The member of `group` with this `group.instance.id`, other than the one with the member id `own`.
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
        let answer = Members::ask(client, group, left)?.answer(left);
        let is_twin = |member: &Member| member.instance == instance && Some(member.id.as_str()) != own;
        let found = answer.and_then(Result::ok).and_then(|members| members.0.into_iter().find(is_twin));
        if found.is_some() || Instant::now() + ASK_EVERY >= deadline {
            return found;
        }
        client.serve(ASK_EVERY);
    }
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
