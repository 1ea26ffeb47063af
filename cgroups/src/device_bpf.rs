//! The cgroup v2 device filter: a BPF program of type
//! BPF_PROG_TYPE_CGROUP_DEVICE that the kernel runs at each open and mknod of
//! a device node. Returns 1 to allow, 0 to deny.
//!
//! Only generates it; `sys` loads it. `struct bpf_cgroup_dev_ctx`: access in
//! the high and type in the low 16 bits of the first word, then major, minor.

use crate::device_rules::{Access, Exception, Kind, Policy};
use crate::sys::Instruction;

// linux/bpf_common.h and linux/bpf.h: class | size or operation | mode or source.
const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_W | BPF_MEM
const AND_32: u8 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const SHIFT_RIGHT_32: u8 = 0x74; // BPF_ALU | BPF_RSH | BPF_K
const MOVE_32: u8 = 0xb4; // BPF_ALU | BPF_MOV | BPF_K
const MOVE_REGISTER_32: u8 = 0xbc; // BPF_ALU | BPF_MOV | BPF_X
const JUMP_IF_NOT: u8 = 0x56; // BPF_JMP32 | BPF_JNE | BPF_K
const JUMP_IF_NOT_REGISTER: u8 = 0x5e; // BPF_JMP32 | BPF_JNE | BPF_X
const JUMP_IF: u8 = 0x16; // BPF_JMP32 | BPF_JEQ | BPF_K
const EXIT: u8 = 0x95; // BPF_JMP | BPF_EXIT

