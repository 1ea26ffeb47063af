/* Says so and runs for ever: ended by a signal or not at all. */
#include <stdio.h>

static volatile unsigned long turns;

int main(void) {
  puts("looping");
  fflush(stdout);
  for (;;)
    turns++;
}
