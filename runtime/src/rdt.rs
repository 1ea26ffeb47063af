//! linux.intelRdt: a share of the last-level cache and of the memory bandwidth, through resctrl.
//!
//! A container has a control group below the mounted resctrl filesystem: one of its own, named
//! after it and removed with it, or the one that `closID` names, which others may share and which
//! stays. With `enableMonitoring` it has a monitoring group below that one, too. The runtime puts
//! init there while it waits; what init forks is born there.
//!
//! `enableCMT` and `enableMBM`, deprecated, change nothing: what the hardware counts is there
//! without them.
//!
//! Follows runtime-spec v1.3, config-linux.md#intelrdt, and Documentation/filesystems/resctrl.rst.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use oci_spec::runtime::LinuxIntelRdt;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Failure, Step};

const FIELD: &str = "linux.intelRdt";

/// What is asked for, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    root: PathBuf,
    /// linux.intelRdt.closID; `/` is the root group.
    clos: Option<String>,
    /// l3CacheSchema and memBwSchema: what an existing group must have already.
    compared: Vec<String>,
    /// schemata: written last, to whichever group.
    written: Vec<String>,
    monitoring: bool,
}

/// The groups of one container, for its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Groups {
    /// The control group, and the monitoring group if there is one.
    joined: Vec<PathBuf>,
    /// What goes with the container, in this order.
    removed: Vec<PathBuf>,
}

impl Plan {
    /// Checks the section, and that the host has resctrl.
    ///
    /// # Errors
    /// A field that cannot be, or no resctrl filesystem, or one that lacks what is asked for.
    pub fn new(rdt: &LinuxIntelRdt) -> Result<Self, Error> {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let mounted = mounts.lines().find_map(|line| {
            let mut words = line.split(' ').skip(1);
            let (path, fstype) = (words.next()?, words.next()?);
            (fstype == "resctrl").then(|| PathBuf::from(path))
        });
        let root = mounted.ok_or_else(|| {
            Error::config(FIELD, "no resctrl filesystem is mounted: it needs Intel RDT or AMD QoS")
        })?;
        Self::in_root(root, rdt)
    }

    fn in_root(root: PathBuf, rdt: &LinuxIntelRdt) -> Result<Self, Error> {
        let field = |name: &str| format!("{FIELD}.{name}");
        let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let clos = given(rdt.clos_id());
        if let Some(name) = clos.as_deref().filter(|name| *name != "/")
            && (name.contains('/') || is_taken(name))
        {
            return Err(Error::config(field("closID"), format!("{name:?} cannot be a group")));
        }
        let bandwidth = given(rdt.mem_bw_schema());
        if let Some(schema) = &bandwidth
            && (!schema.starts_with("MB:") || schema.contains('\n'))
        {
            let problem = format!("{schema:?} is not one line that starts with MB:");
            return Err(Error::config(field("memBwSchema"), problem));
        }
        let cache = given(rdt.l3_cache_schema()).unwrap_or_default();
        let cache = cache.lines().filter(|line| !line.trim().is_empty());
        // "If l3CacheSchema contains a line beginning with MB:, the value written [...] MUST be
        // the non-MB: line(s) from l3CacheSchema and the line from memBWSchema."
        let cache = cache.filter(|line| bandwidth.is_none() || !line.starts_with("MB:"));
        let compared = cache.map(str::to_owned).chain(bandwidth.clone()).collect();
        let monitoring = *rdt.enable_monitoring() == Some(true);
        if monitoring && !root.join("info/L3_MON").is_dir() {
            let problem = "this machine's resctrl has no monitoring (info/L3_MON)";
            return Err(Error::config(field("enableMonitoring"), problem));
        }
        let written = rdt.schemata().clone().unwrap_or_default();
        Ok(Self { root, clos, compared, written, monitoring })
    }

