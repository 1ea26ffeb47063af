//! `exec`: what the process is, and into which containers it goes.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;

use kiln_integration::{Bundle, Container, Value, cgroup, eventually, json, kiln_only, proc, reap};

/// A container that runs until it is deleted.
fn idle() -> Bundle {
    Bundle::new().args(&["sleep", "1000"])
}

fn running(bundle: Bundle) -> Container {
    let c = bundle.container();
    c.detach().ok();
    c
}

/// Runs `exec --process` with this document.
fn exec_process(c: &Container, process: &Value) -> kiln_integration::Cli {
    let file = c.bundle.scratch().join("process.json");
    fs::write(&file, process.to_string()).unwrap();
    c.exec_cli(&["--process", file.to_str().unwrap()], &[])
}

fn process(args: &[&str]) -> Value {
    json!({ "cwd": "/", "args": args, "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 } })
}

#[test]
fn the_exit_status_is_the_commands() {
    let c = running(idle());
    c.exec(&["true"]).ok();
    c.exec(&["sh", "-c", "exit 7"]).exits(7);
    c.exec(&["sh", "-c", "kill -9 $$"]).exits(137);
}

#[test]
fn stdio_is_the_callers() {
    let c = running(idle());
    let outcome = c.exec_cli(&[], &["sh", "-c", "cat; echo err >&2"]).stdin("given").output().ok();
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("given", "err\n"));
}

#[test]
fn flags_after_the_id_are_the_commands() {
    let c = running(idle());
    c.exec(&["echo", "-d", "--user", "-e", "--", "-la"]).ok().prints("-d --user -e -- -la\n");
}

#[test]
fn it_is_in_all_of_the_containers_namespaces() {
    let c = running(idle());
    let kinds = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];
    let script = kinds.map(|kind| format!("readlink /proc/self/ns/{kind}")).join("; ");
    let outcome = c.exec(&["sh", "-c", &script]).ok();
    let pid = c.pid();
    let inits = kinds.map(|kind| fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap());
    let inits = inits.map(|link| format!("{}\n", link.display())).concat();
    assert_eq!(outcome.stdout, inits);
}

#[test]
fn it_is_in_all_of_the_containers_cgroups() {
    let c = running(idle());
    let pid_file = c.bundle.scratch().join("pid");
    let flags = ["-d", "--pid-file", pid_file.to_str().unwrap()];
    c.exec_cli(&flags, &["sleep", "100"]).output().ok();
    let pid: i32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    let of = |pid: i32| fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    assert_eq!(of(pid), of(c.pid()));
    assert!(cgroup::members(c.pid()).contains(&pid));
}

#[test]
fn it_ends_with_the_container() {
    let c = running(idle());
    let flags = ["-d", "--pid-file", "pid"];
    c.exec_cli(&flags, &["sleep", "100"]).dir(c.bundle.scratch()).output().ok();
    let pid = fs::read_to_string(c.bundle.scratch().join("pid")).unwrap().parse().unwrap();
    assert!(proc::alive(pid));
    c.delete_force().ok();
    assert!(!proc::alive(pid));
}

#[test]
fn a_detached_one_belongs_to_the_callers_reaper() {
    let c = running(idle());
    let file = c.bundle.scratch().join("pid");
    let flags = ["--detach", "--pid-file", file.to_str().unwrap()];
    c.exec_cli(&flags, &["sh", "-c", "exit 3"]).output().ok();
    let pid = fs::read_to_string(file).unwrap().parse().unwrap();
    assert_eq!(reap(pid), 3);
}

#[test]
fn signals_are_passed_on() {
    let c = running(idle());
    let script = "trap 'echo got; exit 5' TERM; echo ready; while :; do sleep 0.05; done";
    let mut exec = c.exec_cli(&[], &["sh", "-c", script]).spawn();
    eventually("the trap", || exec.stdout().contains("ready"));
    exec.signal(rustix::process::Signal::TERM);
    exec.wait().exits(5).shows("got");
}

