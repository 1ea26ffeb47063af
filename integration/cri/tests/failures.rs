//! Containers that cannot be started: their reason is in what CRI answers, where `kubectl describe`
//! shows it, not only in a log.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;

use kiln_integration::containerd::{Containerd, Shim};
use kiln_integration::image::Image;
use kiln_integration::{for_each_shim, json, kiln_only, needs_wasm};
use kiln_integration_cri::api::ContainerState;
use kiln_integration_cri::{Manifest, Pod, import};

for_each_shim!(
    a_module_that_is_not_there,
    a_file_that_is_no_module,
    an_import_that_nobody_has,
    a_module_without_a_start,
    a_trap_at_the_start,
    a_program_that_is_not_there,
    an_unknown_annotation
);

/// A pod of this module, as text: /main.wat.
fn pod_of(shim: Shim, name: &str, module: &str, test: impl FnOnce(&Pod)) {
    let containerd = Containerd::shared(true);
    let image = format!("localhost/kiln-test/{name}:1");
    import(&containerd, &image, |folder| {
        let rootfs = tempfile::tempdir_in(folder).unwrap();
        fs::write(rootfs.path().join("main.wat"), module).unwrap();
        Image::of_folder(&image, rootfs.path(), &json!({}), folder)
    });
    let mut manifest = Manifest::load("pods/hello");
    let container = manifest.first();
    container.image = image;
    container.command = vec!["/main.wat".to_owned()];
    let pod = Pod::sandbox(&containerd, shim, &manifest);
    test(&pod);
    pod.remove();
}

/// Starting the first container fails, for a reason that has all of `parts` in it: in the answer,
/// and in the container's status.
#[track_caller]
fn is_refused(pod: &Pod, name: &str, parts: &[&str]) {
    let container = pod.create(name).unwrap();
    let answer = container.start().unwrap_err();
    let status = container.status();
    for part in parts {
        assert!(answer.message.contains(part), "no {part:?} in {answer}");
        assert!(status.message.contains(part), "no {part:?} in {status:?}");
    }
    assert_eq!(status.state(), ContainerState::Exited, "{status:?}");
    assert_eq!((&*status.reason, status.exit_code), ("StartError", 128), "{status:?}");
}

fn a_module_that_is_not_there(shim: Shim) {
    needs_wasm!();
    let containerd = Containerd::shared(true);
    let mut manifest = Manifest::load("pods/hello");
    manifest.first().command = vec!["/gone.wasm".to_owned()];
    let pod = Pod::sandbox(&containerd, shim, &manifest);
    is_refused(&pod, "hello", &["/gone.wasm", "no such file or directory"]);
    pod.remove();
}

fn a_file_that_is_no_module(shim: Shim) {
    needs_wasm!();
    pod_of(shim, "none", "#!/bin/sh\n", |pod| {
        is_refused(pod, "hello", &["/main.wat"]);
    });
}

fn an_import_that_nobody_has(shim: Shim) {
    needs_wasm!();
    let module = r#"(module (import "env" "missing" (func)) (func (export "_start") call 0))"#;
    pod_of(shim, "import", module, |pod| {
        is_refused(pod, "hello", &["/main.wat", "env", "missing"]);
    });
}

fn a_module_without_a_start(shim: Shim) {
    needs_wasm!();
    pod_of(shim, "empty", "(module)", |pod| {
        is_refused(pod, "hello", &["/main.wat", "_start"]);
    });
}

/// It has started by then, so it is its end that is told, and what the kubelet shows of that.
fn a_trap_at_the_start(shim: Shim) {
    needs_wasm!();
    pod_of(shim, "trap", r#"(module (func (export "_start") unreachable))"#, |pod| {
        let container = pod.start("hello");
        let status = container.await_exit();
        assert_eq!((&*status.reason, status.exit_code), ("Error", 134), "{status:?}");
        assert!(container.stderr().contains("unreachable"), "{:?}", container.log());
        let message = container.termination_message();
        assert!(message.contains("unreachable"), "{message:?}");
    });
}

fn a_program_that_is_not_there(shim: Shim) {
    let containerd = Containerd::shared(true);
    let mut manifest = Manifest::load("pods/sidecar");
    manifest.spec.containers[1].command = vec!["gone".to_owned()];
    let pod = Pod::sandbox(&containerd, shim, &manifest);
    is_refused(&pod, "server", &["exec: \"gone\": executable file not found in $PATH"]);
    pod.remove();
}

fn an_unknown_annotation(shim: Shim) {
    kiln_only!("the annotation is none of its own");
    let containerd = Containerd::shared(true);
    let mut manifest = Manifest::load("pods/hello");
    let annotations = &mut manifest.metadata.annotations;
    annotations.insert("run.oci.handler".to_owned(), "krun".to_owned());
    let pod = Pod::sandbox(&containerd, shim, &manifest);
    is_refused(&pod, "hello", &["run.oci.handler", "krun"]);
    pod.remove();
}
