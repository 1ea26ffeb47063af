//! `linux.resources.blockIO`: controller blkio on v1, io on v2.
//!
//! cgroup-v1/blkio-controller.rst, cgroup-v2.rst, bfq-iosched.rst.

use oci_spec::runtime::{LinuxBlockIo, LinuxThrottleDevice};

use crate::cgroup::Cgroup;
use crate::changes::{Changes, Missing};
use crate::error::Error;
use crate::target::Target;

const WEIGHT: &str = "linux.resources.blockIO.weight";
const LEAF_WEIGHT: &str = "linux.resources.blockIO.leafWeight";
const WEIGHT_DEVICE: &str = "linux.resources.blockIO.weightDevice";

/// Field, v1 file, key in v2's `io.max`.
const THROTTLES: [(&str, &str, &str); 4] = [
    ("linux.resources.blockIO.throttleReadBpsDevice", "blkio.throttle.read_bps_device", "rbps"),
    ("linux.resources.blockIO.throttleWriteBpsDevice", "blkio.throttle.write_bps_device", "wbps"),
    ("linux.resources.blockIO.throttleReadIOPSDevice", "blkio.throttle.read_iops_device", "riops"),
    (
        "linux.resources.blockIO.throttleWriteIOPSDevice",
        "blkio.throttle.write_iops_device",
        "wiops",
    ),
];

pub(crate) fn plan<'a>(
    cgroup: &'a Cgroup,
    limits: &LinuxBlockIo,
    changes: &mut Changes<'a>,
) -> Result<(), Error> {
    let target = |field: &'static str| match cgroup.target_if_any("blkio") {
        Some(target) => Ok(target),
        None => cgroup.target("io", field),
    };
    if let Some(weight) = limits.weight().filter(|weight| *weight != 0) {
        plan_weight(target(WEIGHT)?, WEIGHT, "", weight, changes);
    }
    if let Some(weight) = limits.leaf_weight().filter(|weight| *weight != 0) {
        let file = "blkio.leaf_weight";
        plan_leaf_weight(target(LEAF_WEIGHT)?, file, weight.to_string(), changes);
    }
    for device in limits.weight_device().iter().flatten() {
        let target = target(WEIGHT_DEVICE)?;
        let number = format!("{}:{} ", device.major(), device.minor());
        if let Some(weight) = device.weight().filter(|weight| *weight != 0) {
            plan_weight(target, WEIGHT_DEVICE, &number, weight, changes);
        }
        if let Some(weight) = device.leaf_weight().filter(|weight| *weight != 0) {
            let value = format!("{number}{weight}");
            plan_leaf_weight(target, "blkio.leaf_weight_device", value, changes);
        }
    }
    let devices = [
        limits.throttle_read_bps_device(),
        limits.throttle_write_bps_device(),
        limits.throttle_read_iops_device(),
        limits.throttle_write_iops_device(),
    ];
    for ((field, v1_file, v2_key), devices) in THROTTLES.into_iter().zip(devices) {
        for device in devices.iter().flatten() {
            let target = target(field)?;
            if target.is_v2() {
                changes.add(target, field, "io.max", max_line(device, v2_key));
            } else {
                let line = format!("{}:{} {}", device.major(), device.minor(), device.rate());
                changes.add(target, field, v1_file, line);
            }
        }
    }
    Ok(())
}

/// CFQ's files went with CFQ in Linux 5.0; BFQ has its own, with the same scale as v1.
/// `io.weight` (iocost) has another. `device` is its number and a space, or empty.
fn plan_weight<'a>(
    target: Target<'a>,
    field: &'static str,
    device: &str,
    weight: u16,
    changes: &mut Changes<'a>,
) {
    let same = format!("{device}{weight}");
    let (first, second, value) = if target.is_v2() {
        ("io.bfq.weight", "io.weight", format!("{device}{}", io_weight(weight)))
    } else if device.is_empty() {
        ("blkio.weight", "blkio.bfq.weight", same.clone())
    } else {
        ("blkio.weight_device", "blkio.bfq.weight_device", same.clone())
    };
    changes.add_if_there(target, field, first, same, Missing::Instead(second, value));
}

fn plan_leaf_weight<'a>(
    target: Target<'a>,
    file: &'static str,
    value: String,
    changes: &mut Changes<'a>,
) {
    if target.is_v2() {
        log::warn!("{LEAF_WEIGHT} is ignored: cgroup v2 has no processes beside children");
        return;
    }
    changes.add(target, LEAF_WEIGHT, file, value);
}

/// v1's 10 to 1000 as v2's 1 to 10000, linear; runc does the same.
pub(crate) fn io_weight(weight: u16) -> u64 {
    1 + u64::from(weight.clamp(10, 1000) - 10) * 9999 / 990
}

/// A rate of 0 is no limit, as on v1.
fn max_line(device: &LinuxThrottleDevice, key: &str) -> String {
    let (major, minor) = (device.major(), device.minor());
    match device.rate() {
        0 => format!("{major}:{minor} {key}=max"),
        rate => format!("{major}:{minor} {key}={rate}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fake;

    const ALL: &str = r#"{"weight": 500, "weightDevice": [{"major": 8, "minor": 0, "weight": 10}],
        "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1048576}]}"#;

    fn apply(cgroup: &Cgroup, limits: &LinuxBlockIo) -> Result<(), Error> {
        let mut changes = Changes::default();
        plan(cgroup, limits, &mut changes)?;
        changes.apply()
    }

    fn limits(json: &str) -> LinuxBlockIo {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn weights_are_rescaled() {
        for (v1, v2) in [(0, 1), (10, 1), (500, 4950), (1000, 10_000), (2000, 10_000)] {
            assert_eq!(io_weight(v1), v2, "{v1}");
        }
    }

    #[test]
    fn v1_falls_back_to_bfq() {
        let throttle = "blkio.throttle.read_bps_device";
        let cfq = ["blkio.weight", "blkio.weight_device", throttle];
        let bfq = ["blkio.bfq.weight", "blkio.bfq.weight_device", throttle];
        for files in [cfq, bfq] {
            let fake = Fake::new(false, &["blkio"], &files);
            apply(&fake.cgroup, &limits(ALL)).unwrap();
            assert_eq!(files.map(|file| fake.read(file)), ["500", "8:0 10", "8:0 1048576"]);
        }
        let fake = Fake::new(false, &["blkio"], &[throttle]);
        let error = apply(&fake.cgroup, &limits(ALL)).unwrap_err();
        assert!(error.to_string().starts_with(WEIGHT), "{error}");
    }

    #[test]
    fn v2_lines() {
        let fake = Fake::new(true, &["io"], &["io.weight", "io.max"]);
        fake.write_root("cgroup.controllers", "io\n");
        fake.write_root("cgroup.subtree_control", "io\n");
        apply(&fake.cgroup, &limits(r#"{"weight": 500}"#)).unwrap();
        assert_eq!(fake.read("io.weight"), "4950");
        let json = r#"{"throttleWriteIOPSDevice": [{"major": 8, "minor": 16, "rate": 0}]}"#;
        apply(&fake.cgroup, &limits(json)).unwrap();
        assert_eq!(fake.read("io.max"), "8:16 wiops=max");
        let fake = Fake::new(true, &["io"], &["io.bfq.weight", "io.weight"]);
        apply(&fake.cgroup, &limits(r#"{"weight": 500}"#)).unwrap();
        assert_eq!(fake.read("io.bfq.weight"), "500");
        assert_eq!(fake.read("io.weight"), "");
    }
}
