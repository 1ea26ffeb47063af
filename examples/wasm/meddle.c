/* Changes what it can reach, after it has said what somebody else has changed before: `clean`, or a
 * line for each thing that is not as a new program finds it.
 *
 *   meddle memory       its own memory, from end to end
 *   meddle environment  a variable
 *   meddle files        opens its directories and leaves them open
 *   meddle flags        has its streams not block, and append
 *   meddle rights       takes all rights from its streams
 *   meddle close        closes all its descriptors
 *   meddle renumber     puts one of its directories in the place of each stream
 *   meddle greedy       takes all the memory it can have, and says how many MiB
 *   meddle open         opens files until it may not, and says how many
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <wasi/api.h>

static int touched;
static char spot[1 << 16];

static int directories(void) {
  __wasi_prestat_t directory;
  int count = 0;
  while (__wasi_fd_prestat_get(3 + count, &directory) == 0)
    count++;
  return count;
}

/* An argument says how many directories there are to be. */
static int look(int expected) {
  int found = 0;
  if (touched)
    found += printf("memory: %d\n", touched) > 0;
  for (size_t i = 0; i < sizeof spot; i++)
    if (spot[i] != 0) {
      found += printf("memory at %zu\n", i) > 0;
      break;
    }
  if (getenv("MEDDLED"))
    found += printf("environment: %s\n", getenv("MEDDLED")) > 0;
  if (expected >= 0 && directories() != expected)
    found += printf("directories: %d\n", directories()) > 0;
  for (int fd = 0; fd < 3; fd++) {
    __wasi_fdstat_t stat;
    int error = __wasi_fd_fdstat_get(fd, &stat);
    if (error)
      found += printf("stream %d: error %d\n", fd, error) > 0;
    else if (stat.fs_flags & (__WASI_FDFLAGS_NONBLOCK | __WASI_FDFLAGS_APPEND))
      found += printf("stream %d: flags %d\n", fd, stat.fs_flags) > 0;
    else if (!(stat.fs_rights_base & (fd ? __WASI_RIGHTS_FD_WRITE : __WASI_RIGHTS_FD_READ)))
      found += printf("stream %d: no right\n", fd) > 0;
  }
  for (int fd = 3 + directories(); fd < 100; fd++) {
    __wasi_fdstat_t stat;
    if (__wasi_fd_fdstat_get(fd, &stat) == 0)
      found += printf("descriptor %d is open\n", fd) > 0;
  }
  if (!found)
    puts("clean");
  fflush(stdout);
  return found;
}

/* What is refused is said, as long as it can be. */
static void attempt(__wasi_errno_t error) {
  if (error)
    fprintf(stderr, "meddle: error %d\n", error);
}

static void meddle(const char *what) {
  int count = directories();
  if (strcmp(what, "memory") == 0) {
    touched = 1;
    memset(spot, 7, sizeof spot);
  } else if (strcmp(what, "environment") == 0) {
    setenv("MEDDLED", "yes", 1);
  } else if (strcmp(what, "files") == 0) {
    for (int i = 0; i < 20; i++)
      openat(3 + i % count, ".", O_RDONLY | O_DIRECTORY);
  } else if (strcmp(what, "flags") == 0) {
    for (int fd = 0; fd < 3; fd++)
      attempt(__wasi_fd_fdstat_set_flags(fd, __WASI_FDFLAGS_NONBLOCK | __WASI_FDFLAGS_APPEND));
  } else if (strcmp(what, "rights") == 0) {
    for (int fd = 0; fd < 3 + count; fd++)
      attempt(__wasi_fd_fdstat_set_rights(fd, 0, 0));
  } else if (strcmp(what, "close") == 0) {
    for (int fd = 0; fd < 3 + count; fd++)
      attempt(__wasi_fd_close(fd));
  } else if (strcmp(what, "renumber") == 0) {
    for (int fd = 0; fd < 3; fd++) {
      int from = openat(3, ".", O_RDONLY | O_DIRECTORY);
      attempt(__wasi_fd_renumber(from < 0 ? 3 : from, fd));
    }
  } else if (strcmp(what, "greedy") == 0) {
    int mib = 0;
    /* Kept, or the compiler would leave it out. */
    for (char *more, *last = NULL; (more = malloc(1 << 20)); last = more, mib++) {
      memset(more, 1, 1 << 20);
      *(char *volatile *)more = last;
    }
    printf("%d MiB\n", mib);
  } else if (strcmp(what, "open") == 0) {
    int opened = 0, fd;
    while ((fd = openat(3, ".", O_RDONLY | O_DIRECTORY)) >= 0)
      opened++;
    printf("opened %d: %s\n", opened, strerror(errno));
  }
}

int main(int argc, char **argv) {
  int found = look(argc > 2 ? atoi(argv[2]) : -1);
  if (argc > 1)
    meddle(argv[1]);
  return found != 0;
}
