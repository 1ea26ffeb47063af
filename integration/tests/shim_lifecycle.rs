//! containerd-shim-kiln-v1 by `ctr`: create, start, wait, delete; detach and attach; names, images.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;

use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::ttrpc::proto::Code;
use kiln_integration::ctr::{BUSYBOX, Ctr};
use kiln_integration::image::Image;
use kiln_integration::shim::{Shim, await_end};
use kiln_integration::ttrpc::refused;
use kiln_integration::{Bundle, cgroup, eventually, fresh_id, json, needs_shim, proc};

#[test]
fn exit_statuses() {
    needs_shim!();
    let ctr = Ctr::new();
    for (script, code) in [
        ("exit 0", 0),
        ("exit 1", 1),
        ("exit 255", 255),
        ("kill -TERM $$; sleep 1", 0),
        ("trap 'exit 8' TERM; kill -TERM $$; sleep 1", 8),
    ] {
        ctr.run(&[], &["sh", "-c", script]).exits(code);
    }
    assert_eq!(ctr.leftovers().iter().filter(|left| left.starts_with("state")).count(), 0);
}

#[test]
fn one_by_one() {
    needs_shim!();
    let ctr = Ctr::new();
    let id = fresh_id();
    let snapshotter = if ctr.log().contains("overlayfs") { "overlayfs" } else { "native" };
    let words = ["containers", "create", "--snapshotter", snapshotter, "--runtime"];
    let create = ctr.ctr_cli(&words).args(&["io.containerd.kiln.v1", BUSYBOX, &id]);
    create.args(&["sleep", "1000"]).output().ok();
    assert!(!ctr.bundle(&ctr.namespace, &id).exists(), "no task yet");
    ctr.ctr(&["tasks", "start", "--detach", "--null-io", &id]).ok();
    let task = ctr.adopt(&id);
    assert_eq!(task.status(), "RUNNING");
    let (pid, shim) = (task.pid(), task.shim_pid());
    // The task's process is the shim's child, and in its cgroup.
    let parent = proc::status_field(pid, "PPid").unwrap();
    assert_eq!(parent, shim.to_string());
    assert!(cgroup::members(pid).contains(&pid));
    assert!(!cgroup::members(pid).contains(&shim));
    task.ctr(&["delete"]).fails(&["must be stopped"]);
    task.ctr(&["start", "--detach"]).fails(&["already exists"]);
    task.ctr(&["kill", "--signal", "KILL"]).ok();
    task.await_status("STOPPED");
    task.ctr(&["delete"]).ok();
    await_end(shim);
    // Another task of the same container.
    ctr.ctr(&["tasks", "start", "--detach", "--null-io", &id]).ok();
    assert_ne!(task.shim_pid(), shim);
}

#[test]
fn what_cannot_be_created_says_why_and_leaves_nothing() {
    needs_shim!();
    let ctr = Ctr::new();
    for (program, reason) in [
        ("no-such-program", "\"no-such-program\": executable file not found in $PATH"),
        ("/no/such/program", "no such file or directory"),
        ("/etc", "permission denied"),
    ] {
        let id = fresh_id();
        ctr.run_as(&id, &[], &[program]).output().fails(&[reason]);
        let bundle = ctr.bundle(&ctr.namespace, &id);
        eventually("the bundle to be removed", || !bundle.exists());
        let left = kiln_integration::leftovers::find(&id, &ctr.kiln_root(), &bundle);
        assert_eq!(left, [""; 0]);
        ctr.ctr(&["containers", "delete", &id]).ok();
    }
}

