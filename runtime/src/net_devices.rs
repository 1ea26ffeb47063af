//! linux.netDevices: devices of the runtime's network namespace that become the container's.
//!
//! The runtime moves them when init has made or joined the container's network namespace and
//! before any hook runs, whoever made the namespace. A device keeps its permanent addresses with
//! global scope, which the kernel takes from it, and is set up. Where the container is never
//! started, what was moved goes back; afterwards devices are left to the kernel, which returns
//! physical ones when the namespace ends: runtime-spec v1.3, config-linux.md#network-devices.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};

use oci_spec::runtime::Linux;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Failure, Step};
use crate::namespaces::Namespaces;
use crate::netlink::{Address, Socket};
use crate::state::State;

/// IFNAMSIZ, with its NUL.
const NAME_SIZE: usize = 16;

/// A device to be moved, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetDevice {
    /// In the runtime's namespace.
    host: String,
    /// In the container's.
    name: String,
}

/// Devices that have been moved, and how to return them.
#[derive(Debug)]
pub struct Moved {
    host: Socket,
    host_namespace: OwnedFd,
    container: Socket,
    container_namespace: OwnedFd,
    devices: Vec<Device>,
}

#[derive(Debug)]
struct Device {
    names: NetDevice,
    addresses: Vec<Address>,
}

/// Checks linux.netDevices, in the order of the names.
///
/// # Errors
/// No network namespace of the container's own, a name that cannot be one, one that is asked for
/// twice, a device that is not there.
pub fn plan(linux: &Linux, namespaces: &Namespaces) -> Result<Vec<NetDevice>, Error> {
    let mut plan = Vec::new();
    let mut names = HashSet::new();
    let Some(devices) = linux.net_devices().as_ref().filter(|devices| !devices.is_empty()) else {
        return Ok(plan);
    };
    if !namespaces.has(libc::CLONE_NEWNET) {
        let problem = "needs a network namespace in linux.namespaces";
        return Err(Error::config("linux.netDevices", problem));
    }
    let socket = Socket::open().step(|| "open a netlink socket".to_owned())?;
    for (host, device) in devices {
        let field = || format!("linux.netDevices.{host}");
        let name = device.name().clone().filter(|name| !name.is_empty());
        let name = name.unwrap_or_else(|| host.clone());
        for name in [host, &name] {
            if !valid(name) {
                return Err(Error::config(field(), format!("{name:?} is not a device's name")));
            }
        }
        if !names.insert(name.clone()) {
            return Err(Error::config(field(), format!("{name} is another device's name already")));
        }
        socket.index(host).step(field)?;
        plan.push(NetDevice { host: host.clone(), name });
    }
    plan.sort_unstable_by(|a, b| a.host.cmp(&b.host));
    Ok(plan)
}

/// What the kernel takes (dev_valid_name() in net/core/dev.c), but `%`, which it fills in.
fn valid(name: &str) -> bool {
    let bad = |c: char| c == '/' || c == ':' || c == '%' || c == '\0' || c.is_ascii_whitespace();
    (1..NAME_SIZE).contains(&name.len()) && name != "." && name != ".." && !name.contains(bad)
}

/// In the runtime: moves all devices to the network namespace of the process `pidfd`. This process
/// enters that namespace for a moment and is back when this returns.
///
/// # Errors
/// A device cannot be moved, or its name is taken; all are where they were then.
pub fn move_all(plan: &[NetDevice], pidfd: &OwnedFd) -> Result<Moved, Error> {
    let mut moved = Moved::open(pidfd)?;
    for device in plan {
        if let Err(error) = moved.take(device) {
            moved.give_back();
            return Err(error);
        }
    }
    Ok(moved)
}

/// In another process than the one that moved them, for a container that waits for `start`: what is
/// needed to return its devices, to this process's network namespace. None if it has none, or has
/// ended. This process enters the container's namespace for a moment.
///
/// # Errors
/// Those of setns(2) and of the sockets.
pub fn of_waiting(state: &State) -> Result<Option<Moved>, Error> {
    if state.net_devices.is_empty() {
        return Ok(None);
    }
    let Some(pidfd) = state.init.as_ref().map(|init| init.pidfd()).transpose()?.flatten() else {
        return Ok(None);
    };
    let mut moved = Moved::open(&pidfd)?;
    for names in &state.net_devices {
        // A hook may have given it another name, or taken it away.
        let Ok(index) = moved.container.index(&names.name) else { continue };
        let step = || format!("linux.netDevices.{}: read its addresses", names.host);
        let addresses = moved.container.addresses(index).step(step)?;
        moved.devices.push(Device { names: names.clone(), addresses });
    }
    Ok(Some(moved))
}

