//! The systemd driver: a container is a transient unit of systemd's, made and changed over D-Bus.
//!
//! Owns which unit a container is ([`Unit`]), starting it with the container's init in it
//! ([`Systemd`]), its properties, and stopping it. systemd makes the cgroup, puts init into it and
//! keeps what it knows as properties; everything else is written through cgroupfs, by the same
//! code as without systemd, for there is much that systemd has no property for. On v1 that is true
//! of whole hierarchies: systemd's own has the unit, and the others get a directory of the same
//! path.
//!
//! The client is our own (`systemd/connection`, `message`, `value`): the few calls that there are
//! need neither threads nor the megabyte of a general one.
//!
//! | file | subject |
//! |---|---|
//! | `systemd/name` | from `linux.cgroupsPath` to unit, slice and cgroup |
//! | `systemd/properties`, `devices` | from `linux.resources` to properties |
//! | `systemd/gvariant` | properties from annotations |
//! | `systemd/manager` | systemd's methods |
//! | `systemd/connection`, `message`, `value` | D-Bus |

mod connection;
mod devices;
mod gvariant;
mod manager;
mod message;
mod name;
mod properties;
mod value;

use std::path::Path;

use oci_spec::runtime::LinuxResources;
use rustix::fs::CWD;
use serde::{Deserialize, Serialize};

use self::connection::Address;
use self::manager::{Manager, Property, StartFailure};
use self::name::Name;
use self::properties::{Current, Kind};
use self::value::Value;
use crate::cgroup::Cgroup;
use crate::device_rules::Policy;
use crate::dir;
use crate::error::{Error, Hint};
use crate::paths::{self, Paths};

pub use self::gvariant::PREFIX as PROPERTY_PREFIX;

/// What the fuzz target calls.
#[cfg(fuzzing)]
pub(crate) mod fuzzing {
    use std::path::Path;

    use super::connection::Address;
    pub(crate) use super::message::{decode, length};
    use super::name::Name;
    use crate::error::Error;

    /// How many addresses the list has.
    pub fn addresses(list: &str) -> usize {
        Address::parse_list(list).len()
    }

    /// The cgroup of the unit that the path names.
    pub fn name(path: &Path) -> Result<Option<String>, Error> {
        Name::parse(Some(path), "id", "system.slice").map(|name| name.path())
    }
}

/// Whose systemd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Instance {
    /// The machine's.
    System,
    /// The calling user's own.
    User,
}

/// A container's unit: what its state keeps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unit {
    name: String,
    instance: Instance,
    /// Where the systemd that has it was reached.
    address: Address,
}

/// systemd, reached, and the unit that is to be started.
#[derive(Debug)]
pub struct Systemd {
    manager: Manager,
    name: Name,
    unit: Unit,
    paths: Paths,
    /// From annotations.
    more: Vec<Property>,
}

impl Systemd {
    /// Connects, and finds out where the unit of the container `id` will be; makes nothing.
    ///
    /// `cgroups_path` is `[slice]:[prefix]:[name]`: the unit `prefix-name.scope` in that slice
    /// (without one in `system.slice`, or the user's `user.slice`), or the slice `name` if it ends
    /// in `.slice`. Without a path it is `:kiln:ID`. Annotations `org.systemd.property.NAME` are
    /// further properties.
    ///
    /// # Errors
    ///
    /// [`Error::CgroupsPath`]; [`Error::Invalid`] for an annotation; [`Error::Systemd`] if there
    /// is no systemd to talk to; those of finding the cgroup hierarchies.
    pub fn connect<'a>(
        instance: Instance,
        cgroups_path: Option<&Path>,
        id: &str,
        annotations: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, Error> {
        let default_slice = match instance {
            Instance::System => "system.slice",
            Instance::User => "user.slice",
        };
        let name = Name::parse(cgroups_path, id, default_slice)?;
        let more = gvariant::properties(annotations)?;
        let (address, manager) = connect(instance, None)?;
        let below = name.path().unwrap_or_default();
        let paths = paths::of_unit(Path::new(&format!("{}/{below}", manager.control_group)))?;
        let unit = Unit { name: name.unit.clone(), instance, address };
        Ok(Self { manager, name, unit, paths, more })
    }

    /// The unit, for the container's state.
    pub fn unit(&self) -> &Unit {
        &self.unit
    }

    /// Whose systemd it is.
    pub fn instance(&self) -> Instance {
        self.unit.instance
    }

    /// Where its cgroups will be.
    pub fn paths(&self) -> &Paths {
        &self.paths
    }

