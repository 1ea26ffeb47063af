//! Namespaces: new, shared with the host, joined by path; and what lives in
//! them: host and domain name, loopback, user ids, clock offsets.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Child, Command};

use kiln_integration::{
    Bundle, Container, command, eventually, json, kiln_only, proc, reaper, skip,
};

/// Types as the spec spells them, with the name in `/proc/PID/ns`.
const TYPES: &[(&str, &str)] = &[
    ("pid", "pid"),
    ("network", "net"),
    ("mount", "mnt"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("cgroup", "cgroup"),
];

fn running(bundle: Bundle) -> Container {
    let c = bundle.container();
    c.detach().ok();
    c
}

fn sleeper() -> Bundle {
    Bundle::new().args(&["sleep", "100"])
}

#[test]
fn listed_namespaces_are_new() {
    let bundle = TYPES.iter().fold(sleeper(), |bundle, (kind, _)| bundle.namespace(kind, None));
    let c = running(bundle);
    for (kind, file) in TYPES {
        assert_ne!(proc::namespace(c.pid(), file), proc::own_namespace(file), "{kind}");
    }
}

#[test]
fn namespaces_not_listed_are_the_callers() {
    let shared = ["pid", "network", "ipc", "uts", "cgroup"];
    let bundle = shared.iter().fold(sleeper(), |bundle, kind| bundle.without_namespace(kind));
    let c = running(bundle.unset("/hostname"));
    for (kind, file) in TYPES.iter().filter(|(kind, _)| shared.contains(kind)) {
        assert_eq!(proc::namespace(c.pid(), file), proc::own_namespace(file), "{kind}");
    }
}

#[test]
fn a_namespace_of_another_container_is_joined_by_path() {
    let new = ["network", "ipc", "uts", "pid", "cgroup"];
    let holder = running(new.iter().fold(sleeper(), |bundle, kind| bundle.namespace(kind, None)));
    let pid = holder.pid();
    for (kind, file) in TYPES.iter().filter(|(kind, _)| new.contains(kind)) {
        let path = format!("/proc/{pid}/ns/{file}");
        let mut bundle = sleeper().namespace(kind, Some(&path));
        if *kind == "uts" {
            bundle = bundle.unset("/hostname");
        }
        let joined = running(bundle);
        assert_eq!(proc::namespace(joined.pid(), file), proc::namespace(pid, file), "{kind}");
        joined.delete_force().ok();
    }
    assert!(proc::alive(pid));
}

/// What containerd's pods do: sandbox first, then containers in its namespaces.
#[test]
fn a_pods_namespaces_are_joined_together() {
    let holder = running(sleeper());
    let pid = holder.pid();
    let path = |file: &str| format!("/proc/{pid}/ns/{file}");
    let bundle = sleeper()
        .namespace("network", Some(&path("net")))
        .namespace("ipc", Some(&path("ipc")))
        .namespace("uts", Some(&path("uts")))
        .namespace("pid", Some(&path("pid")))
        .unset("/hostname");
    let joined = running(bundle);
    for file in ["net", "ipc", "uts", "pid"] {
        assert_eq!(proc::namespace(joined.pid(), file), proc::namespace(pid, file), "{file}");
    }
    assert_ne!(proc::namespace(joined.pid(), "mnt"), proc::namespace(pid, "mnt"));
    // When the holder's pid namespace ends, everything in it ends.
    let joined_pid = joined.pid();
    holder.delete_force().ok();
    eventually("the joined container to end", || !proc::alive(joined_pid));
    joined.await_status("stopped");
}

#[test]
fn signals_and_delete_work_in_a_joined_pid_namespace() {
    let holder = running(sleeper());
    let path = format!("/proc/{}/ns/pid", holder.pid());
    let joined = Bundle::sh("sleep 101 & sleep 102 & echo up > /up; wait").writable();
    let joined = running(joined.namespace("pid", Some(&path)));
    joined.await_file("/up");
    joined.delete_force().ok();
    joined.assert_nothing_left();
    assert_eq!(holder.status(), "running");
}

/// A process that keeps a namespace made by `unshare`(1) alive.
struct Holder(Child);

impl Holder {
    fn new(flag: &str) -> Self {
        let mut command = Command::new("unshare");
        command.args([flag, "sleep", "100"]);
        let child = reaper::spawn(command::no_stdio(&mut command));
        let pid = child.id();
        eventually("unshare to have executed sleep", || {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n")
        });
        Holder(child)
    }

    fn pid(&self) -> i32 {
        self.0.id().cast_signed()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        reaper::end(&mut self.0);
    }
}

#[test]
fn a_mount_namespace_is_joined_by_path() {
    let holder = Holder::new("--mount");
    let path = format!("/proc/{}/ns/mnt", holder.pid());
    let c = running(sleeper().namespace("mount", Some(&path)));
    assert_eq!(proc::namespace(c.pid(), "mnt"), proc::namespace(holder.pid(), "mnt"));
    // It sees the container's mounts, which are looked for when `c` goes.
    drop(holder);
}

#[test]
fn a_network_namespace_is_joined_as_it_is() {
    let holder = Holder::new("--net");
    let path = format!("/proc/{}/ns/net", holder.pid());
    let bundle = Bundle::sh("cat /sys/class/net/lo/flags").namespace("network", Some(&path));
    // 0x8: loopback, and not up: it is for its owner to configure.
    bundle.container().run().ok().prints("0x8\n");
}

#[test]
fn a_new_network_namespace_has_its_loopback_up() {
    let c = Bundle::sh("ls /sys/class/net; cat /sys/class/net/lo/flags").container();
    c.run().ok().prints("lo\n0x9\n");
}

#[test]
fn the_hosts_network_is_seen_when_shared() {
    let own: Vec<_> = fs::read_dir("/sys/class/net").unwrap().flatten().collect();
    let c = Bundle::sh("ls /sys/class/net | wc -l").without_namespace("network").container();
    c.run().ok().prints(&format!("{}\n", own.len()));
}

#[test]
fn the_container_is_process_1() {
    // Without another process that might, or might not yet, be seen.
    let c = Bundle::sh("echo $$; set -- /proc/[0-9]*; echo $#").container();
    c.run().ok().prints("1\n1\n");
}

#[test]
fn the_hosts_pid_namespace_shows_its_processes() {
    let c = Bundle::sh("echo $$ > /pid; sleep 100").writable().without_namespace("pid");
    let c = running(c);
    assert_eq!(c.await_file("/pid").trim(), c.pid().to_string());
}

#[test]
fn hostname_is_the_containers_own() {
    let before = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let c = Bundle::new().args(&["hostname"]).set("/hostname", json!("kiln-test.example"));
    c.container().run().ok().prints("kiln-test.example\n");
    assert_eq!(fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), before);
}

