/* A layer between a process and its file system, preloaded: it counts, logs and spoils what changes files.

   arm(root, log, nth, fault) watches this process and its threads from now on. Every call that changes something below
   `root` gets a number; call `nth` is spoilt as `fault` says, or none for 0:

     ENOSPC EIO  this one call fails
     FULL        a write stops half-way, and from then on nothing more can be written or made: a full disk
     SHORT       a write stops half-way and says so
     EINTR       this one call is interrupted before it did anything (only calls that POSIX lets be)
     KILL        a write stops half-way, and SIGKILL ends the process; other calls are not made

   Each call is a line of `log`: number, name, path, other path or -, result or -errno.
   Not seen: system calls that bypass libc, libc's own (stdio), stores into mapped files. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char root[PATH_MAX], fault[16];
static long nth;
static int logged = -1;
static atomic_long calls;
static atomic_int full;

void arm(const char *below, const char *log, long number, const char *what) {
  snprintf(root, sizeof root, "%s", below);
  snprintf(fault, sizeof fault, "%s", what);
  nth = number;
  logged = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
}

static int below_root(const char *path) {
  size_t length = strlen(root);
  return length && !strncmp(path, root, length) && (path[length] == '/' || !path[length]);
}

static void path_at(char *out, int directory, const char *path) {
  char link[64], start[PATH_MAX] = "";
  if (path[0] != '/') {
    snprintf(link, sizeof link, directory == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", directory);
    ssize_t length = readlink(link, start, sizeof start - 2);
    start[length < 0 ? 0 : length] = 0;
    strcat(start, "/");
  }
  snprintf(out, PATH_MAX, "%s%s", start, path);
}

static void path_of(char *out, int file) {
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, out, PATH_MAX - 1);
  out[length < 0 ? 0 : length] = 0;
}

static void tell(long number, const char *call, const char *path, const char *other, long result) {
  char line[2 * PATH_MAX + 64];
  int length = snprintf(line, sizeof line, "%ld\t%s\t%s\t%s\t%ld\n", number, call, path, other, result);
  syscall(SYS_write, logged, line, length);
}

enum { FINE, HALF, FAILS };
static const char *interruptible = " open write pwrite writev sendfile ftruncate fsync fdatasync ";
static const char *taking_space = " open write pwrite writev sendfile ftruncate fallocate mkdir ";

static int among(const char *calls_, const char *call) {
  char word[32];
  snprintf(word, sizeof word, " %s ", call);
  return strstr(calls_, word) != NULL;
}

/* What to do with a call; the number it has goes to *number. Sets errno where it fails. `many`: it can stop half-way. */
static int verdict(const char *call, const char *path, long *number, int many) {
  *number = atomic_fetch_add(&calls, 1) + 1;
  int now = *number == nth, sticky = atomic_load(&full) && among(taking_space, call);
  if (!now && !sticky) return FINE;
  if (now && !strcmp(fault, "KILL")) {
    if (many) return HALF;
    tell(*number, call, path, "-", -EINTR);
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
  }
  if (now && !strcmp(fault, "SHORT")) return many ? HALF : FINE;
  if (now && !strcmp(fault, "EINTR") && !among(interruptible, call)) return FINE;
  if (now && !strcmp(fault, "FULL")) {
    atomic_store(&full, 1);
    if (many) return HALF;
    if (!among(taking_space, call)) return FINE;
  }
  errno = sticky ? ENOSPC : !strcmp(fault, "EIO") ? EIO : !strcmp(fault, "EINTR") ? EINTR : ENOSPC;
  return FAILS;
}

