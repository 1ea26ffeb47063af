//! Wasm modules as containers: they should behave as a process does.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;

use kiln_integration::console::ConsoleSocket;
use kiln_integration::{
    Bundle, Cli, Value, eventually, examples, json, needs_wasm, proc, reap, seccomp_profile,
};
use rustix::process::Signal;

#[test]
fn hello() {
    needs_wasm!();
    let c = Bundle::wasm("hello", &[]).container();
    let outcome = c.run().ok().prints("hello from wasm\n");
    assert_eq!(outcome.stderr, "");
    c.assert_nothing_left();
}

#[test]
fn every_exit_status_arrives() {
    needs_wasm!();
    for status in [0, 1, 2, 42, 125, 126, 127, 128, 134, 137, 254, 255] {
        Bundle::wasm("exit", &[&status.to_string()]).container().run().exits(status);
    }
}

#[test]
fn the_exit_status_after_create_and_start() {
    needs_wasm!();
    let c = Bundle::wasm("exit", &["77"]).container();
    c.create().ok();
    assert_eq!(c.status(), "created");
    let pid = c.pid();
    c.start().ok();
    assert_eq!(reap(pid), 77);
    assert_eq!(c.status(), "stopped");
    c.delete().ok();
    c.assert_nothing_left();
}

#[test]
fn a_trap_is_134_with_its_reason() {
    needs_wasm!();
    for (how, reason) in [
        ("unreachable", "unreachable"),
        ("divide", "divide by zero"),
        ("memory", "out of bounds memory"),
        ("call", "undefined element"),
    ] {
        let c = Bundle::wasm("trap", &[how]).container();
        let outcome = c.run().exits(134).prints(&format!("trapping: {how}\n"));
        assert!(outcome.stderr.contains(reason), "{outcome}");
        assert_eq!(outcome.stderr.lines().count(), 1, "{outcome}");
        c.assert_nothing_left();
    }
}

/// The interpreter's stack may grow into all the memory that there is.
/// The kubelet shows what is in there as the container's message.
#[test]
fn a_trap_is_told_in_the_termination_log() {
    needs_wasm!();
    let log = |bundle: &Bundle| bundle.scratch().join("termination-log");
    let with_log = |text: &str| {
        let bundle = Bundle::wasm("trap", &["divide"]);
        fs::write(log(&bundle), text).unwrap();
        let file = log(&bundle);
        bundle.bind(file, "/dev/termination-log", &["bind", "rw"])
    };
    let c = with_log("").container();
    c.run().exits(134);
    let told = fs::read_to_string(log(&c.bundle)).unwrap();
    assert_eq!(told, "kiln: /trap.wasm: wasm trap: integer divide by zero\n");
    // What the container said itself stays as it is.
    let c = with_log("my own words").container();
    c.run().exits(134);
    assert_eq!(fs::read_to_string(log(&c.bundle)).unwrap(), "my own words");
    // Nor does an exec'd process speak for the container.
    let bundle = with_log("").args(&["/loop.wasm"]);
    for name in ["loop", "trap"] {
        let file = format!("{name}.wasm");
        fs::copy(examples::find(&file).unwrap(), bundle.rootfs().join(file)).unwrap();
    }
    let c = bundle.container();
    c.detach().ok();
    c.exec(&["/trap.wasm", "divide"]).fails_with(134, &["divide by zero"]);
    assert_eq!(fs::read(log(&c.bundle)).unwrap(), b"");
}

#[test]
fn endless_recursion_ends() {
    needs_wasm!();
    let limit = json!({ "limit": 256 << 20, "swap": 256 << 20 });
    let c = Bundle::wasm("trap", &["stack"]).set("/linux/resources/memory", limit).container();
    // Interpreted, whatever other tests have compiled: WasmEdge's handler of faults, which ends
    // compiled code, has no stack of its own.
    let cache = tempfile::tempdir().unwrap();
    let outcome = c.run_cli(&[]).env("KILN_CACHE_DIR", cache.path()).output();
    assert!([Some(134), Some(137)].contains(&outcome.status.code()), "{outcome}");
}

#[test]
fn too_much_memory_is_an_oom_kill() {
    needs_wasm!();
    let module = br#"(module (memory 2000) (func (export "_start") (local i32)
        (loop (i32.store (local.get 0) (i32.const 1))
            (local.set 0 (i32.add (local.get 0) (i32.const 4096)))
            (br_if 0 (i32.lt_u (local.get 0) (i32.const 131000000))))))"#;
    let limit = json!({ "limit": 64 << 20, "swap": 64 << 20 });
    let c = Bundle::module("grow.wat", module).set("/linux/resources/memory", limit).container();
    c.run().exits(137);
}

/// The kernel gives the first process of a pid namespace no default actions.
#[test]
fn signals_end_it_at_once() {
    needs_wasm!();
    for (example, line) in [("loop", "looping\n"), ("sleep", "sleeping\n")] {
        for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::KILL, 137)] {
            let c = Bundle::wasm(example, &[]).container();
            let mut running = c.run_cli(&[]).spawn();
            eventually("the module to run", || running.stdout() == line);
            let since = std::time::Instant::now();
            match signal {
                Signal::KILL => drop(c.kill("KILL").ok()),
                _ => running.signal(signal),
            }
            running.wait().exits(code);
            assert!(since.elapsed().as_secs_f64() < 2.0, "{example} {signal:?}");
            c.assert_nothing_left();
        }
    }
}

