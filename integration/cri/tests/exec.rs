//! Exec and attach in the containers of pods: ExecSync, and streams as kubectl has them.

#![allow(missing_docs, clippy::unwrap_used)]

use std::time::Instant;

use kiln_integration::containerd::{Containerd, Shim};
use kiln_integration::{eventually, for_each_shim, needs_wasm, patience};
use kiln_integration_cri::spdy::Streams;
use kiln_integration_cri::{Container, Manifest, Pod};

for_each_shim!(
    a_program_in_a_linux_container,
    a_module_in_a_wasm_container,
    a_program_in_a_wasm_container,
    what_cannot_be_executed,
    a_timeout_ends_the_process,
    input_and_its_end,
    a_modules_input_and_its_end,
    a_terminal,
    a_modules_terminal,
    attach_to_a_program,
    attach_to_a_module,
    attach_to_a_terminal,
    an_exec_ends_with_its_container
);

const INPUT: Streams = Streams { stdin: true, tty: false };
const TERMINAL: Streams = Streams { stdin: true, tty: true };

/// A pod with a module that reads its input, and a shell beside it; annotated as wasm where the
/// entrypoint is.
fn manifest(tty: bool) -> Manifest {
    let mut manifest = Manifest::load("pods/sidecar");
    // A shell that is pid 1 does not end on SIGTERM.
    manifest.spec.termination_grace_period_seconds = Some(0);
    let writer = &mut manifest.spec.containers[0];
    writer.image = "localhost/kiln/cat:1".to_owned();
    writer.command = vec!["/cat.wasm".to_owned()];
    writer.args.clear();
    let server = &mut manifest.spec.containers[1];
    server.command = ["sh", "-c", "while read line; do echo \"got $line\"; done; echo end"]
        .map(str::to_owned)
        .to_vec();
    server.readiness_probe = None;
    for container in &mut manifest.spec.containers {
        (container.stdin, container.tty) = (true, tty);
    }
    manifest
}

/// Runs the test on the two containers: the module, and the Linux program.
fn with_pod(shim: Shim, tty: bool, test: impl FnOnce(&Pod, &Container, &Container)) {
    let containerd = Containerd::shared(true);
    let pod = Pod::run(&containerd, shim, &manifest(tty));
    test(&pod, &pod.container("writer"), &pod.container("server"));
    pod.remove();
}

fn a_program_in_a_linux_container(shim: Shim) {
    needs_wasm!();
    with_pod(shim, false, |_, _, linux| {
        let script = "echo out; echo problem >&2; exit 5";
        let outcome = linux.exec(&["sh", "-c", script]).unwrap();
        assert_eq!((&*outcome.stdout, &*outcome.stderr), ("out\n", "problem\n"));
        assert_eq!(outcome.exit_code, 5);
        let killed = linux.exec(&["sh", "-c", "kill -KILL $$"]).unwrap();
        assert_eq!(killed.exit_code, 137);
    });
}

fn a_module_in_a_wasm_container(shim: Shim) {
    needs_wasm!();
    with_pod(shim, false, |_, wasm, _| {
        // No input is the end of it.
        let outcome = wasm.exec(&["/cat.wasm"]).unwrap();
        assert_eq!((outcome.exit_code, &*outcome.stdout), (0, ""), "{outcome:?}");
    });
    let containerd = Containerd::shared(true);
    let pod = Pod::run(&containerd, shim, &Manifest::load("pods/probe"));
    let awake = pod.container("sleeper").exec(&["/sleep.wasm", "0"]).unwrap();
    assert_eq!((awake.exit_code, &*awake.stdout), (0, "sleeping\nawake\n"), "{awake:?}");
    pod.remove();
}

/// There is a shell if a volume or the image brings one.
fn a_program_in_a_wasm_container(shim: Shim) {
    needs_wasm!();
    with_pod(shim, false, |pod, wasm, _| {
        let shell = pod.volume("page").join("busybox");
        std::fs::copy("/bin/busybox", shell).unwrap();
        let outcome = wasm.exec(&["/page/busybox", "sh", "-c", "echo $0; exit 4"]).unwrap();
        assert_eq!((outcome.exit_code, &*outcome.stdout), (4, "sh\n"), "{outcome:?}");
    });
}

fn what_cannot_be_executed(shim: Shim) {
    needs_wasm!();
    with_pod(shim, false, |_, wasm, linux| {
        for (container, program) in [(wasm, "/gone.wasm"), (linux, "gone"), (linux, "/etc/hosts")] {
            let status = container.exec(&[program]).unwrap_err();
            let said = ["no such file", "not found", "permission denied"];
            let message = status.message.to_lowercase();
            assert!(said.iter().any(|text| message.contains(text)), "{status}");
            assert!(message.contains(program), "{status}");
        }
    });
}

