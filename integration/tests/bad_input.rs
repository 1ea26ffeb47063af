//! Ids and bundles that must be refused before anything is created: the error
//! names what is wrong, and nothing is left.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;

use kiln_integration::{Bundle, Runtime, binary, json, kiln_only, refused, skip};

#[test]
fn ids_that_are_refused() {
    // Here `crun delete ..` removed the folder above the root, and then the machine's files.
    if binary::runtime() == Runtime::Crun {
        skip!("crun 1.8.1 removes what lies outside of its root");
    }
    let c = Bundle::new().container();
    let long = "a".repeat(1025);
    let bad = ["", ".", "..", "../x", "a/b", "/", "a b", "a\nb", "é", "x/../y", &long];
    for id in bad {
        for operation in ["create", "run"] {
            let cli = c.cli(&[operation, "--bundle"]).arg(c.bundle.path()).arg(id);
            cli.output().fails(&[]);
        }
        for operation in ["state", "start", "delete", "kill"] {
            c.cli(&[operation, id]).output().fails(&[]);
        }
    }
    let left: Vec<_> = fs::read_dir(c.root()).into_iter().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}

/// `delete --force` ignores an unknown id, so it is where a path would do harm.
#[test]
fn delete_force_does_not_leave_the_root() {
    // Here `crun delete ..` removed the folder above the root, and then the machine's files.
    if binary::runtime() == Runtime::Crun {
        skip!("crun 1.8.1 removes what lies outside of its root");
    }
    let c = Bundle::new().container();
    let outside = c.bundle.home().join("outside");
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("state.json"), "{}").unwrap();
    fs::create_dir_all(c.root()).unwrap();
    for id in ["../outside", "x/../../outside", "..", "."] {
        c.cli(&["delete", "--force", id]).output().fails(&[]);
    }
    assert!(outside.join("state.json").exists());
    assert!(c.root().exists() && c.bundle.path().exists());
}

#[test]
fn ids_that_are_taken() {
    for id in ["a", "A.b_c-d+e", "0", "kt-x.y"] {
        let c = Bundle::sh("exit 3").container();
        let id = format!("{id}{}", c.id);
        let cli = c.cli(&["run", "--bundle"]).arg(c.bundle.path()).arg(&id);
        cli.output().exits(3);
    }
}

#[test]
fn a_bundle_that_is_not_there() {
    let c = Bundle::new().container();
    c.cli(&["create", "--bundle", "/no/such/bundle", &c.id]).output().fails(&["/no/such/bundle"]);
    c.assert_nothing_left();
}

#[test]
fn a_bundle_without_a_config() {
    let c = Bundle::new().container();
    fs::remove_file(c.bundle.path().join("config.json")).unwrap();
    c.create().fails(&["config.json"]);
    c.assert_nothing_left();
}

#[test]
fn a_config_that_is_not_json() {
    for text in ["", "{", "[]", "{\"ociVersion\": 1}", "\u{0}", "not json"] {
        let c = Bundle::new().container();
        fs::write(c.bundle.path().join("config.json"), text).unwrap();
        c.create().fails(&[]);
        c.assert_nothing_left();
    }
}

#[test]
fn a_config_that_is_null() {
    kiln_only!("1.1.5 dereferences a nil pointer");
    let c = Bundle::new().container();
    fs::write(c.bundle.path().join("config.json"), "null").unwrap();
    c.create().fails(&["config.json"]);
    c.assert_nothing_left();
}

#[test]
fn a_broken_config_is_named() {
    kiln_only!("errors do not name the file");
    let c = Bundle::new().container();
    fs::write(c.bundle.path().join("config.json"), "{\n  \"ociVersion\": }").unwrap();
    c.create().fails(&["config.json", "line 2"]);
}

#[test]
fn a_config_that_is_a_folder() {
    let c = Bundle::new().container();
    fs::remove_file(c.bundle.path().join("config.json")).unwrap();
    fs::create_dir(c.bundle.path().join("config.json")).unwrap();
    c.create().fails(&[]);
    c.assert_nothing_left();
}

