//! process.rlimits, where init may set them itself.

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
