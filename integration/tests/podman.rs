//! Podman with conmon, root's.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::os::unix::net::UnixDatagram;

use kiln_integration::console::on_terminal;
use kiln_integration::image::Image;
use kiln_integration::podman::{BUSYBOX, Podman};
use kiln_integration::{
    Outcome, Value, cgroup, command, eventually, examples, json, kiln_only, needs_wasm, patience,
    proc, skip,
};

/// Ends with 3 on SIGTERM, and says so when it has begun.
const OBEDIENT: [&str; 3] =
    ["sh", "-c", "trap 'echo asked; exit 3' TERM; echo begun; while :; do sleep 0.02; done"];

#[track_caller]
fn await_log(podman: &Podman, name: &str, text: &str) {
    eventually(&format!("{text:?} in the log"), || {
        podman.podman(&["logs", name]).ok().stdout.contains(text)
    });
}

#[track_caller]
fn await_status(podman: &Podman, name: &str, status: &str) {
    eventually(&format!("{name} to be {status}"), || {
        podman.inspect(name)["State"]["Status"] == status
    });
}

#[test]
fn it_is_kiln_that_runs_it() {
    kiln_only!("it is not");
    let podman = Podman::shared();
    let info = podman.podman(&["info", "--format", "{{.Host.OCIRuntime.Version}}"]).ok();
    assert!(info.stdout.starts_with("kiln version "), "{info}");
    let name = podman.detach(&[], &["sleep", "100"]);
    assert_eq!(podman.inspect(&name)["OCIRuntime"], "kiln");
    podman.remove(&name);
}

#[test]
fn exit_statuses_arrive() {
    let podman = Podman::shared();
    podman.run(&[], &["true"]).ok();
    podman.run(&[], &["sh", "-c", "echo out; echo err >&2; exit 7"]).exits(7).prints("out\n");
    let name = podman.detach(&[], &["sh", "-c", "exit 5"]);
    podman.podman(&["wait", &name]).ok().prints("5\n");
    podman.remove(&name);
    // Another process than the first may end by any signal.
    podman.run(&["--init"], &["sh", "-c", "kill -9 $$"]).exits(137);
}

/// What Podman makes of the errors' texts: 127 for what is not there, 126 for what may not be
/// executed.
#[test]
fn what_cannot_be_executed_is_126_or_127() {
    let podman = Podman::shared();
    let name = podman.detach(&[], &["sleep", "100"]);
    let check = |outcome: Outcome, code, parts: &[&str]| {
        assert!(!outcome.stderr.contains("level=warning"), "{outcome}");
        outcome.fails_with(code, parts);
    };
    let missing = "attempted to invoke a command that was not found";
    let denied = "OCI permission denied";
    for (program, code, part, verdict) in [
        ("no-such", 127, "executable file not found in", missing),
        ("/no/such", 127, "no such file or directory", missing),
        ("/etc", 126, "permission denied", denied),
        ("/tmp/plain", 126, "permission denied", denied),
    ] {
        let plain = podman.home().join("plain");
        fs::write(&plain, "#!/bin/sh\n").unwrap();
        let volume = format!("{}:/tmp/plain:ro", plain.display());
        check(podman.run(&["--volume", &volume], &[program]), code, &[program, part, verdict]);
        if program != "/tmp/plain" {
            check(podman.podman(&["exec", &name, program]), code, &[program, part, verdict]);
        }
    }
    check(
        podman.podman(&["exec", "--workdir", "/no/such", &name, "true"]),
        127,
        &["/no/such", "no such file or directory"],
    );
    podman.remove(&name);
}

/// Podman asks for a log in JSON only of the runtimes that its configuration lists.
#[test]
fn an_error_is_the_same_without_the_log() {
    let podman = Podman::shared();
    let config = fs::read_to_string(podman.home().join("containers.conf")).unwrap();
    let unlisted: Vec<_> =
        config.lines().filter(|line| !line.starts_with("runtime_supports_json")).collect();
    let path = podman.home().join("no-json.conf");
    fs::write(&path, unlisted.join("\n")).unwrap();
    let cli = podman.run_cli(&["--rm"], &[BUSYBOX, "no-such"]).env("CONTAINERS_CONF", path);
    cli.output().fails_with(127, &["executable file not found in"]);
}