    /// The groups that the container `id` will be in.
    pub fn groups(&self, id: &str) -> Groups {
        let control = match self.clos.as_deref() {
            Some("/") => self.root.clone(),
            Some(name) => self.root.join(name),
            None => self.root.join(id),
        };
        let monitoring = self.monitoring.then(|| control.join("mon_groups").join(id));
        // A group that the config names is somebody else's: others may be in it.
        let own = self.clos.is_none().then(|| control.clone());
        Groups {
            removed: monitoring.iter().cloned().chain(own).collect(),
            joined: std::iter::once(control).chain(monitoring).collect(),
        }
    }

    /// Makes the groups with their limits; adds to `made` what was not there, which is to be
    /// removed (last first) if the container cannot be created.
    ///
    /// # Errors
    /// The group has other limits, or is not there and none are given; or the kernel refuses.
    pub fn make(&self, groups: &Groups, made: &mut Vec<PathBuf>) -> Result<(), Error> {
        let Some((control, monitoring)) = groups.joined.split_first() else { return Ok(()) };
        let step = |path: &Path| format!("{FIELD}: make {}", path.display());
        let limited = !self.compared.is_empty() || !self.written.is_empty();
        match control.is_dir() {
            true if self.clos.is_none() => {
                return Err(Errno::EXIST).step(|| step(control));
            }
            true => compare(control, &self.compared)?,
            false if self.clos.is_some() && !limited => {
                let problem = format!("{} does not exist", control.display());
                return Err(Error::config(format!("{FIELD}.closID"), problem));
            }
            false => {
                std::fs::create_dir(control)
                    .map_err(|error| self.full(error))
                    .step(|| step(control))?;
                made.push(control.clone());
                self.write(control, &self.compared)?;
            }
        }
        self.write(control, &self.written)?;
        for group in monitoring {
            std::fs::create_dir(group).step(|| step(group))?;
            made.push(group.clone());
        }
        Ok(())
    }

    /// A kernel that has no group left says ENOSPC.
    fn full(&self, error: std::io::Error) -> std::io::Error {
        match error.kind() {
            ErrorKind::StorageFull => std::io::Error::other("no group is left (num_closids)"),
            _ => error,
        }
    }

    /// One write for all lines, as runc does it: those of one group become valid together.
    fn write(&self, group: &Path, lines: &[String]) -> Result<(), Error> {
        if lines.is_empty() {
            return Ok(());
        }
        let path = group.join("schemata");
        write(&path, &(lines.join("\n") + "\n")).map_err(|failure| {
            // What the kernel has against it, for the last command alone.
            let status = std::fs::read_to_string(self.root.join("info/last_cmd_status"));
            let status = status.ok().map(|text| text.trim().to_owned());
            Failure { reason: status.filter(|text| text != "ok"), ..failure }.into()
        })
    }
}

impl Groups {
    /// Puts a process of one thread there.
    ///
    /// # Errors
    /// The group has gone, or the kernel refuses.
    pub fn join(&self, pid: i32) -> Result<(), Error> {
        for group in &self.joined {
            write(&group.join("tasks"), &format!("{pid}\n"))?;
        }
        Ok(())
    }

    /// Gives the container's control group other limits, those of `update`: `cache` is
    /// l3CacheSchema, `bandwidth` memBwSchema. Others that are in the group get them, too.
    ///
    /// # Errors
    /// `bandwidth` does not start with `MB:`, or the kernel refuses; then nothing has changed.
    pub fn update(&self, cache: Option<&str>, bandwidth: Option<&str>) -> Result<(), Error> {
        let mut rdt = LinuxIntelRdt::default();
        rdt.set_l3_cache_schema(cache.map(str::to_owned));
        rdt.set_mem_bw_schema(bandwidth.map(str::to_owned));
        self.limit(&Plan::new(&rdt)?)
    }

    fn limit(&self, plan: &Plan) -> Result<(), Error> {
        self.joined.first().map_or(Ok(()), |control| plan.write(control, &plan.compared))
    }

    /// Removes what goes with the container.
    ///
    /// # Errors
    /// Those of rmdir(2); what has gone already is none.
    pub fn remove(&self) -> Result<(), Error> {
        self.removed.iter().try_for_each(|group| remove_group(group))
    }
}

