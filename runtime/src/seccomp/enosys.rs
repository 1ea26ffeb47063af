//! ENOSYS for system calls that are newer than the profile.
//!
//! A profile that lists what is allowed answers every call that its author did not know with
//! EPERM, and a libc that tries a new call first and falls back on ENOSYS breaks. As runc does, a
//! few instructions before the filter answer ENOSYS to each call whose number is above all that
//! the profile names for the architecture. Nothing is allowed by it that the filter denies.
//!
//! The kernel still derives its bitmap of always allowed calls from the whole program: the stub
//! has only instructions that its emulation knows (`seccomp_is_const_allow`).

use libc::{BPF_ABS, BPF_JA, BPF_JEQ, BPF_JGT, BPF_JMP, BPF_JSET, BPF_K, BPF_LD, BPF_RET, BPF_W};
use libc::{SECCOMP_RET_ERRNO, sock_filter};
use libseccomp::ScmpSyscall;
use oci_spec::runtime::{Arch, LinuxSeccompAction};

use super::bpf::{ARCH, NR, X32_BIT, instruction, jump};
use super::compile::architecture;
use super::plan::Plan;

const AUDIT_ARCH_X86_64: u32 = Arch::ScmpArchX86_64 as u32;
/// The architecture that this is compiled for, as libseccomp counts it; the values of all but x32
/// are the kernel's AUDIT_ARCH_*.
const NATIVE: Option<Arch> = if cfg!(target_arch = "x86_64") {
    Some(Arch::ScmpArchX86_64)
} else if cfg!(target_arch = "aarch64") {
    Some(Arch::ScmpArchAarch64)
} else if cfg!(target_arch = "riscv64") {
    Some(Arch::ScmpArchRiscv64)
} else if cfg!(target_arch = "s390x") {
    Some(Arch::ScmpArchS390x)
} else if cfg!(all(target_arch = "powerpc64", target_endian = "little")) {
    Some(Arch::ScmpArchPpc64le)
} else if cfg!(target_arch = "loongarch64") {
    Some(Arch::ScmpArchLoongarch64)
} else if cfg!(target_arch = "arm") {
    Some(Arch::ScmpArchArm)
} else if cfg!(target_arch = "x86") {
    Some(Arch::ScmpArchX86)
} else {
    None
};

/// The highest number that the profile names for one architecture.
struct Newest {
    /// AUDIT_ARCH_*.
    audit_arch: u32,
    /// None if the profile names nothing that this architecture has.
    nr: Option<u32>,
    /// The same for x32, where the profile is for that, too.
    x32: Option<u32>,
}

/// The instructions to put before the filter of `plan`; they leave it by falling out of their end
/// or jumping there. Empty where it would serve nothing.
pub(super) fn stub(plan: &Plan<'_>) -> Vec<sock_filter> {
    let enosys = SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
    // A call that the filter would let through, or hand to a tracer, is left to it.
    let open = matches!(
        plan.default.kind,
        LinuxSeccompAction::ScmpActAllow
            | LinuxSeccompAction::ScmpActLog
            | LinuxSeccompAction::ScmpActTrace
    );
    if open || plan.default.ret() == enosys {
        return Vec::new();
    }
    let mut stub = vec![instruction(BPF_LD | BPF_W | BPF_ABS, ARCH)];
    // The sections are laid end to end, each ending in a jump behind the last: from the back, so
    // that the distance is known.
    let mut sections = Vec::new();
    for newest in newest(plan).iter().rev() {
        let behind = sections.len() as u32;
        sections.splice(0..0, section(newest, behind, enosys));
    }
    if sections.is_empty() {
        return Vec::new();
    }
    stub.append(&mut sections);
    stub
}

/// The instructions for one architecture, entered with the architecture in the accumulator and
/// left with it there, if it is another one. `behind` instructions stand between them and the
/// filter.
fn section(newest: &Newest, behind: u32, enosys: u32) -> Vec<sock_filter> {
    let ret = instruction(BPF_RET | BPF_K, enosys);
    let above = |nr, jt, jf| jump(BPF_JGT, nr, jt, jf);
    let mut body = vec![instruction(BPF_LD | BPF_W | BPF_ABS, NR)];
    match (newest.audit_arch, newest.nr, newest.x32) {
        // setup(2) on s390 stands for every number that the kernel does not know; nobody calls
        // it for itself.
        (arch, Some(nr), _)
            if arch == Arch::ScmpArchS390 as u32 || arch == Arch::ScmpArchS390x as u32 =>
        {
            body.extend([jump(BPF_JEQ, 0, 1, 0), above(nr, 0, 1)]);
        }
        (AUDIT_ARCH_X86_64, Some(nr), Some(x32)) => {
            body.extend([jump(BPF_JSET, X32_BIT, 1, 0), above(nr, 1, 2), above(x32, 0, 1)]);
        }
        (AUDIT_ARCH_X86_64, Some(nr), None) => {
            body.extend([jump(BPF_JSET, X32_BIT, 2, 0), above(nr, 0, 1)]);
        }
        (AUDIT_ARCH_X86_64, None, Some(x32)) => {
            body.extend([jump(BPF_JSET, X32_BIT, 0, 2), above(x32, 0, 1)]);
        }
        (_, Some(nr), _) => body.push(above(nr, 0, 1)),
        (_, None, _) => return Vec::new(),
    }
    body.push(ret);
    body.push(instruction(BPF_JMP | BPF_JA, behind));
    let mut section = vec![jump(BPF_JEQ, newest.audit_arch, 0, body.len() as u8)];
    section.append(&mut body);
    section
}

/// What the profile names for its architectures and the native one, which is always in the filter.
fn newest(plan: &Plan<'_>) -> Vec<Newest> {
    let mut all: Vec<Newest> = Vec::new();
    let given = plan.architectures.iter().filter(|arch| **arch != Arch::ScmpArchNative);
    for arch in NATIVE.iter().chain(given) {
        let highest = highest(plan, *arch);
        let x32 = *arch == Arch::ScmpArchX32;
        let audit_arch = if x32 { AUDIT_ARCH_X86_64 } else { *arch as u32 };
        let at = all.iter().position(|newest| newest.audit_arch == audit_arch);
        let at = at.unwrap_or_else(|| {
            all.push(Newest { audit_arch, nr: None, x32: None });
            all.len() - 1
        });
        let entry = if x32 { &mut all[at].x32 } else { &mut all[at].nr };
        *entry = highest;
    }
    all
}

/// The highest number among the names that `arch` has. Rules that deny count, too: their author
/// knew the call. None below 1: such a profile says nothing about the rest.
fn highest(plan: &Plan<'_>, arch: Arch) -> Option<u32> {
    let arch = architecture(arch);
    let names = plan.rules.iter().flat_map(|rule| rule.names);
    names
        .filter_map(|name| ScmpSyscall::from_name_by_arch(name, arch).ok())
        // Negative: libseccomp's own number for a call that only other architectures have.
        .filter_map(|syscall| u32::try_from(syscall.as_raw_syscall()).ok())
        .max()
        .filter(|nr| *nr > 0)
}
