//! Which paths of requests are acceptable, and one spelling for each.
//!
//! A path that reads in two ways lets a request past a rule: the router compares it as it came, and
//! what is behind decodes it. So whatever could be read in two ways is refused with 400, and the rest
//! is normalized by RFC 3986, 6.2.2: `%7E` and `~`, `%2a` and `%2A` are the same path.
//!
//! Refused:
//! - what does not begin with `/`, or is not ASCII (RFC 3986, 2);
//! - the segments `.` and `..`, also as `%2e`: clients resolve them (RFC 3986, 5.2.4);
//! - `%2F`, `\` and `%5C`: a slash to some, a character to others;
//! - `%00`;
//! - `%` without two hexadecimal digits (2.1).
//!
//! `//` is kept: an empty segment is a segment (3.3), and `//a` is not `/a`. A route matches whole
//! segments of the normalized path, so `//admin` matches neither `/admin` nor anything below it,
//! and as no segment leads upwards, what has matched `/a/` stays below it.

use std::borrow::Cow;

/// The path could be read in two ways, or in none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the path is not acceptable")]
pub struct BadPath;

/// Says whether a request's path, without its query, is acceptable.
///
/// # Errors
/// It is not; the answer is 400.
pub fn check(path: &str) -> Result<(), BadPath> {
    normalize(path).map(drop)
}

/// One spelling of the path: percent-encoding where it is needed, in capitals (RFC 3986, 6.2.2.1 and
/// 6.2.2.2). Two paths are the same resource if this is the same.
///
/// # Errors
/// It is not acceptable; the answer is 400.
pub fn normalize(path: &str) -> Result<Cow<'_, str>, BadPath> {
    if !path.starts_with('/') || path.contains('\\') || !path.is_ascii() {
        return Err(BadPath);
    }
    let path = match path.contains('%') {
        true => decode_unreserved(path).ok_or(BadPath)?,
        false => Cow::Borrowed(path),
    };
    // Whether there is a dot after a slash is soon seen, and seldom so.
    if path.contains("/.") && path.split('/').any(|segment| matches!(segment, "." | "..")) {
        return Err(BadPath);
    }
    Ok(path)
}

fn decode_unreserved(path: &str) -> Option<Cow<'_, str>> {
    let mut parts = path.split('%');
    let mut normal = parts.next()?.to_owned();
    for part in parts {
        let digits = part.get(..2).filter(|digits| is_hexadecimal(digits))?;
        match u8::from_str_radix(digits, 16).ok()? {
            0 | b'/' | b'\\' => return None,
            byte @ (b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~') => {
                normal.push(char::from(byte));
            }
            _ => {
                normal.push('%');
                normal.push_str(&digits.to_ascii_uppercase());
            }
        }
        normal.push_str(part.get(2..)?);
    }
    // As it was, without a copy to keep.
    Some(if normal == path { Cow::Borrowed(path) } else { Cow::Owned(normal) })
}

/// `from_str_radix` takes a sign.
fn is_hexadecimal(digits: &str) -> bool {
    digits.bytes().all(|digit| digit.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_reads_in_two_ways() {
        for path in [
            "",
            "a",
            "*",
            "/..",
            "/a/../b",
            "/a/..",
            "/.",
            "/./a",
            "/%2e%2e/a",
            "/%2E%2e",
            "/.%2e",
            "/%2e",
            "/a%00",
            "/a%2fb",
            "/a%2Fb",
            "/a\\b",
            "/a%5cb",
            "/a%5Cb",
            "/%",
            "/%2",
            "/%zz",
            "/%+1",
            "/%%34",
            "/%2ä",
            "/ä",
        ] {
            assert_eq!(normalize(path), Err(BadPath), "{path}");
        }
    }

    #[test]
    fn gives_one_spelling() {
        for (path, normal) in [
            ("/", "/"),
            ("//a//b", "//a//b"),
            ("/a/..b/c../...", "/a/..b/c../..."),
            ("/.hidden", "/.hidden"),
            ("/%61dmin%7e", "/admin~"),
            ("/a%20b%3f%c3%a4", "/a%20b%3F%C3%A4"),
            ("/a%252e", "/a%252e"),
            ("/..;/a", "/..;/a"),
        ] {
            assert_eq!(normalize(path).as_deref(), Ok(normal), "{path}");
            assert_eq!(normalize(normal).as_deref(), Ok(normal), "twice: {path}");
        }
        assert!(matches!(normalize("/a%20b"), Ok(Cow::Borrowed(_))));
    }
}