/// Removes one group: rmdir(2), by which resctrl moves those in it to the group above.
///
/// # Errors
/// Those of rmdir(2); what has gone already is none.
pub fn remove_group(group: &Path) -> Result<(), Error> {
    match std::fs::remove_dir(group) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).step(|| format!("{FIELD}: remove {}", group.display()))
        }
        _ => Ok(()),
    }
}

/// Names that the root group has files of.
fn is_taken(name: &str) -> bool {
    matches!(name, "." | ".." | "info" | "mon_groups" | "mon_data" | "schemata" | "tasks" | "cpus")
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let failure = |error: std::io::Error| {
        let step = format!("{FIELD}: write {:?} to {}", text.trim_end(), path.display());
        Failure::new(step, Errno::from_io_error(&error).unwrap_or(Errno::IO))
    };
    let file =
        std::fs::OpenOptions::new().write(true).create(cfg!(test)).truncate(false).open(path);
    file.map_err(failure)?.write_all(text.as_bytes()).map_err(failure)
}

/// That a group which is there already has the limits that are asked for. What these do not
/// mention may be anything.
fn compare(group: &Path, lines: &[String]) -> Result<(), Error> {
    if lines.is_empty() {
        return Ok(());
    }
    let path = group.join("schemata");
    let has =
        std::fs::read_to_string(&path).step(|| format!("{FIELD}: read {}", path.display()))?;
    let (has, wanted) = (limits(has.lines()), limits(lines.iter().map(String::as_str)));
    match wanted.iter().find(|(key, value)| has.get(*key) != Some(value)) {
        None => Ok(()),
        Some(((resource, domain), _)) => {
            let problem =
                format!("{} exists with another limit for {resource}:{domain}", group.display());
            Err(Error::config(format!("{FIELD}.closID"), problem))
        }
    }
}

/// `L3:0=0ff;1=f` as (L3, 0) -> 255, (L3, 1) -> 15. Masks are hexadecimal, bandwidths decimal.
fn limits<'a>(
    lines: impl Iterator<Item = &'a str>,
) -> BTreeMap<(String, String), Result<u64, String>> {
    let mut limits = BTreeMap::new();
    for line in lines {
        let Some((resource, domains)) = line.trim().split_once(':') else { continue };
        let radix =
            if resource.starts_with("MB") || resource.starts_with("SMBA") { 10 } else { 16 };
        for limit in domains.split(';') {
            let Some((domain, value)) = limit.split_once('=') else { continue };
            let value = value.trim();
            let number = u64::from_str_radix(value.trim_start_matches("0x"), radix);
            let key = (resource.trim().to_owned(), domain.trim().to_owned());
            limits.insert(key, number.map_err(|_| value.to_owned()));
        }
    }
    limits
}

#[cfg(test)]
mod tests {
    use std::fs::{create_dir, create_dir_all, read_to_string, remove_file};

    use super::*;

    fn plan(root: &Path, json: &str) -> Result<Plan, Error> {
        Plan::in_root(root.to_owned(), &serde_json::from_str(json).unwrap())
    }

    fn problem(root: &Path, json: &str) -> String {
        plan(root, json).unwrap_err().to_string()
    }

