//! `ctr run` in a containerd of the tests' own, with runc's shim and with kiln's.

#![allow(missing_docs, clippy::unwrap_used)]

use kiln_integration::containerd::{Containerd, Shared, Shim};
use kiln_integration::image::Image;
use kiln_integration::{for_each_shim, fresh_id, kiln_only, needs_wasm};

const BUSYBOX: &str = "localhost/kiln-test/busybox:1";
const VARIANT: &str = "module.wasm.image/variant=compat";

for_each_shim!(a_linux_program, a_module, what_is_left_is_found);

fn with_busybox() -> Shared {
    let containerd = Containerd::shared(false);
    containerd.import(&Image::busybox(BUSYBOX, containerd.home()));
    containerd
}

fn a_linux_program(shim: Shim) {
    let containerd = with_busybox();
    let id = fresh_id();
    let command = [&id, "sh", "-c", "echo hello; exit 3"];
    containerd.run_cli(shim, &["--rm"], BUSYBOX, &command).output().exits(3).prints("hello\n");
    assert!(!containerd.bundle(&containerd.namespace, &id).exists());
}

fn a_module(shim: Shim) {
    kiln_only!("it runs no wasm");
    needs_wasm!();
    let containerd = Containerd::shared(false);
    let image = Image::of_example("localhost/kiln-test/hello:1", "hello.wasm", containerd.home());
    containerd.import(&image);
    let flags = ["--rm", "--annotation", VARIANT];
    let run = containerd.run_cli(shim, &flags, &image.name, &[&fresh_id()]);
    run.output().ok().prints("hello from wasm\n");
}

/// The search of the harness, which everything else relies on.
fn what_is_left_is_found(shim: Shim) {
    let containerd = Containerd::start(false);
    containerd.import(&Image::busybox(BUSYBOX, containerd.home()));
    assert_eq!(containerd.leftovers(), [""; 0]);
    let id = fresh_id();
    let run = containerd.run_cli(shim, &["--detach"], BUSYBOX, &[&id, "sleep", "1000"]);
    run.output().ok();
    let left = containerd.leftovers();
    let has = |word: &str| left.iter().any(|what| what.starts_with(word));
    for word in ["process", "mount", "cgroup", "socket"] {
        assert!(has(word), "no {word} in {left:#?}");
    }
    containerd.ctr(&["tasks", "delete", "--force", &id]).ok();
}
