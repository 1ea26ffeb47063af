//! Containers of a user who is not root: the whole life, ids, what is mounted,
//! cgroups, and where the user's rights end.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use kiln_integration::console::ConsoleSocket;
use kiln_integration::hostmount::HostMount;
use kiln_integration::user::User;
use kiln_integration::{
    Bundle, Cli, Container, binary, cgroup, eventually, json, kiln_only, needs_user, needs_wasm,
    proc, skip,
};

/// The container of this bundle, made and used by the user.
fn of(user: &User, bundle: Bundle) -> Container {
    user.own(&bundle);
    bundle.container().under(&user.plain())
}

fn sh(user: &User, script: &str) -> Container {
    of(user, Bundle::rootless(user, script))
}

#[test]
fn a_user_runs_a_container() {
    let user = needs_user!();
    let c = sh(&user, "id -u; id -g; tr -s ' ' < /proc/self/uid_map; exit 7");
    c.run().exits(7).prints(&format!("0\n0\n 0 {} 1\n", user.id));
    c.assert_nothing_left();
}

#[test]
fn a_container_lives_its_whole_life() {
    let user = needs_user!();
    let script = "trap 'exit 3' TERM; echo up > /up; while :; do sleep 0.1; done";
    let c = of(&user, Bundle::rootless(&user, script).writable());
    c.create().ok();
    assert_eq!(c.status(), "created");
    let pid = c.pid();
    assert_eq!(fs::metadata(format!("/proc/{pid}/environ")).unwrap().uid(), 0, "not dumpable");
    c.start().ok();
    c.await_file("/up");
    assert_eq!(c.status(), "running");
    let ids = proc::status_field(pid, "Uid").unwrap();
    assert!(ids.split('\t').all(|id| id == user.id.to_string()), "{ids}");
    c.cli(&["list"]).output().ok().shows(&c.id);
    c.delete().fails(&["running"]);
    c.kill("TERM").ok();
    c.await_status("stopped");
    c.delete().ok();
    c.assert_nothing_left();
}

#[test]
fn a_running_container_is_deleted_by_force() {
    let user = needs_user!();
    let c = sh(&user, "sleep 100 & sleep 100");
    c.detach().ok();
    c.delete_force().ok();
    c.assert_nothing_left();
}

#[test]
fn another_process_is_executed() {
    let user = needs_user!();
    let c = sh(&user, "sleep 100");
    c.detach().ok();
    c.cli(&["exec", &c.id, "sh", "-c", "id -u; test -e /proc/1 && exit 5"])
        .output()
        .exits(5)
        .prints("0\n");
    let outcome = c.cli(&["exec", "--additional-gids", "0", &c.id, "id"]).output();
    assert!(!outcome.status.success(), "{outcome}");
    assert!(outcome.stderr.contains("additional groups in a rootless container"), "{outcome}");
}

#[test]
fn the_terminal_is_the_users() {
    let user = needs_user!();
    let bundle = Bundle::rootless(&user, "tty; stat -c %u /dev/console; read line; echo got $line");
    let bundle = bundle.set("/process/terminal", json!(true));
    let socket = ConsoleSocket::listen(&bundle.scratch());
    let c = of(&user, bundle);
    c.create_cli(&["--console-socket", socket.path()]).output().ok();
    let mut terminal = socket.accept();
    c.start().ok();
    let text = terminal.read_until("0\r\n0\r\n");
    assert!(text.contains("/dev/pts/0\r\n0\r\n"), "{text:?}");
    terminal.send("hello\n");
    assert!(terminal.read_until("got hello").contains("got hello"));
}

#[test]
fn devices_can_be_used() {
    let user = needs_user!();
    let c = sh(
        &user,
        "echo x > /dev/null && head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c; \
         echo x 2>/dev/null > /dev/full || echo full; stat -c %t:%T /dev/null /dev/tty; \
         ls /dev/fd/0 > /dev/null && echo links",
    );
    c.run().ok().prints("4\n4\nfull\n1:3\n5:0\nlinks\n");
}

