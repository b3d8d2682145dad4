//! The one integration binary.

mod kafka_session;
mod simulation;
