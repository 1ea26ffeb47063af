//! Prints the functions that kiln executes in a container's life, in the order of their first call:
//! what the linker is to put side by side. See scripts/order.
//!
//! `$KILN` is traced instruction by instruction (ptrace(2)), which takes a minute or two, and has to
//! have its symbols.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

use kiln_integration::{Bundle, Cli, binary, json, reaper, seccomp_profile};

mod symbols;
mod tracer;

use tracer::Tracer;

fn main() {
    let mut args = std::env::args().skip(1);
    match (args.next(), args.next()) {
        (Some(home), Some(id)) => trace(Path::new(&home), &id),
        _ => prepare(),
    }
}

/// Makes a bundle that is confined as containerd has it, and a process to trace, which must be the
/// only one to wait for the traced.
fn prepare() {
    let bundle = Bundle::new().args(&["sleep", "1000"]).set("/linux/seccomp", seccomp_profile());
    let c = bundle.set("/process/noNewPrivileges", json!(true)).container();
    // The filter is compiled, and found in the cache from now on.
    c.create().ok();
    c.delete_force().ok();
    let mut tracing = Command::new(std::env::current_exe().unwrap());
    tracing.arg(c.bundle.home()).arg(&c.id).env_remove("RUST_BACKTRACE");
    let status = reaper::wait(&mut reaper::spawn(&mut tracing));
    assert!(status.success(), "{tracing:?}: {status}");
}

fn trace(home: &Path, id: &str) {
    let mut tracer = Tracer::of(binary::path());
    let bundle = home.join("bundle");
    let bundle = bundle.to_string_lossy();
    for words in [
        &["create", "--bundle", &bundle, id][..],
        &["start", id],
        &["state", id],
        &["exec", id, "true"],
        &["kill", id, "9"],
        &["delete", "--force", id],
        &["run", "--detach", "--bundle", &bundle, id],
        &["delete", "--force", id],
        &["features"],
    ] {
        let cli = Cli::new(["--root"]).arg(home.join("root"));
        let cli = cli.arg("--log").arg(home.join("log.json")).args(&["--log-format", "json"]);
        eprintln!("kiln {}", words.join(" "));
        tracer.run(cli.args(words));
    }
    for name in tracer.functions() {
        println!("{name}");
    }
}
