//! Containers without a container: a rootfs, a spec, and the engine's three steps.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::AsFd;

use oci_spec::runtime::Mount;
use tempfile::TempDir;

use super::*;

/// The imports that the modules below use.
const WASI: &str = r#"
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (import "wasi_snapshot_preview1" "args_sizes_get" (func $args (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "environ_sizes_get" (func $env (param i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "path_open"
        (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)"#;

fn program(body: &str) -> Vec<u8> {
    wat::parse_str(format!("(module {WASI} (func $start (export \"_start\") {body}))")).unwrap()
}

struct Bundle {
    rootfs: TempDir,
    spec: Spec,
}

impl Bundle {
    /// A rootfs with `content` as the entrypoint /app.wasm.
    fn new(content: &[u8]) -> Self {
        let rootfs = TempDir::new().unwrap();
        fs::write(rootfs.path().join("app.wasm"), content).unwrap();
        let mut spec = Spec::default();
        let mut process = spec.process().clone().unwrap();
        process.set_args(Some(vec!["/app.wasm".to_owned()]));
        spec.set_process(Some(process)).set_mounts(None);
        Bundle { rootfs, spec }
    }

    fn annotate(mut self, name: &str, value: &str) -> Self {
        self.spec.set_annotations(Some(HashMap::from([(name.to_owned(), value.to_owned())])));
        self
    }

    /// `create`: without a folder, so that nothing is compiled.
    fn create(&self) -> Result<WasmEdge, String> {
        let rootfs = File::open(self.rootfs.path()).unwrap();
        let mut engine = WasmEdge::new(None);
        engine.prepare(&self.spec, rootfs.as_fd(), true).map_err(|error| error.to_string())?;
        engine.load(rootfs.as_fd()).map_err(|error| error.to_string())?;
        Ok(engine)
    }

    /// `create` and `start`; the working directory is the rootfs as the host names it.
    fn run(&self, args: &[&str], env: &[&str]) -> i32 {
        let owned = |list: &[&str]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
        let workload = Workload {
            args: &owned(args),
            env: &owned(env),
            cwd: self.rootfs.path(),
            mounts: Vec::new(),
            is_init: true,
        };
        self.create().unwrap().run(&workload).unwrap()
    }

    fn refusal(&self) -> String {
        self.create().map(drop).unwrap_err()
    }
}

#[test]
fn every_exit_status_arrives() {
    for status in 0..=255 {
        // From within nested calls.
        let module = format!(
            "(module {WASI} (table funcref (elem $inner))
             (func $inner (call $exit (i32.const {status})) unreachable)
             (func $outer (call_indirect (i32.const 0)) unreachable)
             (func (export \"_start\") (call $outer) unreachable))"
        );
        let bundle = Bundle::new(&wat::parse_str(module).unwrap());
        assert_eq!(bundle.run(&["/app.wasm"], &[]), status);
    }
    assert_eq!(Bundle::new(&program("")).run(&[], &[]), 0, "without proc_exit");
    assert_eq!(Bundle::new(&program("(call $exit (i32.const -2))")).run(&[], &[]), 254);
}

#[test]
fn traps_are_134() {
    for body in [
        "unreachable",
        "(drop (i32.load (i32.const -4)))",
        "(drop (i32.div_s (i32.const 1) (i32.const 0)))",
    ] {
        assert_eq!(Bundle::new(&program(body)).run(&["/app.wasm"], &[]), 134, "{body}");
    }
    let in_start = "(module (func $f unreachable) (start $f) (func (export \"_start\")))";
    assert_eq!(Bundle::new(&wat::parse_str(in_start).unwrap()).run(&["x"], &[]), 134);
    let segment = "(module (memory 1) (data (i32.const 65536) \"x\") (func (export \"_start\")))";
    assert_eq!(Bundle::new(&wat::parse_str(segment).unwrap()).run(&["x"], &[]), 134);
}

#[test]
fn arguments_and_environment_are_the_specs() {
    let count = "(drop (call $args (i32.const 0) (i32.const 4)))
        (drop (call $env (i32.const 8) (i32.const 12)))
        (call $exit (i32.add (i32.mul (i32.const 16) (i32.load (i32.const 0)))
            (i32.load (i32.const 8))))";
    let bundle = Bundle::new(&program(count));
    assert_eq!(bundle.run(&["/app.wasm", "a b", ""], &["A=1", "B="]), 3 * 16 + 2);
    assert_eq!(bundle.run(&["/app.wasm"], &[]), 16, "nothing of ours");
}

#[test]
fn the_working_directory_is_the_first_one_open() {
    let read = "(local $errno i32)
        (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 1))
        (memory.init $name (i32.const 32) (i32.const 0) (i32.const 5))
        (local.set $errno (call $open (i32.const 3) (i32.const 1) (i32.const 32) (i32.const 5)
            (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 16)))
        (if (local.get $errno) (then (call $exit (local.get $errno))))
        (drop (call $read (i32.load (i32.const 16)) (i32.const 0) (i32.const 1) (i32.const 24)))
        (call $exit (i32.load8_u (i32.const 64)))";
    let text = format!("(module {WASI} (data $name \"probe\") (func (export \"_start\") {read}))");
    let bundle = Bundle::new(&wat::parse_str(text).unwrap());
    let enoent = 44; // WASI's
    assert_eq!(bundle.run(&["/app.wasm"], &[]), enoent, "not there yet");
    fs::write(bundle.rootfs.path().join("probe"), "*").unwrap();
    // More than once: WasmEdge's own order depends on the state of the heap.
    for _ in 0..50 {
        assert_eq!(bundle.run(&["/app.wasm"], &[]), i32::from(b'*'));
    }
}

#[test]
fn what_is_not_a_program_is_refused_at_create() {
    let refused = |content: &[u8], wanted: &str| {
        let text = Bundle::new(content).refusal();
        assert!(text.contains(wanted) && text.contains("/app.wasm"), "{text} / {wanted}");
        assert!(!text.contains('\n'), "{text}");
    };
    refused(b"", "empty");
    refused(b"\0asm\x01", "truncated");
    refused(&program("")[..60], "malformed");
    refused(b"\0asm\x0d\0\x01\0", "component");
    refused(b"\0asm\x02\0\0\0", "version 2");
    refused(&fs::read("/proc/self/exe").unwrap(), "ELF");
    refused(b"#!/bin/sh\n", "script");
    let text = |text: &str| wat::parse_str(text).unwrap();
    refused(&text("(module (func (export \"run\")))"), "_start");
    refused(&text("(module (func (export \"_start\") (i32.const 1)))"), "type mismatch");
    refused(&text("(module (memory i64 1) (func (export \"_start\")))"), "Memory64");
    let import = |import: &str| text(&format!("(module {import} (func (export \"_start\")))"));
    refused(&import("(import \"env\" \"gadget\" (func))"), "env.gadget");
    refused(&import("(import \"wasi_unstable\" \"fd_write\" (func))"), "wasi_unstable.fd_write");
    refused(
        &import("(import \"wasi_snapshot_preview1\" \"fly\" (func))"),
        "wasi_snapshot_preview1.fly",
    );
    refused(
        &import("(import \"wasi_snapshot_preview1\" \"proc_exit\" (func (param i64)))"),
        "wasi_snapshot_preview1.proc_exit",
    );
    let mut missing = Bundle::new(b"");
    fs::remove_file(missing.rootfs.path().join("app.wasm")).unwrap();
    assert!(missing.refusal().contains("no such file"), "{}", missing.refusal());
    missing.spec.set_process(None);
    assert!(missing.refusal().contains("process.args"), "{}", missing.refusal());
}

#[test]
fn finished_proposals_are_there_for_modules_that_need_them() {
    for (what, module) in [
        ("tail call", "(func $f (return_call $g)) (func $g (call $exit (i32.const 7)))"),
        (
            "extended const",
            "(global $g i32 (i32.add (i32.const 3) (i32.const 4)))
             (func $f (call $exit (global.get $g)))",
        ),
        (
            "multi-memory",
            "(memory $m 1) (func $f (i32.store $m (i32.const 0) (i32.const 7))
             (call $exit (i32.load $m (i32.const 0))))",
        ),
        (
            "exceptions",
            "(tag $t (param i32)) (func $f (block $caught (result i32)
             (try_table (catch $t $caught) (throw $t (i32.const 7))) (i32.const 1))
             (call $exit))",
        ),
    ] {
        let text = format!("(module {WASI} {module} (func (export \"_start\") (call $f)))");
        let bundle = Bundle::new(&wat::parse_str(text).unwrap());
        assert_eq!(bundle.run(&["/app.wasm"], &[]), 7, "{what}");
    }
}

/// A module that exits with 2 when it is interpreted, and with 1 when the native code in its
/// section is run, which is another module's.
fn two_faced() -> Vec<u8> {
    let [one, two] = [1, 2].map(|n| program(&format!("(call $exit (i32.const {n}))")));
    let dir = TempDir::new().unwrap();
    let output = dir.path().join("one.wasm");
    let path = CString::new(output.to_str().unwrap()).unwrap();
    let config = sys::Config::new(&[], true);
    sys::compile_into_section(&config, &one, &path).unwrap();
    let compiled = fs::read(output).unwrap();
    // The section is appended to the module as it was.
    assert_eq!(compiled[..one.len()], one);
    [&two, &compiled[one.len()..]].concat()
}

#[test]
fn native_code_of_an_image_is_run_only_if_it_is_trusted() {
    let module = two_faced();
    let trusted = |value| Bundle::new(&module).annotate(annotations::TRUSTED_AOT, value);
    assert_eq!(Bundle::new(&module).run(&["/app.wasm"], &[]), 2);
    assert_eq!(trusted("false").run(&["/app.wasm"], &[]), 2);
    assert_eq!(trusted("true").run(&["/app.wasm"], &[]), 1);
    assert!(trusted("maybe").refusal().contains(annotations::TRUSTED_AOT));
}

#[test]
fn an_entrypoint_in_a_mount_is_loaded_once_it_is_there() {
    let mut bundle = Bundle::new(&program("(call $exit (i32.const 9))"));
    let mut mount = Mount::default();
    mount.set_destination("/".into()).set_typ(Some("tmpfs".into())).set_source(None);
    bundle.spec.set_mounts(Some(vec![mount]));
    assert_eq!(bundle.run(&["/app.wasm"], &[]), 9);
    fs::write(bundle.rootfs.path().join("app.wasm"), b"\x7fELF").unwrap();
    assert!(bundle.refusal().contains("ELF"));
}
