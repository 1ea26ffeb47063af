//! What compiled filters decide, asked of the machine in [`machine`].

use libc::{
    SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_KILL_THREAD,
    SECCOMP_RET_LOG, SECCOMP_RET_TRACE, SECCOMP_RET_TRAP, SECCOMP_RET_USER_NOTIF,
};
use libseccomp::ScmpSyscall;
use oci_spec::runtime::Arch;
use serde_json::{Value, json};

use super::machine::{Call, run};
use super::*;

const EPERM: u32 = SECCOMP_RET_ERRNO | libc::EPERM as u32;
const ENOSYS: u32 = SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
const X86_64: u32 = Arch::ScmpArchX86_64 as u32;
const I386: u32 = Arch::ScmpArchX86 as u32;
const AARCH64: u32 = Arch::ScmpArchAarch64 as u32;
const X32: u32 = 0x4000_0000;

fn section(value: Value) -> LinuxSeccomp {
    serde_json::from_value(value).unwrap()
}

fn containerd() -> LinuxSeccomp {
    let text = include_str!("../../../integration/fixtures/seccomp-containerd-default.json");
    serde_json::from_str(text).unwrap()
}

fn compiled(value: Value) -> Filter {
    filter(&section(value), None).unwrap()
}

fn refusal(value: Value) -> String {
    filter(&section(value), None).unwrap_err().to_string()
}

fn native(name: &str) -> u32 {
    ScmpSyscall::from_name(name).unwrap().as_raw_syscall().try_into().unwrap()
}

/// What `filter` returns for a call of this machine's architecture.
fn ret(filter: &Filter, name: &str, args: &[u64]) -> u32 {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    let arch = if cfg!(target_arch = "aarch64") { AARCH64 } else { X86_64 };
    run(filter.program(), Call { arch, nr: native(name), args: all }).ret
}

fn number(filter: &Filter, arch: u32, nr: u32) -> u32 {
    run(filter.program(), Call { arch, nr, args: [0; 6] }).ret
}

#[test]
fn containerds_default_profile_decides_as_it_says() {
    let filter = filter(&containerd(), None).unwrap();
    for name in ["read", "execve", "openat2", "ptrace", "chroot", "arch_prctl", "seccomp"] {
        assert_eq!(ret(&filter, name, &[]), SECCOMP_RET_ALLOW, "{name}");
    }
    for name in ["mount", "unshare", "setns", "bpf", "init_module", "keyctl", "io_uring_setup"] {
        assert_eq!(ret(&filter, name, &[]), EPERM, "{name}");
    }
    assert_eq!(ret(&filter, "clone3", &[]), ENOSYS);
    assert_eq!(ret(&filter, "clone", &[libc::SIGCHLD as u64]), SECCOMP_RET_ALLOW);
    assert_eq!(ret(&filter, "clone", &[libc::CLONE_NEWUSER as u64]), EPERM);
    assert_eq!(ret(&filter, "socket", &[libc::AF_VSOCK as u64]), EPERM);
    assert_eq!(ret(&filter, "socket", &[libc::AF_UNIX as u64]), SECCOMP_RET_ALLOW);
    assert_eq!(ret(&filter, "personality", &[0xffff_ffff]), SECCOMP_RET_ALLOW);
    assert_eq!(ret(&filter, "personality", &[0x40000]), EPERM);
    assert!(filter.program().len() < 700, "{}", filter.program().len());
    assert_eq!(filter.flags(), 0);
    assert!(!filter.needs_listener());
}

