/* A program under stress: threads write and check memory at full speed while it is merged from outside.
 *
 *   stress SCENARIO SECONDS SEED
 *
 * The area has PAGES pages. Every word of a page follows from (page, version), so a page can be checked against the
 * version that its owner knows it to have, and pages of version 0 are the same in every process and, by groups of
 * GROUP, in one process: these are what is merged. Version ZERO is a page of zeros. Each thread owns a slice of the
 * area and works at full speed in a window of it that jumps about, so that the rest comes to rest, for as long as chance
 * has it, and is merged meanwhile: a page written again and again is looked at less and less often. For the same reason a
 * scenario in which nothing can be merged ends that from time to time, and begins anew.
 * A scenario adds what is peculiar to it. A wrong byte, a wrong result or a hanging call ends the program with status 1
 * and a line that begins with WRONG; else it prints OK and the number of pages checked.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <linux/io_uring.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ul
#define WORDS (PAGE / 8)
#define PAGES 4096u
#define GROUP 64u
#define THREADS 3u
#define WINDOW 96u
#define ZERO UINT32_MAX
#define REST_S 2.0
#define MOVE_S 0.05
/* Many programs run side by side: at full speed for a while, then asleep for one. */
#define SLEEP_US 250000u
/* A wait begun anew at each stop would never end; one that is merely late, on a machine with much to do, does. */
#define LATE_S 20.0

#ifndef MADV_DONTNEED_LOCKED
#define MADV_DONTNEED_LOCKED 24
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

static uint64_t *area;
static uint32_t *version; /* what each page must hold; written by its owner only */
static double seconds;
static double began;
static unsigned seed;
static atomic_int stop;
static atomic_ulong checked;
extern char **environ;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int over(void) {
    if (now() - began > seconds) atomic_store(&stop, 1);
    return atomic_load(&stop);
}

/* Says which mapping an address is in: what was wrong with it mostly follows. */
static void tell_mapping(const void *address) {
    FILE *maps = fopen("/proc/self/smaps", "r");
    char line[512];
    int inside = 0;
    while (maps && fgets(line, sizeof line, maps)) {
        unsigned long start, end;
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2) {
            inside = (unsigned long)address >= start && (unsigned long)address < end;
            if (inside) fprintf(stderr, "%p in %s", address, line);
        } else if (inside && !strncmp(line, "VmFlags", 7)) {
            fprintf(stderr, "%s", line);
        }
    }
}

/* A while in which nothing is written: what comes next meets merged pages. */
static void rest(void) {
    double until = now() + (seconds * 0.4 < REST_S ? seconds * 0.4 : REST_S);
    while (now() < until) usleep(1e5);
}

/* Whether a second of work, of every three, is on. */
static int at_work(void) { return !over() && (int)(now() - began) % 3 == 0; }

static void wrong(const char *format, ...) {
    char line[400];
    va_list a;
    va_start(a, format);
    int n = snprintf(line, sizeof line, "WRONG ");
    n += vsnprintf(line + n, sizeof line - (size_t)n - 1, format, a);
    va_end(a);
    line[n] = '\n';
    (void)!write(1, line, (size_t)n + 1);
    _exit(1);
}

