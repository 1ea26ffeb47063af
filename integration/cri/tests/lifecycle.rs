//! How containers of pods end: signals and grace periods, exit codes, memory, restarts.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::time::Duration;

use kiln_integration::containerd::{Containerd, Shim};
use kiln_integration::image::Image;
use kiln_integration::{
    cgroup, eventually, for_each_shim, json, needs_cgroup_library, needs_wasm, patience, proc,
};
use kiln_integration_cri::api::{ContainerState, LinuxContainerResources};
use kiln_integration_cri::{Manifest, Pod, import};

for_each_shim!(
    sigterm_ends_a_module_at_once,
    sigterm_ends_a_module_that_computes,
    the_grace_period_ends_with_sigkill,
    exit_codes,
    a_traps_reason_is_on_stderr,
    a_module_that_needs_too_much_memory,
    a_program_that_needs_too_much_memory,
    limits_are_changed,
    statistics,
    a_container_is_started_again,
    a_pod_is_removed_while_it_runs,
    long_lines_and_both_streams
);

/// A pod of one module: `deploy/pods/hello.yaml` with another one and its arguments.
fn module(example: &str, arguments: &[&str]) -> Manifest {
    let mut manifest = Manifest::load("pods/hello");
    let container = manifest.first();
    container.name = "main".to_owned();
    container.image = format!("localhost/kiln/{example}:1");
    container.command = vec![format!("/{example}.wasm")];
    container.args = arguments.iter().map(|&word| word.to_owned()).collect();
    manifest
}

/// A pod of one shell script.
fn script(text: &str) -> Manifest {
    let mut manifest = module("hello", &[]);
    manifest.metadata.annotations.clear();
    let container = manifest.first();
    container.image = "busybox:1.36".to_owned();
    container.command = ["sh", "-c", text].map(str::to_owned).to_vec();
    manifest
}

fn memory_limit(mut manifest: Manifest, limit: &str) -> Manifest {
    manifest.first().resources.limits.insert("memory".to_owned(), limit.to_owned());
    manifest
}

/// Within 100 ms, counted from the call to the answer. What else runs on the machine meanwhile is
/// not the module's fault, so one of ten has to.
#[track_caller]
fn ends_at_once(shim: Shim, example: &str, first_word: &str) {
    let containerd = Containerd::shared(true);
    let pod = Pod::sandbox(&containerd, shim, &module(example, &[]));
    let mut times = (0..10).map(|_| {
        let container = pod.start("main");
        container.await_stdout(first_word);
        let time = pod.client.stop_container(&container.id, 30).unwrap();
        let status = container.await_exit();
        assert_eq!(status.exit_code, 143, "{status:?}");
        time
    });
    assert!(times.any(|time| time < patience(1) / 10), "none within 100 ms");
    pod.remove();
}

fn sigterm_ends_a_module_at_once(shim: Shim) {
    needs_wasm!();
    ends_at_once(shim, "sleep", "sleeping");
}

fn sigterm_ends_a_module_that_computes(shim: Shim) {
    needs_wasm!();
    ends_at_once(shim, "loop", "looping");
}

fn the_grace_period_ends_with_sigkill(shim: Shim) {
    let containerd = Containerd::shared(true);
    let manifest = script("trap '' TERM; echo ready; while :; do sleep 0.1; done");
    let pod = Pod::run(&containerd, shim, &manifest);
    let container = pod.container("main");
    container.await_stdout("ready");
    let time = pod.client.stop_container(&container.id, 1).unwrap();
    assert!(time >= Duration::from_secs(1) && time < patience(5), "{time:?}");
    assert_eq!(container.await_exit().exit_code, 137);
    // Without a grace period at once, and of what has stopped at all.
    pod.client.stop_container(&container.id, 0).unwrap();
    pod.remove();
}

fn exit_codes(shim: Shim) {
    needs_wasm!();
    let containerd = Containerd::shared(true);
    for (code, reason) in [(0, "Completed"), (1, "Error"), (42, "Error"), (255, "Error")] {
        let pod = Pod::run(&containerd, shim, &module("exit", &[&code.to_string()]));
        let status = pod.container("main").await_exit();
        assert_eq!((status.exit_code, &*status.reason), (code, reason), "{status:?}");
        pod.remove();
    }
    let pod = Pod::run(&containerd, shim, &script("exit 7"));
    assert_eq!(pod.container("main").await_exit().exit_code, 7);
    pod.remove();
}

fn a_traps_reason_is_on_stderr(shim: Shim) {
    needs_wasm!();
    let containerd = Containerd::shared(true);
    let pod = Pod::run(&containerd, shim, &module("trap", &["divide"]));
    let container = pod.container("main");
    let status = container.await_exit();
    assert_eq!((status.exit_code, &*status.reason), (134, "Error"), "{status:?}");
    assert!(container.stderr().contains("divide by zero"), "{:?}", container.log());
    pod.remove();
}

