//! What `ctr run` can ask of containerd-shim-kiln-v1: the flags, the limits, the runtime's options.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use containerd_shim_protos::api::CreateTaskRequest;
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::oci;
use containerd_shim_protos::ttrpc::proto::Code;
use kiln_integration::ctr::Ctr;
use kiln_integration::image::Image;
use kiln_integration::shim::{Shim, any};
use kiln_integration::ttrpc::refused;
use kiln_integration::{
    Bundle, Cli, Value, cgroup, eventually, fresh_id, json, needs_shim, proc, skip,
};

#[test]
fn environment_and_directories() {
    needs_shim!();
    let ctr = Ctr::new();
    let flags = ["--env", "A=one two", "--env", "B=", "--cwd", "/tmp"];
    let script = "pwd; echo \"$A|$B|$PATH\"; hostname";
    ctr.run(&flags, &["sh", "-c", script]).ok().shows("/tmp\none two||/bin\n");
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "C=from a file\n").unwrap();
    let flags = ["--env-file", file.path().to_str().unwrap()];
    ctr.run(&flags, &["sh", "-c", "echo $C"]).ok().prints("from a file\n");
}

#[test]
fn mounts() {
    needs_shim!();
    let ctr = Ctr::new();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "on the host\n").unwrap();
    let mount = |options: &str| {
        format!("type=bind,src={},dst=/mnt/deep,options={options}", dir.path().display())
    };
    let writes = ["sh", "-c", "cat /mnt/deep/file; echo x >/mnt/deep/new"];
    let read_only = ctr.run(&["--mount", &mount("rbind:ro")], &writes);
    read_only.exits(1).prints("on the host\n");
    assert!(!dir.path().join("new").exists());
    ctr.run(&["--mount", &mount("rbind:rw")], &writes).ok();
    assert_eq!(fs::read_to_string(dir.path().join("new")).unwrap(), "x\n");
    let tmpfs = "type=tmpfs,src=tmpfs,dst=/new,options=size=1m";
    let script = "dd if=/dev/zero of=/new/file bs=1M count=2 2>/dev/null; stat -c %s /new/file";
    ctr.run(&["--mount", tmpfs], &["sh", "-c", script]).ok().prints("1048576\n");
    let missing = "type=bind,src=/no/such/source,dst=/mnt,options=rbind";
    ctr.run(&["--mount", missing], &["true"]).fails(&["/no/such/source", "no such file"]);
}

#[test]
fn a_read_only_root() {
    needs_shim!();
    let ctr = Ctr::new();
    let script = "touch /file 2>&1 && echo written";
    let outcome = ctr.run(&["--read-only"], &["sh", "-c", script]).exits(1);
    assert!(outcome.stdout.contains("Read-only file system"), "{outcome}");
    ctr.run(&[], &["sh", "-c", script]).ok().prints("written\n");
}

/// The image says who; `ctr run` has no flag for it.
#[test]
fn users() {
    needs_shim!();
    let ctr = Ctr::new();
    let bundle = Bundle::new();
    let passwd = "root:x:0:0::/:/bin/sh\nsomebody:x:1234:1234::/home:/bin/sh\n";
    fs::write(bundle.rootfs().join("etc/passwd"), passwd).unwrap();
    fs::write(bundle.rootfs().join("etc/group"), "root:x:0:\nmany:x:77:somebody\n").unwrap();
    for (user, expected) in [("1000:1001", "1000 1001"), ("somebody", "1234 1234")] {
        let config = json!({ "User": user, "Env": ["PATH=/bin"] });
        let name = format!("localhost/kiln-test/user:{}", user.replace(':', "-"));
        ctr.import(&Image::of_folder(&name, &bundle.rootfs(), &config, ctr.home()));
        let words = [&fresh_id(), "sh", "-c", "echo $(id -u) $(id -g)"];
        let run = ctr.run_image(&name, &["--rm"], &words);
        run.output().ok().prints(&format!("{expected}\n"));
    }
}

#[test]
fn the_pid_file() {
    needs_shim!();
    let ctr = Ctr::new();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let task = ctr.detach(&["--pid-file", file.to_str().unwrap()], &["sleep", "1000"]);
    assert_eq!(fs::read_to_string(file).unwrap(), task.pid().to_string());
}