#define MUST(x)                                                                        \
    do {                                                                               \
        if (!(x)) wrong("line %d: %s: errno %d (%s)", __LINE__, #x, errno, strerror(errno)); \
    } while (0)

static uint64_t word(uint32_t page, uint32_t v, unsigned i) {
    if (v == ZERO) return 0;
    uint64_t x = ((uint64_t)v << 32) + (v ? page : page / GROUP) * 0x9e3779b9ull + i * 0x9e3779b97f4a7c15ull;
    x ^= x >> 29;
    x *= 0xbf58476d1ce4e5b9ull;
    return x ^ x >> 32;
}

static void fill_at(uint64_t *p, uint32_t page, uint32_t v) {
    for (unsigned i = 0; i < WORDS; i++) p[i] = word(page, v, i);
}

static void check_at(const uint64_t *p, uint32_t page, uint32_t v) {
    for (unsigned i = 0; i < WORDS; i++)
        if (((const volatile uint64_t *)p)[i] != word(page, v, i)) {
            unsigned long long found = p[i];
            tell_mapping(p);
            wrong("page %u version %u word %u: found %#llx, later %#llx", page, v, i, found, (unsigned long long)p[i]);
        }
    atomic_fetch_add_explicit(&checked, 1, memory_order_relaxed);
}

static uint64_t *at(uint32_t page) { return area + (size_t)page * WORDS; }
static void fill(uint32_t page, uint32_t v) { fill_at(at(page), page, v), version[page] = v; }
static void check(uint32_t page) { check_at(at(page), page, version[page]); }

static void check_range(uint32_t first, uint32_t last) {
    for (uint32_t p = first; p < last; p++) check(p);
}

/* --- what threads do in their window --------------------------------------------------------------------------- */

struct owner {
    uint32_t first, last, sequence;
    unsigned rand;
    /* a scenario's way of changing pages; NULL: write */
    void (*change)(struct owner *, uint32_t page, uint32_t pages);
};

/* Writes a page: whole, one word in place, or back to what everybody has. */
static void rewrite(struct owner *o, uint32_t page) {
    unsigned r = (unsigned)rand_r(&o->rand) % 4;
    fill(page, r == 0 ? 0 : ++o->sequence);
}

static void *own(void *argument) {
    struct owner *o = argument;
    uint32_t window = o->first, windows = (o->last - o->first + WINDOW - 1) / WINDOW;
    double moved = now();
    while (!over()) {
        for (unsigned n = 0; n < 64; n++) {
            uint32_t size = WINDOW < o->last - window ? WINDOW : o->last - window;
            uint32_t page = window + (uint32_t)rand_r(&o->rand) % size;
            check(page);
            rewrite(o, page);
            check(page);
        }
        if (now() - moved > MOVE_S) {
            /* leave the window as everybody has it, or changed in the scenario's way, and look at it no more */
            uint32_t end = window + WINDOW < o->last ? window + WINDOW : o->last;
            for (uint32_t p = window; p < end; p++)
                if (rand_r(&o->rand) % 8) fill(p, 0);
            window = o->first + WINDOW * ((uint32_t)rand_r(&o->rand) % windows);
            end = window + WINDOW < o->last ? window + WINDOW : o->last;
            /* what has been at rest, and perhaps merged, meanwhile */
            check_range(window, end);
            if (o->change) o->change(o, window, end - window);
            check_range(window, end);
            usleep((useconds_t)rand_r(&o->rand) % (2 * SLEEP_US));
            check_range(window, end);
            moved = now();
        }
    }
    return NULL;
}

static struct owner owners[THREADS];
static pthread_t threads[THREADS];

static void start_owners(void (*change)(struct owner *, uint32_t, uint32_t)) {
    for (unsigned i = 0; i < THREADS; i++) {
        owners[i] = (struct owner){PAGES * i / THREADS, PAGES * (i + 1) / THREADS, (uint32_t)i << 24, seed * 7 + i, change};
        MUST(pthread_create(&threads[i], NULL, own, &owners[i]) == 0);
    }
}

static void join_owners(void) {
    for (unsigned i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    check_range(0, PAGES);
}

static pthread_t start(void *(*body)(void *)) {
    pthread_t t;
    MUST(pthread_create(&t, NULL, body, NULL) == 0);
    return t;
}

static void writers(void) {
    start_owners(NULL);
    join_owners();
}

/* --- signals ---------------------------------------------------------------------------------------------------- */

static atomic_ulong handled, timed;

static void on_signal(int number, siginfo_t *info, void *context) {
    (void)context;
    if (number == SIGRTMIN) {
        if (info->si_code != SI_TIMER || info->si_value.sival_int != 4711) wrong("a timer's signal without its value");
        atomic_fetch_add(&timed, 1);
    }
    atomic_fetch_add(&handled, 1);
}

static void signals(void) {
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_RESTART};
    MUST(sigaction(SIGUSR1, &action, NULL) == 0 && sigaction(SIGRTMIN, &action, NULL) == 0);
    MUST(sigaction(SIGWINCH, &action, NULL) == 0);
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN, .sigev_value.sival_int = 4711};
    timer_t timer;
    MUST(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
    struct itimerspec every = {{0, 700000}, {0, 700000}};
    MUST(timer_settime(timer, 0, &every, NULL) == 0);
    /* what faults raise is handled by programs, too: Java reads through null, debuggers plant traps */
    MUST(sigaction(SIGTRAP, &action, NULL) == 0 && sigaction(SIGSEGV, &action, NULL) == 0);
    start_owners(NULL);
    unsigned long sent = 0;
    while (!over()) {
        static const int some[] = {SIGUSR1, SIGWINCH, SIGUSR1, SIGSEGV, SIGTRAP};
        for (unsigned i = 0; i < THREADS; i++) pthread_kill(threads[i], some[sent % 5]), sent++;
        usleep(50);
    }
    timer_delete(timer);
    join_owners();
    MUST(handled > 0 && timed > 0);
}

/* --- threads ---------------------------------------------------------------------------------------------------- */

static void *brief(void *argument) {
    uint32_t page = (uint32_t)(uintptr_t)argument % PAGES, writes = (uint32_t)(uintptr_t)argument / PAGES;
    check(page);
    if (writes) fill(page, version[page] ? 0 : page + 1), check(page);
    return NULL;
}

static void churn(void) {
    /* no page at a time belongs to two */
    uint32_t next = 0;
    while (!over()) {
        pthread_t t[8];
        for (unsigned i = 0; i < 8; i++) {
            uint32_t what = next + i * 512 + (rand_r(&seed) % 8 ? 0 : PAGES);
            MUST(pthread_create(&t[i], NULL, brief, (void *)(uintptr_t)what) == 0);
        }
        for (unsigned i = 0; i < 8; i++) pthread_join(t[i], NULL);
        next = (uint32_t)rand_r(&seed) % 512;
        if (!(rand_r(&seed) % 256)) usleep(SLEEP_US);
    }
    check_range(0, PAGES);
}

/* The first thread ends before the others: then /proc/PID has no memory. */
static void *after_main(void *argument) {
    (void)argument;
    while (!over()) {
        check_range(0, PAGES);
        /* discard what may be merged */
        uint32_t p = (uint32_t)rand_r(&seed) % (PAGES - 16);
        MUST(madvise(at(p), 16 * PAGE, MADV_DONTNEED) == 0);
        for (uint32_t i = p; i < p + 16; i++) version[i] = ZERO;
        check_range(p, p + 16);
        for (uint32_t i = p; i < p + 16; i++) fill(i, 0);
        usleep(5000);
    }
    check_range(0, PAGES);
    printf("OK %lu\n", (unsigned long)checked);
    exit(0);
}

static int wait_for(pid_t child);

static void leaderless(void) {
    rest(); /* to be merged before */
    /* children first: nothing is merged any more in a process without its first thread */
    while (seconds - (now() - began) > 2 * REST_S) {
        pid_t child = fork();
        MUST(child >= 0);
        if (!child) {
            began = now(), seconds = 1;
            start(after_main);
            pthread_exit(NULL);
        }
        int status = wait_for(child);
        if (status) wrong("a child found a wrong byte or died: %#x", status);
        usleep(50000);
    }
    start(after_main);
    pthread_exit(NULL);
}

/* --- calls that a stop interrupts --------------------------------------------------------------------------------- */

static int pipes[2], pair[2], listener;

static void *sleeper(void *argument) {
    (void)argument;
    while (!over()) {
        struct timespec t = {0, 130000000}, left = {0, 0};
        double since = now();
        MUST(nanosleep(&t, &left) == 0);
        if (now() - since < 0.1299) wrong("nanosleep: woke after %f s", now() - since);
        since = now();
        MUST(clock_nanosleep(CLOCK_MONOTONIC, 0, &t, NULL) == 0);
        if (now() - since < 0.1299) wrong("clock_nanosleep: woke after %f s", now() - since);
        since = now();
        MUST(poll(NULL, 0, 130) == 0);
        if (now() - since < 0.1299) wrong("poll: woke after %f s", now() - since);
        if (now() - since > LATE_S) wrong("poll: woke only after %f s", now() - since);
        since = now();
        struct timeval v = {0, 130000};
        MUST(select(0, NULL, NULL, NULL, &v) == 0);
        if (now() - since < 0.1299) wrong("select: woke after %f s", now() - since);
    }
    return NULL;
}

static void *futex_waiter(void *argument) {
    (void)argument;
    static int futex = 7;
    while (!over()) {
        struct timespec t = {0, 130000000};
        double since = now();
        long r = syscall(SYS_futex, &futex, FUTEX_WAIT_PRIVATE, 7, &t, NULL, 0);
        if (r != -1 || errno != ETIMEDOUT) wrong("futex: %ld errno %d", r, errno);
        if (now() - since < 0.1299) wrong("futex: woke after %f s", now() - since);
    }
    return NULL;
}

static void *epoll_waiter(void *argument) {
    (void)argument;
    int e = epoll_create1(0), quiet[2];
    MUST(pipe(quiet) == 0);
    struct epoll_event event = {.events = EPOLLIN};
    MUST(epoll_ctl(e, EPOLL_CTL_ADD, quiet[0], &event) == 0);
    while (!over()) {
        double since = now();
        int n = epoll_wait(e, &event, 1, 230);
        if (n != 0) wrong("epoll_wait: %d errno %d", n, errno);
        if (now() - since < 0.2299) wrong("epoll_wait: woke after %f s", now() - since);
        if (now() - since > LATE_S) wrong("epoll_wait: woke only after %f s", now() - since);
    }
    return NULL;
}

static void *epoll_for_ever(void *argument) {
    int e = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    MUST(epoll_ctl(e, EPOLL_CTL_ADD, *(int *)argument, &event) == 0);
    for (;;) {
        char c;
        int n = epoll_wait(e, &event, 1, -1);
        if (n != 1) wrong("endless epoll_wait: %d errno %d", n, errno);
        MUST(read(*(int *)argument, &c, 1) == 1);
        if (c == 'q') return NULL;
    }
}

static void *reader(void *argument) {
    (void)argument;
    for (char c = 'x'; c != 'q';) MUST(read(pipes[0], &c, 1) == 1);
    return NULL;
}

static void *receiver(void *argument) {
    (void)argument;
    for (char c = 'x'; c != 'q';) MUST(recv(pair[0], &c, 1, 0) == 1);
    return NULL;
}

static void *acceptor(void *argument) {
    (void)argument;
    int s = accept(listener, NULL, NULL);
    if (s < 0) wrong("accept: errno %d", errno);
    close(s);
    return NULL;
}

static void calls(void) {
    static int ends[2];
    MUST(pipe(pipes) == 0 && pipe(ends) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    listener = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    snprintf(name.sun_path + 1, sizeof name.sun_path - 1, "pageone-stress-%d", getpid());
    MUST(bind(listener, (struct sockaddr *)&name, sizeof name) == 0 && listen(listener, 1) == 0);
    pthread_t others[7] = {start(sleeper), start(futex_waiter), start(epoll_waiter), start(reader), start(receiver), start(acceptor)};
    MUST(pthread_create(&others[6], NULL, epoll_for_ever, &ends[0]) == 0);
    start_owners(NULL);
    while (!over()) {
        usleep(200000);
        MUST(write(pipes[1], "x", 1) == 1 && send(pair[1], "x", 1, 0) == 1 && write(ends[1], "x", 1) == 1);
    }
    MUST(write(pipes[1], "q", 1) == 1 && send(pair[1], "q", 1, 0) == 1 && write(ends[1], "q", 1) == 1);
    int c = socket(AF_UNIX, SOCK_STREAM, 0);
    MUST(connect(c, (struct sockaddr *)&name, sizeof name) == 0);
    for (unsigned i = 0; i < 7; i++) pthread_join(others[i], NULL);
    join_owners();
}

/* --- processes ---------------------------------------------------------------------------------------------------- */

static int wait_for(pid_t child) {
    int status = 0;
    MUST(waitpid(child, &status, 0) == child);
    return status;
}

/* A child's own life with what it inherited: check, write, discard. */
static void live(unsigned rounds) {
    unsigned r = (unsigned)getpid();
    for (unsigned n = 0; n < rounds; n++) {
        uint32_t p = (uint32_t)rand_r(&r) % (PAGES - 8);
        check_range(p, p + 8);
        MUST(madvise(at(p), 4 * PAGE, MADV_DONTNEED) == 0);
        for (uint32_t i = p; i < p + 4; i++) version[i] = ZERO;
        check_range(p, p + 8);
        for (uint32_t i = p; i < p + 8; i++) fill(i, n + i);
        check_range(p, p + 8);
    }
}

static void forks(void) {
    uint32_t round = 0;
    while (!over()) {
        pid_t child = fork();
        MUST(child >= 0);
        if (!child) {
            live(60);
            check_range(0, PAGES);
            _exit(0);
        }
        for (unsigned i = 0; i < 64; i++, round++) fill(round % PAGES, round % 2 ? 0 : round);
        check_range(0, PAGES);
        if (wait_for(child)) wrong("a child found a wrong byte or died");
        usleep(100000);
    }
    check_range(0, PAGES);
}

/* The grandchild's parent ends at once, so that nobody can tell whose it is; then its own first parent does. */
static void orphans(void) {
    int report[2];
    MUST(pipe(report) == 0);
    rest(); /* to be merged before */
    unsigned expected = 0;
    while (!over()) {
        pid_t child = fork();
        MUST(child >= 0);
        if (!child) {
            pid_t grandchild = fork();
            if (grandchild) _exit(grandchild < 0);
            live(100);
            check_range(0, PAGES);
            (void)!write(report[1], "k", 1);
            _exit(0);
        }
        if (wait_for(child)) wrong("a child could not fork");
        expected++;
        usleep(60000);
    }
    for (unsigned i = 0; i < expected; i++) {
        struct pollfd p = {.fd = report[0], .events = POLLIN};
        char c;
        if (poll(&p, 1, 40000) != 1) wrong("orphan %u of %u hangs or has died", i, expected);
        MUST(read(report[0], &c, 1) == 1 && c == 'k');
    }
    check_range(0, PAGES);
}

static void spawns(void) {
    start_owners(NULL);
    while (!over()) {
        pid_t child = vfork();
        if (!child) {
            usleep(3000);
            _exit(3);
        }
        MUST(child > 0);
        int status = wait_for(child);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 3) wrong("vfork's child: %#x", status);
        char *arguments[] = {"sh", "-c", "exit 5", NULL};
        MUST(posix_spawn(&child, "/bin/sh", NULL, NULL, arguments, environ) == 0);
        status = wait_for(child);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 5) wrong("a spawned program: %#x", status);
        usleep(30000);
    }
    join_owners();
}

