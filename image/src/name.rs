//! What an image is called.

use std::fmt;

use regex_lite::Regex;

use crate::Error;

/// The longest name, without its tag, in bytes.
const MAX_LENGTH: usize = 255;

/// The full name of an image, such as `docker.io/library/hello:latest`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Name {
    repository: String,
    tag: String,
}

impl Name {
    /// Reads a name as docker and Kubernetes do: without a registry it is `docker.io`'s, in
    /// `library` unless it says otherwise; without a tag it is the latest. Follows
    /// github.com/distribution/reference, without digests: what is made now has none yet.
    ///
    /// # Errors
    /// [`Error::Name`].
    pub fn parse(name: &str) -> Result<Self, Error> {
        let bad = |why| Error::Name { name: name.to_owned(), why };
        if name.contains('@') {
            return Err(bad("a digest cannot be chosen"));
        }
        // A colon before a slash is a port's.
        let (path, tag) = match name.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') => (path, tag),
            _ => (name, "latest"),
        };
        let (domain, path) = match path.split_once('/') {
            Some((domain, path)) if is_domain(domain) => (domain, path.to_owned()),
            Some(_) => ("docker.io", path.to_owned()),
            None => ("docker.io", format!("library/{path}")),
        };
        let repository = format!("{domain}/{path}");
        if !matches(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", tag) {
            return Err(bad("its tag is not one (letters, digits, `_`, `.` and `-`)"));
        }
        if !matches(DOMAIN, domain) || !matches(PATH, &path) {
            return Err(bad("not an image's name, such as example.com/team/app:1.0"));
        }
        if repository.len() > MAX_LENGTH {
            return Err(bad("longer than 255 bytes"));
        }
        Ok(Name { repository, tag: tag.to_owned() })
    }

    /// Such as `latest`.
    pub fn tag(&self) -> &str {
        &self.tag
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.repository, self.tag)
    }
}

const DOMAIN: &str = r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?";
const PATH: &str =
    r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*";

/// Whether what comes before the first slash is a registry, and not a directory of docker.io's.
fn is_domain(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.chars().any(char::is_uppercase)
}

fn matches(pattern: &str, text: &str) -> bool {
    Regex::new(&format!("^(?:{pattern})$")).is_ok_and(|regex| regex.is_match(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_made_full() {
        for (name, full) in [
            ("hello", "docker.io/library/hello:latest"),
            ("hello:1.0", "docker.io/library/hello:1.0"),
            ("team/hello", "docker.io/team/hello:latest"),
            ("localhost/hello", "localhost/hello:latest"),
            ("localhost:5000/hello", "localhost:5000/hello:latest"),
            ("example.com/a/b__c/d-e.f:V_1.x-y", "example.com/a/b__c/d-e.f:V_1.x-y"),
            ("Registry/a", "Registry/a:latest"),
            ("[::1]:5000/a:b", "[::1]:5000/a:b"),
        ] {
            assert_eq!(Name::parse(name).unwrap().to_string(), full);
        }
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let long = "a".repeat(256);
        for name in [
            "",
            ":",
            "a:",
            "a:-",
            "A",
            "a b",
            "a//b",
            "/a",
            "a/",
            "a..b",
            "-a",
            "a_",
            "a___b",
            "é",
            "exa mple.com/a",
            "ex.com/A",
            "a.b:c/d",
            "a@sha256:00",
            "a\n",
            "../a",
            &long,
        ] {
            let error = Name::parse(name).unwrap_err().to_string();
            assert!(error.starts_with(&format!("image name {name:?}: ")), "{error}");
        }
        assert!(Name::parse(&format!("a:{}", "t".repeat(129))).is_err());
        assert!(Name::parse(&format!("a:{}", "t".repeat(128))).is_ok());
    }
}