#[test]
fn kill_ends_a_detached_one() {
    needs_wasm!();
    let c = Bundle::wasm("loop", &[]).container();
    c.detach().ok();
    let pid = c.pid();
    c.kill("TERM").ok();
    assert_eq!(reap(pid), 143);
    assert_eq!(c.status(), "stopped");
}

#[test]
fn arguments_arrive() {
    needs_wasm!();
    let c = Bundle::wasm("sort", &["1111", "2345", "8", "99", "-10000"]).container();
    c.run().ok().prints("-10000 8 99 1111 2345\n");
}

#[test]
fn the_first_argument_is_the_entrypoint() {
    needs_wasm!();
    let c = Bundle::wasm("wasi-demo", &["one", "", "a b ü"]).mount("/tmp", "tmpfs", "x", &[]);
    let outcome = c.container().run().ok();
    for line in ["argument 0: /wasi-demo.wasm", "argument 1: one", "argument 3: a b ü"] {
        assert!(outcome.stdout.lines().any(|own| own == line), "no {line:?} in {outcome}");
    }
}

#[test]
fn the_environment_is_the_configs() {
    needs_wasm!();
    let c = Bundle::wasm("wasi-demo", &[]).mount("/tmp", "tmpfs", "x", &[]);
    let c = c.set("/process/env", json!(["A=1", "WITH=a=b c", "EMPTY="])).container();
    let outcome = c.run_cli(&[]).env("LEAKED", "yes").output().ok();
    let lines: Vec<_> =
        outcome.stdout.lines().filter_map(|line| line.strip_prefix("environment: ")).collect();
    let own: Vec<_> = lines.iter().filter(|line| !line.starts_with("HOME=")).collect();
    assert_eq!(own, [&"A=1", &"WITH=a=b c", &"EMPTY="], "{outcome}");
}

#[test]
fn random_bytes_differ() {
    needs_wasm!();
    let run = || {
        let c = Bundle::wasm("wasi-demo", &[]).mount("/tmp", "tmpfs", "x", &[]).container();
        let outcome = c.run().ok();
        outcome.stdout.lines().find(|line| line.starts_with("random: ")).unwrap().to_owned()
    };
    assert_ne!(run(), run());
}

#[test]
fn stdin_and_stdout_pass_through() {
    needs_wasm!();
    let text = "0123456789abcde\n".repeat(1 << 15);
    let c = Bundle::wasm("cat", &[]).container();
    c.run_cli(&[]).stdin(&text).output().ok().prints(&text);
}

#[test]
fn a_terminal() {
    needs_wasm!();
    let bundle = Bundle::wasm("tty", &[]).set("/process/terminal", json!(true));
    let socket = ConsoleSocket::listen(&bundle.scratch());
    let c = bundle.container();
    c.create_cli(&["--console-socket", socket.path()]).output().ok();
    let mut terminal = socket.accept();
    let pid = c.pid();
    c.start().ok();
    let text = terminal.read_until("stderr: terminal");
    assert!(text.contains("stdin: terminal") && text.contains("stdout: terminal"), "{text:?}");
    assert_eq!(reap(pid), 0);
}

#[test]
fn no_terminal() {
    needs_wasm!();
    Bundle::wasm("tty", &[]).container().run().exits(3).shows("stdin: no terminal");
}

#[test]
fn mounts_and_the_root_are_there() {
    needs_wasm!();
    let files = |arguments: &[&str]| Bundle::wasm("files", arguments);
    let bundle = files(&["list", "/"]).mount("/data", "tmpfs", "x", &[]);
    let outcome = bundle.container().run().ok();
    for name in ["data", "dev", "files.wasm", "proc", "sys"] {
        assert!(outcome.stdout.lines().any(|line| line == name), "no {name} in {outcome}");
    }
    let bundle = files(&["read", "/deep/data/file"]);
    let source = bundle.scratch();
    fs::write(source.join("file"), "content").unwrap();
    bundle.bind(&source, "/deep/data", &["bind"]).container().run().ok().prints("content");
    let bundle = files(&["read", "/etc/one-file"]);
    let source = bundle.scratch().join("one");
    fs::write(&source, "one file").unwrap();
    bundle.bind(&source, "/etc/one-file", &["bind"]).container().run().ok().prints("one file");
}

#[test]
fn files_are_written_where_they_may_be() {
    needs_wasm!();
    let c = Bundle::wasm("files", &["write", "/made", "x"]).writable().container();
    c.run().ok();
    assert_eq!(fs::read_to_string(c.bundle.rootfs().join("made")).unwrap(), "x");
    let bundle = Bundle::wasm("files", &["write", "/data/made", "x"]);
    let source = bundle.scratch();
    let c = bundle.bind(&source, "/data", &["bind"]).container();
    c.run().ok();
    assert_eq!(fs::read_to_string(source.join("made")).unwrap(), "x");
}