#[test]
#[cfg(target_arch = "x86_64")]
fn each_architecture_has_its_own_numbers() {
    let filter = filter(&containerd(), None).unwrap();
    assert_eq!(number(&filter, X86_64, libc::SYS_mount as u32), EPERM);
    // On i386 number 165 is getresuid, and mount is 21.
    assert_eq!(number(&filter, I386, libc::SYS_mount as u32), SECCOMP_RET_ALLOW);
    assert_eq!(number(&filter, I386, 21), EPERM);
    assert_eq!(number(&filter, X86_64, X32 | libc::SYS_getpid as u32), SECCOMP_RET_ALLOW);
    assert_eq!(number(&filter, X86_64, X32 | libc::SYS_mount as u32), EPERM);
    assert_eq!(number(&filter, AARCH64, 0), SECCOMP_RET_KILL_THREAD);

    let native = compiled(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "syscalls": [{"names": ["getpid", "mount_setattr"], "action": "SCMP_ACT_ALLOW"}],
    }));
    assert_eq!(number(&native, X86_64, libc::SYS_getpid as u32), SECCOMP_RET_ALLOW);
    assert_eq!(number(&native, I386, 20), SECCOMP_RET_KILL_THREAD);
    assert_eq!(number(&native, X86_64, X32 | libc::SYS_getpid as u32), SECCOMP_RET_KILL_THREAD);
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_binary_tree_decides_as_the_list_does_in_fewer_steps() {
    let section = containerd();
    let plan = Plan::new(&section).unwrap();
    let mut context = compile::build(&plan).unwrap();
    let tree = compile::export(&context).unwrap();
    context.set_ctl_optimize(1).unwrap();
    let list = compile::export(&context).unwrap();
    let (mut most_tree, mut most_list) = (0, 0);
    let numbers = (0..700).chain(X32..X32 + 700).chain([u32::MAX, u32::MAX - 1]);
    for nr in numbers {
        for arch in [X86_64, I386, AARCH64] {
            for first in [0, 8, 40, 0x20000, 0x7e02_0000, 0x1000_0000, u64::MAX] {
                let call = Call { arch, nr, args: [first, 0, 0, 0, 0, 0] };
                let (tree, list) = (run(&tree, call), run(&list, call));
                assert_eq!(tree.ret, list.ret, "{call:?}");
                most_tree = most_tree.max(tree.steps);
                most_list = most_list.max(list.steps);
            }
        }
    }
    assert!(most_tree < 50 && most_list > 300, "{most_tree} {most_list}");
}

#[test]
#[cfg(target_arch = "x86_64")]
fn the_condensed_program_decides_as_the_whole_one_does() {
    let names = containerd().syscalls().as_ref().unwrap()[0].names().clone();
    let conditional = section(json!({
        "defaultAction": "SCMP_ACT_KILL_PROCESS",
        "architectures": ["SCMP_ARCH_X86", "SCMP_ARCH_AARCH64"],
        "syscalls": [
            {"names": ["socket", "clone"], "action": "SCMP_ACT_ALLOW", "args": [
                {"index": 0, "value": 40, "op": "SCMP_CMP_LT"},
                {"index": 5, "value": 0x1_0000_0000_u64, "op": "SCMP_CMP_GE"},
            ]},
            {"names": ["mount"], "action": "SCMP_ACT_ERRNO", "args": [
                {"index": 0, "value": 0xff, "valueTwo": 8, "op": "SCMP_CMP_MASKED_EQ"},
            ]},
            {"names": names[..100], "action": "SCMP_ACT_LOG"},
            {"names": names[200..], "action": "SCMP_ACT_ALLOW"},
        ],
    }));
    for section in [containerd(), conditional] {
        let plan = Plan::new(&section).unwrap();
        let mut whole = enosys::stub(&plan);
        whole.extend(compile::export(&compile::build(&plan).unwrap()).unwrap());
        let condensed = condense::condense(&whole).unwrap();
        assert!(condensed.len() * 10 < whole.len() * 9, "{} {}", condensed.len(), whole.len());
        // All that any architecture has, and numbers from everywhere.
        let scattered = (0..2000_u32).map(|index| index.wrapping_mul(0x9e37_79b9));
        for nr in (0..700).chain(X32..X32 + 700).chain(scattered).chain([u32::MAX]) {
            for arch in [X86_64, I386, AARCH64, 0, nr] {
                for first in [0, 8, 40, 0x20000, 0x7e02_0000, 0x1000_0000, u64::MAX] {
                    let call = Call { arch, nr, args: [first, 0, 0, 0, 0, first << 30] };
                    assert_eq!(run(&condensed, call).ret, run(&whole, call).ret, "{call:?}");
                }
            }
        }
    }
}

