//! Short containers, one after the other: neither the shim nor its warm parent nor containerd
//! grows.

#![allow(missing_docs, clippy::unwrap_used)]

use kiln_integration::chaos::{
    IMAGE, Lab, Memory, WASM, at_once, descriptors, is_long, memory, warm_parent, zombies,
};
use kiln_integration::containerd::Shim;
use kiln_integration::{eventually, fresh_id, kiln_only, needs_shim, needs_wasm};

/// How many: 2,000 have to do.
fn count() -> usize {
    if is_long() { 2000 } else { 100 }
}

/// A process in figures.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Size {
    descriptors: usize,
    zombies: usize,
    memory: Memory,
}

impl Size {
    fn of(pid: i32) -> Self {
        Size { descriptors: descriptors(pid), zombies: zombies(pid), memory: memory(pid) }
    }
}

#[test]
fn in_one_shim() {
    kiln_only!("it runs no wasm");
    needs_wasm!();
    needs_shim!();
    let lab = Lab::new();
    let anchor = fresh_id();
    lab.define_in_group(&anchor, &WASM, &["/sleep.wasm", "100000"]);
    lab.start(&anchor).ok();
    let shim = lab.shim(&anchor);
    let group = lab.group_annotation();
    let flags = ["--annotation", &group];
    // What is loaded once is loaded.
    run(&lab, &flags, 40);
    let warm = warm_parent(shim).unwrap();
    let [one, two] = [shim, warm].map(settled);
    let containerd = settled(lab.containerd.pid());
    run(&lab, &flags, count());
    assert_eq!((lab.shim(&anchor), warm_parent(shim)), (shim, Some(warm)));
    compare("shim", one, settled(shim), 256);
    compare("warm parent", two, settled(warm), 256);
    compare("containerd", containerd, settled(lab.containerd.pid()), 16 << 10);
    lab.remove(&anchor);
    lab.assert_nothing_left();
}

#[test]
fn each_in_its_own_shim() {
    kiln_only!("it runs no wasm");
    needs_wasm!();
    needs_shim!();
    let lab = Lab::new();
    run(&lab, &[], 40);
    let before = settled(lab.containerd.pid());
    run(&lab, &[], count());
    compare("containerd", before, settled(lab.containerd.pid()), 16 << 10);
    lab.assert_nothing_left();
}

/// Linux and wasm in turn, two at a time, each to its end.
fn run(lab: &Lab, flags: &[&str], count: usize) {
    let numbers: Vec<usize> = (0..count).collect();
    at_once(&numbers, |number| {
        let id = fresh_id();
        let (kind, command, prints): (&[&str], &[&str], &str) = match number % 2 {
            0 => (&[], &[&id, "echo", "short"], "short\n"),
            _ => (&WASM, &[&id, "/hello.wasm"], "hello from wasm\n"),
        };
        let flags = [&["--rm"], flags, kind].concat();
        let run = lab.containerd.run_cli(Shim::Kiln, &flags, IMAGE, command);
        run.output().ok().prints(prints);
    });
}

/// Once nothing is on its way out any more: containerd closes what it has read with a delay.
fn settled(pid: i32) -> Size {
    let mut last = Size::of(pid);
    eventually("a process to come to rest", || {
        std::thread::sleep(std::time::Duration::from_millis(200));
        let size = Size::of(pid);
        std::mem::replace(&mut last, size).descriptors == size.descriptors
    });
    last
}

/// Asserts that nothing has grown, but memory by what an allocator keeps for a while.
#[track_caller]
fn compare(what: &str, before: Size, after: Size, slack_kib: u64) {
    eprintln!("{what} before {before:?}\n{what} after  {after:?}");
    assert_eq!(after.zombies, 0, "{what}");
    assert!(after.descriptors <= before.descriptors + 2, "{what}: {before:?}, then {after:?}");
    let grown = after.memory.anonymous.saturating_sub(before.memory.anonymous);
    assert!(grown <= slack_kib, "{what} has grown by {grown} KiB");
}