const RESULT: u8 = 0;
/// The context at the start, then free.
const SCRATCH: u8 = 1;
const TYPE: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// The program for a policy: one block per exception, then the default.
///
/// The comparisons are of 32 bits (Linux 5.1): device numbers above 2^31 would
/// be sign-extended in those of 64.
pub(crate) fn program(policy: &Policy) -> Vec<Instruction> {
    let mut code = vec![
        load(TYPE, 0),
        immediate(AND_32, TYPE, 0xffff),
        load(ACCESS, 0),
        immediate(SHIFT_RIGHT_32, ACCESS, 16),
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    for exception in &policy.exceptions {
        block(&mut code, exception, !policy.allow);
    }
    code.push(immediate(MOVE_32, RESULT, policy.allow.into()));
    code.push(immediate(EXIT, 0, 0));
    code
}

/// Returns `allow` if the request matches, else falls through to the next.
fn block(code: &mut Vec<Instruction>, exception: &Exception, allow: bool) {
    let start = code.len();
    let kind = match exception.kind {
        Kind::Block => 1, // BPF_DEVCG_DEV_BLOCK
        Kind::Char => 2,  // BPF_DEVCG_DEV_CHAR
    };
    code.push(immediate(JUMP_IF_NOT, TYPE, kind));
    if exception.access != Access::ALL {
        code.push(from_register(MOVE_REGISTER_32, SCRATCH, ACCESS));
        code.push(immediate(AND_32, SCRATCH, exception.access.0.into()));
        code.push(if allow {
            // All that is requested must be among what is allowed.
            from_register(JUMP_IF_NOT_REGISTER, SCRATCH, ACCESS)
        } else {
            // One denied kind of access denies the request.
            immediate(JUMP_IF, SCRATCH, 0)
        });
    }
    for (register, number) in [(MAJOR, exception.major), (MINOR, exception.minor)] {
        if let Some(number) = number {
            code.push(immediate(JUMP_IF_NOT, register, number as i32));
        }
    }
    code.push(immediate(MOVE_32, RESULT, allow.into()));
    code.push(immediate(EXIT, 0, 0));
    let end = code.len();
    for (index, instruction) in code.iter_mut().enumerate().skip(start) {
        if [JUMP_IF_NOT, JUMP_IF_NOT_REGISTER, JUMP_IF].contains(&instruction.code) {
            // Relative to the next instruction; a block has at most eight.
            instruction.offset = (end - index - 1) as i16;
        }
    }
}

fn load(register: u8, offset: i16) -> Instruction {
    Instruction { offset, ..from_register(LOAD_WORD, register, SCRATCH) }
}

fn immediate(code: u8, register: u8, immediate: i32) -> Instruction {
    Instruction { code, registers: registers(register, 0), offset: 0, immediate }
}

fn from_register(code: u8, to: u8, from: u8) -> Instruction {
    Instruction { code, registers: registers(to, from), offset: 0, immediate: 0 }
}

/// Two bit fields of four in C, so their order is the machine's.
const fn registers(to: u8, from: u8) -> u8 {
    if cfg!(target_endian = "big") { to << 4 | from } else { to | from << 4 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::LinuxDeviceCgroup;

    /// What the kernel's interpreter would return.
    fn run(program: &[Instruction], kind: Kind, major: u32, minor: u32, access: u8) -> u32 {
        let kind = if kind == Kind::Block { 1 } else { 2 };
        let context = [u32::from(access) << 16 | kind, major, minor];
        let mut values = [0u32; 11];
        let mut next = 0;
        loop {
            let Instruction { code, registers: pair, offset, immediate } = program[next];
            let (to, from) = if cfg!(target_endian = "big") {
                (usize::from(pair >> 4), usize::from(pair & 15))
            } else {
                (usize::from(pair & 15), usize::from(pair >> 4))
            };
            next += 1;
            let immediate = immediate as u32;
            let jump = match code {
                JUMP_IF_NOT => values[to] != immediate,
                JUMP_IF => values[to] == immediate,
                JUMP_IF_NOT_REGISTER => values[to] != values[from],
                EXIT => return values[0],
                _ => {
                    values[to] = match code {
                        LOAD_WORD if from == 1 => context[offset as usize / 4],
                        AND_32 => values[to] & immediate,
                        SHIFT_RIGHT_32 => values[to] >> immediate,
                        MOVE_32 => immediate,
                        MOVE_REGISTER_32 => values[from],
                        code => panic!("instruction {code:#x}"),
                    };
                    false
                }
            };
            if jump {
                assert!(offset > 0, "no loops");
                next += offset as usize;
            }
        }
    }

    fn filter(json: &str) -> Vec<Instruction> {
        let rules: Vec<LinuxDeviceCgroup> = serde_json::from_str(json).unwrap();
        program(&Policy::new(&rules).unwrap())
    }

    const R: u8 = Access::READ;
    const W: u8 = Access::WRITE;
    const M: u8 = Access::MKNOD;

    #[test]
    fn the_default_list_is_allowed_and_nothing_else() {
        let filter = filter(r#"[{"allow": false, "access": "rwm"}]"#);
        let allowed = |kind, major, minor, access| run(&filter, kind, major, minor, access) == 1;
        for minor in [3, 5, 7, 8, 9] {
            assert!(allowed(Kind::Char, 1, minor, R | W));
        }
        assert!(allowed(Kind::Char, 136, 77, R | W));
        assert!(allowed(Kind::Block, 8, 0, M));
        assert!(!allowed(Kind::Block, 8, 0, M | R));
        assert!(!allowed(Kind::Block, 8, 0, R));
        assert!(!allowed(Kind::Block, 1, 3, R));
        assert!(!allowed(Kind::Char, 1, 1, R));
        assert!(!allowed(Kind::Char, 10, 229, R | W));
    }

    #[test]
    fn denied_devices_among_allowed_ones() {
        let filter = filter(
            r#"[{"allow": true, "access": "rwm"},
                {"allow": false, "type": "b", "major": 8, "access": "w"},
                {"allow": false, "type": "c", "major": 4294967295, "minor": 1, "access": "rw"}]"#,
        );
        let allowed = |kind, major, minor, access| run(&filter, kind, major, minor, access) == 1;
        assert!(allowed(Kind::Block, 8, 3, R));
        assert!(!allowed(Kind::Block, 8, 3, W));
        assert!(!allowed(Kind::Block, 8, 3, R | W));
        assert!(allowed(Kind::Block, 9, 3, R | W));
        assert!(!allowed(Kind::Char, u32::MAX, 1, R));
        assert!(allowed(Kind::Char, u32::MAX, 2, R));
    }

    #[test]
    fn agrees_with_the_rules_on_every_small_request() {
        let json = r#"[{"allow": true, "type": "c", "major": 2, "access": "rw"},
            {"allow": true, "type": "b", "major": 2, "minor": 1, "access": "m"},
            {"allow": true, "type": "b", "minor": 3, "access": "rwm"}]"#;
        let rules: Vec<LinuxDeviceCgroup> = serde_json::from_str(json).unwrap();
        let policy = Policy::new(&rules).unwrap();
        let filter = program(&policy);
        let numbers = (0..6).flat_map(|major| (0..12).map(move |minor| (major, minor)));
        for (major, minor) in numbers {
            for (kind, access) in (1..8).flat_map(|a| [(Kind::Char, a), (Kind::Block, a)]) {
                let allowed = policy.exceptions.iter().any(|exception| {
                    exception.kind == kind
                        && exception.major.is_none_or(|number| number == major)
                        && exception.minor.is_none_or(|number| number == minor)
                        && access & !exception.access.0 == 0
                });
                let result = run(&filter, kind, major, minor, access);
                assert_eq!(result == 1, allowed, "{kind:?} {major}:{minor} {access}");
            }
        }
    }

    #[test]
    fn everything_allowed_has_no_blocks() {
        let filter = filter(r#"[{"allow": true, "access": "rwm"}]"#);
        assert_eq!(filter.len(), 8);
        assert_eq!(run(&filter, Kind::Block, 8, 0, R | W | M), 1);
    }

    #[test]
    fn the_kernel_accepts_it() {
        if !rustix::process::geteuid().is_root() {
            crate::testing::skip("loading a BPF program needs root");
            return;
        }
        for json in [
            r#"[{"allow": false, "access": "rwm"}]"#,
            r#"[{"allow": true, "access": "rwm"}]"#,
            r#"[{"allow": true, "access": "rwm"},
                {"allow": false, "type": "b", "major": 8, "access": "w"}]"#,
        ] {
            match crate::sys::load_device_filter(&filter(json)) {
                Ok(_) => {}
                Err(errno @ (rustix::io::Errno::NOSYS | rustix::io::Errno::PERM)) => {
                    crate::testing::skip(&format!("bpf(2): {errno}"));
                }
                Err(errno) => panic!("{json}: {errno}"),
            }
        }
    }
}