#[test]
fn a_container_from_run_to_rm() {
    let podman = Podman::shared();
    let name = podman.detach(&[], &OBEDIENT);
    await_log(&podman, &name, "begun");
    let listed = ["ps", "--format", "{{.Names}} {{.Status}}"];
    podman.podman(&listed).ok().shows(&format!("{name} Up"));
    podman.podman(&["pause", &name]).ok();
    assert_eq!(podman.inspect(&name)["State"]["Status"], "paused");
    podman.podman(&["exec", &name, "true"]).exits(255);
    podman.podman(&["unpause", &name]).ok();
    podman.podman(&["stop", "--time", "20", &name]).ok();
    await_log(&podman, &name, "asked");
    let state = podman.inspect(&name)["State"].take();
    assert_eq!((&state["Status"], &state["ExitCode"]), (&json!("exited"), &json!(3)));
    // One that has ended is started anew.
    podman.podman(&["start", &name]).ok();
    let before = podman.pid(&name);
    podman.podman(&["restart", "--time", "20", &name]).ok();
    assert_ne!(podman.pid(&name), before);
    podman.podman(&["kill", "--signal", "KILL", &name]).ok();
    podman.podman(&["wait", &name]).ok().prints("137\n");
    podman.podman(&["rm", &name]).ok();
    podman.podman(&["ps", "--all", "--format", "{{.Names}}"]).ok();
}

/// One that does not hear the signal is killed in the end.
#[test]
fn stop_ends_the_deaf() {
    let podman = Podman::shared();
    let name = podman.detach(&[], &["sh", "-c", "trap '' TERM; echo begun; sleep 100"]);
    await_log(&podman, &name, "begun");
    let outcome = podman.podman(&["stop", "--time", "1", &name]).ok();
    assert!(outcome.elapsed < patience(9), "{outcome}");
    assert_eq!(podman.inspect(&name)["State"]["ExitCode"], 137);
    podman.remove(&name);
}

#[test]
fn exec_in_all_its_ways() {
    let podman = Podman::shared();
    let name = podman.detach(&[], &["sleep", "100"]);
    let exec = |flags: &[&str], command: &[&str]| {
        podman.cli(&["exec"]).args(flags).arg(&name).args(command).output()
    };
    exec(&[], &["sh", "-c", "echo out; exit 9"]).exits(9).prints("out\n");
    exec(&["--user", "12:34"], &["sh", "-c", "id -u; id -g"]).ok().prints("12\n34\n");
    exec(&["--env", "X=1", "--workdir", "/tmp"], &["sh", "-c", "echo $X; pwd"])
        .ok()
        .prints("1\n/tmp\n");
    exec(&["--privileged"], &["grep", "CapEff", "/proc/self/status"]).ok().shows("ff\n");
    exec(&["--tty"], &["tty"]).ok().shows("/dev/pts/0");
    let piped = podman.cli(&["exec", "--interactive", &name, "cat"]).stdin("through a pipe\n");
    piped.output().ok().prints("through a pipe\n");
    exec(&["--detach"], &["sh", "-c", "echo done > /tmp/mark; sleep 100"]).ok();
    eventually("the detached one to write", || exec(&[], &["cat", "/tmp/mark"]).stdout == "done\n");
    let top = podman.podman(&["top", &name, "pid", "args"]).ok();
    assert_eq!(top.stdout.matches("sleep 100").count(), 2, "{top}");
    let stats = ["stats", "--no-stream", "--format", "{{.PIDs}}", &name];
    podman.podman(&stats).ok().prints("2\n");
    podman.remove(&name);
}

/// In the foreground, with a terminal on the caller's side, too.
#[test]
fn a_terminal() {
    let podman = Podman::shared();
    let shows = "tty; ls -l /dev/console; [ -t 0 ] && echo a terminal";
    let outcome = podman.run(&["--tty"], &["sh", "-c", shows]).ok().shows("/dev/pts/0\r\n");
    outcome.shows("/dev/console\r\n").shows("a terminal\r\n");
    let cli = podman.run_cli(&["--rm", "--tty", "--interactive"], &[BUSYBOX]);
    let (mut terminal, mut child) = on_terminal(&cli, 40, 100);
    terminal.send("stty size; exit 4\n");
    let text = terminal.read_until("40 100");
    assert!(text.contains("40 100"), "{text:?}");
    let status = command::wait_child(&mut child, patience(20)).unwrap();
    assert_eq!(status.code(), Some(4));
}