    /// A folder that stands for resctrl's root.
    fn resctrl() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        create_dir_all(root.path().join("info/L3_MON")).unwrap();
        root
    }

    #[test]
    fn a_group_of_its_own_goes_with_the_container() {
        let root = resctrl();
        let json = r#"{"l3CacheSchema":"L3:0=f\nMB:0=10","memBwSchema":"MB:0=20;1=70"}"#;
        let plan = plan(root.path(), json).unwrap();
        let groups = plan.groups("web1");
        let mut made = Vec::new();
        plan.make(&groups, &mut made).unwrap();
        let group = root.path().join("web1");
        assert_eq!(made, std::slice::from_ref(&group));
        assert_eq!(read_to_string(group.join("schemata")).unwrap(), "L3:0=f\nMB:0=20;1=70\n");
        groups.join(4711).unwrap();
        assert_eq!(read_to_string(group.join("tasks")).unwrap(), "4711\n");
        assert!(plan.make(&groups, &mut made).unwrap_err().to_string().contains("file exists"));
        // resctrl's files go with their directory; these do not.
        remove_file(group.join("schemata")).unwrap();
        remove_file(group.join("tasks")).unwrap();
        groups.remove().unwrap();
        assert!(!group.exists());
        groups.remove().unwrap();
    }

    #[test]
    fn a_group_gets_other_limits() {
        let root = resctrl();
        let plan = |json: &str| plan(root.path(), json).unwrap();
        let groups = plan(r#"{"closID":"gold"}"#).groups("web1");
        let group = root.path().join("gold");
        create_dir(&group).unwrap();
        groups.limit(&plan(r#"{"l3CacheSchema":"L3:0=3","memBwSchema":"MB:0=20"}"#)).unwrap();
        assert_eq!(read_to_string(group.join("schemata")).unwrap(), "L3:0=3\nMB:0=20\n");
        std::fs::remove_dir_all(&group).unwrap();
        assert!(groups.limit(&plan(r#"{"memBwSchema":"MB:0=30"}"#)).is_err());
    }

    #[test]
    fn a_named_group_is_compared_and_stays() {
        let root = resctrl();
        let group = root.path().join("gold");
        let named =
            |rest: &str| plan(root.path(), &format!(r#"{{"closID":"gold"{rest}}}"#)).unwrap();
        let make = |plan: &Plan| plan.make(&plan.groups("web1"), &mut Vec::new());
        let missing = make(&named("")).unwrap_err().to_string();
        assert!(missing.starts_with("linux.intelRdt.closID: ") && missing.contains("not exist"));
        create_dir(&group).unwrap();
        std::fs::write(group.join("schemata"), "    L3:0=00f;1=7ff\n    MB:0= 20;1= 70\n").unwrap();
        make(&named("")).unwrap();
        make(&named(r#","l3CacheSchema":"L3:1=7ff","memBwSchema":"MB:0=20""#)).unwrap();
        let other = make(&named(r#","memBwSchema":"MB:0=30""#)).unwrap_err().to_string();
        assert!(other.contains("gold exists with another limit for MB:0"), "{other}");
        make(&named(r#","schemata":["L2:0=f","L3:0=3"]"#)).unwrap();
        let now = read_to_string(group.join("schemata")).unwrap();
        assert!(now.starts_with("L2:0=f\nL3:0=3\n"), "{now}");
        let groups = named("").groups("web1");
        groups.join(1).unwrap();
        groups.remove().unwrap();
        assert!(group.exists());
    }

    #[test]
    fn monitoring_has_a_group_of_the_containers() {
        let root = resctrl();
        create_dir_all(root.path().join("mon_groups")).unwrap();
        let plan = plan(root.path(), r#"{"closID":"/","enableMonitoring":true}"#).unwrap();
        let groups = plan.groups("web1");
        let mut made = Vec::new();
        plan.make(&groups, &mut made).unwrap();
        groups.join(7).unwrap();
        let group = root.path().join("mon_groups/web1");
        assert_eq!(made, std::slice::from_ref(&group));
        for tasks in [root.path().join("tasks"), group.join("tasks")] {
            assert_eq!(read_to_string(tasks).unwrap(), "7\n");
        }
        remove_file(group.join("tasks")).unwrap();
        groups.remove().unwrap();
        assert!(!group.exists() && root.path().exists());
    }

    #[test]
    fn wrong_fields_are_named() {
        let root = tempfile::tempdir().unwrap();
        for name in ["a/b", "..", "info"] {
            let said = problem(root.path(), &format!(r#"{{"closID":"{name}"}}"#));
            assert!(said.starts_with("linux.intelRdt.closID"), "{said}");
        }
        for schema in ["L3:0=f", "MB:0=1\\nL3:0=f"] {
            let said = problem(root.path(), &format!(r#"{{"memBwSchema":"{schema}"}}"#));
            assert!(said.starts_with("linux.intelRdt.memBwSchema"), "{said}");
        }
        let said = problem(root.path(), r#"{"enableMonitoring":true}"#);
        assert!(said.contains("no monitoring"), "{said}");
    }
}
