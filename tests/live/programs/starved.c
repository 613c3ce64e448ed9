// Frees memory that is merged, a page at a time, beside a thread that never sleeps.
// usage: starved PAGES FIRST, then a line "free N": answered by "calls that failed, pages wrong".
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE 4096ul

static void *spin(void *unused) {
  for (volatile unsigned long n = 0;; n++) {
  }
  return unused;
}

static void fill(uint64_t *page, unsigned long k) {
  uint64_t word = (k + 1) * 0x9e3779b97f4a7c15ull;
  for (unsigned i = 0; i < PAGE / 8; i++, word = word * 6364136223846793005ull + 1442695040888963407ull) page[i] = word;
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  unsigned long pages = strtoul(argv[1], 0, 0), first = strtoul(argv[2], 0, 0), n;
  char *memory = mmap(0, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  static uint64_t want[PAGE / 8], zero[PAGE / 8];
  pthread_t thread;
  for (unsigned long k = 0; k < pages; k++) fill((uint64_t *)(memory + k * PAGE), first + k);
  puts("ready");
  fflush(stdout);
  while (scanf(" free %lu", &n) == 1) {
    unsigned long failed = 0, wrong = 0;
    pthread_create(&thread, 0, spin, 0);
    for (unsigned long k = 0; k < n; k++) failed += madvise(memory + 2 * k * PAGE, PAGE, MADV_FREE) != 0;
    for (unsigned long k = 0; k < pages; k++) {
      fill(want, first + k);
      int kept = !memcmp(memory + k * PAGE, want, PAGE), gone = !memcmp(memory + k * PAGE, zero, PAGE);
      wrong += !kept && !(gone && k % 2 == 0 && k < 2 * n);
    }
    printf("%lu %lu\n", failed, wrong);
    fflush(stdout);
  }
}
