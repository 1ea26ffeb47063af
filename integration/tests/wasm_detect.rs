//! Which containers are wasm: annotations in their order, and what the
//! entrypoint is.

#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;

use kiln_integration::{Bundle, examples, needs_wasm};

const VARIANT: &str = "module.wasm.image/variant";
const HANDLER: &str = "run.oci.handler";
const SANDBOX: [&str; 2] =
    ["io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType"];

fn module() -> Bundle {
    Bundle::wasm("hello", &[]).no_annotations()
}

fn linux() -> Bundle {
    Bundle::sh("echo linux")
}

#[test]
fn every_annotation_that_means_wasm() {
    needs_wasm!();
    for (name, value) in [
        (VARIANT, "compat"),
        (VARIANT, "compat-smart"),
        (HANDLER, "wasm"),
        (HANDLER, "wasmedge"),
        (HANDLER, "wasm-smart"),
    ] {
        let c = module().annotation(name, value).container();
        c.run().ok().prints("hello from wasm\n");
    }
}

#[test]
fn without_an_annotation_a_module_is_native() {
    needs_wasm!();
    let bundle = module();
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(bundle.rootfs().join("hello.wasm"), mode).unwrap();
    bundle.container().run().fails(&["exec format error"]);
}

#[test]
fn unknown_values_are_errors() {
    needs_wasm!();
    for (name, value) in [
        (HANDLER, "wasmtime"),
        (HANDLER, "krun"),
        (HANDLER, ""),
        (VARIANT, "component"),
        (VARIANT, "Compat"),
        (VARIANT, ""),
    ] {
        for bundle in [module(), linux()] {
            let c = bundle.annotation(name, value).container();
            c.create().fails(&[name, value]);
            c.assert_nothing_left();
        }
    }
}

#[test]
fn a_linux_sidecar_of_a_smart_pod_is_linux() {
    needs_wasm!();
    for (name, value) in [(VARIANT, "compat-smart"), (HANDLER, "wasm-smart")] {
        linux().annotation(name, value).container().run().ok().prints("linux\n");
    }
}

#[test]
fn a_linux_program_where_wasm_is_demanded_is_refused() {
    needs_wasm!();
    for (name, value) in [(VARIANT, "compat"), (HANDLER, "wasm"), (HANDLER, "wasmedge")] {
        let c = linux().annotation(name, value).container();
        c.create().fails(&["not a WebAssembly module"]);
        c.assert_nothing_left();
    }
}

#[test]
fn the_pause_container_is_native() {
    needs_wasm!();
    for sandbox in SANDBOX {
        for (name, value) in [(VARIANT, "compat"), (HANDLER, "wasm"), (HANDLER, "wasmtime")] {
            let c = linux().annotation(name, value).annotation(sandbox, "sandbox").container();
            c.run().ok().prints("linux\n");
        }
    }
}

#[test]
fn other_containers_of_a_pod_are_wasm() {
    needs_wasm!();
    for sandbox in SANDBOX {
        let c = module().annotation(VARIANT, "compat").annotation(sandbox, "container");
        c.container().run().ok().prints("hello from wasm\n");
    }
}

/// crun's key first, then containerd's.
#[test]
fn the_handler_comes_before_the_variant() {
    needs_wasm!();
    let c = linux().annotation(HANDLER, "wasm-smart").annotation(VARIANT, "compat").container();
    c.run().ok().prints("linux\n");
}

#[test]
fn a_module_of_another_name_is_known_by_its_first_bytes() {
    needs_wasm!();
    let bytes = fs::read(examples::find("hello.wasm").unwrap()).unwrap();
    for value in ["compat", "compat-smart"] {
        let c = Bundle::module("application", &bytes).annotation(VARIANT, value).container();
        c.run().ok().prints("hello from wasm\n");
    }
}

#[test]
fn a_module_as_text() {
    needs_wasm!();
    let text = br#"(module
        (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
        (func (export "_start") (call $exit (i32.const 23))))"#;
    for value in ["compat", "compat-smart"] {
        let c = Bundle::module("program.wat", text).annotation(VARIANT, value).container();
        c.run().exits(23);
    }
}

#[test]
fn a_module_is_found_in_path_and_in_the_working_directory() {
    needs_wasm!();
    let bytes = fs::read(examples::find("hello.wasm").unwrap()).unwrap();
    let bundle = || Bundle::module("placeholder.wasm", &bytes).args(&["program.wasm"]);
    for folder in ["usr/bin", "work"] {
        let bundle = bundle().set("/process/cwd", "/work".into());
        fs::create_dir_all(bundle.rootfs().join("work")).unwrap();
        fs::create_dir_all(bundle.rootfs().join(folder)).unwrap();
        fs::write(bundle.rootfs().join(folder).join("program.wasm"), &bytes).unwrap();
        bundle.container().run().ok().prints("hello from wasm\n");
    }
}

#[test]
fn a_module_in_a_bind_mount() {
    needs_wasm!();
    let bundle = module().annotation(VARIANT, "compat").args(&["/app/mounted.wasm"]);
    let source = bundle.scratch();
    fs::copy(examples::find("exit.wasm").unwrap(), source.join("mounted.wasm")).unwrap();
    let c = bundle.arguments(&["8"]).bind(&source, "/app", &["bind", "ro"]).container();
    c.run().exits(8);
}