static int shared_body(void *argument) {
    (void)argument;
    /* another process in this memory writes what the other process checks, and looks at all of it */
    unsigned r = 5;
    double since = now();
    for (uint32_t sequence = 1; !over() && now() - since < REST_S; sequence++) {
        uint32_t p = (uint32_t)rand_r(&r) % PAGES;
        check(p);
        if (p < PAGES / 8) fill(p, sequence % 3 ? 0 : sequence), check(p);
        if (sequence % 1024 == 0) usleep(1000);
    }
    return 0;
}

static void shared_memory(void) {
    char *stack = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(stack != MAP_FAILED);
    while (!over()) {
        rest(), rest(); /* to be merged before, though it was written all over */
        for (uint32_t p = 0; p < PAGES / 2; p++) fill(p, 0); /* there to be merged while another looks at it */
        pid_t other = clone(shared_body, stack + (1 << 20), CLONE_VM | SIGCHLD, NULL);
        MUST(other > 0);
        if (wait_for(other)) wrong("the process that shares the memory died");
        check_range(0, PAGES);
    }
}

static void execs(char *program) {
    char text[32];
    check_range(0, PAGES);
    /* now and then for long enough to be merged before it goes on, however busy the machine is */
    usleep((long)now() % 4 ? 800000 : 8000000);
    check_range(0, PAGES);
    if (over()) return;
    /* the next image is to end when this one would have */
    snprintf(text, sizeof text, "%f", began);
    setenv("STRESS_BEGAN", text, 1);
    snprintf(text, sizeof text, "%f", seconds);
    execl(program, program, "exec", text, "1", NULL);
    wrong("exec: errno %d", errno);
}

/* --- mappings ------------------------------------------------------------------------------------------------------ */

static pthread_mutex_t holes = PTHREAD_MUTEX_INITIALIZER;

