//! Skips: said aloud, counted, and failures when `KILN_TEST_NO_SKIP=1`.
//!
//! The lines bypass libtest's capture on purpose (it catches `print!` only), so
//! that they are seen on a passing run; `KILN_TEST_SKIP_LOG` names a file for
//! `scripts/test` to count.

use std::fs::OpenOptions;
use std::io::Write;

/// Reports the test `name` as skipped.
///
/// # Panics
/// When `KILN_TEST_NO_SKIP=1`.
pub fn report(name: &str, reason: &str) {
    let name = name.strip_suffix("::here").unwrap_or(name);
    if std::env::var_os("KILN_TEST_NO_SKIP").is_some_and(|value| value == "1") {
        panic!("{name} would be skipped, which KILN_TEST_NO_SKIP forbids: {reason}");
    }
    let line = format!("SKIPPED: {name}: {reason}\n");
    if let Some(path) = std::env::var_os("KILN_TEST_SKIP_LOG") {
        // One write of a short line to an O_APPEND file does not mix with others'.
        let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
        file.write_all(line.as_bytes()).unwrap();
    }
    std::io::stderr().write_all(line.as_bytes()).unwrap();
}

/// Ends the calling test as skipped, for the reason given as to `format!`.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)+) => {{
        fn here() {}
        $crate::skip::report(std::any::type_name_of_val(&here), &format!($($reason)+));
        return;
    }};
}

/// Skips the calling test where containerd's cgroup library finds no cgroup, for what its shim for
/// runc and Docker know by that alone ([`library_objection`](crate::cgroup::library_objection)).
#[macro_export]
macro_rules! needs_cgroup_library {
    ($shim:expr) => {
        if $shim == $crate::containerd::Shim::Runc {
            $crate::needs_cgroup_library!();
        }
    };
    () => {
        if let Some(objection) = $crate::cgroup::library_objection() {
            $crate::skip!("{objection}");
        }
    };
}

/// Skips the calling test unless kiln itself is under test: for what runc and
/// crun do otherwise, with the difference as the reason.
#[macro_export]
macro_rules! kiln_only {
    ($($reason:tt)+) => {
        if !$crate::binary::is_kiln() {
            $crate::skip!("{:?}: {}", $crate::binary::runtime(), format!($($reason)+));
        }
    };
}
