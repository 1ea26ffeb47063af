//! The section, checked: what the other modules work from.
//!
//! All that decides about the compiled program is in a [`Plan`], and so is all that goes into its
//! key in the cache ([`Plan::canonical`]); the two cannot differ.

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSyscall,
};

use super::Error;

/// A system call has at most six arguments.
const MAX_ARGS: usize = 6;
/// What SECCOMP_RET_DATA can carry to a tracer.
const MAX_TRACE: u32 = u16::MAX as u32;
/// seccomp(2) silently lowers anything above the kernel's MAX_ERRNO, 4095, which libseccomp does
/// not take either.
const MAX_ERRNO: u32 = 4094;

/// `linux.seccomp` without its contradictions.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    /// What happens to a call that no rule matches.
    pub default: Action,
    /// As in the section, in its order; the native one need not be among them.
    pub architectures: &'a [Arch],
    /// As in the section, in its order.
    pub rules: Vec<Rule<'a>>,
    /// For seccomp(2).
    pub flags: u32,
}

/// One entry of `syscalls`.
#[derive(Debug)]
pub(super) struct Rule<'a> {
    /// Not empty; the names themselves are not checked, for a kernel may be newer than this.
    pub names: &'a [String],
    /// What happens to a call that matches.
    pub action: Action,
    /// Each index is below six.
    pub args: &'a [LinuxSeccompArg],
}

/// An action with its value.
#[derive(Clone, Copy, Debug)]
pub(super) struct Action {
    /// Which.
    pub kind: LinuxSeccompAction,
    /// For ERRNO and TRACE.
    pub errno: u16,
}

impl Action {
    /// The action as the filter returns it, SECCOMP_RET_* with its value: equal for two actions
    /// that do the same, such as KILL and KILL_THREAD.
    pub(super) fn ret(self) -> u32 {
        self.kind.as_u32(Some(self.errno.into()))
    }

    fn new(
        kind: LinuxSeccompAction,
        errno: Option<u32>,
        field: impl Fn() -> String,
    ) -> Result<Self, Error> {
        let limit = match kind {
            LinuxSeccompAction::ScmpActErrno => MAX_ERRNO,
            LinuxSeccompAction::ScmpActTrace => MAX_TRACE,
            // "When the action doesn't support an errno, the runtime MUST print and error and
            // fail."
            _ if errno.is_some() => {
                return Err(wrong(field(), format!("{kind} takes no errno")));
            }
            _ => 0,
        };
        let value = errno.unwrap_or(libc::EPERM as u32);
        match u16::try_from(value) {
            Ok(errno) if limit == 0 || value <= limit => Ok(Self { kind, errno }),
            _ => Err(wrong(field(), format!("{value} is not between 0 and {limit}"))),
        }
    }
}

impl<'a> Plan<'a> {
    /// Checks `seccomp`.
    ///
    /// # Errors
    /// [`Error::Field`], naming the field.
    pub(super) fn new(seccomp: &'a LinuxSeccomp) -> Result<Self, Error> {
        let default = Action::new(seccomp.default_action(), seccomp.default_errno_ret(), || {
            "linux.seccomp.defaultErrnoRet".to_owned()
        })?;
        // Every call would wait for an agent that cannot have been told of the listener yet: init
        // has to make calls after this one. runc refuses it as well.
        if default.kind == LinuxSeccompAction::ScmpActNotify {
            return Err(wrong(
                "linux.seccomp.defaultAction",
                "SCMP_ACT_NOTIFY cannot be used as default action",
            ));
        }
        let rules = seccomp.syscalls().as_deref().unwrap_or_default();
        let rules = rules.iter().enumerate().map(Rule::new).collect::<Result<Vec<_>, _>>()?;
        let notify = rules.iter().any(|rule| rule.action.kind == LinuxSeccompAction::ScmpActNotify);
        check_listener(seccomp, notify)?;
        Ok(Self {
            default,
            architectures: seccomp.architectures().as_deref().unwrap_or_default(),
            rules,
            flags: flags(seccomp.flags().as_deref().unwrap_or_default(), notify),
        })
    }

