//! Where the kernel starts `kiln`, before libc: a shortcut to the read-only view of the
//! executable (see the library's `sealed`).
//!
//! `create` and `run` execute kiln twice: first as it lies on the disk, then from a read-only
//! mount. The first time nothing of libc, Rust or clap is needed, and starting libc is the larger
//! part of starting kiln at all (in a virtual machine each of its CPUID instructions is a trip to
//! the hypervisor): 0.53 ms, without it 0.12. So the ELF entry point is this piece of assembly. If
//! an argument is a command that makes processes, and /proc/self/exe is not on a read-only mount
//! yet, it executes the view; in every other case, and if any call fails, it goes on to libc's
//! `_start` with the registers and stack untouched, and `sealed` does the same in Rust or says
//! what is wrong.
//!
//! ```text
//! for arg in argv: if arg is "run", "exec", "create" or "restore": goto seal
//! goto _start
//! seal:
//!   if statfs("/proc/self/exe").f_flags & ST_RDONLY: goto _start
//!   n = readlink("/proc/self/exe", path)                  -- kept as argv[0]
//!   fd = open_tree(AT_FDCWD, "/proc/self/exe", OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC)
//!   mount_setattr(fd, "", AT_EMPTY_PATH, {MOUNT_ATTR_RDONLY})
//!   argv[0] = path
//!   execveat(fd, "", argv, envp, AT_EMPTY_PATH)
//!   argv[0] = what it was; goto _start
//! ```

// Not in a `sys` module: it belongs to this executable's first instruction and to nothing else.
#![allow(unsafe_code)]

// SAFETY (of the whole): at the entry point rsp points to argc, argv and envp (System V ABI for
// x86-64, Process Initialization). Everything is kept below rsp and in callee-saved registers,
// of which _start expects nothing but rsp and rdx, both restored. Strings are read at most up to
// 8 bytes from their beginning; behind the last argument come the environment and the auxiliary
// strings, so those bytes are there.
std::arch::global_asm!(
    r#"
    .globl kiln_entry
    .type kiln_entry, @function
kiln_entry:
    mov r15, rdx                # _start: what to call at exit
    mov r14, rsp                # argc, argv, NULL, envp, NULL
    mov rcx, [r14]              # argc
    lea rbx, [r14 + 8]          # argv
2:  add rbx, 8                  # argv[0] is no command
    sub rcx, 1
    jle 9f
    mov rax, [rbx]
    test rax, rax
    jz 9f
    mov edx, [rax]
    cmp edx, 0x006e7572         # "run\0"
    je 3f
    cmp edx, 0x63657865         # "exec"
    jne 4f
    cmp byte ptr [rax + 4], 0
    je 3f
4:  cmp edx, 0x61657263         # "crea"
    jne 5f
    mov edx, [rax + 3]
    cmp edx, 0x00657461         # "ate\0"
    je 3f
    jmp 2b
5:  cmp edx, 0x74736572         # "rest"
    jne 2b
    mov edx, [rax + 4]
    cmp edx, 0x0065726f         # "ore\0"
    jne 2b

3:  sub rsp, 4608               # a struct statfs (120 bytes) or mount_attr; at 256 the path
    and rsp, -16
    mov eax, 137                # statfs
    lea rdi, [rip + kiln_own]
    mov rsi, rsp
    syscall
    test rax, rax
    js 8f
    test byte ptr [rsp + 80], 1 # f_flags, ST_RDONLY
    jnz 8f
    mov eax, 89                 # readlink
    lea rdi, [rip + kiln_own]
    lea rsi, [rsp + 256]
    mov edx, 4096
    syscall
    test rax, rax
    jle 8f
    cmp rax, 4096
    jge 8f
    mov byte ptr [rsp + 256 + rax], 0
    mov eax, 428                # open_tree
    mov edi, -100               # AT_FDCWD
    lea rsi, [rip + kiln_own]
    mov edx, 0x80001            # OPEN_TREE_CLOEXEC | OPEN_TREE_CLONE
    syscall
    test rax, rax
    js 8f
    mov r12, rax
    mov qword ptr [rsp], 1      # attr_set: MOUNT_ATTR_RDONLY
    mov qword ptr [rsp + 8], 0
    mov qword ptr [rsp + 16], 0
    mov qword ptr [rsp + 24], 0
    mov eax, 442                # mount_setattr
    mov rdi, r12
    lea rsi, [rip + kiln_empty]
    mov edx, 0x1000             # AT_EMPTY_PATH
    mov r10, rsp
    mov r8d, 32
    syscall
    test rax, rax
    js 7f
    mov rcx, [r14]
    lea r10, [r14 + rcx * 8 + 16]   # envp
    lea rdx, [r14 + 8]          # argv
    mov r13, [rdx]
    lea rax, [rsp + 256]
    mov [rdx], rax
    mov eax, 322                # execveat
    mov rdi, r12
    lea rsi, [rip + kiln_empty]
    mov r8d, 0x1000             # AT_EMPTY_PATH
    syscall
    mov [r14 + 8], r13          # it returned: as before
7:  mov eax, 3                  # close
    mov rdi, r12
    syscall
8:  mov rsp, r14
9:  mov rdx, r15
    jmp _start
    .size kiln_entry, . - kiln_entry

    .section .rodata
kiln_own:
    .asciz "/proc/self/exe"
kiln_empty:
    .asciz ""
    .text
"#
);
