//! process.apparmorProfile, process.selinuxLabel and linux.mountLabel.
//!
//! Where the kernel lacks the module, a label is an error, as the spec wants it of what cannot be
//! done (config.md#valid-values) and as runc has it: a workload that was meant to be confined must
//! not run unconfined. crun ignores them then.

use std::os::fd::OwnedFd;
use std::path::Path;

use oci_spec::runtime::{Linux, Process};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::{Error, Failure, Step};

const APPARMOR: &str = "process.apparmorProfile";
const SELINUX: &str = "process.selinuxLabel";
const SELINUX_MAGIC: u64 = 0xf97c_ff8c;

/// What the workload's process is labelled with, checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    apparmor: Option<String>,
    selinux: Option<String>,
}

/// When a process gets its labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// By its next execve(2).
    Exec,
    /// At once: an engine executes nothing.
    Now,
}

impl Labels {
    /// Checks process.apparmorProfile and process.selinuxLabel.
    ///
    /// # Errors
    /// A label of a module that the kernel does not have, or has switched off.
    pub fn new(process: &Process) -> Result<Self, Error> {
        // "unconfined" is what a process is without AppArmor, too.
        let apparmor = given(process.apparmor_profile());
        let apparmor = apparmor.filter(|profile| profile != "unconfined" || apparmor_enabled());
        if apparmor.is_some() && !apparmor_enabled() {
            return Err(Error::config(APPARMOR, "apparmor is disabled or not supported"));
        }
        let selinux = enabled_selinux(SELINUX, process.selinux_label())?;
        Ok(Self { apparmor, selinux })
    }

    /// Whether there is anything to set, for which init needs a procfs.
    pub fn any(&self) -> bool {
        self.apparmor.is_some() || self.selinux.is_some()
    }

    /// In the process that will become the workload. `proc` is a procfs of this process's pid namespace, made by us: what is written must reach
    /// the kernel, not a file that an image has put there (CVE-2019-16884).
    ///
    /// # Errors
    /// The profile is not loaded, the label is unknown, or the policy refuses it.
    pub fn apply(&self, when: When, proc: Option<&OwnedFd>) -> Result<(), Error> {
        let (file, word) = match when {
            When::Exec => ("exec", "exec"),
            When::Now => ("current", "changeprofile"),
        };
        if let Some(profile) = &self.apparmor {
            let step = || format!("set {APPARMOR} {profile:?}");
            let text = format!("{word} {profile}");
            // Linux before 5.8 has one directory for all modules.
            match write(proc, &format!("attr/apparmor/{file}"), &text) {
                Err(Errno::NOENT) => write(proc, &format!("attr/{file}"), &text),
                written => written,
            }
            .map_err(|errno| {
                let hint = (errno == Errno::NOENT).then(|| "is the profile loaded?".to_owned());
                Failure { hint, ..Failure::new(step(), errno) }
            })?;
        }
        if let Some(label) = &self.selinux {
            write(proc, &format!("attr/{file}"), label)
                .step(|| format!("set {SELINUX} {label:?}"))?;
        }
        Ok(())
    }
}

/// linux.mountLabel, checked.
///
/// # Errors
/// SELinux is not there.
pub fn mount_label(linux: &Linux) -> Result<Option<String>, Error> {
    enabled_selinux("linux.mountLabel", linux.mount_label())
}

fn given(label: &Option<String>) -> Option<String> {
    label.clone().filter(|label| !label.is_empty())
}

fn enabled_selinux(field: &str, label: &Option<String>) -> Result<Option<String>, Error> {
    let label = given(label);
    if label.is_some() && !selinux_enabled() {
        // runc's words.
        let problem =
            "selinux label is specified in config, but selinux is disabled or not supported";
        return Err(Error::config(field, problem));
    }
    Ok(label)
}

fn apparmor_enabled() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|text| text.starts_with(b"Y"))
}

fn selinux_enabled() -> bool {
    rustix::fs::statfs("/sys/fs/selinux").is_ok_and(|stat| stat.f_type as u64 == SELINUX_MAGIC)
}

/// Writes a file of this process's directory in `proc`.
fn write(proc: Option<&OwnedFd>, file: &str, text: &str) -> Result<(), Errno> {
    let proc = proc.ok_or(Errno::BADF)?;
    let path = Path::new(&rustix::process::getpid().as_raw_nonzero().to_string()).join(file);
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let file = rustix::fs::openat2(proc, &path, flags, Mode::empty(), beneath)?;
    rustix::io::write(&file, text.as_bytes()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(fields: &str) -> Result<Labels, Error> {
        let json = format!(r#"{{"user":{{"uid":0,"gid":0}},"cwd":"/"{fields}}}"#);
        Labels::new(&serde_json::from_str(&json).unwrap())
    }

    #[test]
    fn empty_labels_are_none() {
        assert!(!labels("").unwrap().any());
        assert!(!labels(r#","apparmorProfile":"","selinuxLabel":"""#).unwrap().any());
    }

    #[test]
    fn what_the_kernel_lacks_is_named() {
        assert!(labels(r#","apparmorProfile":"unconfined""#).is_ok());
        let named = |fields: &str, field: &str, there: bool| match labels(fields) {
            Ok(labels) => assert!(there && labels.any()),
            Err(error) => assert!(!there && error.to_string().starts_with(field), "{error}"),
        };
        named(r#","apparmorProfile":"strict""#, APPARMOR, apparmor_enabled());
        named(r#","selinuxLabel":"a:b:c:s0""#, SELINUX, selinux_enabled());
    }
}
