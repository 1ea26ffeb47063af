/* Tells whether stdin, stdout and stderr are terminals; ends with the number of those that are
 * not. WASI knows only character devices, so /dev/null passes for a terminal. */
#include <stdio.h>
#include <unistd.h>

int main(void) {
  static const char *const names[] = {"stdin", "stdout", "stderr"};
  int others = 0;
  for (int fd = 0; fd < 3; fd++) {
    int tty = isatty(fd);
    printf("%s: %s\n", names[fd], tty ? "terminal" : "no terminal");
    others += !tty;
  }
  return others;
}
