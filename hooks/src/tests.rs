//! Real scripts as hooks.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use oci_spec::runtime::{Hook, HookBuilder, Hooks, HooksBuilder};
use tempfile::TempDir;

use super::*;

fn hook(path: impl Into<PathBuf>) -> Hook {
    HookBuilder::default().path(path).build().unwrap()
}

fn run_hook(hook: Hook, state: &[u8]) -> Result<(), Error> {
    run(Stage::CreateRuntime, Some(&vec![hook]), &Context::new(state))
}

fn read(dir: &TempDir, name: &str) -> String {
    fs::read_to_string(dir.path().join(name)).unwrap()
}

/// A shell script as a hook. Not a file of its own: other tests fork while it would be written,
/// and a file that some process has open for writing cannot be executed.
fn sh(dir: &TempDir, body: &str) -> Hook {
    let body = format!("cd {}\n{body}", dir.path().display());
    HookBuilder::default()
        .path("/bin/sh")
        .args(vec!["sh".to_owned(), "-c".to_owned(), body])
        .build()
        .unwrap()
}

#[test]
fn nothing_to_run() {
    run(Stage::Poststop, None, &Context::new(b"{}")).unwrap();
    run(Stage::Poststop, Some(&vec![]), &Context::new(b"{}")).unwrap();
}

#[test]
fn runs_in_order_and_stops_at_the_first_failure() {
    let dir = TempDir::new().unwrap();
    let hooks: Vec<Hook> =
        (0..4).map(|i| sh(&dir, &format!("echo {i} >> log; test {i} != 2 || exit 7"))).collect();
    let error = run(Stage::CreateContainer, Some(&hooks), &Context::new(b"{}")).unwrap_err();
    assert_eq!(read(&dir, "log"), "0\n1\n2\n");
    assert_eq!(
        error.to_string(),
        "error running createContainer hook #2: /bin/sh: exited with status 7"
    );
}

#[test]
fn run_all_goes_on_after_a_failure() {
    let dir = TempDir::new().unwrap();
    let hooks = vec![hook("/bin/false"), sh(&dir, "touch second"), hook("/nonexistent")];
    let errors = run_all(Stage::Poststop, Some(&hooks), &Context::new(b"{}"));
    assert!(dir.path().join("second").exists());
    let errors: Vec<String> = errors.iter().map(Error::to_string).collect();
    assert_eq!(errors.len(), 2);
    assert_eq!(errors[0], "error running poststop hook #0: /bin/false: exited with status 1");
    assert!(
        errors[1].starts_with("error running poststop hook #2: /nonexistent: no such file"),
        "{}",
        errors[1]
    );
}

#[test]
fn state_is_on_stdin_whole() {
    let dir = TempDir::new().unwrap();
    let state = vec![b'x'; 300_000];
    run_hook(sh(&dir, "cat > state"), &state).unwrap();
    assert_eq!(fs::read(dir.path().join("state")).unwrap(), state);
}

#[test]
fn each_hook_reads_the_state_from_its_start() {
    let dir = TempDir::new().unwrap();
    let hooks = vec![sh(&dir, "cat >> state"); 2];
    run(Stage::Poststart, Some(&hooks), &Context::new(b"{1}")).unwrap();
    assert_eq!(read(&dir, "state"), "{1}{1}");
}

#[test]
fn a_hook_need_not_read_its_state() {
    run_hook(hook("/bin/true"), &vec![b'x'; 1 << 20]).unwrap();
}

#[test]
fn arguments_and_environment_are_the_specs_alone() {
    let dir = TempDir::new().unwrap();
    let copy = |from: &str, to: &str| {
        let to = dir.path().join(to).display().to_string();
        HookBuilder::default()
            .path("/bin/cp")
            .args(vec!["zero".to_owned(), from.to_owned(), to])
            .env(vec!["B=2=3".to_owned(), "A=".to_owned()])
            .build()
            .unwrap()
    };
    run_hook(copy("/proc/self/environ", "environ"), b"").unwrap();
    let environ = read(&dir, "environ");
    let mut entries: Vec<&str> = environ.split_terminator('\0').collect();
    entries.sort_unstable();
    assert_eq!(entries, ["A=", "B=2=3"]);
    run_hook(copy("/proc/self/cmdline", "cmdline"), b"").unwrap();
    assert!(read(&dir, "cmdline").starts_with("zero\0/proc/self/cmdline\0/"));
}

