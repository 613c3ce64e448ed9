/* A program that forks many children, all of which live at once and then discard half of what they have inherited.
 * "fork N" forks, "discard" has them discard and answers how many saw a wrong byte, "check" looks at its own memory. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096
#define PAGES 64

static unsigned char *area;

static int wrong_pages(int zeros) {
    unsigned char page[PAGE];
    int wrong = 0;
    for (uint32_t k = 0; k < PAGES; k++) {
        for (int i = 0; i < PAGE; i++) page[i] = (unsigned char)(1 + (i * 7 + k * 13) % 251);
        memcpy(page, &k, 4), page[3] = 77;
        if ((int)k < zeros) memset(page, 0, PAGE);
        wrong += memcmp(page, area + k * PAGE, PAGE) != 0;
    }
    return wrong;
}

int main(void) {
    char line[64];
    int go[2], count = 0;
    area = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (uint32_t k = 0; k < PAGES; k++) {
        unsigned char *page = area + k * PAGE;
        for (int i = 0; i < PAGE; i++) page[i] = (unsigned char)(1 + (i * 7 + k * 13) % 251);
        memcpy(page, &k, 4), page[3] = 77;
    }
    if (pipe(go)) return 1;
    printf("ready\n"), fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        if (sscanf(line, "fork %d", &count) == 1) {
            int forked = 0;
            for (int i = 0; i < count; i++) {
                pid_t child = fork();
                if (child == 0) {
                    char any;
                    close(go[1]);
                    while (read(go[0], &any, 1) > 0) {}
                    madvise(area, PAGES / 2 * PAGE, MADV_DONTNEED);
                    _exit(wrong_pages(PAGES / 2) != 0);
                }
                forked += child > 0;
            }
            printf("%d\n", forked);
        } else if (!strcmp(line, "discard\n")) {
            int wrong = 0, status;
            close(go[1]);
            while (wait(&status) > 0) wrong += status != 0;
            printf("%d\n", wrong);
            if (pipe(go)) return 1;
        } else printf("%d\n", wrong_pages(0));
        fflush(stdout);
    }
    return 0;
}