#[test]
fn all_operators_compare_as_named() {
    let cases = [
        ("SCMP_CMP_NE", [true, false, true]),
        ("SCMP_CMP_LT", [true, false, false]),
        ("SCMP_CMP_LE", [true, true, false]),
        ("SCMP_CMP_EQ", [false, true, false]),
        ("SCMP_CMP_GE", [false, true, true]),
        ("SCMP_CMP_GT", [false, false, true]),
    ];
    // Beyond 32 bits, where the comparison takes two words.
    let value = 0x1_0000_0005_u64;
    for (op, expected) in cases {
        let filter = compiled(json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{
                "names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 9,
                "args": [{"index": 2, "value": value, "op": op}],
            }],
        }));
        let hits = [value - 1, value, value + 1]
            .map(|arg| ret(&filter, "read", &[0, 0, arg]) == SECCOMP_RET_ERRNO | 9);
        assert_eq!(hits, expected, "{op}");
        assert_eq!(ret(&filter, "write", &[0, 0, value]), SECCOMP_RET_ALLOW, "{op}");
    }

    let masked = compiled(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{
            "names": ["read"], "action": "SCMP_ACT_ERRNO",
            "args": [{"index": 0, "value": 0xf0, "valueTwo": 0x50, "op": "SCMP_CMP_MASKED_EQ"}],
        }],
    }));
    assert_eq!(ret(&masked, "read", &[0x157]), EPERM);
    assert_eq!(ret(&masked, "read", &[0x161]), SECCOMP_RET_ALLOW);
}

#[test]
fn conditions_on_one_argument_are_alternatives_and_on_several_are_joined() {
    let with = |second: u32| {
        compiled(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [{
                "names": ["socket"], "action": "SCMP_ACT_ALLOW",
                "args": [
                    {"index": 0, "value": 1, "op": "SCMP_CMP_EQ"},
                    {"index": second, "value": 2, "op": "SCMP_CMP_EQ"},
                ],
            }],
        }))
    };
    let any = with(0);
    assert_eq!(ret(&any, "socket", &[1]), SECCOMP_RET_ALLOW);
    assert_eq!(ret(&any, "socket", &[2]), SECCOMP_RET_ALLOW);
    assert_eq!(ret(&any, "socket", &[3]), EPERM);
    let all = with(1);
    assert_eq!(ret(&all, "socket", &[1, 2]), SECCOMP_RET_ALLOW);
    assert_eq!(ret(&all, "socket", &[1, 3]), EPERM);
    assert_eq!(ret(&all, "socket", &[3, 2]), EPERM);
}

