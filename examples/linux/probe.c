/* What a Linux process sees of its container, asked of the kernel by system calls alone, so that
 * it works in an empty rootfs without /proc.
 *
 *   probe                 everything below, a line `name: value` each
 *   probe syscall NR [A]  makes one system call (first argument A, else 0) and prints its result
 *                         or the name of its error
 *   probe memory MIB      allocates and touches so much memory, prints how much it got
 *   probe processes N     forks N children that wait, prints how many it got, ends them
 *   probe spin MS         uses so much processor time, prints the time that passed, in ms
 *   probe notify TEXT...  sends each text to NOTIFY_SOCKET, prints OK or the name of the error
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <linux/capability.h>
#include <linux/keyctl.h>
#include <linux/securebits.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

static void identity(void) {
  uid_t ruid, euid, suid;
  gid_t rgid, egid, sgid, groups[256];
  getresuid(&ruid, &euid, &suid);
  getresgid(&rgid, &egid, &sgid);
  printf("pid: %d\nppid: %d\npgid: %d\nsid: %d\n", getpid(), getppid(), getpgid(0), getsid(0));
  printf("uid: %u %u %u\ngid: %u %u %u\ngroups:", ruid, euid, suid, rgid, egid, sgid);
  int count = getgroups(256, groups);
  for (int i = 0; i < count; i++)
    printf(" %u", groups[i]);
  putchar('\n');
}

static void capabilities(void) {
  struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
  struct __user_cap_data_struct data[2] = {{0}};
  syscall(SYS_capget, &header, data);
  printf("caps effective: %08x%08x\n", data[1].effective, data[0].effective);
  printf("caps permitted: %08x%08x\n", data[1].permitted, data[0].permitted);
  printf("caps inheritable: %08x%08x\n", data[1].inheritable, data[0].inheritable);
  unsigned long long bounding = 0, ambient = 0;
  for (int cap = 0; cap < 64; cap++) {
    bounding |= (unsigned long long)(prctl(PR_CAPBSET_READ, cap, 0, 0, 0) == 1) << cap;
    ambient |= (unsigned long long)(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_IS_SET, cap, 0, 0) == 1)
               << cap;
  }
  printf("caps bounding: %016llx\ncaps ambient: %016llx\n", bounding, ambient);
  printf("no_new_privs: %d\n", prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
  printf("seccomp: %d\n", prctl(PR_GET_SECCOMP, 0, 0, 0, 0));
  printf("securebits: %d\n", prctl(PR_GET_SECUREBITS, 0, 0, 0, 0));
  printf("dumpable: %d\n", prctl(PR_GET_DUMPABLE, 0, 0, 0, 0));
  printf("parent death signal: ");
  int signal = 0;
  prctl(PR_GET_PDEATHSIG, &signal, 0, 0, 0);
  printf("%d\n", signal);
}

static void limits(void) {
  static const struct {
    const char *name;
    int resource;
  } all[] = {
      {"as", RLIMIT_AS},           {"core", RLIMIT_CORE},       {"cpu", RLIMIT_CPU},
      {"data", RLIMIT_DATA},       {"fsize", RLIMIT_FSIZE},     {"locks", RLIMIT_LOCKS},
      {"memlock", RLIMIT_MEMLOCK}, {"msgqueue", RLIMIT_MSGQUEUE}, {"nice", RLIMIT_NICE},
      {"nofile", RLIMIT_NOFILE},   {"nproc", RLIMIT_NPROC},     {"rss", RLIMIT_RSS},
      {"rtprio", RLIMIT_RTPRIO},   {"rttime", RLIMIT_RTTIME},   {"sigpending", RLIMIT_SIGPENDING},
      {"stack", RLIMIT_STACK},
  };
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    struct rlimit limit;
    getrlimit(all[i].resource, &limit);
    /* Unlimited is -1. */
    printf("limit %s: %lld %lld\n", all[i].name, (long long)limit.rlim_cur,
           (long long)limit.rlim_max);
  }
}

static void scheduling(void) {
  printf("nice: %d\n", getpriority(PRIO_PROCESS, 0));
  printf("scheduler: %d\n", sched_getscheduler(0));
  printf("ioprio: %ld\n", syscall(SYS_ioprio_get, 1, 0));
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) {
    printf("cpus:");
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
      if (CPU_ISSET(cpu, &set))
        printf(" %d", cpu);
    putchar('\n');
  }
}

static void signals(void) {
  sigset_t blocked;
  sigprocmask(SIG_SETMASK, NULL, &blocked);
  printf("signals blocked:");
  for (int signal = 1; signal < 65; signal++)
    if (sigismember(&blocked, signal) == 1)
      printf(" %d", signal);
  printf("\nsignals ignored:");
  for (int signal = 1; signal < 65; signal++) {
    struct sigaction action;
    if (sigaction(signal, NULL, &action) == 0 && action.sa_handler == SIG_IGN)
      printf(" %d", signal);
  }
  putchar('\n');
}

