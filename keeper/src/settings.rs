//! How a function is to be served: from the flags of `kiln serve`, or from a container's annotations.

use std::time::Duration;

use crate::size;

/// A function's settings.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settings {
    /// What requests and answers look like.
    pub protocol: Protocol,
    /// How many instances wait for a request.
    pub warm: usize,
    /// How many requests run at once.
    pub max: usize,
    /// How many requests wait for an instance.
    pub queue: usize,
    /// How long a request may take, from its arrival to the end of its answer.
    pub timeout: Duration,
    /// One instance serves this many requests, by calling [`Settings::handler`].
    pub reuse: Option<u32>,
    /// The function that is called for each request where instances are reused.
    pub handler: String,
    /// A guest's memory, in bytes.
    pub memory: u64,
    /// A guest's output to one request, in bytes. Of `cgi` only headers are bounded: the rest is
    /// streamed.
    pub output: usize,
    /// How many files a guest may have open.
    pub files: u64,
    /// How long requests may take that run when the server is told to end.
    pub grace: Duration,
    /// Where health, readiness and metrics are asked for, if anywhere.
    pub admin: Option<String>,
    /// Whether and how each request is logged.
    pub access_log: Option<AccessLog>,
}

/// What requests and answers look like.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Protocol {
    /// wasmkeeper's: arguments in, lines out, both in JSON.
    Keeper,
    /// The Common Gateway Interface, RFC 3875.
    Cgi,
}

/// The form of the access log.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum AccessLog {
    /// One JSON object a line.
    Json,
    /// A line for people.
    Text,
}

/// A setting that cannot be.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Invalid {
    /// No such setting.
    #[error("{0}: unknown (known: port, {known})", known = NAMES.join(", "))]
    Unknown(String),
    /// Not a value of this one.
    #[error("{name}: invalid value {value:?} ({expected})")]
    Value {
        /// The setting.
        name: String,
        /// What was given.
        value: String,
        /// What could be.
        expected: &'static str,
    },
}

/// All settings that [`Settings::set`] knows.
pub const NAMES: [&str; 13] = [
    "protocol",
    "warm",
    "max",
    "queue",
    "timeout",
    "reuse",
    "handler",
    "memory",
    "output",
    "files",
    "grace",
    "admin",
    "access-log",
];

impl Default for Settings {
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Settings {
            protocol: Protocol::Keeper,
            warm: processors,
            max: 16.max(processors),
            queue: 256,
            timeout: Duration::from_secs(30),
            reuse: None,
            handler: "handle".to_owned(),
            memory: 512 << 20,
            output: 16 << 20,
            files: 64,
            grace: Duration::from_secs(10),
            admin: None,
            access_log: None,
        }
    }
}

/// How often an instance is used where no number is given.
const REUSED: u32 = 10_000;

impl Settings {
    /// Changes the setting `name`, which is one of [`NAMES`].
    ///
    /// # Errors
    /// There is none of that name, or the value is none of it.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), Invalid> {
        let invalid =
            |expected| Invalid::Value { name: name.to_owned(), value: value.to_owned(), expected };
        let number = |least: u64| match value.parse::<u64>() {
            Ok(number) if number >= least && number <= 1 << 20 => Ok(number),
            _ => Err(invalid(if least == 0 { "a number from 0 on" } else { "a number from 1 on" })),
        };
        let duration = || match humantime::parse_duration(value) {
            Ok(duration) if !duration.is_zero() => Ok(duration),
            _ => Err(invalid("a duration, such as 30s or 500ms")),
        };
        let bytes = || size::parse(value).ok_or_else(|| invalid("a size, such as 64M"));
        match name {
            "protocol" => {
                self.protocol = match value {
                    "keeper" => Protocol::Keeper,
                    "cgi" => Protocol::Cgi,
                    _ => return Err(invalid("keeper, cgi")),
                }
            }
            "warm" => self.warm = number(0)? as usize,
            "max" => self.max = number(1)? as usize,
            "queue" => self.queue = number(0)? as usize,
            "timeout" => self.timeout = duration()?,
            "reuse" => {
                self.reuse = match value {
                    "true" => Some(REUSED),
                    "false" => None,
                    _ => {
                        Some(u32::try_from(number(1)?).map_err(|_| invalid("a number from 1 on"))?)
                    }
                }
            }
            "handler" => match value.is_empty() {
                true => return Err(invalid("the name of an exported function")),
                false => value.clone_into(&mut self.handler),
            },
            "memory" => self.memory = bytes()?,
            "output" => {
                self.output = usize::try_from(bytes()?).map_err(|_| invalid("a smaller size"))?;
            }
            "files" => self.files = number(1)?,
            "grace" => self.grace = duration()?,
            "admin" => self.admin = Some(value.to_owned()),
            "access-log" => {
                self.access_log = match value {
                    "json" => Some(AccessLog::Json),
                    "text" => Some(AccessLog::Text),
                    "off" => None,
                    _ => return Err(invalid("json, text, off")),
                }
            }
            _ => return Err(Invalid::Unknown(name.to_owned())),
        }
        // Never more ready than may run.
        self.warm = self.warm.min(self.max);
        Ok(())
    }

    /// The function that is called in an instance, and how often.
    pub fn uses(&self) -> u32 {
        self.reuse.unwrap_or(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_can_be_set() {
        let mut settings = Settings::default();
        for (name, value) in [
            ("protocol", "cgi"),
            ("max", "3"),
            ("warm", "9"),
            ("queue", "0"),
            ("timeout", "1m 30s"),
            ("reuse", "true"),
            ("handler", "serve"),
            ("memory", "1G"),
            ("output", "4096"),
            ("files", "5"),
            ("grace", "1s"),
            ("admin", "127.0.0.1:1"),
            ("access-log", "json"),
        ] {
            assert!(NAMES.contains(&name));
            settings.set(name, value).unwrap();
        }
        let expected = Settings {
            protocol: Protocol::Cgi,
            warm: 3,
            max: 3,
            queue: 0,
            timeout: Duration::from_secs(90),
            reuse: Some(REUSED),
            handler: "serve".to_owned(),
            memory: 1 << 30,
            output: 4096,
            files: 5,
            grace: Duration::from_secs(1),
            admin: Some("127.0.0.1:1".to_owned()),
            access_log: Some(AccessLog::Json),
        };
        assert_eq!(settings, expected);
    }

    #[test]
    fn what_cannot_be_is_named() {
        let mut settings = Settings::default();
        let mut error =
            |name: &str, value: &str| settings.set(name, value).unwrap_err().to_string();
        assert_eq!(error("max", "0"), "max: invalid value \"0\" (a number from 1 on)");
        assert_eq!(error("warm", "-1"), "warm: invalid value \"-1\" (a number from 0 on)");
        let long = error("timeout", "soon");
        assert_eq!(long, "timeout: invalid value \"soon\" (a duration, such as 30s or 500ms)");
        assert!(error("timeout", "0s").contains("duration"));
        assert!(error("memory", "lots").contains("64M"));
        assert!(error("protocol", "fastcgi").contains("keeper, cgi"));
        assert!(error("prot", "cgi").starts_with("prot: unknown (known: port, protocol"));
        assert_eq!(settings, Settings::default(), "nothing was changed");
    }
}
