/* A program that is stopped and continued by its parent, which waits for the news of each as a shell does, while it
 * discards its memory and fills it again.
 *
 *   storm FIRST    says the id of the child, whose pages are equal to those of others with the same FIRST
 *
 * Goes on from a line of input until the next, and tells rounds done, news that never came, pages that were wrong, and
 * whether the child has looked at them since. */
#define _GNU_SOURCE
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ul
#define PAGES 512ul
#define PATIENCE_S 5.0

static struct {
    atomic_int go, checks, checked;
    atomic_long wrong;
} *common;
static char *memory;
static unsigned long first;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void fill(char *page, unsigned long k) {
    uint64_t word = (first + k + 1) * 0x9e3779b97f4a7c15ull;
    for (unsigned i = 0; i < PAGE / 8; i++, word = word * 6364136223846793005ull + 1442695040888963407ull)
        ((uint64_t *)page)[i] = word;
}

static int kept(const char *page, unsigned long k) {
    char want[PAGE];
    fill(want, k);
    return memcmp(want, page, PAGE) == 0;
}

static void child(void) {
    static const char zero[PAGE];
    for (;;) {
        for (unsigned long k = 0; k < PAGES; k++)
            if (!kept(memory + k * PAGE, k)) common->wrong++;
        if (atomic_load(&common->checks) != atomic_load(&common->checked)) common->checked++;
        while (!atomic_load(&common->go) && atomic_load(&common->checks) == atomic_load(&common->checked)) usleep(1000);
        if (!atomic_load(&common->go)) continue;
        for (unsigned long k = 0; k < PAGES; k++) {
            if (madvise(memory + k * PAGE, PAGE, MADV_DONTNEED)) common->wrong++;
            if (memcmp(memory + k * PAGE, zero, PAGE)) common->wrong++;
        }
        for (unsigned long k = 0; k < PAGES; k++) fill(memory + k * PAGE, k);
        usleep(300000); /* long enough to be merged */
    }
}

/* Whether the news that `pid` has been stopped, or continued, comes. */
static int news(pid_t pid, int stopped) {
    double until = now() + PATIENCE_S;
    int status = 0;
    pid_t one;
    while ((one = waitpid(pid, &status, WUNTRACED | WCONTINUED | WNOHANG)) == 0 && now() < until) usleep(50);
    if (one != pid) return 0;
    return stopped ? WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP : WIFCONTINUED(status);
}

int main(int argc, char **argv) {
    char line[64];
    if (argc < 2) return 2;
    first = strtoul(argv[1], 0, 0);
    common = mmap(0, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    memory = mmap(0, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    common->checked = -1;
    pid_t parent = getpid(), pid = fork();
    if (!pid) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) _exit(1);
        for (unsigned long k = 0; k < PAGES; k++) fill(memory + k * PAGE, k);
        child();
    }
    while (atomic_load(&common->checked) < 0) usleep(1000);
    printf("%d\n", pid);
    fflush(stdout);
    unsigned seed = pid;
    while (fgets(line, sizeof line, stdin)) {
        int rounds = 0, stops = 0, goes = 0;
        common->go = 1;
        for (struct pollfd in = {0, POLLIN, 0}; !poll(&in, 1, 0) && !stops && !goes; rounds++) {
            kill(pid, SIGSTOP);
            stops += !news(pid, 1);
            if (rand_r(&seed) % 2) usleep(rand_r(&seed) % 3000);
            kill(pid, SIGCONT);
            goes += !news(pid, 0);
            usleep(rand_r(&seed) % 2 ? rand_r(&seed) % 3000 : 0);
        }
        common->go = 0;
        int checks = ++common->checks;
        for (double until = now() + 2 * PATIENCE_S; atomic_load(&common->checked) != checks && now() < until;) usleep(1000);
        printf("%d %d %d %ld %d\n", rounds, stops, goes, atomic_load(&common->wrong), checks - common->checked);
        fflush(stdout);
    }
    kill(pid, SIGKILL);
    return 0;
}
