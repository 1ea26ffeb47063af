//! systemd as the tests see it: `systemctl`.

use std::path::Path;

use crate::{Cli, Outcome};

/// Whether it is this machine's init.
pub fn is_running() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Runs `systemctl` with these words.
pub fn systemctl(words: &[&str]) -> Outcome {
    Cli::new(words).binary("systemctl").output()
}

/// A unit's property as `systemctl show` prints it.
pub fn property(unit: &str, name: &str) -> String {
    let outcome = systemctl(&["show", "--value", "--property", name, "--", unit]).ok();
    outcome.stdout.trim().to_owned()
}

/// Whether systemd has a unit of this name, be it a failed one.
pub fn knows(unit: &str) -> bool {
    property(unit, "ActiveState") != "inactive"
}

/// Makes systemd read its configuration again, and write all limits of its units again.
///
/// # Panics
/// If it fails.
pub fn reload() {
    systemctl(&["daemon-reload"]).ok();
}