#[test]
fn attach_and_start_attached() {
    let podman = Podman::shared();
    let name = kiln_integration::fresh_id();
    let parent = format!("--cgroup-parent=/{}", podman.parent());
    let create = ["create", "--interactive", "--network", "none", "--name", &name, &parent];
    podman.cli(&create).args(&[BUSYBOX, "cat"]).output().ok();
    let start = podman.cli(&["start", "--attach", "--interactive", &name]).stdin("to cat\n");
    start.output().ok().prints("to cat\n");
    podman.remove(&name);
    let name = podman.detach(&[], &OBEDIENT);
    await_log(&podman, &name, "begun");
    let attached = podman.cli(&["attach", "--no-stdin", "--sig-proxy=false", &name]).spawn();
    eventually("attach to begin", || {
        let bundle = podman.inspect(&name)["StaticDir"].as_str().unwrap().to_owned();
        fs::metadata(bundle).is_ok() && proc::alive(attached.pid())
    });
    std::thread::sleep(std::time::Duration::from_millis(200));
    podman.podman(&["kill", "--signal", "TERM", &name]).ok();
    attached.wait().ok().shows("asked\n");
    podman.remove(&name);
}

#[test]
fn users_and_capabilities() {
    let podman = Podman::shared();
    let who = podman.run(&["--user", "77:88", "--group-add", "99"], &["sh", "-c", "id -u; id -G"]);
    who.ok().prints("77\n88 99\n");
    let status = |flags: &[&str]| {
        let fields = "CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp:";
        podman.run(flags, &["grep", "-E", fields, "/proc/self/status"]).ok().stdout
    };
    let one = status(&["--cap-drop", "all", "--cap-add", "net_raw"]);
    assert!(one.contains("CapEff:\t0000000000002000\nCapBnd:\t0000000000002000\n"), "{one}");
    assert!(one.contains("CapInh:\t0000000000000000\n") && one.contains("Seccomp:\t2"), "{one}");
    let strict = status(&["--security-opt", "no-new-privileges"]);
    assert!(strict.contains("NoNewPrivs:\t1"), "{strict}");
    let privileged = status(&["--privileged"]);
    assert!(privileged.contains("Seccomp:\t0"), "{privileged}");
    let limits = ["--ulimit", "nofile=100:200", "--ulimit", "nproc=1024:1024"];
    let script = "ulimit -n; ulimit -Hn";
    podman.run(&limits, &["sh", "-c", script]).ok().prints("100\n200\n");
}

#[test]
fn limits_and_their_update() {
    let podman = Podman::shared();
    let flags = ["--memory", "64m", "--pids-limit", "30", "--cpus", "0.5"];
    let name = podman.detach(&flags, &["sleep", "100"]);
    let pid = podman.pid(&name);
    let memory = || cgroup::setting(pid, "memory", "memory.limit_in_bytes", "memory.max");
    assert_eq!(memory().unwrap(), (64 << 20).to_string());
    assert_eq!(cgroup::setting(pid, "pids", "pids.max", "pids.max").unwrap(), "30");
    let quota = cgroup::setting(pid, "cpu", "cpu.cfs_quota_us", "cpu.max").unwrap();
    assert!(quota.starts_with("50000"), "{quota}");
    podman.podman(&["update", "--memory", "80m", &name]).ok();
    assert_eq!(memory().unwrap(), (80 << 20).to_string());
    // Below what is in use; the earlier limit stays.
    podman.podman(&["update", "--memory", "4k", &name]).fails_with(125, &["memory"]);
    assert_eq!(memory().unwrap(), (80 << 20).to_string());
    let fork = "for i in 1 2 3 4 5 6 7 8; do sleep 1 & done; wait";
    let outcome = podman.run(&["--pids-limit", "4"], &["sh", "-c", fork]);
    assert!(outcome.stderr.contains("can't fork"), "{outcome}");
    podman.remove(&name);
}

