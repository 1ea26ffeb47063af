/* Says so and sleeps for its argument's seconds (by default 1000), in one call. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

int main(int argc, char **argv) {
  struct timespec time = {.tv_sec = argc > 1 ? atoi(argv[1]) : 1000};
  puts("sleeping");
  fflush(stdout);
  if (nanosleep(&time, NULL) != 0) {
    perror("sleep");
    return 1;
  }
  puts("awake");
  return 0;
}
