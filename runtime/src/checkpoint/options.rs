//! What the caller asks for, and CRIU's form of it (criu_opts in rpc.proto).

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::Spec;
use rustix::fs::{Mode, OFlags};

use super::criu::Version;
use super::wire::Message;
use crate::error::{Error, Step};

/// Names a container's own CRIU configuration file, as for runc.
const CONFIG_ANNOTATION: &str = "org.criu.config";
/// Where those may lie: whoever writes one has CRIU, as root, run programs (`action-script`).
const CONFIG_DIR: &str = "/etc/criu";
/// The first that is there is used for all other containers.
const CONFIGS: [&str; 2] = ["/etc/criu/kiln.conf", "/etc/criu/runc.conf"];

/// How CRIU treats cgroups: criu(8), --manage-cgroups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "criu(8) has the words")]
pub enum CgroupsMode {
    Ignore = 0,
    Soft = 3,
    Full = 4,
    Strict = 5,
    #[default]
    Default = 6,
}

/// What checkpoint and restore share.
#[derive(Clone, Debug, Default)]
pub struct Shared {
    /// Where CRIU's images are.
    pub image_path: PathBuf,
    /// Where CRIU's logs are written; beside the images without it.
    pub work_path: Option<PathBuf>,
    /// TCP connections are part of it.
    pub tcp_established: bool,
    /// Unix sockets with a peer outside are let go.
    pub ext_unix_sk: bool,
    /// The container may share its session and terminal with the caller.
    pub shell_job: bool,
    /// File locks are part of it.
    pub file_locks: bool,
    /// What happens to cgroups.
    pub cgroups_mode: CgroupsMode,
    /// Pages that are there twice are stored once, or thrown away as they are restored.
    pub auto_dedup: bool,
    /// Pages are fetched when they are needed: criu(8), lazy-pages.
    pub lazy_pages: bool,
}

/// The directories of an operation, open.
#[derive(Debug)]
pub struct Directories {
    /// CRIU's images.
    pub images: OwnedFd,
    work: Option<OwnedFd>,
    /// Where the log is.
    pub log_path: PathBuf,
}

impl Directories {
    /// Opens them, making (0700) what is missing; the images' only where `make_images`.
    ///
    /// # Errors
    /// Those of mkdir(2) and open(2).
    pub fn open(shared: &Shared, make_images: bool) -> Result<Self, Error> {
        let images = open(&shared.image_path, make_images)?;
        let work = shared.work_path.as_deref().map(|path| open(path, true)).transpose()?;
        let log_path = shared.work_path.as_ref().unwrap_or(&shared.image_path).clone();
        Ok(Self { images, work, log_path })
    }

    /// The one that the log is in.
    pub fn log(&self) -> &OwnedFd {
        self.work.as_ref().unwrap_or(&self.images)
    }
}

fn open(path: &Path, make: bool) -> Result<OwnedFd, Error> {
    if make {
        let mut builder = std::fs::DirBuilder::new();
        let made = builder.recursive(true).mode(0o700).create(path);
        made.step(|| format!("make {}", path.display()))?;
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).step(|| format!("open {}", path.display()))
}

impl Shared {
    /// The part of criu_opts that both operations have.
    ///
    /// # Errors
    /// The annotation for a CRIU configuration file names one that is not the administrator's.
    pub fn message(
        &self,
        spec: &Spec,
        directories: &Directories,
        log: &str,
        version: Version,
    ) -> Result<Message, Error> {
        let mut message = Message::default();
        message
            .int(1, directories.images.as_raw_fd())
            .flag(4, self.ext_unix_sk)
            .flag(5, self.tcp_established)
            .flag(7, self.shell_job)
            .flag(8, self.file_locks)
            .int(9, 4) // all that it knows
            .bytes(10, log.as_bytes())
            .flag(12, true) // notify us
            .flag(16, self.auto_dedup)
            .flag(24, true) // as older ones ask for the cgroups mode
            .number(34, self.cgroups_mode as u64)
            // As for runc, a network is made by CNI or a hook, not by CRIU.
            .number(38, libc::CLONE_NEWNET as u64)
            .flag(48, self.lazy_pages)
            .flag(50, true); // a terminal's master, which is outside
        if let Some(work) = &directories.work {
            message.int(17, work.as_raw_fd());
        }
        if let Some(file) = config_file(spec.annotations().iter().flatten())? {
            message.bytes(51, file.as_os_str().as_bytes());
        }
        if !in_path("iptables-restore") && version >= Version(3, 17, 0) {
            message.number(64, 2); // lock the network by nftables, to which CRIU is linked
        }
        Ok(message)
    }
}

/// A configuration file of CRIU's, whose settings win over ours.
fn config_file<'a>(
    annotations: impl Iterator<Item = (&'a String, &'a String)>,
) -> Result<Option<PathBuf>, Error> {
    let annotations: BTreeMap<_, _> = annotations.collect();
    match annotations.get(&CONFIG_ANNOTATION.to_owned()).map(|path| Path::new(path.as_str())) {
        None => Ok(CONFIGS.iter().map(PathBuf::from).find(|path| path.exists())),
        Some(path) if path.as_os_str().is_empty() => Ok(None),
        // An annotation comes from a pod, a file from anywhere: only what the administrator has
        // put there is root's to execute.
        Some(path) if path.parent() == Some(Path::new(CONFIG_DIR)) => Ok(Some(path.to_owned())),
        Some(path) => {
            let problem = format!("{} is not in {CONFIG_DIR}", path.display());
            Err(Error::config(format!("annotations.{CONFIG_ANNOTATION}"), problem))
        }
    }
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(annotation: &str) -> Result<Option<PathBuf>, Error> {
        let (name, value) = (CONFIG_ANNOTATION.to_owned(), annotation.to_owned());
        config_file([(&name, &value)].into_iter())
    }

    #[test]
    fn only_the_administrators_configuration_is_used() {
        assert_eq!(chosen("").unwrap(), None);
        assert_eq!(chosen("/etc/criu/web.conf").unwrap(), Some("/etc/criu/web.conf".into()));
        for path in ["/tmp/x.conf", "/etc/criu/../../tmp/x", "web.conf", "/etc/criu/a/b", "/"] {
            let error = chosen(path).unwrap_err().to_string();
            assert!(error.starts_with("annotations.org.criu.config: "), "{error}");
        }
    }

    #[test]
    fn directories_are_made_for_root_only() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let shared = Shared {
            image_path: dir.path().join("a/images"),
            work_path: Some(dir.path().join("work")),
            ..Shared::default()
        };
        assert!(Directories::open(&shared, false).is_err());
        let directories = Directories::open(&shared, true).unwrap();
        let mode = shared.image_path.metadata().unwrap().permissions().mode();
        assert_eq!((mode & 0o777, directories.log_path), (0o700, dir.path().join("work")));
    }
}
