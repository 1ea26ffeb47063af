//! The host's cgroups from inside: only the container's own are there, and neither they nor
//! `release_agent` (CVE-2022-0492) nor a device that was not granted can be used against the host.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;

use kiln_integration::{Bundle, cgroup, json, skip};

/// Cgroup mounts of every kind that a config may ask for.
fn bundles(script: &str) -> Vec<(&'static str, Bundle)> {
    let writable = |mut bundle: Bundle| {
        for mount in bundle.config["mounts"].as_array_mut().unwrap() {
            if mount["type"] == "cgroup" {
                mount["options"] = json!(["nosuid", "noexec", "nodev", "rw"]);
            }
        }
        bundle
    };
    let plain = || Bundle::sh(script).writable().set("/linux/readonlyPaths", json!([]));
    vec![
        ("own namespace", plain().namespace("cgroup", None)),
        ("no namespace", plain().without_namespace("cgroup")),
        ("own namespace, writable", writable(plain().namespace("cgroup", None))),
        // CVE-2023-25809.
        ("no namespace, writable", writable(plain().without_namespace("cgroup"))),
    ]
}

/// A name in every hierarchy that must not be seen or made from inside.
struct Beside(Vec<PathBuf>);

impl Beside {
    fn new(name: &str) -> Self {
        let dirs = cgroup::hierarchies().into_iter().map(|dir| dir.join(name));
        Beside(dirs.filter(|dir| fs::create_dir(dir).is_ok()).collect())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        for dir in &self.0 {
            let _ = fs::remove_dir(dir);
        }
    }
}

#[test]
fn only_the_containers_own_cgroups_are_there() {
    let name = format!("kiln-it-beside-{}", std::process::id());
    let beside = Beside::new(&name);
    assert!(!beside.0.is_empty());
    // Whatever is there, made or climbed to, is below the container's own.
    let script = format!(
        "find /sys/fs/cgroup -name '{name}' -o -name release_agent -o -name cgroup.sane_behavior; \
         for d in /sys/fs/cgroup /sys/fs/cgroup/*; do mkdir $d/{name}-made $d/../{name}-made; \
         done 2>/dev/null; echo end"
    );
    for (kind, bundle) in bundles(&script) {
        let c = bundle.container();
        let outcome = c.run().ok().prints("end\n");
        for hierarchy in cgroup::hierarchies() {
            let made = hierarchy.join(format!("{name}-made"));
            assert!(!made.exists(), "{kind}: {} was made: {outcome}", made.display());
        }
    }
}

/// Every `release_agent` of the host with what it says.
fn agents() -> Vec<(PathBuf, String)> {
    let files = cgroup::hierarchies().into_iter().map(|dir| dir.join("release_agent"));
    files.filter_map(|path| Some((path.clone(), fs::read_to_string(&path).ok()?))).collect()
}

#[test]
fn the_release_agent_cannot_be_set() {
    let before = agents();
    if before.is_empty() {
        skip!("cgroup v2 has no release_agent");
    }
    // What a container has that was given too much, but for CAP_SYS_ADMIN: that one may mount.
    let powers = ["CAP_DAC_OVERRIDE", "CAP_CHOWN", "CAP_FOWNER", "CAP_SYS_PTRACE", "CAP_MKNOD"];
    let script = "for d in /sys/fs/cgroup /sys/fs/cgroup/*; do \
        for f in $d/release_agent $d/../release_agent $d/../../release_agent; do \
        if (echo /evil > $f) 2>/dev/null; then echo wrote $f; fi; done; \
        echo 1 > $d/notify_on_release; done 2>/dev/null; \
        mount -t cgroup -o memory cgroup /tmp 2>/dev/null && echo mounted; echo end";
    for (kind, bundle) in bundles(script) {
        let bundle = bundle.capabilities(&powers);
        let outcome = bundle.container().run().ok();
        // In the tmpfs that the hierarchies are mounted in, a file of this name means nothing.
        let real = |line: &str| !line.contains("..") && line.matches('/').count() > 4;
        assert!(!outcome.stdout.lines().any(real), "{kind}: {outcome}");
        assert!(!outcome.stdout.contains("mounted"), "{kind}: {outcome}");
        assert_eq!(agents(), before, "{kind}");
    }
}

