/* A program whose read from a pipe waits in a worker thread of the kernel (io_uring, system calls only). Its first thread
 * sleeps meanwhile in a call that only its own kernel state can restart. Answers line by line. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096
#define PAGES 256
#define DISCARDED 64

static unsigned char *area;
static int pipes[2], ring_fd;
static char *rings, *buffer;
static struct io_uring_params params;

static void fill(unsigned char *to, uint32_t k) {
    for (int i = 0; i < PAGE; i++) to[i] = (unsigned char)(1 + (i * 7 + k * 13 + (k >> 4)) % 251);
    memcpy(to, &k, 4);
}

static int wrong_from(uint32_t first) {
    unsigned char page[PAGE];
    int wrong = 0;
    for (uint32_t k = first; k < PAGES; k++) fill(page, k + 1), wrong += memcmp(page, area + k * PAGE, PAGE) != 0;
    return wrong;
}

static char *shared(size_t bytes, off_t what) {
    return mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring_fd, what);
}

/* Whether a thread named `name...` sleeps in the kernel. */
static int waits(const char *name) {
    DIR *threads = opendir("/proc/self/task");
    int found = 0;
    for (struct dirent *e; (e = readdir(threads));) {
        char path[300], line[300] = "";
        snprintf(path, sizeof path, "/proc/self/task/%s/stat", e->d_name);
        FILE *stat = fopen(path, "r");
        if (!stat) continue;
        if (fgets(line, sizeof line, stat) && strstr(line, name) && strstr(line, ") S ")) found = 1;
        fclose(stat);
    }
    closedir(threads);
    return found;
}

/* `user_addr` of both offsets, which older headers do not name. */
static uint64_t *last_word(void *offsets, size_t bytes) {
    return (uint64_t *)((char *)offsets + bytes) - 1;
}

/* Begins a request. "mapped": a read, the ring stays mapped; "unmapped": it does not; "own": its memory is the program's
 * own; "madvise": a discard of the first pages. */
static int begin(const char *kind) {
    char *own = NULL, *own_entries = NULL;
    memset(&params, 0, sizeof params);
    if (!strcmp(kind, "own")) {
        char *memory = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        params.flags = 1U << 14; /* IORING_SETUP_NO_MMAP */
        own = memory, own_entries = memory + PAGE;
        *last_word(&params.cq_off, sizeof params.cq_off) = (uintptr_t)own;
        *last_word(&params.sq_off, sizeof params.sq_off) = (uintptr_t)own_entries;
    }
    ring_fd = (int)syscall(SYS_io_uring_setup, 4, &params);
    if (ring_fd < 0) return -errno;
    rings = own ? own : shared(PAGE, IORING_OFF_SQ_RING);
    struct io_uring_sqe *entry = (struct io_uring_sqe *)(own ? own_entries : shared(PAGE, IORING_OFF_SQES));
    *entry = (struct io_uring_sqe){.opcode = IORING_OP_READ, .flags = IOSQE_ASYNC, .fd = pipes[0],
                                   .addr = (uintptr_t)buffer, .len = 6};
    int discards = !strcmp(kind, "madvise");
    if (discards)
        *entry = (struct io_uring_sqe){.opcode = IORING_OP_MADVISE, .addr = (uintptr_t)area, .len = DISCARDED * PAGE,
                                       .fadvise_advice = MADV_DONTNEED};
    ((unsigned *)(rings + params.sq_off.array))[0] = 0;
    __atomic_store_n((unsigned *)(rings + params.sq_off.tail), 1, __ATOMIC_RELEASE);
    if (syscall(SYS_io_uring_enter, ring_fd, 1, discards, IORING_ENTER_GETEVENTS, NULL, 0) != 1) return -1;
    if (discards) {
        int bytes = 0;
        for (int i = 0; i < DISCARDED * PAGE; i++) bytes += area[i] != 0;
        return bytes;
    }
    if (!strcmp(kind, "unmapped")) munmap(entry, PAGE), munmap(rings, PAGE), rings = NULL;
    while (!waits("(iou-wrk")) usleep(100);
    return 0;
}

/* Ends the read; what it returned. */
static int end(void) {
    if (write(pipes[1], "answer", 6) != 6) return -1;
    if (!rings) rings = shared(PAGE, IORING_OFF_SQ_RING);
    syscall(SYS_io_uring_enter, ring_fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0);
    struct io_uring_cqe *done = (struct io_uring_cqe *)(rings + params.cq_off.cqes);
    if (__atomic_load_n((unsigned *)(rings + params.cq_off.tail), __ATOMIC_ACQUIRE) != 1) return -2;
    return done->res == 6 && memcmp(buffer, "answer", 6) ? -3 : done->res;
}

int main(void) {
    char line[64];
    buffer = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    area = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (uint32_t k = 0; k < PAGES; k++) fill(area + k * PAGE, k + 1);
    if (pipe(pipes)) return 1;
    printf("ready\n"), fflush(stdout);
    for (;;) {
        struct pollfd asked = {0, POLLIN, 0};
        if (poll(&asked, 1, 3600 * 1000) < 0) continue;
        ssize_t n = read(0, line, sizeof line - 1);
        if (n <= 0) return 0;
        line[n] = 0, line[strcspn(line, "\n")] = 0;
        if (!strcmp(line, "end")) printf("%d\n", end());
        else if (!strcmp(line, "check")) printf("%d\n", wrong_from(0));
        else if (!strcmp(line, "discard")) {
            madvise(area, DISCARDED * PAGE, MADV_DONTNEED);
            int wrong = wrong_from(DISCARDED);
            for (int i = 0; i < DISCARDED * PAGE; i++) wrong += area[i] != 0;
            printf("%d\n", wrong);
        } else printf("%d\n", begin(line));
        fflush(stdout);
    }
}
