/* A layer between a program and its files: at the n-th change below a folder, fail it or kill.
 *
 * Loaded by LD_PRELOAD, so that it sees the writes of Python, of torch's and Arrow's C++ and of
 * safetensors' Rust alike. What glibc does within itself (the buffer of fwrite) it does not see.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, FAIL, KILL };

static char root[4096]; /* empty: nothing is counted */
static int mode;
static long at, seen;
static char struck[64]; /* the call that was failed, for the report */

void faults_arm(const char *folder, long number, int what) {
  snprintf(root, sizeof root, "%s", folder);
  at = number;
  mode = what;
  seen = 0;
  struck[0] = 0;
}

long faults_seen(void) { return seen; }
const char *faults_struck(void) { return struck; }

static int below(const char *path) {
  if (!root[0] || !path) return 0;
  char whole[8192];
  if (path[0] != '/') {
    char here[4096];
    if (!getcwd(here, sizeof here)) return 0;
    snprintf(whole, sizeof whole, "%s/%s", here, path);
    path = whole;
  }
  return strncmp(path, root, strlen(root)) == 0;
}

static int open_below(int fd) {
  if (!root[0]) return 0;
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return below(path);
}

/* Whether this change is the one to strike. */
static int struck_now(const char *call) {
  long number = __atomic_add_fetch(&seen, 1, __ATOMIC_SEQ_CST);
  if (mode == COUNT || number != at) return 0;
  snprintf(struck, sizeof struck, "%s", call);
  return 1;
}

static int strike(void) {
  if (mode == KILL) {
    raise(SIGKILL);
    for (;;) pause();
  }
  errno = ENOSPC;
  return -1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int writes(int flags) { return flags & (O_CREAT | O_TRUNC); }

#define OPEN(name)                                                              \
  int name(const char *path, int flags, ...) {                                  \
    va_list rest;                                                               \
    va_start(rest, flags);                                                      \
    mode_t bits = va_arg(rest, mode_t);                                         \
    va_end(rest);                                                               \
    if (writes(flags) && below(path) && struck_now("open")) return strike();    \
    return REAL(name)(path, flags, bits);                                       \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                            \
  int name(int folder, const char *path, int flags, ...) {                      \
    va_list rest;                                                               \
    va_start(rest, flags);                                                      \
    mode_t bits = va_arg(rest, mode_t);                                         \
    va_end(rest);                                                               \
    if (writes(flags) && below(path) && struck_now("open")) return strike();    \
    return REAL(name)(folder, path, flags, bits);                               \
  }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                                             \
  FILE *name(const char *path, const char *how) {                               \
    if (how[0] != 'r' && below(path) && struck_now("open")) {                   \
      strike();                                                                 \
      return NULL;                                                              \
    }                                                                           \
    return REAL(name)(path, how);                                               \
  }
FOPEN(fopen)
FOPEN(fopen64)

/* A disk that fills, and a kill, leave the first half of what was to be written. */
ssize_t write(int fd, const void *bytes, size_t size) {
  if (open_below(fd) && struck_now("write")) {
    ssize_t half = REAL(write)(fd, bytes, size / 2);
    (void)half;
    return strike();
  }
  return REAL(write)(fd, bytes, size);
}

#define PWRITE(name)                                                            \
  ssize_t name(int fd, const void *bytes, size_t size, __typeof__(off_t) place) { \
    if (open_below(fd) && struck_now("write")) return strike();                 \
    return REAL(name)(fd, bytes, size, place);                                  \
  }
PWRITE(pwrite)

ssize_t writev(int fd, const struct iovec *parts, int number) {
  if (open_below(fd) && struck_now("write")) return strike();
  return REAL(writev)(fd, parts, number);
}

ssize_t sendfile(int to, int from, off_t *place, size_t size) {
  if (open_below(to) && struck_now("write")) return strike();
  return REAL(sendfile)(to, from, place, size);
}

ssize_t copy_file_range(int from, off64_t *start, int to, off64_t *place, size_t size,
                        unsigned int flags) {
  if (open_below(to) && struck_now("write")) return strike();
  return REAL(copy_file_range)(from, start, to, place, size, flags);
}

int rename(const char *from, const char *to) {
  if (below(to) && struck_now("rename")) return strike();
  return REAL(rename)(from, to);
}

int mkdir(const char *path, mode_t bits) {
  if (below(path) && struck_now("mkdir")) return strike();
  return REAL(mkdir)(path, bits);
}

int fsync(int fd) {
  if (open_below(fd) && struck_now("fsync")) return strike();
  return REAL(fsync)(fd);
}

int ftruncate(int fd, off_t size) {
  if (open_below(fd) && struck_now("truncate")) return strike();
  return REAL(ftruncate)(fd, size);
}

/* Removing frees space: only a kill strikes there. */
int unlink(const char *path) {
  if (mode == KILL && below(path) && struck_now("unlink")) return strike();
  return REAL(unlink)(path);
}