#[test]
fn into_what_is_not_running() {
    let c = idle().container();
    c.exec(&["true"]).fails_with(255, &["does not exist"]);
    c.create().ok();
    // As for runc: there is a container to look around in.
    c.exec(&["echo", "in"]).ok().prints("in\n");
    c.start().ok();
    c.kill("KILL").ok();
    c.await_status("stopped");
    c.exec(&["true"]).fails_with(255, &["container not running", "stopped"]);
}

#[test]
fn into_a_paused_container() {
    let c = running(idle());
    c.on_id("pause", &[]).ok();
    c.exec(&["true"]).fails_with(255, &["paused"]);
    let exec = c.exec_cli(&["--ignore-paused"], &["echo", "later"]).spawn();
    std::thread::sleep(std::time::Duration::from_millis(200));
    c.on_id("resume", &[]).ok();
    exec.wait().ok().prints("later\n");
}

#[test]
fn commands_that_cannot_be_executed() {
    let bundle = idle();
    fs::write(bundle.rootfs().join("etc/file"), "x").unwrap();
    let c = running(bundle);
    c.exec(&["nope"])
        .fails_with(255, &["exec failed", "\"nope\": executable file not found in $PATH"]);
    c.exec(&["/no/such"]).fails_with(255, &["/no/such", "no such file or directory"]);
    c.exec(&["/etc/file"]).fails_with(255, &["/etc/file", "permission denied"]);
    c.exec(&["/etc"]).fails_with(255, &["/etc", "permission denied"]);
    c.exec(&[]).fails_with(255, &["args", "empty"]);
    c.exec_cli(&["-d"], &["nope"]).output().fails_with(255, &["not found in $PATH"]);
    c.exec_cli(&["--cwd", "/no/such"], &["true"]).output().fails_with(255, &["/no/such"]);
    c.exec_cli(&["--cwd", "rel"], &["true"]).output().fails_with(255, &["process.cwd"]);
}

#[test]
fn users_are_numbers_and_never_become_root() {
    let c = running(idle());
    let bad = ["root", "-1", "4294967295", "4294967296", "1:-1", "1:x", "1:4294967295", ":", "0x0"];
    for user in bad {
        c.exec_cli(&["--user", user], &["id"])
            .output()
            .fails_with(255, &["is not an id"])
            .prints("");
    }
    for gid in ["-1", "x", "4294967295"] {
        let flags = ["--additional-gids", gid];
        c.exec_cli(&flags, &["id"]).output().fails_with(255, &["is not an id"]).prints("");
    }
    for uid in [json!(-1), json!("root"), json!(4_294_967_295_u32), json!(4_294_967_296_u64)] {
        let mut document = process(&["id"]);
        document["user"]["uid"] = uid;
        exec_process(&c, &document).output().fails_with(255, &[]).prints("");
    }
}

#[test]
fn user_and_groups_are_exact() {
    let user = json!({ "uid": 5, "gid": 6, "additionalGids": [7] });
    let c = running(idle().set("/process/user", user));
    let id = "echo $(id -u) $(id -g) $(id -G)";
    let with = |flags: &[&str]| c.exec_cli(flags, &["sh", "-c", id]).output().ok().stdout;
    assert_eq!(with(&[]), "5 6 6 7\n");
    assert_eq!(with(&["--user", "1000"]), "1000 6 6 7\n");
    assert_eq!(with(&["--user", "1000:1001", "-g", "8", "-g", "9"]), "1000 1001 1001 7 8 9\n");
    let outcome = exec_process(&c, &process(&["sh", "-c", id])).output().ok();
    assert_eq!(outcome.stdout.trim(), "0 0 0", "the file's user, without the container's groups");
}