#[test]
fn all_actions_return_what_they_are_named_for() {
    let cases = [
        (json!({"action": "SCMP_ACT_KILL"}), SECCOMP_RET_KILL_THREAD),
        (json!({"action": "SCMP_ACT_KILL_THREAD"}), SECCOMP_RET_KILL_THREAD),
        (json!({"action": "SCMP_ACT_KILL_PROCESS"}), SECCOMP_RET_KILL_PROCESS),
        (json!({"action": "SCMP_ACT_TRAP"}), SECCOMP_RET_TRAP),
        (json!({"action": "SCMP_ACT_ERRNO"}), EPERM),
        (json!({"action": "SCMP_ACT_ERRNO", "errnoRet": 0}), SECCOMP_RET_ERRNO),
        (json!({"action": "SCMP_ACT_ERRNO", "errnoRet": 4094}), SECCOMP_RET_ERRNO | 4094),
        (json!({"action": "SCMP_ACT_TRACE"}), SECCOMP_RET_TRACE | libc::EPERM as u32),
        (json!({"action": "SCMP_ACT_TRACE", "errnoRet": 65535}), SECCOMP_RET_TRACE | 65535),
        (json!({"action": "SCMP_ACT_LOG"}), SECCOMP_RET_LOG),
        (json!({"action": "SCMP_ACT_NOTIFY"}), SECCOMP_RET_USER_NOTIF),
    ];
    for (mut rule, expected) in cases {
        rule["names"] = json!(["getpid"]);
        let filter = compiled(json!({
            "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/agent", "syscalls": [rule],
        }));
        assert_eq!(ret(&filter, "getpid", &[]), expected, "{rule}");
        assert_eq!(ret(&filter, "getppid", &[]), SECCOMP_RET_ALLOW, "{rule}");
        assert_eq!(filter.needs_listener(), expected == SECCOMP_RET_USER_NOTIF, "{rule}");
    }

    let default = compiled(json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 13}));
    assert_eq!(ret(&default, "getpid", &[]), SECCOMP_RET_ERRNO | 13);
    let allow = compiled(json!({"defaultAction": "SCMP_ACT_ALLOW"}));
    assert_eq!(ret(&allow, "getpid", &[]), SECCOMP_RET_ALLOW);
}

#[test]
fn rules_like_the_default_repeated_rules_and_unknown_names_do_no_harm() {
    let filter = compiled(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_NATIVE", "SCMP_ARCH_NATIVE"],
        "syscalls": [
            {"names": ["mount"], "action": "SCMP_ACT_ERRNO"},
            {"names": ["getpid", "no_such_call", "with\u{0}nul", ""], "action": "SCMP_ACT_ALLOW"},
            {"names": ["getpid", "getpid", &"x".repeat(100)], "action": "SCMP_ACT_ALLOW"},
        ],
    }));
    assert_eq!(ret(&filter, "mount", &[]), EPERM);
    assert_eq!(ret(&filter, "getpid", &[]), SECCOMP_RET_ALLOW);
}

/// From EPERM to ENOSYS where the profile cannot have known the call, and nowhere else.
#[test]
#[cfg(target_arch = "x86_64")]
fn calls_newer_than_the_profile_get_enosys() {
    // 240, 268, and on i386 277, 306.
    let names = ["mq_open", "fchmodat"];
    let with = |archs: &[&str], default: &str| {
        compiled(json!({
            "defaultAction": default,
            "architectures": archs,
            "syscalls": [{"names": names, "action": "SCMP_ACT_ALLOW"}],
        }))
    };
    let all = with(&["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"], "SCMP_ACT_ERRNO");
    for (arch, newest, bit) in [(X86_64, 268, 0), (X86_64, 268, X32), (I386, 306, 0)] {
        assert_eq!(number(&all, arch, bit | newest), SECCOMP_RET_ALLOW, "{newest}");
        assert_eq!(number(&all, arch, bit | (newest - 1)), EPERM, "{newest}");
        assert_eq!(number(&all, arch, bit | (newest + 1)), ENOSYS, "{newest}");
        assert_eq!(number(&all, arch, bit | 1_000_000), ENOSYS, "{newest}");
    }
    assert_eq!(number(&all, AARCH64, 1_000_000), SECCOMP_RET_KILL_THREAD);

    // x32 is not in this one: its numbers stay the filter's to refuse.
    let native = with(&[], "SCMP_ACT_KILL_PROCESS");
    assert_eq!(number(&native, X86_64, 269), ENOSYS);
    assert_eq!(number(&native, X86_64, 267), SECCOMP_RET_KILL_PROCESS);
    assert_eq!(number(&native, X86_64, X32 | 1_000_000), SECCOMP_RET_KILL_THREAD);
    assert_eq!(number(&native, I386, 1_000_000), SECCOMP_RET_KILL_THREAD);

    for open in ["SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"] {
        assert_ne!(number(&with(&[], open), X86_64, 1_000_000), ENOSYS, "{open}");
    }
    let nothing = compiled(json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38}));
    assert_eq!(number(&nothing, X86_64, 1_000_000), ENOSYS);
}

