//! The process: user, groups, umask, capabilities, limits, environment,
//! working directory, and programs that cannot be executed.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;

use kiln_integration::{Bundle, Value, json, kiln_only, proc, skip};

#[test]
fn user_and_groups() {
    let user = json!({ "uid": 1000, "gid": 1001, "additionalGids": [5, 7] });
    let c = Bundle::sh("id -u; id -g; id -G").set("/process/user", user).container();
    c.run().ok().prints("1000\n1001\n1001 5 7\n");
}

#[test]
fn no_additional_groups_of_the_caller() {
    let c = Bundle::sh("grep ^Groups: /proc/self/status | tr -s ' \\t' ' '").container();
    let outcome = c.run().ok();
    assert!(["Groups: \n", "Groups: 0 \n"].contains(&outcome.stdout.as_str()), "{outcome}");
}

#[test]
fn all_ids_are_set() {
    let user = json!({ "uid": 1000, "gid": 1001 });
    let script = "grep -E '^(Uid|Gid):' /proc/self/status | tr '\\t' ' '";
    let c = Bundle::sh(script).set("/process/user", user).container();
    c.run().ok().prints("Uid: 1000 1000 1000 1000\nGid: 1001 1001 1001 1001\n");
}

#[test]
fn umask_is_set() {
    let c = Bundle::sh("umask; touch /made; stat -c %a /made").writable();
    let c = c.set("/process/user/umask", json!(0o077)).container();
    c.run().ok().prints("0077\n600\n");
    Bundle::sh("umask").container().run().ok().prints("0022\n");
}

#[test]
fn the_environment_is_the_configs() {
    let c = Bundle::new().args(&["env"]);
    let env = json!(["PATH=/bin", "A=1", "EMPTY=", "WITH=a=b c", "HOME=/somewhere"]);
    let c = c.set("/process/env", env).container();
    let outcome = c.run_cli(&[]).env("LEAKED", "yes").output().ok();
    outcome.prints("PATH=/bin\nA=1\nEMPTY=\nWITH=a=b c\nHOME=/somewhere\n");
}

#[test]
fn home_is_taken_from_passwd_if_not_set() {
    let c = Bundle::sh("echo $HOME").set("/process/env", json!(["PATH=/bin"]));
    fs::write(c.rootfs().join("etc/passwd"), "root:x:0:0:root:/the/home:/bin/sh\n").unwrap();
    c.container().run().ok().prints("/the/home\n");
}

#[test]
fn the_path_is_the_containers() {
    let bundle = Bundle::new().args(&["mine"]).set("/process/env", json!(["PATH=/no:/opt/x:/bin"]));
    fs::create_dir_all(bundle.rootfs().join("opt/x")).unwrap();
    let script = bundle.rootfs().join("opt/x/mine");
    fs::copy(bundle.rootfs().join("bin/busybox"), &script).unwrap();
    // busybox does not know the name; that it says so proves that it ran.
    let outcome = bundle.container().run().exits(127);
    assert!(outcome.stderr.contains("applet not found"), "{outcome}");
}

#[test]
fn the_working_directory() {
    let c = Bundle::sh("pwd; ls").set("/process/cwd", json!("/etc"));
    fs::write(c.rootfs().join("etc/here"), "").unwrap();
    let outcome = c.container().run().ok();
    assert!(outcome.stdout.starts_with("/etc\n"), "{outcome}");
    outcome.shows("here\n");
}

#[test]
fn a_working_directory_of_the_user_only() {
    let c = Bundle::sh("pwd").set("/process/cwd", json!("/private"));
    let c = c.set("/process/user", json!({ "uid": 1000, "gid": 1000 }));
    let dir = c.rootfs().join("private");
    fs::create_dir(&dir).unwrap();
    std::os::unix::fs::chown(&dir, Some(1000), Some(1000)).unwrap();
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    c.container().run().ok().prints("/private\n");
}

/// In a read-only root as well: it is made before that is.
#[test]
fn a_working_directory_that_is_missing_is_made() {
    let bundle = Bundle::sh("pwd").set("/process/cwd", json!("/made/for/it"));
    assert_eq!(bundle.config["root"]["readonly"], json!(true));
    bundle.container().run().ok().prints("/made/for/it\n");
}

#[test]
fn a_program_that_is_not_in_path() {
    let c = Bundle::new().args(&["no-such-program"]).container();
    let c_error = ["no-such-program", "executable file not found in $PATH"];
    c.create().fails(&c_error);
    c.assert_nothing_left();
    c.run().fails(&c_error);
    c.assert_nothing_left();
}

#[test]
fn a_program_by_path_that_is_not_there() {
    let c = Bundle::new().args(&["/no/such/program"]).container();
    c.create().fails(&["/no/such/program", "no such file or directory"]);
    c.assert_nothing_left();
}

