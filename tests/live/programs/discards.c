// Discards, or lets grow, memory that is merged, in ways in which the guardian of it cannot stop who does it.
// usage: discards PAGES FIRST, then a line for each thing to do, answered by "pages wrong, microseconds, those of the
//        longest discard"; or
//        discards trace PID: traces all threads of a process and resumes them, stop by stop, until its input ends.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <dirent.h>
#include <unistd.h>

#define PAGE 4096ul

static char *memory;
static unsigned long pages, first;
// Shared also with children that have memory of their own.
static volatile long *found;

static void fill(char *page, unsigned long k) {
  uint64_t word = (k + 1) * 0x9e3779b97f4a7c15ull;
  for (unsigned i = 0; i < PAGE / 8; i++, word = word * 6364136223846793005ull + 1442695040888963407ull)
    ((uint64_t *)page)[i] = word;
}

static long not_zero(const char *from, unsigned long n) {
  static const char zero[PAGE];
  long wrong = 0;
  for (unsigned long k = 0; k < n; k++) wrong += memcmp(zero, from + k * PAGE, PAGE) != 0;
  return wrong;
}

static long not_kept(const char *from, unsigned long at, unsigned long n) {
  char want[PAGE];
  long wrong = 0;
  for (unsigned long k = 0; k < n; k++) {
    fill(want, first + at + k);
    wrong += memcmp(want, from + k * PAGE, PAGE) != 0;
  }
  return wrong;
}

static long since(const struct timespec *a) {
  struct timespec b;
  clock_gettime(CLOCK_MONOTONIC, &b);
  return (b.tv_sec - a->tv_sec) * 1000000 + (b.tv_nsec - a->tv_nsec) / 1000;
}

static int dontneed(char *from, unsigned long n) {
  struct timespec a;
  clock_gettime(CLOCK_MONOTONIC, &a);
  int failed = madvise(from, n * PAGE, MADV_DONTNEED);
  long took = since(&a);
  if (took > found[1]) found[1] = took;
  return failed;
}

// The first half, a page, or sixteen, at a time; the second half stays.
static int discard(void *unused) {
  for (unsigned long k = 0, n; k < pages / 2; k += n) {
    n = k % 3 ? 1 : 16;
    if (k + n > pages / 2) n = pages / 2 - k;
    if (dontneed(memory + k * PAGE, n)) *found += 100000;
    *found += not_zero(memory + k * PAGE, n);
  }
  *found += 1000 * not_kept(memory + pages / 2 * PAGE, pages / 2, pages / 2);
  // What is written to what was discarded stays.
  for (unsigned long k = 0; k < pages / 2; k += 5) memory[k * PAGE + 7] = 3;
  for (unsigned long k = 0; k < pages / 2; k += 5) {
    *found += 10000 * (memory[k * PAGE + 7] != 3);
    memory[k * PAGE + 7] = 0;
  }
  _exit(0);
}

static long in_child(int flags) {
  static char stack[1 << 16];
  int status;
  // Without memory in common the system call itself: the child goes on on the same stack, in a copy.
  pid_t child = flags & CLONE_VM ? clone(discard, stack + sizeof stack, flags | SIGCHLD, 0)
                                 : (pid_t)syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
  if (!child) discard(0);
  if (child < 0 || waitpid(child, &status, 0) != child) return -errno;
  return status ? 1000000 + status : *found;
}

static long grow(void) {
  char *grown = mremap(memory, pages * PAGE, 2 * pages * PAGE, MREMAP_MAYMOVE);
  if (grown == MAP_FAILED) return -errno;
  memory = grown;
  long wrong = not_zero(grown + pages * PAGE, pages) + 1000 * not_kept(grown, 0, pages);
  munmap(grown + pages * PAGE, pages * PAGE);
  return wrong;
}

static long leave(void) {
  char *moved = mremap(memory, pages * PAGE, pages * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP);
  if (moved == MAP_FAILED) return -errno;
  long wrong = not_zero(memory, pages) + 1000 * not_kept(moved, 0, pages);
  memory = moved;
  return wrong;
}

static long free_by_descriptor(void) {
  struct iovec parts[2] = {{memory, 40 * PAGE}, {memory + 100 * PAGE, 60 * PAGE}};
  int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
  long done = syscall(SYS_process_madvise, self, parts, 2, MADV_FREE, 0);
  close(self);
  // A kernel that does not do this for a process itself leaves all as it is.
  if (done < 0) return not_kept(memory, 0, pages);
  long wrong = done == 100 * (long)PAGE ? 0 : 1000000;
  for (int i = 0; i < 2; i++)
    for (unsigned long k = 0; k < parts[i].iov_len / PAGE; k++) {
      char *page = (char *)parts[i].iov_base + k * PAGE;
      wrong += not_zero(page, 1) && not_kept(page, (page - memory) / PAGE, 1);
    }
  return wrong + 1000 * not_kept(memory + 160 * PAGE, 160, pages - 160);
}