#[test]
fn proc_and_sys_are_there() {
    let user = needs_user!();
    let c = sh(
        &user,
        "echo $$; ls -d /sys/class/net; touch /sys/x 2>/dev/null || echo read-only; \
         test -s /proc/kcore || echo masked; echo 1 2>/dev/null > /proc/sys/kernel/panic || echo no",
    );
    c.run().ok().prints("1\n/sys/class/net\nread-only\nmasked\nno\n");
}

#[test]
fn an_own_network_namespace_has_its_loopback_up() {
    let user = needs_user!();
    let bundle = Bundle::rootless(&user, "ls /sys/class/net; cat /sys/class/net/lo/flags");
    let bundle = bundle.namespace("network", None);
    let at = mount_on(&bundle, "/sys");
    let bundle = bundle.set(
        &format!("/mounts/{at}"),
        json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", "ro"] }),
    );
    of(&user, bundle).run().ok().prints("lo\n0x9\n");
}

fn mount_on(bundle: &Bundle, destination: &str) -> usize {
    let mounts = bundle.config["mounts"].as_array().unwrap();
    mounts.iter().position(|mount| mount["destination"] == destination).unwrap()
}

/// crun binds them, too; runc says only that it may not.
#[test]
fn what_shows_a_shared_namespace_is_bound() {
    kiln_only!("does it otherwise");
    let user = needs_user!();
    let bundle = Bundle::rootless(&user, "ls /sys/class/net | wc -l; ls -d /proc/1 /dev/mqueue");
    let at = mount_on(&bundle, "/sys");
    let bundle = bundle
        .set(
            &format!("/mounts/{at}"),
            json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs" }),
        )
        .without_namespace("pid");
    let here = fs::read_dir("/sys/class/net").unwrap().count();
    of(&user, bundle).run().ok().prints(&format!("{here}\n/dev/mqueue\n/proc/1\n"));
}

