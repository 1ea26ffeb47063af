//! The six hooks: when and where they run, what they are told, and what their
//! failure does (runtime-spec v1.3, runtime.md#lifecycle).

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::path::PathBuf;

use kiln_integration::{Bundle, Container, Value, binary, eventually, json, kiln_only, proc, reap};

const STAGES: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// The stages that the binary under test runs when it should: runc 1.1.5 and
/// crun 1.8.1 run poststart in `create` already.
fn stages() -> Vec<&'static str> {
    let known = |stage: &&str| binary::is_kiln() || *stage != "poststart";
    STAGES.into_iter().filter(known).collect()
}

/// A hook that runs a script of the shell at this path.
fn hook(script: &str) -> Value {
    json!({ "path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"] })
}

/// A bundle with hooks that record in `log/` what they see: `order` has the
/// stages in order, `STAGE.json` their standard input, `STAGE.ns` namespaces.
fn recording(stages: &[&str]) -> Bundle {
    let mut bundle = Bundle::new().writable();
    let log = bundle.rootfs().join("log");
    fs::create_dir(&log).unwrap();
    for stage in stages {
        // The container's root is all that startContainer can write to.
        let log = if *stage == "startContainer" { PathBuf::from("/log") } else { log.clone() };
        let script = format!(
            "cd {}; echo {stage} >> order; cat > {stage}.json; \
            for n in mnt net uts pid; do readlink /proc/self/ns/$n; done > {stage}.ns; pwd > {stage}.cwd",
            log.display()
        );
        bundle = bundle.push(&format!("/hooks/{stage}"), hook(&script));
    }
    bundle
}

fn log(c: &Container, name: &str) -> String {
    let path = c.bundle.rootfs().join("log").join(name);
    fs::read_to_string(&path).unwrap_or_else(|err| panic!("{}: {err}", path.display()))
}

/// What a hook of this stage was given on standard input.
fn told(c: &Container, stage: &str) -> Value {
    serde_json::from_str(&log(c, &format!("{stage}.json"))).unwrap()
}

#[test]
fn hooks_run_in_order() {
    let c = recording(&stages()).container();
    c.create().ok();
    assert_eq!(log(&c, "order"), "prestart\ncreateRuntime\ncreateContainer\n");
    let pid = c.pid();
    c.start().ok();
    assert_eq!(reap(pid), 0);
    let started = stages()[..stages().len() - 1].join("\n") + "\n";
    assert_eq!(log(&c, "order"), started);
    c.delete().ok();
    assert_eq!(log(&c, "order"), format!("{started}poststop\n"));
}

#[test]
fn run_calls_all_hooks() {
    let c = recording(&stages()).container();
    c.run().ok();
    let mut order: Vec<_> = log(&c, "order").lines().map(str::to_owned).collect();
    assert_eq!(order.pop().unwrap(), "poststop");
    order.sort_by_key(|stage| STAGES.iter().position(|own| own == stage));
    assert_eq!(order, stages()[..stages().len() - 1]);
}

#[test]
fn hooks_of_one_stage_run_in_the_order_of_the_list() {
    let mut bundle = Bundle::new().writable();
    let file = bundle.scratch().join("order");
    for number in 1..=4 {
        let script = format!("sleep 0.0{}; echo {number} >> {}", 5 - number, file.display());
        bundle = bundle.push("/hooks/createRuntime", hook(&script));
    }
    let c = bundle.container();
    c.run().ok();
    assert_eq!(fs::read_to_string(file).unwrap(), "1\n2\n3\n4\n");
}

#[test]
fn hooks_are_told_the_state() {
    let c = recording(&stages()).set("/annotations/a", json!("b")).container();
    c.create().ok();
    let pid = c.pid();
    c.start().ok();
    reap(pid);
    c.delete().ok();
    let statuses = [
        ("prestart", vec!["creating", "created"]),
        ("createRuntime", vec!["creating", "created"]),
        ("createContainer", vec!["creating", "created"]),
        ("startContainer", vec!["created"]),
        ("poststart", vec!["running"]),
        ("poststop", vec!["stopped"]),
    ];
    for (stage, allowed) in statuses.into_iter().filter(|(stage, _)| stages().contains(stage)) {
        let state = told(&c, stage);
        let status = state["status"].as_str().unwrap();
        assert!(allowed.contains(&status), "{stage}: {state}");
        assert_eq!(state["id"], json!(c.id), "{stage}");
        assert_eq!(state["bundle"], json!(c.bundle.path()), "{stage}");
        assert_eq!(state["annotations"]["a"], "b", "{stage}");
        assert!(state["ociVersion"].is_string(), "{stage}");
    }
    let outside = ["prestart", "createRuntime", "poststart"];
    for stage in outside.iter().filter(|stage| stages().contains(stage)) {
        assert_eq!(told(&c, stage)["pid"], pid, "{stage}");
    }
}

