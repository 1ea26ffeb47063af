//! `linux.resources.cpu`: CPU time (controller cpu) and CPUs (cpuset).
//!
//! sched-bwc.rst, sched-rt-group.rst, cgroup-v2.rst.

use oci_spec::runtime::LinuxCpu;

use crate::cgroup::Cgroup;
use crate::changes::Changes;
use crate::error::Error;
use crate::target::Target;

const SHARES: &str = "linux.resources.cpu.shares";
const QUOTA: &str = "linux.resources.cpu.quota";
const PERIOD: &str = "linux.resources.cpu.period";
const BURST: &str = "linux.resources.cpu.burst";
const IDLE: &str = "linux.resources.cpu.idle";
const RT_RUNTIME: &str = "linux.resources.cpu.realtimeRuntime";
const RT_PERIOD: &str = "linux.resources.cpu.realtimePeriod";
const CPUS: &str = "linux.resources.cpu.cpus";
const MEMS: &str = "linux.resources.cpu.mems";

pub(crate) fn plan<'a>(
    cgroup: &'a Cgroup,
    limits: &'a LinuxCpu,
    changes: &mut Changes<'a>,
) -> Result<(), Error> {
    let time = Time::from(limits);
    if let Some(field) = time.first_field() {
        let target = cgroup.target("cpu", field)?;
        if target.is_v2() {
            time.plan_v2(target, changes);
        } else {
            time.plan_v1(target, changes);
        }
    }
    for (field, file, list) in
        [(CPUS, "cpuset.cpus", limits.cpus()), (MEMS, "cpuset.mems", limits.mems())]
    {
        if let Some(list) = list.as_deref().filter(|list| !list.is_empty()) {
            changes.add(cgroup.target("cpuset", field)?, field, file, list);
        }
    }
    Ok(())
}

/// The fields of the cpu controller, without those that mean "leave it".
struct Time {
    shares: Option<u64>,
    quota_usec: Option<i64>,
    period_usec: Option<u64>,
    burst_usec: Option<u64>,
    idle: Option<i64>,
    rt_runtime_usec: Option<i64>,
    rt_period_usec: Option<u64>,
}

impl From<&LinuxCpu> for Time {
    fn from(limits: &LinuxCpu) -> Self {
        Self {
            shares: limits.shares().filter(|shares| *shares != 0),
            quota_usec: limits.quota().filter(|quota| *quota != 0),
            period_usec: limits.period().filter(|period| *period != 0),
            burst_usec: limits.burst(),
            idle: limits.idle(),
            rt_runtime_usec: limits.realtime_runtime().filter(|runtime| *runtime != 0),
            rt_period_usec: limits.realtime_period().filter(|period| *period != 0),
        }
    }
}

impl Time {
    fn first_field(&self) -> Option<&'static str> {
        let set = [
            (SHARES, self.shares.is_some()),
            (QUOTA, self.quota_usec.is_some()),
            (PERIOD, self.period_usec.is_some()),
            (BURST, self.burst_usec.is_some()),
            (IDLE, self.idle.is_some()),
            (RT_RUNTIME, self.rt_runtime_usec.is_some()),
            (RT_PERIOD, self.rt_period_usec.is_some()),
        ];
        set.iter().find(|(_, set)| *set).map(|(field, _)| *field)
    }

    /// In the order that mostly does at the first attempt: an idle group takes no shares, a burst
    /// may not exceed the quota, nor a realtime runtime its period.
    fn plan_v1<'a>(&self, target: Target<'a>, changes: &mut Changes<'a>) {
        let rows = [
            (SHARES, "cpu.shares", text(self.shares)),
            (IDLE, "cpu.idle", text(self.idle)),
            (RT_PERIOD, "cpu.rt_period_us", text(self.rt_period_usec)),
            (RT_RUNTIME, "cpu.rt_runtime_us", text(self.rt_runtime_usec)),
            (PERIOD, "cpu.cfs_period_us", text(self.period_usec)),
            (QUOTA, "cpu.cfs_quota_us", text(self.quota_usec)),
            (BURST, "cpu.cfs_burst_us", text(self.burst_usec)),
        ];
        add_rows(target, rows, changes);
    }

    fn plan_v2<'a>(&self, target: Target<'a>, changes: &mut Changes<'a>) {
        if self.rt_runtime_usec.is_some() || self.rt_period_usec.is_some() {
            log::warn!(
                "{RT_RUNTIME} and {RT_PERIOD} are ignored: cgroup v2 has no realtime limits"
            );
        }
        let (field, max) = self.max(target);
        let rows = [
            (SHARES, "cpu.weight", text(self.shares.map(weight))),
            (IDLE, "cpu.idle", text(self.idle)),
            (field, "cpu.max", max),
            (BURST, "cpu.max.burst", text(self.burst_usec)),
        ];
        add_rows(target, rows, changes);
    }

    /// The line for `cpu.max`: quota alone leaves the period as it is; there
    /// is no way to write the period alone.
    fn max(&self, target: Target<'_>) -> (&'static str, Option<String>) {
        let quota = match self.quota_usec {
            Some(quota) if quota > 0 => Some(quota.to_string()),
            Some(_) => Some("max".to_owned()),
            None => None,
        };
        match (quota, self.period_usec) {
            (quota, None) => (QUOTA, quota),
            (Some(quota), Some(period)) => (QUOTA, Some(format!("{quota} {period}"))),
            (None, Some(period)) => {
                // Missing: not enabled yet, so there is no quota.
                let current = target.read("cpu.max").unwrap_or_default();
                let quota = current.split_whitespace().next().unwrap_or("max");
                (PERIOD, Some(format!("{quota} {period}")))
            }
        }
    }
}

