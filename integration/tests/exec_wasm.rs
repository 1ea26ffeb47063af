//! `exec` of modules: in containers whose annotations ask for wasm, the file decides what runs it.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;

use kiln_integration::{Bundle, Container, cgroup, eventually, examples, json, needs_wasm, proc};

const VARIANT: &str = "module.wasm.image/variant";

fn example(name: &str) -> Vec<u8> {
    fs::read(examples::find(&format!("{name}.wasm")).unwrap()).unwrap()
}

/// A Linux container that runs until it is deleted, with examples in /wasm.
fn linux(annotation: Option<&str>) -> Bundle {
    let bundle = Bundle::new().args(&["sleep", "1000"]);
    fs::create_dir(bundle.rootfs().join("wasm")).unwrap();
    for name in ["hello", "loop", "files", "env"] {
        if let Some(path) = examples::find(&format!("{name}.wasm")) {
            fs::copy(path, bundle.rootfs().join("wasm").join(name)).unwrap();
        }
    }
    match annotation {
        Some(value) => bundle.annotation(VARIANT, value),
        None => bundle,
    }
}

fn running(bundle: Bundle) -> Container {
    let c = bundle.container();
    c.detach().ok();
    c
}

#[test]
fn a_module_in_a_linux_container() {
    needs_wasm!();
    let c = running(linux(Some("compat-smart")));
    let hello = c.exec(&["/wasm/hello"]).ok();
    let alone = Bundle::wasm("hello", &[]).container().run().ok();
    assert_eq!(hello.stdout, alone.stdout);
    c.exec(&["true"]).ok();
}

/// The engine's executable takes over, and reads the process a second time.
#[test]
fn the_process_may_be_a_descriptor() {
    needs_wasm!();
    let c = running(linux(Some("compat-smart")));
    let json = r#"{"cwd":"/","args":["/wasm/hello"],"user":{"uid":0,"gid":0}}"#;
    let script = format!("exec \"$@\" --process <(printf %s '{json}') {}", c.id);
    let by_descriptor = c.cli(&["exec"]).under(&["bash", "-c", &script, "bash"]).output().ok();
    assert_eq!(by_descriptor.stdout, c.exec(&["/wasm/hello"]).ok().stdout);
}

#[test]
fn a_linux_program_in_a_wasm_container() {
    needs_wasm!();
    let bundle = Bundle::new().annotation(VARIANT, "compat");
    fs::write(bundle.rootfs().join("loop.wasm"), example("loop")).unwrap();
    fs::write(bundle.rootfs().join("hello.wasm"), example("hello")).unwrap();
    let c = running(bundle.args(&["/loop.wasm"]));
    c.exec(&["sh", "-c", "echo linux; ps"]).ok().shows("linux\n");
    let module = c.exec(&["/hello.wasm"]).ok();
    assert!(!module.stdout.is_empty(), "{module}");
    c.exec(&["/gone.wasm"]).fails_with(255, &["/gone.wasm"]);
}

#[test]
fn without_annotations_a_module_is_no_program() {
    needs_wasm!();
    let c = running(linux(None));
    c.exec(&["/wasm/hello"]).fails_with(255, &["/wasm/hello"]);
}

#[test]
fn it_is_where_a_program_would_be() {
    needs_wasm!();
    let user = json!({ "uid": 0, "gid": 0 });
    let c = running(linux(Some("compat")).args(&["/wasm/loop"]).set("/process/user", user));
    let file = c.bundle.scratch().join("pid");
    let flags = ["-d", "--user", "1000:1001", "--pid-file", file.to_str().unwrap()];
    c.exec_cli(&flags, &["/wasm/loop"]).output().ok();
    let (init, pid) = (c.pid(), fs::read_to_string(file).unwrap().parse().unwrap());
    eventually("the module to run", || proc::status_field(pid, "State").unwrap().starts_with('R'));
    for kind in ["mnt", "pid", "net", "ipc", "uts"] {
        assert_eq!(proc::namespace(pid, kind), proc::namespace(init, kind), "{kind}");
    }
    let of = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert_eq!(of(pid), of(init));
    assert!(cgroup::members(init).contains(&pid));
    assert!(proc::status_field(pid, "Uid").unwrap().starts_with("1000"));
    let root = |pid: i32| fs::read_link(format!("/proc/{pid}/root")).unwrap();
    assert_eq!(root(pid), root(init));
    // As a program: it ends on SIGTERM.
    c.delete_force().ok();
    assert!(!proc::alive(pid));
}

#[test]
fn it_sees_what_is_mounted() {
    needs_wasm!();
    let bundle = linux(Some("compat-smart"));
    let shared = bundle.scratch().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("text"), "on the volume").unwrap();
    fs::write(shared.join("module"), example("files")).unwrap();
    let c = running(bundle.bind(&shared, "/data", &["bind", "ro"]));
    // The module itself lies in a mount, too.
    let outcome = c.exec(&["/data/module", "read", "/data/text"]);
    outcome.ok().shows("on the volume");
}

#[test]
fn a_module_is_never_taken_from_outside() {
    needs_wasm!();
    let bundle = linux(Some("compat"));
    let outside = bundle.home().join("outside.wasm");
    fs::write(&outside, example("hello")).unwrap();
    std::os::unix::fs::symlink(&outside, bundle.rootfs().join("link.wasm")).unwrap();
    let up = format!("../../../../../../../..{}", outside.display());
    std::os::unix::fs::symlink(up, bundle.rootfs().join("up.wasm")).unwrap();
    let c = running(bundle.args(&["/wasm/loop"]));
    for name in ["/link.wasm", "/up.wasm", outside.to_str().unwrap()] {
        c.exec(&[name]).fails_with(255, &[]).prints("");
    }
}