#[test]
fn hooks_run_in_their_namespaces() {
    let c = recording(&stages()).args(&["sleep", "100"]).container();
    c.create().ok();
    let pid = c.pid();
    c.start().ok();
    let names = ["mnt", "net", "uts"];
    let own: Vec<_> = names.iter().map(|name| proc::own_namespace(name)).collect();
    let inside: Vec<_> = names.iter().map(|name| proc::namespace(pid, name)).collect();
    for (stage, expected) in [
        ("prestart", &own),
        ("createRuntime", &own),
        ("createContainer", &inside),
        ("startContainer", &inside),
        ("poststart", &own),
    ]
    .into_iter()
    .filter(|(stage, _)| stages().contains(stage))
    {
        let seen = log(&c, &format!("{stage}.ns"));
        assert_eq!(seen.lines().take(3).collect::<Vec<_>>(), *expected, "{stage}");
    }
}

/// It sees the host's files, and the container's namespaces: what a volume
/// plugin or a network configuration needs.
#[test]
fn create_container_runs_before_the_root_is_changed() {
    let bundle = Bundle::new();
    let (file, rootfs) = (bundle.scratch().join("seen"), bundle.rootfs());
    let script = format!(
        "test -e /etc/debian_version && grep -c {} /proc/self/mountinfo > {}",
        rootfs.display(),
        file.display()
    );
    let c = bundle.push("/hooks/createContainer", hook(&script)).container();
    c.create().ok();
    let mounts: u32 = fs::read_to_string(file).unwrap().trim().parse().unwrap();
    assert!(mounts >= 1, "the container's mounts are there: {mounts}");
}

#[test]
fn a_mount_of_a_create_container_hook_is_seen_inside() {
    let bundle = Bundle::sh("cat /mnt/file");
    let rootfs = bundle.rootfs();
    fs::create_dir(rootfs.join("mnt")).unwrap();
    let script =
        format!("mount -t tmpfs hook {0}/mnt && echo hooked > {0}/mnt/file", rootfs.display());
    let c = bundle.push("/hooks/createContainer", hook(&script)).container();
    c.run().ok().prints("hooked\n");
    assert!(!rootfs.join("mnt/file").exists(), "and not on the host");
}

#[test]
fn start_container_runs_before_the_program() {
    let bundle = Bundle::sh("cat /made").writable();
    let c = bundle.push("/hooks/startContainer", hook("echo $A > /made"));
    let c = c.set("/hooks/startContainer/0/env", json!(["A=from-env"])).container();
    c.run().ok().prints("from-env\n");
}

#[test]
fn hooks_have_the_environment_of_the_config_only() {
    let bundle = Bundle::new();
    let file = bundle.scratch().join("env");
    let script = format!("env | grep -E '^(A|LEAKED|HOME)=' > {}; true", file.display());
    let bundle = bundle.push("/hooks/createRuntime", hook(&script));
    let bundle = bundle.set("/hooks/createRuntime/0/env", json!(["A=1", "PATH=/usr/bin:/bin"]));
    let c = bundle.container();
    c.run_cli(&[]).env("LEAKED", "yes").output().ok();
    assert_eq!(fs::read_to_string(file).unwrap(), "A=1\n");
}

#[test]
fn a_hook_without_environment_has_the_runtimes_or_the_containers() {
    let bundle = Bundle::sh("cat /made").writable();
    let file = bundle.scratch().join("env");
    let mut outside = hook(&format!("echo $A > {}", file.display()));
    let mut inside = hook("echo $A > /made");
    for hook in [&mut outside, &mut inside] {
        hook.as_object_mut().unwrap().remove("env");
    }
    let bundle = bundle.push("/hooks/createRuntime", outside).push("/process/env", json!("A=in"));
    let c = bundle.push("/hooks/startContainer", inside).container();
    c.run_cli(&[]).env("A", "out").output().ok().prints("in\n");
    assert_eq!(fs::read_to_string(file).unwrap(), "out\n");
}

#[test]
fn start_container_hooks_have_the_home_that_the_program_has() {
    let bundle = Bundle::sh("cat /made").writable();
    let mut inside = hook("echo $HOME > /made");
    inside.as_object_mut().unwrap().remove("env");
    bundle.push("/hooks/startContainer", inside).container().run().ok().prints("/\n");
}

