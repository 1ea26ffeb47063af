//! `list`, `spec`, `features`, `--version`: what kiln says about itself and
//! the containers that it knows.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;

use kiln_integration::{Bundle, Cli, Runtime, Value, binary, kiln_only, skip};

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|err| panic!("{err}: {text}"))
}

#[test]
fn list_of_an_empty_root() {
    let c = Bundle::new().container();
    let outcome = c.cli(&["list"]).output().ok();
    let words: Vec<_> = outcome.stdout.split_whitespace().collect();
    assert_eq!(words, ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]);
    c.cli(&["list", "-q"]).output().ok().prints("");
    let list = parse(&c.cli(&["list", "--format", "json"]).output().ok().stdout);
    assert!(list.is_null() || list == Value::Array(vec![]), "runc prints null: {list}");
}

#[test]
fn list_as_a_table() {
    let a = Bundle::new().args(&["sleep", "100"]).container();
    let b = Bundle::new().container().in_root_of(&a);
    a.detach().ok();
    b.create().ok();
    let outcome = a.cli(&["list"]).output().ok();
    let mut rows: Vec<Vec<&str>> =
        outcome.stdout.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    rows.sort();
    let bundle = |c: &kiln_integration::Container| c.bundle.path().display().to_string();
    let created = a.state()["created"].as_str().unwrap().to_owned();
    let first = [&a.id, &a.pid().to_string(), "running", &bundle(&a), &created, "root"];
    assert_eq!(rows[0], first, "{outcome}");
    let second = [b.id.as_str(), &b.pid().to_string(), "created", &bundle(&b)];
    assert_eq!(rows[1][..4], second, "{outcome}");
    assert_eq!(rows.len(), 2, "{outcome}");
}

#[test]
fn list_columns_are_aligned() {
    let a = Bundle::new().container();
    a.create().ok();
    let outcome = a.cli(&["list"]).output().ok();
    let (header, row) = outcome.stdout.split_once('\n').unwrap();
    let (pid, status) = (header.find("PID").unwrap(), header.find("STATUS").unwrap());
    assert!(row[pid..].starts_with(&a.pid().to_string()), "{outcome}");
    assert!(row[status..].starts_with("created "), "{outcome}");
}

#[test]
fn list_as_json_and_quietly() {
    let a = Bundle::new().args(&["sleep", "100"]).container();
    a.detach().ok();
    let list = parse(&a.cli(&["list", "-f", "json"]).output().ok().stdout);
    let entry = &list.as_array().unwrap()[0];
    let state = a.state();
    for field in ["ociVersion", "id", "pid", "status", "bundle", "rootfs", "created"] {
        assert_eq!(entry[field], state[field], "{field}");
    }
    assert_eq!(entry["owner"], "root");
    a.cli(&["list", "--quiet"]).output().ok().prints(&format!("{}\n", a.id));
}

#[test]
fn list_of_a_missing_root_is_empty() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("no/such/root");
    Cli::new(["--root"]).arg(root).args(&["list", "-q"]).output().ok().prints("");
}

#[test]
fn list_in_an_unknown_format_is_an_error() {
    let c = Bundle::new().container();
    c.cli(&["list", "--format", "yaml"]).output().fails(&["format"]);
}

/// A stray file, or a folder that a killed `create` left, must not hide the rest.
#[test]
fn list_shows_the_others_beside_broken_state() {
    let a = Bundle::new().container();
    a.create().ok();
    fs::write(a.root().join("stray-file"), "x").unwrap();
    fs::create_dir(a.root().join("empty-folder")).unwrap();
    let outcome = a.cli(&["list", "-q"]).output().ok();
    assert!(outcome.stdout.lines().any(|id| id == a.id), "{outcome}");
    assert!(!outcome.stdout.contains("stray-file"), "{outcome}");
}

#[test]
fn spec_writes_a_config_that_runs() {
    let c = Bundle::sh("exit 4").container();
    let config = parse(&fs::read_to_string(c.bundle.path().join("config.json")).unwrap());
    assert_eq!(config["root"]["path"], "rootfs");
    c.run().exits(4);
}

#[test]
fn spec_is_runcs_default() {
    let dir = tempfile::tempdir().unwrap();
    Cli::new(["spec"]).dir(dir.path()).output().ok().prints("");
    let config = parse(&fs::read_to_string(dir.path().join("config.json")).unwrap());
    assert_eq!(config["process"]["args"], serde_json::json!(["sh"]));
    assert_eq!(config["process"]["terminal"], true);
    assert_eq!(config["process"]["cwd"], "/");
    assert_eq!(config["process"]["noNewPrivileges"], true);
    assert_eq!(config["root"], serde_json::json!({ "path": "rootfs", "readonly": true }));
    let mounts = config["mounts"].as_array().unwrap().iter();
    let at: Vec<_> = mounts.map(|mount| mount["destination"].as_str().unwrap()).collect();
    let all = ["/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup"];
    assert_eq!(at, all);
    let namespaces = config["linux"]["namespaces"].as_array().unwrap();
    for kind in ["pid", "network", "ipc", "uts", "mount"] {
        assert!(namespaces.iter().any(|entry| entry["type"] == kind), "{kind}");
    }
    for path in ["/proc/kcore", "/proc/keys", "/sys/firmware"] {
        let masked = config["linux"]["maskedPaths"].as_array().unwrap();
        assert!(masked.iter().any(|masked| masked == path), "{path}");
    }
}