/// The id is free again when the error arrives, and the rootfs unmounted.
#[test]
fn tried_again_at_once() {
    needs_shim!();
    let bundle = Bundle::new().args(&["/no/such/program"]);
    let shim = Shim::start(bundle);
    let mut client = shim.client();
    let lower = shim.home().join("lower");
    fs::create_dir(&lower).unwrap();
    let mut mount = containerd_shim_protos::types::mount::Mount::new();
    (mount.type_, mount.source) = ("bind".to_owned(), lower.to_str().unwrap().to_owned());
    mount.options = ["rbind", "ro"].map(str::to_owned).to_vec();
    for _ in 0..20 {
        refused(client.create(&shim.request(&shim.id)), Code::UNKNOWN, &["/no/such/program"]);
        assert!(!shim.root().join(&shim.id).exists());
        let request = CreateTaskRequest { rootfs: vec![mount.clone()], ..shim.request(&shim.id) };
        assert!(client.create(&request).is_err());
        let mounts = proc::mounts("self");
        assert!(!mounts.iter().any(|mount| mount.point.starts_with(shim.bundle(&shim.id))));
    }
    mount.source = "/no/such/source".to_owned();
    let request = CreateTaskRequest { rootfs: vec![mount], ..shim.request(&shim.id) };
    refused(
        client.create(&request),
        Code::UNKNOWN,
        &["mount bind /no/such/source", "no such file"],
    );
}

/// The container goes on without whoever has started it, and can be attached to.
#[test]
fn detached_and_attached() {
    needs_shim!();
    let ctr = Ctr::new();
    let script = "trap 'echo word' USR1; trap 'echo passed on' WINCH; \
        trap 'echo the last; exit 7' TERM; while :; do sleep 0.01; done";
    let task = ctr.detach(&[], &["sh", "-c", script]);
    let attach = || {
        let mut attached = ctr.ctr_cli(&["tasks", "attach", &task.id]).spawn();
        eventually("a word", || {
            task.ctr(&["kill", "--signal", "USR1"]).ok();
            attached.stdout().contains("word")
        });
        attached
    };
    let attached = attach();
    attached.signal(rustix::process::Signal::KILL);
    attached.wait();
    assert_eq!(task.status(), "RUNNING");
    // What it gets, it passes on, once it has come to that; what would end it, not before.
    let mut attached = attach();
    eventually("it to pass signals on", || {
        attached.signal(rustix::process::Signal::WINCH);
        attached.stdout().contains("passed on")
    });
    attached.signal(rustix::process::Signal::TERM);
    attached.wait().exits(7).shows("the last");
}

#[test]
fn names() {
    needs_shim!();
    let ctr = Ctr::new();
    let unique = fresh_id();
    let longest = format!("{unique}{}", "x".repeat(76 - unique.len()));
    for id in [format!("{unique}.a_b-c.D"), format!("0{unique}"), longest] {
        let task = {
            ctr.run_as(&id, &["--detach"], &["sleep", "1000"]).output().ok();
            ctr.adopt(&id)
        };
        let exec_id = format!("E.{}", &id[..id.len().min(74)]);
        task.exec_as(&exec_id, &[], &["echo", "hello"]).output().ok().prints("hello\n");
    }
    let odd = ["one two", "", "tab\there", "line\nbreak", "ünï", "\"quoted\"", "$HOME", "\\", "🦀"];
    let arguments = [&["sh", "-c", "for a; do echo \"<$a>\"; done", "sh"], &odd[..]].concat();
    let expected: String = odd.iter().map(|word| format!("<{word}>\n")).collect();
    ctr.run(&[], &arguments).ok().prints(&expected);
    // A program, a directory and an image called like that.
    let rootfs = tempfile::tempdir().unwrap();
    fs::create_dir(rootfs.path().join("ä b")).unwrap();
    fs::copy("/bin/busybox", rootfs.path().join("ä b/busybox ü")).unwrap();
    let config = json!({ "Entrypoint": ["/ä b/busybox ü", "pwd"], "WorkingDir": "/ä b" });
    let name = "localhost/kiln-test/odd_name.and-more__x:v1.2-3_4";
    let image = Image::of_folder(name, rootfs.path(), &config, ctr.home());
    ctr.import(&image);
    let run = ctr.run_image(&image.name, &["--rm"], &[&fresh_id()]);
    run.output().ok().prints("/ä b\n");
}