    /// Starts the unit with process `pid` in it and with what systemd can keep of `resources`.
    /// Blocks until it is there, half a minute at most.
    ///
    /// # Errors
    ///
    /// [`Error::Systemd`], also if a unit of this name is there already (unless it is a failed
    /// one: that is taken away first); [`Error::Invalid`]. There is no unit of ours then.
    pub fn start(
        &mut self,
        pid: i32,
        description: &str,
        resources: &LinuxResources,
    ) -> Result<(), Error> {
        let properties = self.properties(pid, description, resources)?;
        let unit = &self.unit.name;
        self.manager.start(unit, properties).map_err(|failure| match failure {
            StartFailure::Taken => {
                let hint = Hint::new(format!("systemctl stop {unit}"));
                error(format!("start {unit}"), "a unit of this name exists".to_owned(), hint)
            }
            StartFailure::Other(reason) => error(format!("start {unit}"), reason, Hint::none()),
        })
    }

    /// After [`Self::start`]: opens the unit's cgroup in every hierarchy, making it where systemd
    /// does not (v1), and moves `pid` where systemd does not do that (into a slice).
    ///
    /// # Errors
    ///
    /// [`Error::Systemd`] if the unit is not where it should be, [`Error::Create`],
    /// [`Error::Attach`].
    pub fn adopt(&mut self, pid: i32) -> Result<Cgroup, Error> {
        let unit = &self.unit.name;
        let found = self.manager.control_group_of(unit);
        let found = found.map_err(|failure| {
            error(format!("find the cgroup of {unit}"), failure.to_string(), Hint::none())
        })?;
        if !self
            .paths
            .hierarchies()
            .iter()
            .any(|one| Path::new("/").join(one.path()) == Path::new(&found))
        {
            let reason = format!("it is {found:?}, which is not where it belongs");
            return Err(error(format!("find the cgroup of {unit}"), reason, Hint::none()));
        }
        let cgroup = Cgroup::adopt(&self.paths)?;
        if self.name.is_slice() {
            cgroup.attach(pid)?;
        }
        Ok(cgroup)
    }

    fn properties(
        &self,
        pid: i32,
        description: &str,
        resources: &LinuxResources,
    ) -> Result<Vec<Property>, Error> {
        let text = |text: &str| Value::Text(text.to_owned());
        let kind = self.kind();
        let mut list = vec![("Description".to_owned(), text(description))];
        let mut put = |name: &str, value| list.push((name.to_owned(), value));
        if self.name.is_slice() {
            put("Wants", Value::texts([&self.name.slice]));
        } else {
            put("Slice", text(&self.name.slice));
            // What the container makes of its cgroup is the container's: systemd keeps off.
            put("Delegate", Value::Bool(true));
            put("PIDs", Value::Array("u".to_owned(), vec![Value::Uint32(pid.cast_unsigned())]));
        }
        put("MemoryAccounting", Value::Bool(true));
        put("CPUAccounting", Value::Bool(true));
        put(if kind.v2 { "IOAccounting" } else { "BlockIOAccounting" }, Value::Bool(true));
        put("TasksAccounting", Value::Bool(true));
        // Nothing that shutdown orders units by: whoever made the container ends it.
        put("DefaultDependencies", Value::Bool(false));
        // A user's systemd may not filter devices.
        if self.unit.instance == Instance::System {
            let policy = Policy::new(resources.devices().as_deref().unwrap_or_default())?;
            let groups = dir::read_file(CWD, "/proc/devices").unwrap_or_default();
            list.extend(devices::properties(&policy, &groups));
        }
        // Without a limit of ours it would be systemd's default for all units.
        if resources.pids().is_none() {
            list.push(("TasksMax".to_owned(), Value::Uint64(u64::MAX)));
        }
        list.extend(properties::limits(resources, kind, Current::default())?);
        list.extend(self.more.iter().cloned());
        Ok(list)
    }

    fn kind(&self) -> Kind {
        Kind { v2: self.paths.is_v2(), version: self.manager.version }
    }
}

