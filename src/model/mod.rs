//! FLOOR 0: the words everything else is written in. No I/O, no outside library but `std`, `serde` and the digest.

mod batch;
pub mod clock;
mod digest;
mod error_id;
mod fault;
mod items;
mod mutation;
mod names;

pub use batch::{Offset, OffsetMap, Redriven, SourceBatch, TopicPartition};
pub use digest::Digest;
pub use error_id::ErrorId;
pub use fault::{Fault, FaultCode};
pub use items::{DestinationIndex, Field, HeaderPart, Item, ItemList, Items, SendTo, Span};
pub use mutation::Mutation;
pub use names::{DestinationName, GroupId, InvalidName, PluginName, RouteName, TopicName};
