//! What to do about a broker that cannot be talked to, in words: librdkafka's are about the protocol, and guess.

/// What librdkafka's words mean, for who has to mend it: the first row that has one of its words in them.
pub(super) fn advice(why: &str) -> Option<&'static str> {
    let says = |words: &&(&[&str], &str)| words.0.iter().any(|word| why.contains(word));
    TABLE.iter().find(says).map(|(_, advice)| *advice)
}

const NO_TLS: &str = "the listener speaks no TLS: see its port in `bootstrap.servers`, and `security.protocol`";

/// The more telling words first.
const TABLE: &[(&[&str], &str)] = &[
    (
        &["answers 400", "answers 401", "answers 403"],
        "the issuer of tokens refuses `sasl.oauthbearer.client.id` with `sasl.oauthbearer.client.secret`, or \
         `sasl.oauthbearer.scope`",
    ),
    (
        &["no token from"],
        "see `sasl.oauthbearer.token.endpoint.url`, and `https.ca.location` where its certificate is signed by an authority of \
         your own",
    ),
    (
        &["hostname mismatch", "IP address mismatch"],
        "the broker's certificate is for another host: write the name that it is for into `bootstrap.servers`, and into the \
         broker's `advertised.listeners`",
    ),
    (&["certificate has expired"], "the broker's certificate has expired: it has to be renewed there"),
    (
        &["certificate is not yet valid"],
        "the broker's certificate is not valid yet, or the clock of this machine is slow",
    ),
    (
        &["certificate verify failed"],
        "the broker's certificate is signed by none of the authorities in `ssl.ca.location` (or `ssl.ca.pem`)",
    ),
    (
        &["alert bad certificate", "alert certificate required", "certificate required"],
        "the listener asks for a client's certificate: see `ssl.certificate.location` and `ssl.key.location` (one that no authority \
         of the broker's has signed is not sent)",
    ),
    (
        &["alert certificate unknown", "alert unknown ca", "alert certificate expired", "unknown CA"],
        "the broker refuses the client's certificate (`ssl.certificate.location`): it trusts another authority, or the \
         certificate has expired",
    ),
    (&["unexpected eof", "wrong version number", "connecting to a PLAINTEXT"], NO_TLS),
    (
        &["SSL handshake failed", "SSL routines"],
        "the TLS handshake fails: see `security.protocol` and the `ssl.…` properties",
    ),
    (
        &["Authentication failed", "SASL authentication error", "Invalid credentials", "invalid credentials"],
        "the broker refuses `sasl.username` with `sasl.password`, or the user has no credentials for `sasl.mechanism`",
    ),
    (&["current SASL state"], "the listener has no SASL: see its port in `bootstrap.servers`, and `security.protocol`"),
    (&["mechanism handshake failed", "Unsupported SASL mechanism"], "the broker does not offer this `sasl.mechanism`"),
    // (where a connection was closed: in the handshake, at the first request, which is for the protocol's versions, or after it)
    (&["in state SSL_HANDSHAKE"], NO_TLS),
    (
        &["connecting to a SSL listener", "in state APIVERSION_QUERY"],
        "the listener speaks TLS, as a rule: write `security.protocol: SSL`, or `SASL_SSL` with a user and password",
    ),
    (
        &["might require SASL", "verify that security.protocol", "in state UP"],
        "the listener wants SASL: write `security.protocol: SASL_SSL` (or `SASL_PLAINTEXT`) and `sasl.mechanism`",
    ),
    (&["Disconnected", "disconnected"], "the listener speaks another `security.protocol`"),
    (
        &["Connection refused"],
        "nothing listens there: see `bootstrap.servers`, and the broker's `advertised.listeners`",
    ),
    (&["Failed to resolve", "not known", "No address"], "the host's name is not known here: see `bootstrap.servers`"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_client_says_is_told_in_words() {
        for (why, words) in [
            ("ssl://b:9093/bootstrap: SSL handshake failed: certificate verify failed", "ssl.ca.location"),
            ("SSL handshake failed: certificate verify failed: certificate has expired", "renewed"),
            ("no token from https://issuer: SSL routines: certificate verify failed", "https.ca.location"),
            ("sasl_ssl://b:9093/bootstrap: SASL authentication error: Authentication failed", "sasl.username"),
            ("SASL PLAIN mechanism handshake failed: Broker: Unsupported SASL mechanism", "does not offer"),
            ("b:9093/bootstrap: Disconnected: connection closed (after 7ms in state APIVERSION_QUERY)", "speaks TLS"),
            ("ssl://b:9093/bootstrap: Disconnected: connection closed (after 1ms in state UP)", "wants SASL"),
            (
                "ssl://b:9092/bootstrap: Disconnected: SSL connection closed (after 0ms in state SSL_HANDSHAKE)",
                "no TLS",
            ),
            ("b:9092/bootstrap: Disconnected: verify that security.protocol is correctly configured", "wants SASL"),
            ("b:9/bootstrap: Connect to ipv4#127.0.0.1:9 failed: Connection refused", "nothing listens"),
            ("nowhere:9092/bootstrap: Failed to resolve 'nowhere:9092': Name or service not known", "not known here"),
        ] {
            assert!(advice(why).is_some_and(|advice| advice.contains(words)), "{why}: {:?}", advice(why));
        }
        assert_eq!(advice("something else"), None);
    }
}
