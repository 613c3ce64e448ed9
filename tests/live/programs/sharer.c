/* A program that, for "clone", makes a process in its own memory that is no thread of it and does nothing; for "write" it
 * writes all its pages anew, each as any other program of this kind does. "leave" makes a process in its memory whose first thread
 * ends while another goes on. "ids LOW HIGH" has processes come and go until the newest has an id between the two. */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 512 };

static int rest(void *nothing) {
    while (nothing == NULL) pause();
    return 0;
}

static int leave_a_thread(void *stack) {
    clone(rest, stack, CLONE_VM | CLONE_SIGHAND | CLONE_THREAD, NULL);
    syscall(SYS_exit, 0);
    return 0;
}

static int use_ids(int low, int high) {
    int newest;
    signal(SIGCHLD, SIG_IGN);
    do {
        newest = fork();
        if (newest == 0) _exit(0);
        if (newest < 0) usleep(1000); /* those before have not ended yet */
    } while (newest <= low || newest >= high);
    while (wait(NULL) > 0) continue;
    signal(SIGCHLD, SIG_DFL);
    return newest;
}

int main(void) {
    static char stack[1 << 16] __attribute__((aligned(16))), another[1 << 16] __attribute__((aligned(16)));
    unsigned *area = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED) return 1;
    setvbuf(stdout, NULL, _IOLBF, 0);
    unsigned times = 0;
    int low, high;
    for (char line[64] = "write\n";;) {
        if (strcmp(line, "clone\n") == 0) {
            printf("%d\n", clone(rest, stack + sizeof stack, CLONE_VM | SIGCHLD, NULL));
        } else if (strcmp(line, "leave\n") == 0) {
            printf("%d\n", clone(leave_a_thread, stack + sizeof stack, CLONE_VM | SIGCHLD, another + sizeof another));
        } else if (sscanf(line, "ids %d %d", &low, &high) == 2) {
            printf("%d\n", use_ids(low, high));
        } else {
            times++;
            for (unsigned i = 0; i < PAGES * PAGE / sizeof *area; i++) area[i] = (i + times) * 2654435761u;
            puts("ready");
        }
        if (!fgets(line, sizeof line, stdin)) return 0;
    }
}
