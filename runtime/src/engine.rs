//! What executes an entrypoint that is not a Linux program.
//!
//! This trait is all that `runtime` knows of WebAssembly, and all that an engine knows of
//! containers. The command line picks an engine (or none) before anything is created; `create`
//! calls the methods below in the order in which they stand here.

use std::os::fd::BorrowedFd;
use std::path::Path;

use oci_spec::runtime::Spec;

/// Why an engine refused or could not run an entrypoint.
///
/// The text is shown to the user behind the name of the failed step; it names the module and
/// says what is wrong with it (STYLE.md, Errors).
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct EngineError(pub String);

/// The entrypoint as the engine must present it to its guest.
///
/// The process that sees this is the container's init, already inside its rootfs, as the
/// container's user, with everything the spec takes away taken away.
#[derive(Debug)]
pub struct Workload<'a> {
    /// `process.args`; the first is the entrypoint and the guest's `argv[0]`.
    pub args: &'a [String],
    /// `process.env`, each `NAME=value`.
    pub env: &'a [String],
    /// `process.cwd`, absolute inside the container; also the process's working directory.
    pub cwd: &'a Path,
    /// Directories to preopen under their own names besides `/` and the working directory: the
    /// destinations of the spec's mounts.
    pub mounts: Vec<&'a Path>,
    /// Whether this is the container's init; else it is an exec'd process.
    pub is_init: bool,
}

/// Runs the entrypoint of a container in place of execve(2).
///
/// An engine starts no thread before [`Engine::run`]: its process forks.
pub trait Engine {
    /// The engine's name in messages, such as `wasmedge`.
    fn name(&self) -> &'static str;

    /// In the runtime's process and namespaces, before anything exists: find, read, check and
    /// load the entrypoint, and open whatever only the host can provide (a cache of compiled
    /// code). `rootfs` is the container's root directory without the spec's mounts.
    ///
    /// An entrypoint that can be seen only once the mounts are in place is left to
    /// [`Engine::load`]. `is_init` is as in [`Workload`].
    ///
    /// # Errors
    /// The entrypoint is not one that this engine can run. Nothing has been created yet.
    fn prepare(
        &mut self,
        spec: &Spec,
        rootfs: BorrowedFd<'_>,
        is_init: bool,
    ) -> Result<(), EngineError>;

    /// In init, with the spec's mounts in place under `rootfs` and the host's root still
    /// visible: load what [`Engine::prepare`] could not see. Paths are resolved inside `rootfs`
    /// only (openat2(2), RESOLVE_IN_ROOT).
    ///
    /// # Errors
    /// As for [`Engine::prepare`]; `create` fails and undoes what it did.
    fn load(&mut self, rootfs: BorrowedFd<'_>) -> Result<(), EngineError>;

    /// The descriptors that a container's init must keep for the engine until its guest ends: all
    /// others are closed on the way. An exec'd process keeps none.
    fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }

    /// In init, at `start`, as the container's user, right before the runtime is told that the
    /// workload runs: open what whoever hears of that may use at once, such as a listening socket.
    ///
    /// # Errors
    /// `start` fails with this one.
    fn open(&mut self, workload: &Workload<'_>) -> Result<(), EngineError> {
        let _ = workload;
        Ok(())
    }

    /// In init, confined, at `start`: run the guest to its end and return the process's exit
    /// status: the guest's own, or 134 after a trap, whose reason has been written to stderr.
    ///
    /// # Errors
    /// The guest could not be started at all.
    fn run(&mut self, workload: &Workload<'_>) -> Result<i32, EngineError>;
}
