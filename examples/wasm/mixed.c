/* A function that behaves as its first argument says, for tests under load: `trap`, `loop`, `exit`, or
 * anything else, which is printed.
 */
#include <stdio.h>
#include <string.h>

static volatile unsigned long turns;

int main(int argc, char **argv) {
  const char *what = argc > 1 ? argv[1] : "";
  if (strcmp(what, "trap") == 0)
    __builtin_trap();
  if (strcmp(what, "loop") == 0)
    for (;;)
      turns++;
  if (strcmp(what, "exit") == 0)
    return 3;
  puts(what);
  return 0;
}
