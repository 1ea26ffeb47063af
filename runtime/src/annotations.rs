//! crun's annotations, `run.oci.*`, as far as they are the runtime's: crun(1), "Extensions to OCI".
//!
//! Each is done or refused by name. One that is not known is passed over with a warning, as crun
//! does without one: configs are shared between versions. `run.oci.handler` is the `wasm` crate's.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use kiln_hooks::Context;
use oci_spec::runtime::LinuxSeccomp;
use rustix::fs::{Mode, OFlags};

use crate::error::{Error, Step};
use crate::listener::Listener;
use crate::plan::seccomp_filter;
use crate::seccomp::{self, Filter};

const PREFIX: &str = "run.oci.";
const HOOKS_STDOUT: &str = "run.oci.hooks.stdout";
const HOOKS_STDERR: &str = "run.oci.hooks.stderr";

/// The socket that gets init's pidfd; absolute.
pub const PIDFD_RECEIVER: &str = "run.oci.pidfd_receiver";

/// Those that loosen what the rest of a config says, or that reach a file or socket of the host's.
pub const UNSAFE: [&str; 6] = [
    HOOKS_STDERR,
    HOOKS_STDOUT,
    "run.oci.keep_original_groups",
    PIDFD_RECEIVER,
    "run.oci.seccomp.receiver",
    "run.oci.seccomp_bpf_data",
];

/// What the annotations of a container ask for.
#[derive(Debug, Default)]
pub struct Extensions {
    /// Leave the supplementary groups as the caller's are.
    pub keep_groups: bool,
    /// An agent for seccomp's listener, if the config names none.
    receiver: Option<PathBuf>,
    /// Stands in for linux.seccomp.
    filter: Option<Filter>,
    /// A name in linux.seccomp that libseccomp does not know is an error.
    strict_seccomp: bool,
}

impl Extensions {
    /// From all annotations of a config, or a state.
    ///
    /// # Errors
    /// One that is not supported, or has a value that makes no sense.
    pub fn new<'a>(
        annotations: impl IntoIterator<Item = (&'a String, &'a String)>,
    ) -> Result<Self, Error> {
        let mut own = Self::default();
        for (name, value) in annotations {
            if let Some(rest) = name.strip_prefix(PREFIX) {
                own.take(rest, value)
                    .map_err(|problem| Error::config(format!("annotation {name}"), problem))?;
            }
        }
        Ok(own)
    }

    fn take(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            // Another crate's; opened when hooks are run, and by the command line.
            "handler" | "hooks.stdout" | "hooks.stderr" => {}
            "keep_original_groups" => self.keep_groups = value != "0",
            "pidfd_receiver" => drop(absolute(value)?),
            "seccomp.receiver" => self.receiver = Some(absolute(value)?),
            "seccomp_bpf_data" => self.filter = Some(raw_filter(value)?),
            "seccomp_fail_unknown_syscall" => self.strict_seccomp = value != "0",
            // What is done without them.
            "mount_context_type" if value == "context" => {}
            "systemd.subgroup" if value.is_empty() => {}
            "seccomp.plugins" => {
                let hint = "run.oci.seccomp.receiver leads to an agent";
                return Err(format!("kiln loads no plugins (hint: {hint})"));
            }
            "timens_offset" => {
                return Err("is not supported (hint: use linux.timeOffsets)".to_owned());
            }
            "delegate-cgroup"
            | "mount_context_type"
            | "systemd.force_cgroup_v1"
            | "systemd.subgroup" => return Err(format!("{value:?} is not supported")),
            _ => log::warn!("annotation {PREFIX}{name}: not known, ignored"),
        }
        Ok(())
    }

    /// The filter for the container whose section is `section`, and the agent that it needs.
    ///
    /// # Errors
    /// As for [`seccomp_filter`].
    pub fn seccomp(
        &mut self,
        section: Option<&LinuxSeccomp>,
    ) -> Result<(Option<Filter>, Option<Listener>), Error> {
        if let Some(filter) = self.filter.take() {
            return Ok((Some(filter), None));
        }
        let Some(section) = section else { return Ok((None, None)) };
        if self.strict_seccomp {
            seccomp::refuse_unknown(section)?;
        }
        match &self.receiver {
            Some(path) if section.listener_path().is_none() => {
                let mut section = section.clone();
                section.set_listener_path(Some(path.clone()));
                seccomp_filter(&section)
            }
            _ => seccomp_filter(section),
        }
    }
}

fn absolute(value: &str) -> Result<PathBuf, String> {
    match Path::new(value).is_absolute() {
        true => Ok(value.into()),
        false => Err(format!("{value:?} is not an absolute path")),
    }
}