#[test]
fn environment_directory_and_umask() {
    let bundle = idle().set("/process/env", json!(["PATH=/bin", "A=1", "B=2"]));
    let c = running(bundle.set("/process/user/umask", json!(0o077)));
    let flags = ["-e", "B=3", "--env", "C=x=y", "--cwd", "/etc"];
    let script = "echo $A $B $C; pwd; umask";
    c.exec_cli(&flags, &["sh", "-c", script])
        .env("LEAKED", "x")
        .output()
        .ok()
        .prints("1 3 x=y\n/etc\n0077\n");
    c.exec(&["env"]).ok().prints("PATH=/bin\nA=1\nB=2\nHOME=/\n");
}

const CAPS: &str = "grep ^Cap /proc/self/status | tr -s '\\t' ' '";

fn caps(inheritable: u64, others: u64, bounding: u64, ambient: u64) -> String {
    format!(
        "CapInh: {inheritable:016x}\nCapPrm: {others:016x}\nCapEff: {others:016x}\n\
         CapBnd: {bounding:016x}\nCapAmb: {ambient:016x}\n"
    )
}

#[test]
fn capabilities_are_the_containers_or_the_files() {
    let bundle = idle();
    let sets = ["bounding", "effective", "permitted"];
    let bundle = sets.iter().fold(bundle.unset("/process/capabilities"), |bundle, set| {
        bundle.set(&format!("/process/capabilities/{set}"), json!(["CAP_KILL", "CAP_CHOWN"]))
    });
    let c = running(bundle);
    let show = |flags: &[&str]| c.exec_cli(flags, &["sh", "-c", CAPS]).output().ok().stdout;
    let (chown, kill, net_raw) = (1, 1 << 5, 1 << 13);
    assert_eq!(show(&[]), caps(0, chown | kill, chown | kill, 0));
    // Not inheritable, not ambient: CVE-2022-29162.
    let all = chown | kill | net_raw;
    assert_eq!(show(&["--cap", "CAP_NET_RAW"]), caps(0, all, all, 0));
    let mut document = process(&["sh", "-c", CAPS]);
    let file = |document: &Value| exec_process(&c, document).output().ok().stdout;
    assert_eq!(file(&document), caps(0, chown | kill, chown | kill, 0));
    document["capabilities"] = json!({ "bounding": ["CAP_KILL"], "permitted": ["CAP_KILL"],
        "effective": ["CAP_KILL"], "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL"] });
    assert_eq!(file(&document), caps(kill, kill, kill, kill));
    document["capabilities"] = json!({});
    assert_eq!(file(&document), caps(0, 0, 0, 0));
}

#[test]
fn no_new_privileges() {
    let show = "grep NoNewPrivs /proc/self/status | tr -s '\\t' ' '";
    let c = running(idle().set("/process/noNewPrivileges", json!(false)));
    c.exec(&["sh", "-c", show]).ok().prints("NoNewPrivs: 0\n");
    let flags = ["--no-new-privs"];
    c.exec_cli(&flags, &["sh", "-c", show]).output().ok().prints("NoNewPrivs: 1\n");
    let c = running(idle().set("/process/noNewPrivileges", json!(true)));
    exec_process(&c, &process(&["sh", "-c", show])).output().ok().prints("NoNewPrivs: 1\n");
}