#[test]
fn the_cgroup() {
    needs_shim!();
    let ctr = Ctr::new();
    let path = format!("/{}/a deep/place", ctr.namespace);
    let task = ctr.detach(&["--cgroup", &path], &["sleep", "1000"]);
    let text = fs::read_to_string(format!("/proc/{}/cgroup", task.pid())).unwrap();
    assert!(text.lines().any(|line| line.ends_with(&path)), "{text}");
    task.exec(&[], &["true"]).ok();
    drop(task);
    // It goes, and what is above it, which is not ours, stays.
    assert!(cgroup::directories_of("place").is_empty());
    for dir in cgroup::directories_of("a deep") {
        fs::remove_dir(dir).unwrap();
    }
}

#[test]
fn limits() {
    needs_shim!();
    for controller in ["memory", "cpu"] {
        if !cgroup::has(controller) {
            skip!("no {controller} controller");
        }
    }
    let ctr = Ctr::new();
    let flags = ["--memory-limit", "33554432", "--cpus", "0.5", "--cpu-shares", "100"];
    let task = ctr.detach(&flags, &["sleep", "1000"]);
    let pid = task.pid();
    let setting = |controller, v1, v2| cgroup::setting(pid, controller, v1, v2).unwrap();
    assert_eq!(setting("memory", "memory.limit_in_bytes", "memory.max"), "33554432");
    assert!(setting("cpu", "cpu.cfs_quota_us", "cpu.max").starts_with("50000"));
    if !cgroup::is_v2() {
        assert_eq!(setting("cpu", "cpu.shares", "cpu.weight"), "100");
    }
    drop(task);
    let mut listener = ctr.ctr_cli(&["events"]).spawn();
    eventually("the first event", || {
        ctr.run(&[], &["true"]).ok();
        !listener.stdout().is_empty()
    });
    let id = fresh_id();
    let flags = ["--rm", "--memory-limit", "16777216"];
    ctr.run_as(&id, &flags, &["tail", "/dev/zero"]).output().exits(137);
    let mut heard = |topic: &str| {
        let text = listener.stdout();
        text.lines().position(|line| line.contains(topic) && line.contains(&id))
    };
    eventually("the exit", || heard("/tasks/exit").is_some());
    let (oom, exit) = (heard("/tasks/oom"), heard("/tasks/exit"));
    assert!(oom.is_some() && oom < exit, "{}", listener.stdout());
    listener.signal(rustix::process::Signal::TERM);
    let _ = listener.try_wait();
}

#[test]
fn privileges() {
    needs_shim!();
    let ctr = Ctr::new();
    let show = ["grep", "-E", "CapEff|NoNewPrivs|Seccomp:", "/proc/self/status"];
    let plain = ctr.run(&[], &show).ok().stdout;
    assert!(plain.contains("NoNewPrivs:\t1") && plain.contains("Seccomp:\t0"), "{plain}");
    let flags = ["--seccomp", "--allow-new-privs", "--cap-drop", "CAP_CHOWN"];
    let other = ctr.run(&flags, &show).ok().stdout;
    assert!(other.contains("NoNewPrivs:\t0") && other.contains("Seccomp:\t2"), "{other}");
    let effective = |text: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix("CapEff:\t"));
        u64::from_str_radix(line.unwrap(), 16).unwrap()
    };
    assert_eq!(effective(&plain) & !effective(&other), 1, "CAP_CHOWN is 0");
    let task = ctr.detach(&["--net-host"], &["sleep", "1000"]);
    assert_eq!(proc::namespace(task.pid(), "net"), proc::own_namespace("net"));
}

#[test]
fn a_user_namespace() {
    needs_shim!();
    let ctr = Ctr::new();
    let flags = ["--uidmap", "0:200000:65536", "--gidmap", "0:200000:65536"];
    let task = ctr.detach(&flags, &["sleep", "1000"]);
    let uids = proc::status_field(task.pid(), "Uid").unwrap();
    assert!(uids.starts_with("200000"), "{uids}");
    // Its streams are its user's, too.
    let outcome = task.exec(&[], &["sh", "-c", "id -u; echo said >/dev/stdout"]);
    outcome.ok().prints("0\nsaid\n");
}

// --- the runtime's options ---