static void after_half(const char *call, long number, const char *path, long result) {
  if (number != nth || strcmp(fault, "KILL")) return;
  tell(number, call, path, "-", result);
  syscall(SYS_kill, getpid(), SIGKILL);
  for (;;) pause();
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define WATCH(call, path, other, many, whole, half)                       \
  do {                                                                    \
    long number, result;                                                  \
    if (!below_root(path)) return whole;                                  \
    int found = verdict(call, path, &number, many);                       \
    result = found == FAILS ? -1 : found == HALF ? half : whole;          \
    int error = errno;                                                    \
    if (found == HALF) after_half(call, number, path, result);            \
    tell(number, call, path, other, result < 0 ? -error : result);        \
    errno = error;                                                        \
    return result;                                                        \
  } while (0)

#define OPEN(name, AT, ...)                                               \
  {                                                                       \
    mode_t mode = 0;                                                      \
    if (flags & (O_CREAT | __O_TMPFILE)) {                                \
      va_list rest;                                                       \
      va_start(rest, flags);                                              \
      mode = va_arg(rest, mode_t);                                        \
      va_end(rest);                                                       \
    }                                                                     \
    if (!(flags & (O_CREAT | O_TRUNC))) return REAL(name)(__VA_ARGS__);   \
    char path[PATH_MAX];                                                  \
    path_at(path, AT, given);                                             \
    WATCH("open", path, flags & O_TRUNC ? "trunc" : "-", 0, REAL(name)(__VA_ARGS__), -1); \
  }

int open(const char *given, int flags, ...) OPEN(open, AT_FDCWD, given, flags, mode)
int open64(const char *given, int flags, ...) OPEN(open64, AT_FDCWD, given, flags, mode)
int openat(int at, const char *given, int flags, ...) OPEN(openat, at, at, given, flags, mode)
int openat64(int at, const char *given, int flags, ...) OPEN(openat64, at, at, given, flags, mode)

#define ON_FILE(call, many, whole, half)                                  \
  {                                                                       \
    char path[PATH_MAX];                                                  \
    if (logged < 0) return whole;                                         \
    path_of(path, file);                                                  \
    WATCH(call, path, "-", many, whole, half);                            \
  }

ssize_t write(int file, const void *data, size_t size)
    ON_FILE("write", size > 1, REAL(write)(file, data, size), REAL(write)(file, data, size / 2))
ssize_t pwrite(int file, const void *data, size_t size, off_t at)
    ON_FILE("pwrite", size > 1, REAL(pwrite)(file, data, size, at), REAL(pwrite)(file, data, size / 2, at))
ssize_t pwrite64(int file, const void *data, size_t size, off64_t at)
    ON_FILE("pwrite", size > 1, REAL(pwrite64)(file, data, size, at), REAL(pwrite64)(file, data, size / 2, at))
ssize_t writev(int file, const struct iovec *parts, int count)
    ON_FILE("writev", count > 1, REAL(writev)(file, parts, count), REAL(writev)(file, parts, count / 2))
ssize_t sendfile(int file, int from, off_t *at, size_t size)
    ON_FILE("sendfile", 0, REAL(sendfile)(file, from, at, size), -1)
ssize_t sendfile64(int file, int from, off64_t *at, size_t size)
    ON_FILE("sendfile", 0, REAL(sendfile64)(file, from, at, size), -1)
int ftruncate(int file, off_t size) ON_FILE("ftruncate", 0, REAL(ftruncate)(file, size), -1)
int ftruncate64(int file, off64_t size) ON_FILE("ftruncate", 0, REAL(ftruncate64)(file, size), -1)
int posix_fallocate(int file, off_t at, off_t size) ON_FILE("fallocate", 0, REAL(posix_fallocate)(file, at, size), -1)
int fsync(int file) ON_FILE("fsync", 0, REAL(fsync)(file), -1)
int fdatasync(int file) ON_FILE("fdatasync", 0, REAL(fdatasync)(file), -1)

#define ON_PATH(call, at, whole)                                          \
  {                                                                       \
    char path[PATH_MAX];                                                  \
    path_at(path, at, given);                                             \
    WATCH(call, path, "-", 0, whole, -1);                                 \
  }

int mkdir(const char *given, mode_t mode) ON_PATH("mkdir", AT_FDCWD, REAL(mkdir)(given, mode))
int mkdirat(int at, const char *given, mode_t mode) ON_PATH("mkdir", at, REAL(mkdirat)(at, given, mode))
int unlink(const char *given) ON_PATH("unlink", AT_FDCWD, REAL(unlink)(given))
int unlinkat(int at, const char *given, int flags)
    ON_PATH(flags & AT_REMOVEDIR ? "rmdir" : "unlink", at, REAL(unlinkat)(at, given, flags))
int rmdir(const char *given) ON_PATH("rmdir", AT_FDCWD, REAL(rmdir)(given))
int chmod(const char *given, mode_t mode) ON_PATH("chmod", AT_FDCWD, REAL(chmod)(given, mode))
int fchmodat(int at, const char *given, mode_t mode, int flags)
    ON_PATH("chmod", at, REAL(fchmodat)(at, given, mode, flags))

#define ON_PATHS(call, at, to_at, whole)                                  \
  {                                                                       \
    char path[PATH_MAX], other[PATH_MAX];                                 \
    path_at(path, at, given);                                             \
    path_at(other, to_at, to);                                            \
    WATCH(call, path, other, 0, whole, -1);                               \
  }

int rename(const char *given, const char *to) ON_PATHS("rename", AT_FDCWD, AT_FDCWD, REAL(rename)(given, to))
int renameat(int at, const char *given, int to_at, const char *to)
    ON_PATHS("rename", at, to_at, REAL(renameat)(at, given, to_at, to))
int link(const char *given, const char *to) ON_PATHS("link", AT_FDCWD, AT_FDCWD, REAL(link)(given, to))