#[test]
fn limits_and_oom_score() {
    let limit = json!([{ "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 }]);
    let bundle = idle().set("/process/rlimits", limit).set("/process/oomScoreAdj", json!(300));
    let c = running(bundle);
    let show = "ulimit -Sn; ulimit -Hn; cat /proc/self/oom_score_adj";
    c.exec(&["sh", "-c", show]).ok().prints("100\n200\n300\n");
    let mut document = process(&["sh", "-c", show]);
    document["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 50, "hard": 60 }]);
    document["oomScoreAdj"] = json!(400);
    exec_process(&c, &document).output().ok().prints("50\n60\n400\n");
}

#[test]
fn the_config_that_counts_is_that_of_create() {
    let seccomp = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        { "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 }] });
    let bundle = idle().writable().set("/linux/seccomp", seccomp);
    let mut c = running(bundle.set("/process/env", json!(["PATH=/bin", "WHEN=create"])));
    let check = |c: &Container| {
        let outcome = c.exec(&["sh", "-c", "echo $WHEN; mkdir /d"]).exits(1);
        assert!(outcome.stdout == "create\n" && outcome.stderr.contains("not implemented"));
        let document = process(&["mkdir", "/d"]);
        let outcome = exec_process(c, &document).output().exits(1);
        assert!(outcome.stderr.contains("not implemented"), "{outcome}");
    };
    check(&c);
    c.bundle.config["linux"]["seccomp"] = json!(null);
    c.bundle.config["process"]["env"] = json!(["WHEN=changed"]);
    c.bundle.write();
    check(&c);
    fs::remove_file(c.bundle.path().join("config.json")).unwrap();
    check(&c);
}

#[test]
fn a_container_with_a_user_namespace() {
    let limit = json!([{ "type": "RLIMIT_NOFILE", "soft": 100, "hard": 200 }]);
    let c = running(idle().user_namespace(200_000).set("/process/rlimits", limit));
    let script =
        "id -u; cat /proc/self/uid_map | tr -s ' '; readlink /proc/self/ns/user; ulimit -n";
    let user = fs::read_link(format!("/proc/{}/ns/user", c.pid())).unwrap();
    let expected = format!("0\n 0 200000 65536\n{}\n100\n", user.display());
    c.exec(&["sh", "-c", script]).ok().prints(&expected);
    let flags = ["--user", "1000:1000", "-d", "--pid-file", "pid"];
    c.exec_cli(&flags, &["sleep", "100"]).dir(c.bundle.scratch()).output().ok();
    let pid = fs::read_to_string(c.bundle.scratch().join("pid")).unwrap().parse().unwrap();
    let uid = proc::status_field(pid, "Uid").unwrap();
    assert!(uid.starts_with("201000"), "{uid}");
}

#[test]
fn a_container_with_a_time_namespace() {
    let bundle = idle().namespace("time", None);
    let c = running(bundle.set("/linux/timeOffsets/boottime", json!({ "secs": 1_000_000 })));
    let outcome = c.exec(&["cut", "-d.", "-f1", "/proc/uptime"]).ok();
    let uptime: u64 = outcome.stdout.trim().parse().unwrap();
    assert!(uptime > 1_000_000, "{uptime}");
}

#[test]
fn the_environment_has_no_more_descriptors_than_asked_for() {
    let c = running(idle());
    let script = "exec 7</etc 8</ 3</; exec \"$@\"";
    let wrapper = ["sh", "-c", script, "sh"];
    let ls = ["sh", "-c", "ls /proc/self/fd | tr '\\n' ' '"];
    // ls itself opens the folder.
    c.exec_cli(&[], &ls).under(&wrapper).output().ok().prints("0 1 2 3 ");
    c.exec_cli(&["--preserve-fds", "1"], &["readlink", "/proc/self/fd/3"])
        .under(&wrapper)
        .output()
        .ok()
        .prints("/\n");
}

#[test]
fn the_working_directory_is_inside() {
    let c = running(idle());
    let wrapper = ["sh", "-c", "exec 3</etc 4</ 5</etc 6</; exec \"$@\"", "sh"];
    for fd in 3..10 {
        let cwd = format!("/proc/self/fd/{fd}");
        let flags = ["--preserve-fds", "3", "--cwd", &cwd];
        c.exec_cli(&flags, &["pwd"]).under(&wrapper).output().fails_with(255, &[&cwd]).prints("");
    }
}

#[test]
fn fifty_at_once() {
    let c = running(idle());
    let all: Vec<_> = (0..50)
        .map(|n| c.exec_cli(&[], &["sh", "-c", &format!("echo {n}; exit {n}")]).spawn())
        .collect();
    for (n, exec) in all.into_iter().enumerate() {
        exec.wait().exits(n as i32).prints(&format!("{n}\n"));
    }
    eventually("only init to be left", || cgroup::members(c.pid()) == [c.pid()]);
}

#[test]
fn a_process_file_that_is_none() {
    let c = running(idle());
    let file = c.bundle.scratch().join("p");
    let flags = ["-p", file.to_str().unwrap()];
    c.exec_cli(&flags, &[]).output().fails_with(255, &["scratch/p", "no such file"]);
    for (text, part) in [("{", "EOF"), ("{}", "cwd"), (r#"{"user":{},"cwd":"/"}"#, "args")] {
        fs::write(&file, text).unwrap();
        c.exec_cli(&flags, &[]).output().fails_with(255, &[part]);
    }
}

#[test]
fn cpu_affinity() {
    kiln_only!("runc 1.1 and crun 1.8 do not know it");
    let c = running(idle());
    let mut document = process(&["grep", "Cpus_allowed_list", "/proc/self/status"]);
    document["execCPUAffinity"] = json!({ "initial": "0", "final": "0" });
    exec_process(&c, &document).output().ok().prints("Cpus_allowed_list:\t0\n");
    document["execCPUAffinity"] = json!({ "final": "1000" });
    exec_process(&c, &document).output().fails_with(255, &["process.execCPUAffinity.final"]);
}

/// Makes a cgroup below the container's in the hierarchy of this controller.
fn below(c: &Container, controller: &str) -> std::path::PathBuf {
    let dir = cgroup::directory(c.pid(), controller).unwrap().join("below");
    fs::create_dir(&dir).unwrap();
    dir
}

#[test]
fn a_cgroup_below_the_containers() {
    if cgroup::is_v2() {
        let c = running(idle());
        below(&c, "unified");
        let show = ["sh", "-c", "sleep 100 & cat /proc/$!/cgroup; kill $!"];
        c.exec_cli(&["--cgroup", "/below"], &show).output().ok().prints("0::/below\n");
        c.exec_cli(&["--cgroup", "pids:below"], &show).output().fails_with(255, &["pids"]);
        return;
    }
    // Without a cgroup namespace of its own: what is shown is the host's path.
    let c = running(idle().without_namespace("cgroup"));
    below(&c, "pids");
    below(&c, "memory");
    let show = ["cat", "/proc/self/cgroup"];
    let outcome = c.exec_cli(&["--cgroup", "pids,memory:below"], &show).output().ok();
    for line in outcome.stdout.lines().filter(|line| line.contains(&c.id)) {
        let inside = line.contains(":pids:") || line.contains(":memory:");
        assert_eq!(line.ends_with("/below"), inside, "{outcome}");
    }
    let flags = ["--cgroup", "pids:below", "--cgroup", "memory:/"];
    c.exec_cli(&flags, &show).output().ok().shows("/below");
    let flags = ["--cgroup", "below"];
    c.exec_cli(&flags, &show).output().fails_with(255, &["below", "no such file"]).prints("");
    c.exec_cli(&["--cgroup", "nothing:x"], &show).output().fails_with(255, &["nothing"]);
}

#[test]
fn a_cgroup_beside_the_containers_is_out_of_reach() {
    let c = running(idle());
    for path in ["..", "../x", "/../..", "below/../../x", "pids:../x"] {
        c.exec_cli(&["--cgroup", path], &["echo", "in"])
            .output()
            .fails_with(255, &["--cgroup", "is not a sub cgroup path"])
            .prints("");
    }
}

/// runc: what has given its controllers to its children takes no process (EBUSY); the exec goes
/// where init went.
#[test]
fn a_v2_cgroup_with_children_of_its_own() {
    if !cgroup::is_v2() {
        kiln_integration::skip!("no cgroup v2");
    }
    let script = "mkdir /sys/fs/cgroup/init && echo 1 > /sys/fs/cgroup/init/cgroup.procs && \
        echo +pids > /sys/fs/cgroup/cgroup.subtree_control && echo done > /done; sleep 1000";
    let bundle = Bundle::sh(script).writable();
    let c = running(bundle.mount("/sys/fs/cgroup", "cgroup2", "cgroup", &["rw"]));
    c.await_file("/done");
    c.exec(&["cat", "/proc/self/cgroup"]).ok().prints("0::/init\n");
    // Who asks for the container's own gets that or nothing.
    let outcome = c.exec_cli(&["--cgroup", "/"], &["true"]).output();
    outcome.fails_with(255, &["adding pid", "cgroup.procs: device or resource busy"]);
}

/// The filter of the container, its listener for the exec'd process: the agent hears of both.
#[test]
fn seccomp_of_an_exec_cannot_be_chosen() {
    let seccomp = json!({ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        { "names": ["setpgid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 }] });
    for no_new_privileges in [true, false] {
        let bundle = idle().set("/linux/seccomp", seccomp.clone());
        let c = running(bundle.set("/process/noNewPrivileges", json!(no_new_privileges)));
        c.exec(&["grep", "^Seccomp:", "/proc/self/status"]).ok().shows("2");
        let mut document = process(&["grep", "-E", "^(Seccomp|CapEff):", "/proc/self/status"]);
        document["capabilities"] = json!({});
        let outcome = exec_process(&c, &document).output().ok().shows("Seccomp:\t2");
        outcome.shows("CapEff:\t0000000000000000");
    }
}

#[test]
fn scheduling() {
    let c = running(idle());
    let mut document = process(&["sh", "-c", "cut -d' ' -f19 /proc/self/stat"]);
    document["scheduler"] = json!({ "policy": "SCHED_OTHER", "nice": 7 });
    exec_process(&c, &document).output().ok().prints("7\n");
}

#[test]
fn nothing_of_the_callers_session() {
    let c = running(idle());
    // Its own session and process group.
    let outcome = c.exec(&["sh", "-c", "cut -d' ' -f1,5,6 /proc/$$/stat"]).ok();
    let ids: Vec<_> = outcome.stdout.split_whitespace().collect();
    assert!(ids[0] == ids[1] && ids[1] == ids[2], "{outcome}");
}

/// An exec'd process can be killed, and those that it leaves live on in the container.
#[test]
fn children_outlive_it() {
    let c = running(idle());
    c.exec(&["sh", "-c", "sleep 300 >/dev/null 2>&1 & echo started"]).ok().prints("started\n");
    eventually("the child to be init's", || cgroup::members(c.pid()).len() == 2);
}

#[test]
fn a_container_that_shares_namespaces() {
    let c = running(idle().without_namespace("network").without_namespace("ipc"));
    let script = "readlink /proc/self/ns/net; readlink /proc/self/ns/ipc";
    let outcome = c.exec(&["sh", "-c", script]);
    let own = ["net", "ipc"].map(|kind| fs::read_link(format!("/proc/self/ns/{kind}")).unwrap());
    assert_eq!(outcome.stdout, own.map(|link| format!("{}\n", link.display())).concat());
}

#[test]
fn a_container_in_anothers_namespaces() {
    let first = running(idle());
    let pid = first.pid();
    let joined = |bundle: Bundle, kind: &str, file: &str| {
        bundle.namespace(kind, Some(&format!("/proc/{pid}/ns/{file}")))
    };
    let bundle = joined(joined(idle(), "pid", "pid"), "network", "net");
    let second = running(bundle);
    second.exec(&["ps"]).ok().shows("sleep 1000");
}

/// A pod that reads /proc of its neighbours finds nothing of the host's in a process that is being
/// executed: not its root, not a descriptor of a folder (CVE-2016-9962, CVE-2024-21626).
#[test]
fn a_neighbour_with_ptrace_finds_nothing_of_the_host() {
    let marker = tempfile::NamedTempFile::new_in("/tmp").unwrap();
    let name = marker.path().file_name().unwrap().to_str().unwrap();
    let script = format!(
        "while :; do for p in /proc/[0-9]*; do \
           [ -e $p/root/tmp/{name} ] && echo root $p >> /found; \
           for d in $p/fd/*; do [ -e $d/../../../../../../tmp/{name} ] && \
             echo $d $(readlink $d) >> /found; done; \
         done; echo x >> /rounds; done"
    );
    let caps = ["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH"];
    let c = running(Bundle::sh(&script).capabilities(&caps).writable());
    c.await_file("/rounds");
    for _ in 0..50 {
        c.exec(&["true"]).ok();
    }
    let found = fs::read_to_string(c.bundle.rootfs().join("found")).unwrap_or_default();
    assert_eq!(found, "");
}

/// Its root is not that of its mount namespace.
#[test]
fn a_container_in_a_joined_mount_namespace() {
    let mut holder = std::process::Command::new("unshare");
    let mut holder = kiln_integration::reaper::spawn(holder.args(["--mount", "sleep", "1000"]));
    let pid = holder.id().cast_signed();
    eventually("its namespace", || proc::namespace(pid, "mnt") != proc::own_namespace("mnt"));
    let bundle = idle().namespace("mount", Some(&format!("/proc/{pid}/ns/mnt")));
    fs::write(bundle.rootfs().join("etc/which"), "inside").unwrap();
    let c = running(bundle);
    let outcome = c.exec(&["cat", "/etc/which"]);
    // It sees the container's mounts, which are looked for when `c` goes.
    kiln_integration::reaper::end(&mut holder);
    outcome.ok().prints("inside");
}

/// As for runc, whose fields are 0 where the file has none.
#[test]
fn a_process_file_without_a_user() {
    let c = running(idle());
    let mut process = process(&["id", "-u"]);
    process.as_object_mut().unwrap().remove("user");
    exec_process(&c, &process).output().ok().prints("0\n");
}

#[test]
fn a_process_file_may_be_a_descriptor() {
    let c = running(idle());
    let json = process(&["echo", "from a pipe"]).to_string();
    let script = format!("exec \"$@\" --process <(printf %s '{json}') {}", c.id);
    let cli = c.cli(&["exec"]).under(&["bash", "-c", &script, "bash"]);
    cli.output().ok().prints("from a pipe\n");
}

#[test]
fn capabilities_that_nobody_knows_are_left_out() {
    let c = running(idle().capabilities(&[]));
    let show = ["grep", "-E", "^Cap(Prm|Amb)", "/proc/self/status"];
    let outcome = c.exec_cli(&["--cap", "CAP_UNKNOWN", "--cap", "CAP_KILL"], &show).output().ok();
    assert!(outcome.stderr.contains("CAP_UNKNOWN"), "{outcome}");
    outcome.shows("CapPrm:\t0000000000000020").shows("CapAmb:\t0000000000000000");
}

#[test]
fn capabilities_that_are_inheritable_become_ambient() {
    let bundle = idle().capabilities(&["CAP_CHOWN"]);
    let bundle = bundle.set("/process/capabilities/bounding", json!(["CAP_CHOWN", "CAP_KILL"]));
    let bundle = bundle.set("/process/capabilities/inheritable", json!(["CAP_KILL"]));
    let bundle = bundle.set("/process/capabilities/ambient", json!([]));
    let c = running(bundle);
    let show = ["grep", "-E", "^Cap(Inh|Amb)", "/proc/self/status"];
    let outcome = c.exec_cli(&["--cap", "CAP_KILL", "--cap", "CAP_FOWNER"], &show).output().ok();
    outcome.prints("CapInh:\t0000000000000020\nCapAmb:\t0000000000000020\n");
}
