/* Programs beside each other, one of which does what could hold up whoever looks after it.
 * "bystander": "measure N P" discards N pages, one by one and P milliseconds apart on average, and answers how many bytes were wrong
 * and how long each call took, in microseconds and ascending. "echo N P" does the same with questions to a process of its own,
 * which only answers: what waiting for anybody takes. Others, on "strike":
 *   region    watches with a userfaultfd, and never serves, what it finds mapped now and was not before; then discards
 *   vfork     a thread waits for a vfork child for ever; another discards
 *   threads   threads begin and end all the time
 *   forks     children begin and end all the time
 *   stops     a child stops and continues it all the time
 *   discards  merged or not, it discards and writes all the time */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define PAGES 512

static unsigned char *area;
static uint64_t before[4096];
static int known;

static void fill(void) {
    for (uint32_t k = 0; k < PAGES; k++) {
        unsigned char *page = area + k * PAGE;
        for (int i = 0; i < PAGE; i++) page[i] = (unsigned char)(1 + (i * 7 + k * 13) % 251);
        memcpy(page, &k, 4), page[3] = 99;
    }
}

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int ascending(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static int ask[2], answer[2];

/* Begins the process that answers. */
static void begin_echo(void) {
    char c;
    if (pipe(ask) || pipe(answer) || fork()) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (read(ask[0], &c, 1) == 1 && write(answer[1], &c, 1) == 1) {
    }
    _exit(0);
}

static void measure(int n, int apart, int echo) {
    static int next;
    int64_t took[PAGES];
    int wrong = 0, count = 0;
    if (echo && !ask[1]) begin_echo();
    srand(getpid()), usleep(1000 * (rand() % (2 * apart)));
    for (; count < n && next < PAGES; count++, next += !echo) {
        unsigned char *page = area + next * PAGE;
        char c = 1;
        int64_t begun = now();
        if (echo) wrong += write(ask[1], &c, 1) != 1 || read(answer[0], &c, 1) != 1;
        else madvise(page, PAGE, MADV_DONTNEED);
        took[count] = now() - begun;
        for (int i = 0; i < PAGE && !echo; i++) wrong += page[i] != 0;
        usleep(1000 * (rand() % (2 * apart))); /* not in step with others */
    }
    qsort(took, count, sizeof *took, ascending);
    printf("%d", wrong);
    for (int i = 0; i < count; i++) printf(" %lld", took[i] / 1000LL);
    printf("\n");
}

/* Goes through the mappings: notes them, or watches each that is new. */
static void mappings(int watch) {
    char line[512];
    FILE *maps = fopen("/proc/self/maps", "r");
    int fd = watch ? (int)syscall(SYS_userfaultfd, O_CLOEXEC) : -1;
    struct uffdio_api api = {.api = UFFD_API};
    if (watch && (fd < 0 || ioctl(fd, UFFDIO_API, &api))) {
        printf("no\n");
        return;
    }
    int watched = 0;
    while (fgets(line, sizeof line, maps)) {
        uint64_t start = strtoull(line, NULL, 16), end = strtoull(strchr(line, '-') + 1, NULL, 16);
        int new = 1;
        for (int i = 0; i < known; i++) new &= before[i] != start;
        if (!watch) before[known++] = start;
        else if (new && !strchr(line, '/') && !strstr(line, "---p")) {
            struct uffdio_register r = {{start, end - start}, UFFDIO_REGISTER_MODE_MISSING, 0};
            madvise((void *)start, end - start, MADV_DONTNEED);
            watched += ioctl(fd, UFFDIO_REGISTER, &r) == 0;
        }
    }
    fclose(maps);
    if (watch) printf("%d\n", watched), fflush(stdout);
}

static void *discard(void *unused) {
    for (uint32_t k = 0;; k = (k + 1) % PAGES) {
        madvise(area + k * PAGE, PAGE, MADV_DONTNEED);
        area[k * PAGE] = 1;
    }
    return unused;
}

static void *wait_for_a_child(void *unused) {
    if (vfork() == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        for (;;) syscall(SYS_pause);
    }
    return unused;
}

static void *nothing(void *unused) {
    return unused;
}

static void *come_and_go(void *unused) {
    pthread_t thread;
    for (;;)
        if (!pthread_create(&thread, NULL, nothing, NULL)) pthread_join(thread, NULL);
    return unused;
}

static void *fork_all_the_time(void *unused) {
    for (;;) {
        pid_t child = fork();
        if (child == 0) _exit(0);
        if (child > 0) waitpid(child, NULL, 0);
    }
    return unused;
}

int main(int argc, char **argv) {
    const char *kind = argc > 1 ? argv[1] : "";
    char line[64];
    int n, apart;
    pthread_t thread;
    area = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    fill();
    printf("ready\n"), fflush(stdout);
    mappings(0), known = 0, mappings(0);
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "measure %d %d", &n, &apart) == 2) measure(n, apart, 0);
        else if (sscanf(line, "echo %d %d", &n, &apart) == 2) measure(n, apart, 1);
        else if (!strcmp(kind, "region")) mappings(1), pthread_create(&thread, NULL, discard, NULL);
        else if (!strcmp(kind, "stops")) {
            pid_t me = getpid();
            if (fork() == 0) {
                prctl(PR_SET_PDEATHSIG, SIGKILL);
                for (;;) kill(me, SIGSTOP), usleep(300), kill(me, SIGCONT), usleep(300);
            }
            printf("1\n");
        } else {
            void *(*begin)(void *) = !strcmp(kind, "threads") ? come_and_go : !strcmp(kind, "forks") ? fork_all_the_time : discard;
            if (!strcmp(kind, "vfork")) pthread_create(&thread, NULL, wait_for_a_child, NULL), usleep(20000);
            for (int i = 0; i < (begin == discard ? 1 : 3); i++) pthread_create(&thread, NULL, begin, NULL);
            printf("1\n");
        }
        fflush(stdout);
    }
    return 0;
}
