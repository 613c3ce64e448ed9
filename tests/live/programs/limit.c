// Has as many mappings as the kernel allows, or nearly, and goes on asking for more while its pages are looked after by
// others. usage: limit PAGES SEED. Answers line by line: "near N" keeps N mappings below the limit, more or less; "check"
// tells how many of its pages are wrong, "fork" the same of a child, "rest" ends the asking.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096ul
#define ROOM (1ul << 17)

static char *memory, *room;
static unsigned long pages;
static volatile long margin = -1;
static volatile int reached;

static void fill(char *page, unsigned long k) {
  uint64_t word = (k + 1) * 0x9e3779b97f4a7c15ull;
  for (unsigned i = 0; i < PAGE / 8; i++, word = word * 6364136223846793005ull + 1442695040888963407ull)
    ((uint64_t *)page)[i] = word;
}

static long wrong(void) {
  char want[PAGE];
  long n = 0;
  for (unsigned long k = 0; k < pages; k++) {
    fill(want, k);
    n += memcmp(want, memory + k * PAGE, PAGE) != 0;
  }
  return n;
}

// Every second page of the room, readable, is two mappings more.
static void *ask_for_more(void *seed) {
  unsigned state = (unsigned)(uintptr_t)seed;
  unsigned long next = 0;
  for (;;) {
    while (margin < 0) usleep(100);
    while (next < ROOM / 2 && !mprotect(room + 2 * next * PAGE, PAGE, PROT_READ)) next++;
    unsigned long back = margin / 2 + rand_r(&state) % 24;
    // Kept as they are for a moment now and then, so that there is something to be had for others.
    for (unsigned long k = 0; k < back && next; k++) next -= !mprotect(room + 2 * (next - 1) * PAGE, PAGE, PROT_NONE);
    reached = 1;
    if (rand_r(&state) % 4) usleep(200);
  }
  return 0;
}

int main(int argc, char **argv) {
  char line[64];
  pthread_t thread;
  pages = argc > 1 ? strtoul(argv[1], 0, 0) : 1024;
  memory = mmap(0, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  room = mmap(0, ROOM * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  for (unsigned long k = 0; k < pages; k++) fill(memory + k * PAGE, k);
  pthread_create(&thread, 0, ask_for_more, (void *)(uintptr_t)(argc > 2 ? strtoul(argv[2], 0, 0) : 1));
  printf("%lu\n", (unsigned long)memory);
  fflush(stdout);
  while (fgets(line, sizeof line, stdin)) {
    if (sscanf(line, "near %ld", &margin) == 1) {
      for (reached = 0; !reached;) usleep(100);
      puts("there");
    } else if (!strcmp(line, "check\n")) {
      printf("%ld\n", wrong());
    } else if (!strcmp(line, "fork\n")) {
      int status = 0;
      pid_t child = fork();
      if (!child) _exit(wrong() != 0);
      waitpid(child, &status, 0);
      printf("%d\n", status);
    } else {
      margin = -1;
      puts("resting");
    }
    fflush(stdout);
  }
}