#[test]
fn domainname_is_the_containers_own() {
    kiln_only!("knows no domainname");
    let c = Bundle::new().args(&["cat", "/proc/sys/kernel/domainname"]);
    let c = c.set("/domainname", json!("nis.example"));
    c.container().run().ok().prints("nis.example\n");
}

#[test]
fn a_joined_uts_namespace_keeps_its_hostname() {
    let holder = running(sleeper().set("/hostname", json!("holder")));
    let path = format!("/proc/{}/ns/uts", holder.pid());
    let c = Bundle::new().args(&["hostname"]).namespace("uts", Some(&path)).unset("/hostname");
    c.container().run().ok().prints("holder\n");
}

#[test]
fn a_cgroup_namespace_hides_the_path() {
    let script = "cut -d: -f3 /proc/self/cgroup | sort -u";
    let c = Bundle::sh(script).namespace("cgroup", None).container();
    let text = c.run().ok();
    assert!(!text.stdout.contains(&c.id), "{text}");
    assert!(text.stdout.lines().any(|line| line == "/"), "{text}");
    let c = Bundle::sh(script).without_namespace("cgroup").container();
    let text = c.run().ok();
    assert!(text.stdout.contains(&c.id), "{text}");
}

#[test]
fn user_ids_are_mapped() {
    let script = "id -u; id -g; cat /proc/self/uid_map /proc/self/gid_map | tr -s ' '; \
        echo x > /made; stat -c %u:%g /made";
    let c = Bundle::sh(script).writable().user_namespace(200_000).container();
    c.run().ok().prints("0\n0\n 0 200000 65536\n 0 200000 65536\n0:0\n");
    let made = fs::metadata(c.bundle.rootfs().join("made")).unwrap();
    assert_eq!((made.uid(), made.gid()), (200_000, 200_000), "on the host");
}

