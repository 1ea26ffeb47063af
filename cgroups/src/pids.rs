//! `linux.resources.pids`.

use oci_spec::runtime::LinuxPids;

use crate::cgroup::Cgroup;
use crate::changes::Changes;
use crate::error::Error;

const FIELD: &str = "linux.resources.pids.limit";

pub(crate) fn plan<'a>(
    cgroup: &'a Cgroup,
    limits: &LinuxPids,
    changes: &mut Changes<'a>,
) -> Result<(), Error> {
    changes.add(cgroup.target("pids", FIELD)?, FIELD, "pids.max", max(limits.limit()));
    Ok(())
}

/// -1 is no limit. 0 becomes 1 as in runc 1.4 (systemd cannot set 0; for a
/// container with its one process both mean "no more"). Up to 1.3, runc took
/// 0 for absent.
fn max(limit: i64) -> String {
    match limit {
        ..0 => "max".to_owned(),
        0 => "1".to_owned(),
        _ => limit.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fake;

    fn apply(cgroup: &Cgroup, limits: &LinuxPids) -> Result<(), Error> {
        let mut changes = Changes::default();
        plan(cgroup, limits, &mut changes)?;
        changes.apply()
    }

    #[test]
    fn limits_are_written_as_the_kernel_wants_them() {
        for v2 in [false, true] {
            for (limit, text) in [(-1, "max"), (0, "1"), (17, "17")] {
                let fake = Fake::new(v2, &["pids"], &["pids.max"]);
                let mut limits = LinuxPids::default();
                limits.set_limit(limit);
                apply(&fake.cgroup, &limits).unwrap();
                assert_eq!(fake.read("pids.max"), text);
            }
        }
    }

    #[test]
    fn without_the_controller_the_error_names_field_and_controller() {
        let fake = Fake::new(false, &["memory"], &[]);
        let error = apply(&fake.cgroup, &LinuxPids::default()).unwrap_err().to_string();
        assert!(error.starts_with("linux.resources.pids.limit: no pids controller"), "{error}");
    }
}
