/* A program with merged memory that gives up its rights, or has a child that does, and then tries to read frames it was not given.
 * Asked line by line; answers each with one line. "child WHAT" and "self WHAT" do WHAT as user 65534, in a child or here:
 *   place     takes away what keeps its memory from growing, and has it grow where it is
 *   watched   the same, after it has ended all watching of its memory with a userfaultfd of its own
 *   tracer    the same, while it is traced by a child of its own
 *   moved     moves and grows it again and again while another thread looks at where it comes to lie
 *   call      has the kernel read what has grown
 * and answer how many pages they saw that are not zero in what is new, how many of their own were wrong, and how often they grew it.
 *   family    a child as user 65534 checks its bytes, forks, discards, runs another program, ends; answers what was wrong
 *   stay      leaves such a child, and answers its process id and where its memory is
 *   become    gives up its rights
 *   grow      unmaps its own memory behind that which is merged, grows into that, and has a system call fill it
 *   collapse  has the kernel try to make huge pages of its memory, and answers 1
 *   check     answers how many pages are wrong, as the program and as a system call sees them */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096L
#define PAGES 1024L
#define MORE 1024L
#define HUGE (1L << 21)
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

static uint32_t first;
static unsigned char *area, *other;

static void make(unsigned char *page, uint32_t k) {
    for (int i = 0; i < PAGE; i++) page[i] = (unsigned char)(1 + (i * 7 + k * 13) % 251);
    memcpy(page, &k, 4), page[3] = 99;
}

static long wrong(const unsigned char *at) {
    unsigned char right[PAGE];
    long n = 0;
    for (long k = 0; k < PAGES; k++) make(right, first + k), n += memcmp(right, at + k * PAGE, PAGE) != 0;
    return n;
}

static long wrong_for_calls(const unsigned char *at) {
    unsigned char right[PAGE], got[PAGE];
    int ends[2];
    long n = 0;
    if (pipe(ends)) return PAGES;
    for (long k = 0; k < PAGES; k++) {
        make(right, first + k);
        n += write(ends[1], at + k * PAGE, PAGE) != PAGE || read(ends[0], got, PAGE) != PAGE || memcmp(right, got, PAGE) != 0;
    }
    close(ends[0]), close(ends[1]);
    return n;
}

static int not_zero(const volatile unsigned char *page) {
    for (int i = 0; i < PAGE; i += 8)
        if (*(const volatile uint64_t *)(page + i)) return 1;
    return 0;
}

static unsigned char *room(void) {
    /* Alone in the middle of what is free. */
    unsigned char *at = mmap(NULL, 16 * HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    munmap(at, 16 * HUGE);
    return (unsigned char *)(((uintptr_t)at + 4 * HUGE) & ~(HUGE - 1));
}

static void become_nobody(void) {
    if (setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534)) _exit(9);
}

static sigjmp_buf again;
static void on_fault(int signal) { siglongjmp(again, signal); }
static unsigned char *volatile looked;
static volatile int over;
static volatile long seen;

static void *look(void *unused) {
    while (!over) {
        unsigned char *at = looked;
        if (sigsetjmp(again, 1)) continue;
        for (long k = 0; at && k < 8; k++)
            if (not_zero(at + k * PAGE)) seen++;
    }
    return unused;
}

static void strike(const char *what, long out[3]) {
    unsigned char *at = area;
    out[0] = out[1] = out[2] = 0;
    if (!strcmp(what, "moved")) {
        pthread_t thread;
        signal(SIGSEGV, on_fault), signal(SIGBUS, on_fault);
        pthread_create(&thread, NULL, look, NULL);
        for (int i = 0; i < 40; i++) {
            unsigned char *to = i % 2 ? area : other;
            looked = to + PAGES * PAGE;
            unsigned char *got = mremap(at, PAGES * PAGE, (PAGES + MORE) * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
            if (got != MAP_FAILED) at = got, out[2]++;
            usleep(500);
            looked = NULL;
            munmap(at + PAGES * PAGE, MORE * PAGE);
        }
        over = 1;
        pthread_join(thread, NULL);
        out[0] = seen, out[1] = wrong(at);
        return;
    }
    if (!strcmp(what, "watched")) {
        int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | 1);
        struct uffdio_api api = {.api = UFFD_API};
        struct uffdio_range all = {(uintptr_t)area, PAGES * PAGE};
        ioctl(fd, UFFDIO_API, &api), ioctl(fd, UFFDIO_UNREGISTER, &all);
    }
    pid_t tracer = 0;
    if (!strcmp(what, "tracer")) {
        pid_t me = getpid();
        int ends[2];
        char byte;
        if (pipe(ends)) _exit(8);
        prctl(PR_SET_DUMPABLE, 1), prctl(PR_SET_PTRACER, -1L);
        if ((tracer = fork()) == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            byte = (char)ptrace(PTRACE_SEIZE, me, 0, 0);
            if (write(ends[1], &byte, 1) == 1)
                for (;;) pause();
        }
        if (read(ends[0], &byte, 1) != 1) _exit(7);
    }
    munmap(area + PAGES * PAGE, MORE * PAGE);
    if (mremap(area, PAGES * PAGE, (PAGES + MORE) * PAGE, 0) == area) {
        out[2] = 1;
        if (tracer) madvise(area, PAGE, MADV_DONTNEED), make(area, first);
        if (!strcmp(what, "call")) {
            unsigned char got[PAGE];
            int ends[2];
            if (pipe(ends)) _exit(6);
            for (long k = PAGES; k < PAGES + MORE; k++) {
                memset(got, 0, PAGE);
                if (write(ends[1], area + k * PAGE, PAGE) == PAGE && read(ends[0], got, PAGE) == PAGE) out[0] += not_zero(got);
            }
        }
        for (long k = PAGES; k < PAGES + MORE; k++) out[0] += not_zero(area + k * PAGE);
    }
    out[1] = wrong(area);
    if (tracer) kill(tracer, SIGKILL), waitpid(tracer, NULL, 0);
}

