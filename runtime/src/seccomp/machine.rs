//! A machine for classic BPF, to ask a compiled filter what it does with a call.
//!
//! It takes the instructions that seccomp(2) takes and libseccomp and the stub use, and fails the
//! test on any other, on a jump out of the program and on a load out of struct seccomp_data.

use libc::sock_filter;
use libc::{BPF_ABS, BPF_ALU, BPF_AND, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JMP, BPF_JSET};
use libc::{BPF_K, BPF_LD, BPF_RET, BPF_W};

/// A system call as the filter sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    /// AUDIT_ARCH_*.
    pub arch: u32,
    /// Its number there.
    pub nr: u32,
    /// Its arguments.
    pub args: [u64; 6],
}

/// What running a program came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// SECCOMP_RET_* with its data.
    pub ret: u32,
    /// How many instructions it took.
    pub steps: usize,
}

/// Runs `program` on `call`.
pub(super) fn run(program: &[sock_filter], call: Call) -> Outcome {
    let mut accumulator = 0_u32;
    let mut at = 0;
    for steps in 1.. {
        let sock_filter { code, jt, jf, k } = program[at];
        at += 1;
        let code = u32::from(code);
        let branch = |taken: bool| usize::from(if taken { jt } else { jf });
        match code {
            _ if code == BPF_LD | BPF_W | BPF_ABS => accumulator = word(&call, k),
            _ if code == BPF_ALU | BPF_AND | BPF_K => accumulator &= k,
            _ if code == BPF_JMP | BPF_JA => at += k as usize,
            _ if code == BPF_JMP | BPF_JEQ | BPF_K => at += branch(accumulator == k),
            _ if code == BPF_JMP | BPF_JGT | BPF_K => at += branch(accumulator > k),
            _ if code == BPF_JMP | BPF_JGE | BPF_K => at += branch(accumulator >= k),
            _ if code == BPF_JMP | BPF_JSET | BPF_K => at += branch(accumulator & k != 0),
            _ if code == BPF_RET | BPF_K => return Outcome { ret: k, steps },
            _ => panic!("instruction {code:#x} at {}", at - 1),
        }
    }
    unreachable!()
}

/// The word at an offset of struct seccomp_data.
fn word(call: &Call, offset: u32) -> u32 {
    assert_eq!(offset % 4, 0);
    match offset {
        0 => call.nr,
        4 => call.arch,
        8 | 12 => 0,
        16..64 => {
            let bytes = call.args[(offset as usize - 16) / 8].to_ne_bytes();
            let (halves, _) = bytes.as_chunks::<4>();
            u32::from_ne_bytes(halves[offset as usize % 8 / 4])
        }
        _ => panic!("load of offset {offset}"),
    }
}
