//! Words of classic BPF that the writers of programs share.

use libc::{BPF_JMP, BPF_K, sock_filter};

/// Offset of the call's number in struct seccomp_data.
pub(super) const NR: u32 = 0;
/// Offset of the architecture, AUDIT_ARCH_*.
pub(super) const ARCH: u32 = 4;
/// Set in the numbers of the x32 ABI, which shares AUDIT_ARCH_X86_64.
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// An instruction that jumps nowhere.
pub(super) fn instruction(code: u32, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

/// Compares the accumulator with `k` and skips `jt` or `jf` instructions.
pub(super) fn jump(condition: u32, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code: (BPF_JMP | condition | BPF_K) as u16, jt, jf, k }
}
