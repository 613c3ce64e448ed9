/* A program whose memory outlives it in a chain of children: each forks the next and ends.

   chain PAGES: fills PAGES pages that all differ, says READY, and waits for a line of three numbers: milliseconds that a
   generation lasts (0: none), seconds that the chain goes on, and what is done with the memory: 0 nothing, 1 every parent
   unmaps it after its fork and goes on for a moment. The last of the line says how many pages are right. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
/* So many generations there are, however long each takes on a busy machine. */
#define FEWEST 10

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void pause_ms(double ms)
{
    struct timespec t = {.tv_nsec = (long)(ms * 1e6)};
    if (ms > 0)
        nanosleep(&t, NULL);
}

static unsigned char byte_of(int page, int at)
{
    return at < 4 ? page >> (8 * at) : 1 + (page * 31 + at * 7) % 251;
}

int main(int argc, char **argv)
{
    int pages = atoi(argv[1]), unmaps = 0;
    double ms = 0, seconds = 0;
    unsigned char *memory = mmap(NULL, (size_t)pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int p = 0; p < pages; p++)
        for (int i = 0; i < PAGE; i++)
            memory[(size_t)p * PAGE + i] = byte_of(p, i);
    puts("READY");
    fflush(stdout);
    if (scanf("%lf %lf %d", &ms, &seconds, &unmaps) != 3)
        return 1;
    long generations = 0;
    for (double end = now() + seconds; now() < end || (generations < FEWEST && now() < end + 60); generations++) {
        pid_t child = fork();
        if (child < 0) { /* no more processes for a moment: this generation lasts longer */
            pause_ms(1);
            continue;
        }
        if (child > 0) {
            if (unmaps) {
                munmap(memory, (size_t)pages * PAGE);
                pause_ms(2 * ms + 5);
            }
            _exit(0);
        }
        pause_ms(ms);
    }
    int right = 0;
    for (int p = 0; p < pages; p++) {
        int i = 0;
        while (i < PAGE && memory[(size_t)p * PAGE + i] == byte_of(p, i))
            i++;
        right += i == PAGE;
    }
    printf("%d pages right after %ld generations\n", right, generations);
    fflush(stdout);
    return 0;
}