static void remap(struct owner *o, uint32_t page, uint32_t pages) {
    size_t bytes = pages * PAGE;
    void *here = at(page);
    switch (rand_r(&o->rand) % 5) {
    case 0: /* unmapped and mapped again */
        pthread_mutex_lock(&holes); /* what another thread maps must not fall into the hole */
        MUST(munmap(here, bytes) == 0);
        MUST(mmap(here, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == here);
        pthread_mutex_unlock(&holes);
        for (uint32_t p = page; p < page + pages; p++) version[p] = ZERO;
        break;
    case 1: { /* moved away and back, as far as the kernel does that with several mappings */
        pthread_mutex_lock(&holes);
        char *there = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        MUST(there != MAP_FAILED);
        for (uint32_t p = 0; p < pages; p++) {
            MUST(mremap(at(page + p), PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, there + p * PAGE) == there + p * PAGE);
            check_at((uint64_t *)(there + p * PAGE), page + p, version[page + p]);
        }
        usleep(2000);
        for (uint32_t p = 0; p < pages; p++)
            MUST(mremap(there + p * PAGE, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at(page + p)) == at(page + p));
        pthread_mutex_unlock(&holes);
        break;
    }
    case 2: /* protected: reads only, then writes again */
        MUST(mprotect(here, bytes, PROT_READ) == 0);
        check_range(page, page + pages);
        usleep(1000);
        MUST(mprotect(here, bytes, PROT_READ | PROT_WRITE) == 0);
        break;
    case 3: /* the break, moved under what stands there */
        if (o->first == 0) {
            char *top = sbrk(64 * (intptr_t)PAGE);
            MUST(top != (void *)-1);
            for (unsigned i = 0; i < 64; i++) fill_at((uint64_t *)(top + i * PAGE), i, 0);
            usleep(1000);
            for (unsigned i = 0; i < 64; i++) check_at((uint64_t *)(top + i * PAGE), i, 0);
            MUST(sbrk(-64 * (intptr_t)PAGE) != (void *)-1);
        }
        break;
    default:
        break;
    }
}

static void mappings(void) {
    start_owners(remap);
    join_owners();
}

/* --- anything ---------------------------------------------------------------------------------------------------- */

/* What a page of a window is like. The rest of the area is always mapped, readable and writable. */
struct place {
    uint32_t of;  /* whose bytes it has: pages move */
    int prot;
    char hole, freed, locked;
    char stays; /* not inherited by children */
    char closed; /* of a hole: whether what stood there was a frame, so that whoever merges knows of the hole */
};
static struct place place[PAGES];

static int there(uint32_t p) { return !place[p].hole; }
static int readable(uint32_t p) { return there(p) && place[p].prot & PROT_READ; }
static int writable(uint32_t p) { return there(p) && place[p].prot & PROT_WRITE; }
static int loose(uint32_t p) { return there(p) && !place[p].locked; }
static int missing(uint32_t p) { return place[p].hole; }

static void check_place(uint32_t p) {
    if (!readable(p)) return;
    if (!place[p].freed) {
        check_at(at(p), place[p].of, version[p]);
        return;
    }
    /* it has its bytes or zeros, until it is written */
    const volatile uint64_t *bytes = at(p);
    for (unsigned i = 0; i < WORDS; i++) {
        uint64_t found = bytes[i];
        if (found && found != word(place[p].of, version[p], i)) wrong("page %u, freed: word %u: found %#llx", p, i, found);
    }
}

static void check_places(uint32_t first, uint32_t last) {
    for (uint32_t p = first; p < last; p++) check_place(p);
}

static void write_place(uint32_t p, uint32_t v) {
    fill(p, v);
    place[p].of = p, place[p].freed = 0;
}

static void empty_places(uint32_t p, uint32_t n) {
    for (; n; n--, p++) version[p] = ZERO, place[p].freed = 0;
}

/* How many pages from `p` on are as asked, `n` at most. */
static uint32_t run_of(int (*as)(uint32_t), uint32_t p, uint32_t n) {
    uint32_t found = 0;
    while (found < n && as(p + found)) found++;
    return found;
}

static void map_anew(uint32_t p, uint32_t n) {
    void *got = mmap(at(p), n * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    MUST(got == (void *)at(p));
    empty_places(p, n);
    for (uint32_t i = p; i < p + n; i++) place[i] = (struct place){.of = i, .prot = PROT_READ | PROT_WRITE};
}

/* Whether a page is one that has been merged. */
static int is_frame(uint32_t p) {
    FILE *maps = fopen("/proc/self/maps", "r");
    char line[512];
    int frame = 0;
    while (maps && fgets(line, sizeof line, maps)) {
        uintptr_t start, end;
        if (sscanf(line, "%lx-%lx ", &start, &end) == 2 && start <= (uintptr_t)at(p) && (uintptr_t)at(p) < end)
            frame = strstr(line, "/memfd:pageone") != NULL;
    }
    if (maps) fclose(maps);
    return frame;
}

/* Moves pages one by one, for one call moves one mapping on older kernels; with `stays` they leave zeros behind. */
static void move_places(uint32_t from, uint32_t to, uint32_t n, int stays) {
    for (uint32_t i = 0; i < n; i++, from++, to++) {
        int how = MREMAP_MAYMOVE | MREMAP_FIXED | (stays ? MREMAP_DONTUNMAP : 0);
        MUST(mremap(at(from), PAGE, PAGE, how, at(to)) == (void *)at(to));
        place[to] = place[from], version[to] = version[from];
        if (stays) empty_places(from, 1);
        else place[from] = (struct place){.hole = 1};
    }
}

/* Advice that changes no byte, and that the kernel follows or not; the last may fail for want of huge pages. */
static const int advices[] = {MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_COLD, MADV_PAGEOUT, MADV_WILLNEED, MADV_DONTDUMP, MADV_DODUMP,
                              MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_MERGEABLE, MADV_UNMERGEABLE, MADV_COLLAPSE};

static int plain(uint32_t p) { return writable(p) && loose(p); }

static void some_things(struct owner *, uint32_t first, uint32_t last, unsigned calls);

/* One call, or writes, on pages `p` to `p + n` of the window from `first` to `last`; whatever may be asked of them. */
static void one_thing(struct owner *o, uint32_t first, uint32_t last, uint32_t p, uint32_t n) {
    unsigned r = (unsigned)rand_r(&o->rand);
    uint32_t q = first + (unsigned)rand_r(&o->rand) % (last - first);
    static __thread char through[16 * PAGE];
    uint32_t v = r & 256 ? 0 : ++o->sequence;
    switch (r % 18) {
    case 0:
    case 1:
    case 2:
        for (uint32_t i = p; i < p + n; i++)
            if (writable(i)) write_place(i, v);
        break;
    case 3:
        map_anew(p, n);
        break;
    case 4:
        v = (uint32_t)is_frame(p);
        MUST(munmap(at(p), n * PAGE) == 0);
        for (uint32_t i = p; i < p + n; i++) place[i] = (struct place){.hole = 1};
        place[p].closed = (char)v;
        break;
    case 5:
        if (!(n = run_of(r >> 9 & 1 ? loose : there, p, n))) break;
        MUST(madvise(at(p), n * PAGE, r >> 9 & 1 ? MADV_DONTNEED : MADV_DONTNEED_LOCKED) == 0);
        empty_places(p, n);
        break;
    case 6:
        if (!(n = run_of(loose, p, n))) break;
        MUST(madvise(at(p), n * PAGE, MADV_FREE) == 0);
        for (uint32_t i = p; i < p + n; i++) place[i].freed = 1;
        break;
    case 7:
        if (!(n = run_of(there, p, n))) break;
        v = (unsigned[]){PROT_NONE, PROT_READ, PROT_READ | PROT_EXEC, PROT_READ | PROT_WRITE}[r >> 9 & 1 ? 3 : r >> 10 & 3];
        MUST(mprotect(at(p), n * PAGE, (int)v) == 0);
        for (uint32_t i = p; i < p + n; i++) place[i].prot = (int)v;
        break;
    case 16:
        if (!(n = run_of(there, p, n))) break;
        MUST(madvise(at(p), n * PAGE, r >> 9 & 1 ? MADV_DONTFORK : MADV_DOFORK) == 0);
        for (uint32_t i = p; i < p + n; i++) place[i].stays = r >> 9 & 1;
        break;
    case 8:
        /* seldom: who locks memory is left alone as a whole */
        if (r >> 9 & 7 || !(n = run_of(writable, p, n))) break;
        if (mlock(at(p), n * PAGE) == 0)
            for (uint32_t i = p; i < p + n; i++) place[i].locked = 1;
        break;
    case 9:
        if (!(n = run_of(there, p, n))) break;
        MUST(munlock(at(p), n * PAGE) == 0);
        for (uint32_t i = p; i < p + n; i++) place[i].locked = 0;
        break;
    case 10:
    case 11:
        n = run_of(loose, p, n);
        if (q + n > last || (q < p + n && p < q + n)) break;
        move_places(p, q, n, r % 18 == 11);
        break;
    case 12: { /* the page before a hole grows into it, if it can */
        uint32_t hole = p;
        while (hole < last && !missing(hole)) hole++;
        n = run_of(missing, hole, last - hole < n ? last - hole : n);
        if (!n || hole == first || !loose(hole - 1) || !place[hole].closed) break;
        if (mremap(at(hole - 1), PAGE, (1 + n) * PAGE, 0) == MAP_FAILED) break;
        empty_places(hole, n);
        for (uint32_t i = hole; i < hole + n; i++)
            place[i] = (struct place){.of = i, .prot = place[hole - 1].prot, .stays = place[hole - 1].stays};
        break;
    }
    case 13:
        if (!(n = run_of(plain, p, n))) break;
        v = (r >> 9) % (sizeof advices / sizeof *advices);
        if (madvise(at(p), n * PAGE, advices[v]) && errno != EAGAIN && advices[v] != MADV_COLLAPSE)
            wrong("madvise(%d): errno %d (%s)", advices[v], errno, strerror(errno));
        break;
    case 14: { /* read by the kernel, and written by it elsewhere */
        int ends[2];
        n = run_of(readable, p, n < 16 ? n : 16);
        n = run_of(writable, q, last - q < n ? last - q : n);
        for (uint32_t i = p; i < p + n; i++)
            if (place[i].freed) n = 0;
        if (!n) break;
        MUST(pipe(ends) == 0);
        MUST(write(ends[1], at(p), n * PAGE) == (ssize_t)(n * PAGE));
        MUST(read(ends[0], through, n * PAGE) == (ssize_t)(n * PAGE));
        MUST(write(ends[1], through, n * PAGE) == (ssize_t)(n * PAGE));
        struct place was[16];
        uint32_t versions[16];
        memcpy(was, place + p, n * sizeof *was), memcpy(versions, version + p, n * sizeof *versions);
        MUST(read(ends[0], at(q), n * PAGE) == (ssize_t)(n * PAGE));
        for (uint32_t i = 0; i < n; i++) place[q + i].of = was[i].of, place[q + i].freed = 0, version[q + i] = versions[i];
        close(ends[0]), close(ends[1]);
        break;
    }
    case 15: { /* written through the file of its own memory, also where it may only be read */
        int memory = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
        MUST(memory >= 0);
        for (uint32_t i = p; i < p + n && i < p + 16; i++) {
            if (!readable(i)) continue;
            fill_at((uint64_t *)through, i, v);
            MUST(pwrite(memory, through, PAGE, (off_t)(uintptr_t)at(i)) == (ssize_t)PAGE);
            version[i] = v, place[i].of = i, place[i].freed = 0;
        }
        close(memory);
        break;
    }
    default: { /* a child, which has all of it, and does the like with what is its own */
        static int depth;
        if (depth > 1) break;
        pid_t child = fork();
        MUST(child >= 0);
        if (!child) {
            depth++;
            for (uint32_t i = first; i < last; i++)
                if (place[i].stays) place[i] = (struct place){.hole = 1};
            check_places(first, last);
            o->rand ^= r;
            some_things(o, first, last, (r >> 9) % 6);
            _exit(0);
        }
        for (uint32_t i = p; i < p + n; i++)
            if (writable(i)) write_place(i, v);
        check_places(first, last);
        int status;
        MUST(waitpid(child, &status, 0) == child);
        if (status) wrong("a child found a wrong byte or died: %#x", status);
        break;
    }
    }
}

static void some_things(struct owner *o, uint32_t first, uint32_t last, unsigned calls) {
    for (; calls && !over(); calls--) {
        uint32_t p = first + (unsigned)rand_r(&o->rand) % (last - first);
        uint32_t n = 1 + (unsigned)rand_r(&o->rand) % (last - p);
        one_thing(o, first, last, p, n);
        check_places(p, p + n);
        /* long enough to be merged, now and then */
        if (rand_r(&o->rand) % 2) continue;
        usleep((useconds_t)rand_r(&o->rand) % 500000);
        check_places(first, last);
    }
}

static void do_anything(struct owner *o, uint32_t page, uint32_t pages) {
    for (uint32_t p = page; p < page + pages; p++) place[p] = (struct place){.of = p, .prot = PROT_READ | PROT_WRITE};
    some_things(o, page, page + pages, 1 + (unsigned)rand_r(&o->rand) % 24);
    for (uint32_t p = page; p < page + pages; p++) {
        if (place[p].prot != (PROT_READ | PROT_WRITE) || place[p].hole) map_anew(p, 1);
        if (place[p].locked) MUST(munlock(at(p), PAGE) == 0);
        if (place[p].stays) MUST(madvise(at(p), PAGE, MADV_DOFORK) == 0);
        if (place[p].of != p || place[p].freed) write_place(p, 0);
    }
}

static void anything(void) {
    start_owners(do_anything);
    join_owners();
}

static int advice;
static int may_fail;

static void advise(struct owner *o, uint32_t page, uint32_t pages) {
    (void)o;
    int r = madvise(at(page), pages * PAGE, advice);
    if (r && !may_fail) wrong("madvise(%d): errno %d (%s)", advice, errno, strerror(errno));
    if (advice == MADV_DONTNEED)
        for (uint32_t p = page; p < page + pages; p++) version[p] = ZERO;
    if (advice == MADV_FREE)
        /* each page has its bytes or is zero, until it is written */
        for (uint32_t p = page; p < page + pages; p++) {
            if (!at(p)[0] && !at(p)[WORDS - 1]) check_at(at(p), p, ZERO);
            else check(p);
            fill(p, 0);
        }
}

static void advised(int what, int fails) {
    advice = what, may_fail = fails;
    start_owners(advise);
    join_owners();
}

/* Discards by one thread are seen as zeros by all, from the moment that the call has returned. */
static atomic_uint discarded_upto;
/* What was merged and has been written since is one of two things while it is discarded: that, or zeros. */
static atomic_uint being_discarded;

static void *watch_discards(void *argument) {
    (void)argument;
    while (!over()) {
        unsigned which = atomic_load(&being_discarded);
        for (unsigned p = which - 32; which && p < which; p++) {
            uint64_t found = *(const volatile uint64_t *)at(p);
            if (atomic_load(&being_discarded) == which && found && found != word(p, 1, 0))
                wrong("page %u, while it is discarded: %#llx", p, (unsigned long long)found);
        }
        unsigned upto = atomic_load(&discarded_upto);
        if (!upto) continue;
        /* A copy, judged only if the page was not about to be filled again meanwhile: this thread may have stood still. */
        uint64_t copy[WORDS];
        for (unsigned i = 0; i < WORDS; i++) copy[i] = ((const volatile uint64_t *)at(upto - 1))[i];
        if (atomic_load(&discarded_upto) >= upto) check_at(copy, upto - 1, ZERO);
        if (upto == PAGES) usleep(1000); /* all of them: nothing new to see */
    }
    return NULL;
}

static void discards(void) {
    pthread_t watcher = start(watch_discards);
    while (!over()) {
        for (uint32_t p = 0; p < PAGES; p++) fill(p, 0);
        atomic_store(&discarded_upto, 0);
        usleep(300000u << rand_r(&seed) % 5);
        check_range(0, PAGES);
        for (uint32_t p = 0; p < PAGES && !over(); p += 32) {
            if (p % 64)
                for (uint32_t q = p; q < p + 32; q++) fill(q, 1);
            atomic_store(&being_discarded, p % 64 ? p + 32 : 0);
            MUST(madvise(at(p), 32 * PAGE, MADV_DONTNEED) == 0);
            atomic_store(&being_discarded, 0);
            for (uint32_t q = p; q < p + 32; q++) version[q] = ZERO;
            check_range(p, p + 32);
            atomic_store(&discarded_upto, p + 32);
        }
        usleep(20000);
        check_range(0, PAGES);
        atomic_store(&discarded_upto, 0);
        usleep(100000); /* longer than any stop of the watching thread */
    }
    pthread_join(watcher, NULL);
    check_range(0, PAGES);
}

/* Suspended and continued all the time, from outside, while it discards. */
static void suspended(void) {
    atomic_int *enough = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    MUST(enough != MAP_FAILED);
    pid_t me = getpid(), child = fork();
    if (!child) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        /* It ends by itself, after a SIGCONT: killed, it might still leave a SIGSTOP behind. */
        while (!atomic_load(enough)) {
            usleep(20000), kill(me, SIGSTOP);
            usleep(90000), kill(me, SIGCONT);
        }
        _exit(0);
    }
    discards();
    atomic_store(enough, 1);
    wait_for(child);
}

static void lock_some(struct owner *o, uint32_t page, uint32_t pages) {
    if (!at_work()) { /* a process that has locked memory is left alone */
        MUST(munlockall() == 0);
        return;
    }
    switch (rand_r(&o->rand) % 3) {
    case 0:
        MUST(mlock(at(page), pages * PAGE) == 0);
        break;
    case 1:
        MUST(munlock(at(page), pages * PAGE) == 0);
        break;
    default:
        MUST(mlockall(MCL_CURRENT | MCL_FUTURE) == 0);
        check_range(page, page + pages);
        usleep(20000);
        MUST(munlockall() == 0);
    }
}

static void locks(void) {
    start_owners(lock_some);
    join_owners();
}

static __thread volatile sig_atomic_t expecting;
static __thread uintptr_t guarded;

static void on_fault(int number, siginfo_t *info, void *context) {
    (void)number, (void)context;
    uintptr_t a = (uintptr_t)info->si_addr & ~(PAGE - 1);
    if (!expecting || a != guarded) wrong("a fault at %p", info->si_addr);
    expecting = 0;
    mprotect((void *)guarded, PAGE, PROT_READ | PROT_WRITE);
}

static void flip(struct owner *o, uint32_t page, uint32_t pages) {
    int prot = rand_r(&o->rand) % 2 ? PROT_NONE : PROT_READ;
    for (uint32_t p = page; p < page + pages; p += 3) {
        MUST(mprotect(at(p), PAGE, prot) == 0);
        if (p % 2 && prot == PROT_NONE) {
            /* what lies behind a guard may be given back meanwhile; it is guarded still */
            MUST(madvise(at(p), PAGE, MADV_DONTNEED) == 0);
            version[p] = ZERO;
        }
    }
    usleep(60000);
    for (uint32_t p = page; p < page + pages; p += 3) {
        guarded = (uintptr_t)at(p), expecting = 1;
        *(volatile uint64_t *)at(p) = word(p, version[p], 0); /* faults: a write to a guarded page */
        if (expecting) wrong("page %u: a guard is gone", p);
        check(p);
    }
}

static void guards(void) {
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    MUST(sigaction(SIGSEGV, &action, NULL) == 0);
    start_owners(flip);
    join_owners();
}

/* --- written from elsewhere ------------------------------------------------------------------------------------------ */

/* A third process writes into pages at rest, and checks what it wrote at once. */
static void third_process(int through_file) {
    pid_t me = getpid(), child = fork();
    MUST(child >= 0);
    if (!child) {
        char path[64];
        snprintf(path, sizeof path, "/proc/%d/mem", me);
        int memory = open(path, O_RDWR);
        MUST(memory >= 0);
        unsigned r = 3;
        static uint64_t page_of[WORDS], back[WORDS];
        for (uint32_t sequence = 1; !over(); sequence++) {
            uint32_t p = (uint32_t)rand_r(&r) % PAGES;
            uint32_t v = sequence % 2 ? sequence : 0;
            fill_at(page_of, p, v);
            struct iovec here = {page_of, PAGE}, there = {at(p), PAGE};
            /* a page may be away for a moment: told by an error, never by lost bytes */
            for (;;) {
                ssize_t n = through_file ? pwrite(memory, page_of, PAGE, (off_t)(uintptr_t)at(p))
                                         : process_vm_writev(me, &here, 1, &there, 1, 0);
                if (n == (ssize_t)PAGE) break;
                if (n < 0 && errno != EFAULT && errno != EIO) wrong("write: errno %d", errno);
            }
            version[p] = v;
            /* some of them are checked later, when they may have been merged */
            uint32_t q = (uint32_t)rand_r(&r) % PAGES;
            struct iovec mine = {back, PAGE}, theirs = {at(q), PAGE};
            if (process_vm_readv(me, &mine, 1, &theirs, 1, 0) == (ssize_t)PAGE) check_at(back, q, version[q]);
            if (sequence % 4 == 0) usleep(1000);
        }
        _exit(0);
    }
    if (wait_for(child)) wrong("the writer found a wrong byte");
    /* the versions are in memory shared with the writer */
    check_range(0, PAGES);
}

static int source; /* a file that holds PAGES pages of version 9 */

static void make_source(void) {
    char name[] = "/tmp/pageone-stress-XXXXXX";
    source = mkostemp(name, O_DIRECT);
    if (source < 0) source = mkstemp(name);
    MUST(source >= 0);
    unlink(name);
    uint64_t *page = aligned_alloc(PAGE, PAGE);
    for (uint32_t p = 0; p < PAGES; p++) {
        fill_at(page, p, 9);
        MUST(pwrite(source, page, PAGE, (off_t)p * (off_t)PAGE) == (ssize_t)PAGE);
    }
    free(page);
    fsync(source);
}

static void read_direct(struct owner *o, uint32_t page, uint32_t pages) {
    (void)o;
    ssize_t n = pread(source, at(page), pages * PAGE, (off_t)page * (off_t)PAGE);
    if (n != (ssize_t)(pages * PAGE)) wrong("a direct read: %zd errno %d", n, errno);
    for (uint32_t p = page; p < page + pages; p++) version[p] = 9;
}

static void direct(void) {
    make_source();
    start_owners(read_direct);
    join_owners();
}

/* For a while it reads windows and writes to half of them: nothing is merged while there is a ring. */
static void read_windows(struct owner *o) {
    for (double since = now(); !over() && now() - since < REST_S;) {
        uint32_t window = (uint32_t)rand_r(&o->rand) % (PAGES - WINDOW), end = window + WINDOW;
        check_range(window, end);
        o->change(o, window, WINDOW);
        check_range(window, end);
        for (uint32_t p = window; p < end; p++)
            if (p % 2) rewrite(o, p);
        check_range(window, end);
        for (uint32_t p = window; p < end; p++) fill(p, 0);
    }
}

static aio_context_t aio;

static void read_async(struct owner *o, uint32_t page, uint32_t pages) {
    (void)o;
    struct iocb block = {.aio_lio_opcode = IOCB_CMD_PREAD,
                         .aio_fildes = (uint32_t)source,
                         .aio_buf = (uintptr_t)at(page),
                         .aio_nbytes = pages * PAGE,
                         .aio_offset = (int64_t)page * (int64_t)PAGE};
    struct iocb *list[1] = {&block};
    MUST(syscall(SYS_io_submit, aio, 1, list) == 1);
    struct io_event event;
    long n;
    while ((n = syscall(SYS_io_getevents, aio, 1, 1, &event, NULL)) < 0 && errno == EINTR) {}
    MUST(n == 1 && event.res == (int64_t)(pages * PAGE));
    for (uint32_t p = page; p < page + pages; p++) version[p] = 9;
}

static void *sit(void *argument) {
    (void)argument;
    while (!over()) usleep(10000);
    return NULL;
}

static void async(void) {
    make_source();
    owners[0] = (struct owner){0, PAGES, 1, seed, read_async};
    while (!over()) {
        rest(), rest(); /* merged before the context is made */
        check_range(0, PAGES);
        aio = 0;
        MUST(syscall(SYS_io_setup, 8, &aio) == 0);
        read_windows(&owners[0]);
        MUST(syscall(SYS_io_destroy, aio) == 0);
    }
    check_range(0, PAGES);
}

/* io_uring with nothing but system calls: one request at a time. */
static struct {
    int fd;
    unsigned *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask;
    struct io_uring_sqe *sqes;
    struct io_uring_cqe *cqes;
    void *maps[2], *entries;
    size_t bytes[2];
    int fixed;
} ring;

static int open_ring(void) {
    struct io_uring_params p = {0};
    ring.fd = (int)syscall(SYS_io_uring_setup, 8, &p);
    if (ring.fd < 0) return 0;
    size_t sq = p.sq_off.array + p.sq_entries * 4, cq = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
    ring.bytes[0] = sq > cq ? sq : cq, ring.bytes[1] = p.sq_entries * sizeof(struct io_uring_sqe);
    char *s = mmap(NULL, ring.bytes[0], PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, IORING_OFF_SQ_RING);
    char *c = mmap(NULL, ring.bytes[0], PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, IORING_OFF_CQ_RING);
    ring.sqes = mmap(NULL, ring.bytes[1], PROT_READ | PROT_WRITE, MAP_SHARED, ring.fd, IORING_OFF_SQES);
    ring.maps[0] = s, ring.maps[1] = c;
    MUST(s != MAP_FAILED && c != MAP_FAILED && ring.sqes != MAP_FAILED);
    ring.sq_tail = (unsigned *)(s + p.sq_off.tail), ring.sq_mask = (unsigned *)(s + p.sq_off.ring_mask);
    ring.sq_array = (unsigned *)(s + p.sq_off.array);
    ring.cq_head = (unsigned *)(c + p.cq_off.head), ring.cq_tail = (unsigned *)(c + p.cq_off.tail);
    ring.cq_mask = (unsigned *)(c + p.cq_off.ring_mask), ring.cqes = (struct io_uring_cqe *)(c + p.cq_off.cqes);
    return 1;
}

static void close_ring(void) {
    MUST(munmap(ring.maps[0], ring.bytes[0]) == 0 && munmap(ring.maps[1], ring.bytes[0]) == 0);
    MUST(munmap(ring.sqes, ring.bytes[1]) == 0 && close(ring.fd) == 0);
}

static void read_ring(struct owner *o, uint32_t page, uint32_t pages) {
    (void)o;
    unsigned tail = *ring.sq_tail, i = tail & *ring.sq_mask;
    ring.sqes[i] = (struct io_uring_sqe){.opcode = ring.fixed ? IORING_OP_READ_FIXED : IORING_OP_READ,
                                         .fd = source,
                                         .addr = (uintptr_t)at(page),
                                         .len = (uint32_t)(pages * PAGE),
                                         .off = (uint64_t)page * PAGE};
    ring.sq_array[i] = i;
    __atomic_store_n(ring.sq_tail, tail + 1, __ATOMIC_RELEASE);
    long n;
    do n = syscall(SYS_io_uring_enter, ring.fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0);
    while (n < 0 && errno == EINTR);
    while (*ring.cq_head == __atomic_load_n(ring.cq_tail, __ATOMIC_ACQUIRE))
        syscall(SYS_io_uring_enter, ring.fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0);
    int r = ring.cqes[*ring.cq_head & *ring.cq_mask].res;
    __atomic_store_n(ring.cq_head, *ring.cq_head + 1, __ATOMIC_RELEASE);
    if (r != (int)(pages * PAGE)) wrong("a read through the ring: %d", r);
    for (uint32_t p = page; p < page + pages; p++) version[p] = 9;
}

static void uring(int fixed) {
    make_source();
    owners[0] = (struct owner){0, PAGES, 1, seed, read_ring};
    while (!over()) {
        rest(), rest(); /* merged before the ring is made */
        check_range(0, PAGES);
        if (!open_ring()) {
            printf("SKIP no io_uring: errno %d\n", errno);
            exit(0);
        }
        ring.fixed = fixed;
        if (fixed) {
            struct iovec whole = {area, PAGES * PAGE};
            MUST(syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, &whole, 1) == 0);
        }
        read_windows(&owners[0]);
        close_ring();
    }
    check_range(0, PAGES);
}

