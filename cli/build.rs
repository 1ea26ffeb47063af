//! Makes the kernel start `kiln` at `kiln_entry` (src/entry.rs) instead of libc's `_start`, and puts
//! the functions that are executed for every container side by side (scripts/order).

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=functions.order");
    let is = |name, value| std::env::var(name).is_ok_and(|found| found == value);
    if is("CARGO_CFG_TARGET_ARCH", "x86_64") {
        println!("cargo::rustc-link-arg-bins=-Wl,--entry=kiln_entry");
    }
    // The linker's own name for it: lld, which rustc brings along, has it, GNU ld has not.
    if is("PROFILE", "release") {
        let list = concat!(env!("CARGO_MANIFEST_DIR"), "/functions.order");
        println!("cargo::rustc-link-arg-bins=-Wl,--symbol-ordering-file={list}");
        // What a later version does not have is not missed.
        println!("cargo::rustc-link-arg-bins=-Wl,--no-warn-symbol-ordering");
    }
}
