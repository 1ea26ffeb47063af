//! Real cgroups: made, entered, frozen, killed, removed. Needs root; works in
//! cgroups called kiln-test-PID-NAME in whatever hierarchies there are.

// One test needs pre_exec.
#![allow(unsafe_code)]

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use common::{Layout, Place, Shell, resources};
use kiln_cgroups::{Cgroup, Error, Hierarchy};

const LAYOUTS: [Layout; 3] = [Layout::Machine, Layout::V1, Layout::V2];

/// Until it holds; a fork takes its time.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what}: not in ten seconds");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn create_attach_list_remove() {
    for layout in LAYOUTS {
        let Some(place) = Place::new("life", "", layout) else {
            continue;
        };
        let cgroup = Cgroup::create(&place.paths).unwrap();
        assert!(cgroup.pids().unwrap().is_empty());
        let shell = Shell::new("");
        cgroup.attach(shell.pid()).unwrap();
        assert_eq!(cgroup.pids().unwrap(), [shell.pid()]);
        let own = std::fs::read_to_string(format!("/proc/{}/cgroup", shell.pid())).unwrap();
        for hierarchy in place.paths.hierarchies() {
            let line = format!(":{}:/{}", hierarchy.name(), hierarchy.path().display());
            assert!(own.lines().any(|found| found.ends_with(&line)), "{line} in {own}");
        }
        let unified = place.paths.hierarchies().iter().any(Hierarchy::is_v2);
        assert_eq!(cgroup.v2_dir().is_some(), unified);
        assert_eq!(place.paths.is_v2(), layout == Layout::V2);
        drop(shell);
        cgroup.remove().unwrap();
        assert!(!place.exists_anywhere());
        cgroup.remove().unwrap();
        kiln_cgroups::remove(&place.paths).unwrap();
        let gone = Cgroup::open(&place.paths).unwrap();
        assert!(!gone.exists());
        assert!(gone.pids().unwrap().is_empty());
        gone.kill().unwrap();
    }
}

#[test]
fn the_hierarchies_can_be_made_in_two_steps_and_entered_by_oneself() {
    let Some(place) = Place::new("steps", "", Layout::Machine) else {
        return;
    };
    let mut cgroup = Cgroup::create_unified(&place.paths).unwrap();
    assert_eq!(cgroup.v2_dir().is_some(), cgroup.exists());
    cgroup.create_v1(&place.paths).unwrap();
    let entrances = cgroup.entrances().unwrap();
    let mut shell = std::process::Command::new("/bin/sh");
    shell.args(["-c", "read go"]).stdin(std::process::Stdio::piped());
    let enter = move || {
        let enter = |entrance: &OwnedFd| kiln_cgroups::enter(entrance.as_fd());
        Ok(entrances.iter().try_for_each(enter)?)
    };
    // SAFETY: `enter` only makes write(2) calls, which a forked child may.
    unsafe { std::os::unix::process::CommandExt::pre_exec(&mut shell, enter) };
    let mut shell = shell.spawn().unwrap();
    let own = std::fs::read_to_string(format!("/proc/{}/cgroup", shell.id())).unwrap();
    let listed = cgroup.pids();
    shell.kill().unwrap();
    shell.wait().unwrap();
    for hierarchy in place.paths.hierarchies().iter().filter(|hierarchy| !hierarchy.is_v2()) {
        let line = format!(":{}:/{}", hierarchy.name(), hierarchy.path().display());
        assert!(own.lines().any(|found| found.ends_with(&line)), "{line} in {own}");
    }
    assert_eq!(listed.unwrap(), [shell.id() as i32]);
}

