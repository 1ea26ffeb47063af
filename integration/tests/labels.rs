//! process.apparmorProfile, process.selinuxLabel and linux.mountLabel.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;

use kiln_integration::{Bundle, Cli, command, json, kiln_only, refused, skip};

fn apparmor() -> bool {
    fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y"))
}

/// A profile in the kernel, gone when this is dropped.
struct Profile(String);

impl Profile {
    /// Allows everything but what `rules` denies.
    fn load(name: &str, rules: &str) -> Self {
        let profile = Profile(format!(
            "profile {name} flags=(attach_disconnected,mediate_deleted) {{\n\
             file, capability, network, mount, umount, pivot_root, ptrace, signal,\n{rules}\n}}\n"
        ));
        profile.parser("--replace");
        profile
    }

    fn parser(&self, operation: &str) {
        let parser = Cli::new([operation, "--skip-cache"]).binary("apparmor_parser");
        parser.stdin(&self.0).output().ok();
    }
}

impl Drop for Profile {
    fn drop(&mut self) {
        self.parser("--remove");
    }
}

fn confined(bundle: Bundle, profile: &str) -> Bundle {
    bundle.set("/process/apparmorProfile", json!(profile))
}

#[test]
fn the_process_is_in_its_profile() {
    if !apparmor() || !command::exists("apparmor_parser") {
        skip!("no AppArmor, or no apparmor_parser");
    }
    let _profile = Profile::load("kiln-test", "deny /tmp/** w,");
    let script = "cat /proc/self/attr/current; echo x > /tmp/x";
    for no_new_privileges in [true, false] {
        let bundle = confined(Bundle::sh(script), "kiln-test").writable();
        let bundle = bundle.set("/process/noNewPrivileges", json!(no_new_privileges));
        let outcome = bundle.container().run().exits(1).prints("kiln-test (enforce)\n");
        assert!(outcome.stderr.contains("Permission denied"), "{outcome}");
    }
    // Not root, in a user namespace, with a seccomp filter, by create and start.
    let bundle = confined(Bundle::sh("cat /proc/self/attr/current > /out/label"), "kiln-test");
    let out = bundle.scratch();
    std::os::unix::fs::chown(&out, Some(301_000), None).unwrap();
    let bundle = bundle.bind(&out, "/out", &[]).user_namespace(300_000);
    let seccomp = json!({ "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{ "names": ["mkdir"], "action": "SCMP_ACT_ERRNO" }] });
    let bundle = bundle.set("/linux/seccomp", seccomp).set("/process/user/uid", json!(1000));
    let c = bundle.container();
    c.create().ok();
    c.start().ok();
    c.await_status("stopped");
    assert_eq!(fs::read_to_string(out.join("label")).unwrap(), "kiln-test (enforce)\n");
}

#[test]
fn exec_is_in_the_containers_profile_or_its_own() {
    if !apparmor() || !command::exists("apparmor_parser") {
        skip!("no AppArmor, or no apparmor_parser");
    }
    let (_one, _two) = (Profile::load("kiln-one", ""), Profile::load("kiln-two", ""));
    let c = confined(Bundle::new().args(&["sleep", "60"]), "kiln-one").container();
    c.detach().ok();
    let show = ["cat", "/proc/self/attr/current"];
    let exec = |flags: &[&str]| c.cli(&[&["exec"], flags, &[&c.id], &show].concat()).output();
    exec(&[]).ok().prints("kiln-one (enforce)\n");
    exec(&["--apparmor", "kiln-two"]).ok().prints("kiln-two (enforce)\n");
    exec(&["--apparmor", "kiln-three"]).fails_with(255, &["kiln-three"]);
}

#[test]
fn hooks_are_not_confined() {
    kiln_only!("applies the profile before the startContainer hooks");
    if !apparmor() || !command::exists("apparmor_parser") {
        skip!("no AppArmor, or no apparmor_parser");
    }
    let _profile = Profile::load("kiln-hooks", "");
    let hook = json!([{ "path": "/bin/sh",
        "args": ["sh", "-c", "cat /proc/self/attr/current > /tmp/hook"] }]);
    let bundle = confined(Bundle::sh("cat /tmp/hook"), "kiln-hooks").writable();
    let c = bundle.set("/hooks/startContainer", hook).container();
    c.run().ok().prints("unconfined\n");
}

#[test]
fn a_proc_of_the_images_gets_no_label() {
    if !apparmor() || !command::exists("apparmor_parser") {
        skip!("no AppArmor, or no apparmor_parser");
    }
    let _profile = Profile::load("kiln-proc", "");
    // The container's /proc is a folder with a file where the label goes (CVE-2019-16884).
    let mut bundle = confined(Bundle::sh("cat /proc/self/attr/exec"), "kiln-proc");
    bundle.config["mounts"].as_array_mut().unwrap().retain(|m| m["destination"] != "/proc");
    let attr = bundle.rootfs().join("proc/self/attr");
    fs::create_dir_all(&attr).unwrap();
    fs::write(attr.join("exec"), "untouched\n").unwrap();
    let bundle = bundle.unset("/linux/maskedPaths").unset("/linux/readonlyPaths");
    // Where the label really is, only the host can see then.
    let c = bundle.container();
    let outcome = c.run();
    assert!(outcome.stdout.is_empty() || outcome.stdout == "untouched\n", "{outcome}");
    assert_eq!(fs::read_to_string(attr.join("exec")).unwrap(), "untouched\n");
}

#[test]
fn a_profile_that_is_not_loaded_is_an_error() {
    let profile = "kiln-test-not-loaded";
    let outcome = confined(Bundle::new(), profile).container().run();
    match apparmor() {
        true => outcome.fails(&["apparmor", profile, "no such file or directory"]),
        false => outcome.fails(&["apparmor"]),
    };
}

#[test]
fn unconfined_and_empty_are_always_accepted() {
    kiln_only!("writes the profile even where the kernel has no AppArmor");
    confined(Bundle::new(), "unconfined").container().run().ok();
    confined(Bundle::new(), "").container().run().ok();
}

#[test]
fn selinux_labels_are_an_error_without_selinux() {
    if fs::exists("/sys/fs/selinux/enforce").unwrap() {
        skip!("SELinux is enabled");
    }
    let label = json!("system_u:system_r:container_t:s0:c4,c5");
    let words = "selinux label is specified in config, but selinux is disabled or not supported";
    refused(Bundle::new().set("/process/selinuxLabel", label.clone()), &[words]);
    refused(Bundle::new().set("/linux/mountLabel", label), &["mountLabel", words]);
    for empty in ["/process/selinuxLabel", "/linux/mountLabel"] {
        Bundle::new().set(empty, json!("")).container().run().ok();
    }
}

#[test]
fn an_execd_process_is_in_a_profile() {
    if !apparmor() || !command::exists("apparmor_parser") {
        skip!("no AppArmor, or no apparmor_parser");
    }
    let _own = Profile::load("kiln-test-container", "");
    let _other = Profile::load("kiln-test-exec", "deny /tmp/** w,");
    let label = ["cat", "/proc/self/attr/current"];
    for user in [false, true] {
        let bundle = confined(Bundle::new().args(&["sleep", "1000"]), "kiln-test-container");
        let c = if user { bundle.user_namespace(300_000) } else { bundle }.container();
        c.detach().ok();
        c.exec(&label).ok().prints("kiln-test-container (enforce)\n");
        let other = ["--apparmor", "kiln-test-exec"];
        c.exec_cli(&other, &label).output().ok().prints("kiln-test-exec (enforce)\n");
        // A process file that leaves it out gets the container's.
        let file = c.bundle.scratch().join("process.json");
        let process = json!({ "cwd": "/", "args": label, "user": {}, "env": ["PATH=/bin"] });
        fs::write(&file, process.to_string()).unwrap();
        let flags = ["-p", file.to_str().unwrap()];
        c.exec_cli(&flags, &[]).output().ok().prints("kiln-test-container (enforce)\n");
        let none = ["--apparmor", "kiln-test-none"];
        c.exec_cli(&none, &label).output().fails_with(255, &["process.apparmorProfile"]);
    }
}

#[test]
fn an_execd_process_without_the_kernels_help() {
    if apparmor() {
        skip!("AppArmor is there");
    }
    let c = Bundle::new().args(&["sleep", "1000"]).container();
    c.detach().ok();
    let flags = ["--apparmor", "some-profile"];
    c.exec_cli(&flags, &["true"]).output().fails_with(255, &["process.apparmorProfile"]);
    let flags = ["--process-label", "system_u:system_r:svirt_t:s0"];
    c.exec_cli(&flags, &["true"]).output().fails_with(255, &["process.selinuxLabel"]);
}
