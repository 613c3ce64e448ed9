/* A process and the children that it forks, whose pages hold what they are told. One line asks, one line answers:
 *
 *   WHO fork               forks a child of WHO (0: the first process); answers its pid. Children are numbered from 1.
 *   WHO write FIRST N SEED  N pages from FIRST on, each made of its number and SEED
 *   WHO zero FIRST N
 *   WHO check FIRST N SEED  answers how many of them hold what `write` has put there
 *   WHO discard FIRST N, WHO unmap FIRST N
 *   WHO exit
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, MOST = 64 };

static char *memory;
static struct { int to, from; pid_t pid; } child[MOST];
static int children;

static void fill(char *page, uint64_t number, uint64_t seed) {
    uint64_t x = (number + 1) * 0x9E3779B97F4A7C15u ^ seed * 0xD1B54A32D192ED03u;
    for (int i = 0; i < PAGE / 8; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        memcpy(page + 8 * i, &x, 8);
    }
}

static long obey(const char *what, long first, long n, long seed) {
    char *at = memory + first * PAGE;
    static char want[PAGE];
    long right = 0;
    if (!strcmp(what, "write"))
        for (long i = 0; i < n; i++)
            fill(at + i * PAGE, first + i, seed);
    else if (!strcmp(what, "zero"))
        memset(at, 0, n * PAGE);
    else if (!strcmp(what, "check"))
        for (long i = 0; i < n; i++) {
            fill(want, first + i, seed);
            right += !memcmp(want, at + i * PAGE, PAGE);
        }
    else if (!strcmp(what, "discard"))
        return madvise(at, n * PAGE, MADV_DONTNEED);
    else if (!strcmp(what, "unmap"))
        return munmap(at, n * PAGE);
    else if (!strcmp(what, "exit"))
        _exit(0);
    return right;
}

/* Reads a line of at most `size` characters, unbuffered, for children share nothing of what has been read. */
static int line_of(int fd, char *line, int size) {
    for (int i = 0; i < size - 1; i++) {
        if (read(fd, line + i, 1) != 1)
            return 0;
        if (line[i] == '\n') {
            line[i] = 0;
            return 1;
        }
    }
    return 0;
}

static long grow(void) {
    int to[2], from[2];
    if (pipe(to) || pipe(from))
        return -1;
    pid_t pid = fork();
    if (pid == 0) {
        char line[128], what[32];
        close(to[1]);
        while (line_of(to[0], line, sizeof line)) {
            long first = 0, n = 0, seed = 0;
            sscanf(line, "%31s %ld %ld %ld", what, &first, &n, &seed);
            dprintf(from[1], "%ld\n", obey(what, first, n, seed));
        }
        _exit(0);
    }
    close(to[0]), close(from[1]);
    child[++children].to = to[1];
    child[children].from = from[0];
    child[children].pid = pid;
    return pid;
}

int main(int count, char **args) {
    long pages = count > 1 ? atol(args[1]) : 1024;
    memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || (count > 2 && madvise(memory, pages * PAGE, atoi(args[2]))))
        return 1;
    char line[128], what[32], answer[64];
    dprintf(1, "ready\n");
    while (line_of(0, line, sizeof line)) {
        int who = 0;
        long first = 0, n = 0, seed = 0, result;
        sscanf(line, "%d %31s %ld %ld %ld", &who, what, &first, &n, &seed);
        if (who == 0) {
            result = strcmp(what, "fork") ? obey(what, first, n, seed) : grow();
            dprintf(1, "%ld\n", result);
        } else {
            dprintf(child[who].to, "%s %ld %ld %ld\n", what, first, n, seed);
            if (!line_of(child[who].from, answer, sizeof answer)) {
                waitpid(child[who].pid, NULL, 0);
                strcpy(answer, "gone");
            }
            dprintf(1, "%s\n", answer);
        }
    }
    return 0;
}
