//! What ties together all that is told of one fault: the line in the log, the status and the dead letter.

use std::fmt;

/// The digits, five bits each: Crockford's, without letters that read like a figure.
const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// How many of them: with sixty bits, a million faults share an id once in two million times.
const LENGTH: u32 = 12;

/// The id of a fault; shows as twelve letters and figures.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ErrorId(u64);

impl ErrorId {
    /// A new one: random, since it has to be another in every process of a fleet.
    pub fn random() -> Self {
        Self(fastrand::u64(..))
    }
}

impl fmt::Display for ErrorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digit = |place| char::from(DIGITS[(self.0 >> (place * 5) & 31) as usize]);
        (0..LENGTH).rev().try_for_each(|place| fmt::Write::write_char(f, digit(place)))
    }
}

impl fmt::Debug for ErrorId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for ErrorId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_twelve_letters_and_figures_and_no_two_are_alike() {
        assert_eq!(ErrorId(0).to_string(), "000000000000");
        assert_eq!(ErrorId(u64::MAX).to_string(), "zzzzzzzzzzzz");
        assert_eq!(ErrorId(33).to_string(), "000000000011");
        let ids: std::collections::HashSet<_> = (0..1_000).map(|_| ErrorId::random().to_string()).collect();
        assert_eq!(ids.len(), 1_000);
    }
}
