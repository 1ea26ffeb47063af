//! `linux.seccomp` as a BPF program for seccomp(2).
//!
//! Owns the check of the section, its translation with libseccomp, and the cache of the results:
//! libseccomp takes some ten milliseconds for the default profile of a container engine, a cache
//! hit a fraction of one. Loading the program is init's part, through [`crate::sys`], and so is
//! sending a listener's descriptor to `listenerPath`.
//!
//! Follows runtime-spec v1.3, config-linux.md#seccomp, and runc 1.3 where that leaves room.

mod bpf;
mod cache;
mod compile;
mod condense;
mod enosys;
#[cfg(fuzzing)]
pub mod fuzzing;
mod key;
#[cfg(any(test, fuzzing))]
mod machine;
mod plan;

use libc::sock_filter;
use libseccomp::{ScmpSyscall, ScmpVersion};
use oci_spec::runtime::{Arch, LinuxSeccomp};

pub use cache::Cache;
use key::Key;
use plan::Plan;

/// The longest program that the kernel takes (BPF_MAXINSNS), in instructions.
const MAX_INSTRUCTIONS: usize = 4096;

/// Why a section cannot be used. Nothing has been created or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A field holds what the specification or the kernel does not allow.
    #[error("{field}: {problem}")]
    Field {
        /// Its path in config.json, such as `linux.seccomp.syscalls[3].errnoRet`.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// libseccomp refused a field.
    #[error("{field}: libseccomp: {source}")]
    Library {
        /// Its path in config.json.
        field: String,
        /// libseccomp's reason.
        source: libseccomp::error::SeccompError,
    },
    /// The program could not be read back from libseccomp.
    #[error("linux.seccomp: export the filter: {0}")]
    Export(#[from] rustix::io::Errno),
    /// The program is longer than the kernel takes.
    #[error("linux.seccomp: the filter has {0} instructions, more than {MAX_INSTRUCTIONS}")]
    TooLong(usize),
}

/// A compiled section: a classic BPF program with the flags to load it with.
#[derive(Clone, Debug)]
pub struct Filter {
    program: Vec<sock_filter>,
    flags: u32,
}

impl Filter {
    /// A filter that somebody else has compiled, as it lies in memory. None if that are not 1 to
    /// 4096 instructions; whether they make sense, the kernel looks.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let program = compile::decode(bytes);
        let whole = bytes.len() == program.len() * compile::INSTRUCTION;
        let fits = (1..=MAX_INSTRUCTIONS).contains(&program.len());
        (whole && fits).then_some(Self { program, flags: 0 })
    }

    /// The program, for seccomp(2), SECCOMP_SET_MODE_FILTER: 1 to 4096 instructions.
    pub fn program(&self) -> &[sock_filter] {
        &self.program
    }

    /// The flags for the same call: SECCOMP_FILTER_FLAG_* bits.
    ///
    /// SECCOMP_FILTER_FLAG_TSYNC is never among them: the process that loads the filter has one
    /// thread, for which it means nothing, and with it the call's errors would be thread ids.
    pub fn flags(&self) -> u32 {
        self.flags
    }

    /// Whether loading the program returns a descriptor that must reach `listenerPath`.
    pub fn needs_listener(&self) -> bool {
        self.flags & libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32 != 0
    }
}

/// Compiles `seccomp`, or takes the result from `cache`, where it is put otherwise.
///
/// Only reads the section and, through `cache`, its directory. What the cache cannot give or keep
/// costs time, never the result. A name that this libseccomp does not know is left out (and
/// logged for debugging), as runc and crun do.
///
/// # Errors
/// [`Error::Field`] for what can be known without libseccomp, the others from compiling.
pub fn filter(seccomp: &LinuxSeccomp, cache: Option<&Cache>) -> Result<Filter, Error> {
    let plan = Plan::new(seccomp)?;
    let flags = plan.flags;
    let Some(cache) = cache else {
        return Ok(Filter { program: compile::compile(&plan)?, flags });
    };
    let key = Key::of(&plan);
    if let Some(program) = cache.load(&key) {
        return Ok(Filter { program, flags });
    }
    let program = compile::compile(&plan)?;
    cache.store(&key, &program);
    Ok(Filter { program, flags })
}

/// Refuses a section with a name that this libseccomp does not know, which [`filter`] leaves out.
///
/// # Errors
/// [`Error::Field`] for the first such name.
pub fn refuse_unknown(seccomp: &LinuxSeccomp) -> Result<(), Error> {
    for (index, rule) in seccomp.syscalls().iter().flatten().enumerate() {
        let unknown = |name: &&String| ScmpSyscall::from_name(name).is_err();
        if let Some(name) = rule.names().iter().find(unknown) {
            let field = format!("linux.seccomp.syscalls[{index}].names");
            let problem = format!("this libseccomp knows no system call {name:?}");
            return Err(Error::Field { field, problem });
        }
    }
    Ok(())
}

/// The flags that a section may hold.
pub const FLAGS: [&str; 4] = [
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_TSYNC",
    WAIT_KILLABLE,
];
const WAIT_KILLABLE: &str = "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV";

/// Those of [`FLAGS`] that this kernel knows: all but the last are older than the oldest on which
/// kiln runs, and that one came with 5.19.
pub fn supported_flags() -> Vec<&'static str> {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let mut next = || numbers.next().and_then(Result::ok).unwrap_or(0);
    let new = (next(), next()) >= (5, 19);
    FLAGS.into_iter().filter(|flag| new || *flag != WAIT_KILLABLE).collect()
}

/// The architectures that a section may name and this libseccomp knows.
pub fn architectures() -> Vec<Arch> {
    let all = [
        Arch::ScmpArchAarch64,
        Arch::ScmpArchArm,
        Arch::ScmpArchLoongarch64,
        Arch::ScmpArchM68k,
        Arch::ScmpArchMips,
        Arch::ScmpArchMips64,
        Arch::ScmpArchMips64n32,
        Arch::ScmpArchMipsel,
        Arch::ScmpArchMipsel64,
        Arch::ScmpArchMipsel64n32,
        Arch::ScmpArchParisc,
        Arch::ScmpArchParisc64,
        Arch::ScmpArchPpc,
        Arch::ScmpArchPpc64,
        Arch::ScmpArchPpc64le,
        Arch::ScmpArchRiscv64,
        Arch::ScmpArchS390,
        Arch::ScmpArchS390x,
        Arch::ScmpArchSh,
        Arch::ScmpArchSheb,
        Arch::ScmpArchX32,
        Arch::ScmpArchX86,
        Arch::ScmpArchX86_64,
    ];
    let known =
        |arch: &Arch| ScmpSyscall::from_name_by_arch("read", compile::architecture(*arch)).is_ok();
    all.into_iter().filter(known).collect()
}

/// The version of libseccomp in use, such as `2.5.4`.
pub fn library_version() -> Option<String> {
    ScmpVersion::current().ok().map(|version| version.to_string())
}

#[cfg(test)]
mod tests;
