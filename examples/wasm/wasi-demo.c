/* What a program gets from its system through WASI: random bytes, arguments, environment, files.
 *
 * Writes a file, reads it back and shows it: the one that DEMO_FILE names, else
 * /tmp/wasi-demo.txt. Exit status 1 if something failed.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

extern char **environ;

static int failed(const char *what) {
  fprintf(stderr, "wasi-demo: %s: %s\n", what, strerror(errno));
  return 1;
}

int main(int argc, char **argv) {
  unsigned char random[16];
  if (getentropy(random, sizeof random) != 0)
    return failed("random bytes");
  printf("random:");
  for (size_t i = 0; i < sizeof random; i++)
    printf(" %02x", random[i]);
  putchar('\n');

  for (int i = 0; i < argc; i++)
    printf("argument %d: %s\n", i, argv[i]);
  for (char **entry = environ; *entry; entry++)
    printf("environment: %s\n", *entry);

  const char *path = getenv("DEMO_FILE");
  if (!path)
    path = "/tmp/wasi-demo.txt";
  FILE *file = fopen(path, "w");
  if (!file)
    return failed(path);
  if (fputs("written and read back", file) < 0 || fclose(file) != 0)
    return failed(path);
  char text[64];
  file = fopen(path, "r");
  if (!file || !fgets(text, sizeof text, file))
    return failed(path);
  fclose(file);
  printf("file %s: %s\n", path, text);
  return 0;
}
