/* Ends with the exit status that its argument names, 0 to 255; without one, with 0. */
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
  char *end;
  long status = argc > 1 ? strtol(argv[1], &end, 10) : 0;
  if (argc > 1 && (end == argv[1] || *end || status < 0 || status > 255)) {
    fprintf(stderr, "exit: \"%s\" is not a status from 0 to 255\n", argv[1]);
    return 2;
  }
  exit((int)status);
}
