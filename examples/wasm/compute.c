/* Keeps the processor busy: counts the primes below its argument (by default 1000000, which
 * gives 78498) by trial division. No system calls but for the result.
 */
#include <stdio.h>
#include <stdlib.h>

static int is_prime(unsigned n) {
  if (n < 4)
    return n > 1;
  if (n % 2 == 0)
    return 0;
  for (unsigned d = 3; d <= n / d; d += 2)
    if (n % d == 0)
      return 0;
  return 1;
}

int main(int argc, char **argv) {
  unsigned long limit = argc > 1 ? strtoul(argv[1], NULL, 10) : 1000000;
  unsigned long count = 0;
  for (unsigned long n = 2; n < limit; n++)
    count += (unsigned long)is_prime((unsigned)n);
  printf("primes below %lu: %lu\n", limit, count);
  return 0;
}
