//! What the fuzz target (fuzz/) calls; not part of the crate otherwise.

use std::collections::BTreeSet;

use libc::sock_filter;
use oci_spec::runtime::LinuxSeccomp;

use super::machine::{Call, run};
use super::plan::Plan;
use super::{compile, condense, enosys};

/// Compiles the section and compares the condensed program with libseccomp's own, for calls
/// between all numbers that it knows. `more` is tried as well.
///
/// # Panics
/// They decide differently.
pub fn check(section: &LinuxSeccomp, more: [u64; 2]) {
    let Ok(plan) = Plan::new(section) else { return };
    assert!(!plan.canonical().is_empty());
    let Ok(context) = compile::build(&plan) else { return };
    let Ok(program) = compile::export(&context) else { return };
    let mut whole = enosys::stub(&plan);
    whole.extend(program);
    if let Some(condensed) = condense::condense(&whole) {
        assert!(condensed.len() <= whole.len());
        compare(&whole, &condensed, more);
    }
}

fn compare(whole: &[sock_filter], condensed: &[sock_filter], more: [u64; 2]) {
    let constants: BTreeSet<u32> = whole.iter().map(|instruction| instruction.k).collect();
    let around = constants.iter().flat_map(|&k| [k.wrapping_sub(1), k, k.wrapping_add(1)]);
    let numbers: Vec<u32> = around.chain(more.map(|word| word as u32)).take(1500).collect();
    // Those of x86_64, i386 and aarch64, one that nobody has, and one that is asked for.
    let architectures = [0xc000_003e, 0x4000_0003, 0xc000_00b7, 7, (more[0] >> 32) as u32];
    let arguments = [0, more[0], more[1], u64::MAX, u64::from(numbers[numbers.len() / 2])];
    for &nr in &numbers {
        for arch in architectures {
            for argument in arguments {
                let call = Call { arch, nr, args: [argument; 6] };
                assert_eq!(run(condensed, call).ret, run(whole, call).ret, "{call:?}");
            }
        }
    }
}
