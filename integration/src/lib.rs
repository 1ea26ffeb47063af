//! Harness for the end-to-end tests: throw-away bundles, the built binary run
//! on them as root, and a guard that proves that nothing is left behind.
//!
//! The tests live in `tests/`, a file per operation or subject. They know the
//! runtime only by its command line, so the variable `KILN` may name another
//! OCI runtime: `KILN=/usr/sbin/runc cargo test -p kiln-integration` is how the
//! tests themselves are checked. Without it `target/release/kiln` is used.
//!
//! - [`Bundle`] builds `config.json` and a busybox rootfs in a temporary folder.
//! - [`Container`] is one container id in its own state root. Dropping it
//!   deletes the container by force and fails the test if a process, a cgroup,
//!   a mount or state is still there.
//! - [`Outcome`] is what a finished command gave, and says so in its panics.
//! - [`skip!`] reports a test that this machine cannot run, never silently.
//!
//! Variables: `KILN` (binary under test), `KILN_TEST_NO_SKIP=1` (a skip is a failure),
//! `KILN_TEST_SKIP_LOG` (file that skips are appended to), `KILN_TEST_SLOW` (repeat less and
//! wait longer, see [`rounds`] and [`patience`]).

// A harness reports by panicking, which is what a test is to do.
#![allow(clippy::unwrap_used, clippy::expect_used)]

pub mod agent;
pub mod binary;
mod bundle;
pub mod cgroup;
pub mod chaos;
pub mod command;
pub mod console;
mod container;
pub mod containerd;
pub mod ctr;
pub mod docker;
#[cfg(test)]
mod docs;
pub mod examples;
pub mod faults;
pub mod gateway;
pub mod hostmount;
pub mod http;
pub mod image;
pub mod leftovers;
pub mod pidfd;
pub mod podman;
pub mod proc;
pub mod reaper;
pub mod serve;
pub mod shim;
pub mod skip;
pub mod systemd;
pub mod ttrpc;
pub mod user;

use std::sync::{Arc, Mutex, Weak};

pub use binary::Runtime;
pub use bundle::{Bundle, seccomp_profile};
pub use command::{Cli, Outcome};
pub use container::{Container, eventually, fresh_id, refused, within};
pub use reaper::reap;
pub use serde_json::{Value, json};

/// How often a test is to repeat what it wants `count` of: a tenth on a machine that says of itself
/// that it is slow (`KILN_TEST_SLOW`), as the virtual machine without KVM does.
pub fn rounds(count: u32) -> u32 {
    if is_slow() { count.div_ceil(10) } else { count }
}

/// How long a test is to wait for what takes no time at all elsewhere: ten times as long there.
pub fn patience(seconds: u64) -> std::time::Duration {
    std::time::Duration::from_secs(if is_slow() { 10 * seconds } else { seconds })
}

fn is_slow() -> bool {
    std::env::var_os("KILN_TEST_SLOW").is_some()
}

/// What the tests that run at the moment share; made if none of them has it.
#[track_caller]
pub(crate) fn shared<T>(place: &Mutex<Weak<T>>, make: impl FnOnce() -> T) -> Arc<T> {
    let mut place = place.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let shared = place.upgrade().unwrap_or_else(|| Arc::new(make()));
    *place = Arc::downgrade(&shared);
    shared
}
