/* Allocates, resizes, frees and uses memory again, from several threads, and checks every byte of it.
 *
 *   allocate SECONDS SEED
 *
 * A block is filled with a pattern of 16 bytes that follows from its kind and version, so that blocks of one kind are
 * made of the same pages wherever they lie: these are what is merged. Memory that must be zero (calloc) is looked at
 * first: allocators take fresh or discarded memory for it, without a look. Part of the blocks is left at rest for a
 * while before it is freed; those of the first threads are there, at rest, until a line comes on the standard input. A wrong byte ends the program with status 1 and a line that begins with WRONG; else it
 * prints OK and the number of MiB checked.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define THREADS 4u
#define RESTING 96u  /* blocks of a thread that come to rest */
#define BUSY 512u    /* small and large ones that come and go */
#define KINDS 5u
#define LIFE 12.0     /* seconds of a thread */
#define BREATH 10000u /* µs between bursts */

/* glibc has it, others do not. */
extern int malloc_trim(size_t) __attribute__((weak));

struct block {
    unsigned char *at;
    size_t bytes;
    unsigned kind, version;
};

static double seconds, began;
static unsigned seed;
static atomic_ulong checked;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void wrong(const char *what, const struct block *b, size_t offset) {
    fprintf(stdout, "WRONG %s: block %p of %zu bytes, kind %u version %u, byte %zu is %#x\n", what, (void *)b->at, b->bytes,
            b->kind, b->version, offset, b->at[offset]);
    fflush(stdout);
    _exit(1);
}

static void pattern(const struct block *b, unsigned char out[16]) {
    uint64_t x = (b->kind + 1) * 0x9e3779b97f4a7c15ull + b->version * 0xbf58476d1ce4e5b9ull;
    uint64_t words[2] = {x ^ x >> 29, (x ^ x >> 31) * 0x94d049bb133111ebull};
    memcpy(out, words, 16);
}

static void fill(struct block *b, size_t from) {
    unsigned char p[16];
    pattern(b, p);
    for (; from < b->bytes; from++) b->at[from] = p[from % 16];
}

static void check(const struct block *b, size_t bytes) {
    unsigned char p[16];
    pattern(b, p);
    size_t i = 0;
    for (; i + 16 <= bytes; i += 16)
        if (memcmp(b->at + i, p, 16)) break;
    for (; i < bytes; i++)
        if (b->at[i] != p[i % 16]) wrong("content", b, i);
    atomic_fetch_add_explicit(&checked, bytes, memory_order_relaxed);
}

static size_t some_size(unsigned *r) {
    switch (rand_r(r) % 8) {
    case 0: return 200000 + (size_t)rand_r(r) % 600000; /* mostly a mapping of its own */
    case 1:
    case 2: return 4096 + (size_t)rand_r(r) % 60000;
    default: return 1 + (size_t)rand_r(r) % 2000;
    }
}

static void make(struct block *b, unsigned *r, size_t bytes) {
    b->bytes = bytes;
    b->kind = (unsigned)rand_r(r) % KINDS;
    b->version = rand_r(r) % 4 ? 0 : (unsigned)rand_r(r);
    unsigned how = (unsigned)rand_r(r) % 4;
    if (how == 0) {
        b->at = calloc(1, bytes);
        for (size_t i = 0; b->at && i < bytes; i++)
            if (b->at[i]) wrong("calloc", b, i);
    } else if (how == 1) {
        if (posix_memalign((void **)&b->at, 4096, bytes)) b->at = NULL;
    } else {
        b->at = malloc(bytes);
    }
    if (!b->at) exit(3);
    fill(b, 0);
}

/* The same in every process and thread. */
static struct block *at_rest(void) {
    struct block *resting = calloc(RESTING, sizeof *resting);
    for (unsigned i = 0; i < RESTING; i++) {
        resting[i] = (struct block){malloc(64 * 1024), 64 * 1024, i % KINDS, 0};
        fill(&resting[i], 0);
    }
    return resting;
}

static struct block *first[THREADS];

static void *work(void *argument) {
    unsigned number = (unsigned)(uintptr_t)argument, r = seed * 31 + number;
    struct block *resting = first[number - 1] ? first[number - 1] : at_rest(), *busy = calloc(BUSY, sizeof *busy);
    double moved = now();
    unsigned next = 0;
    first[number - 1] = NULL;
    while (now() - began < seconds) {
        for (unsigned n = 0; n < 64; n++) {
            struct block *b = &busy[(unsigned)rand_r(&r) % BUSY];
            if (b->at && rand_r(&r) % 3 == 0) {
                size_t before = b->bytes, after = some_size(&r);
                check(b, before);
                b->at = realloc(b->at, after), b->bytes = after;
                check(b, before < after ? before : after);
                fill(b, before);
            } else if (b->at) {
                check(b, b->bytes);
                free(b->at), b->at = NULL;
            } else {
                make(b, &r, some_size(&r));
            }
        }
        /* in bursts: several programs run side by side, and what never rests leaves nothing to merge */
        usleep(BREATH);
        if (now() - moved > 0.02) {
            /* what has been at rest, and perhaps merged, is freed and made anew; the next is left at rest; every second
               one until this thread ends, for on a busy machine the engine takes seconds to come round */
            for (unsigned n = 0; n < 8; n++, next += 2) {
                struct block *b = &resting[next % RESTING];
                check(b, b->bytes);
                free(b->at);
                make(b, &r, 64 * 1024);
                b->version = 0, fill(b, 0);
            }
            if (malloc_trim && (unsigned)rand_r(&r) % 8 == 0) malloc_trim(0);
            moved = now();
        }
    }
    for (unsigned i = 0; i < RESTING; i++) check(&resting[i], resting[i].bytes), free(resting[i].at);
    for (unsigned i = 0; i < BUSY; i++)
        if (busy[i].at) check(&busy[i], busy[i].bytes), free(busy[i].at);
    free(resting), free(busy);
    return NULL;
}

int main(int count, char **arguments) {
    if (count != 3) return 2;
    seconds = atof(arguments[1]), seed = (unsigned)atoi(arguments[2]);
    alarm(120); /* nobody may be left to say so */
    for (unsigned i = 0; i < THREADS; i++) first[i] = at_rest();
    printf("READY\n"), fflush(stdout);
    getchar();
    alarm((unsigned)seconds + 60); /* a hang ends by itself */
    began = now();
    while (now() - began < seconds) {
        pthread_t threads[THREADS];
        double left = seconds;
        /* threads end and come, for arenas and caches are theirs */
        if (seconds > LIFE) seconds = now() - began + LIFE;
        for (uintptr_t i = 0; i < THREADS; i++)
            if (pthread_create(&threads[i], NULL, work, (void *)(i + 1))) return 3;
        for (unsigned i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
        seconds = left;
    }
    printf("OK %lu\n", (unsigned long)(checked >> 20));
    return 0;
}
