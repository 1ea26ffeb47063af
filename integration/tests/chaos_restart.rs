//! containerd is ended and started again while containers run, while something is executed in
//! them, and while they end: they go on, it finds them again, and nothing that they said or how
//! they ended is lost.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use kiln_integration::chaos::{IMAGE, Lab, WASM, descriptors, signal, warm_parent};
use kiln_integration::containerd::Shim;
use kiln_integration::{eventually, fresh_id, kiln_only, needs_shim, needs_wasm, proc};
use rustix::process::Signal;

#[test]
fn on_sigterm() {
    containers_go_on(Signal::TERM);
}

#[test]
fn on_sigkill() {
    containers_go_on(Signal::KILL);
}

fn containers_go_on(how: Signal) {
    kiln_only!("it runs no wasm");
    needs_wasm!();
    needs_shim!();
    let mut lab = Lab::new();
    // Once `ctr` has gone it says more than a FIFO holds, so it waits for a reader in the middle.
    let talks =
        "sleep 1; i=0; while [ $i -lt 30000 ]; do echo $i; i=$((i+1)); done; exec sleep 10000";
    let talker = Task::start(&lab, &[], &["sh", "-c", talks]);
    let module = Task::start(&lab, &WASM, &["/sleep.wasm", "10000"]);
    let leaver = Task::start(&lab, &[], &["sh", "-c", "sleep 2; echo last words; exit 3"]);
    let victim = Task::start(&lab, &[], &["sleep", "10000"]);
    let host = Task::start(&lab, &WASM, &["/sleep.wasm", "10000"]);
    host.exec(&lab, "stays", &["sleep", "10000"]);
    host.exec(&lab, "module", &["/sleep.wasm", "10000"]);
    host.exec(&lab, "leaves", &["sh", "-c", "sleep 2; echo last words; exit 5"]);
    let stays = lab.execs(&host.id);
    eventually("the FIFO to be full", || {
        fs::read_to_string(format!("/proc/{}/syscall", talker.pid)).unwrap().starts_with("1 0x1 ")
    });

    lab.containerd.stop(how);
    let tasks = [&talker, &module, &leaver, &victim, &host];
    assert!(tasks.iter().all(|task| proc::alive(task.shim)));
    // The leaver may have left.
    assert!([&talker, &module, &victim, &host].iter().all(|task| proc::alive(task.pid)));
    signal(victim.pid, Signal::KILL);
    eventually("the ends that nobody hears of", || {
        !proc::alive(victim.pid) && !proc::alive(leaver.pid) && children_named(host.shim, "sh") == 0
    });
    lab.containerd.start_again();

    for task in [&talker, &module, &host] {
        assert_eq!(lab.true_status(&task.id).as_deref(), Some("RUNNING"));
        assert_eq!(lab.pid(&task.id, "init.pid"), Some(task.pid));
    }
    let numbers: String = (0..30000).map(|number| format!("{number}\n")).collect();
    talker.said(&numbers);
    // Who is to answer is the same as before.
    lab.tasks(&["exec", "--exec-id", "new", &module.id, "/hello.wasm"])
        .output()
        .ok()
        .prints("hello from wasm\n");
    let execs = lab.execs(&host.id);
    assert!(execs.len() == 2 && execs.iter().all(|exec| stays.contains(exec)), "{execs:?}");
    let delete = |exec_id: &str| lab.tasks(&["delete", "--exec-id", exec_id, &host.id]).output();
    delete("leaves").exits(5);
    for exec_id in ["stays", "module"] {
        lab.tasks(&["kill", "--signal", "KILL", "--exec-id", exec_id, &host.id]).output().ok();
    }
    eventually("their end", || lab.execs(&host.id).is_empty());
    for exec_id in ["stays", "module"] {
        delete(exec_id).exits(137);
    }
    leaver.said("last words\n");
    for (task, code) in [(&leaver, "3"), (&victim, "137")] {
        assert_eq!(lab.true_status(&task.id).as_deref(), Some("STOPPED"));
        let deleted = lab.tasks(&["delete", &task.id]).output();
        assert!(deleted.stderr.contains(&format!("non-zero exit code {code}")), "{deleted}");
    }
    tasks.iter().for_each(|task| lab.remove(&task.id));
    lab.assert_nothing_left();
}