/// More layers than the options of a mount have room for.
#[test]
fn many_layers() {
    needs_shim!();
    let ctr = Ctr::new();
    let layers = tempfile::tempdir().unwrap();
    let paths: Vec<_> = (0..80).map(|number| layers.path().join(number.to_string())).collect();
    for (number, path) in paths.iter().enumerate() {
        fs::create_dir_all(path.join("layers")).unwrap();
        fs::write(path.join("layers").join(number.to_string()), number.to_string()).unwrap();
    }
    let busybox = Bundle::new();
    let rootfs = busybox.rootfs();
    let layers: Vec<_> = [&rootfs].into_iter().chain(&paths).map(PathBuf::as_path).collect();
    let name = "localhost/kiln-test/layers:1";
    let image = Image::of_folders(name, &layers, &json!({ "Env": ["PATH=/bin"] }), ctr.home());
    ctr.import(&image);
    let run = ctr.run_image(name, &["--rm"], &[&fresh_id(), "sh", "-c", "ls /layers | wc -l"]);
    run.output().ok().prints("80\n");
}

/// Its namespaces and the directory of its state are the ones of containerd's namespace: the same
/// id in another is another container.
#[test]
fn the_same_id_in_two_namespaces() {
    needs_shim!();
    let ctr = Ctr::new();
    let task = ctr.detach(&[], &["sleep", "1000"]);
    let other = fresh_id();
    ctr.import_into(&other, &Image::busybox(BUSYBOX, ctr.home()));
    let run = |words: &[&str]| ctr.ctr_in(&other, words);
    let words = ["run", "--rm", "--runtime", "io.containerd.kiln.v1", BUSYBOX, &task.id];
    run(&words).args(&["echo", "other"]).output().ok().prints("other\n");
    assert_eq!(task.status(), "RUNNING");
    for words in [["images", "rm", BUSYBOX], ["namespaces", "rm", &other]] {
        eventually("the namespace to be empty", || run(&words).output().status.success());
    }
    // The cgroup above its containers', which nobody else removes.
    cgroup::directories_of(&other).iter().for_each(|dir| fs::remove_dir(dir).unwrap());
}

/// A shim takes what its containers leave behind, and reaps it.
#[test]
fn orphans_are_reaped() {
    needs_shim!();
    let script = "for i in 1 2 3 4 5; do (sleep 0.5 &) ; done; sleep 1000";
    let shim = Shim::start(Bundle::sh(script).without_namespace("pid"));
    let mut client = shim.client();
    client.create(&shim.request(&shim.id)).unwrap();
    client.start(&shim.id, "").unwrap();
    let ours = || {
        let path = format!("/proc/{0}/task/{0}/children", shim.pid);
        fs::read_to_string(path).unwrap().split_whitespace().count()
    };
    eventually("them to be the shim's", || ours() == 6);
    eventually("them to end", || ours() == 1);
    client.kill(&shim.id, "", 9, true).unwrap();
    assert_eq!(client.wait(&shim.id, ""), Ok(137));
}

/// Nobody else ends what such a container leaves behind.
#[test]
fn a_shared_pid_namespace() {
    needs_shim!();
    let ctr = Ctr::new();
    let namespace = format!("pid:/proc/{}/ns/pid", std::process::id());
    let flags = ["--with-ns", &namespace];
    let task = ctr.detach(&flags, &["sh", "-c", "sleep 1000 & sleep 1000 & wait"]);
    let pid = task.pid();
    eventually("three processes", || cgroup::members(pid).len() == 3);
    let members = cgroup::members(pid);
    assert_eq!(proc::namespace(pid, "pid"), proc::own_namespace("pid"));
    task.ctr(&["kill", "--signal", "KILL"]).ok();
    task.await_status("STOPPED");
    members.into_iter().for_each(await_end);
    // Init ends by itself.
    let outcome = ctr.run(&flags, &["sh", "-c", "sleep 1000 & echo $!; exit 3"]).exits(3);
    let left: i32 = outcome.stdout.trim().parse().unwrap();
    assert!(!proc::alive(left));
}
