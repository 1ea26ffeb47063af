//! `linux.seccomp.listenerPath`: the agent that answers for system calls with SCMP_ACT_NOTIFY.
//!
//! Owns the connection to the agent and what is said on it. The listener's descriptor comes from
//! init (`init/notify.rs`), over the channel, to whoever started the workload: `run`, `start` or
//! `exec`, which sends it on. So init needs nothing of the host's, and the agent hears of a
//! process in the words of the runtime's pid namespace.
//!
//! Follows runtime-spec v1.3, config-linux.md#containerprocessstate. runc talks to the agent at
//! `create` already; the filter of a container of ours is installed by `start`.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use oci_spec::runtime::LinuxSeccomp;
use rustix::fs::FileType;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Step};
use crate::features::OCI_VERSION_MAX;
use crate::mounts::open_dir;
use crate::state::{State, Status};

/// An agent that neither accepts nor reads for so long will not.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the agent listens, and what it is told besides the container's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    path: PathBuf,
    metadata: Option<String>,
}

/// A connection to the agent, for one message.
#[derive(Debug)]
pub struct Agent<'a> {
    listener: &'a Listener,
    socket: OwnedFd,
}

/// runtime-spec v1.3, config-linux.md#containerprocessstate.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ContainerProcessState<'a> {
    oci_version: &'a str,
    /// The descriptors' names, in their order.
    fds: [&'a str; 1],
    pid: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<&'a str>,
    state: ContainerState<'a>,
}

/// runtime.md#state, nothing more: agents may be strict.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ContainerState<'a> {
    oci_version: &'a str,
    id: &'a str,
    status: Status,
    pid: i32,
    bundle: &'a Path,
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    annotations: &'a std::collections::BTreeMap<String, String>,
}

impl Listener {
    /// From a section whose filter needs a listener. Looks whether a socket is there: a container
    /// that cannot be started shall not be created.
    ///
    /// # Errors
    /// No socket at linux.seccomp.listenerPath.
    pub fn new(seccomp: &LinuxSeccomp) -> Result<Self, Error> {
        let path = seccomp.listener_path().clone().unwrap_or_default();
        let metadata = seccomp.listener_metadata().clone().filter(|text| !text.is_empty());
        let listener = Self { path, metadata };
        let stat = rustix::fs::stat(&listener.path).step(|| listener.step("stat"))?;
        match FileType::from_raw_mode(stat.st_mode).is_socket() {
            true => Ok(listener),
            false => {
                let problem = format!("{} is not a socket", listener.path.display());
                Err(Error::config("linux.seccomp.listenerPath", problem))
            }
        }
    }

    /// Connects to the agent, before anything is started that would wait for it.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(&self) -> Result<Agent<'_>, Error> {
        let step = || self.step("connect to");
        let (family, kind) = (AddressFamily::UNIX, SocketType::STREAM);
        let socket =
            rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None).step(step)?;
        set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE)).step(step)?;
        match SocketAddrUnix::new(&self.path) {
            Ok(address) => rustix::net::connect(&socket, &address),
            // Too long for sun_path: by way of its directory.
            Err(Errno::NAMETOOLONG) => self.connect_long(&socket),
            Err(errno) => Err(errno),
        }
        .step(step)?;
        Ok(Agent { listener: self, socket })
    }

    fn connect_long(&self, socket: &OwnedFd) -> Result<(), Errno> {
        let name = self.path.file_name().ok_or(Errno::INVAL)?;
        let dir = open_dir(self.path.parent().unwrap_or(Path::new("/")))?;
        let path = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
        rustix::net::connect(socket, &SocketAddrUnix::new(path)?)
    }

    fn step(&self, what: &str) -> String {
        format!("linux.seccomp.listenerPath: {what} {}", self.path.display())
    }
}

impl Agent<'_> {
    /// Sends the listener's descriptor with the state of the container, which is in `status`, and
    /// of the process `pid` that is notified of; closes the connection.
    ///
    /// # Errors
    /// The agent has gone, or does not read.
    pub fn send(
        self,
        descriptor: &OwnedFd,
        state: &State,
        status: Status,
        pid: i32,
    ) -> Result<(), Error> {
        let step = || self.listener.step("send the seccomp listener to");
        let bytes = serde_json::to_vec(&self.listener.message(state, status, pid))
            .map_err(|_| Errno::INVAL)
            .step(step)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [descriptor.as_fd()];
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        let mut sent = 0;
        while sent < bytes.len() {
            let text = [IoSlice::new(&bytes[sent..])];
            // "If more than one sendmsg(2) is used, the file descriptors MUST be sent only in the
            // first call."
            match rustix::net::sendmsg(&self.socket, &text, &mut control, SendFlags::NOSIGNAL) {
                Err(Errno::INTR) => continue,
                count => sent += count.step(step)?,
            }
            control.clear();
        }
        Ok(())
    }
}

impl Listener {
    fn message<'a>(
        &'a self,
        state: &'a State,
        status: Status,
        pid: i32,
    ) -> ContainerProcessState<'a> {
        ContainerProcessState {
            oci_version: OCI_VERSION_MAX,
            fds: ["seccompFd"],
            pid,
            metadata: self.metadata.as_deref(),
            state: ContainerState {
                oci_version: &state.oci_version,
                id: &state.id,
                status,
                pid: state.init.as_ref().map_or(0, |init| init.pid),
                bundle: &state.bundle,
                annotations: &state.annotations,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn section(path: &Path) -> LinuxSeccomp {
        let text = format!(
            r#"{{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":{path:?},
                "listenerMetadata":"M=1"}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn what_is_no_agent_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent");
        let missing = Listener::new(&section(&path)).unwrap_err().to_string();
        assert!(missing.contains("listenerPath") && missing.contains("no such file"), "{missing}");
        std::fs::write(&path, "").unwrap();
        let file = Listener::new(&section(&path)).unwrap_err().to_string();
        assert!(file.ends_with("is not a socket"), "{file}");
        std::fs::remove_file(&path).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        let gone = Listener::new(&section(&path)).unwrap();
        assert!(gone.connect().unwrap_err().to_string().contains("connection refused"));
    }

    #[test]
    fn long_paths_are_reached() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("x".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let short = dir.path().join("agent");
        let socket = UnixListener::bind(&short).unwrap();
        std::fs::rename(&short, deep.join("agent")).unwrap();
        let listener = Listener::new(&section(&deep.join("agent"))).unwrap();
        let _agent = listener.connect().unwrap();
        socket.accept().unwrap();
    }
}
