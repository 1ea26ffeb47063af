//! Sizes as people write them.

/// Bytes: a number, and K, M, G or T for powers of 1024, also as KiB or kb. None if it is none of
/// that or more than 64 bits hold.
pub fn parse(text: &str) -> Option<u64> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let power = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1024_u64.pow(power))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(parse("0"), Some(0));
        assert_eq!(parse("64M"), Some(64 << 20));
        assert_eq!(parse("2GiB"), Some(2 << 30));
        for bad in ["", "M", "1.5G", "-1", "1X", "1 M", "99999999999T"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
