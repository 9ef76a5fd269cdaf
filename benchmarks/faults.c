/* Faults in the files below one folder, for faults.py: loaded by LD_PRELOAD, it stands between every library of the process and
   the C library, Python's own calls and the C++ of the checkpoint writer alike. fault_arm() says what happens at which call. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NOTHING, FAIL_WRITE, FAIL_WRITES, FAIL_READ, KILL, KILL_HALFWAY, FLIP, LOSE };
static char folder[4096];
static atomic_int what;
static atomic_long left, seen, fired;
static int code;

void fault_arm(const char *path, int kind, long after, int error) {
  atomic_store(&what, NOTHING);
  strncpy(folder, path, sizeof folder - 1);
  code = error;
  atomic_store(&left, after);
  atomic_store(&seen, 0);
  atomic_store(&fired, 0);
  atomic_store(&what, kind);
}
long fault_seen(void) { return atomic_load(&seen); }
long fault_fired(void) { return atomic_load(&fired); }

static int below(const char *path) { return folder[0] && path && strncmp(path, folder, strlen(folder)) == 0; }

static int fd_below(int fd) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t n = readlink(link, path, sizeof path - 1);
  if (n < 0) return 0;
  path[n] = 0;
  return below(path);
}

static int at_below(int dir, const char *path) {
  if (path && path[0] == '/') return below(path);
  return dir == AT_FDCWD ? 0 : fd_below(dir);
}

/* What happens at this call: 0 reads, 1 changes a file or a folder, 2 writes data. */
static int now(int call) {
  int kind = atomic_load(&what);
  if (kind == NOTHING || (call > 0) != (kind != FAIL_READ)) return NOTHING;
  if ((kind == FLIP || kind == LOSE) && call != 2) return NOTHING;
  atomic_fetch_add(&seen, 1);
  long before = atomic_fetch_sub(&left, 1);
  if (before > 0 || (before < 0 && kind != FAIL_WRITES)) return NOTHING;
  return kind;
}

