//! From the plan to the program, with libseccomp.

use std::fs::File;
use std::io::Read as _;
use std::io::Seek as _;

use libc::sock_filter;
use libseccomp::error::SeccompError;
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use oci_spec::runtime::{Arch, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator};
use rustix::fs::MemfdFlags;
use rustix::io::Errno;

use super::condense::condense;
use super::enosys;
use super::plan::{Action, Plan, Rule};
use super::{Error, MAX_INSTRUCTIONS};

/// Size of a BPF instruction in bytes.
pub(super) const INSTRUCTION: usize = size_of::<sock_filter>();
/// From how many names on the filter is a binary tree instead of a list.
///
/// runc's choice: the tree has four calls to a leaf, and libseccomp up to 2.5.4 makes a wrong one
/// where there are no rules at all.
const TREE_FROM: usize = 33;

/// Compiles `plan` with this machine's libseccomp.
///
/// # Errors
/// [`Error::Library`] if libseccomp refuses a part of the plan, [`Error::TooLong`] if the kernel
/// would refuse the result.
pub(super) fn compile(plan: &Plan<'_>) -> Result<Vec<sock_filter>, Error> {
    let mut program = enosys::stub(plan);
    program.extend(export(&build(plan)?)?);
    if let Some(shorter) = condense(&program) {
        program = shorter;
    }
    if program.len() > MAX_INSTRUCTIONS {
        return Err(Error::TooLong(program.len()));
    }
    Ok(program)
}

/// The plan as libseccomp's context. The context's own flags (log, no_new_privs and so on) stay
/// as they are: they concern seccomp_load(3), which is not used.
pub(super) fn build(plan: &Plan<'_>) -> Result<ScmpFilterContext, Error> {
    let default = plan.default.ret();
    let mut context = ScmpFilterContext::new(action(plan.default))
        .map_err(refused(|| "linux.seccomp.defaultAction".to_owned()))?;
    for (index, arch) in plan.architectures.iter().enumerate() {
        context
            .add_arch(architecture(*arch))
            .map_err(refused(|| format!("linux.seccomp.architectures[{index}]: {arch}")))?;
    }
    if plan.rules.iter().map(|rule| rule.names.len()).sum::<usize>() >= TREE_FROM
        && let Err(error) = context.set_ctl_optimize(2)
    {
        log::debug!("seccomp: no binary tree with this libseccomp: {error}");
    }
    for (index, rule) in plan.rules.iter().enumerate() {
        // libseccomp refuses a rule that does what happens without it.
        if rule.action.ret() != default {
            add(&mut context, index, rule)?;
        }
    }
    Ok(context)
}

fn add(context: &mut ScmpFilterContext, index: usize, rule: &Rule<'_>) -> Result<(), Error> {
    let action = action(rule.action);
    let conditions: Vec<_> = rule.args.iter().map(condition).collect();
    let any = rule.any_condition();
    for name in rule.names {
        let Ok(syscall) = ScmpSyscall::from_name(name) else {
            log::debug!("seccomp: system call {name} is not known to this libseccomp: ignored");
            continue;
        };
        let added = if any {
            conditions
                .chunks(1)
                .try_for_each(|one| context.add_rule_conditional(action, syscall, one).map(drop))
        } else {
            context.add_rule_conditional(action, syscall, &conditions).map(drop)
        };
        added.map_err(refused(|| format!("linux.seccomp.syscalls[{index}]: {name}")))?;
    }
    Ok(())
}

fn refused(field: impl FnOnce() -> String) -> impl FnOnce(SeccompError) -> Error {
    |source| Error::Library { field: field(), source }
}

/// Reads the program out of libseccomp, which before 2.6 writes it to a descriptor only.
pub(super) fn export(context: &ScmpFilterContext) -> Result<Vec<sock_filter>, Error> {
    let memory = rustix::fs::memfd_create("seccomp", MemfdFlags::CLOEXEC)?;
    context.export_bpf(&memory).map_err(refused(|| "linux.seccomp".to_owned()))?;
    let mut bytes = Vec::new();
    let mut memory = File::from(memory);
    memory
        .rewind()
        .and_then(|()| memory.read_to_end(&mut bytes))
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(decode(&bytes))
}

/// Instructions from their bytes in memory; an incomplete last one is left out.
pub(super) fn decode(bytes: &[u8]) -> Vec<sock_filter> {
    let (instructions, _) = bytes.as_chunks::<INSTRUCTION>();
    instructions
        .iter()
        .map(|&[c0, c1, jt, jf, k0, k1, k2, k3]| sock_filter {
            code: u16::from_ne_bytes([c0, c1]),
            jt,
            jf,
            k: u32::from_ne_bytes([k0, k1, k2, k3]),
        })
        .collect()
}

fn action(action: Action) -> ScmpAction {
    match action.kind {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => {
            ScmpAction::KillThread
        }
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(action.errno.into()),
        LinuxSeccompAction::ScmpActNotify => ScmpAction::Notify,
        LinuxSeccompAction::ScmpActTrace => ScmpAction::Trace(action.errno),
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
    }
}

fn condition(arg: &LinuxSeccompArg) -> ScmpArgCompare {
    let (op, datum) = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
        // `value` is the mask here, `valueTwo` what the rest must equal.
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (ScmpCompareOp::MaskedEqual(arg.value()), arg.value_two().unwrap_or(0))
        }
    };
    ScmpArgCompare::new(arg.index() as u32, op, datum)
}

/// libseccomp's name for an architecture of the specification.
pub(super) fn architecture(arch: Arch) -> ScmpArch {
    match arch {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        Arch::ScmpArchLoongarch64 => ScmpArch::Loongarch64,
        Arch::ScmpArchM68k => ScmpArch::M68k,
        Arch::ScmpArchSh => ScmpArch::Sh,
        Arch::ScmpArchSheb => ScmpArch::Sheb,
    }
}
