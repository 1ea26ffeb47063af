/* One line on stdout, from a Linux program. */
#include <stdio.h>

int main(void) {
  puts("hello from linux");
  return 0;
}
