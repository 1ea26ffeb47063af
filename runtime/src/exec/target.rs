//! The container that a process is to be executed in.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use oci_spec::runtime::{Linux, Process as SpecProcess, Spec};
use rustix::io::Errno;

use crate::error::{Error, Step};
use crate::mounts::open_dir;
use crate::namespaces::{self, Membership};
use crate::process::Process;
use crate::state::{ContainerDir, State, Status};
use crate::sys;

/// A container that is there and may be entered.
#[derive(Debug)]
pub struct Target {
    pub(super) state: State,
    pub(super) config: Spec,
    /// Init, which is alive.
    pub(super) init: Process,
    pub(super) pidfd: OwnedFd,
}

impl Target {
    /// Looks at the container in `dir`, which may be created or running, and with `ignore_paused`
    /// paused. Closes `dir`: no directory of the host may be open in what is to be the container's.
    ///
    /// # Errors
    /// It is in another status.
    pub fn open(dir: ContainerDir, ignore_paused: bool) -> Result<Self, Error> {
        let (state, config) =
            dir.read_with_config()?.ok_or_else(|| Error::NotFound(dir.id().to_string()))?;
        let refused =
            |status| Error::Status { id: dir.id().to_string(), operation: "exec in", status };
        let Some(init) = state.init.clone() else {
            return Err(match dir.is_locked() {
                true => refused(Status::Creating),
                false => Error::ExecStopped,
            });
        };
        let Some((pidfd, is_program)) = init.open()? else {
            return Err(Error::ExecStopped);
        };
        // Until `create` or `run` is through, init is somewhere between the host and the container.
        if !is_program && is_held(&dir) {
            return Err(refused(Status::Creating));
        }
        let paths = state.cgroup.as_ref().filter(|_| !ignore_paused);
        if paths.map(kiln_cgroups::is_frozen).transpose()? == Some(true) {
            return Err(Error::ExecPaused);
        }
        Ok(Self { state, config, init, pidfd })
    }

    /// The container's init.
    pub(crate) fn init(&self) -> &Process {
        &self.init
    }

    /// The config as it was when the container was created.
    pub fn config(&self) -> &Spec {
        &self.config
    }

    /// The container's own process in the config.
    ///
    /// # Errors
    /// It has none, which `create` would not have let pass.
    pub fn process(&self) -> Result<&SpecProcess, Error> {
        self.config.process().as_ref().ok_or_else(|| Error::config("process", "is needed"))
    }

    pub(super) fn linux(&self) -> Linux {
        self.config.linux().clone().unwrap_or_default()
    }

    /// The container's root directory with all that is mounted in it now (O_PATH).
    ///
    /// # Errors
    /// Init has ended, or its root may not be looked at.
    pub fn root(&self) -> Result<OwnedFd, Error> {
        let path = format!("/proc/{}/root", self.init.pid);
        let root = open_dir(path.as_ref()).step(|| format!("open {path}"))?;
        self.check()?;
        Ok(root)
    }

    /// Whether what was just found by init's pid was init's: it is, if init still lives.
    pub(super) fn check(&self) -> Result<(), Error> {
        match sys::pidfd_send_signal(self.pidfd.as_fd(), 0) {
            Err(Errno::SRCH) => Err(Error::ExecStopped),
            sent => sent.step(|| "look at the container's init".to_owned()),
        }
    }

    /// The namespaces that init is in and this process is not.
    pub(super) fn membership(&self) -> Result<Membership, Error> {
        let linux = self.config.linux().as_ref();
        let listed = linux.and_then(|linux| linux.namespaces().as_deref()).unwrap_or_default();
        let membership = namespaces::membership(listed, self.init.pid)?;
        if membership.compared {
            self.check()?;
        }
        Ok(membership)
    }
}

/// Whether the container is locked for longer than an `update` or a `pause` takes. (The init of a
/// wasm container, or of a restored one, never executes anything; it cannot be told by that.)
fn is_held(dir: &ContainerDir) -> bool {
    const MOMENT: Duration = Duration::from_millis(300);
    let since = Instant::now();
    while dir.is_locked() {
        if since.elapsed() > MOMENT {
            return true;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    false
}
