//! Processes and threads.

use serde::Serialize;

use super::is_zero;
use crate::cgroup::Cgroup;
use crate::error::Error;

/// Processes and threads; a `limit` of 0 is none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Pids {
    #[serde(skip_serializing_if = "is_zero")]
    pub current: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub limit: u64,
}

pub(super) fn read(cgroup: &Cgroup) -> Result<Pids, Error> {
    let Some(target) = cgroup.target_if_any("pids") else { return Ok(Pids::default()) };
    let limit = target.number("pids.max")?.filter(|limit| *limit != u64::MAX);
    Ok(Pids { current: target.number("pids.current")?.unwrap_or(0), limit: limit.unwrap_or(0) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Fake;

    #[test]
    fn no_limit_is_absent() {
        for (max, json) in [("max\n", r#"{"current":3}"#), ("7\n", r#"{"current":3,"limit":7}"#)] {
            let fake = Fake::new(true, &["pids"], &[]);
            fake.write("pids.current", "3\n");
            fake.write("pids.max", max);
            assert_eq!(serde_json::to_string(&read(&fake.cgroup).unwrap()).unwrap(), json);
        }
    }
}
