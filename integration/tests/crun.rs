//! What crun has and runc has not: `--config`, `--regex`, `spec --file`, its annotations.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;

use kiln_integration::{Bundle, Cli, Container, Runtime, Value, binary, json, kiln_only, skip};

/// Skips the calling test for runc.
macro_rules! not_runc {
    () => {
        if binary::runtime() == Runtime::Runc {
            skip!("runc has no such thing");
        }
    };
}

#[test]
fn another_file_may_be_the_config() {
    not_runc!();
    let c = Bundle::sh("exit 3").container();
    let elsewhere = c.bundle.scratch().join("other.json");
    let mut config = c.bundle.config.clone();
    config["process"]["args"] = json!(["sh", "-c", "exit 4"]);
    fs::write(&elsewhere, config.to_string()).unwrap();
    c.run_cli(&["--config", elsewhere.to_str().unwrap()]).output().exits(4);
    c.run_cli(&["-f", elsewhere.to_str().unwrap()]).output().exits(4);
    // Relative to the working directory, not to the bundle.
    c.run_cli(&["--config=other.json"]).dir(c.bundle.scratch()).output().exits(4);
    c.run().exits(3);
    c.run_cli(&["--config", "/no/such.json"]).output().fails(&["/no/such.json"]);
    c.create_cli(&["--config", elsewhere.to_str().unwrap()]).output().ok();
}

#[test]
fn spec_writes_another_file() {
    not_runc!();
    let dir = tempfile::tempdir().unwrap();
    Cli::new(["spec", "-b"]).arg(dir.path()).args(&["-f", "x.json"]).output().ok();
    let config: Value =
        serde_json::from_slice(&fs::read(dir.path().join("x.json")).unwrap()).unwrap();
    assert_eq!(config["process"]["args"], json!(["sh"]));
    assert!(!dir.path().join("config.json").exists());
}

/// Three containers in one root, whose ids begin differently.
fn three() -> [Container; 3] {
    let first = Bundle::new().args(&["sleep", "100"]).container();
    let [second, third] =
        [(); 2].map(|()| Bundle::new().args(&["sleep", "100"]).container().in_root_of(&first));
    // The owner of the root is dropped last.
    let mut all = [third, second, first];
    for (container, name) in all.iter_mut().zip(["web-a", "web-2", "db"]) {
        container.id = format!("{name}.{}", container.id);
        container.detach().ok();
    }
    all
}

fn statuses(containers: &[Container]) -> Vec<String> {
    containers.iter().map(Container::status).collect()
}

#[test]
fn kill_and_delete_all_that_match() {
    not_runc!();
    let all = three();
    let web = r"^(web|none)-[0-9]+\.";
    all[0].cli(&["kill", "--regex", web, "KILL"]).output().ok();
    all[1].await_status("stopped");
    assert_eq!(statuses(&all), ["running", "stopped", "running"]);
    all[0].cli(&["delete", "--regex", web]).output().ok();
    all[1].on_id("state", &[]).fails(&[]);
    all[0].cli(&["delete", "--force", "-r", "kt"]).output().ok();
    all.iter().for_each(Container::assert_nothing_left);
}

#[test]
fn what_fails_for_one_does_not_stop_the_others() {
    kiln_only!("crun warns and succeeds");
    let all = three();
    all[2].kill("KILL").ok();
    all[2].await_status("stopped");
    let outcome = all[0].cli(&["delete", "--regex", "[[:alpha:]]"]).output();
    let outcome = outcome.fails(&[&all[0].id, &all[1].id, "container is running"]);
    assert_eq!(outcome.stderr.lines().count(), 2, "{outcome}");
    all[2].on_id("state", &[]).fails(&["does not exist"]);
    all[0].cli(&["kill", "-r", "(", "KILL"]).output().fails(&["--regex \"(\""]);
    all[0].cli(&["kill", "-r", "no-such-thing", "KILL"]).output().ok();
    assert_eq!(statuses(&all[..2]), ["running", "running"]);
}