#[test]
fn create_container_hooks_start_in_the_rootfs() {
    let bundle = Bundle::sh("cat /made").writable();
    let c = bundle.push("/hooks/createContainer", hook("echo hooked > made")).container();
    c.run().ok().prints("hooked\n");
}

#[test]
fn hooks_get_their_arguments() {
    let bundle = Bundle::new();
    let file = bundle.scratch().join("args");
    let script = format!("echo \"$0|$1|$2\" > {}", file.display());
    let mut first = hook(&script);
    for argument in ["zero", "one two", ""] {
        first["args"].as_array_mut().unwrap().push(json!(argument));
    }
    let c = bundle.push("/hooks/createRuntime", first).container();
    c.run().ok();
    assert_eq!(fs::read_to_string(file).unwrap(), "zero|one two|\n");
}

/// A failing hook of create: an error that shows it, and no container.
#[test]
fn a_failing_hook_of_create_undoes_it() {
    for stage in ["prestart", "createRuntime", "createContainer"] {
        let bundle = Bundle::new().push(&format!("/hooks/{stage}"), hook("echo why >&2; exit 3"));
        let c = bundle.container();
        c.create().fails(&["hook"]);
        c.assert_nothing_left();
        c.run().fails(&["hook"]);
        c.assert_nothing_left();
    }
}

#[test]
fn the_error_of_a_hook_says_which_and_why() {
    kiln_only!("shows less");
    for stage in &STAGES[..4] {
        let bundle = Bundle::new().push(&format!("/hooks/{stage}"), hook("echo why >&2; exit 3"));
        let c = bundle.container();
        c.run().fails(&[stage, "/bin/sh", "3", "why"]);
        c.assert_nothing_left();
    }
}

#[test]
fn after_a_failing_hook_no_other_of_its_stage_runs() {
    let bundle = Bundle::new().push("/hooks/createRuntime", hook("exit 1"));
    let file = bundle.scratch().join("ran");
    let bundle = bundle.push("/hooks/createRuntime", hook(&format!("touch {}", file.display())));
    let c = bundle.container();
    c.create().fails(&[]);
    assert!(!file.exists());
}

#[test]
fn poststop_runs_after_a_failed_create() {
    kiln_only!("1.1.5 does not run it");
    let bundle = Bundle::new().push("/hooks/createRuntime", hook("exit 1"));
    let file = bundle.scratch().join("ran");
    let bundle = bundle.push("/hooks/poststop", hook(&format!("touch {}", file.display())));
    let c = bundle.container();
    c.create().fails(&[]);
    assert!(file.exists(), "runtime.md#lifecycle: continue at step 12");
}

#[test]
fn a_failing_start_container_hook_stops_the_container() {
    let c = Bundle::sh("touch /ran").writable();
    let c = c.push("/hooks/startContainer", hook("exit 3")).container();
    c.create().ok();
    let pid = c.pid();
    let outcome = c.start();
    // runc's start does not wait for the hook; kiln's must report it.
    if binary::is_kiln() {
        outcome.fails(&["startContainer"]);
    }
    eventually("the container to stop", || !proc::alive(pid));
    assert!(!c.bundle.rootfs().join("ran").exists());
    c.delete_force().ok();
    c.assert_nothing_left();
}

#[test]
fn a_failing_poststart_hook_stops_the_container() {
    kiln_only!("runs it in create already");
    let c = Bundle::new().args(&["sleep", "100"]);
    let c = c.push("/hooks/poststart", hook("exit 3")).container();
    c.create().ok();
    let pid = c.pid();
    c.start().fails(&["hook"]);
    eventually("the container to stop", || !proc::alive(pid));
}

#[test]
fn a_failing_poststop_hook_is_a_warning() {
    let bundle = Bundle::new().push("/hooks/poststop", hook("exit 3"));
    let file = bundle.scratch().join("ran");
    let c = bundle.push("/hooks/poststop", hook(&format!("touch {}", file.display()))).container();
    c.detach().ok();
    c.await_status("stopped");
    c.delete().ok();
    c.assert_nothing_left();
    assert!(file.exists() || !binary::is_kiln(), "the next hook runs; runc's does not");
}

#[test]
fn poststop_runs_after_delete_force() {
    let bundle = Bundle::new().args(&["sleep", "100"]);
    let file = bundle.scratch().join("state");
    let c = bundle.push("/hooks/poststop", hook(&format!("cat > {}", file.display()))).container();
    c.detach().ok();
    c.delete_force().ok();
    let state: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!(state["status"], "stopped");
}

