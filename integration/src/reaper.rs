//! Makes the test program what conmon and the containerd shim are: the parent
//! of containers whose runtime command has ended, which reaps them.
//!
//! It must: the first process of a pid namespace cannot end before the zombies
//! in it are reaped, and those of a container that joined by path are ours.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::process::{Child, Command, ExitStatus};
use std::sync::{LazyLock, Mutex, MutexGuard, Once};
use std::time::Duration;

use rustix::process::{Pid, WaitOptions, WaitStatus, getpid, set_child_subreaper, waitpid};

use crate::eventually;

/// Children that a test waits for itself, and how the others ended.
#[derive(Default)]
struct Children {
    own: HashSet<i32>,
    ended: HashMap<i32, i32>,
}

fn children() -> MutexGuard<'static, Children> {
    static CHILDREN: LazyLock<Mutex<Children>> = LazyLock::new(Mutex::default);
    // A test that fails while it holds the lock must not fail the others.
    CHILDREN.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Starts a command whose end the caller waits for, by [`wait`] or [`end`].
/// Anything started otherwise loses its exit status to the reaper.
pub fn spawn(command: &mut Command) -> Child {
    let mut children = children();
    let child = command.spawn().unwrap_or_else(|err| panic!("{command:?}: {err}"));
    children.own.insert(child.id().cast_signed());
    child
}

/// Waits for a child that [`spawn`] started.
pub fn wait(child: &mut Child) -> ExitStatus {
    let status = child.wait().unwrap();
    children().own.remove(&child.id().cast_signed());
    status
}

/// Kills a child that [`spawn`] started and waits for it.
pub fn end(child: &mut Child) {
    let _ = child.kill();
    wait(child);
}

/// Waits for the end of a detached container's init and gives its exit status
/// as a shell would: 128 and the signal, if one ended it. Works once.
///
/// # Panics
/// After ten seconds, or if no container's init had this process id.
#[track_caller]
pub fn reap(pid: i32) -> i32 {
    let mut code = None;
    eventually(&format!("the end of process {pid}"), || {
        code = children().ended.remove(&pid);
        code.is_some()
    });
    code.unwrap()
}

/// Starts the reaper of this program, once.
pub(crate) fn start() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        set_child_subreaper(Some(getpid())).unwrap();
        std::thread::spawn(|| {
            loop {
                reap_orphans();
                std::thread::sleep(Duration::from_millis(3));
            }
        });
    });
}

fn reap_orphans() {
    let mut children = children();
    for pid in child_pids() {
        if children.own.contains(&pid) {
            continue;
        }
        if let Ok(Some((_, status))) = waitpid(Pid::from_raw(pid), WaitOptions::NOHANG) {
            children.ended.insert(pid, exit_code(status));
        }
    }
}

/// The children of all threads of this program (proc(5), `/proc/PID/task/TID/children`).
fn child_pids() -> Vec<i32> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let lists = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let pids = |list: String| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    lists.flat_map(|list| -> Vec<i32> { pids(list) }).collect()
}

fn exit_code(status: WaitStatus) -> i32 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => -1,
    }
}
