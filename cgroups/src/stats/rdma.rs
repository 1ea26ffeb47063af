//! RDMA resources; the same files on v1 and v2.

use serde::Serialize;

use crate::cgroup::Cgroup;
use crate::error::Error;
use crate::target::Target;

/// What is used of each device, and what may be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Rdma {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rdma_limit: Vec<RdmaEntry>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rdma_current: Vec<RdmaEntry>,
}

/// One device; `u32::MAX` is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct RdmaEntry {
    pub device: String,
    pub hca_handles: u32,
    pub hca_objects: u32,
}

impl Rdma {
    pub(super) fn is_empty(&self) -> bool {
        self.rdma_limit.is_empty() && self.rdma_current.is_empty()
    }
}

pub(super) fn read(cgroup: &Cgroup) -> Result<Rdma, Error> {
    let Some(target) = cgroup.target_if_any("rdma") else { return Ok(Rdma::default()) };
    Ok(Rdma {
        rdma_limit: entries(target, "rdma.max")?,
        rdma_current: entries(target, "rdma.current")?,
    })
}

/// `mlx5_0 hca_handle=2 hca_object=max`
fn entries(target: Target<'_>, file: &str) -> Result<Vec<RdmaEntry>, Error> {
    let Some(text) = target.text(file)? else { return Ok(Vec::new()) };
    let entry = |line: &str| {
        let mut words = line.split_whitespace();
        let device = words.next().unwrap_or_default().to_owned();
        let mut entry = RdmaEntry { device, ..RdmaEntry::default() };
        for word in words {
            let (key, value) = word.split_once('=').ok_or_else(|| text.malformed(line))?;
            let value = if value == "max" { u32::MAX } else { text.parse(value)? };
            match key {
                "hca_handle" => entry.hca_handles = value,
                "hca_object" => entry.hca_objects = value,
                _ => {}
            }
        }
        Ok(entry)
    };
    text.lines().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fake;

    #[test]
    fn devices_are_read() {
        let fake = Fake::new(true, &["rdma"], &[]);
        assert!(read(&fake.cgroup).unwrap().is_empty());
        fake.write("rdma.max", "mlx5_0 hca_handle=2 hca_object=max\n");
        fake.write(
            "rdma.current",
            "mlx5_0 hca_handle=1 hca_object=20\nocrdma1 hca_handle=0 hca_object=0\n",
        );
        let rdma = read(&fake.cgroup).unwrap();
        let limit = RdmaEntry { device: "mlx5_0".into(), hca_handles: 2, hca_objects: u32::MAX };
        assert_eq!(rdma.rdma_limit, [limit]);
        assert_eq!(rdma.rdma_current[0].hca_objects, 20);
        for bad in ["mlx5_0 hca_handle", "mlx5_0 hca_handle=-1", "mlx5_0 hca_handle=4294967296"] {
            fake.write("rdma.max", bad);
            assert!(read(&fake.cgroup).is_err(), "{bad}");
        }
    }
}
