//! `linux.resources.rdma`; cgroup-v1/rdma.rst, the same on v2.

use std::collections::HashMap;

use oci_spec::runtime::LinuxRdma;

use crate::cgroup::Cgroup;
use crate::changes::Changes;
use crate::error::Error;

const FIELD: &str = "linux.resources.rdma";

pub(crate) fn plan<'a>(
    cgroup: &'a Cgroup,
    limits: &HashMap<String, LinuxRdma>,
    changes: &mut Changes<'a>,
) -> Result<(), Error> {
    for (device, limit) in limits {
        if let Some(line) = line(device, limit) {
            changes.add(cgroup.target("rdma", FIELD)?, FIELD, "rdma.max", line);
        }
    }
    Ok(())
}

/// `mlx5_0 hca_handle=2 hca_object=2000`; none if nothing is limited.
fn line(device: &str, limit: &LinuxRdma) -> Option<String> {
    let mut line = device.to_owned();
    if let Some(handles) = limit.hca_handles() {
        line.push_str(&format!(" hca_handle={handles}"));
    }
    if let Some(objects) = limit.hca_objects() {
        line.push_str(&format!(" hca_object={objects}"));
    }
    (line.len() > device.len()).then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fake;

    #[test]
    fn a_line_per_device() {
        let fake = Fake::new(true, &["rdma"], &["rdma.max"]);
        let json = r#"{"mlx5_0": {"hcaHandles": 2, "hcaObjects": 2000}, "mlx4_0": {}}"#;
        let limits = serde_json::from_str(json).unwrap();
        let mut changes = Changes::default();
        plan(&fake.cgroup, &limits, &mut changes).unwrap();
        changes.apply().unwrap();
        assert_eq!(fake.read("rdma.max"), "mlx5_0 hca_handle=2 hca_object=2000");
    }
}
