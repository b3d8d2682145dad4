//! Which letters are meant.

use jiff::Timestamp;

use crate::model::SourceBatch;
use crate::pipeline::dead_letter::Letter;

#[derive(clap::Args, Clone, Default)]
pub(super) struct Filter {
    /// Only those that this plugin is to blame for
    #[arg(long, value_name = "NAME")]
    plugin: Option<String>,
    /// Only those with this fault code, such as trapped or refused
    #[arg(long, value_name = "CODE")]
    code: Option<String>,
    /// Only records with this key
    #[arg(long, value_name = "TEXT")]
    key: Option<String>,
    /// Only records whose timestamp is not before this time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    since: Option<Timestamp>,
    /// Only records whose timestamp is before this time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    until: Option<Timestamp>,
    /// Only letters whose fault says this
    #[arg(long, value_name = "TEXT")]
    message: Option<String>,
}

impl Filter {
    pub(super) fn takes(&self, letter: &Letter, batch: &dyn SourceBatch, index: usize) -> bool {
        let is =
            |wanted: &Option<String>, found: Option<&str>| wanted.as_deref().is_none_or(|wanted| found == Some(wanted));
        let timestamp = batch.timestamp(index);
        is(&self.plugin, letter.plugin.as_deref())
            && is(&self.code, Some(&letter.code))
            && self.key.as_deref().is_none_or(|key| batch.key(index) == Some(key.as_bytes()))
            && self.since.is_none_or(|since| timestamp >= since.as_millisecond())
            && self.until.is_none_or(|until| timestamp < until.as_millisecond())
            && self.message.as_deref().is_none_or(|part| letter.message.contains(part))
    }
}
