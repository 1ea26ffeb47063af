/* A CGI program, RFC 3875: for `kiln serve --protocol cgi cgi.wasm`.
 *
 * It answers with a few of its variables, one to a line, a blank line, and the request's body as it
 * comes; for the path /echo with the body alone. The query may ask for more, by NAME=VALUE joined
 * with `&`:
 *
 *   status=404    the answer's status
 *   type=NAME     its content type
 *   location=URL  that header, and no other
 *   var=NAME      this variable's value in the place of the few
 *   sleep=MS      says so on standard error, and sleeps before it answers
 *   lines=N       writes N lines, each at once
 *   pause=MS      sleeps before each line and before its end
 *   bytes=N       writes N bytes
 *   exit=N        ends with this status
 *   trap=1        traps behind the answer
 *   bad=1         writes no headers
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* The value of a parameter, of which none is longer than its buffer; nothing if it is not there. */
static const char *parameter(const char *name) {
  static char buffers[4][256];
  static int next;
  const char *at = getenv("QUERY_STRING");
  size_t length = strlen(name);
  while (at && *at) {
    if (strncmp(at, name, length) == 0 && at[length] == '=') {
      char *value = buffers[next++ % 4];
      snprintf(value, sizeof buffers[0], "%.*s", (int)strcspn(at + length + 1, "&"),
               at + length + 1);
      return value;
    }
    at += strcspn(at, "&");
    at += *at == '&';
  }
  return NULL;
}

static long number(const char *name) {
  const char *value = parameter(name);
  return value ? atol(value) : 0;
}

static void pause_for(long milliseconds) {
  struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
  if (milliseconds > 0)
    nanosleep(&time, NULL);
}

static int headers(const char *path) {
  const char *location = parameter("location"), *status = parameter("status");
  const char *type = parameter("type");
  if (number("bad")) {
    puts("this is no header\n");
    return 0;
  }
  if (location) {
    printf("Location: %s\n\n", location);
    return 0;
  }
  if (status)
    printf("Status: %s\n", status);
  printf("X-Path: %s\n", path);
  printf("Content-Type: %s\n\n", type ? type : "text/plain");
  return 1;
}

static void variables(void) {
  static const char *const few[] = {"REQUEST_METHOD", "PATH_INFO", "QUERY_STRING",
                                    "CONTENT_TYPE", "CONTENT_LENGTH", "SERVER_PROTOCOL",
                                    "HTTP_HOST", "HTTP_USER_AGENT"};
  const char *name = parameter("var");
  if (name) {
    const char *value = getenv(name);
    puts(value ? value : "(not set)");
    return;
  }
  for (size_t i = 0; i < sizeof few / sizeof *few; i++)
    if (getenv(few[i]))
      printf("%s=%s\n", few[i], getenv(few[i]));
  puts("");
}

/* What has come is sent on before more is waited for. */
static void body(void) {
  char buffer[16384];
  ssize_t have;
  fflush(stdout);
  while ((have = read(0, buffer, sizeof buffer)) > 0) {
    fwrite(buffer, 1, (size_t)have, stdout);
    fflush(stdout);
  }
}

int main(void) {
  const char *path = getenv("PATH_INFO") ? getenv("PATH_INFO") : "/";
  if (number("sleep"))
    fprintf(stderr, "cgi: sleeps\n");
  pause_for(number("sleep"));
  if (!headers(path))
    return (int)number("exit");
  if (strcmp(path, "/echo") != 0)
    variables();
  body();
  for (long i = 0; i < number("lines"); i++) {
    pause_for(number("pause"));
    printf("line %ld\n", i);
    fflush(stdout);
  }
  static char block[16384];
  memset(block, 'x', sizeof block);
  for (long left = number("bytes"); left > 0; left -= (long)sizeof block)
    fwrite(block, 1, left < (long)sizeof block ? (size_t)left : sizeof block, stdout);
  fflush(stdout);
  if (number("trap"))
    __builtin_trap();
  pause_for(number("pause"));
  return (int)number("exit");
}