/* --- tools of the program's own --------------------------------------------------------------------------------------- */

/* A userfaultfd of its own, over part of the area, that fills missing pages with version 5. */
static int uffd;

static void *serve_faults(void *argument) {
    (void)argument;
    uint64_t *page = aligned_alloc(PAGE, PAGE);
    while (!atomic_load(&stop)) {
        struct pollfd p = {.fd = uffd, .events = POLLIN};
        if (poll(&p, 1, 20) < 1) continue;
        struct uffd_msg m;
        if (read(uffd, &m, sizeof m) != sizeof m || m.event != UFFD_EVENT_PAGEFAULT) continue;
        uint64_t *where = (uint64_t *)(m.arg.pagefault.address & ~(PAGE - 1));
        fill_at(page, (uint32_t)((where - area) / (long)WORDS), 5);
        struct uffdio_copy copy = {(uintptr_t)where, (uintptr_t)page, PAGE, 0, 0};
        ioctl(uffd, UFFDIO_COPY, &copy);
    }
    return NULL;
}

static void own_userfaultfd(void) {
    uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
    MUST(uffd >= 0);
    struct uffdio_api api = {.api = UFFD_API};
    MUST(ioctl(uffd, UFFDIO_API, &api) == 0);
    uint32_t from = PAGES - 256;
    MUST(munmap(at(from), 256 * PAGE) == 0);
    MUST(mmap(at(from), 256 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at(from));
    struct uffdio_register r = {{(uintptr_t)at(from), 256 * PAGE}, UFFDIO_REGISTER_MODE_MISSING, 0};
    MUST(ioctl(uffd, UFFDIO_REGISTER, &r) == 0);
    pthread_t server = start(serve_faults);
    while (!over()) {
        for (uint32_t p = from; p < PAGES; p++) version[p] = 5, check(p);
        check_range(0, from);
        usleep(100000);
        MUST(madvise(at(from), 256 * PAGE, MADV_DONTNEED) == 0);
    }
    pthread_join(server, NULL);
    check_range(0, from);
}

/* It traces a child of its own, which PageONE then cannot stop. */
static void own_ptrace(void) {
    pid_t child = fork();
    MUST(child >= 0);
    if (!child) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        MUST(ptrace(PTRACE_TRACEME, 0, 0, 0) == 0);
        raise(SIGSTOP);
        /* no discards: with another tracer on it, they cannot be zero-filled before it sees them */
        for (unsigned r = 9; !over();) {
            uint32_t p = (uint32_t)rand_r(&r) % PAGES;
            check(p), fill(p, r % 2), check(p);
            if (r % 64 == 0) usleep(10000);
        }
        check_range(0, PAGES);
        _exit(0);
    }
    int status = wait_for(child);
    MUST(WIFSTOPPED(status));
    unsigned long stops = 0;
    for (;;) {
        MUST(ptrace(PTRACE_SYSCALL, child, 0, 0) == 0);
        status = wait_for(child);
        if (WIFEXITED(status)) break;
        if (!WIFSTOPPED(status)) wrong("the traced child: %#x", status);
        stops++;
    }
    if (WEXITSTATUS(status)) wrong("the traced child found a wrong byte");
    MUST(stops > 10);
    check_range(0, PAGES);
}