#[test]
fn nested_cgroups_inherit_their_cpuset_and_go_with_their_descendants() {
    for layout in LAYOUTS {
        let Some(place) = Place::new("nested", "a/b", layout) else {
            continue;
        };
        let cgroup = Cgroup::create(&place.paths).unwrap();
        if layout == Layout::V1
            && let Some(cpuset) = place.hierarchy("cpuset")
        {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let read = |dir: &Path| std::fs::read_to_string(dir.join(file)).unwrap();
                assert_eq!(read(&cpuset.full_path()), read(cpuset.mount_point()));
            }
        }
        let shell = Shell::new("");
        for hierarchy in place.paths.hierarchies() {
            std::fs::create_dir_all(hierarchy.full_path().join("x/y")).unwrap();
            std::fs::create_dir(hierarchy.full_path().join("z")).unwrap();
            if hierarchy.name() != "cpuset" {
                let procs = hierarchy.full_path().join("x/y/cgroup.procs");
                std::fs::write(procs, shell.pid().to_string()).unwrap();
            }
        }
        assert_eq!(cgroup.pids().unwrap(), [shell.pid()]);
        drop(shell);
        kiln_cgroups::remove(&place.paths).unwrap();
        assert!(!place.exists_anywhere());
    }
}

#[test]
fn an_empty_cgroup_is_reused_and_its_empty_cpuset_filled() {
    let Some(place) = Place::new("reuse", "", Layout::Machine) else {
        return;
    };
    for hierarchy in place.paths.hierarchies() {
        std::fs::create_dir(hierarchy.full_path()).unwrap();
    }
    let cgroup = Cgroup::create(&place.paths).unwrap();
    let shell = Shell::new("");
    cgroup.attach(shell.pid()).unwrap();
}

#[test]
fn a_used_or_frozen_cgroup_is_refused_and_nothing_is_left() {
    for layout in LAYOUTS {
        let Some(place) = Place::new("used", "p/c", layout) else {
            continue;
        };
        // Only the hierarchy that is made last is in the way.
        let last = place.paths.hierarchies().last().unwrap();
        std::fs::create_dir_all(last.full_path()).unwrap();
        if last.name() == "cpuset" {
            continue;
        }
        let shell = Shell::new("");
        let procs = last.full_path().join("cgroup.procs");
        std::fs::write(&procs, shell.pid().to_string()).unwrap();
        let error = Cgroup::create(&place.paths).unwrap_err();
        assert!(matches!(error, Error::NotEmpty { count: 1, .. }), "{error}");
        for hierarchy in place.paths.hierarchies() {
            let made = hierarchy.full_path();
            let top = made.parent().and_then(Path::parent).unwrap();
            assert_eq!(top.exists(), hierarchy == last, "{}", top.display());
        }
        assert_eq!(std::fs::read_to_string(procs).unwrap().trim(), shell.pid().to_string());
    }
    for layout in [Layout::V1, Layout::V2] {
        let Some(place) = Place::new("frozen", "", layout) else {
            continue;
        };
        Cgroup::create(&place.paths).unwrap().freeze().unwrap();
        let error = Cgroup::create(&place.paths).unwrap_err();
        assert!(matches!(error, Error::Frozen { .. }), "{error}");
        Cgroup::open(&place.paths).unwrap().thaw().unwrap();
        Cgroup::create(&place.paths).unwrap();
    }
}

#[test]
fn freeze_stops_and_thaw_continues() {
    for layout in LAYOUTS {
        let Some(place) = Place::new("freeze", "", layout) else {
            continue;
        };
        let cgroup = Cgroup::create(&place.paths).unwrap();
        let mut shell = Shell::new("exit 7");
        cgroup.attach(shell.pid()).unwrap();
        assert!(!cgroup.is_frozen().unwrap());
        cgroup.freeze().unwrap();
        assert!(cgroup.is_frozen().unwrap());
        shell.go();
        std::thread::sleep(Duration::from_millis(50));
        assert!(shell.is_running());
        cgroup.thaw().unwrap();
        assert!(!cgroup.is_frozen().unwrap());
        assert_eq!(shell.wait(), Some(7));
    }
}

