//! What the container must not get from its caller, do to it, or lack because of it.

use std::fs;

use kiln_integration::{Bundle, json, kiln_only};

/// kill(2) with pid 0 reaches the whole process group, also out of a pid namespace.
#[test]
fn the_callers_process_group_is_out_of_reach() {
    let c = Bundle::sh("kill -9 0; echo alive").container();
    let wrapper = ["setsid", "-w", "sh", "-c", "\"$@\"; echo caller survived", "sh"];
    c.run_cli(&[]).under(&wrapper).output().ok().shows("caller survived");
}

#[test]
fn the_container_is_a_session_of_its_own() {
    let c = Bundle::sh("awk '{print $5, $6, $7}' /proc/1/stat").container();
    c.run().ok().prints("1 1 0\n");
}

/// /dev/stdout is opened anew by its path.
#[test]
fn a_user_can_open_its_stdout() {
    let c = Bundle::sh("echo hi > /proc/self/fd/1; echo ho > /proc/self/fd/2");
    let c = c.set("/process/user", json!({ "uid": 1000, "gid": 1000 })).container();
    let outcome = c.run().ok();
    assert_eq!((&*outcome.stdout, &*outcome.stderr), ("hi\n", "ho\n"));
}

/// Profiles written before these calls existed do not know them.
#[test]
fn a_filter_need_not_allow_what_only_init_calls() {
    kiln_only!("1.1.5 has other calls of its own");
    for nnp in [true, false] {
        let names = ["openat2", "close_range", "prctl", "setresuid", "setgroups", "fchdir"];
        let rule = json!({ "names": names, "action": "SCMP_ACT_ERRNO" });
        let seccomp = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule] });
        let c = Bundle::new().args(&["true"]).set("/linux/seccomp", seccomp);
        c.set("/process/noNewPrivileges", json!(nnp)).container().run().ok();
    }
}

#[test]
fn the_runtimes_own_namespace_is_not_the_containers() {
    for (kind, file, field, value) in [
        ("network", "net", "/linux/sysctl", json!({ "net.ipv4.ip_forward": "0" })),
        ("uts", "uts", "/hostname", json!("inside")),
    ] {
        let own = format!("/proc/self/ns/{file}");
        let c = Bundle::new().args(&["true"]).namespace(kind, Some(&own)).set(field, value);
        let c = c.container();
        c.run().fails_any(&["namespace"]);
    }
}

#[test]
fn a_working_directory_behind_a_link_that_only_root_may_enter() {
    let bundle = Bundle::sh("pwd").set("/process/cwd", json!("/link"));
    let private = bundle.rootfs().join("private");
    fs::create_dir(&private).unwrap();
    std::os::unix::fs::symlink("/private", bundle.rootfs().join("link")).unwrap();
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::set_permissions(&private, permissions).unwrap();
    let c = bundle.set("/process/user", json!({ "uid": 1000, "gid": 1000 })).container();
    c.run().ok();
}

/// A cgroup that is another's is refused, and stays as it is.
#[test]
fn a_failed_create_leaves_anothers_cgroup_alone() {
    let path = format!("/kiln-it-shared-{}", std::process::id());
    let bundle = || Bundle::new().args(&["sleep", "100"]).set("/linux/cgroupsPath", json!(path));
    let first = bundle().container();
    first.detach().ok();
    let own = fs::read_to_string(format!("/proc/{}/cgroup", first.pid())).unwrap();
    let point = if own.contains(":pids:") { "/sys/fs/cgroup/pids" } else { "/sys/fs/cgroup" };
    let child = format!("{point}{path}/child");
    fs::create_dir(&child).unwrap();
    bundle().container().run().fails(&["cgroup"]);
    assert!(fs::metadata(&child).is_ok(), "the child of another's cgroup is gone");
    fs::remove_dir(&child).unwrap();
    assert_eq!(first.status(), "running");
}

/// A caller that ignores SIGCHLD has its children reaped by the kernel, unseen.
#[test]
fn run_ends_although_the_caller_ignores_sigchld() {
    kiln_only!("Go's runtime sees to it");
    let c = Bundle::sh("exit 3").container();
    let wrapper = ["sh", "-c", "trap '' CHLD; exec \"$@\"", "sh"];
    c.run_cli(&[]).under(&wrapper).output().exits(3);
}

/// Without a pid namespace the container's orphans come to us, a subreaper.
#[test]
fn orphans_do_not_fill_the_pids_limit() {
    let script = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do (true &); \
                  sleep 0.02; done; echo done";
    let c = Bundle::sh(script).without_namespace("pid");
    let c = c.set("/linux/resources/pids", json!({ "limit": 10 })).container();
    c.run().ok().prints("done\n");
}

/// Longer than what fsconfig(2) takes: made by mount(2), with its options all the same.
#[test]
fn an_overlay_of_many_layers_has_its_options() {
    kiln_only!("1.1.5 knows other words in its table");
    let bundle = Bundle::sh("grep ' /mnt ' /proc/self/mounts | cut -d' ' -f3,4 | cut -d, -f1-3");
    let layers: Vec<_> = (0..12)
        .map(|n| bundle.scratch().join(format!("a-layer-with-a-long-name-{n}")))
        .inspect(|layer| fs::create_dir(layer).unwrap())
        .map(|layer| layer.display().to_string())
        .collect();
    let lower = format!("lowerdir={}", layers.join(":"));
    assert!(lower.len() > 256);
    let options = [&*lower, "ro", "nosuid", "nodev"];
    let c = bundle.mount("/mnt", "overlay", "overlay", &options).container();
    c.run().ok().prints("overlay ro,nosuid,nodev\n");
}