    /// Bytes that are equal for two plans if and only if these compile to the same program (on
    /// one machine, with one libseccomp). Every list and string goes behind its length.
    pub(super) fn canonical(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(8192);
        let number = |bytes: &mut Vec<u8>, value: u64| bytes.extend(value.to_le_bytes());
        number(&mut bytes, self.default.ret().into());
        number(&mut bytes, self.architectures.len() as u64);
        for arch in self.architectures {
            number(&mut bytes, *arch as u64);
        }
        number(&mut bytes, self.rules.len() as u64);
        for rule in &self.rules {
            number(&mut bytes, rule.action.ret().into());
            number(&mut bytes, rule.names.len() as u64);
            for name in rule.names {
                number(&mut bytes, name.len() as u64);
                bytes.extend(name.as_bytes());
            }
            number(&mut bytes, rule.args.len() as u64);
            for arg in rule.args {
                number(&mut bytes, arg.index() as u64);
                number(&mut bytes, arg.op() as u64);
                number(&mut bytes, arg.value());
                number(&mut bytes, arg.value_two().unwrap_or(0));
            }
        }
        bytes
    }
}

impl<'a> Rule<'a> {
    fn new((index, entry): (usize, &'a LinuxSyscall)) -> Result<Self, Error> {
        let field = |name: &str| format!("linux.seccomp.syscalls[{index}].{name}");
        let action = Action::new(entry.action(), entry.errno_ret(), || field("errnoRet"))?;
        if entry.names().is_empty() {
            return Err(wrong(field("names"), "no system call is named"));
        }
        // init/notify.rs could do it; runc cannot, and what it refuses is refused here.
        if action.kind == LinuxSeccompAction::ScmpActNotify
            && entry.names().iter().any(|name| name == "write")
        {
            return Err(wrong(
                field("action"),
                "SCMP_ACT_NOTIFY cannot be used for the write syscall",
            ));
        }
        let args = entry.args().as_deref().unwrap_or_default();
        for (at, arg) in args.iter().enumerate() {
            if arg.index() >= MAX_ARGS {
                return Err(wrong(
                    field(&format!("args[{at}].index")),
                    format!("{} is not between 0 and {}", arg.index(), MAX_ARGS - 1),
                ));
            }
        }
        Ok(Self { names: entry.names(), action, args })
    }

    /// Whether an argument is compared more than once.
    ///
    /// libseccomp does not take that in one rule; runc and crun then make a rule of each
    /// condition, so that any of them matches instead of all of them.
    pub(super) fn any_condition(&self) -> bool {
        let mut seen = 0_u8;
        self.args.iter().any(|arg| {
            let bit = 1 << arg.index();
            let again = seen & bit != 0;
            seen |= bit;
            again
        })
    }
}

fn check_listener(seccomp: &LinuxSeccomp, notify: bool) -> Result<(), Error> {
    let path = seccomp.listener_path().as_deref().filter(|path| !path.as_os_str().is_empty());
    let metadata = seccomp.listener_metadata().as_deref().unwrap_or_default();
    if notify && path.is_none() {
        return Err(wrong("linux.seccomp.listenerPath", "not set, but SCMP_ACT_NOTIFY needs it"));
    }
    if !metadata.is_empty() && path.is_none() {
        return Err(wrong("linux.seccomp.listenerMetadata", "set without listenerPath"));
    }
    Ok(())
}

fn flags(flags: &[LinuxSeccompFilterFlag], notify: bool) -> u32 {
    let mut bits = if notify { libc::SECCOMP_FILTER_FLAG_NEW_LISTENER } else { 0 };
    for flag in flags {
        bits |= match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => {
                libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW
            }
            // The kernel takes it for filters with a listener alone.
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv if notify => {
                libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
            }
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
            // See Filter::flags.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
        };
    }
    bits as u32
}

fn wrong(field: impl Into<String>, problem: impl Into<String>) -> Error {
    Error::Field { field: field.into(), problem: problem.into() }
}
