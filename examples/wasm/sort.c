/* Sorts integers.
 *
 *   sort.wasm 1111 2345 8 99 -10000
 *   -10000 8 99 1111 2345
 *
 * Prints its arguments in ascending order on one line, separated by single spaces; an empty line
 * without arguments. An argument that is not a decimal integer of 64 bits: a message on stderr,
 * nothing on stdout, exit status 1.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

static int compare(const void *left, const void *right) {
  long long a = *(const long long *)left, b = *(const long long *)right;
  return (a > b) - (a < b);
}

int main(int argc, char **argv) {
  size_t count = argc > 1 ? (size_t)argc - 1 : 0;
  long long *numbers = calloc(count + 1, sizeof *numbers);
  if (!numbers) {
    fputs("sort: out of memory\n", stderr);
    return 1;
  }
  for (size_t i = 0; i < count; i++) {
    char *end;
    errno = 0;
    numbers[i] = strtoll(argv[i + 1], &end, 10);
    if (end == argv[i + 1] || *end || errno) {
      fprintf(stderr, "sort: \"%s\" is not an integer\n", argv[i + 1]);
      return 1;
    }
  }
  qsort(numbers, count, sizeof *numbers, compare);
  for (size_t i = 0; i < count; i++)
    printf("%s%lld", i ? " " : "", numbers[i]);
  putchar('\n');
  return 0;
}