#[test]
fn a_root_that_is_not_there() {
    refused(Bundle::new().set("/root/path", json!("no-such-rootfs")), &["no-such-rootfs"]);
}

#[test]
fn no_root_at_all() {
    refused(Bundle::new().unset("/root"), &["root"]);
}

#[test]
fn no_arguments() {
    kiln_only!("the error has another name for it");
    refused(Bundle::new().args(&[]), &["process.args"]);
    refused(Bundle::new().unset("/process/args"), &["process.args"]);
}

#[test]
fn an_empty_argument_zero() {
    refused(Bundle::new().args(&[""]), &[]);
}

#[test]
fn a_relative_cwd() {
    refused(Bundle::new().set("/process/cwd", json!("bin")), &["cwd"]);
}

#[test]
fn a_missing_cwd() {
    kiln_only!("an empty cwd is taken for /");
    refused(Bundle::new().unset("/process/cwd"), &["cwd"]);
}

#[test]
fn a_version_that_is_none() {
    kiln_only!("the version is not checked");
    refused(Bundle::new().set("/ociVersion", json!("banana")), &["ociVersion", "banana"]);
    refused(Bundle::new().set("/ociVersion", json!("2.0.0")), &["ociVersion", "2.0.0"]);
    refused(Bundle::new().unset("/ociVersion"), &["ociVersion"]);
}

#[test]
fn a_namespace_type_that_is_unknown() {
    refused(Bundle::new().namespace("banana", None), &["banana"]);
}

#[test]
fn a_namespace_twice() {
    refused(Bundle::new().push("/linux/namespaces", json!({ "type": "uts" })), &["uts"]);
}

#[test]
fn a_namespace_path_that_is_not_there() {
    refused(Bundle::new().namespace("network", Some("/no/such/ns")), &["/no/such/ns"]);
}

#[test]
fn a_namespace_path_of_another_type() {
    kiln_only!("the error is setns's");
    refused(Bundle::new().namespace("network", Some("/proc/self/ns/uts")), &["network"]);
}

#[test]
fn a_namespace_path_that_is_relative() {
    kiln_only!("the path is resolved in the working directory");
    refused(Bundle::new().namespace("network", Some("proc/self/ns/net")), &["namespaces"]);
}

#[test]
fn a_hostname_without_its_namespace() {
    refused(Bundle::new().without_namespace("uts").set("/hostname", json!("x")), &["hostname"]);
}

#[test]
fn a_rlimit_that_is_unknown() {
    let limit = json!({ "type": "RLIMIT_BANANA", "soft": 1, "hard": 1 });
    refused(Bundle::new().push("/process/rlimits", limit), &["RLIMIT_BANANA"]);
}

#[test]
fn a_rlimit_twice() {
    kiln_only!("a second one wins");
    let limit = json!({ "type": "RLIMIT_NOFILE", "soft": 1, "hard": 1 });
    refused(Bundle::new().push("/process/rlimits", limit), &["process.rlimits"]);
}

#[test]
fn a_rlimit_with_soft_over_hard() {
    let limit = json!([{ "type": "RLIMIT_NOFILE", "soft": 2, "hard": 1 }]);
    refused(Bundle::new().set("/process/rlimits", limit), &[]);
}

/// The spec demands absolute paths; runc warns and takes them from the root.
#[test]
fn relative_paths_are_taken_from_the_root_with_a_warning() {
    kiln_only!("has other words, or refuses");
    let bundle = Bundle::sh("stat -c %a /tmp/x; cat /tmp/x/secret; ls /tmp/hidden | wc -l")
        .mount("tmp/x", "tmpfs", "tmpfs", &["mode=0711"])
        .set("/linux/maskedPaths", json!(["tmp/hidden", "../tmp/file", ""]))
        .set("/linux/readonlyPaths", json!(["tmp/ro", ""]));
    std::fs::create_dir(bundle.rootfs().join("tmp/hidden")).unwrap();
    std::fs::write(bundle.rootfs().join("tmp/hidden/secret"), "secret").unwrap();
    std::fs::write(bundle.rootfs().join("tmp/file"), "secret").unwrap();
    let outcome = bundle.container().run();
    assert_eq!(outcome.stdout, "711\n0\n", "{outcome}");
    for field in ["mounts[7].destination", "linux.maskedPaths[0]", "linux.readonlyPaths[0]"] {
        assert!(outcome.stderr.contains(field), "no {field} in {outcome}");
    }
}