#[test]
fn out_of_memory_is_137() {
    let podman = Podman::shared();
    let flags = ["--memory", "24m", "--memory-swap", "24m"];
    let dd = ["dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1"];
    podman.run(&flags, &dd).exits(137);
}

#[test]
fn namespaces_of_the_host_and_of_another() {
    let podman = Podman::shared();
    let namespaces = "for kind in net pid ipc; do readlink /proc/self/ns/$kind; done";
    let name = podman.detach(&["--ipc", "shareable"], &["sleep", "100"]);
    let pid = podman.pid(&name);
    let of = |pid: &dyn Fn(&str) -> String| {
        ["net", "pid", "ipc"].map(pid).map(|link| link + "\n").concat()
    };
    let with = format!("container:{name}");
    let joined = ["--network", &with, "--pid", &with, "--ipc", &with];
    let joined = podman.run(&joined, &["sh", "-c", namespaces]).ok();
    assert_eq!(joined.stdout, of(&|kind| proc::namespace(pid, kind)));
    let hosts = ["--network", "host", "--pid", "host", "--ipc", "host", "--uts", "host"];
    let hosts = podman.run(&hosts, &["sh", "-c", namespaces]).ok();
    assert_eq!(hosts.stdout, of(&proc::own_namespace));
    podman.remove(&name);
    podman.run(&["--hostname", "by-flag"], &["hostname"]).ok().prints("by-flag\n");
    let maps = ["--uidmap", "0:400000:65536", "--gidmap", "0:400000:65536"];
    let map = podman.run(&maps, &["sh", "-c", "id -u; awk '{ print $2 }' /proc/self/uid_map"]);
    map.ok().prints("0\n400000\n");
}

#[test]
fn volumes_and_other_mounts() {
    let podman = Podman::shared();
    let folder = podman.home().join("volume");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("file"), "of the host\n").unwrap();
    let bind = format!("{}:/v:ro", folder.display());
    let script = "cat /v/file; touch /v/x 2> /dev/null || echo read-only";
    podman.run(&["--volume", &bind], &["sh", "-c", script]).ok().prints("of the host\nread-only\n");
    let named = format!("{}:/v", kiln_integration::fresh_id());
    podman.run(&["--volume", &named], &["sh", "-c", "echo kept > /v/file"]).ok();
    podman.run(&["--volume", &named], &["cat", "/v/file"]).ok().prints("kept\n");
    podman.podman(&["volume", "rm", named.split(':').next().unwrap()]).ok();
    let script = "touch /x 2> /dev/null || echo read-only; touch /tmp/x && echo not here";
    podman.run(&["--read-only"], &["sh", "-c", script]).ok().prints("read-only\nnot here\n");
    let flags = ["--tmpfs", "/t:size=1m,mode=700", "--shm-size", "2m"];
    let script = "stat -c %a /t; df -k /t /dev/shm | awk 'NR > 1 { print $2 }'";
    podman.run(&flags, &["sh", "-c", script]).ok().prints("700\n1024\n2048\n");
    podman.run(&["--device", "/dev/null:/dev/mine"], &["sh", "-c", "echo x > /dev/mine"]).ok();
    let sysctl = ["--sysctl", "net.ipv4.ip_forward=1"];
    podman.run(&sysctl, &["cat", "/proc/sys/net/ipv4/ip_forward"]).ok().prints("1\n");
}

#[test]
fn a_pod_shares_its_namespaces() {
    let podman = Podman::shared();
    if examples::find("pause").is_none() {
        skip!("no pause: run examples/build");
    }
    if let Some(stray) = cgroup::strays().first() {
        skip!("Podman takes {} for a hierarchy, which is a plain directory", stray.display());
    }
    let pause = Image::of_example("localhost/kiln-test/pause:1", "pause", podman.home());
    podman.load(&pause);
    let pod = kiln_integration::fresh_id();
    let parent = format!("--cgroup-parent=/{}", podman.parent());
    let create = ["pod", "create", "--network", "none", "--name", &pod, &parent];
    let infra = ["--infra-image", &pause.name, "--infra-command", "/pause"];
    podman.cli(&create).args(&infra).output().ok();
    let run = |name: &str, command: &[&str]| {
        let words = ["run", "--pod", &pod, "--name", name];
        podman.cli(&words).args(command).output()
    };
    let name = kiln_integration::fresh_id();
    run(&name, &["--detach", BUSYBOX, "sleep", "100"]).ok();
    let net = proc::namespace(podman.pid(&name), "net");
    let other = ["--rm", BUSYBOX, "readlink", "/proc/self/ns/net"];
    run(&kiln_integration::fresh_id(), &other).ok().prints(&format!("{net}\n"));
    podman.podman(&["pod", "stop", "--time", "0", &pod]).ok();
    podman.podman(&["pod", "rm", "--force", "--time", "0", &pod]).ok();
}

