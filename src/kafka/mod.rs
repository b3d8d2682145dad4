//! FLOOR 4: Kafka. The only owner of librdkafka: a consumer and its producer for life ([`Session`]), and what is known
//! of the cluster ([`Cluster`]). Implements the data plane's `Broker`; knows nothing of plugins, YAML or HTTP.

mod apart;
mod audit;
mod buffers;
mod client_options;
mod committer;
mod convert;
mod ending;
mod errors;
mod intake;
mod limits;
mod log_ends;
mod mock;
mod partition_counts;
mod positions;
mod producer;
mod raw;

mod reader;
mod rebalance;
pub mod seam;
mod sender;
mod session;
mod shared_question;
mod tokens;
mod topics;
mod twins;
mod unowned;
mod watchdog;

pub use audit::{Audit, Operation, Questions, TopicAudit};
pub use buffers::keep_freed_memory;
pub use client_options::{ClientKind, check_properties, check_together};
pub use limits::raise_open_files;
pub use mock::{Arrival, MockCluster, Watcher, Writer};
pub use partition_counts::PartitionCounts;
pub use positions::{Started, committed, resolve_start};
pub use reader::{ReadFrom, Reader};
pub use sender::Sender;
pub use session::{Instance, Session, SessionOptions};
pub use topics::{Cluster, LeftOut, TopicState, Topics, loops, source_topics};