#[test]
fn a_hook_that_takes_too_long_is_ended() {
    let bundle = Bundle::new();
    let file = bundle.scratch().join("pid");
    let mut slow = hook(&format!("echo $$ > {}; exec sleep 100", file.display()));
    slow["timeout"] = json!(1);
    let c = bundle.push("/hooks/createRuntime", slow).container();
    let outcome = c.create().fails(&["hook"]);
    let seconds = outcome.elapsed.as_secs_f64();
    assert!((0.9..5.0).contains(&seconds), "{outcome}");
    let pid: i32 = fs::read_to_string(file).unwrap().trim().parse().unwrap();
    assert!(!proc::alive(pid), "the hook is gone");
    c.assert_nothing_left();
}

#[test]
fn a_hook_that_is_quick_enough_is_not() {
    let mut quick = hook("sleep 0.1");
    quick["timeout"] = json!(10);
    Bundle::new().push("/hooks/createRuntime", quick).container().run().ok();
}

#[test]
fn a_hook_that_is_not_there() {
    for stage in &STAGES[..4] {
        let hooks = json!([{ "path": "/no/such/hook" }]);
        let c = Bundle::new().set(&format!("/hooks/{stage}"), hooks).container();
        c.run().fails(&["/no/such/hook"]);
        c.assert_nothing_left();
    }
}

#[test]
fn a_hook_that_does_not_read_is_fine() {
    Bundle::new().push("/hooks/createRuntime", hook("exec <&-; true")).container().run().ok();
}

#[test]
fn descriptors_of_the_runtime_are_not_in_hooks() {
    let bundle = Bundle::new();
    let file = bundle.scratch().join("fds");
    let script = format!("exec ls /proc/self/fd > {}", file.display());
    let c = bundle.push("/hooks/createRuntime", hook(&script)).container();
    let leaking = ["bash", "-c", "exec 9</etc/passwd; exec \"$@\"", "bash"];
    c.create_cli(&[]).under(&leaking).output().ok();
    // Standard input, output, error, and the folder that ls reads.
    assert_eq!(fs::read_to_string(file).unwrap(), "0\n1\n2\n3\n");
}

/// A container with a hook of this stage that says that it has begun and never ends.
fn hanging(stage: &str, pid_namespace: bool) -> Container {
    let bundle = Bundle::new().args(&["sleep", "100"]).writable();
    let begun = if stage == "startContainer" {
        "/begun".to_owned()
    } else {
        bundle.rootfs().join("begun").display().to_string()
    };
    let script = format!("sleep 1000 & echo $! > {begun}; sleep 1000");
    let bundle = bundle.push(&format!("/hooks/{stage}"), hook(&script));
    if pid_namespace { bundle } else { bundle.without_namespace("pid") }.container()
}

#[test]
fn a_container_whose_hooks_run_is_creating() {
    for stage in ["createRuntime", "createContainer"] {
        let c = hanging(stage, true);
        let create = c.create_cli(&[]).spawn();
        c.await_file("begun");
        assert_eq!(c.status(), "creating", "{stage}");
        c.delete_force().ok();
        create.wait().fails(&[]);
    }
}

/// `delete --force` ends what holds the container: neither the command nor the hook stays.
#[test]
fn delete_force_ends_hooks_that_hang() {
    kiln_only!("runc and crun leave the hook and the command behind");
    for pid_namespace in [true, false] {
        for stage in ["createRuntime", "createContainer", "startContainer", "poststart"] {
            let c = hanging(stage, pid_namespace);
            let command = if stage.starts_with("create") {
                c.create_cli(&[])
            } else {
                c.create().ok();
                c.cli(&["start", &c.id])
            };
            let command = command.spawn();
            c.await_file("begun");
            let host_pid: Option<i32> = match stage {
                "createRuntime" | "poststart" => c.await_file("begun").trim().parse().ok(),
                _ => None,
            };
            c.delete_force().ok();
            let outcome = command.wait();
            assert!(!outcome.status.success() || stage == "startContainer", "{stage}: {outcome}");
            c.assert_nothing_left();
            c.on_id("state", &[]).fails(&["does not exist"]);
            if let Some(pid) = host_pid {
                eventually("the hook's child to end", || !proc::alive(pid));
            }
        }
    }
}

/// A `create` that takes its time is waited for.
#[test]
fn delete_force_waits_for_a_hook_that_ends() {
    let bundle = Bundle::new();
    let script = format!("echo x > {}; sleep 0.3", bundle.rootfs().join("begun").display());
    let c = bundle.push("/hooks/createRuntime", hook(&script)).container();
    let create = c.create_cli(&[]).spawn();
    c.await_file("begun");
    c.delete_force().ok();
    create.wait().ok();
    c.assert_nothing_left();
}