#[test]
fn read_only_holds() {
    needs_wasm!();
    let c = Bundle::wasm("files", &["write", "/made", "x"]).container();
    c.run().exits(1);
    assert!(!c.bundle.rootfs().join("made").exists());
    let bundle = Bundle::wasm("files", &["write", "/data/made", "x"]);
    let source = bundle.scratch();
    let c = bundle.bind(&source, "/data", &["bind", "ro"]).container();
    c.run().exits(1);
    assert!(!source.join("made").exists());
}

#[test]
fn the_working_directory() {
    needs_wasm!();
    let bundle = Bundle::wasm("files", &["read", "file"]).set("/process/cwd", json!("/work"));
    fs::create_dir(bundle.rootfs().join("work")).unwrap();
    fs::write(bundle.rootfs().join("work/file"), "relative").unwrap();
    bundle.container().run().ok().prints("relative");
}

#[test]
fn nothing_above_the_root() {
    needs_wasm!();
    for path in ["/../../../../etc/debian_version", "../../../../etc/debian_version"] {
        let c = Bundle::wasm("files", &["read", path]).container();
        c.run().exits(1).prints("");
    }
}

#[test]
fn a_link_of_the_image_does_not_lead_out() {
    needs_wasm!();
    let bundle = Bundle::wasm("files", &["read", "/link"]);
    std::os::unix::fs::symlink("/etc/debian_version", bundle.rootfs().join("link")).unwrap();
    bundle.container().run().exits(1).prints("");
}

/// All that confines a Linux process confines the engine.
#[test]
fn the_engine_is_confined() {
    needs_wasm!();
    let c = Bundle::wasm("loop", &[]).set("/process/user", json!({ "uid": 1000, "gid": 1001 }));
    let c = c.capabilities(&[]).set("/linux/seccomp", seccomp_profile());
    let c = c.set("/linux/resources/pids", json!({ "limit": 20 })).container();
    c.detach().ok();
    let pid = c.pid();
    let field = |name| proc::status_field(pid, name).unwrap();
    eventually("the engine to have become the user", || field("Uid") == "1000\t1000\t1000\t1000");
    eventually("the filter", || field("Seccomp") == "2");
    assert_eq!(field("Gid"), "1001\t1001\t1001\t1001");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs"), "1");
    for (kind, file) in [("pid", "pid"), ("network", "net"), ("mount", "mnt"), ("ipc", "ipc")] {
        assert_ne!(proc::namespace(pid, file), proc::own_namespace(file), "{kind}");
    }
    let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert!(cgroup.contains(&c.id), "{cgroup}");
}

#[test]
fn leaked_descriptors_are_not_in_the_engine() {
    needs_wasm!();
    let c = Bundle::wasm("loop", &[]).container();
    let leak = ["bash", "-c", "exec 3</etc/passwd 19</etc 77</; exec \"$@\"", "bash"];
    c.run_cli(&["--detach"]).under(&leak).output().ok();
    let pid = c.pid();
    eventually("the module to run", || proc::status_field(pid, "State").unwrap().starts_with('R'));
    for fd in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
        let target = fs::read_link(fd.path()).unwrap_or_default();
        let target = target.to_string_lossy();
        assert!(!target.contains("passwd") && target != "/etc", "{target}");
    }
}

#[test]
fn hooks_run_for_modules_too() {
    needs_wasm!();
    let bundle = Bundle::wasm("hello", &[]);
    let file = bundle.scratch().join("hooks");
    let hook = |name: &str| {
        let script = format!("echo {name} >> {}", file.display());
        json!([{ "path": "/bin/sh", "args": ["sh", "-c", script] }])
    };
    let c = bundle.set("/hooks/createRuntime", hook("createRuntime"));
    let c = c.set("/hooks/poststop", hook("poststop")).container();
    c.run().ok();
    assert_eq!(fs::read_to_string(file).unwrap(), "createRuntime\npoststop\n");
}

#[test]
fn spec_writes_a_config_for_a_module() {
    needs_wasm!();
    let c = Bundle::wasm("hello", &[]).container();
    let path = c.bundle.path();
    fs::remove_file(path.join("config.json")).unwrap();
    Cli::new(["spec", "--wasm", "rootfs/hello.wasm"]).dir(&path).output().ok();
    let text = fs::read_to_string(path.join("config.json")).unwrap();
    let config: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(config["process"]["args"], json!(["/hello.wasm"]));
    c.run().ok().prints("hello from wasm\n");
}

#[test]
fn twenty_modules_at_once() {
    needs_wasm!();
    let c = Bundle::wasm("hello", &[]).container();
    let run = |_| {
        let cli = c.cli(&["run", "--bundle"]).arg(c.bundle.path());
        cli.arg(kiln_integration::fresh_id()).spawn()
    };
    let running: Vec<_> = (0..20).map(run).collect();
    for command in running {
        command.wait().ok().prints("hello from wasm\n");
    }
}
