/* What a guest of test_guests.py does: fills memory with known pages, then sums all of it again and again, changing some.
 *
 * Usage: guest MIB SEED ROUNDS PAUSE_MS. Prints "SUM round sum" for each round, in a guest as its first process, and just
 * the same on the host: so the host says what is right. Half of the pages are the same for every seed, an eighth of those
 * equal each other; every eighth page is empty; the rest are the seed's own.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <unistd.h>

enum { WORDS = 512, CHANGED = 64 };

static uint64_t next(uint64_t *state) /* splitmix64 */
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void fill(uint64_t *page, uint64_t number, uint64_t seed)
{
    uint64_t state;
    if (number % 8 == 7)
        return; /* empty, as it came */
    if (number % 8 == 0)
        state = 1; /* the same page everywhere */
    else if (number / 16 % 2)
        state = number << 20; /* the same in every guest, in runs of 16 */
    else
        state = (number << 20) ^ (seed << 50);
    for (int i = 0; i < WORDS; i++)
        page[i] = next(&state);
}

int main(int argc, char **argv)
{
    if (argc != 5)
        return 2;
    uint64_t pages = strtoull(argv[1], 0, 10) << 8, seed = strtoull(argv[2], 0, 10), rounds = strtoull(argv[3], 0, 10);
    useconds_t pause = strtoul(argv[4], 0, 10) * 1000;
    uint64_t *data = mmap(0, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED)
        return 1;
    for (uint64_t n = 0; n < pages; n++)
        fill(data + n * WORDS, n, seed);
    setvbuf(stdout, 0, _IOLBF, 0);
    uint64_t state = seed;
    for (uint64_t round = 0; round < rounds; round++) {
        uint64_t sum = 0;
        for (uint64_t i = 0; i < pages * WORDS; i++)
            sum = (sum << 7 | sum >> 57) ^ data[i];
        printf("SUM %llu %016llx\n", (unsigned long long)round, (unsigned long long)sum);
        for (int i = 0; i < CHANGED; i++)
            data[next(&state) % (pages * WORDS)] ^= next(&state);
        usleep(pause);
    }
    puts("END");
    if (getpid() == 1) {
        sync();
        reboot(RB_POWER_OFF);
    }
    return 0;
}