fn a_timeout_ends_the_process(shim: Shim) {
    needs_wasm!();
    with_pod(shim, false, |_, _, linux| {
        let since = Instant::now();
        let status = linux.exec_timeout(&["sleep", "1000"], 1).unwrap_err();
        assert!(status.message.contains("timeout 1s exceeded"), "{status}");
        assert!(since.elapsed() < patience(10));
        let gone = || linux.exec(&["sh", "-c", "pidof sleep || busybox pidof sleep"]);
        eventually("sleep to be gone", || gone().unwrap().exit_code != 0);
    });
}

fn input_and_its_end(shim: Shim) {
    needs_wasm!();
    with_pod(shim, false, |pod, _, linux| {
        let script = "cat; echo problem >&2; exit 3";
        let mut session = pod.client.exec(&linux.id, &["sh", "-c", script], INPUT).unwrap();
        session.send("first\n");
        session.await_text("first\n");
        session.send("second\n".repeat(10_000));
        session.close_stdin();
        let ended = session.finish();
        assert_eq!(ended.stdout, "first\n".to_owned() + &"second\n".repeat(10_000));
        assert_eq!((&*ended.stderr, ended.exit_code()), ("problem\n", 3));
    });
}

fn a_modules_input_and_its_end(shim: Shim) {
    needs_wasm!();
    with_pod(shim, false, |pod, wasm, _| {
        let mut session = pod.client.exec(&wasm.id, &["/cat.wasm"], INPUT).unwrap();
        session.send("first\n");
        session.await_text("first\n");
        session.send("second\n");
        session.close_stdin();
        let ended = session.finish();
        assert_eq!((&*ended.stdout, ended.exit_code()), ("first\nsecond\n", 0));
    });
}

fn a_terminal(shim: Shim) {
    needs_wasm!();
    with_pod(shim, false, |pod, _, linux| {
        let mut session = pod.client.exec(&linux.id, &["sh"], TERMINAL).unwrap();
        session.resize(91, 37);
        session
            .send("tty; until [ \"$(stty size)\" = '37 91' ]; do :; done; echo size $((1 + 1))\n");
        let text = session.await_text("size 2\r\n");
        assert!(text.contains("/dev/pts/0"), "{text:?}");
        session.resize(100, 50);
        session.send("until [ \"$(stty size)\" = '50 100' ]; do :; done; exit 6\n");
        assert_eq!(session.finish().exit_code(), 6);
    });
}

fn a_modules_terminal(shim: Shim) {
    needs_wasm!();
    with_pod(shim, false, |pod, wasm, _| {
        let mut session = pod.client.exec(&wasm.id, &["/cat.wasm"], TERMINAL).unwrap();
        session.send("hello\n");
        // Once by the terminal's echo, once by the module.
        session.await_text("hello\r\nhello\r\n");
        session.send("\x04");
        assert_eq!(session.finish().exit_code(), 0);
    });
}

/// What was written before is in the log alone.
fn attach_to_a_program(shim: Shim) {
    needs_wasm!();
    with_pod(shim, false, |pod, _, linux| {
        let mut session = pod.client.attach(&linux.id, INPUT).unwrap();
        session.ask("one\n", "got one\n");
        let mut other = pod.client.attach(&linux.id, INPUT).unwrap();
        other.ask("two\n", "got two\n");
        session.await_text("got two\n");
        linux.await_stdout("got one\n");
        linux.await_stdout("got two\n");
    });
}

fn attach_to_a_module(shim: Shim) {
    needs_wasm!();
    with_pod(shim, false, |pod, wasm, _| {
        let mut session = pod.client.attach(&wasm.id, INPUT).unwrap();
        session.ask("one\n", "one\n");
        wasm.await_stdout("one\n");
    });
}

fn attach_to_a_terminal(shim: Shim) {
    needs_wasm!();
    with_pod(shim, true, |pod, wasm, linux| {
        let mut session = pod.client.attach(&wasm.id, TERMINAL).unwrap();
        session.ask("one\n", "one\r\none\r\n");
        session.send("\x04");
        assert_eq!(wasm.await_exit().exit_code, 0);
        session.finish();
        let mut session = pod.client.attach(&linux.id, TERMINAL).unwrap();
        session.ask("two\n", "got two\r\n");
        session.send("\x04");
        session.await_text("end\r\n");
        assert_eq!(linux.await_exit().exit_code, 0);
    });
}

fn an_exec_ends_with_its_container(shim: Shim) {
    needs_wasm!();
    with_pod(shim, false, |pod, wasm, linux| {
        let mut sessions = [(wasm, "/cat.wasm"), (linux, "cat")].map(|(container, program)| {
            let mut session = pod.client.exec(&container.id, &[program], INPUT).unwrap();
            session.send("there\n");
            session.await_text("there\n");
            (container, session)
        });
        for (container, _) in &mut sessions {
            pod.client.stop_container(&container.id, 0).unwrap();
        }
        for (_, session) in sessions {
            assert_eq!(session.finish().exit_code(), 137);
        }
    });
}
