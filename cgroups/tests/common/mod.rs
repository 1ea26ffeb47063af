//! A container's worth of real cgroups for one test, cleaned up after it.

// Each test binary uses only a part of this; the lints know helpers of tests
// only inside #[test] functions.
#![allow(dead_code, clippy::expect_used, clippy::unwrap_used)]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use kiln_cgroups::{Cgroup, Hierarchy, Paths};
use oci_spec::runtime::LinuxResources;

/// Controllers that v2 tests enable in the hierarchy's root are disabled again
/// after each, so two of them must not run at the same time.
static UNIFIED: Mutex<()> = Mutex::new(());

/// Which hierarchies a test works in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// All that this machine has.
    Machine,
    /// The v1 hierarchies alone, as on a machine without unified.
    V1,
    /// The unified hierarchy alone, as on a machine without v1.
    V2,
}

/// Where the test's cgroups are; removes them, and kills what is in them,
/// when it goes out of scope.
pub struct Place {
    pub paths: Paths,
    root_control: Option<(PathBuf, String)>,
    _lock: MutexGuard<'static, ()>,
}

impl Place {
    /// `below` is a path below the test's own cgroup, or empty. None, said
    /// aloud, if the machine lacks what the test needs.
    pub fn new(test: &str, below: &str, layout: Layout) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            return skip("real cgroups need root");
        }
        let lock = UNIFIED.lock().unwrap_or_else(PoisonError::into_inner);
        let path = format!("/kiln-test-{}-{test}/{below}", std::process::id());
        let paths = kiln_cgroups::resolve(Some(Path::new(&path)), "unused").expect("resolve");
        let paths = match layout {
            Layout::Machine => Some(paths),
            Layout::V1 => only_v1(&paths),
            Layout::V2 => only_v2(&path),
        };
        let Some(paths) = paths else {
            return skip("no hierarchy of that version is mounted");
        };
        let unified = paths.hierarchies().iter().find(|hierarchy| hierarchy.is_v2());
        let root_control = unified.map(|hierarchy| {
            let file = hierarchy.mount_point().join("cgroup.subtree_control");
            let before = std::fs::read_to_string(&file).expect("cgroup.subtree_control");
            (file, before)
        });
        Some(Self { paths, root_control, _lock: lock })
    }

    /// The hierarchy with this name or controller; None, said aloud, if there
    /// is none.
    pub fn hierarchy(&self, name: &str) -> Option<&Hierarchy> {
        let found = self.paths.hierarchies().iter().find(|hierarchy| {
            hierarchy.name() == name || hierarchy.controllers().iter().any(|c| c == name)
        });
        found.or_else(|| skip(&format!("no {name} hierarchy")))
    }

    pub fn read(&self, controller: &str, file: &str) -> Option<String> {
        let path = self.hierarchy(controller)?.full_path().join(file);
        Some(std::fs::read_to_string(&path).expect("read a limit back").trim_end().to_owned())
    }

    pub fn exists_anywhere(&self) -> bool {
        self.paths.hierarchies().iter().any(|hierarchy| hierarchy.full_path().exists())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Ok(cgroup) = Cgroup::open(&self.paths) {
            let _ = cgroup.kill();
        }
        let _ = kiln_cgroups::remove(&self.paths);
        for hierarchy in self.paths.hierarchies() {
            let mut path = hierarchy.full_path();
            while path.parent().is_some_and(|parent| parent != hierarchy.mount_point()) {
                path.pop();
                let _ = std::fs::remove_dir(&path);
            }
        }
        if let Some((file, before)) = &self.root_control {
            let now = std::fs::read_to_string(file).unwrap_or_default();
            for name in now.split_whitespace().filter(|name| !before.contains(*name)) {
                let _ = std::fs::write(file, format!("-{name}"));
            }
        }
    }
}

/// The paths without the unified hierarchy; through JSON, as `state` has it.
fn only_v1(paths: &Paths) -> Option<Paths> {
    let mut json = serde_json::to_value(paths).expect("to JSON");
    let list = json["hierarchies"].as_array_mut().expect("a list");
    list.retain(|hierarchy| hierarchy["v2"] == false);
    if list.is_empty() {
        return None;
    }
    Some(serde_json::from_value(json).expect("from JSON"))
}

/// The unified hierarchy alone, which `resolve` leaves out of a hybrid layout
/// if it has no controllers.
fn only_v2(path: &str) -> Option<Paths> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?.split(' ').nth(4)?;
    let controllers = std::fs::read_to_string(format!("{mount}/cgroup.controllers")).ok()?;
    let json = serde_json::json!({"hierarchies": [{
        "v2": true,
        "name": "",
        "controllers": controllers.split_whitespace().collect::<Vec<_>>(),
        "mount_point": mount,
        "path": path.trim_matches('/'),
    }]});
    Some(serde_json::from_value(json).expect("from JSON"))
}

/// Says that a test did not run and why; with KILN_TEST_NO_SKIP=1 it fails.
pub fn skip<T>(reason: &str) -> Option<T> {
    eprintln!("skipped: {reason}");
    assert!(std::env::var("KILN_TEST_NO_SKIP").as_deref() != Ok("1"), "not run: {reason}");
    None
}

pub fn resources(json: &str) -> LinuxResources {
    serde_json::from_str(json).expect("resources")
}

/// A shell that waits for a line and then runs `script`; dead and reaped when
/// it goes out of scope.
pub struct Shell(Child);

impl Shell {
    pub fn new(script: &str) -> Self {
        let script = format!("read go; {script}");
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &script]).stdin(Stdio::piped());
        Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start a shell"))
    }

    pub fn pid(&self) -> i32 {
        self.0.id() as i32
    }

    pub fn go(&mut self) {
        self.0.stdin.take().expect("only once").write_all(b"\n").expect("wake the shell");
    }

    /// The exit status after [`Shell::go`]; none if a signal ended it.
    pub fn wait(&mut self) -> Option<i32> {
        self.0.wait().expect("wait").code()
    }

    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().expect("wait").is_none()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
