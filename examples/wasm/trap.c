/* Traps, in the way that its argument names: unreachable (the default), divide, memory, call or
 * stack. Writes a line to stdout first, which must not be lost. Give `stack` a memory limit:
 * an interpreter may let its stack grow into all the memory there is.
 */
#include <stdio.h>
#include <string.h>

static volatile int zero;
static volatile int sink;

/* Calls itself until the engine's stack is full; needs none of its own in the memory. */
static int deeper(int depth) {
  if (depth < 0)
    return 0;
  /* Read after the call has returned, so that it cannot be made into a loop. */
  return deeper(depth + 1) + sink;
}

int main(int argc, char **argv) {
  const char *how = argc > 1 ? argv[1] : "unreachable";
  printf("trapping: %s\n", how);
  fflush(stdout);
  if (strcmp(how, "unreachable") == 0)
    __builtin_trap();
  if (strcmp(how, "divide") == 0)
    sink = 100 / zero;
  if (strcmp(how, "memory") == 0)
    sink = *(volatile int *)(0xfffffff0u - (unsigned)zero);
  if (strcmp(how, "call") == 0)
    ((void (*volatile)(void))(unsigned long)(0x7fffffff - zero))();
  if (strcmp(how, "stack") == 0)
    sink = deeper(zero);
  fprintf(stderr, "trap: \"%s\" is not unreachable, divide, memory, call or stack\n", how);
  return 2;
}