#[test]
fn a_program_that_is_not_executable() {
    let bundle = Bundle::new().args(&["/etc/file"]);
    fs::write(bundle.rootfs().join("etc/file"), "x").unwrap();
    let c = bundle.container();
    c.create().fails(&["/etc/file", "permission denied"]);
    c.assert_nothing_left();
}

#[test]
fn a_program_that_is_a_folder() {
    let c = Bundle::new().args(&["/etc"]).container();
    c.create().fails(&["/etc"]);
    c.assert_nothing_left();
}

/// The kernel only sees it at exec, when `create` has long ended.
#[test]
fn a_program_of_no_known_format() {
    let bundle = Bundle::new().args(&["/bin/strange"]);
    fs::write(bundle.rootfs().join("bin/strange"), "no format").unwrap();
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(bundle.rootfs().join("bin/strange"), mode).unwrap();
    let c = bundle.container();
    c.run().fails(&["exec format error"]);
    c.assert_nothing_left();
}

#[test]
fn a_script_with_its_interpreter() {
    let bundle = Bundle::new().args(&["/bin/script", "a", "b"]);
    fs::write(bundle.rootfs().join("bin/script"), "#!/bin/sh\necho $# $0\n").unwrap();
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(bundle.rootfs().join("bin/script"), mode).unwrap();
    bundle.container().run().ok().prints("2 /bin/script\n");
}

/// Capability sets of the container process, as numbers.
fn sets(bundle: Bundle) -> Vec<u64> {
    let script = "grep ^Cap /proc/self/status | tr -s '\\t' ' ' | cut -d' ' -f2";
    let outcome = bundle.args(&["sh", "-c", script]).container().run().ok();
    outcome.stdout.lines().map(|line| u64::from_str_radix(line, 16).unwrap()).collect()
}

const KILL: u64 = 1 << 5;
const NET_BIND_SERVICE: u64 = 1 << 10;
const AUDIT_WRITE: u64 = 1 << 29;

#[test]
fn the_default_capabilities() {
    let all = KILL | NET_BIND_SERVICE | AUDIT_WRITE;
    let [inheritable, permitted, effective, bounding, ambient] = sets(Bundle::new())[..] else {
        panic!("five sets");
    };
    assert_eq!((permitted, effective, bounding), (all, all, all));
    // runc's `spec` has ambient without inheritable, which the kernel refuses.
    assert_eq!(ambient & !inheritable, 0);
}

#[test]
fn each_set_on_its_own() {
    let capabilities = json!({
        "bounding": ["CAP_KILL", "CAP_AUDIT_WRITE", "CAP_NET_BIND_SERVICE"],
        "permitted": ["CAP_KILL", "CAP_AUDIT_WRITE"],
        "effective": ["CAP_KILL"],
        "inheritable": ["CAP_AUDIT_WRITE"],
        "ambient": ["CAP_AUDIT_WRITE"],
    });
    let user = json!({ "uid": 1000, "gid": 1000 });
    let bundle = Bundle::new().set("/process/capabilities", capabilities);
    // Not root: for that the kernel would widen the sets at exec.
    let sets = sets(bundle.set("/process/user", user));
    let ambient = AUDIT_WRITE;
    assert_eq!(sets[0], AUDIT_WRITE, "inheritable");
    assert_eq!(sets[1], ambient, "permitted after exec is ambient");
    assert_eq!(sets[2], ambient, "effective after exec is ambient");
    assert_eq!(sets[3], KILL | AUDIT_WRITE | NET_BIND_SERVICE, "bounding");
    assert_eq!(sets[4], ambient, "ambient");
}

#[test]
fn no_capabilities() {
    for bundle in [Bundle::new().unset("/process/capabilities"), Bundle::new().capabilities(&[])] {
        assert_eq!(sets(bundle), [0, 0, 0, 0, 0]);
    }
}

#[test]
fn a_user_has_no_capabilities_without_ambient() {
    let bundle = Bundle::new().set("/process/user", json!({ "uid": 1000, "gid": 1000 }));
    let bundle = bundle.unset("/process/capabilities/ambient");
    let sets = sets(bundle);
    assert_eq!((sets[1], sets[2]), (0, 0));
}

#[test]
fn a_capability_that_is_missing_is_missed() {
    let script = "chown 1:1 /etc/file";
    let bundle = Bundle::sh(script).writable();
    fs::write(bundle.rootfs().join("etc/file"), "").unwrap();
    let outcome = bundle.container().run().exits(1);
    assert!(outcome.stderr.contains("Operation not permitted"), "{outcome}");
    let bundle = Bundle::sh(script).writable().capabilities(&["CAP_CHOWN"]);
    fs::write(bundle.rootfs().join("etc/file"), "").unwrap();
    bundle.container().run().ok();
}

#[test]
fn no_new_privileges() {
    let script = "grep ^NoNewPrivs /proc/self/status | tr '\\t' ' '";
    for (value, line) in [(true, "NoNewPrivs: 1\n"), (false, "NoNewPrivs: 0\n")] {
        let c = Bundle::sh(script).set("/process/noNewPrivileges", json!(value)).container();
        c.run().ok().prints(line);
    }
}

