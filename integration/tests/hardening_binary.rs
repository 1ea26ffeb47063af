//! CVE-2019-5736: whatever is executed as `/proc/self/exe`, by whichever way, kiln's files on the
//! host are the same afterwards, to the last byte. The attacks from a neighbour are in
//! `own_binary.rs`.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use kiln_integration::{Bundle, Cli, Container, binary, examples, needs_wasm};

/// Path and digest of what kiln runs from.
fn digests() -> String {
    let mut paths = vec![binary::path().to_path_buf()];
    if let Some(engine) = examples::engine() {
        paths.extend(["kiln-wasmedge", "ld.so"].map(|name| engine.join(name)));
    }
    // The program, because this one is not compiled for speed.
    Cli::new(paths).binary("sha256sum").output().ok().stdout
}

/// All that uid 0 may have without CAP_SYS_ADMIN, with which the host's disk can be mounted.
const POWERFUL: &[&str] =
    &["CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_CHOWN", "CAP_FOWNER"];

/// The exploit's second half: keeps what is executed open, and writes when nobody executes it any
/// more (ETXTBSY until then). Says so if it could be opened for writing; changes nothing then.
const WRITER: &str = "while :; do for p in /proc/[0-9]*; do \
    case $(readlink $p/exe) in *busybox|'') continue;; esac; \
    (case $(readlink /proc/self/fd/8) in *busybox|'') exit;; esac; \
    for i in 1 2 3 4 5 6 7 8; do \
    (exec 9>> /proc/self/fd/8) && echo writable >> /log; \
    chmod 777 /proc/self/fd/8 && echo changed >> /log; done) 8< $p/exe; \
    done; done 2>/dev/null";

/// Its container, in whose pid namespace the victims run.
fn attacker() -> (Container, String) {
    let c = Bundle::sh(&format!("touch /log; {WRITER}")).capabilities(POWERFUL).writable();
    let c = c.container();
    c.detach().ok();
    c.await_status("running");
    let namespace = format!("/proc/{}/ns/pid", c.pid());
    (c, namespace)
}

#[track_caller]
fn nothing_was_written(c: &Container) {
    assert_eq!(c.status(), "running");
    let log = fs::read_to_string(c.bundle.rootfs().join("log")).unwrap_or_default();
    assert_eq!(log, "");
}

#[test]
fn entrypoints_that_are_the_runtime() {
    let before = digests();
    let (attacker, namespace) = attacker();
    for (link, arg) in [
        (None, "/proc/self/exe"),
        (None, "/proc/1/exe"),
        (None, "/proc/thread-self/exe"),
        (Some("/proc/self/exe"), "/bin/app"),
        (Some("/proc/self/../self/exe"), "/bin/app"),
    ] {
        let bundle = Bundle::new().args(&[arg, "--version"]).namespace("pid", Some(&namespace));
        let bundle = bundle.capabilities(POWERFUL).writable();
        if let Some(link) = link {
            symlink(link, bundle.rootfs().join("bin/app")).unwrap();
        }
        let c = bundle.container();
        c.run();
        if c.create().status.success() {
            c.on_id("start", &[]);
        }
    }
    let script = Bundle::new().args(&["/script"]).namespace("pid", Some(&namespace));
    let path = script.rootfs().join("script");
    fs::write(&path, "#!/proc/self/exe\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    script.container().run();
    nothing_was_written(&attacker);
    drop(attacker);
    assert_eq!(digests(), before);
}

#[test]
fn exec_of_the_runtime() {
    let before = digests();
    let script = format!(
        "touch /log; printf '#!/proc/self/exe\\n' > /script; \
        chmod 755 /script; ln -s /proc/self/exe /link; {WRITER}"
    );
    let c = Bundle::sh(&script).capabilities(POWERFUL).writable().container();
    c.detach().ok();
    c.await_status("running");
    for _ in 0..kiln_integration::rounds(10) {
        for command in ["/proc/self/exe", "/script", "/link", "true"] {
            c.exec(&[command, "--version"]);
        }
    }
    nothing_was_written(&c);
    drop(c);
    assert_eq!(digests(), before);
}

/// The way of the exploit as it was published: the program that everybody execs is replaced.
#[test]
fn exec_of_a_shell_that_was_replaced() {
    let before = digests();
    let c = Bundle::sh(&format!("touch /log; {WRITER}")).capabilities(POWERFUL).writable();
    let c = c.container();
    c.detach().ok();
    let shell = c.bundle.rootfs().join("bin/shell");
    fs::write(&shell, "#!/proc/self/exe\n").unwrap();
    fs::set_permissions(&shell, fs::Permissions::from_mode(0o755)).unwrap();
    for _ in 0..kiln_integration::rounds(20) {
        c.exec(&["shell"]);
        c.exec_cli(&["--detach"], &["shell"]).output();
    }
    nothing_was_written(&c);
    drop(c);
    assert_eq!(digests(), before);
}

#[test]
fn exec_in_a_wasm_container() {
    needs_wasm!();
    let before = digests();
    let wasm = Bundle::wasm("loop", &[]).capabilities(POWERFUL).writable().container();
    wasm.detach().ok();
    for path in ["/proc/1/exe", "/proc/self/exe"] {
        for _ in 0..3 {
            wasm.exec(&[path, "--version"]);
        }
    }
    drop(wasm);
    assert_eq!(digests(), before);
}
