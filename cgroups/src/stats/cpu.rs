//! CPU time: cpuacct and cpu on v1, `cpu.stat` on v2.

use serde::Serialize;

use super::is_zero;
use super::pressure::{self, Pressure};
use crate::cgroup::Cgroup;
use crate::error::Error;
use crate::target::Target;

/// USER_HZ, in which `cpuacct.stat` counts, is 100 on all architectures that we know.
const NSEC_PER_TICK: u64 = 10_000_000;
const NSEC_PER_USEC: u64 = 1000;

/// CPU time used, and denied.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cpu {
    /// How much was used.
    pub usage: CpuUsage,
    /// How much was denied by the quota.
    pub throttling: Throttling,
    /// v2 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// CPU time in nanoseconds. v1 counts `kernel` and `user` in hundredths of a second.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CpuUsage {
    /// In user and kernel mode.
    #[serde(skip_serializing_if = "is_zero")]
    pub total: u64,
    /// By CPU; v1 only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu: Vec<u64>,
    /// By CPU, in the kernel; v1 only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_kernel: Vec<u64>,
    /// By CPU, in user mode; v1 only.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_user: Vec<u64>,
    /// In the kernel.
    pub kernel: u64,
    /// In user mode.
    pub user: u64,
}

/// What the quota did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Throttling {
    /// Periods in which the cgroup ran.
    #[serde(skip_serializing_if = "is_zero")]
    pub periods: u64,
    /// Periods in which it reached its quota.
    #[serde(skip_serializing_if = "is_zero")]
    pub throttled_periods: u64,
    /// For how long it could not run, in nanoseconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub throttled_time: u64,
}

pub(super) fn read(cgroup: &Cgroup) -> Result<Cpu, Error> {
    let mut cpu = Cpu::default();
    if let Some(target) = cgroup.target_if_any("cpuacct") {
        cpu.usage = usage_v1(target)?;
    }
    match cgroup.target_if_any("cpu") {
        Some(target) if !target.is_v2() => read_stat(target, &mut cpu)?,
        // `cpu.stat` is there without the controller, too, except for the throttling.
        _ => {
            if let Some(target) = cgroup.core_target() {
                read_stat(target, &mut cpu)?;
                cpu.psi = pressure::read(target, "cpu.pressure")?;
            }
        }
    }
    Ok(cpu)
}

fn read_stat(target: Target<'_>, cpu: &mut Cpu) -> Result<(), Error> {
    let Some(text) = target.text("cpu.stat")? else { return Ok(()) };
    for pair in text.pairs() {
        let (key, value) = pair?;
        let (to, value) = match key {
            "nr_periods" => (&mut cpu.throttling.periods, value),
            "nr_throttled" => (&mut cpu.throttling.throttled_periods, value),
            "throttled_time" => (&mut cpu.throttling.throttled_time, value),
            "throttled_usec" => {
                (&mut cpu.throttling.throttled_time, value.saturating_mul(NSEC_PER_USEC))
            }
            "usage_usec" => (&mut cpu.usage.total, value.saturating_mul(NSEC_PER_USEC)),
            "user_usec" => (&mut cpu.usage.user, value.saturating_mul(NSEC_PER_USEC)),
            "system_usec" => (&mut cpu.usage.kernel, value.saturating_mul(NSEC_PER_USEC)),
            _ => continue,
        };
        *to = value;
    }
    Ok(())
}

fn usage_v1(target: Target<'_>) -> Result<CpuUsage, Error> {
    let mut usage =
        CpuUsage { total: target.number("cpuacct.usage")?.unwrap_or(0), ..CpuUsage::default() };
    if let Some(text) = target.text("cpuacct.stat")? {
        for pair in text.pairs() {
            match pair? {
                ("user", ticks) => usage.user = ticks.saturating_mul(NSEC_PER_TICK),
                ("system", ticks) => usage.kernel = ticks.saturating_mul(NSEC_PER_TICK),
                _ => {}
            }
        }
    }
    if let Some(text) = target.text("cpuacct.usage_percpu")? {
        let words = text.as_str().split_whitespace();
        usage.percpu = words.map(|word| text.parse(word)).collect::<Result<_, _>>()?;
    }
    if let Some(text) = target.text("cpuacct.usage_all")? {
        // `cpu user system`, and then a line for each CPU.
        for line in text.lines().skip(1) {
            let mut words = line.split_whitespace().skip(1);
            let (Some(user), Some(kernel)) = (words.next(), words.next()) else {
                return Err(text.malformed(line));
            };
            usage.percpu_user.push(text.parse(user)?);
            usage.percpu_kernel.push(text.parse(kernel)?);
        }
    }
    Ok(usage)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fake;

    #[test]
    fn v1() {
        let fake = Fake::new(false, &["cpu", "cpuacct"], &[]);
        fake.write("cpu.stat", "nr_periods 9\nnr_throttled 4\nthrottled_time 77\nnr_bursts 0\n");
        fake.write("cpuacct.usage", "1234\n");
        fake.write("cpuacct.stat", "user 3\nsystem 2\n");
        fake.write("cpuacct.usage_percpu", "1000 234 \n");
        fake.write("cpuacct.usage_all", "cpu user system\n0 600 400\n1 200 34\n");
        let cpu = read(&fake.cgroup).unwrap();
        let json = r#"{"usage":{"total":1234,"percpu":[1000,234],"percpu_kernel":[400,34],"percpu_user":[600,200],"kernel":20000000,"user":30000000},"throttling":{"periods":9,"throttledPeriods":4,"throttledTime":77}}"#;
        assert_eq!(serde_json::to_string(&cpu).unwrap(), json);
        fake.write("cpuacct.usage_all", "cpu user system\n0 600\n");
        assert!(read(&fake.cgroup).unwrap_err().to_string().contains("cpuacct.usage_all"));
    }

    #[test]
    fn v2() {
        let fake = Fake::new(true, &["cpu"], &[]);
        assert_eq!(read(&fake.cgroup).unwrap(), Cpu::default());
        fake.write("cpu.stat", "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 1\nnr_throttled 1\nthrottled_usec 18446744073709551615\n");
        fake.write("cpu.pressure", "some avg10=0.50 avg60=0.00 avg300=0.00 total=7\n");
        let cpu = read(&fake.cgroup).unwrap();
        assert_eq!((cpu.usage.total, cpu.usage.user, cpu.usage.kernel), (5000, 3000, 2000));
        assert_eq!(cpu.throttling.throttled_time, u64::MAX);
        assert_eq!(cpu.psi.unwrap().some.total, 7);
        for bad in
            ["usage_usec", "usage_usec x", "usage_usec -1", "usage_usec 99999999999999999999"]
        {
            fake.write("cpu.stat", bad);
            assert!(read(&fake.cgroup).unwrap_err().to_string().contains("cpu.stat"), "{bad}");
        }
    }
}
