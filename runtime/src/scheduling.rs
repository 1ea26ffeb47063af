//! process.scheduler and process.ioPriority.

use oci_spec::runtime::{
    IOPriorityClass, LinuxIOPriority, LinuxSchedulerFlag, LinuxSchedulerPolicy, Process, Scheduler,
};

use crate::error::{Error, Step};
use crate::sys::{self, SchedAttr};

/// How the workload is scheduled, checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scheduling {
    cpu: Option<SchedAttr>,
    /// Class and priority as ioprio_set(2) packs them.
    io: Option<i32>,
}

impl Scheduling {
    /// Checks process.scheduler and process.ioPriority.
    ///
    /// # Errors
    /// A policy or flag that Linux does not have, values out of range or of another policy.
    pub fn new(process: &Process) -> Result<Self, Error> {
        Ok(Self {
            cpu: process.scheduler().as_ref().map(attributes).transpose()?,
            io: process.io_priority().as_ref().map(io_priority).transpose()?,
        })
    }

    /// Applies both to this process; needs CAP_SYS_NICE for what is better than it has.
    ///
    /// # Errors
    /// The kernel's.
    pub fn apply(&self) -> Result<(), Error> {
        if let Some(attributes) = self.cpu {
            sys::sched_setattr(attributes).step(|| "set process.scheduler".to_owned())?;
        }
        if let Some(priority) = self.io {
            sys::ioprio_set(priority).step(|| "set process.ioPriority".to_owned())?;
        }
        Ok(())
    }
}

/// sched_setattr(2).
fn attributes(scheduler: &Scheduler) -> Result<SchedAttr, Error> {
    use LinuxSchedulerPolicy as P;
    let field = |name: &str| format!("process.scheduler.{name}");
    let policy = match scheduler.policy() {
        P::SchedOther => libc::SCHED_OTHER,
        P::SchedFifo => libc::SCHED_FIFO,
        P::SchedRr => libc::SCHED_RR,
        P::SchedBatch => libc::SCHED_BATCH,
        P::SchedIdle => libc::SCHED_IDLE,
        P::SchedDeadline => libc::SCHED_DEADLINE,
        P::SchedIso => return Err(Error::config(field("policy"), "Linux has no SCHED_ISO")),
    };
    let nice = scheduler.nice().unwrap_or(0);
    if !(-20..=19).contains(&nice) {
        return Err(Error::config(field("nice"), format!("{nice} is not between -20 and 19")));
    }
    let priority = scheduler.priority().unwrap_or(0);
    let real_time = matches!(scheduler.policy(), P::SchedFifo | P::SchedRr);
    if priority != 0 && !real_time {
        return Err(Error::config(field("priority"), "is for SCHED_FIFO and SCHED_RR only"));
    }
    if real_time && !(1..=99).contains(&priority) {
        return Err(Error::config(field("priority"), format!("{priority} is not within 1 to 99")));
    }
    let times = [*scheduler.runtime(), *scheduler.deadline(), *scheduler.period()];
    if times.iter().any(Option::is_some) && policy != libc::SCHED_DEADLINE {
        return Err(Error::config(field("runtime"), "is for SCHED_DEADLINE only"));
    }
    let mut flags = 0;
    for flag in scheduler.flags().iter().flatten() {
        flags |= match flag {
            LinuxSchedulerFlag::SchedResetOnFork => libc::SCHED_FLAG_RESET_ON_FORK,
            LinuxSchedulerFlag::SchedFlagReclaim => libc::SCHED_FLAG_RECLAIM,
            LinuxSchedulerFlag::SchedFlagDLOverrun => libc::SCHED_FLAG_DL_OVERRUN,
            LinuxSchedulerFlag::SchedFlagKeepPolicy => libc::SCHED_FLAG_KEEP_POLICY,
            LinuxSchedulerFlag::SchedFlagKeepParams => libc::SCHED_FLAG_KEEP_PARAMS,
            LinuxSchedulerFlag::SchedFlagUtilClampMin => libc::SCHED_FLAG_UTIL_CLAMP_MIN,
            LinuxSchedulerFlag::SchedFlagUtilClampMax => libc::SCHED_FLAG_UTIL_CLAMP_MAX,
        } as u64;
    }
    let [runtime, deadline, period] = times.map(Option::unwrap_or_default);
    Ok(SchedAttr {
        policy: policy as u32,
        flags,
        nice,
        priority: priority as u32,
        runtime,
        deadline,
        period,
    })
}

/// ioprio_set(2): class << 13 | priority.
fn io_priority(priority: &LinuxIOPriority) -> Result<i32, Error> {
    let class = match priority.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    match i32::try_from(priority.priority()) {
        Ok(level @ 0..=7) => Ok(class << 13 | level),
        _ => {
            let problem = format!("{} is not within 0 to 7", priority.priority());
            Err(Error::config("process.ioPriority.priority", problem))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scheduling(fields: &str) -> Result<Scheduling, Error> {
        let json = format!(r#"{{"user":{{"uid":0,"gid":0}},"cwd":"/",{fields}}}"#);
        Scheduling::new(&serde_json::from_str(&json).unwrap())
    }

    #[test]
    fn values_become_the_kernels() {
        let fields = r#""scheduler":{"policy":"SCHED_RR","priority":7,
            "flags":["SCHED_RESET_ON_FORK"]},
            "ioPriority":{"class":"IOPRIO_CLASS_IDLE","priority":3}"#;
        let scheduling = scheduling(fields).unwrap();
        let cpu = scheduling.cpu.unwrap();
        assert_eq!((cpu.policy, cpu.priority, cpu.flags), (2, 7, 1));
        assert_eq!(scheduling.io, Some(3 << 13 | 3));
    }

    #[test]
    fn wrong_values_are_named() {
        for (fields, field) in [
            (r#""scheduler":{"policy":"SCHED_ISO"}"#, "process.scheduler.policy"),
            (r#""scheduler":{"policy":"SCHED_OTHER","nice":20}"#, "process.scheduler.nice"),
            (r#""scheduler":{"policy":"SCHED_FIFO"}"#, "process.scheduler.priority"),
            (r#""scheduler":{"policy":"SCHED_OTHER","runtime":1}"#, "process.scheduler.runtime"),
            (r#""ioPriority":{"class":"IOPRIO_CLASS_BE","priority":8}"#, "process.ioPriority"),
        ] {
            let problem = scheduling(fields).unwrap_err().to_string();
            assert!(problem.starts_with(field), "{problem}");
        }
    }
}
