//! Sizes and durations, as the YAML spells them: `64KiB`, `100ms`.

use std::time::Duration;

const SIZES: [(&str, u64); 7] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
];
const DURATIONS: [(&str, u64); 4] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)];

/// Reads a size in bytes, as `64KiB` or `16MB`.
///
/// # Errors
/// What to write instead.
pub fn parse_size(text: &str) -> Result<u64, String> {
    parse(text, &SIZES, ("KiB", "B")).map_err(|instead| {
        instead
            .unwrap_or_else(|| "write a number and a unit: `512B`, `64KiB`, `16MiB`, `1GiB`, `64kB` or `16MB`".into())
    })
}

/// Reads a duration, as `100ms` or `5m`.
///
/// # Errors
/// What to write instead.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    parse(text, &DURATIONS, ("s", "ms"))
        .map(Duration::from_millis)
        .map_err(|instead| instead.unwrap_or_else(|| "write a number and a unit: `100ms`, `30s`, `5m` or `1h`".into()))
}

/// `Err(Some(..))` where it can be guessed what was meant.
fn parse(text: &str, units: &[(&str, u64)], bare: (&str, &str)) -> Result<u64, Option<String>> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(None);
    }
    let number: u64 = number.parse().map_err(|_| None)?;
    if let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit) {
        return number.checked_mul(*factor).ok_or(None);
    }
    let meant = match unit.trim() {
        "" => return Err(Some(format!("give the unit, as in `{number}{}` or `{number}{}`", bare.0, bare.1))),
        other => units.iter().map(|(name, _)| *name).find(|name| {
            let name = name.to_ascii_lowercase();
            let other = other.to_ascii_lowercase();
            name == other || name.strip_suffix("ib") == Some(&other) || long_names(&name).contains(&other.as_str())
        }),
    };
    Err(meant.map(|unit| format!("write `{number}{unit}`")))
}

fn long_names(unit: &str) -> &'static [&'static str] {
    match unit {
        "ms" => &["msec", "millis", "milliseconds"],
        "s" => &["sec", "secs", "second", "seconds"],
        "m" => &["min", "mins", "minute", "minutes"],
        "h" => &["hour", "hours"],
        "b" => &["byte", "bytes"],
        _ => &[],
    }
}

/// A size in the largest unit that needs no fraction.
pub(super) fn show_size(bytes: u64) -> String {
    let binary = [("GiB", 1_u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match binary.into_iter().find(|(_, factor)| bytes > 0 && bytes.is_multiple_of(*factor)) {
        Some((unit, factor)) => format!("{}{unit}", bytes / factor),
        None => format!("{bytes}B"),
    }
}

/// A duration in the largest unit that needs no fraction.
pub(super) fn show_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    match [("h", 3_600_000), ("m", 60_000), ("s", 1_000)]
        .into_iter()
        .find(|(_, factor)| ms > 0 && ms.is_multiple_of(*factor))
    {
        Some((unit, factor)) => format!("{}{unit}", ms / factor),
        None => format!("{ms}ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_read_as_the_contract_spells_them() {
        for (text, bytes) in
            [("64KiB", 65_536), ("32MiB", 33_554_432), ("1GiB", 1 << 30), ("5kB", 5_000), ("7MB", 7_000_000), ("9B", 9)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for (text, ms) in [("100ms", 100), ("1s", 1_000), ("5m", 300_000), ("2h", 7_200_000), ("0s", 0)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn what_is_nearly_right_is_told_how_to_be_right() {
        for (text, instead) in [
            ("64", "give the unit, as in `64KiB` or `64B`"),
            ("64kib", "write `64KiB`"),
            ("64 KiB", "write `64KiB`"),
            ("64K", "write `64KiB`"),
            ("1gb", "write `1GB`"),
        ] {
            assert_eq!(parse_size(text), Err(instead.to_owned()), "{text}");
        }
        for (text, instead) in
            [("100", "give the unit, as in `100s` or `100ms`"), ("5 min", "write `5m`"), ("3 seconds", "write `3s`")]
        {
            assert_eq!(parse_duration(text), Err(instead.to_owned()), "{text}");
        }
        for text in ["", "x", "-1s", "1.5s", "99999999999999999999s", "18446744073709551615h"] {
            assert!(parse_duration(text).is_err(), "{text}");
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn they_show_as_they_are_written() {
        assert_eq!(show_size(65_536), "64KiB");
        assert_eq!(show_size(1_000), "1000B");
        assert_eq!(show_duration(Duration::from_millis(100)), "100ms");
        assert_eq!(show_duration(Duration::from_secs(300)), "5m");
    }
}
