//! Hot reload on a real Kafka: how changes are noticed, refused and taken up while records flow.

mod files;
mod in_place;
mod load;
mod refusals;