fn raw_filter(value: &str) -> Result<Filter, String> {
    let bytes = base64(value).ok_or("is not base64")?;
    Filter::from_bytes(&bytes).ok_or_else(|| format!("{} bytes are not a filter", bytes.len()))
}

/// RFC 4648, section 4; the padding may be missing.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=').bytes();
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut buffer, mut bits) = (0_u32, 0);
    for digit in digits {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        buffer = buffer << 6 & 0xffff | u32::from(value);
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.push((buffer >> bits & 0xff) as u8);
        }
    }
    // A lone digit is no byte.
    (bits < 6).then_some(bytes)
}

/// The files that hooks write to: `run.oci.hooks.stdout` and `run.oci.hooks.stderr`.
#[derive(Debug, Default)]
pub struct HookOutput {
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

impl HookOutput {
    /// Opens what the annotations name, for appending; relative to the bundle.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open<'a>(
        annotations: impl IntoIterator<Item = (&'a String, &'a String)>,
        bundle: &Path,
    ) -> Result<Self, Error> {
        let mut output = Self::default();
        for (name, value) in annotations {
            let place = match name.as_str() {
                HOOKS_STDOUT => &mut output.stdout,
                HOOKS_STDERR => &mut output.stderr,
                _ => continue,
            };
            let append = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE;
            let flags = append | OFlags::NOCTTY | OFlags::CLOEXEC;
            let file = rustix::fs::open(bundle.join(value), flags, Mode::RUSR | Mode::WUSR);
            *place = Some(file.step(|| format!("annotation {name}: open {value}"))?);
        }
        Ok(output)
    }

    /// What is open of them.
    pub fn files(&self) -> [Option<BorrowedFd<'_>>; 2] {
        [&self.stdout, &self.stderr].map(|file| file.as_ref().map(AsFd::as_fd))
    }

    /// What hooks are given that read `state_json` and end when `end` becomes readable.
    pub fn context<'a>(&'a self, state_json: &'a [u8], end: Option<BorrowedFd<'a>>) -> Context<'a> {
        let [stdout, stderr] = self.files();
        Context { stdout, stderr, end, ..Context::new(state_json) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extensions(name: &str, value: &str) -> Result<Extensions, String> {
        let annotations = [(format!("run.oci.{name}"), value.to_owned())];
        Extensions::new(annotations.iter().map(|(name, value)| (name, value)))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn each_is_done_or_refused_by_name() {
        assert!(extensions("keep_original_groups", "1").unwrap().keep_groups);
        assert!(!extensions("keep_original_groups", "0").unwrap().keep_groups);
        assert!(extensions("seccomp_fail_unknown_syscall", "").unwrap().strict_seccomp);
        for (name, value) in [
            ("handler", "x"),
            ("hooks.stdout", "out"),
            ("mount_context_type", "context"),
            ("systemd.subgroup", ""),
            ("not.known", "x"),
        ] {
            extensions(name, value).unwrap();
        }
        for (name, value) in [
            ("delegate-cgroup", "x"),
            ("mount_context_type", "fscontext"),
            ("pidfd_receiver", "relative"),
            ("seccomp.plugins", "/x.so"),
            ("seccomp.receiver", ""),
            ("seccomp_bpf_data", "?"),
            ("seccomp_bpf_data", ""),
            ("seccomp_bpf_data", "AAAA"),
            ("systemd.force_cgroup_v1", "/sys/fs/cgroup"),
            ("systemd.subgroup", "x"),
            ("timens_offset", "monotonic 1 0"),
        ] {
            let error = extensions(name, value).unwrap_err();
            assert!(error.starts_with(&format!("annotation run.oci.{name}: ")), "{error}");
        }
    }

    #[test]
    fn base64_is_rfc_4648s() {
        for (text, bytes) in [
            ("", &b""[..]),
            ("Zg==", b"f"),
            ("Zg", b"f"),
            ("Zm8=", b"fo"),
            ("Zm9v", b"foo"),
            ("Zm9vYmFy", b"foobar"),
            ("/+8=", b"\xff\xef"),
        ] {
            assert_eq!(base64(text).as_deref(), Some(bytes), "{text}");
        }
        for wrong in ["Z", "Zm9vY", "Zm 9v", "Zm9v\n", "Z=m9"] {
            assert_eq!(base64(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn a_raw_filter_is_eight_bytes_an_instruction() {
        // BPF_RET | BPF_K with SECCOMP_RET_ALLOW.
        let filter = raw_filter("BgAAAAAA/38=").unwrap();
        let [only] = filter.program() else { panic!("{filter:?}") };
        assert_eq!((only.code, only.k), (6, 0x7fff_0000));
        assert_eq!(filter.flags(), 0);
    }
}
