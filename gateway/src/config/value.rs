//! Single values: what the text means, or what is wrong with it.

use std::path::Path;

use super::Dir;

/// The longest name: with a number behind it, it is a container's id and a cgroup's name.
const LONGEST_NAME: usize = 63;
/// What one cannot make a cgroup with.
const LEAST_MEMORY: u64 = 1 << 20;

/// That `name` is one that a path, a cgroup and an id can be made of.
pub fn check_name(name: &str) -> Result<(), &'static str> {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    match name.as_bytes() {
        [] => Err("is no name"),
        [first, ..] if !allowed(*first) => Err("does not begin with a-z or 0-9"),
        bytes if bytes.len() > LONGEST_NAME => Err("is longer than 63 bytes"),
        bytes if !bytes.iter().all(|&byte| allowed(byte) || matches!(byte, b'-' | b'_')) => {
            Err("has something else in it than a-z, 0-9, - and _")
        }
        _ => Ok(()),
    }
}

/// `128MiB`, `64M`, `1G`, `1048576`: the units are powers of 1024.
pub fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size such as 128MiB");
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let shift = match unit.trim_start() {
        "" | "B" => 0,
        "K" | "KB" | "KiB" => 10,
        "M" | "MB" | "MiB" => 20,
        "G" | "GB" | "GiB" => 30,
        _ => return Err(wrong()),
    };
    let bytes = number.checked_mul(1 << shift).filter(|&bytes| i64::try_from(bytes).is_ok());
    match bytes {
        None => Err(format!("{text:?} is more than there can be")),
        Some(bytes) if bytes < LEAST_MEMORY => Err(format!("{text:?} is less than 1MiB")),
        Some(bytes) => Ok(bytes),
    }
}

/// CPUs, as a fraction.
pub fn cpu_milli(cpus: f64) -> Result<u32, String> {
    match cpus {
        0.01..=4096.0 => Ok((cpus * 1000.0) as u32),
        _ => Err(format!("{cpus} is not between 0.01 and 4096 CPUs")),
    }
}

/// `HOST:GUEST`, and `:ro` or `:rw` behind it.
pub fn dir(text: &str, base: &Path) -> Result<Dir, String> {
    let wrong = |problem: &str| format!("{text:?}: {problem}, it is HOST:GUEST or HOST:GUEST:ro");
    let mut parts = text.split(':');
    let (Some(host), Some(guest)) = (parts.next(), parts.next()) else {
        return Err(wrong("has no colon"));
    };
    let read_only = match (parts.next(), parts.next()) {
        (None, _) | (Some("rw"), None) => false,
        (Some("ro"), None) => true,
        _ => return Err(wrong("ends in something else than ro or rw")),
    };
    if host.is_empty() || text.contains('\0') {
        return Err(wrong("has no directory of the host's"));
    }
    let odd = |part: &str| matches!(part, ".." | ".");
    match guest.strip_prefix('/') {
        None => Err(wrong("the path in the container is not absolute")),
        Some("") => Err(wrong("the root is the module's")),
        Some(rest) if rest.split('/').any(odd) => Err(wrong("has . or .. in it")),
        Some(_) => Ok(Dir { host: base.join(host), guest: guest.to_owned(), read_only }),
    }
}

/// `UID` or `UID:GID`.
pub fn user(text: &str) -> Result<(u32, u32), String> {
    let number = |text: &str| text.parse::<u32>().ok().filter(|&id| id != u32::MAX);
    let ids = match text.split_once(':') {
        None => number(text).map(|id| (id, id)),
        Some((uid, gid)) => number(uid).zip(number(gid)),
    };
    ids.ok_or_else(|| format!("{text:?} is not UID or UID:GID, in numbers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(bytes("128MiB"), Ok(128 << 20));
        assert_eq!(bytes("64M"), Ok(64 << 20));
        assert_eq!(bytes("1048576"), Ok(1 << 20));
        for wrong in ["", "M", "-1M", "1T", "1.5G", "99999999999999999999", "9999999999G", "1K"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn names_are_parts_of_paths() {
        for name in ["a", "sort", "0-9_x"] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        for name in ["", "-a", "A", "a/b", "..", "a.b", "a b", "\u{e4}", &"a".repeat(64)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn directories() {
        let base = Path::new("/etc/kiln");
        let parsed = dir("data:/data:ro", base).unwrap();
        assert_eq!((parsed.host.to_str(), parsed.read_only), (Some("/etc/kiln/data"), true));
        assert!(!dir("/srv:/data", base).unwrap().read_only);
        for wrong in
            ["", "/srv", ":/a", "/srv:a", "/srv:/", "/srv:/../a", "/srv:/a:rx", "a:/b:ro:x"]
        {
            assert!(dir(wrong, base).is_err(), "{wrong}");
        }
    }

    #[test]
    fn users_and_cpus() {
        assert_eq!(user("7"), Ok((7, 7)));
        assert_eq!(user("7:8"), Ok((7, 8)));
        assert!(user("root").is_err() && user("4294967295").is_err() && user("1:").is_err());
        assert_eq!(cpu_milli(0.5), Ok(500));
        assert!(
            cpu_milli(0.0).is_err() && cpu_milli(f64::NAN).is_err() && cpu_milli(-1.0).is_err()
        );
    }
}