#[track_caller]
fn is_oom_killed(shim: Shim, manifest: &Manifest) {
    needs_cgroup_library!(shim);
    let containerd = Containerd::shared(true);
    let pod = Pod::run(&containerd, shim, manifest);
    let container = pod.container("main");
    assert_eq!(container.await_exit().exit_code, 137);
    // Two events of containerd's, of which the end may be the first to be seen.
    eventually("the reason", || container.status().reason == "OOMKilled");
    pod.remove();
}

fn a_module_that_needs_too_much_memory(shim: Shim) {
    needs_wasm!();
    let containerd = Containerd::shared(true);
    let image = "localhost/kiln-test/hog:1";
    import(&containerd, image, |folder| {
        let module = r#"(module (memory 1000) (func (export "_start")
            (memory.fill (i32.const 0) (i32.const 1) (i32.const 65536000))))"#;
        let rootfs = tempfile::tempdir_in(folder).unwrap();
        fs::write(rootfs.path().join("hog.wat"), module).unwrap();
        Image::of_folder(image, rootfs.path(), &json!({}), folder)
    });
    let mut manifest = module("hog", &[]);
    let container = manifest.first();
    image.clone_into(&mut container.image);
    container.command = vec!["/hog.wat".to_owned()];
    is_oom_killed(shim, &memory_limit(manifest, "32Mi"));
}

fn a_program_that_needs_too_much_memory(shim: Shim) {
    is_oom_killed(shim, &memory_limit(script("exec tail /dev/zero"), "32Mi"));
}

fn limits_are_changed(shim: Shim) {
    needs_wasm!();
    let containerd = Containerd::shared(true);
    let pod = Pod::run(&containerd, shim, &memory_limit(module("sleep", &[]), "64Mi"));
    let container = pod.container("main");
    container.await_stdout("sleeping");
    let limit = |pid| cgroup::setting(pid, "memory", "memory.limit_in_bytes", "memory.max");
    let pid = container.pid();
    assert_eq!(limit(pid), Some((64 << 20).to_string()));
    let linux = LinuxContainerResources {
        memory_limit_in_bytes: 96 << 20,
        ..LinuxContainerResources::default()
    };
    pod.client.update(&container.id, linux).unwrap();
    assert_eq!(limit(pid), Some((96 << 20).to_string()));
    pod.remove();
}

fn statistics(shim: Shim) {
    needs_wasm!();
    needs_cgroup_library!(shim);
    let containerd = Containerd::shared(true);
    let pod = Pod::run(&containerd, shim, &module("loop", &[]));
    let container = pod.container("main");
    container.await_stdout("looping");
    let cpu = || {
        let stats = pod.client.stats(&container.id).unwrap();
        stats.cpu.unwrap().usage_core_nano_seconds.unwrap().value
    };
    let before = cpu();
    eventually("processor time of a module that computes", || cpu() > before + 100_000_000);
    let memory = pod.client.stats(&container.id).unwrap().memory.unwrap();
    assert!(memory.working_set_bytes.unwrap().value > 1 << 16, "{memory:?}");
    pod.remove();
}

/// As with `restartPolicy: Always`: another container of the same name in the same sandbox.
fn a_container_is_started_again(shim: Shim) {
    needs_wasm!();
    let containerd = Containerd::shared(true);
    let pod = Pod::run(&containerd, shim, &module("exit", &["3"]));
    let first = pod.container("main");
    assert_eq!(first.await_exit().exit_code, 3);
    pod.remove_container(&first);
    let second = pod.start("main");
    assert_eq!(second.await_exit().exit_code, 3);
    assert_ne!(first.id, second.id);
    pod.remove();
}

fn a_pod_is_removed_while_it_runs(shim: Shim) {
    needs_wasm!();
    let containerd = Containerd::shared(true);
    let pod = Pod::run(&containerd, shim, &module("sleep", &[]));
    let container = pod.container("main");
    container.await_stdout("sleeping");
    let pids = [container.pid(), pod.pause_pid()];
    pod.client.stop_pod_sandbox(&pod.sandbox).unwrap();
    assert_eq!(container.status().state(), ContainerState::Exited);
    assert_eq!(container.status().exit_code, 137);
    assert!(pids.iter().all(|&pid| !proc::alive(pid)));
    drop(pod);
}

/// 16 KiB of a line are one of CRI's; the rest goes on in the next.
fn long_lines_and_both_streams(shim: Shim) {
    let containerd = Containerd::shared(true);
    let text = "head -c 40000 /dev/zero | tr '\\0' x; echo; echo problem >&2";
    let pod = Pod::run(&containerd, shim, &script(text));
    let container = pod.container("main");
    container.await_exit();
    eventually("the log's last line", || container.stderr() == "problem\n");
    let log = container.log();
    let parts: Vec<_> = log.iter().filter(|line| line.stream == "stdout").collect();
    assert_eq!(parts.iter().map(|line| line.full).collect::<Vec<_>>(), [false, false, true]);
    assert_eq!(container.stdout().trim_end(), "x".repeat(40000));
    pod.remove();
}
