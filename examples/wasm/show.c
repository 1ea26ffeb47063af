/* Shows what it was given: its arguments, one to a line, then its standard input.
 *
 *   show [WORD...]
 *   show -e NAME...   variables of the environment in their place
 *   show -s TEXT      TEXT on standard error
 *   show -b N         N times the byte 0xff and a line's end
 *   show -n N         N bytes, in lines of 100
 *   show -c WORD      the word, and closes its streams
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void filled(long count) {
  for (long i = 1; i <= count; i++)
    putchar(i % 100 == 0 ? '\n' : 'a' + (int)(i % 26));
}

int main(int argc, char **argv) {
  const char *flag = argc > 2 ? argv[1] : "";
  if (strcmp(flag, "-e") == 0) {
    for (int i = 2; i < argc; i++)
      puts(getenv(argv[i]) ? getenv(argv[i]) : "(not set)");
  } else if (strcmp(flag, "-s") == 0) {
    fputs(argv[2], stderr);
  } else if (strcmp(flag, "-b") == 0) {
    for (long i = atol(argv[2]); i > 0; i--)
      putchar(0xff);
    putchar('\n');
  } else if (strcmp(flag, "-n") == 0) {
    filled(atol(argv[2]));
  } else if (strcmp(flag, "-c") == 0) {
    puts(argv[2]);
    fflush(stdout);
    for (int fd = 0; fd < 3; fd++)
      close(fd);
    return 0;
  } else {
    for (int i = 1; i < argc; i++)
      puts(argv[i]);
  }
  char buffer[4096];
  size_t have;
  while ((have = fread(buffer, 1, sizeof buffer, stdin)) > 0)
    fwrite(buffer, 1, have, stdout);
  return 0;
}