#[test]
fn spec_does_not_overwrite() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), "mine").unwrap();
    Cli::new(["spec", "--bundle"]).arg(dir.path()).output().fails(&["config.json", "exists"]);
    assert_eq!(fs::read_to_string(dir.path().join("config.json")).unwrap(), "mine");
}

#[test]
fn spec_in_a_missing_bundle_is_an_error() {
    Cli::new(["spec", "--bundle", "/no/such/bundle"]).output().fails(&["/no/such/bundle"]);
}

#[test]
fn spec_rootless_has_a_user_namespace() {
    let dir = tempfile::tempdir().unwrap();
    Cli::new(["spec", "--rootless"]).dir(dir.path()).output().ok();
    let config = parse(&fs::read_to_string(dir.path().join("config.json")).unwrap());
    let namespaces = config["linux"]["namespaces"].as_array().unwrap();
    assert!(namespaces.iter().any(|entry| entry["type"] == "user"));
    assert!(!namespaces.iter().any(|entry| entry["type"] == "network"));
    assert_eq!(config["linux"]["uidMappings"][0]["size"], 1);
    assert!(config["linux"]["resources"].is_null());
}

#[test]
fn features_is_the_specs_document() {
    let features = parse(&Cli::new(["features"]).output().ok().stdout);
    let lists = |pointer: &str, item: &str| {
        let items = features.pointer(pointer).and_then(Value::as_array);
        let items = items.unwrap_or_else(|| panic!("no {pointer}"));
        assert!(items.iter().any(|entry| entry == item), "{item} in {pointer}");
    };
    assert_eq!(features["ociVersionMin"], "1.0.0");
    assert!(features["ociVersionMax"].as_str().unwrap().starts_with("1."));
    let hooks = "prestart createRuntime createContainer startContainer poststart poststop";
    hooks.split(' ').for_each(|hook| lists("/hooks", hook));
    "bind rbind ro rro nosuid rnosuid tmpcopyup rslave rshared rprivate noexec"
        .split(' ')
        .for_each(|option| lists("/mountOptions", option));
    let namespaces = "cgroup ipc mount network pid user uts";
    namespaces.split(' ').for_each(|name| lists("/linux/namespaces", name));
    lists("/linux/capabilities", "CAP_SYS_ADMIN");
    lists("/linux/seccomp/actions", "SCMP_ACT_ERRNO");
    assert_eq!(features["linux"]["seccomp"]["enabled"], true);
    assert_eq!(features["linux"]["cgroup"]["v1"], true);
}

#[test]
fn features_names_what_only_kiln_has() {
    kiln_only!("older document");
    let features = parse(&Cli::new(["features"]).output().ok().stdout);
    let namespaces = features["linux"]["namespaces"].as_array().unwrap();
    assert!(namespaces.iter().any(|name| name == "time"));
    assert_eq!(features["linux"]["mountExtensions"]["idmap"]["enabled"], true);
    for unsupported in ["selinux", "intelRdt"] {
        let field = &features["linux"][unsupported]["enabled"];
        assert!(field.is_boolean() || field.is_null(), "{unsupported}: {field}");
    }
}

#[test]
fn version_has_the_specs_version() {
    let outcome = Cli::new(["--version"]).output().ok();
    assert!(outcome.stdout.lines().any(|line| line.starts_with("spec: 1.")), "{outcome}");
    for short in ["-v", "-V"] {
        if short == "-v" || binary::runtime() != Runtime::Runc {
            assert_eq!(Cli::new([short]).output().stdout, outcome.stdout);
        }
    }
}

/// As crun's last line, which tells what was built in.
#[test]
fn version_ends_with_what_is_built_in() {
    if binary::runtime() == Runtime::Runc {
        skip!("runc has no such line");
    }
    let outcome = Cli::new(["--version"]).output().ok();
    let last: Vec<_> = outcome.stdout.lines().last().unwrap().split(' ').collect();
    for tag in ["+CAP", "+SECCOMP", "+EBPF"] {
        assert!(last.contains(&tag), "no {tag} in {outcome}");
    }
    assert!(last.iter().all(|tag| tag.starts_with('+')), "{outcome}");
}

#[test]
fn help_names_every_command() {
    let outcome = Cli::new(["--help"]).output().ok();
    for command in "create start state kill delete run list spec features".split(' ') {
        assert!(outcome.stdout.contains(command), "no {command} in {outcome}");
    }
}
