/* A function that keeps state from one request to the next: for `kiln serve --reuse counter.wasm`.
 *
 *   counter [WORD...]     prints how often it was called, and its arguments
 *   counter trap          traps
 *   counter exit STATUS   ends by proc_exit
 *   counter status N      returns N, which is the exit status
 *   counter env NAME      prints a variable
 *   counter cat           prints its standard input
 *
 * It is a reactor (-mexec-model=reactor): there is no main. _initialize runs once, `handle` for each
 * request, and what it returns is the exit status. Three things are kept by the C library that a
 * program with main never sees twice:
 *
 * - arguments come by main alone, so they are asked for anew, with WASI's own calls;
 * - the environment is copied when getenv is called first: __wasilibc_deinitialize_environ lets go of
 *   the copy, and the next getenv makes another;
 * - stdin remembers that it was at its end (clearerr), and stdout is written when handle says so
 *   (fflush), as nothing ends.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wasi/api.h>
#include <wasi/libc-environ.h>

static unsigned long calls;

/* The arguments of this request. What is returned is one block, to be freed. */
static char **arguments(int *argc) {
  __wasi_size_t count, size;
  if (__wasi_args_sizes_get(&count, &size) != 0)
    return NULL;
  char **argv = malloc((count + 1) * sizeof *argv + size);
  if (!argv || __wasi_args_get((uint8_t **)argv, (uint8_t *)(argv + count + 1)) != 0) {
    free(argv);
    return NULL;
  }
  argv[count] = NULL;
  *argc = (int)count;
  return argv;
}

static void cat(void) {
  char buffer[4096];
  size_t have;
  while ((have = fread(buffer, 1, sizeof buffer, stdin)) > 0)
    fwrite(buffer, 1, have, stdout);
}

static int serve(int argc, char **argv) {
  const char *what = argc > 1 ? argv[1] : "";
  calls++;
  if (strcmp(what, "trap") == 0)
    __builtin_trap();
  if (argc > 2 && strcmp(what, "exit") == 0)
    exit(atoi(argv[2]));
  if (argc > 2 && strcmp(what, "status") == 0)
    return atoi(argv[2]);
  if (strcmp(what, "cat") == 0) {
    cat();
    return 0;
  }
  if (argc > 2 && strcmp(what, "env") == 0) {
    const char *value = getenv(argv[2]);
    puts(value ? value : "(not set)");
    return 0;
  }
  printf("call %lu", calls);
  for (int i = 1; i < argc; i++)
    printf(" %s", argv[i]);
  puts("");
  return 0;
}

__attribute__((export_name("handle"))) int handle(void) {
  int argc = 0;
  char **argv = arguments(&argc);
  if (!argv)
    return 1;
  __wasilibc_deinitialize_environ();
  clearerr(stdin);
  int status = serve(argc, argv);
  fflush(stdout);
  free(argv);
  return status;
}