fn text(value: Option<impl ToString>) -> Option<String> {
    value.map(|value| value.to_string())
}

fn add_rows<'a, const N: usize>(
    target: Target<'a>,
    rows: [(&'static str, &'static str, Option<String>); N],
    changes: &mut Changes<'a>,
) {
    for (field, file, value) in rows {
        if let Some(value) = value {
            changes.add(target, field, file, value);
        }
    }
}

/// v1 shares (2 to 262144, default 1024) as a v2 weight (1 to 10000, default
/// 100), as runc does since 1.3.2: the quadratic fit in log space through
/// those three points, 10^((l^2 + 125 l)/612 - 7/34) with l = log2(shares).
/// The linear map that it replaced gave the default a weight of 39.
pub(crate) fn weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            10f64.powf(exponent).ceil() as u64
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fake;

    fn apply(cgroup: &Cgroup, limits: &LinuxCpu) -> Result<(), Error> {
        let mut changes = Changes::default();
        plan(cgroup, limits, &mut changes)?;
        changes.apply()
    }

    #[test]
    fn shares_become_weights() {
        let pairs = [(0, 1), (2, 1), (4, 2), (1024, 100), (262_144, 10_000), (u64::MAX, 10_000)];
        for (shares, expected) in pairs {
            assert_eq!(weight(shares), expected, "{shares}");
        }
        assert!((2..262_144).is_sorted_by_key(weight));
    }

    #[test]
    fn v2_quota_and_period() {
        let max = |quota: Option<i64>, period: Option<u64>| {
            let fake = Fake::new(true, &["cpu"], &["cpu.weight"]);
            fake.write("cpu.max", "5000 100000\n");
            let limits = LinuxCpu::default().set_quota(quota).set_period(period).clone();
            let target = fake.cgroup.target("cpu", QUOTA).unwrap();
            Time::from(&limits).max(target).1
        };
        assert_eq!(max(None, None), None);
        assert_eq!(max(Some(0), None), None);
        assert_eq!(max(Some(7000), None).unwrap(), "7000");
        assert_eq!(max(Some(-1), Some(50_000)).unwrap(), "max 50000");
        assert_eq!(max(Some(7000), Some(50_000)).unwrap(), "7000 50000");
        assert_eq!(max(None, Some(50_000)).unwrap(), "5000 50000");
    }

    #[test]
    fn v1_files() {
        let files = [
            "cpu.shares",
            "cpu.cfs_quota_us",
            "cpu.cfs_period_us",
            "cpu.cfs_burst_us",
            "cpu.rt_runtime_us",
            "cpu.rt_period_us",
            "cpu.idle",
            "cpuset.cpus",
            "cpuset.mems",
        ];
        let fake = Fake::new(false, &["cpu", "cpuset"], &files);
        let json = r#"{"shares": 512, "quota": 20000, "period": 50000, "burst": 0, "idle": 1,
            "realtimeRuntime": 1000, "realtimePeriod": 500000, "cpus": "0-1", "mems": ""}"#;
        apply(&fake.cgroup, &serde_json::from_str(json).unwrap()).unwrap();
        let expected = ["512", "20000", "50000", "0", "1000", "500000", "1", "0-1", ""];
        assert_eq!(files.map(|file| fake.read(file)), expected);
    }

    #[test]
    fn a_missing_controller_is_named_with_the_field() {
        let fake = Fake::new(true, &["memory"], &[]);
        let error = |json: &str| {
            let limits = serde_json::from_str(json).unwrap();
            apply(&fake.cgroup, &limits).unwrap_err().to_string()
        };
        let period = error(r#"{"period": 1}"#);
        assert!(period.starts_with("linux.resources.cpu.period: no cpu controller"), "{period}");
        let cpus = error(r#"{"cpus": "0"}"#);
        assert!(cpus.starts_with("linux.resources.cpu.cpus: no cpuset controller"), "{cpus}");
        apply(&fake.cgroup, &serde_json::from_str(r#"{"shares": 0}"#).unwrap()).unwrap();
    }
}
