//! `linux.resources.network`: v1's net_cls and net_prio, which v2 does not
//! have (there, eBPF and iptables match on the cgroup itself).

use oci_spec::runtime::LinuxNetwork;

use crate::cgroup::Cgroup;
use crate::changes::Changes;
use crate::error::Error;

const CLASS: &str = "linux.resources.network.classID";
const PRIORITIES: &str = "linux.resources.network.priorities";

pub(crate) fn plan<'a>(
    cgroup: &'a Cgroup,
    settings: &LinuxNetwork,
    changes: &mut Changes<'a>,
) -> Result<(), Error> {
    if let Some(class) = settings.class_id().filter(|class| *class != 0) {
        let target = cgroup.target("net_cls", CLASS)?;
        changes.add(target, CLASS, "net_cls.classid", class.to_string());
    }
    for interface in settings.priorities().iter().flatten() {
        let line = format!("{} {}", interface.name(), interface.priority());
        let target = cgroup.target("net_prio", PRIORITIES)?;
        changes.add(target, PRIORITIES, "net_prio.ifpriomap", line);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fake;

    fn apply(cgroup: &Cgroup, settings: &LinuxNetwork) -> Result<(), Error> {
        let mut changes = Changes::default();
        plan(cgroup, settings, &mut changes)?;
        changes.apply()
    }

    const JSON: &str = r#"{"classID": 1048577, "priorities": [{"name": "eth0", "priority": 5}]}"#;

    #[test]
    fn v1_files() {
        let files = ["net_cls.classid", "net_prio.ifpriomap"];
        let fake = Fake::new(false, &["net_cls", "net_prio"], &files);
        apply(&fake.cgroup, &serde_json::from_str(JSON).unwrap()).unwrap();
        assert_eq!(files.map(|file| fake.read(file)), ["1048577", "eth0 5"]);
    }

    #[test]
    fn v2_has_no_such_controller() {
        let fake = Fake::new(true, &["cpu", "memory"], &[]);
        let error = apply(&fake.cgroup, &serde_json::from_str(JSON).unwrap()).unwrap_err();
        assert!(error.to_string().starts_with("linux.resources.network.classID: no net_cls"));
        apply(&fake.cgroup, &LinuxNetwork::default()).unwrap();
    }
}