static void files(void) {
  printf("fds:");
  for (int fd = 0; fd < 4096; fd++)
    if (fcntl(fd, F_GETFD) >= 0)
      printf(" %d", fd);
  putchar('\n');
  for (int fd = 0; fd < 3; fd++)
    printf("tty %d: %d\n", fd, isatty(fd));
  mode_t mask = umask(0);
  umask(mask);
  printf("umask: %04o\n", (unsigned)mask);
  char cwd[PATH_MAX];
  printf("cwd: %s\n", getcwd(cwd, sizeof cwd) ? cwd : strerror(errno));
}

static void names(int argc, char **argv) {
  struct utsname name;
  uname(&name);
  printf("hostname: %s\ndomainname: %s\n", name.nodename, name.domainname);
  printf("personality: %lx\n", syscall(SYS_personality, 0xffffffff));
  char keyring[128] = "";
  long key = syscall(SYS_keyctl, KEYCTL_GET_KEYRING_ID, KEY_SPEC_SESSION_KEYRING, 0);
  if (key > 0)
    syscall(SYS_keyctl, KEYCTL_DESCRIBE, key, keyring, sizeof keyring - 1);
  printf("session keyring: %s\n", key > 0 ? keyring : strerror(errno));
  for (int i = 0; i < argc; i++)
    printf("arg %d: %s\n", i, argv[i]);
  for (char **entry = environ; *entry; entry++)
    printf("env: %s\n", *entry);
}

static int call(long number, long argument) {
  long result = syscall(number, argument, 0, 0, 0, 0, 0);
  if (result == -1)
    printf("%s\n", strerrorname_np(errno));
  else
    printf("%ld\n", result);
  return 0;
}

static int memory(long mib) {
  for (long have = 0; have < mib; have++) {
    char *block = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (block == MAP_FAILED) {
      printf("%ld: %s\n", have, strerrorname_np(errno));
      return 1;
    }
    memset(block, 1, 1 << 20);
  }
  printf("%ld\n", mib);
  return 0;
}

static int processes(long wanted) {
  long have = 0;
  pid_t first = 0;
  while (have < wanted) {
    pid_t pid = fork();
    if (pid == 0) {
      for (;;)
        pause();
    }
    if (pid < 0)
      break;
    /* All in one process group, to be ended together. */
    first = first ? first : pid;
    setpgid(pid, first);
    have++;
  }
  int error = errno;
  if (have < wanted)
    printf("%ld: %s\n", have, strerrorname_np(error));
  else
    printf("%ld\n", have);
  if (first)
    kill(-first, SIGKILL);
  while (wait(NULL) > 0)
    ;
  return have < wanted;
}

static long milliseconds(clockid_t clock) {
  struct timespec now;
  clock_gettime(clock, &now);
  return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int spin(long wanted) {
  long start = milliseconds(CLOCK_MONOTONIC);
  while (milliseconds(CLOCK_PROCESS_CPUTIME_ID) < wanted)
    ;
  printf("%ld\n", milliseconds(CLOCK_MONOTONIC) - start);
  return 0;
}

static int notify(int count, char **texts) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  const char *path = getenv("NOTIFY_SOCKET");
  strncpy(address.sun_path, path ? path : "", sizeof address.sun_path - 1);
  int failed = 0, socket_fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  for (int i = 0; i < count; i++) {
    ssize_t sent = sendto(socket_fd, texts[i], strlen(texts[i]), 0, (struct sockaddr *)&address,
                          sizeof address);
    failed |= sent < 0;
    puts(sent < 0 ? strerrorname_np(errno) : "OK");
  }
  return failed;
}

int main(int argc, char **argv) {
  const char *what = argc > 2 ? argv[1] : "";
  long number = argc > 2 ? strtol(argv[2], NULL, 0) : 0;
  if (strcmp(what, "syscall") == 0)
    return call(number, argc > 3 ? strtol(argv[3], NULL, 0) : 0);
  if (strcmp(what, "memory") == 0)
    return memory(number);
  if (strcmp(what, "processes") == 0)
    return processes(number);
  if (strcmp(what, "spin") == 0)
    return spin(number);
  if (strcmp(what, "notify") == 0)
    return notify(argc - 2, argv + 2);
  if (argc == 2 && strcmp(argv[1], "all") != 0) {
    fputs("usage: probe [all] | syscall NR [A] | memory MIB | processes N | spin MS | notify TEXT...\n",
          stderr);
    return 2;
  }
  identity();
  capabilities();
  limits();
  scheduling();
  signals();
  files();
  names(argc, argv);
  return 0;
}