#[test]
fn without_an_environment_of_its_own_a_hook_has_the_callers_choice() {
    let dir = TempDir::new().unwrap();
    let copy = |to: &str| {
        let to = dir.path().join(to).display().to_string();
        let args = vec!["cp".to_owned(), "/proc/self/environ".to_owned(), to];
        HookBuilder::default().path("/bin/cp").args(args).build().unwrap()
    };
    let given = ["A=1".to_owned()];
    let context = Context { env: Some(&given), ..Context::new(b"") };
    run(Stage::StartContainer, Some(&vec![copy("given")]), &context).unwrap();
    assert_eq!(read(&dir, "given"), "A=1\0");
    run_hook(copy("inherited"), b"").unwrap();
    assert!(read(&dir, "inherited").contains("PATH="));
}

#[test]
fn argv0_is_the_path_by_default() {
    let dir = TempDir::new().unwrap();
    let script = format!("echo \"$0 $#\" > {}/args", dir.path().display());
    run_hook(hook("/bin/sh"), script.as_bytes()).unwrap();
    assert_eq!(read(&dir, "args"), "/bin/sh 0\n");
}

#[test]
fn no_descriptor_of_ours_reaches_the_hook() {
    let dir = TempDir::new().unwrap();
    let ours = dir.path().join("ours");
    let _ours = fs::File::create(&ours).unwrap();
    run_hook(sh(&dir, "for fd in /proc/$$/fd/*; do readlink $fd; done > fds; true"), b"").unwrap();
    let fds = read(&dir, "fds");
    assert_eq!(fds.matches("/memfd:kiln-state").count(), 1, "{fds}");
    assert!(!fds.contains("pidfd"), "{fds}");
    assert!(!fds.contains(&*ours.to_string_lossy()), "{fds}");
}

#[test]
fn failure_shows_the_last_line_of_stderr() {
    let dir = TempDir::new().unwrap();
    let error =
        run_hook(sh(&dir, "echo first >&2; echo ' no route ' >&2; echo >&2; exit 255"), b"");
    let text = error.unwrap_err().to_string();
    assert!(text.ends_with("/bin/sh: exited with status 255: no route"), "{text}");
}

#[test]
fn death_by_signal_is_told() {
    let dir = TempDir::new().unwrap();
    let text = run_hook(sh(&dir, "kill -TERM $$"), b"").unwrap_err().to_string();
    assert!(text.ends_with("/bin/sh: killed by signal 15"), "{text}");
}

#[test]
fn much_output_neither_blocks_nor_is_kept() {
    let dir = TempDir::new().unwrap();
    let body = "i=0; while [ $i -lt 60 ]; do head -c 20000 /dev/zero >&2; head -c 20000 /dev/zero; \
                i=$((i+1)); done; echo; echo last >&2; exit 1";
    match run_hook(sh(&dir, body), b"").unwrap_err() {
        Error::Failed { stderr, .. } => {
            assert_eq!(stderr.len(), 4096);
            assert!(stderr.ends_with("last\n"));
        }
        other => panic!("{other}"),
    }
}

#[test]
fn timeout_kills_the_whole_group() {
    let dir = TempDir::new().unwrap();
    let mut hook = sh(&dir, "sleep 300 & echo $! > pid; echo waiting >&2; wait");
    hook.set_timeout(Some(1));
    let start = Instant::now();
    let error = run_hook(hook, b"{}").unwrap_err();
    let took = start.elapsed();
    assert!(took >= Duration::from_secs(1) && took < Duration::from_secs(5), "{took:?}");
    assert_eq!(
        error.to_string(),
        "error running createRuntime hook #0: /bin/sh: killed after its timeout of 1 s: waiting"
    );
    await_end(&read(&dir, "pid"));
}

#[test]
fn a_hook_that_floods_us_still_meets_its_timeout() {
    let dir = TempDir::new().unwrap();
    let mut flood = sh(&dir, "exec cat /dev/zero");
    flood.set_timeout(Some(1));
    assert!(matches!(run_hook(flood, b"").unwrap_err(), Error::TimedOut { .. }));
}

