/* A program whose pages are merged, and which ends, or whose children discard what they have of them.
 *
 *     endings PAGES [discard]
 *
 * First line: the address of PAGES pages at rest. At each line of its input it forks a child, tells its pid, and at its end
 * how many of the pages that it discarded, one by one from the next SIGUSR1 on, were not zero then. With a second argument it
 * discards and fills pages itself, from the first line of its input on and without end. */

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static void *wait_for_ever(void *argument) {
    for (;;) usleep(1000000);
    return argument;
}

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    size_t pages = (size_t)atol(argv[1]);
    unsigned char *rest = mmap(NULL, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (rest == MAP_FAILED) return 2;
    for (size_t i = 0; i < pages; i++) memset(rest + 4096 * i, 1 + (int)(i % 255), 4096), memcpy(rest + 4096 * i, &i, sizeof i);
    sigset_t go;
    sigemptyset(&go);
    sigaddset(&go, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &go, NULL);
    pthread_t t;
    for (int i = 0; i < 3; i++)
        if (pthread_create(&t, NULL, wait_for_ever, NULL)) return 2;
    printf("%lu\n", (unsigned long)rest);
    fflush(stdout);
    if (argc > 2) getchar();
    for (size_t i = 0; argc > 2; i = (i + 7) % pages) {
        madvise(rest + 4096 * i, 4096, MADV_DONTNEED);
        memset(rest + 4096 * i, 1 + (int)(i % 255), 4096);
        memcpy(rest + 4096 * i, &i, sizeof i);
    }
    while (getchar() == '\n') {
        pid_t child = fork();
        if (!child) {
            int signal, wrong = 0;
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            sigwait(&go, &signal);
            for (size_t i = 0; i < pages; i++) {
                volatile unsigned char *page = rest + 4096 * i;
                madvise(rest + 4096 * i, 4096, MADV_DONTNEED);
                wrong += page[0] | page[8] | page[4095] ? 1 : 0;
            }
            _exit(wrong > 100 ? 100 : wrong);
        }
        printf("%d\n", (int)child);
        fflush(stdout);
        int status;
        if (waitpid(child, &status, 0) != child || !WIFEXITED(status)) return 3;
        printf("%d\n", WEXITSTATUS(status));
        fflush(stdout);
    }
    return 0;
}
