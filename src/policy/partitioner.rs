//! `partition`: which partition of a destination a record goes to.

/// How a destination's partition is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Partitioning {
    /// The partition that the Java client would choose for the key; null keys spread.
    #[default]
    Key,
    /// The source's partition number.
    Source,
    /// One after the other.
    RoundRobin,
    /// What the plugin sets, else by key.
    Plugin,
}

impl Partitioning {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Key, Self::Source, Self::RoundRobin, Self::Plugin];

    /// As the YAML spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Source => "source",
            Self::RoundRobin => "round_robin",
            Self::Plugin => "plugin",
        }
    }
}

/// The partition of `partitions` (at least 1) that the Java client chooses for a key that is not null
/// (`BuiltInPartitioner.partitionForKey`: murmur2 with the sign bit cleared, modulo the count).
pub fn partition_for_key(key: &[u8], partitions: i32) -> i32 {
    (murmur2(key) & 0x7fff_ffff) % partitions
}

/// The hash of Kafka's Java client (`org.apache.kafka.common.utils.Utils.murmur2`, 32 bit, seed 0x9747b28c).
pub fn murmur2(data: &[u8]) -> i32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ data.len() as u32;
    let (words, rest) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !rest.is_empty() {
        for (place, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * place);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    (hash ^ (hash >> 15)) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Java kafka-clients 4.1.0: key in hex, murmur2, partition of 1, 3, 4, 12 and 50.
    const JAVA: &str = "\
         275646681 0 0 1 9 31
61 -1563381124 0 1 0 4 24
6162 316155434 0 2 2 2 34
616263 479470107 0 0 3 3 7
61626364 -1323649548 0 2 0 8 0
6b6579 -1079937367 0 1 1 1 31
6f726465722d3432 501153024 0 0 0 0 24
757365723a31303031 -1961883735 0 2 1 5 13
6b61666b61 -798503068 0 1 0 4 30
54686520717569636b2062726f776e20666f78206a756d7073206f76657220746865206c617a7920646f67 495243318 0 0 2 6 18
d0bad0bbd18ed187 2122343024 0 2 0 8 24
e697a5e69cace8aa9e 1431860170 0 1 2 10 20
f09f9880 131881617 0 0 1 9 17
6e756c6c -75681477 0 2 3 11 21
00 375494588 0 2 0 8 38
fffe000180 -868190774 0 0 2 6 24
0000011f71fb04cb 154523340 0 0 0 0 40
0000002a 1606757304 0 0 0 0 4";

    #[test]
    fn keys_go_to_the_partitions_that_javas_client_chooses() {
        for line in JAVA.lines() {
            let fields: Vec<_> = line.split(' ').filter(|f| !f.is_empty()).collect();
            let (hex, numbers) = if fields.len() == 7 { (fields[0], &fields[1..]) } else { ("", &fields[..]) };
            let key: Vec<u8> =
                (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect();
            let numbers: Vec<i32> = numbers.iter().map(|n| n.parse().unwrap()).collect();
            assert_eq!(murmur2(&key), numbers[0], "{line}");
            for (count, expected) in [1, 3, 4, 12, 50].into_iter().zip(&numbers[1..]) {
                assert_eq!(partition_for_key(&key, count), *expected, "{line}, {count} partitions");
            }
        }
    }
}