#[test]
fn the_root() {
    needs_shim!();
    let ctr = Ctr::new();
    // `ctr` passes --runc-root to runc's shim only; a file with the same to any.
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("options.toml");
    let root = dir.path().join("the root");
    fs::write(&config, format!("Root = {root:?}\n")).unwrap();
    let flags = ["--runtime-config-path", config.to_str().unwrap()];
    let task = ctr.detach(&flags, &["sleep", "1000"]);
    assert!(root.join(&ctr.namespace).join(&task.id).join("state.json").exists());
    task.exec(&[], &["true"]).ok();
    drop(task);
    assert_eq!(fs::read_dir(root.join(&ctr.namespace)).unwrap().count(), 0);
    fs::write(&config, "Roots = 1\n").unwrap();
    ctr.run(&flags, &["true"]).fails(&["options", "Roots"]);
}

#[test]
fn systemd() {
    needs_shim!();
    if Path::new("/run/systemd/system").exists() {
        skip!("systemd runs here; this is about machines without it");
    }
    let id = fresh_id();
    let shim = Shim::start(Bundle::new());
    let path = shim.bundle(&shim.id).join("config.json");
    let mut config: Value = fs::read_to_string(&path).unwrap().parse().unwrap();
    config["linux"]["cgroupsPath"] = json!(format!("system.slice:kiln:{id}"));
    fs::write(&path, config.to_string()).unwrap();
    let mut options = oci::Options::new();
    options.root = shim.home().join("r").to_str().unwrap().to_owned();
    options.systemd_cgroup = true;
    let request = with_options(&shim, any("containerd.runc.v1.Options", &options));
    refused(shim.client().create(&request), Code::UNKNOWN, &["systemd"]);
    assert!(cgroup::directories_of(&id).is_empty());
}

fn with_options(shim: &Shim, options: Any) -> CreateTaskRequest {
    CreateTaskRequest { options: MessageField::some(options), ..shim.request(&shim.id) }
}

#[test]
fn options_that_are_refused() {
    needs_shim!();
    let shim = Shim::start(Bundle::new());
    let mut client = shim.client();
    let mut options = oci::Options::new();
    options.binary_name = "/usr/sbin/runc".to_owned();
    let named = any("containerd.runc.v1.Options", &options);
    let answer = client.create(&with_options(&shim, named));
    refused(answer, Code::INVALID_ARGUMENT, &["BinaryName: this shim is the runtime"]);
    let other = any("some.other.v1.Options", &options);
    let answer = client.create(&with_options(&shim, other));
    refused(answer, Code::INVALID_ARGUMENT, &["some.other.v1.Options"]);
    let mut garbage = Any::new();
    garbage.type_url = "containerd.runc.v1.Options".to_owned();
    garbage.value = vec![0xff; 7];
    let answer = client.create(&with_options(&shim, garbage));
    refused(answer, Code::INVALID_ARGUMENT, &["options"]);
    assert_eq!(client.run(&shim.request(&shim.id)), 0);
}

#[test]
fn no_pivot_root_and_no_new_keyring() {
    needs_shim!();
    let shim = Shim::start(Bundle::new().args(&["ls", "/"]));
    let (mut client, mut out) = (shim.client(), shim.fifo());
    let mut options = oci::Options::new();
    options.root = shim.home().join("r").to_str().unwrap().to_owned();
    (options.no_pivot_root, options.no_new_keyring) = (true, true);
    let mut request = with_options(&shim, any("containerd.runc.v1.Options", &options));
    request.stdout = out.name();
    assert_eq!(client.run(&request), 0);
    assert_eq!(out.read_to_end(), b"bin\ndev\netc\nproc\nroot\nsys\ntmp\n");
}

#[test]
fn a_rootfs_that_is_not_containerds() {
    needs_shim!();
    let ctr = Ctr::new();
    let bundle = Bundle::new();
    let rootfs = bundle.rootfs();
    let id = fresh_id();
    let run = Cli::new(["--address"]).binary("ctr").arg(ctr.socket());
    let run = run.args(&["--namespace", &ctr.namespace, "run", "--rm", "--rootfs", "--runtime"]);
    let run =
        run.args(&["io.containerd.kiln.v1", rootfs.to_str().unwrap(), &id, "/bin/echo", "hello"]);
    run.output().ok().prints("hello\n");
}
