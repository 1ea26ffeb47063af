/* hello.c as a function that is called again and again: for `kiln serve --reuse answer.wasm`, and for
 * scripts/bench --http.
 */
#include <stdio.h>

__attribute__((export_name("handle"))) int handle(void) {
  puts("hello from wasm");
  return fflush(stdout);
}