/* The faults that a call without data has; true if it must fail. */
static int fails(int kind) {
  if (kind == KILL || kind == KILL_HALFWAY) kill(getpid(), SIGKILL);
  if (kind != FAIL_WRITE && kind != FAIL_WRITES && kind != FAIL_READ) return 0;
  atomic_fetch_add(&fired, 1);
  errno = code;
  return 1;
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

/* One write, of which a part may be written, or written wrong; `with(data, count)` is the real call. */
#define WRITTEN(fd, data, count, with)                                                                    \
  int kind = fd_below(fd) ? now(2) : NOTHING;                                                             \
  if (kind == FLIP && (count) > 0) {                                                                      \
    char *copy = malloc(count);                                                                           \
    memcpy(copy, data, count);                                                                            \
    copy[(count) / 2] ^= 16;                                                                              \
    ssize_t n = with(copy, count);                                                                        \
    free(copy);                                                                                           \
    atomic_fetch_add(&fired, 1);                                                                          \
    return n;                                                                                             \
  }                                                                                                       \
  if ((kind == LOSE || kind == KILL_HALFWAY) && (count) > 1) {                                            \
    ssize_t n = with(data, (count) / 2);                                                                  \
    if (kind == KILL_HALFWAY) kill(getpid(), SIGKILL);                                                    \
    atomic_fetch_add(&fired, 1);                                                                          \
    return n < 0 ? n : (ssize_t)(count);                                                                  \
  }                                                                                                       \
  if (fails(kind)) return -1;                                                                             \
  return with(data, count)

ssize_t write(int fd, const void *data, size_t count) {
  REAL(write);
#define WITH(d, c) real(fd, d, c)
  WRITTEN(fd, data, count, WITH);
#undef WITH
}
ssize_t pwrite(int fd, const void *data, size_t count, off_t at) {
  REAL(pwrite);
#define WITH(d, c) real(fd, d, c, at)
  WRITTEN(fd, data, count, WITH);
#undef WITH
}
ssize_t pwrite64(int fd, const void *data, size_t count, off64_t at) {
  REAL(pwrite64);
#define WITH(d, c) real(fd, d, c, at)
  WRITTEN(fd, data, count, WITH);
#undef WITH
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
  REAL(writev);
  int kind = fd_below(fd) ? now(2) : NOTHING;
  if (count > 0 && parts[0].iov_len > 1 && (kind == FLIP || kind == LOSE || kind == KILL_HALFWAY)) {
    struct iovec *copy = malloc(count * sizeof *copy);
    memcpy(copy, parts, count * sizeof *copy);
    copy[0].iov_base = malloc(parts[0].iov_len);
    memcpy(copy[0].iov_base, parts[0].iov_base, parts[0].iov_len);
    if (kind == FLIP) ((char *)copy[0].iov_base)[parts[0].iov_len / 2] ^= 16;
    if (kind != FLIP) copy[0].iov_len /= 2;
    ssize_t n = real(fd, copy, kind == FLIP ? count : 1), whole = 0;
    if (kind == KILL_HALFWAY) kill(getpid(), SIGKILL);
    for (int i = 0; i < count; i++) whole += parts[i].iov_len;
    free(copy[0].iov_base);
    free(copy);
    atomic_fetch_add(&fired, 1);
    return n < 0 ? n : whole;
  }
  if (fails(kind)) return -1;
  return real(fd, parts, count);
}

ssize_t read(int fd, void *data, size_t count) {
  REAL(read);
  if (fd_below(fd) && fails(now(0))) return -1;
  return real(fd, data, count);
}
ssize_t pread(int fd, void *data, size_t count, off_t at) {
  REAL(pread);
  if (fd_below(fd) && fails(now(0))) return -1;
  return real(fd, data, count, at);
}
ssize_t pread64(int fd, void *data, size_t count, off64_t at) {
  REAL(pread64);
  if (fd_below(fd) && fails(now(0))) return -1;
  return real(fd, data, count, at);
}

#define OPENED(dir, path, flags) (at_below(dir, path) && fails(now(((flags) & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)) != 0)))
#define MODE(flags)                 \
  mode_t mode = 0;                  \
  if ((flags) & (O_CREAT | O_TMPFILE)) { \
    va_list more;                   \
    va_start(more, flags);          \
    mode = va_arg(more, mode_t);    \
    va_end(more);                   \
  }

int open(const char *path, int flags, ...) {
  REAL(open);
  MODE(flags)
  return OPENED(AT_FDCWD, path, flags) ? -1 : real(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
  REAL(open64);
  MODE(flags)
  return OPENED(AT_FDCWD, path, flags) ? -1 : real(path, flags, mode);
}
int openat(int dir, const char *path, int flags, ...) {
  REAL(openat);
  MODE(flags)
  return OPENED(dir, path, flags) ? -1 : real(dir, path, flags, mode);
}
int openat64(int dir, const char *path, int flags, ...) {
  REAL(openat64);
  MODE(flags)
  return OPENED(dir, path, flags) ? -1 : real(dir, path, flags, mode);
}

int fsync(int fd) {
  REAL(fsync);
  return fd_below(fd) && fails(now(1)) ? -1 : real(fd);
}
int fdatasync(int fd) {
  REAL(fdatasync);
  return fd_below(fd) && fails(now(1)) ? -1 : real(fd);
}
int ftruncate(int fd, off_t size) {
  REAL(ftruncate);
  return fd_below(fd) && fails(now(1)) ? -1 : real(fd, size);
}
int rename(const char *from, const char *to) {
  REAL(rename);
  return below(to) && fails(now(1)) ? -1 : real(from, to);
}
int renameat(int there, const char *from, int here, const char *to) {
  REAL(renameat);
  return at_below(here, to) && fails(now(1)) ? -1 : real(there, from, here, to);
}
int mkdir(const char *path, mode_t mode) {
  REAL(mkdir);
  return below(path) && fails(now(1)) ? -1 : real(path, mode);
}
int unlink(const char *path) {
  REAL(unlink);
  return below(path) && fails(now(1)) ? -1 : real(path);
}
int rmdir(const char *path) {
  REAL(rmdir);
  return below(path) && fails(now(1)) ? -1 : real(path);
}