impl Unit {
    /// Its name, such as `cri-containerd-0a1b.scope`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Tells systemd of limits that [`Cgroup::update`] has changed, so that it keeps them when it
    /// is reloaded. The kernel comes first because it says no for good reasons only, and is the one
    /// who can say which field is wrong.
    ///
    /// # Errors
    ///
    /// [`Error::Systemd`]; the limits hold until systemd is reloaded.
    pub fn update(
        &self,
        paths: &Paths,
        cgroup: &Cgroup,
        resources: &LinuxResources,
    ) -> Result<(), Error> {
        let mut resources = resources.clone();
        // No change for Cgroup::update either.
        if resources.pids().as_ref().is_some_and(|limits| limits.limit() == 0) {
            resources.set_pids(None);
        }
        let (_, mut manager) = connect(self.instance, Some(&self.address))?;
        let kind = Kind { v2: paths.is_v2(), version: manager.version };
        let list = properties::limits(&resources, kind, Current::of(cgroup))?;
        if list.is_empty() {
            return Ok(());
        }
        manager.set(&self.name, list).map_err(|failure| {
            error(format!("change {}", self.name), failure.to_string(), Hint::none())
        })?;
        // systemd has written what it made of them, a quota of whole percents for example.
        resources.set_memory(None);
        cgroup.update(&resources)
    }

    /// Stops the unit and waits, half a minute at most; its cgroup goes with it. Processes that
    /// are still in it are ended (SIGTERM, and SIGKILL when the unit's time to stop is over). That
    /// it is gone is success.
    ///
    /// # Errors
    ///
    /// [`Error::Systemd`].
    pub fn stop(&self) -> Result<(), Error> {
        let (_, mut manager) = connect(self.instance, Some(&self.address))?;
        manager.stop(&self.name).map_err(|failure| {
            error(format!("stop {}", self.name), failure.to_string(), Hint::none())
        })
    }
}

/// Where a systemd may be reached, the first choice first.
fn addresses(instance: Instance) -> Vec<Address> {
    let list = |name: &str| {
        let text = std::env::var(name).ok().filter(|text| !text.is_empty())?;
        Some(Address::parse_list(&text))
    };
    match instance {
        Instance::System => list("DBUS_SYSTEM_BUS_ADDRESS").unwrap_or_else(|| {
            // systemd's own socket saves the way through the bus, and is there before the bus.
            vec!["/run/systemd/private".into(), "/run/dbus/system_bus_socket".into()]
        }),
        Instance::User => {
            let mut found = list("DBUS_SESSION_BUS_ADDRESS").unwrap_or_default();
            let dir = std::env::var("XDG_RUNTIME_DIR").ok().filter(|dir| !dir.is_empty());
            let uid = rustix::process::geteuid().as_raw();
            let dir = dir.unwrap_or_else(|| format!("/run/user/{uid}"));
            found.push(format!("{dir}/bus").as_str().into());
            found.push(format!("{dir}/systemd/private").as_str().into());
            found
        }
    }
}

fn connect(instance: Instance, known: Option<&Address>) -> Result<(Address, Manager), Error> {
    let mut reasons = Vec::new();
    let mut candidates = addresses(instance);
    if let Some(known) = known {
        candidates.retain(|address| address != known);
        candidates.insert(0, known.clone());
    }
    for address in candidates {
        match Manager::connect(&address) {
            Ok(manager) => return Ok((address, manager)),
            Err(failure) => reasons.push(format!("{address}: {failure}")),
        }
    }
    let (step, hint) = match instance {
        Instance::System => ("connect", "the systemd driver needs a machine that runs systemd"),
        Instance::User => ("connect as a user", "the systemd driver needs systemd --user"),
    };
    let hint = Hint::new(format!("{hint}; without it use the cgroupfs driver"));
    Err(error(step.to_owned(), reasons.join("; "), hint))
}

fn error(step: String, reason: String, hint: Hint) -> Error {
    Error::Systemd { step, reason, hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_systemd_the_error_says_what_was_tried() {
        let unit = Unit {
            name: "kiln-x.scope".into(),
            instance: Instance::System,
            address: "/nonexistent/bus".into(),
        };
        let json = serde_json::to_string(&unit).unwrap();
        assert_eq!(serde_json::from_str::<Unit>(&json).unwrap(), unit);
        // Where there is a systemd, it has no such unit.
        if let Err(error) = unit.stop() {
            let error = error.to_string();
            assert!(
                error.starts_with("systemd: connect: /nonexistent/bus: No such file"),
                "{error}"
            );
            assert!(error.contains("/run/systemd/private: "), "{error}");
            assert!(error.contains("(hint: the systemd driver needs"), "{error}");
        }
    }

    #[test]
    fn a_wrong_path_is_found_before_systemd_is_looked_for() {
        let path = Some(Path::new("/a/b"));
        let error = Systemd::connect(Instance::System, path, "x", []).unwrap_err();
        assert!(matches!(error, Error::CgroupsPath { .. }), "{error}");
        let wrong = [("org.systemd.property.TasksMax", "many")];
        let error = Systemd::connect(Instance::System, None, "x", wrong).unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error}");
    }
}