static long family(void) {
    long bad = wrong(area);
    pid_t child = fork();
    if (child == 0) {
        bad = wrong(area) + wrong_for_calls(area);
        madvise(area, 8 * PAGE, MADV_DONTNEED);
        for (long k = 0; k < 8; k++) bad += not_zero(area + k * PAGE), make(area + k * PAGE, first + k);
        area[9 * PAGE] ^= 1, area[9 * PAGE] ^= 1;
        if (bad + wrong(area)) _exit(1);
        execl("/bin/true", "true", NULL);
        _exit(2);
    }
    int status = -1;
    waitpid(child, &status, 0);
    return bad + (status != 0) + wrong(area);
}

static long grow(void) {
    unsigned char *behind = area + PAGES * PAGE, got[PAGE];
    munmap(behind, PAGE);
    if (mmap(behind, MORE * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != behind) return -1;
    munmap(behind, MORE * PAGE);
    if (mremap(area, PAGES * PAGE, (PAGES + MORE) * PAGE, 0) != area) return -2;
    int ends[2];
    if (pipe(ends)) return -3;
    make(got, 7);
    if (write(ends[1], got, PAGE) != PAGE || read(ends[0], behind + PAGE, PAGE) != PAGE) return -4;
    return wrong(area) + (memcmp(behind + PAGE, got, PAGE) != 0) + not_zero(behind) + not_zero(behind + 2 * PAGE);
}

static long collapse(void) {
    char line[512];
    unsigned long start = 0, end, offset = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (fgets(line, sizeof line, maps))
        if (sscanf(line, "%lx-%lx %*s %lx", &start, &end, &offset) == 3 && start == (unsigned long)area) break;
    fclose(maps);
    /* Where addresses and frames are huge pages at once. */
    unsigned char *to = other + offset % HUGE;
    if (mremap(area, PAGES * PAGE, PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) != to) return 0;
    area = to;
    unsigned char *whole = (unsigned char *)(((uintptr_t)area + HUGE - 1) & ~(HUGE - 1));
    madvise(whole, HUGE, MADV_COLLAPSE);
    return 1;
}

int main(int argc, char **argv) {
    char line[64], how[32];
    first = argc > 1 ? (uint32_t)atoi(argv[1]) : 0;
    area = room();
    mmap(area, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    madvise(area, PAGES * PAGE, MADV_NOHUGEPAGE);
    for (long k = 0; k < PAGES; k++) make(area + k * PAGE, first + k);
    other = room();
    printf("ready\n"), fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        long out[3] = {-1, -1, -1};
        int ends[2], status;
        if (sscanf(line, "self %31s", how) == 1) become_nobody(), strike(how, out);
        else if (sscanf(line, "child %31s", how) == 1 && pipe(ends) == 0) {
            pid_t child = fork();
            if (child == 0) {
                become_nobody(), strike(how, out);
                _exit(write(ends[1], out, sizeof out) != sizeof out);
            }
            close(ends[1]);
            if (read(ends[0], out, sizeof out) != sizeof out) out[0] = -2;
            close(ends[0]), waitpid(child, &status, 0);
        } else if (!strncmp(line, "family", 6)) {
            pid_t child = fork();
            if (child == 0) become_nobody(), _exit(family() != 0);
            waitpid(child, &status, 0);
            out[0] = status, out[1] = wrong(area), out[2] = 0;
        } else if (!strncmp(line, "stay", 4)) {
            pid_t child = fork();
            if (child == 0) {
                prctl(PR_SET_PDEATHSIG, SIGKILL), become_nobody(), prctl(PR_SET_PDEATHSIG, SIGKILL);
                while (fgets(line, sizeof line, stdin)) printf("%ld %ld 0\n", wrong(area), wrong_for_calls(area)), fflush(stdout);
                _exit(0);
            }
            out[0] = child, out[1] = (long)area, out[2] = PAGES;
            printf("%ld %ld %ld\n", out[0], out[1], out[2]), fflush(stdout);
            waitpid(child, &status, 0);
            continue;
        } else if (!strncmp(line, "become", 6)) become_nobody(), out[0] = out[1] = out[2] = 0;
        else if (!strncmp(line, "grow", 4)) out[0] = grow(), out[1] = out[2] = 0;
        else if (!strncmp(line, "collapse", 8)) out[0] = collapse(), out[1] = out[2] = 0;
        else if (!strncmp(line, "check", 5)) out[0] = wrong(area), out[1] = wrong_for_calls(area), out[2] = 0;
        printf("%ld %ld %ld\n", out[0], out[1], out[2]), fflush(stdout);
    }
    return 0;
}
