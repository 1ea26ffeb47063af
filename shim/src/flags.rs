//! The command line, as containerd gives it: the flags of Go's shims (runtime-v2.md, Start).

use std::path::PathBuf;

use crate::error::Error;

/// What was asked for on the command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// Log at level debug.
    pub debug: bool,
    /// containerd's namespace.
    pub namespace: String,
    /// The container, which is also the pod's sandbox where the shim is started for one.
    pub id: String,
    /// containerd's gRPC socket.
    pub address: String,
    /// The bundle; the working directory if empty.
    pub bundle: PathBuf,
    /// Print the version.
    pub version: bool,
    /// Print what this runtime is, as a protobuf.
    pub info: bool,
    /// `start` or `delete`.
    pub action: String,
}

impl Flags {
    /// Reads Go's flags: `-name value`, `-name=value`, with one dash or two, up to the first word
    /// that is none. Words that only Go's shims know are passed over.
    ///
    /// # Errors
    /// A flag that does not exist, or has no value.
    pub fn parse(words: impl IntoIterator<Item = String>) -> Result<Self, Error> {
        let mut flags = Self::default();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let Some(flag) = word.strip_prefix('-') else {
                flags.action = word;
                break;
            };
            let flag = flag.strip_prefix('-').unwrap_or(flag);
            let (name, given) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            let switch = |given: &Option<String>| given.as_deref() != Some("false");
            match name {
                "debug" => flags.debug = switch(&given),
                "v" | "version" => flags.version = switch(&given),
                "info" => flags.info = switch(&given),
                "namespace" | "id" | "address" | "bundle" | "socket" | "publish-binary" => {
                    let value = given.or_else(|| words.next());
                    let value =
                        value.ok_or_else(|| Error::Flag(format!("-{name} has no value")))?;
                    match name {
                        "namespace" => flags.namespace = value,
                        "id" => flags.id = value,
                        "address" => flags.address = value,
                        "bundle" => flags.bundle = value.into(),
                        // Where the socket is, this shim decides; events go over ttrpc.
                        _ => {}
                    }
                }
                _ => return Err(Error::Flag(format!("-{name} does not exist"))),
            }
        }
        Ok(flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Flags, Error> {
        Flags::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn containerds_lines() {
        let flags = parse(
            "-namespace k8s.io -address /run/c.sock -publish-binary /usr/bin/containerd -id web start",
        );
        let flags = flags.unwrap();
        assert_eq!((flags.namespace.as_str(), flags.id.as_str()), ("k8s.io", "web"));
        assert_eq!((flags.action.as_str(), flags.debug), ("start", false));
        let flags = parse("--debug -id=web -bundle /b delete").unwrap();
        assert_eq!((flags.bundle, flags.debug), ("/b".into(), true));
        assert!(parse("-v").unwrap().version && parse("-info").unwrap().info);
        for bad in ["-id", "-what", "-namespace n -id"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