static long here(void) {
  pid_t child = fork();
  int status;
  if (child) {
    waitpid(child, &status, 0);
    return *found;
  }
  return discard(0);
}

static void *in_thread(void *unused) {
  // As discard(), but of this process.
  for (unsigned long k = 0; k < pages / 2; k++) {
    dontneed(memory + k * PAGE, 1);
    *found += not_zero(memory + k * PAGE, 1);
  }
  *found += 1000 * not_kept(memory + pages / 2 * PAGE, pages / 2, pages / 2);
  return 0;
}

static long not_freed(void) {
  long wrong = 0;
  for (unsigned long k = 0; k < pages / 2; k++)
    wrong += not_zero(memory + k * PAGE, 1) && not_kept(memory + k * PAGE, k, 1);
  return wrong + 1000 * not_kept(memory + pages / 2 * PAGE, pages / 2, pages / 2);
}

static int lives(void *unused) {
  found[2] = 1;
  usleep(150000);
  _exit(0);
}

static void *has_a_child(void *unused) {
  static char stack[1 << 16];
  pid_t child = clone(lives, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, 0);
  waitpid(child, 0, 0);
  return 0;
}

// Meanwhile a child of another thread's vfork runs in this memory, so this process cannot be stopped.
static long free_beside_vfork(void) {
  pthread_t thread;
  found[2] = 0;
  pthread_create(&thread, 0, has_a_child, 0);
  while (!found[2]) usleep(100);
  long wrong = madvise(memory, pages / 2 * PAGE, MADV_FREE) ? 1000000 + errno : not_freed();
  pthread_join(thread, 0);
  return wrong;
}

static int trace(int pid) {
  char path[64];
  int status;
  snprintf(path, sizeof path, "/proc/%d/task", pid);
  DIR *tasks = opendir(path);
  for (struct dirent *e; tasks && (e = readdir(tasks));)
    if (atoi(e->d_name)) {
      // Whoever stops it for a moment just now is waited for.
      while (ptrace(PTRACE_SEIZE, atoi(e->d_name), 0, PTRACE_O_TRACESYSGOOD) && errno == EPERM) usleep(100);
      ptrace(PTRACE_INTERRUPT, atoi(e->d_name), 0, 0);
    }
  puts("tracing");
  fflush(stdout);
  for (struct pollfd in = {0, POLLIN, 0}; poll(&in, 1, 0) == 0;) {
    int tid = waitpid(-1, &status, __WALL | WNOHANG);
    if (tid < 0) return 1;
    if (tid == 0) usleep(20);
    else if (WIFSTOPPED(status)) {
      int signal = WSTOPSIG(status);
      ptrace(PTRACE_SYSCALL, tid, 0, status >> 16 || signal == (SIGTRAP | 0x80) ? 0 : signal);
    }
  }
  return 0;  // the kernel lets all of them go
}

int main(int argc, char **argv) {
  char line[64];
  if (!strcmp(argv[1], "trace")) return trace(atoi(argv[2]));
  pages = strtoul(argv[1], 0, 0);
  first = strtoul(argv[2], 0, 0);
  found = mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  memory = mmap(0, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (unsigned long k = 0; k < pages; k++) fill(memory + k * PAGE, first + k);
  puts("ready");
  fflush(stdout);
  while (fgets(line, sizeof line, stdin)) {
    struct timespec a;
    pthread_t thread;
    long wrong = -1;
    found[0] = found[1] = 0;
    line[strcspn(line, "\n")] = 0;
    clock_gettime(CLOCK_MONOTONIC, &a);
    if (!strcmp(line, "fork")) wrong = here();
    if (!strcmp(line, "vfork")) wrong = in_child(CLONE_VM | CLONE_VFORK);
    if (!strcmp(line, "vfork with a copy")) wrong = in_child(CLONE_VFORK);
    if (!strcmp(line, "untraced")) wrong = in_child(CLONE_UNTRACED);
    if (!strcmp(line, "sibling")) wrong = in_child(CLONE_VM);
    if (!strcmp(line, "grow")) wrong = grow();
    if (!strcmp(line, "leave")) wrong = leave();
    if (!strcmp(line, "process_madvise")) wrong = free_by_descriptor();
    if (!strcmp(line, "free beside vfork")) wrong = free_beside_vfork();
    if (!strcmp(line, "freed")) wrong = not_freed();
    if (!strcmp(line, "thread")) {
      pthread_create(&thread, 0, in_thread, 0);
      pthread_join(thread, 0);
      wrong = *found;
    }
    if (!strcmp(line, "discarded")) wrong = not_zero(memory, pages / 2) + 1000 * not_kept(memory + pages / 2 * PAGE, pages / 2, pages / 2);
    if (!strcmp(line, "kept")) wrong = not_kept(memory, 0, pages);
    printf("%ld %ld %ld\n", wrong, since(&a), found[1]);
    fflush(stdout);
  }
}