#[test]
fn a_health_check() {
    let podman = Podman::shared();
    let flags = ["--health-cmd", "test -e /tmp/well", "--health-retries", "1"];
    let flags = [&flags[..], &["--health-interval", "disable"]].concat();
    let name = podman.detach(&flags, &["sleep", "100"]);
    podman.podman(&["healthcheck", "run", &name]).exits(1);
    assert_eq!(podman.inspect(&name)["State"]["Health"]["Status"], "unhealthy");
    podman.podman(&["exec", &name, "touch", "/tmp/well"]).ok();
    podman.podman(&["healthcheck", "run", &name]).ok();
    assert_eq!(podman.inspect(&name)["State"]["Health"]["Status"], "healthy");
    podman.remove(&name);
}

#[test]
fn restarted_on_failure() {
    let podman = Podman::shared();
    let name = podman.detach(&["--restart", "on-failure:2"], &["sh", "-c", "echo once; exit 5"]);
    eventually("three runs", || {
        podman.podman(&["logs", &name]).ok().stdout == "once\nonce\nonce\n"
    });
    await_status(&podman, &name, "exited");
    assert_eq!(podman.inspect(&name)["RestartCount"], 2);
    podman.remove(&name);
}

#[test]
fn without_cgroups() {
    kiln_only!("runc has no such thing");
    let podman = Podman::shared();
    let cli = podman.cli(&["run", "--rm", "--network", "none", "--cgroups", "disabled"]);
    let here = fs::read_to_string("/proc/self/cgroup").unwrap();
    cli.args(&[BUSYBOX, "cat", "/proc/self/cgroup"]).output().ok().prints(&here);
}

/// Podman without CRIU finds out before it asks kiln.
#[test]
fn a_checkpoint_needs_criu() {
    if command::exists("criu") {
        skip!("there is CRIU");
    }
    let podman = Podman::shared();
    let name = podman.detach(&[], &["sleep", "100"]);
    podman.podman(&["container", "checkpoint", &name]).fails_with(125, &["CRIU"]);
    assert_eq!(podman.inspect(&name)["State"]["Status"], "running");
    podman.remove(&name);
}

#[test]
fn the_service_manager_hears_from_the_container() {
    let Some(probe) = examples::find("probe") else {
        skip!("no probe: run examples/build");
    };
    let podman = Podman::shared();
    let path = podman.home().join("manager.sock");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(patience(20))).unwrap();
    let program = format!("{}:/probe:ro", probe.display());
    let flags = ["--rm", "--sdnotify", "container", "--volume", &program];
    let script = "/probe notify STATUS=x READY=1; sleep 0.2";
    let cli = podman.run_cli(&flags, &[BUSYBOX, "sh", "-c", script]);
    let run = cli.env("NOTIFY_SOCKET", &path).spawn();
    let mut buffer = [0; 256];
    let mut heard = Vec::new();
    while !heard.iter().any(|message: &String| message.contains("READY=1")) {
        let length = manager.recv(&mut buffer).unwrap();
        heard.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
    }
    run.wait().ok();
}

/// Buildah runs each RUN by the runtime.
#[test]
fn an_image_is_built() {
    let podman = Podman::shared();
    let file = podman.home().join("Containerfile");
    let text =
        format!("FROM {BUSYBOX}\nRUN echo built > /built && id -u\nCMD [\"cat\", \"/built\"]\n");
    fs::write(&file, text).unwrap();
    let name = format!("localhost/kiln-test/{}:1", kiln_integration::fresh_id());
    let build = ["build", "--isolation", "oci", "--network", "none", "--tag", &name];
    let cli = podman.cli(&build).arg("--runtime").arg(kiln_integration::binary::path());
    let outcome = cli.arg("--file").arg(&file).arg(podman.home().join("net")).output().ok();
    // Once for what cannot be ambient, and no more.
    let warnings = outcome.stderr.matches("level=warning").count();
    assert!(warnings <= 1, "{outcome}");
    podman.run_cli(&["--rm"], &[&name]).output().ok().prints("built\n");
    podman.podman(&["rmi", &name]).ok();
}