#[test]
fn resource_limits() {
    let limits = json!([
        { "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 },
        { "type": "RLIMIT_CORE", "soft": 0, "hard": 4096 },
        { "type": "RLIMIT_NPROC", "soft": 50, "hard": 60 },
        { "type": "RLIMIT_STACK", "soft": 1_048_576, "hard": 2_097_152 },
    ]);
    let script = "grep -E '^Max (open|core|proc|stack)' /proc/self/limits | \
        awk '{ print $2, $(NF-2), $(NF-1) }'";
    let c = Bundle::sh(script).set("/process/rlimits", limits).container();
    let outcome = c.run().ok();
    for line in ["open 100 200", "core 0 4096", "processes 50 60", "stack 1048576 2097152"] {
        assert!(outcome.stdout.lines().any(|own| own == line), "no {line:?} in {outcome}");
    }
}

#[test]
fn a_limit_above_the_callers() {
    kiln_only!("1.1.5 sets limits when the capability for it is gone");
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    let own = proc::status_field(std::process::id().cast_signed(), "CapEff").unwrap();
    if u64::from_str_radix(&own, 16).unwrap() & CAP_SYS_RESOURCE == 0 {
        skip!("this machine gives root no CAP_SYS_RESOURCE");
    }
    let limits = json!([{ "type": "RLIMIT_NOFILE", "soft": 3000, "hard": 3000 }]);
    let c = Bundle::sh("ulimit -n").set("/process/rlimits", limits).container();
    let wrapper = ["bash", "-c", "ulimit -n 500; exec \"$@\"", "bash"];
    c.run_cli(&[]).under(&wrapper).output().ok().prints("3000\n");
}

#[test]
fn oom_score() {
    let c = Bundle::new().args(&["cat", "/proc/self/oom_score_adj"]);
    c.set("/process/oomScoreAdj", json!(345)).container().run().ok().prints("345\n");
}

/// A container process must not be spared because its runtime was.
#[test]
fn the_oom_score_of_the_caller_is_kept_if_none_is_set() {
    let c = Bundle::new().args(&["cat", "/proc/self/oom_score_adj"]).container();
    let wrapper = ["bash", "-c", "echo 77 > /proc/self/oom_score_adj; exec \"$@\"", "bash"];
    c.run_cli(&[]).under(&wrapper).output().ok().prints("77\n");
}

#[test]
fn sysctl_of_the_containers_namespaces() {
    let sysctl = json!({
        "net.ipv4.ip_forward": "1", "kernel.shmmax": "12345678", "fs.mqueue.msg_max": "20",
    });
    let script = "cd /proc/sys; cat net/ipv4/ip_forward kernel/shmmax fs/mqueue/msg_max";
    let c = Bundle::sh(script).set("/linux/sysctl", sysctl).container();
    c.run().ok().prints("1\n12345678\n20\n");
    assert_ne!(fs::read_to_string("/proc/sys/kernel/shmmax").unwrap(), "12345678\n");
}

#[test]
fn sysctl_of_a_name_with_dots() {
    let sysctl = json!({ "net/ipv4/conf/lo/forwarding": "1" });
    let c = Bundle::sh("cat /proc/sys/net/ipv4/conf/lo/forwarding");
    c.set("/linux/sysctl", sysctl).container().run().ok().prints("1\n");
}

/// Rust ignores SIGPIPE, and a runtime may block what it waits for by signalfd.
#[test]
fn no_signal_is_blocked_or_ignored() {
    let script = "grep -E '^Sig(Blk|Ign)' /proc/self/status | tr '\\t' ' '";
    let c = Bundle::new().args(&["sh", "-c", script]).container();
    let outcome = c.run().ok();
    let masks = outcome.stdout.lines().filter_map(|line| line.split_once(": "));
    for (name, mask) in masks {
        // 32 and 33 are glibc's own, ignored in what posix_spawn(3) started.
        let mask = u64::from_str_radix(mask, 16).unwrap() & !(0b11 << 31);
        assert_eq!(mask, 0, "{name}: {outcome}");
    }
}

#[test]
fn arguments_arrive_as_they_are() {
    let arguments = ["sh", "-c", "for a; do echo \"<$a>\"; done", "x", "", " ", "a b", "ü\\n", "*"];
    let c = Bundle::new().args(&arguments).container();
    c.run().ok().prints("<>\n< >\n<a b>\n<ü\\n>\n<*>\n");
}

#[test]
fn a_long_list_of_arguments() {
    let mut arguments = vec![json!("sh"), json!("-c"), json!("echo $#"), json!("x")];
    arguments.extend((0..5000).map(|number| json!(format!("argument number {number}"))));
    let c = Bundle::new().set("/process/args", Value::Array(arguments)).container();
    c.run().ok().prints("5000\n");
}