#include <linux/filter.h>
#include <linux/seccomp.h>

/* It filters its calls when it has been merged already; what a merger would call kills it. It may still discard. */
static void filter_calls(void) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mmap, 6, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_socketpair, 5, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_recvmsg, 4, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_mremap, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_munmap, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    };
    struct sock_fprog program = {sizeof code / sizeof *code, code};
    MUST(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
    MUST(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

static void filtered(void) {
    rest();
    check_range(0, PAGES);
    /* children first: nothing is merged any more in a process that has a filter, and its memory is not for ever */
    while (seconds - (now() - began) > REST_S) {
        pid_t child = fork();
        MUST(child >= 0);
        if (!child) {
            filter_calls();
            live(100);
            check_range(0, PAGES);
            _exit(0);
        }
        int status = wait_for(child);
        if (status) wrong("a filtered child found a wrong byte or died: %#x", status);
        usleep(50000);
    }
    printf("OK 0\n"), fflush(stdout); /* what could not be printed later without mmap is allocated now */
    filter_calls();
    while (!over()) {
        live(20);
        usleep(20000);
    }
    check_range(0, PAGES);
}

/* --- limits ----------------------------------------------------------------------------------------------------------- */

static void limited(int resource, rlim_t more) {
    /* little is left of what it uses: whatever is done in it for merging must get by with that, or be left */
    long size = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    MUST(f && fscanf(f, "%ld %ld", &size, &resident) == 2);
    fclose(f);
    rlim_t limit = resource == RLIMIT_NOFILE ? 8 : (rlim_t)size * PAGE + more + THREADS * (9 << 20);
    pthread_attr_t a;
    pthread_attr_init(&a);
    start_owners(NULL);
    usleep(100000);
    if (resource == RLIMIT_AS) {
        fopen("/proc/self/statm", "r");
        long now_size = 0;
        f = fopen("/proc/self/statm", "r");
        MUST(f && fscanf(f, "%ld", &now_size) == 1);
        limit = (rlim_t)now_size * PAGE + more;
    }
    struct rlimit l = {limit, limit};
    MUST(setrlimit(resource, &l) == 0);
    if (resource == RLIMIT_NOFILE)
        while (dup(0) >= 0) {}
    join_owners();
}

static void on_end(int number) {
    (void)number;
    atomic_store(&stop, 1);
}

int main(int count, char **arguments) {
    if (count != 4) return 2;
    struct sigaction end = {.sa_handler = on_end, .sa_flags = SA_RESTART};
    sigaction(SIGUSR2, &end, NULL);
    const char *what = arguments[1];
    seconds = atof(arguments[2]);
    seed = (unsigned)atoi(arguments[3]);
    alarm((unsigned)seconds + 60); /* a hang ends by itself */
    area = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    /* shared where another process must know it, too */
    int shared = !strncmp(what, "third", 5);
    version = mmap(NULL, PAGES * sizeof *version, PROT_READ | PROT_WRITE,
                   (shared ? MAP_SHARED : MAP_PRIVATE) | MAP_ANONYMOUS, -1, 0);
    MUST(area != MAP_FAILED && version != MAP_FAILED);
    if (strcmp(what, "hugepage") && strcmp(what, "collapse")) madvise(area, PAGES * PAGE, MADV_NOHUGEPAGE);
    for (uint32_t p = 0; p < PAGES; p++) fill(p, p % 16 == 15 ? ZERO : 0);
    if (strcmp(what, "exec") || atoi(arguments[3]) != 1) {
        printf("READY %d\n", getpid());
        fflush(stdout);
        /* begin when told */
        char c;
        MUST(read(0, &c, 1) == 1);
    }
    began = getenv("STRESS_BEGAN") ? atof(getenv("STRESS_BEGAN")) : now();
    if (!strcmp(what, "writers")) writers();
    else if (!strcmp(what, "signals")) signals();
    else if (!strcmp(what, "churn")) churn();
    else if (!strcmp(what, "leaderless")) leaderless();
    else if (!strcmp(what, "calls")) calls();
    else if (!strcmp(what, "forks")) forks();
    else if (!strcmp(what, "orphans")) orphans();
    else if (!strcmp(what, "spawns")) spawns();
    else if (!strcmp(what, "shared")) shared_memory();
    else if (!strcmp(what, "exec")) execs(arguments[0]);
    else if (!strcmp(what, "mappings")) mappings();
    else if (!strcmp(what, "anything")) anything();
    else if (!strcmp(what, "dontneed")) advised(MADV_DONTNEED, 0);
    else if (!strcmp(what, "free")) advised(MADV_FREE, 0);
    else if (!strcmp(what, "remove")) advised(MADV_REMOVE, 1);
    else if (!strcmp(what, "hugepage")) advised(MADV_HUGEPAGE, 1);
    else if (!strcmp(what, "collapse")) advised(MADV_COLLAPSE, 1);
    else if (!strcmp(what, "discards")) discards();
    else if (!strcmp(what, "suspended")) suspended();
    else if (!strcmp(what, "locks")) locks();
    else if (!strcmp(what, "guards")) guards();
    else if (!strcmp(what, "third-vm")) third_process(0);
    else if (!strcmp(what, "third-mem")) third_process(1);
    else if (!strcmp(what, "direct")) direct();
    else if (!strcmp(what, "aio")) async();
    else if (!strcmp(what, "uring")) uring(0);
    else if (!strcmp(what, "uring-fixed")) uring(1);
    else if (!strcmp(what, "userfaultfd")) own_userfaultfd();
    else if (!strcmp(what, "ptrace")) own_ptrace();
    else if (!strcmp(what, "seccomp")) filtered();
    else if (!strcmp(what, "limit-as")) limited(RLIMIT_AS, 1 << 20);
    else if (!strcmp(what, "limit-data")) limited(RLIMIT_DATA, 1 << 20);
    else if (!strcmp(what, "limit-files")) limited(RLIMIT_NOFILE, 0);
    else if (!strcmp(what, "sit")) sit(NULL), check_range(0, PAGES);
    else return 2;
    printf("OK %lu\n", (unsigned long)checked);
    return 0;
}