#[test]
fn a_mount_without_its_source() {
    refused(Bundle::new().bind("/no/such/source", "/tmp", &["bind"]), &["/no/such/source"]);
}

#[test]
fn a_mount_of_an_unknown_file_system() {
    refused(Bundle::new().mount("/tmp", "bananafs", "x", &[]), &["/tmp"]);
}

#[test]
fn a_sysctl_of_the_host() {
    let bundle = Bundle::new().set("/linux/sysctl", json!({ "vm.swappiness": "10" }));
    refused(bundle, &["vm.swappiness"]);
}

#[test]
fn a_sysctl_of_a_namespace_that_is_shared() {
    let bundle = Bundle::new().without_namespace("network");
    let bundle = bundle.set("/linux/sysctl", json!({ "net.ipv4.ip_forward": "0" }));
    refused(bundle, &["net.ipv4.ip_forward"]);
}

#[test]
fn a_sysctl_that_has_a_field_of_its_own() {
    let hostname = json!({ "kernel.hostname": "foo" });
    refused(Bundle::new().set("/linux/sysctl", hostname), &["kernel.hostname"]);
    let c = Bundle::sh("cat /proc/sys/kernel/domainname");
    let domain = json!({ "kernel.domainname": "example.org" });
    c.set("/linux/sysctl", domain).container().run().ok().prints("example.org\n");
}

#[test]
fn a_sysctl_that_climbs() {
    let climbing = json!({ "net.ipv4/../../vm/swappiness": "60" });
    refused(Bundle::new().set("/linux/sysctl", climbing), &[]);
}

#[test]
fn a_seccomp_action_that_is_unknown() {
    let seccomp = json!({ "defaultAction": "SCMP_ACT_BANANA" });
    refused(Bundle::new().set("/linux/seccomp", seccomp), &["SCMP_ACT_BANANA"]);
}

#[test]
fn a_device_type_that_is_unknown() {
    let device = json!({ "path": "/dev/x", "type": "z", "major": 1, "minor": 3 });
    refused(Bundle::new().push("/linux/devices", device), &[]);
}

#[test]
fn user_mappings_that_are_missing() {
    refused(Bundle::new().namespace("user", None), &["map"]);
}

#[test]
fn an_unknown_propagation() {
    kiln_only!("panics or ignores");
    refused(Bundle::new().set("/linux/rootfsPropagation", json!("banana")), &["banana"]);
}

#[test]
fn a_hook_that_is_relative() {
    kiln_only!("runs what is there in the working directory");
    let bundle = Bundle::new().set("/hooks/createRuntime", json!([{ "path": "bin/true" }]));
    refused(bundle, &["hooks.createRuntime", "bin/true"]);
}

#[test]
fn a_hook_with_a_timeout_of_zero() {
    kiln_only!("a timeout of 0 is at once");
    let hook = json!([{ "path": "/bin/true", "timeout": 0 }]);
    refused(Bundle::new().set("/hooks/createRuntime", hook), &["hooks.createRuntime", "timeout"]);
}

#[test]
fn fields_that_are_not_known_are_ignored() {
    let bundle = Bundle::sh("exit 2").set("/org.example.unknown", json!({ "a": [1] }));
    bundle.set("/linux/unknown", json!(true)).container().run().exits(2);
}

#[test]
fn a_terminal_without_a_console_socket_cannot_be_created() {
    let c = Bundle::new().set("/process/terminal", json!(true)).container();
    c.create().fails(&["console"]);
    c.assert_nothing_left();
}

#[test]
fn a_console_socket_without_a_terminal_is_an_error() {
    let c = Bundle::new().container();
    c.create_cli(&["--console-socket", "/tmp/x"]).output().fails(&["console"]);
    c.assert_nothing_left();
}
