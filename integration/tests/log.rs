//! `--log`, `--log-format`, `--debug`: how errors reach a caller.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;

use kiln_integration::{Bundle, Cli, Outcome, Value, kiln_only};

/// Runs a command that fails, with a log file, and gives that file's text.
fn failing(flags: &[&str]) -> (Outcome, String) {
    let c = Bundle::new().container();
    let log = c.bundle.scratch().join("log");
    let outcome = Cli::new(["--log"]).arg(&log).args(flags).arg("--root").arg(c.root());
    let outcome = outcome.args(&["state", "no-such-id"]).output().fails(&[]);
    (outcome, fs::read_to_string(log).unwrap())
}

#[test]
fn a_json_log_has_level_msg_and_time() {
    let (_, log) = failing(&["--log-format", "json"]);
    let last: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!(last["level"], "error");
    assert!(last["msg"].as_str().unwrap().contains("does not exist"), "{last}");
    let time = last["time"].as_str().unwrap();
    assert!(time.len() >= 20 && time.as_bytes()[10] == b'T', "{time}");
    assert!(log.ends_with('\n'));
}

#[test]
fn a_text_log_has_the_message() {
    let (_, log) = failing(&["--log-format", "text"]);
    assert!(log.contains("does not exist"), "{log}");
}

/// containerd's shim shows the last line of the log; people see stderr.
#[test]
fn the_error_is_on_stderr_too() {
    let (outcome, _) = failing(&["--log-format", "json"]);
    assert!(outcome.stderr.contains("does not exist"), "{outcome}");
}

#[test]
fn the_error_is_one_line() {
    let (outcome, _) = failing(&[]);
    assert_eq!(outcome.stderr.trim_end().lines().count(), 1, "{outcome}");
}

#[test]
fn the_log_is_appended_to() {
    let c = Bundle::new().container();
    let log = c.bundle.scratch().join("log");
    fs::write(&log, "before\n").unwrap();
    for _ in 0..2 {
        let cli = Cli::new(["--log-format", "json", "--log"]).arg(&log);
        cli.args(&["state", "no-such-id"]).output().fails(&[]);
    }
    let text = fs::read_to_string(log).unwrap();
    assert!(text.starts_with("before\n"), "{text}");
    assert_eq!(text.lines().count(), 3, "{text}");
}

#[test]
fn a_success_logs_no_error() {
    let c = Bundle::new().container();
    let log = c.bundle.scratch().join("log");
    let cli = Cli::new(["--log-format", "json", "--log"]).arg(&log).arg("--root").arg(c.root());
    let cli = cli.args(&["run", "--bundle"]).arg(c.bundle.path()).arg(&c.id);
    let outcome = cli.output().ok();
    assert_eq!(outcome.stderr, "");
    let text = fs::read_to_string(log).unwrap_or_default();
    assert!(!text.contains("error"), "{text}");
}

#[test]
fn debug_says_more() {
    let c = Bundle::new().container();
    let log = c.bundle.scratch().join("log");
    let cli = Cli::new(["--debug", "--log-format", "json", "--log"]).arg(&log);
    let cli = cli.arg("--root").arg(c.root()).args(&["run", "-b"]).arg(c.bundle.path());
    cli.arg(&c.id).output().ok();
    let text = fs::read_to_string(log).unwrap();
    assert!(text.contains(r#""level":"debug""#), "{text}");
    for line in text.lines() {
        let entry: Value = serde_json::from_str(line).unwrap_or_else(|err| panic!("{err}: {line}"));
        assert!(entry["msg"].is_string() && entry["time"].is_string(), "{entry}");
    }
}

/// The last line is what containerd reports to its caller.
#[test]
fn an_error_of_the_init_reaches_the_log() {
    let c = Bundle::new().args(&["no-such-program"]).container();
    let log = c.bundle.scratch().join("log");
    let cli = Cli::new(["--log-format", "json", "--log"]).arg(&log).arg("--root").arg(c.root());
    let cli = cli.args(&["run", "--bundle"]).arg(c.bundle.path()).arg(&c.id);
    cli.output().fails(&["no-such-program"]);
    let text = fs::read_to_string(log).unwrap();
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(last["level"], "error");
    assert!(last["msg"].as_str().unwrap().contains("no-such-program"), "{last}");
}

#[test]
fn an_unknown_log_format_is_an_error() {
    Cli::new(["--log-format", "xml", "list"]).output().fails(&["xml"]);
}

#[test]
fn a_log_that_cannot_be_opened_is_an_error_that_names_it() {
    Cli::new(["--log", "/no/such/folder/log", "list"]).output().fails(&["/no/such/folder/log"]);
}

#[test]
fn environment_values_are_not_logged() {
    kiln_only!("not promised");
    let c = Bundle::new().push("/process/env", "SECRET=hunter2".into()).container();
    let log = c.bundle.scratch().join("log");
    let cli = Cli::new(["--debug", "--log"]).arg(&log).arg("--root").arg(c.root());
    cli.args(&["run", "-b"]).arg(c.bundle.path()).arg(&c.id).output().ok();
    assert!(!fs::read_to_string(log).unwrap().contains("hunter2"));
}

/// Commands that fail at three moments: while the words are read, before the bundle is, after it.
/// containerd reads the log's last entry, and every line of it must be one.
#[test]
fn every_error_is_one_entry_of_the_log() {
    kiln_only!("runc prints its usage, crun does not log it");
    let c = Bundle::new().container();
    let log = c.bundle.scratch().join("log");
    let cases: [(&[&str], &str); 4] = [
        (&["run", "--no-such-flag", "id"], "unexpected argument '--no-such-flag' found"),
        (&["list", "--format", "yaml"], "possible values: table, json"),
        (&["create"], "required arguments were not provided: <ID>"),
        (&["create", "--preserve-fds=4294967295", "id"], "--preserve-fds: too many"),
    ];
    for (index, (words, message)) in cases.iter().enumerate() {
        let cli = Cli::new(["--root"]).arg(c.root()).args(&["--log-format", "json", "--log"]);
        let cli = cli.arg(&log).args(words).env("LISTEN_FDS", "1");
        let outcome = cli.output().fails(&[message]);
        assert_eq!(outcome.stderr.lines().count(), 1, "{outcome}");
        assert!(outcome.stderr.starts_with("kiln: "), "{outcome}");
        let text = fs::read_to_string(&log).unwrap();
        let entries: Vec<Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(entries.len(), index + 1, "{text}");
        assert_eq!(entries[index]["level"], "error");
        assert!(entries[index]["msg"].as_str().unwrap().contains(message), "{text}");
    }
}

#[test]
fn empty_values_are_as_good_as_none() {
    kiln_only!("crun opens \"\"");
    let c = Bundle::new().container();
    let cli = Cli::new(["--log=", "--root"]).arg(c.root()).args(&["run", "--pid-file="]);
    let cli = cli.args(&["--console-socket", "", "--bundle"]).arg(c.bundle.path()).arg(&c.id);
    assert_eq!(cli.output().ok().stderr, "");
}

/// crun's `BACKEND:SPECIFIER`.
#[test]
fn a_log_may_be_named_with_its_backend() {
    kiln_only!("runc has no backends, crun all of them");
    let c = Bundle::new().container();
    let log = c.bundle.scratch().join("log");
    let option = format!("--log=file:{}", log.display());
    Cli::new([&option]).arg("state").arg("no-such-id").output().fails(&["does not exist"]);
    assert!(fs::read_to_string(log).unwrap().contains("does not exist"));
    let outcome = Cli::new(["--log=journald:web", "list"]).output();
    outcome.fails(&["journald is not supported"]);
}
