//! hostname and domainname, in the container's uts namespace.

use crate::error::{Error, Step};
use crate::plan::Plan;

/// Sets both where the config has them.
pub fn set(plan: &Plan) -> Result<(), Error> {
    if let Some(name) = &plan.hostname {
        rustix::system::sethostname(name.as_bytes()).step(|| format!("set hostname {name:?}"))?;
    }
    if let Some(name) = &plan.domainname {
        rustix::system::setdomainname(name.as_bytes())
            .step(|| format!("set domainname {name:?}"))?;
    }
    Ok(())
}