#[test]
fn a_user_namespace_is_new_and_owns_the_others() {
    let c = running(sleeper().user_namespace(200_000));
    assert_ne!(proc::namespace(c.pid(), "user"), proc::own_namespace("user"));
    assert_eq!(proc::status_field(c.pid(), "Uid").unwrap(), "200000\t200000\t200000\t200000");
    // Full capabilities in its own namespace would do: the network is its own.
    let c = Bundle::sh("hostname other && hostname").user_namespace(200_000);
    let c = c.capabilities(&["CAP_SYS_ADMIN"]).container();
    c.run().ok().prints("other\n");
}

#[test]
fn a_user_namespace_has_a_user_and_groups() {
    let c = Bundle::sh("id -u; id -g; id -G").user_namespace(200_000);
    let user = json!({ "uid": 1000, "gid": 1001, "additionalGids": [5, 7] });
    let c = c.set("/process/user", user).container();
    c.run().ok().prints("1000\n1001\n1001 5 7\n");
}

#[test]
fn a_user_namespace_has_devices_and_a_read_only_root() {
    let script = "echo x > /dev/null && head -c 4 /dev/zero | wc -c; touch /x";
    let c = Bundle::sh(script).user_namespace(200_000).container();
    let outcome = c.run().exits(1);
    let outcome = outcome.prints("4\n");
    assert!(outcome.stderr.contains("Read-only file system"), "{outcome}");
}

/// Whose host has none of them at their paths: the runtime makes them.
#[test]
fn a_user_namespace_has_the_devices_of_the_config() {
    kiln_only!("binds only what the host has");
    let script = "stat -c '%n %F %t:%T %a %u:%g' /dev/mine /dev/two; head -c 4 /dev/mine | wc -c";
    let devices = json!([
        { "path": "/dev/mine", "type": "c", "major": 1, "minor": 5, "fileMode": 0o627,
          "uid": 7, "gid": 8 },
        { "path": "/dev/two", "type": "b", "major": 7, "minor": 200, "fileMode": 0o600 },
    ]);
    let bundle = Bundle::sh(script).user_namespace(200_000).set("/linux/devices", devices);
    let c = bundle.push(
        "/linux/resources/devices",
        json!({ "allow": true, "access": "rwm",
        "type": "c", "major": 1, "minor": 5 }),
    );
    let c = c.container();
    c.run().ok().prints(
        "/dev/mine character special file 1:5 627 7:8\n\
        /dev/two block special file 7:c8 600 0:0\n4\n",
    );
    c.assert_nothing_left();
    let device = json!([{ "path": "/dev/mine", "type": "c", "major": 1, "minor": 5,
        "uid": 70_000 }]);
    let c = Bundle::new().user_namespace(200_000).set("/linux/devices", device).container();
    c.run().fails(&["/dev/mine", "70000:0 is not mapped"]);
    c.assert_nothing_left();
}

#[test]
fn several_ranges_of_ids() {
    let map = json!([
        { "containerID": 0, "hostID": 200_000, "size": 10 },
        { "containerID": 10, "hostID": 300_000, "size": 100 },
    ]);
    let c = Bundle::sh("tr -s ' ' < /proc/self/uid_map").user_namespace(200_000);
    let c = c.set("/linux/uidMappings", map.clone()).set("/linux/gidMappings", map).container();
    c.run().ok().prints(" 0 200000 10\n 10 300000 100\n");
}