/// libseccomp on this machine takes no big-endian architecture, but the stub stands alone.
#[test]
fn the_stub_knows_the_ways_of_s390_and_falls_through_for_others() {
    let section = section(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_S390X", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64"],
        "syscalls": [{"names": ["read", "openat"], "action": "SCMP_ACT_ALLOW"}],
    }));
    let mut program = enosys::stub(&Plan::new(&section).unwrap());
    program.extend(compile::decode(&[6, 0, 0, 0, 0, 0, 0xff, 0x7f]));
    let filter = Filter { program, flags: 0 };
    let s390x = Arch::ScmpArchS390x as u32;
    assert_eq!(number(&filter, s390x, 0), ENOSYS);
    assert_eq!(number(&filter, s390x, 288), SECCOMP_RET_ALLOW);
    assert_eq!(number(&filter, s390x, 289), ENOSYS);
    assert_eq!(number(&filter, AARCH64, 63), SECCOMP_RET_ALLOW);
    assert_eq!(number(&filter, AARCH64, 64), ENOSYS);
    assert_eq!(number(&filter, I386, 1_000_000), SECCOMP_RET_ALLOW);
}

#[test]
fn what_cannot_be_meant_is_refused_by_field() {
    let rule = |rule: Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]});
    let cases = [
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "defaultErrnoRet": 1}),
            "linux.seccomp.defaultErrnoRet: SCMP_ACT_ALLOW takes no errno",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 4095}),
            "linux.seccomp.defaultErrnoRet: 4095 is not between 0 and 4094",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_NOTIFY", "listenerPath": "/run/agent"}),
            "linux.seccomp.defaultAction: SCMP_ACT_NOTIFY cannot be used as default action",
        ),
        (
            json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerMetadata": "x"}),
            "linux.seccomp.listenerMetadata: set without listenerPath",
        ),
        (
            rule(json!({"names": ["getpid"], "action": "SCMP_ACT_NOTIFY"})),
            "linux.seccomp.listenerPath: not set, but SCMP_ACT_NOTIFY needs it",
        ),
        (
            rule(json!({"names": ["read", "write"], "action": "SCMP_ACT_NOTIFY"})),
            "linux.seccomp.syscalls[0].action: SCMP_ACT_NOTIFY cannot be used for the write syscall",
        ),
        (
            rule(json!({"names": [], "action": "SCMP_ACT_ERRNO"})),
            "linux.seccomp.syscalls[0].names: no system call is named",
        ),
        (
            rule(json!({"names": ["read"], "action": "SCMP_ACT_TRACE", "errnoRet": 65536})),
            "linux.seccomp.syscalls[0].errnoRet: 65536 is not between 0 and 65535",
        ),
        (
            rule(json!({"names": ["read"], "action": "SCMP_ACT_KILL", "errnoRet": 1})),
            "linux.seccomp.syscalls[0].errnoRet: SCMP_ACT_KILL takes no errno",
        ),
        (
            rule(json!({
                "names": ["read"], "action": "SCMP_ACT_KILL",
                "args": [
                    {"index": 5, "value": 0, "op": "SCMP_CMP_EQ"},
                    {"index": 6, "value": 0, "op": "SCMP_CMP_EQ"},
                ],
            })),
            "linux.seccomp.syscalls[0].args[1].index: 6 is not between 0 and 5",
        ),
    ];
    for (value, expected) in cases {
        assert_eq!(refusal(value), expected);
    }
    // A byte order other than the machine's.
    let error = refusal(json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_NATIVE", "SCMP_ARCH_MIPS"],
    }));
    assert!(
        error.starts_with("linux.seccomp.architectures[1]: SCMP_ARCH_MIPS: libseccomp: "),
        "{error}"
    );
}

