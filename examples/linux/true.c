/* Does nothing, successfully and fast: what a runtime costs is measured with it. So without libc
 * where the way out is known. */
#if defined(__x86_64__)
__attribute__((noreturn)) void _start(void) {
  __asm__ volatile("syscall" : : "a"(231 /* exit_group */), "D"(0));
  __builtin_unreachable();
}
#elif defined(__aarch64__)
__attribute__((noreturn)) void _start(void) {
  register long status __asm__("x0") = 0;
  register long number __asm__("x8") = 94 /* exit_group */;
  __asm__ volatile("svc 0" : : "r"(status), "r"(number));
  __builtin_unreachable();
}
#else
#error "exit_group(2) is not written down for this processor"
#endif
