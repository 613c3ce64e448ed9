// A tracer that comes and goes: it seizes a process that runs PROGRAM, and half of the time what that forks, lets them run,
// as profilers do, detaches after LONGEST ms at most, and begins again. Ends with its input, and tells how often it
// has had something, and been refused.
// usage: comes SEED LONGEST PROGRAM
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int held[4096], count;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}

static int over(int ms) {
  struct pollfd in = {0, POLLIN, 0};
  return poll(&in, 1, ms) != 0;
}

// One of the processes that run the program named.
static int one_of(unsigned *seed, const char *program) {
  static int all[1 << 15];
  int n = 0;
  DIR *processes = opendir("/proc");
  for (struct dirent *e; processes && (e = readdir(processes));) {
    char path[300], name[32] = "";
    if (!atoi(e->d_name) || n == 1 << 15) continue;
    snprintf(path, sizeof path, "/proc/%s/comm", e->d_name);
    FILE *f = fopen(path, "r");
    if (f && fgets(name, sizeof name, f) && !strcmp(strtok(name, "\n"), program)) all[n++] = atoi(e->d_name);
    if (f) fclose(f);
  }
  if (processes) closedir(processes);
  return n ? all[rand_r(seed) % n] : -1;
}

// Resumes whatever has stopped. New children and threads are held, too, where that was asked for.
static void serve(void) {
  int status, tid;
  while ((tid = waitpid(-1, &status, __WALL | WNOHANG)) > 0) {
    int known = 0;
    for (int i = 0; i < count; i++) known |= held[i] == tid;
    if (!WIFSTOPPED(status)) {
      for (int i = 0; i < count; i++)
        if (held[i] == tid) held[i--] = held[--count];
      continue;
    }
    if (!known && count < 4096) held[count++] = tid;
    int event = status >> 16, signal = WSTOPSIG(status);
    ptrace(PTRACE_CONT, tid, 0, event || signal == SIGTRAP ? 0 : signal);
  }
}

static void detach_all(void) {
  while (count) {
    int status, tid;
    for (int i = 0; i < count; i++) ptrace(PTRACE_INTERRUPT, held[i], 0, 0);
    while ((tid = waitpid(-1, &status, __WALL | WNOHANG)) > 0) {
      int event = status >> 16, signal = WSTOPSIG(status);
      int gone = !WIFSTOPPED(status) || !ptrace(PTRACE_DETACH, tid, 0, event || signal == SIGTRAP ? 0 : signal);
      for (int i = 0; gone && i < count; i++)
        if (held[i] == tid) held[i--] = held[--count];
    }
    usleep(200);
  }
}

int main(int argc, char **argv) {
  unsigned seed = (unsigned)atoi(argv[1]), longest = (unsigned)atoi(argv[2]);
  long came = 0, refused = 0;
  while (!over(0)) {
    int pid = one_of(&seed, argv[3]);
    int options = rand_r(&seed) % 2 ? PTRACE_O_TRACEFORK | PTRACE_O_TRACECLONE | PTRACE_O_TRACEVFORK : 0;
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/task", pid);
    DIR *tasks = opendir(path);
    for (struct dirent *e; tasks && (e = readdir(tasks));)
      if (atoi(e->d_name)) {
        if (ptrace(PTRACE_SEIZE, atoi(e->d_name), 0, options)) refused++;
        else held[count++] = atoi(e->d_name);
      }
    if (tasks) closedir(tasks);
    if (count) came++;
    double until = now() + (5 + rand_r(&seed) % longest) / 1e3;
    while (count && now() < until && !over(1)) serve();
    detach_all();
    if (over(rand_r(&seed) % 20)) break;
  }
  printf("%ld %ld\n", came, refused);
  return 0;
}
