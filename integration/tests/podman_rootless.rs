//! Podman without root: kiln is root of a user's namespace.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;

use kiln_integration::image::Image;
use kiln_integration::podman::{BUSYBOX, Podman};
use kiln_integration::{eventually, kiln_only, needs_wasm};

#[test]
fn a_user_without_root() {
    let podman = Podman::rootless();
    // As root of the user's namespace, without a word on stderr.
    let script = "id -u; awk '{ print $2, $3 }' /proc/self/uid_map";
    let outcome = podman.run(&[], &["sh", "-c", script]).ok().prints("0\n47112 1\n400000 65536\n");
    assert_eq!(outcome.stderr, "");
    podman.run(&["--user", "1000:1000"], &["sh", "-c", "id -u; id -g"]).ok().prints("1000\n1000\n");
    // The caller's own id inside, too: a user namespace below the user's.
    podman.run(&["--userns", "keep-id"], &["id", "-u"]).ok().prints("47112\n");
    // What fails says why, and nothing else is taken for the reason.
    podman.run(&[], &["no-such"]).fails_with(127, &["executable file not found in"]);
    podman.run(&[], &["/etc"]).fails_with(126, &["exec: \"/etc\": permission denied"]);
    let script = "touch /x 2> /dev/null || echo read-only";
    podman.run(&["--read-only"], &["sh", "-c", script]).ok().prints("read-only\n");
    let here = podman.home().join("user/file");
    let volume = format!("{}:/v", here.parent().unwrap().display());
    podman.run(&["--volume", &volume], &["sh", "-c", "echo x > /v/file"]).ok();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&fs::metadata(here).unwrap()), 47_112);
    podman.run(&["--pid", "host", "--network", "host"], &["true"]).ok();

    let script = "trap 'exit 3' TERM; while :; do sleep 0.02; done";
    let name = podman.detach(&[], &["sh", "-c", script]);
    podman.podman(&["exec", &name, "sh", "-c", "id -u; exit 9"]).exits(9).prints("0\n");
    podman.podman(&["exec", "--tty", &name, "tty"]).ok().shows("/dev/pts/0");
    podman.podman(&["exec", &name, "no-such"]).fails_with(127, &["executable file not found in"]);
    podman.podman(&["top", &name, "args"]).ok().shows("trap");
    podman.podman(&["stop", "--time", "20", &name]).ok();
    podman.podman(&["wait", &name]).ok().prints("3\n");
    podman.remove(&name);
}

/// Compiled in the background, into the user's cache.
#[test]
fn a_module_of_a_users() {
    kiln_only!("it runs no wasm");
    needs_wasm!();
    let podman = Podman::rootless();
    let name = "localhost/kiln-test/hello:1";
    let image = Image::of_example(name, "hello.wasm", podman.home());
    podman.load(&image);
    let run = || {
        let flags = ["--rm", "--annotation", "run.oci.handler=wasm", name];
        podman.run_cli(&flags, &[]).output().ok().prints("hello from wasm\n")
    };
    assert_eq!(run().stderr, "");
    let cache = podman.home().join("user/.cache/kiln/aot");
    eventually("the compiled module", || {
        fs::read_dir(&cache).is_ok_and(|entries| {
            entries.flatten().any(|entry| entry.file_name().to_string_lossy().ends_with(".aot"))
        })
    });
    run();
    let image = podman.podman(&["image", "exists", BUSYBOX]);
    image.ok();
}
