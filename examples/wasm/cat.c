/* Copies stdin to stdout as it comes. */
#include <stdio.h>
#include <unistd.h>

int main(void) {
  char buffer[4096];
  ssize_t have;
  while ((have = read(0, buffer, sizeof buffer)) > 0) {
    for (ssize_t done = 0; done < have;) {
      ssize_t written = write(1, buffer + done, (size_t)(have - done));
      if (written < 0) {
        perror("cat: stdout");
        return 1;
      }
      done += written;
    }
  }
  if (have < 0) {
    perror("cat: stdin");
    return 1;
  }
  return 0;
}