fn own_namespace() -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    rustix::fs::open("/proc/self/ns/net", flags, Mode::empty())
}

impl Moved {
    /// Nothing yet; knows both namespaces.
    fn open(pidfd: &OwnedFd) -> Result<Self, Error> {
        let step = || "open the container's network namespace".to_owned();
        let host_namespace = own_namespace().step(step)?;
        let host = Socket::open().step(step)?;
        rustix::thread::move_into_thread_name_spaces(pidfd.as_fd(), ThreadNameSpaceType::NETWORK)
            .step(step)?;
        // A socket belongs to the namespace that it was opened in: no other stay there is needed.
        let opened = own_namespace().and_then(|namespace| Ok((namespace, Socket::open()?)));
        let network = Some(LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(host_namespace.as_fd(), network)
            .step(|| "return to the network namespace".to_owned())?;
        let (container_namespace, container) = opened.step(step)?;
        Ok(Self { host, host_namespace, container, container_namespace, devices: Vec::new() })
    }

    fn take(&mut self, names: &NetDevice) -> Result<(), Error> {
        let NetDevice { host, name } = names;
        let step = || format!("linux.netDevices.{host}: move the device");
        if self.container.index(name).is_ok() {
            let problem = format!("the container has a device {name} already");
            return Err(Failure::because(step(), problem).into());
        }
        let index = self.host.index(host).step(step)?;
        let addresses = self.host.addresses(index).step(step)?;
        self.host.move_to(index, self.container_namespace.as_fd(), name).step(step)?;
        self.devices.push(Device { names: names.clone(), addresses });
        let Some(device) = self.devices.last() else { return Ok(()) };
        device
            .restore(&self.container, name)
            .step(|| format!("linux.netDevices.{host}: set up {name}"))
    }

    /// Moves all devices back to where they came from, for a container that was never started.
    pub fn give_back(&self) {
        for device in self.devices.iter().rev() {
            let NetDevice { host, name } = &device.names;
            let moved = self.container.index(name).and_then(|index| {
                self.container.move_to(index, self.host_namespace.as_fd(), host)?;
                device.restore(&self.host, host)
            });
            if let Err(errno) = moved {
                log::warn!("linux.netDevices.{host}: move the device back: {errno}");
            }
        }
    }
}

impl Device {
    /// Where it is now, as `name`: its addresses, and up.
    fn restore(&self, socket: &Socket, name: &str) -> Result<(), Errno> {
        let index = socket.index(name)?;
        for address in &self.addresses {
            match socket.add(index, address) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
        }
        socket.set_up(index, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::privilege::Privilege;

    fn problem(devices: &str, namespaces: &str) -> String {
        let text =
            format!(r#"{{"netDevices":{devices},"namespaces":[{{"type":"mount"}}{namespaces}]}}"#);
        let linux: Linux = serde_json::from_str(&text).unwrap();
        plan(&linux, &Namespaces::new(&linux, Privilege::Root).unwrap()).unwrap_err().to_string()
    }

    #[test]
    fn wrong_devices_are_named() {
        let net = r#",{"type":"network"}"#;
        assert!(problem(r#"{"lo":{}}"#, "").starts_with("linux.netDevices: needs a network"));
        for name in ["a/b", "a b", "..", "sixteen-bytes-it", "eth%d", "a:1"] {
            let said = problem(&format!(r#"{{"lo":{{"name":"{name}"}}}}"#), net);
            assert!(said.starts_with("linux.netDevices.lo: ") && said.contains(name), "{said}");
        }
        assert!(problem(r#"{"no-such":{}}"#, net).contains("linux.netDevices.no-such: no such"));
        let twice = problem(r#"{"lo":{"name":"x"},"lo0":{"name":"x"}}"#, net);
        assert!(twice.starts_with("linux.netDevices.lo"), "{twice}");
    }
}