#[test]
fn what_a_hook_leaves_behind_is_not_waited_for() {
    let dir = TempDir::new().unwrap();
    let start = Instant::now();
    run_hook(sh(&dir, "sleep 60 & echo $! > pid"), b"").unwrap();
    assert!(start.elapsed() < Duration::from_secs(20));
    let pid =
        read(&dir, "pid").trim().parse().ok().and_then(rustix::process::Pid::from_raw).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn a_hook_that_cannot_be_executed() {
    let dir = TempDir::new().unwrap();
    let plain = dir.path().join("plain");
    fs::write(&plain, "not a program").unwrap();
    let text = run_hook(hook(&plain), b"").unwrap_err().to_string();
    assert!(text.contains("permission denied"), "{text}");
    fs::set_permissions(&plain, fs::Permissions::from_mode(0o755)).unwrap();
    let text = loop {
        let text = run_hook(hook(&plain), b"").unwrap_err().to_string();
        // As long as a process forked by another test has our file open for writing.
        if !text.contains("text file busy") {
            break text;
        }
    };
    assert!(text.contains("exec format error"), "{text}");
}

fn hooks_with(bad: Hook) -> Hooks {
    HooksBuilder::default().create_runtime(vec![hook("/bin/true"), bad]).build().unwrap()
}

#[test]
fn validate_names_the_field() {
    let message = |hook| validate(&hooks_with(hook)).unwrap_err().to_string();
    assert_eq!(
        message(hook("bin/true")),
        "hooks.createRuntime[1].path: \"bin/true\" is not an absolute path"
    );
    for secs in [0, -3] {
        let mut bad = hook("/bin/true");
        bad.set_timeout(Some(secs));
        assert_eq!(
            message(bad),
            format!("hooks.createRuntime[1].timeout: {secs} is not greater than 0")
        );
    }
    let mut bad = hook("/bin/true");
    bad.set_env(Some(vec!["A=1".to_owned(), "secret".to_owned()]));
    assert_eq!(message(bad), "hooks.createRuntime[1].env[1]: not of the form name=value");
    let mut good = hook("/not/there");
    good.set_timeout(Some(i64::MAX));
    validate(&hooks_with(good)).unwrap();
}

fn await_end(pid: &str) {
    // The grandchild belongs to nobody here; soon it is gone or a zombie of init's.
    let start = Instant::now();
    let stat = || fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    let dead = || stat().is_empty() || stat().contains(") Z ");
    while !dead() {
        assert!(start.elapsed() < Duration::from_secs(10), "{}", stat());
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn ends_when_it_is_to_end() {
    let dir = TempDir::new().unwrap();
    let (end, writer) = rustix::pipe::pipe().unwrap();
    let hooks = vec![sh(&dir, "sleep 1000 & echo $! > child; sleep 1000")];
    let ended = std::thread::scope(|scope| {
        let context = Context { end: Some(end.as_fd()), ..Context::new(b"") };
        let run = scope.spawn(move || run(Stage::Poststart, Some(&hooks), &context));
        while !fs::read_to_string(dir.path().join("child")).is_ok_and(|pid| pid.ends_with('\n')) {
            std::thread::sleep(Duration::from_millis(5));
        }
        rustix::io::write(&writer, b"x").unwrap();
        run.join().unwrap()
    });
    assert!(matches!(ended, Err(Error::Ended { .. })), "{ended:?}");
    await_end(&read(&dir, "child"));
}

#[test]
fn its_output_may_go_elsewhere() {
    let dir = TempDir::new().unwrap();
    let (out, err) = (dir.path().join("out"), dir.path().join("err"));
    let (stdout, stderr) = (fs::File::create(&out).unwrap(), fs::File::create(&err).unwrap());
    let context =
        Context { stdout: Some(stdout.as_fd()), stderr: Some(stderr.as_fd()), ..Context::new(b"") };
    let hooks = vec![sh(&dir, "echo one; echo two >&2; exit 3")];
    let error = run(Stage::CreateRuntime, Some(&hooks), &context).unwrap_err();
    assert_eq!(
        error.to_string(),
        "error running createRuntime hook #0: /bin/sh: exited with status 3"
    );
    assert_eq!((read(&dir, "out"), read(&dir, "err")), ("one\n".into(), "two\n".into()));
}

#[test]
fn the_longest_timeout_is_none() {
    let mut patient = hook("/bin/true");
    patient.set_timeout(Some(i64::MAX));
    run_hook(patient, b"").unwrap();
}

#[test]
fn stages_are_spelled_as_in_the_spec() {
    let hooks: Hooks = serde_from(
        r#"{"prestart":[{"path":"/0"}],"createRuntime":[{"path":"/1"}],
            "createContainer":[{"path":"/2"}],"startContainer":[{"path":"/3"}],
            "poststart":[{"path":"/4"}],"poststop":[{"path":"/5"}]}"#,
    );
    for (index, stage) in Stage::ALL.into_iter().enumerate() {
        let listed = stage.of(&hooks).unwrap();
        assert_eq!(listed[0].path(), Path::new(&format!("/{index}")), "{stage}");
    }
}

fn serde_from(text: &str) -> Hooks {
    serde_json::from_str(text).unwrap()
}
