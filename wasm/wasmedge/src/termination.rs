//! Why a guest trapped, where Kubernetes looks for it: a native program would have had the chance to
//! say it there itself.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// What the kubelet mounts for a container's last words, unless the pod names another place. It
/// shows them in the container's status.
const LOG: &str = "/dev/termination-log";

/// Adds the reason, if the container has such a mount and nothing in it. Called inside the
/// container, as its user; stderr has the reason in any case, so nothing that fails here matters.
pub fn tell(mounts: &[&Path], reason: &str) {
    if !mounts.contains(&Path::new(LOG)) {
        return;
    }
    let flags = libc::O_NOFOLLOW | libc::O_NOCTTY | libc::O_NONBLOCK;
    let file = OpenOptions::new().append(true).custom_flags(flags).open(LOG);
    let Ok(mut file) = file else { return };
    if file.metadata().is_ok_and(|file| file.is_file() && file.len() == 0) {
        let _ = writeln!(file, "{reason}");
    }
}