#[test]
fn kill_gets_forking_and_frozen_processes_and_those_below() {
    for layout in LAYOUTS {
        let Some(place) = Place::new("kill", "", layout) else {
            continue;
        };
        let cgroup = Cgroup::create(&place.paths).unwrap();
        let mut shell = Shell::new("while :; do sleep 1000 & sleep 0.01; done");
        cgroup.attach(shell.pid()).unwrap();
        shell.go();
        eventually("several processes", || cgroup.pids().unwrap().len() > 5);
        for hierarchy in place.paths.hierarchies().iter().filter(|h| h.name() != "cpuset") {
            let below = hierarchy.full_path().join("below");
            std::fs::create_dir(&below).unwrap();
            std::fs::write(below.join("cgroup.procs"), shell.pid().to_string()).unwrap();
        }
        cgroup.freeze().unwrap();
        let before = cgroup.pids().unwrap();
        cgroup.kill().unwrap();
        assert!(cgroup.pids().unwrap().is_empty());
        assert_eq!(shell.wait(), None);
        assert!(!cgroup.is_frozen().unwrap());
        let alive = |pid: &&i32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            !stat.is_empty() && !stat.contains(") Z ") && !stat.contains(") X ")
        };
        assert_eq!(before.iter().filter(alive).count(), 0);
        cgroup.remove().unwrap();
        assert!(!place.exists_anywhere());
    }
}

#[test]
fn signal_reaches_each_process() {
    for layout in LAYOUTS {
        let Some(place) = Place::new("signal", "", layout) else {
            continue;
        };
        let cgroup = Cgroup::create(&place.paths).unwrap();
        let script = "trap 'exit 5' USR1; while :; do sleep 0.01; done";
        let mut shells = [Shell::new(script), Shell::new(script)];
        for shell in &mut shells {
            cgroup.attach(shell.pid()).unwrap();
            shell.go();
        }
        let caught = |pid: i32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
            let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t")).unwrap();
            u64::from_str_radix(mask, 16).unwrap() & (1 << (libc::SIGUSR1 - 1)) != 0
        };
        for shell in &shells {
            eventually("the trap", || caught(shell.pid()));
        }
        cgroup.signal(libc::SIGUSR1).unwrap();
        assert_eq!(shells.each_mut().map(Shell::wait), [Some(5), Some(5)]);
        assert!(matches!(cgroup.signal(1000), Ok(())), "nobody is left to be signalled");
    }
}

#[test]
fn remove_does_not_kill() {
    for layout in [Layout::V1, Layout::V2] {
        let Some(place) = Place::new("busy", "", layout) else {
            continue;
        };
        let cgroup = Cgroup::create(&place.paths).unwrap();
        let mut shell = Shell::new("");
        cgroup.attach(shell.pid()).unwrap();
        let start = Instant::now();
        let error = cgroup.remove().unwrap_err();
        assert!(matches!(error, Error::Remove { .. }), "{error}");
        assert!(error.to_string().contains("still processes in it"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(4));
        assert!(shell.is_running());
    }
}

#[test]
fn remove_waits_for_the_dying() {
    for layout in [Layout::V1, Layout::V2] {
        let Some(place) = Place::new("dying", "", layout) else {
            continue;
        };
        let cgroup = Cgroup::create(&place.paths).unwrap();
        let mut shell = Shell::new("sleep 0.2");
        cgroup.attach(shell.pid()).unwrap();
        shell.go();
        cgroup.remove().unwrap();
        assert!(!place.exists_anywhere());
    }
}

#[test]
fn a_container_without_a_path_is_beside_or_below_us() {
    let Some(place) = Place::new("own", "", Layout::Machine) else {
        return;
    };
    let id = format!("kiln-test-{}-id", std::process::id());
    let paths = kiln_cgroups::resolve(None, &id).unwrap();
    let cgroup = Cgroup::create(&paths).unwrap();
    let result = cgroup.apply(&resources("{}"));
    let exists = paths.hierarchies().iter().all(|hierarchy| hierarchy.full_path().exists());
    cgroup.remove().unwrap();
    result.unwrap();
    assert!(exists);
    drop(place);
}
