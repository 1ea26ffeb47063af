/* Files as the program sees them:
 *
 *   files list DIR          the names in a directory, sorted, one to a line
 *   files read FILE         its content
 *   files write FILE TEXT   makes or replaces it
 *   files append FILE TEXT  adds to its end
 *   files remove FILE
 *   files mkdir DIR
 *
 * Exit status 1 and a message on stderr if the system refused, 2 if it was called wrongly.
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int failed(const char *path) {
  fprintf(stderr, "files: %s: %s\n", path, strerror(errno));
  return 1;
}

static int list(const char *path) {
  struct dirent **names;
  int count = scandir(path, &names, NULL, alphasort);
  if (count < 0)
    return failed(path);
  for (int i = 0; i < count; i++)
    if (strcmp(names[i]->d_name, ".") != 0 && strcmp(names[i]->d_name, "..") != 0)
      puts(names[i]->d_name);
  return 0;
}

static int show(const char *path) {
  FILE *file = fopen(path, "r");
  if (!file)
    return failed(path);
  char buffer[4096];
  size_t have;
  while ((have = fread(buffer, 1, sizeof buffer, file)) > 0)
    fwrite(buffer, 1, have, stdout);
  return ferror(file) ? failed(path) : 0;
}

static int put(const char *path, const char *mode, const char *text) {
  FILE *file = fopen(path, mode);
  if (!file)
    return failed(path);
  int bad = fputs(text, file) < 0;
  return fclose(file) != 0 || bad ? failed(path) : 0;
}

int main(int argc, char **argv) {
  const char *what = argc > 2 ? argv[1] : "";
  if (argc == 3 && strcmp(what, "list") == 0)
    return list(argv[2]);
  if (argc == 3 && strcmp(what, "read") == 0)
    return show(argv[2]);
  if (argc == 4 && strcmp(what, "write") == 0)
    return put(argv[2], "w", argv[3]);
  if (argc == 4 && strcmp(what, "append") == 0)
    return put(argv[2], "a", argv[3]);
  if (argc == 3 && strcmp(what, "remove") == 0)
    return remove(argv[2]) != 0 ? failed(argv[2]) : 0;
  if (argc == 3 && strcmp(what, "mkdir") == 0)
    return mkdir(argv[2], 0777) != 0 ? failed(argv[2]) : 0;
  fputs("usage: files list|read|remove|mkdir PATH | write|append PATH TEXT\n", stderr);
  return 2;
}