#[test]
fn an_own_directory_is_bound() {
    let user = needs_user!();
    let bundle = Bundle::rootless(&user, "cat /mnt/file; echo made > /mnt/made");
    let source = bundle.scratch();
    fs::write(source.join("file"), "read\n").unwrap();
    let c = of(&user, bundle.bind(&source, "/mnt", &["rbind"]));
    c.run().ok().prints("read\n");
    let made = fs::metadata(source.join("made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (user.id, user.id));
}

/// Even one that nobody else may enter: it is opened with the user's rights.
#[test]
fn a_private_bundle_is_found_whoever_is_root_inside() {
    kiln_only!("opens it as the container's root");
    let user = needs_user!();
    if user.subordinate.is_none() {
        skip!("user {} has no subordinate ids", user.id);
    }
    let bundle = Bundle::rootless(&user, "id -u; cat /mnt/file");
    let source = bundle.scratch();
    fs::write(source.join("file"), "read\n").unwrap();
    fs::create_dir(bundle.rootfs().join("mnt")).unwrap();
    fs::set_permissions(bundle.home(), fs::Permissions::from_mode(0o700)).unwrap();
    let map = json!([{ "containerID": 0, "hostID": user.subordinate.unwrap(), "size": 1000 }]);
    let bundle = bundle.set("/linux/uidMappings", map.clone()).set("/linux/gidMappings", map);
    let c = of(&user, bundle.bind(&source, "/mnt", &["rbind"]));
    c.run().ok().prints("0\nread\n");
}

#[test]
fn files_of_others_stay_theirs() {
    let user = needs_user!();
    let bundle = Bundle::rootless(
        &user,
        "for f in shown hidden; do cat /mnt/$f; (echo x > /mnt/$f); chmod 777 /mnt/$f; \
         chown 0 /mnt/$f; rm -f /mnt/$f; done 2>/dev/null",
    );
    let source = bundle.scratch().join("others");
    fs::create_dir(&source).unwrap();
    let c = of(&user, bundle.bind(&source, "/mnt", &["rbind"]));
    std::os::unix::fs::chown(&source, Some(0), Some(0)).unwrap();
    for (name, mode) in [("shown", 0o644), ("hidden", 0o600)] {
        let path = source.join(name);
        fs::write(&path, format!("{name}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    c.run().prints("shown\n");
    for (name, mode) in [("shown", 0o644), ("hidden", 0o600)] {
        let path = source.join(name);
        let meta = fs::metadata(&path).unwrap();
        assert_eq!((meta.uid(), meta.mode() & 0o7777), (0, mode));
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{name}\n"));
    }
}

/// A mount that is read-only outside stays so: mount_namespaces(7).
#[test]
fn locked_options_are_kept() {
    kiln_only!("words it otherwise");
    let user = needs_user!();
    for (options, works) in
        [(&["rbind"][..], true), (&["rbind", "ro"], true), (&["rbind", "rw"], false)]
    {
        let mut bundle = Bundle::rootless(&user, "touch /mnt/x 2>/dev/null || echo read-only");
        let source = bundle.scratch().join("locked");
        fs::create_dir(&source).unwrap();
        user.own(&bundle);
        bundle.hold(HostMount::bind(&source, &source).restricted());
        let c = bundle.bind(&source, "/mnt", options).container().under(&user.plain());
        match works {
            true => drop(c.run().ok().prints("read-only\n")),
            false => drop(c.run().fails(&["/mnt", "operation not permitted"])),
        }
    }
}

#[test]
fn all_ids_of_the_user_are_mapped() {
    let user = needs_user!();
    let Some(first) = user.subordinate else {
        skip!("user {} has no subordinate ids", user.id);
    };
    let script = "tr -s ' ' < /proc/self/uid_map; tr -s ' ' < /proc/self/gid_map; \
        cat /proc/self/setgroups; touch /made; chown 1000:1001 /made; id -G";
    let bundle = Bundle::rootless(&user, script).subordinate_ids(&user).writable();
    let bundle = bundle.capabilities(&["CAP_CHOWN"]);
    let c = of(&user, bundle.set("/process/user/additionalGids", json!([5, 7])));
    let map = format!(" 0 {} 1\n 1 {first} 65536\n", user.id);
    c.run().ok().prints(&format!("{map}{map}allow\n0 5 7\n"));
    let made = fs::metadata(c.bundle.rootfs().join("made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (first + 999, first + 1000));
    c.assert_nothing_left();
}

#[test]
fn another_user_of_the_container() {
    let user = needs_user!();
    if user.subordinate.is_none() {
        skip!("user {} has no subordinate ids", user.id);
    }
    let bundle = Bundle::rootless(&user, "id -u; id -g; id -G").subordinate_ids(&user);
    let account = json!({ "uid": 1000, "gid": 1001, "additionalGids": [5] });
    of(&user, bundle.set("/process/user", account)).run().ok().prints("1000\n1001\n1001 5\n");
}

#[test]
fn one_id_alone_has_no_groups() {
    let user = needs_user!();
    sh(&user, "cat /proc/self/setgroups; id -G").run().ok().prints("deny\n0\n");
    let bundle = Bundle::rootless(&user, "id");
    let c = of(&user, bundle.set("/process/user/additionalGids", json!([0])));
    c.run().fails(&["additionalGids", "additional groups in a rootless container"]);
    c.assert_nothing_left();
}

#[test]
fn ids_that_are_not_mapped_are_named() {
    kiln_only!("words it otherwise");
    let user = needs_user!();
    let refused = |pointer: &str, value, parts: &[&str]| {
        let c = of(&user, Bundle::rootless(&user, "id").set(pointer, value));
        c.create().fails(parts);
        c.assert_nothing_left();
    };
    refused("/process/user/uid", json!(1), &["process.user.uid", "unmapped user"]);
    refused("/process/user/gid", json!(1), &["process.user.gid", "unmapped"]);
    let at = mount_on(&Bundle::rootless(&user, "id"), "/dev/pts");
    let options = json!(["nosuid", "newinstance", "gid=5"]);
    let field = format!("mounts[{at}].options");
    refused(&format!("/mounts/{at}/options"), options, &[&field, "gid=5", "linux.gidMappings"]);
}

#[test]
fn ids_that_are_not_the_users_are_refused() {
    kiln_only!("words it otherwise");
    let user = needs_user!();
    let map = json!([{ "containerID": 0, "hostID": 0, "size": 10 }]);
    let c = of(&user, Bundle::rootless(&user, "id").set("/linux/uidMappings", map));
    c.run().fails(&["linux.uidMappings", "newuidmap"]);
    c.assert_nothing_left();
    let mut nowhere = user.plain();
    nowhere.push("PATH=/nonexistent".to_owned());
    let c = c.under(&nowhere);
    c.run().fails(&["linux.uidMappings", "newuidmap", "not found in PATH"]);
    c.assert_nothing_left();
}

#[test]
fn a_user_needs_a_user_namespace() {
    let user = needs_user!();
    let bundle = Bundle::rootless(&user, "id").without_namespace("user");
    let c = of(&user, bundle.unset("/linux/uidMappings").unset("/linux/gidMappings"));
    c.run().fails(&["rootless container requires user namespaces"]);
    c.assert_nothing_left();
}

#[test]
fn clock_offsets_are_the_containers_own() {
    kiln_only!("knows no time namespace");
    let user = needs_user!();
    let offsets = json!({ "boottime": { "secs": 1_000_000, "nanosecs": 0 } });
    let bundle = Bundle::rootless(&user, "tr -s ' \\t' ' ' < /proc/self/timens_offsets");
    let c = of(&user, bundle.namespace("time", None).set("/linux/timeOffsets", offsets));
    c.run().ok().shows("boottime 1000000 0\n");
}

#[test]
fn a_lower_oom_score_is_left_out() {
    kiln_only!("runc 1.1 fails");
    let user = needs_user!();
    let own = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    let bundle = Bundle::rootless(&user, "cat /proc/self/oom_score_adj");
    let c = of(&user, bundle.set("/process/oomScoreAdj", json!(-900)));
    let outcome = c.run().ok().prints(&own);
    assert!(outcome.stderr.contains("oomScoreAdj -900"), "{outcome}");
    let bundle = Bundle::rootless(&user, "cat /proc/self/oom_score_adj");
    let c = of(&user, bundle.set("/process/oomScoreAdj", json!(900)));
    c.run().ok().prints("900\n");
}

#[test]
fn a_lower_oom_score_is_left_out_by_exec_too() {
    let user = needs_user!();
    let bundle = Bundle::rootless(&user, "sleep 100");
    let c = of(&user, bundle.set("/process/oomScoreAdj", json!(-900)));
    c.detach().ok();
    let own = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    let outcome = c.exec(&["cat", "/proc/self/oom_score_adj"]).ok().prints(&own);
    assert!(outcome.stderr.contains("oomScoreAdj -900"), "{outcome}");
    c.delete_force().ok();
}

#[test]
fn a_user_namespace_of_another_container_is_joined() {
    let user = needs_user!();
    let holder = sh(&user, "sleep 100");
    holder.detach().ok();
    let pid = holder.pid();
    let path = |file: &str| format!("/proc/{pid}/ns/{file}");
    eventually("the holder's program", || {
        fs::read_to_string(format!("/proc/{pid}/comm")).unwrap() == "sleep\n"
    });
    let bundle = Bundle::rootless(&user, "id -u; readlink /proc/self/ns/ipc; echo $$");
    let bundle = bundle.namespace("user", Some(&path("user"))).namespace("ipc", Some(&path("ipc")));
    let outcome = of(&user, bundle).run().ok();
    outcome.prints(&format!("0\n{}\n1\n", proc::namespace(pid, "ipc")));
    let bundle = Bundle::rootless(&user, "readlink /proc/self/ns/pid; kill -0 1 && echo seen");
    let bundle = bundle.namespace("user", Some(&path("user"))).namespace("pid", Some(&path("pid")));
    let outcome = of(&user, bundle).run().ok();
    outcome.prints(&format!("{}\nseen\n", proc::namespace(pid, "pid")));
}

#[test]
fn without_permission_and_limits_there_is_no_cgroup() {
    kiln_only!("keeps other words");
    let user = needs_user!();
    let c = sh(&user, "trap 'exit 4' USR1; echo up > /dev/shm/up; while :; do sleep 0.1; done");
    c.detach().ok();
    assert!(cgroup::directories_of(&c.id).is_empty());
    for operation in ["ps", "pause"] {
        c.on_id(operation, &[]).fails(&["no cgroup"]);
    }
    // The signals reach all that is in the pid namespace.
    c.cli(&["kill", "--all", &c.id, "KILL"]).output().ok();
    c.await_status("stopped");
    c.cli(&["kill", "--all", &c.id, "KILL"]).output().fails(&["not running"]);
    c.delete().ok();
    c.assert_nothing_left();
}

/// runc's tests ask for these words.
#[test]
fn limits_without_permission_are_an_error() {
    let user = needs_user!();
    let limited = Bundle::rootless(&user, "id").set("/linux/resources/pids/limit", json!(10));
    let c = of(&user, limited);
    c.run().fails(&[]);
    if binary::is_kiln() {
        c.run().fails(&["linux.resources.pids", "rootless needs no limits + no cgrouppath"]);
        c.cli(&["--rootless", "false", "run", "--bundle"])
            .arg(c.bundle.path())
            .arg(&c.id)
            .output()
            .fails(&["cgroup", "permission denied"]);
    }
    c.assert_nothing_left();
    let path = Bundle::rootless(&user, "id").set("/linux/cgroupsPath", json!("/kiln-rootless/c"));
    let c = of(&user, path);
    c.run().fails(&["permission denied"]);
    c.assert_nothing_left();
}

/// In the virtual machine: the user's systemd has given a part of the tree away.
fn delegated(user: &User, bundle: Bundle) -> Option<Container> {
    let wrapper = user.delegated()?;
    user.own(&bundle);
    Some(bundle.container().under(&wrapper))
}

#[test]
fn limits_hold_in_a_delegated_cgroup() {
    let user = needs_user!();
    let bundle = Bundle::rootless(&user, "sleep 100")
        .set("/linux/resources/memory/limit", json!(64 << 20))
        .set("/linux/resources/pids/limit", json!(17));
    let Some(c) = delegated(&user, bundle) else {
        skip!("nobody here has a delegated cgroup");
    };
    c.detach().ok();
    let pid = c.pid();
    let setting = |controller, file| cgroup::setting(pid, controller, file, file).unwrap();
    assert_eq!(setting("memory", "memory.max"), (64 << 20).to_string());
    assert_eq!(setting("pids", "pids.max"), "17");
    assert!(!cgroup::directories_of(&c.id).is_empty());
    c.on_id("pause", &[]).ok();
    assert_eq!(c.status(), "paused");
    c.on_id("resume", &[]).ok();
    c.cli(&["ps", "--format", "json", &c.id]).output().ok().prints(&format!("[{pid}]\n"));
    c.cli(&["update", "--pids-limit", "23", &c.id]).output().ok();
    assert_eq!(setting("pids", "pids.max"), "23");
    c.delete_force().ok();
    c.assert_nothing_left();
}

#[test]
fn a_memory_limit_kills_in_a_delegated_cgroup() {
    let user = needs_user!();
    let bundle = Bundle::rootless(&user, "dd if=/dev/zero of=/dev/null bs=64M")
        .set("/linux/resources/memory", json!({ "limit": 16 << 20, "swap": 16 << 20 }));
    let Some(c) = delegated(&user, bundle) else {
        skip!("nobody here has a delegated cgroup");
    };
    c.run().exits(137);
    c.assert_nothing_left();
}

#[test]
fn a_cgroup_namespace_shows_the_containers_own() {
    let user = needs_user!();
    let script = "cat /proc/self/cgroup; cat /sys/fs/cgroup/pids.max";
    let bundle = Bundle::rootless(&user, script).namespace("cgroup", None);
    let Some(c) = delegated(&user, bundle.set("/linux/resources/pids/limit", json!(17))) else {
        skip!("nobody here has a delegated cgroup");
    };
    c.run().ok().prints("0::/\n17\n");
}

/// As Podman calls its runtime: root, but of a user namespace.
#[test]
fn in_a_user_namespace_already() {
    kiln_only!("runc 1.1 is not tried");
    let user = needs_user!();
    for unshare in [&["-Ur"][..], &["-Urm"], &["-Urmn"], &["-Urmpf", "--mount-proc"]] {
        let mut wrapper = user.plain();
        wrapper.push("unshare".to_owned());
        wrapper.extend(unshare.iter().map(|&word| word.to_owned()));
        let script = "id -u; echo x > /dev/null && awk 'NR > 2' /proc/net/dev | wc -l; echo $$";
        let here = match unshare[0].contains('n') {
            true => 1,
            false => fs::read_dir("/sys/class/net").unwrap().count(),
        };
        // The caller's user namespace, and one more below it.
        let bundle = Bundle::rootless(&user, script).without_namespace("user");
        let outer = bundle.unset("/linux/uidMappings").unset("/linux/gidMappings");
        let map = json!([{ "containerID": 0, "hostID": 0, "size": 1 }]);
        let inner = Bundle::rootless(&user, script).set("/linux/uidMappings", map.clone());
        for bundle in [outer, inner.set("/linux/gidMappings", map)] {
            user.own(&bundle);
            let c = bundle.container().under(&wrapper);
            let outcome = c.run().ok();
            outcome.prints(&format!("0\n{here}\n1\n"));
            c.assert_nothing_left();
        }
    }
}

#[test]
fn a_network_namespace_in_a_user_namespace() {
    kiln_only!("runc 1.1 is not tried");
    let user = needs_user!();
    let mut wrapper = user.plain();
    wrapper.extend(["unshare", "-Urm"].map(str::to_owned));
    let bundle = Bundle::rootless(&user, "awk 'NR > 2' /proc/net/dev | wc -l");
    let bundle = bundle.without_namespace("user").namespace("network", None);
    let bundle = bundle.unset("/linux/uidMappings").unset("/linux/gidMappings");
    user.own(&bundle);
    let c = bundle.container().under(&wrapper);
    c.run().ok().prints("1\n");
    c.assert_nothing_left();
}

#[test]
fn state_is_closed_to_other_users() {
    let user = needs_user!();
    let c = sh(&user, "sleep 100");
    c.detach().ok();
    for path in [c.root(), c.root().join(&c.id)] {
        let meta = fs::metadata(&path).unwrap();
        assert_eq!((meta.uid(), meta.mode() & 0o777), (user.id, 0o700), "{}", path.display());
    }
    let other = User { id: user.id + 1, subordinate: None };
    for operation in ["state", "kill", "delete"] {
        let outcome = c.cli(&[operation, &c.id]).under(&other.plain()).output();
        assert!(!outcome.status.success(), "{outcome}");
    }
    assert_eq!(c.status(), "running");
}

#[test]
fn state_is_kept_in_the_users_runtime_directory() {
    let user = needs_user!();
    let c = sh(&user, "sleep 100");
    let session = c.bundle.scratch().join("session");
    fs::create_dir(&session).unwrap();
    std::os::unix::fs::chown(&session, Some(user.id), Some(user.id)).unwrap();
    let mut wrapper = user.plain();
    wrapper.push(format!("XDG_RUNTIME_DIR={}", session.display()));
    let cli = |words: &[&str]| Cli::new(words).under(&wrapper);
    cli(&["run", "--detach", "--bundle"]).arg(c.bundle.path()).arg(&c.id).output().ok();
    let name = if binary::is_kiln() { "kiln" } else { "runc" };
    let root = fs::metadata(session.join(name)).unwrap();
    // Sticky: not to be tidied up.
    assert_eq!((root.uid(), root.mode() & 0o7777), (user.id, 0o1700));
    cli(&["state", &c.id]).output().ok().shows("running");
    cli(&["delete", "--force", &c.id]).output().ok();
    c.assert_nothing_left();
    // Without one, root's would be taken, which is not the user's.
    let outcome =
        Cli::new(["run", "--bundle"]).arg(c.bundle.path()).arg(&c.id).under(&user.plain());
    outcome.output().fails(&["permission denied"]);
}

#[test]
fn what_is_cached_is_the_users() {
    kiln_only!("caches nothing");
    let user = needs_user!();
    let seccomp = json!({ "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["acct"], "action": "SCMP_ACT_ERRNO" }] });
    let c = of(&user, Bundle::rootless(&user, "true").set("/linux/seccomp", seccomp.clone()));
    let home = c.bundle.scratch();
    let mut wrapper = user.plain();
    wrapper.push(format!("HOME={}", home.display()));
    let c = c.under(&wrapper);
    c.run().ok();
    let cache = fs::metadata(home.join(".cache/kiln/seccomp")).unwrap();
    assert_eq!((cache.uid(), cache.mode() & 0o777), (user.id, 0o700));
    // As Podman calls it: root of the user's namespace is not the machine's, whose cache is closed.
    let bundle = Bundle::rootless(&user, "true").set("/linux/seccomp", seccomp);
    let bundle = bundle.without_namespace("user").unset("/linux/uidMappings");
    let c = of(&user, bundle.unset("/linux/gidMappings"));
    let home = c.bundle.scratch();
    let mut wrapper = user.plain();
    let unshare = ["unshare", "-Urm"].map(str::to_owned);
    wrapper.push(format!("HOME={}", home.display()));
    wrapper.extend(unshare);
    let c = c.under(&wrapper);
    assert_eq!(c.run().ok().stderr, "");
    let entries = fs::read_dir(home.join(".cache/kiln/seccomp")).unwrap();
    assert_eq!(entries.count(), 1);
}

/// CVE-2019-5736: root's executable is not the user's to write, and the user's
/// own is not what runs in the container.
#[test]
fn the_runtime_cannot_be_written_through() {
    kiln_only!("does it otherwise");
    let user = needs_user!();
    let c = sh(&user, "true");
    c.create().ok();
    let exe = fs::read_link(format!("/proc/{}/exe", c.pid())).unwrap();
    let meta = fs::metadata(format!("/proc/{}/exe", c.pid())).unwrap();
    let roots = meta.uid() == 0 && meta.mode() & 0o022 == 0;
    assert!(roots || exe.starts_with("/memfd:kiln (deleted)"), "{} {meta:?}", exe.display());
    let bundle = Bundle::rootless(&user, "true");
    let own = bundle.scratch().join("kiln");
    fs::copy(binary::path(), &own).unwrap();
    let c = of(&user, bundle);
    c.create_cli(&[]).binary(&own).output().ok();
    let exe = fs::read_link(format!("/proc/{}/exe", c.pid())).unwrap();
    assert_eq!(exe.to_str().unwrap(), "/memfd:kiln (deleted)");
    let write = fs::OpenOptions::new().write(true).open(format!("/proc/{}/exe", c.pid()));
    let write = write.and_then(|mut file| std::io::Write::write(&mut file, b"x"));
    assert!(write.is_err(), "root itself cannot write it");
    c.start().ok();
}

#[test]
fn a_module_runs_for_a_user() {
    needs_wasm!();
    let user = needs_user!();
    let config = Bundle::rootless(&user, "true").config.clone();
    let mut bundle = Bundle::wasm("hello", &[]);
    let (process, annotations) =
        (bundle.config["process"].clone(), bundle.config["annotations"].clone());
    bundle.config = config;
    bundle.config["process"] = process;
    bundle.config["annotations"] = annotations;
    let c = of(&user, bundle);
    let outcome = c.run().ok();
    assert!(!outcome.stdout.is_empty(), "{outcome}");
    c.assert_nothing_left();
}
