//! librdkafka's mock cluster, in this process, for the demo and for tests of the table of errors. A mock of the protocol
//! and not a broker: it keeps nothing, shows aborted records to `read_committed` readers and forgets offsets that are
//! sent in a transaction.

use std::sync::Arc;

use super::client_options::Options;
use super::raw::{Client, Context, Kind, Mock};

/// Brokers that live in this process until dropped.
pub struct MockCluster {
    mock: Mock,
}

impl MockCluster {
    /// Starts `brokers` of them on loopback. Groups form at once.
    ///
    /// # Errors
    /// What librdkafka says.
    pub fn start(brokers: u16) -> Result<Self, String> {
        let options = Options::from([("log_level".to_owned(), "3".to_owned())]);
        let client: Arc<Client> = Client::new(Kind::Producer, &options, Context::new("mock cluster", None))?;
        Ok(Self { mock: Mock::new(client, brokers)? })
    }

    /// Where it listens: `bootstrap.servers`.
    pub fn bootstrap(&self) -> String {
        self.mock.bootstrap()
    }

    /// Makes a topic. (The mock would make any that is written to, with 4 partitions.)
    ///
    /// # Errors
    /// What librdkafka says.
    pub fn create_topic(&self, name: &str, partitions: i32) -> Result<(), String> {
        self.mock.create_topic(name, partitions).map_err(|error| error.message)
    }

    /// Lets the next requests of one kind (Kafka's API key) fail with these codes, one after the other; 0 succeeds.
    pub fn fail_next(&self, api_key: i16, codes: &[i16]) {
        self.mock.fail_next(api_key, codes);
    }

    /// Lets no more requests of one kind fail.
    pub fn fail_no_more(&self, api_key: i16) {
        self.mock.fail_no_more(api_key);
    }

    /// Lets a broker (from 1) answer this many milliseconds later.
    pub fn delay(&self, broker: i32, millis: i32) {
        self.mock.delay(broker, millis);
    }

    /// Takes a broker (from 1) away, or brings it back.
    pub fn set_up(&self, broker: i32, up: bool) {
        self.mock.set_up(broker, up);
    }
}
