//! process.rlimits and process.oomScoreAdj, where init may set them itself.

use rustix::io::Errno;

use crate::error::{Error, Step};
use crate::plan::ProcessPlan;

/// Sets all limits, right before init gives its privileges up.
pub fn set(process: &ProcessPlan) -> Result<(), Error> {
    for (resource, limit) in &process.rlimits {
        rustix::process::setrlimit(*resource, *limit)
            .step(|| format!("set process.rlimits {resource:?}"))?;
    }
    Ok(())
}

/// process.oomScoreAdj, for a user, whose runtime can no longer reach init's files in /proc when it
/// has done with the maps. A score below the own one is root's to give: left, as runc does.
pub fn set_oom_score(process: &ProcessPlan) -> Result<(), Error> {
    let Some(score) = process.oom_score_adj else {
        return Ok(());
    };
    match std::fs::write("/proc/self/oom_score_adj", score.to_string()) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::ACCESS) => {
            log::warn!("process.oomScoreAdj {score} is left out: only root may lower it");
            Ok(())
        }
        written => written.step(|| format!("set process.oomScoreAdj {score}")),
    }
}