#[test]
fn many_at_once() {
    let podman = Podman::shared();
    let command = |number: i32| format!("exit {number}");
    let flags = ["--rm", BUSYBOX, "sh", "-c"];
    let runs = (1..=10).map(|number| (number, podman.run_cli(&flags, &[&command(number)]).spawn()));
    let runs: Vec<_> = runs.collect();
    runs.into_iter().for_each(|(number, run)| drop(run.wait().exits(number)));
}

/// An image `FROM scratch` with modules, and the annotations that ask for the engine.
struct Modules(&'static str);

const HANDLER: [&str; 2] = ["--annotation", "run.oci.handler=wasm"];

impl Modules {
    fn load(podman: &Podman) -> Self {
        let rootfs = tempfile::tempdir_in(podman.home()).unwrap();
        for name in ["hello.wasm", "exit.wasm", "cat.wasm", "loop.wasm", "trap.wasm"] {
            fs::copy(examples::find(name).unwrap(), rootfs.path().join(name)).unwrap();
        }
        let name = "localhost/kiln-test/modules:1";
        let config = json!({ "Entrypoint": ["/hello.wasm"], "WorkingDir": "/" });
        podman.load(&Image::of_folder(name, rootfs.path(), &config, podman.home()));
        Modules(name)
    }

    fn run(&self, podman: &Podman, flags: &[&str], words: &[&str]) -> Outcome {
        let cli = podman.run_cli(&HANDLER, flags).arg(self.0).args(words);
        cli.stdin("through a pipe\n").output()
    }
}

#[test]
fn a_module() {
    needs_wasm!();
    let podman = Podman::shared();
    let modules = Modules::load(&podman);
    let run =
        |flags: &[&str], words: &[&str]| modules.run(&podman, &[&["--rm"], flags].concat(), words);
    run(&[], &[]).ok().prints("hello from wasm\n");
    run(&["--entrypoint", "/exit.wasm"], &["5"]).exits(5);
    run(&["--interactive", "--entrypoint", "/cat.wasm"], &[]).ok().prints("through a pipe\n");
    let trap = run(&["--entrypoint", "/trap.wasm"], &[]).exits(134);
    assert!(trap.stderr.contains("unreachable"), "{trap}");
    // A smart handler leaves programs alone.
    let smart = ["--rm", "--annotation", "run.oci.handler=wasm-smart", BUSYBOX, "echo", "native"];
    podman.run_cli(&smart, &[]).output().ok().prints("native\n");
    // A pod annotation of Kubernetes'.
    let variant = ["--rm", "--annotation", "module.wasm.image/variant=compat", modules.0];
    podman.run_cli(&variant, &[]).output().ok().prints("hello from wasm\n");
    // What cannot be run says so, as any program.
    run(&["--entrypoint", "/no-such.wasm"], &[]).fails_with(127, &["no such file or directory"]);
}

#[test]
fn a_module_in_the_background() {
    needs_wasm!();
    let podman = Podman::shared();
    let modules = Modules::load(&podman);
    let name = kiln_integration::fresh_id();
    let flags = ["--detach", "--name", &name, "--entrypoint", "/loop.wasm"];
    modules.run(&podman, &flags, &[]).ok();
    podman.podman(&["exec", &name, "/hello.wasm"]).ok().prints("hello from wasm\n");
    podman.podman(&["exec", &name, "/exit.wasm", "6"]).exits(6);
    podman.podman(&["pause", &name]).ok();
    podman.podman(&["unpause", &name]).ok();
    let outcome = podman.podman(&["stop", "--time", "20", &name]).ok();
    assert!(outcome.elapsed < patience(10), "{outcome}");
    let state: Value = podman.inspect(&name)["State"].take();
    assert_eq!(state["ExitCode"], 143);
    podman.remove(&name);
}