#[test]
fn a_user_namespace_is_joined_by_path() {
    let holder = running(sleeper().user_namespace(200_000));
    let pid = holder.pid();
    let path = |file: &str| format!("/proc/{pid}/ns/{file}");
    let bundle = Bundle::sh("id -u; tr -s ' ' < /proc/self/uid_map");
    let bundle = bundle.user_namespace(200_000).namespace("user", Some(&path("user")));
    let bundle = bundle.namespace("network", Some(&path("net")));
    bundle.container().run().ok().prints("0\n 0 200000 65536\n");
}

#[test]
fn a_joined_user_namespace_needs_no_mappings() {
    kiln_only!("demands mappings, which it does not use");
    let holder = running(sleeper().user_namespace(200_000));
    let path = format!("/proc/{}/ns/user", holder.pid());
    let bundle = Bundle::sh("id -u; tr -s ' ' < /proc/self/uid_map");
    let bundle = bundle.user_namespace(200_000).namespace("user", Some(&path));
    let bundle = bundle.unset("/linux/uidMappings").unset("/linux/gidMappings");
    bundle.container().run().ok().prints("0\n 0 200000 65536\n");
}

/// What containerd's CRI gives every container of a pod with a user namespace: files in folders that
/// are closed to all but the host's root.
#[test]
fn bind_mounts_come_from_where_a_user_namespace_cannot_look() {
    let closed = |bundle: &Bundle| {
        let dir = bundle.scratch().join("closed");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("file"), "from outside\n").unwrap();
        fs::write(bundle.rootfs().join("etc/file"), "").unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
        dir.join("file")
    };
    let new = Bundle::sh("cat /etc/file").user_namespace(200_000);
    let file = closed(&new);
    new.bind(file, "/etc/file", &["rbind", "ro"]).container().run().ok().prints("from outside\n");
    let holder = running(sleeper().user_namespace(200_000));
    let path = format!("/proc/{}/ns/user", holder.pid());
    let joined = Bundle::sh("cat /etc/file").user_namespace(200_000);
    let file = closed(&joined);
    let joined = joined.namespace("user", Some(&path)).bind(file, "/etc/file", &["rbind", "ro"]);
    joined.container().run().ok().prints("from outside\n");
}

#[test]
fn a_time_namespace_has_its_offsets() {
    kiln_only!("knows no time namespace");
    if !fs::exists("/proc/self/ns/time").unwrap() {
        skip!("the kernel has no time namespaces");
    }
    let offsets = json!({
        "monotonic": { "secs": 1_000_000, "nanosecs": 0 },
        "boottime": { "secs": 2_000_000, "nanosecs": 0 },
    });
    let uptime = |text: &str| text.split('.').next().unwrap().parse::<u64>().unwrap();
    let before = uptime(&fs::read_to_string("/proc/uptime").unwrap());
    let c = Bundle::sh("cat /proc/self/timens_offsets | tr -s ' \\t' ' '; cat /proc/uptime");
    let c = c.namespace("time", None).set("/linux/timeOffsets", offsets).container();
    let text = c.run().ok().stdout;
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[0], "monotonic 1000000 0");
    assert_eq!(lines[1], "boottime 2000000 0");
    let inside = uptime(lines[2]);
    assert!((before + 2_000_000..before + 2_000_060).contains(&inside), "{before} {inside}");
}

#[test]
fn a_time_namespace_is_joined_by_path() {
    kiln_only!("knows no time namespace");
    let holder = running(sleeper().namespace("time", None));
    let path = format!("/proc/{}/ns/time", holder.pid());
    let c = running(sleeper().namespace("time", Some(&path)));
    eventually("the program to be executed", || {
        proc::namespace(c.pid(), "time") == proc::namespace(holder.pid(), "time")
    });
    assert_ne!(proc::namespace(c.pid(), "time"), proc::own_namespace("time"));
}

#[test]
fn time_offsets_without_the_namespace_are_an_error() {
    kiln_only!("knows no time namespace");
    let offsets = json!({ "boottime": { "secs": 1, "nanosecs": 0 } });
    let c = Bundle::new().set("/linux/timeOffsets", offsets).container();
    c.create().fails(&["timeOffsets"]);
    c.assert_nothing_left();
}