#[test]
fn again_and_again() {
    kiln_only!("it runs no wasm");
    needs_wasm!();
    needs_shim!();
    let mut lab = Lab::new();
    let tasks = [Task::start(&lab, &WASM, &["/sleep.wasm", "10000"]), {
        let flags = ["--annotation", &lab.group_annotation()];
        Task::start(&lab, &flags, &["sleep", "10000"])
    }];
    let open = || tasks.iter().map(|task| descriptors(task.shim)).collect::<Vec<_>>();
    let (before, warm) = (open(), warm_parent(tasks[0].shim));
    for round in 0..10 {
        lab.containerd.stop(if round % 2 == 0 { Signal::KILL } else { Signal::TERM });
        lab.containerd.start_again();
        for task in &tasks {
            let there = (task.id.clone(), task.pid, "RUNNING".to_owned());
            assert!(lab.list().contains(&there), "round {round}");
            lab.tasks(&["exec", "--exec-id", "e", &task.id, "true"]).output().ok();
        }
    }
    eventually("the connections to be closed", || open() == before);
    assert_eq!(warm_parent(tasks[0].shim), warm);
    tasks.iter().for_each(|task| lab.remove(&task.id));
    lab.assert_nothing_left();
}

/// A task whose output goes to a FIFO that nobody reads.
struct Task {
    id: String,
    pid: i32,
    shim: i32,
    fifos: PathBuf,
}

impl Task {
    #[track_caller]
    fn start(lab: &Lab, flags: &[&str], command: &[&str]) -> Self {
        let id = fresh_id();
        let fifos = lab.containerd.home().join("f").join(&id);
        let flags = [&["--detach", "--fifo-dir", fifos.to_str().unwrap()], flags].concat();
        let command = [&[id.as_str()], command].concat();
        lab.containerd.run_cli(Shim::Kiln, &flags, IMAGE, &command).output().ok();
        let pid = lab.pid(&id, "init.pid").unwrap();
        Task { pid, shim: lab.shim(&id), fifos, id }
    }

    #[track_caller]
    fn exec(&self, lab: &Lab, exec_id: &str, command: &[&str]) {
        let exec = lab.tasks(&["exec", "--detach", "--exec-id", exec_id, "--fifo-dir"]);
        exec.arg(&self.fifos).arg(&self.id).args(command).output().ok();
    }

    /// Asserts what its stdout begins with. Opens it late, without waiting for a writer: there is
    /// what was said, whoever has ended.
    #[track_caller]
    fn said(&self, expected: &str) {
        let folder = fs::read_dir(&self.fifos).unwrap().flatten().find_map(|entry| {
            let path = entry.path().join(format!("{}-stdout", self.id));
            path.exists().then_some(path)
        });
        let mut options = File::options();
        let mut fifo =
            options.read(true).custom_flags(libc_nonblock()).open(folder.unwrap()).unwrap();
        let mut said = Vec::new();
        eventually("all that it has said", || {
            // Until there is nothing more, which is told as an error, or as the end.
            let _ = fifo.read_to_end(&mut said);
            said.len() >= expected.len()
        });
        assert!(
            said == expected.as_bytes(),
            "{} bytes: {:?}",
            said.len(),
            &said[..said.len().min(99)]
        );
    }
}

fn libc_nonblock() -> i32 {
    rustix::fs::OFlags::NONBLOCK.bits().cast_signed()
}

fn children_named(pid: i32, name: &str) -> usize {
    let named = |pid: &i32| proc::status_field(*pid, "Name").as_deref() == Some(name);
    proc::children(pid).iter().filter(|pid| named(pid)).count()
}
