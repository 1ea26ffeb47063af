//! process.rlimits and process.oomScoreAdj, where init may set them itself.

use std::io::ErrorKind;

use crate::error::{Error, Step};
use crate::plan::ProcessPlan;
use crate::privilege::Privilege;

/// Sets all limits, right before init gives its privileges up.
pub fn set(process: &ProcessPlan) -> Result<(), Error> {
    for (resource, limit) in &process.rlimits {
        rustix::process::setrlimit(*resource, *limit)
            .step(|| format!("set process.rlimits {resource:?}"))?;
    }
    Ok(())
}

/// process.oomScoreAdj, of the process `pid` (`self` for this one). A score below the own one is
/// the machine's root's to give: for others it is left, as runc does.
pub fn set_oom_score(process: &ProcessPlan, pid: &str, privilege: Privilege) -> Result<(), Error> {
    let Some(score) = process.oom_score_adj else {
        return Ok(());
    };
    match std::fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string()) {
        Err(error) if !privilege.is_root() && error.kind() == ErrorKind::PermissionDenied => {
            log::warn!("process.oomScoreAdj {score} is left out: only root may lower it");
            Ok(())
        }
        written => written.step(|| format!("set process.oomScoreAdj {score}")),
    }
}
