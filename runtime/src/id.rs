//! Container ids.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

/// A container id that is safe as a file name: 1 to 1024 of `[A-Za-z0-9_+.-]`, not `.` or `..`.
///
/// The rule is runc's; the runtime-spec leaves the format to the runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerId(String);

impl ContainerId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ContainerId {
    type Err = Error;

    fn from_str(id: &str) -> Result<Self, Error> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_+-.".contains(c);
        let problem = if id.is_empty() {
            "must not be empty".to_owned()
        } else if id.len() > 1024 {
            "is longer than 1024 characters".to_owned()
        } else if id == "." || id == ".." {
            "is not a name".to_owned()
        } else if let Some(wrong) = id.chars().find(|&c| !allowed(c)) {
            // The words of runc and crun.
            let hint = "(hint: letters, digits and _ + - . are allowed)";
            let wrong = wrong.escape_default();
            format!("invalid id format: invalid character `{wrong}` in the ID {hint}")
        } else {
            return Ok(Self(id.to_owned()));
        };
        Err(Error::Id { id: id.chars().take(80).collect(), problem })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids() {
        for good in ["a", "web-1", "0_+.-", "a..b"] {
            assert_eq!(good.parse::<ContainerId>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "a/b", "../a", "a b", "ä", "a\0", &"x".repeat(1025)] {
            assert!(bad.parse::<ContainerId>().is_err(), "{bad:?}");
        }
    }
}
