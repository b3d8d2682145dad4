//! Records go where the Java client would send them: our hash against Kafka's own classes, over random keys.

use std::fmt::Write as _;

use millrace::policy::{murmur2, partition_for_key};

use crate::support::kafka::run_java;

const KEYS: usize = 5_000;

#[test]
fn random_keys_go_where_javas_own_partitioner_sends_them() {
    let seed = fastrand::u64(..);
    let mut random = fastrand::Rng::with_seed(seed);
    let cases: Vec<(Vec<u8>, i32)> = (0..KEYS)
        .map(|i| {
            // Every short length, where the hash has a branch for each remainder, and some long ones.
            let length = if i % 10 == 0 { random.usize(0..2_000) } else { i % 67 };
            (std::iter::repeat_with(|| random.u8(..)).take(length).collect(), random.i32(1..1_000))
        })
        .collect();
    let mut input = String::new();
    for (key, partitions) in &cases {
        for byte in key {
            write!(input, "{byte:02x}").expect("a string takes it");
        }
        writeln!(input, ",{partitions}").expect("a string takes it");
    }

    let answers = run_java("tests/it/support/JavaPartitions.java", &input);

    assert_eq!(answers.lines().count(), cases.len());
    for ((key, partitions), answer) in cases.iter().zip(answers.lines()) {
        let ours = format!("{},{}", murmur2(key), partition_for_key(key, *partitions));
        assert_eq!(ours, answer, "key {key:02x?}, {partitions} partitions, seed {seed}");
    }
}