#[test]
fn flags_are_those_of_seccomp_2() {
    let with = |flags: Value, action: &str| {
        compiled(json!({
            "defaultAction": "SCMP_ACT_ALLOW", "flags": flags, "listenerPath": "/run/agent",
            "syscalls": [{"names": ["getpid"], "action": action}],
        }))
        .flags()
    };
    assert_eq!(with(json!(["SECCOMP_FILTER_FLAG_LOG"]), "SCMP_ACT_ERRNO"), 2);
    assert_eq!(with(json!(["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]), "SCMP_ACT_ERRNO"), 4);
    assert_eq!(with(json!(["SECCOMP_FILTER_FLAG_TSYNC"]), "SCMP_ACT_ERRNO"), 0);
    assert_eq!(with(json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]), "SCMP_ACT_ERRNO"), 0);
    assert_eq!(with(json!(["SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"]), "SCMP_ACT_NOTIFY"), 40);
    assert_eq!(with(json!([]), "SCMP_ACT_NOTIFY"), 8);
}

#[test]
fn a_filter_from_the_cache_is_the_one_that_was_compiled() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("seccomp");
    let cache = Cache::open(&path).unwrap();
    let bytes = |filter: &Filter| -> Vec<(u16, u8, u8, u32)> {
        filter.program().iter().map(|i| (i.code, i.jt, i.jf, i.k)).collect()
    };
    let compiled = filter(&containerd(), None).unwrap();
    for _ in 0..2 {
        let cached = filter(&containerd(), Some(&cache)).unwrap();
        assert_eq!(bytes(&cached), bytes(&compiled));
    }
    let entry = path.read_dir().unwrap().next().unwrap().unwrap().path();
    let key = Key::of(&Plan::new(&containerd()).unwrap());
    assert!(cache.load(&key).is_some());

    // A damaged entry is found, compiled again and replaced.
    let sound = std::fs::read(&entry).unwrap();
    let mut damaged = sound.clone();
    *damaged.last_mut().unwrap() ^= 1;
    std::fs::write(&entry, damaged).unwrap();
    assert_eq!(bytes(&filter(&containerd(), Some(&cache)).unwrap()), bytes(&compiled));
    assert_eq!(std::fs::read(&entry).unwrap(), sound);
}

#[test]
fn whatever_changes_the_program_changes_the_key() {
    let base = json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "architectures": ["SCMP_ARCH_NATIVE"],
        "syscalls": [{
            "names": ["read", "write"], "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_MASKED_EQ"}],
        }],
    });
    let key =
        |value: &Value| format!("{:?}", Key::of(&Plan::new(&section(value.clone())).unwrap()));
    let changes: [(&str, Value); 10] = [
        ("/defaultAction", json!("SCMP_ACT_KILL")),
        ("/defaultErrnoRet", json!(2)),
        ("/architectures", json!(["SCMP_ARCH_X86"])),
        ("/syscalls/0/names", json!(["readwrite"])),
        ("/syscalls/0/action", json!("SCMP_ACT_LOG")),
        ("/syscalls/0/args", json!([])),
        ("/syscalls/0/args/0/index", json!(1)),
        ("/syscalls/0/args/0/value", json!(3)),
        ("/syscalls/0/args/0/valueTwo", json!(3)),
        ("/syscalls/0/args/0/op", json!("SCMP_CMP_EQ")),
    ];
    let mut keys = vec![key(&base)];
    for (pointer, value) in changes {
        let mut changed = base.clone();
        match changed.pointer_mut(pointer) {
            Some(place) => *place = value,
            None => changed["defaultErrnoRet"] = value,
        }
        keys.push(key(&changed));
    }
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 11);

    // These do not: one program serves every listener and flag.
    let mut same = base.clone();
    same["listenerPath"] = json!("/run/agent");
    same["flags"] = json!(["SECCOMP_FILTER_FLAG_LOG"]);
    same["defaultErrnoRet"] = json!(1);
    assert_eq!(key(&same), key(&base));
}