/// With CAP_SYS_ADMIN of a user namespace of its own, as CVE-2022-0492 had it.
#[test]
fn a_user_namespace_does_not_bring_the_release_agent() {
    let before = agents();
    if before.is_empty() {
        skip!("cgroup v2 has no release_agent");
    }
    let script = "mkdir /tmp/c; for o in memory pids rdma cpu,cpuacct none,name=kiln-it; do \
        mount -t cgroup -o $o cgroup /tmp/c 2>/dev/null && { echo /evil > /tmp/c/release_agent; \
        umount /tmp/c; }; done; for d in /sys/fs/cgroup/*; do echo /evil > $d/release_agent; done; \
        echo end";
    let bundle = Bundle::sh(script).user_namespace(200_000).namespace("cgroup", None);
    let all = ["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_CHOWN", "CAP_SETUID", "CAP_SETGID"];
    bundle.capabilities(&all).mount("/tmp", "tmpfs", "tmpfs", &[]).container().run().shows("end");
    assert_eq!(agents(), before);
}

/// A cgroup is the container's own: never the root of a hierarchy, nor one above it.
#[test]
fn paths_that_name_no_cgroup_of_its_own() {
    for path in ["/", "//", "/..", "/../x", "a/../../b", "../x", "/x/../..", ".", "/."] {
        let c = Bundle::new().set("/linux/cgroupsPath", json!(path)).container();
        c.run().fails(&["cgroup"]);
        c.assert_nothing_left();
    }
    let c = Bundle::new().args(&["sleep", "1000"]).container();
    c.detach().ok();
    for path in ["..", "../..", "/../x", "a/../../b", "memory:..", "memory:/../../x"] {
        let outcome = c.exec_cli(&["--cgroup", path], &["cat", "/proc/self/cgroup"]).output();
        assert!(!outcome.status.success(), "{path}: {outcome}");
    }
}

/// Default deny, without a word in the config: only the default devices can be opened, whatever
/// CAP_MKNOD makes, in `exec` too.
#[test]
fn devices_that_were_not_granted() {
    // The disk that the machine runs from, memory, ports, the kernel's log, FUSE and loop devices.
    let disk = {
        use std::os::unix::fs::MetadataExt;
        let device = fs::metadata("/").unwrap().dev();
        format!("b {} {}", rustix::fs::major(device), rustix::fs::minor(device))
    };
    let nodes = [&*disk, "c 1 1", "c 1 4", "c 1 11", "c 10 229", "b 7 0", "c 10 237", "c 10 130"];
    let mut script = String::new();
    for (index, node) in nodes.iter().enumerate() {
        script += &format!(
            "mknod /tmp/d{index} {node} 2>/dev/null; \
             if (exec 9</tmp/d{index}) 2>/dev/null; then echo opened {node}; fi; \
             if (exec 9>>/tmp/d{index}) 2>/dev/null; then echo opened {node}; fi; "
        );
    }
    script += "echo x > /dev/null && echo end";
    let mut bundle = Bundle::new().args(&["sleep", "1000"]).writable();
    bundle.config["linux"]["resources"] = json!({});
    let c = bundle.capabilities(&["CAP_MKNOD", "CAP_SYS_RAWIO", "CAP_DAC_OVERRIDE"]).container();
    c.detach().ok();
    c.exec(&["sh", "-c", &script]).ok().prints("end\n");
    let c = Bundle::sh(&script).unset("/linux/resources").writable();
    let c = c.capabilities(&["CAP_MKNOD", "CAP_SYS_RAWIO", "CAP_DAC_OVERRIDE"]).container();
    c.run().ok().prints("end\n");
}

/// What the image makes kiln copy is the container's memory, not the host's.
#[test]
fn a_huge_file_that_is_copied_up_is_charged_to_the_container() {
    let bundle = Bundle::new().mount("/data", "tmpfs", "tmpfs", &["tmpcopyup", "size=1g"]);
    let data = bundle.rootfs().join("data");
    fs::create_dir(&data).unwrap();
    fs::File::create(data.join("sparse")).unwrap().set_len(512 << 20).unwrap();
    let limit = json!({ "limit": 64 << 20, "swap": 64 << 20 });
    let c = bundle.set("/linux/resources/memory", limit).container();
    c.run().fails(&[]);
    c.assert_nothing_left();
}

/// What it makes in its own cgroups goes with it.
#[test]
fn a_cgroup_of_the_container_cannot_keep_the_container() {
    let script = "for d in /sys/fs/cgroup /sys/fs/cgroup/*; do mkdir -p $d/a/b/c; \
        echo $$ > $d/a/b/c/cgroup.procs; done 2>/dev/null; sleep 1000";
    let (_, bundle) = bundles(script).remove(2);
    let c = bundle.container();
    c.detach().ok();
    c.delete_force().ok();
    c.assert_nothing_left();
}
