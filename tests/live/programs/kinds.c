/* Programs whose memory is written, or read, by the kernel behind the page tables. Each says "ready" when its memory is
 * at rest. For "open" it registers that, and says so, for "close" it closes the descriptor; for any other line it does what
 * it has registered its memory for, and says whether that went right.
 *
 *   ring      a ring of io_uring in memory of the program's own; a request that does nothing must complete
 *   buffer    a buffer registered with io_uring; what was read into it must be there
 *   umem      packets of an AF_XDP socket, on the loopback device of a network namespace of its own; what is sent must be
 *             what was written last
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/if_xdp.h>
#include <linux/io_uring.h>
#include <net/if.h>
#include <poll.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define PAGE 4096
#define PAGES 64
#ifndef IORING_SETUP_NO_MMAP
#define IORING_SETUP_NO_MMAP (1U << 14)
#endif

#define MUST(what) \
    do \
        if (!(what)) { \
            printf("SKIP %s: %s\n", #what, strerror(errno)); \
            exit(0); \
        } \
    while (0)

/* Pages that all differ, and are the same in each program. */
static char *area;

static void make_area(void) {
    /* Between pages without access: the ring shares its mapping with nobody. */
    char *whole = mmap(NULL, (PAGES + 2) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(whole != MAP_FAILED && mprotect(whole + PAGE, PAGES * PAGE, PROT_READ | PROT_WRITE) == 0);
    area = whole + PAGE;
    for (uint64_t *w = (uint64_t *)area; w < (uint64_t *)(area + PAGES * PAGE); w++)
        *w = ((uintptr_t)w - (uintptr_t)area) * 0x9e3779b97f4a7c15u + 12345;
}

/* --- io_uring ------------------------------------------------------------------------------------------------- */

static struct io_uring_params ring;
static int ring_fd;
static char *ring_at;
static struct io_uring_sqe *entries;

static unsigned *word(unsigned offset) { return (unsigned *)(ring_at + offset); }

/* One request; what it returned, or -1000 where no completion came. */
static int request(struct io_uring_sqe what) {
    unsigned tail = *word(ring.sq_off.tail), seen = *word(ring.cq_off.head), i = tail & *word(ring.sq_off.ring_mask);
    entries[i] = what;
    word(ring.sq_off.array)[i] = i;
    __atomic_store_n(word(ring.sq_off.tail), tail + 1, __ATOMIC_RELEASE);
    /* Both kinds of requests are completed before the call returns, or soon after. */
    syscall(SYS_io_uring_enter, ring_fd, 1, 0, 0, NULL, 0);
    for (int wait = 0; wait < 200; wait++) {
        if (seen != __atomic_load_n(word(ring.cq_off.tail), __ATOMIC_ACQUIRE)) {
            struct io_uring_cqe *done = (struct io_uring_cqe *)(ring_at + ring.cq_off.cqes);
            int result = done[seen & *word(ring.cq_off.ring_mask)].res;
            __atomic_store_n(word(ring.cq_off.head), seen + 1, __ATOMIC_RELEASE);
            return result;
        }
        usleep(10000);
    }
    return -1000;
}

static void make_own_ring(void) {
    ring.flags = IORING_SETUP_NO_MMAP;
    /* The last word of each, "user_addr" in newer headers: entries, and the rings. */
    uint64_t where[] = {(uintptr_t)area, (uintptr_t)area + PAGE};
    memcpy((char *)(&ring.sq_off + 1) - 8, &where[0], 8);
    memcpy((char *)(&ring.cq_off + 1) - 8, &where[1], 8);
    memset(area, 0, 2 * PAGE);
    ring_fd = (int)syscall(SYS_io_uring_setup, 8, &ring);
    MUST(ring_fd >= 0);
    ring_at = area + PAGE, entries = (struct io_uring_sqe *)area;
    memset(area, 0x5a, PAGE); /* no page of zeros */
}

static void make_ring(void) {
    ring_fd = (int)syscall(SYS_io_uring_setup, 8, &ring);
    MUST(ring_fd >= 0);
    size_t bytes = ring.cq_off.cqes + ring.cq_entries * sizeof(struct io_uring_cqe);
    ring_at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring_fd, IORING_OFF_SQ_RING);
    entries = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, ring_fd, IORING_OFF_SQES);
    MUST(ring_at != MAP_FAILED && entries != MAP_FAILED);
}

static int ring_works(void) { return request((struct io_uring_sqe){.opcode = IORING_OP_NOP}) == 0; }

static int buffer_works(void) {
    static char fresh[PAGE];
    static unsigned char times;
    memset(fresh, ++times, PAGE);
    int file = memfd_create("source", 0);
    MUST(file >= 0 && write(file, fresh, PAGE) == PAGE);
    struct io_uring_sqe read = {
        .opcode = IORING_OP_READ_FIXED, .fd = file, .addr = (uintptr_t)area, .len = PAGE, .buf_index = 0};
    int right = request(read) == PAGE && memcmp(area, fresh, PAGE) == 0;
    close(file);
    return right;
}

/* --- AF_XDP --------------------------------------------------------------------------------------------------- */

enum { FRAMES = PAGES, HEAD = sizeof(struct ethhdr), DATA = 64 };
static int xdp, tap;
static struct xdp_mmap_offsets offsets;
static char *send_ring, *completion_ring;

static void own_loopback(void) {
    MUST(unshare(CLONE_NEWNET | (geteuid() ? CLONE_NEWUSER : 0)) == 0);
    int s = socket(AF_INET, SOCK_DGRAM, 0);
    struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    MUST(s >= 0 && ioctl(s, SIOCSIFFLAGS, &lo) == 0);
    close(s);
}

static char *xdp_ring(const struct xdp_ring_offset *of, size_t entry, off_t which) {
    char *at = mmap(NULL, of->desc + FRAMES * entry, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, xdp, which);
    MUST(at != MAP_FAILED);
    return at;
}

static void make_umem(void) {
    own_loopback();
    int lo = (int)if_nametoindex("lo"), size = FRAMES;
    tap = socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL));
    struct sockaddr_ll here = {.sll_family = AF_PACKET, .sll_protocol = htons(ETH_P_ALL), .sll_ifindex = lo};
    MUST(tap >= 0 && bind(tap, (struct sockaddr *)&here, sizeof here) == 0);
    xdp = socket(AF_XDP, SOCK_RAW, 0);
    MUST(xdp >= 0);
    struct xdp_umem_reg memory = {.addr = (uintptr_t)area, .len = PAGES * PAGE, .chunk_size = PAGE};
    MUST(setsockopt(xdp, SOL_XDP, XDP_UMEM_REG, &memory, sizeof memory) == 0);
    MUST(setsockopt(xdp, SOL_XDP, XDP_UMEM_FILL_RING, &size, sizeof size) == 0);
    MUST(setsockopt(xdp, SOL_XDP, XDP_UMEM_COMPLETION_RING, &size, sizeof size) == 0);
    MUST(setsockopt(xdp, SOL_XDP, XDP_TX_RING, &size, sizeof size) == 0);
    socklen_t length = sizeof offsets;
    MUST(getsockopt(xdp, SOL_XDP, XDP_MMAP_OFFSETS, &offsets, &length) == 0);
    send_ring = xdp_ring(&offsets.tx, sizeof(struct xdp_desc), XDP_PGOFF_TX_RING);
    completion_ring = xdp_ring(&offsets.cr, sizeof(uint64_t), XDP_UMEM_PGOFF_COMPLETION_RING);
    struct sockaddr_xdp to = {.sxdp_family = AF_XDP, .sxdp_flags = XDP_COPY, .sxdp_ifindex = (unsigned)lo};
    MUST(bind(xdp, (struct sockaddr *)&to, sizeof to) == 0);
}

static int umem_works(void) {
    static unsigned sent;
    unsigned frame = sent % FRAMES;
    char *packet = area + (size_t)frame * PAGE, seen[PAGE];
    struct ethhdr *head = (struct ethhdr *)packet;
    memset(head, 0, HEAD);
    head->h_proto = htons(0x88b5); /* for experiments */
    memset(packet + HEAD, (int)++sent, DATA);
    struct xdp_desc *entry = (struct xdp_desc *)(send_ring + offsets.tx.desc);
    unsigned *tail = (unsigned *)(send_ring + offsets.tx.producer);
    entry[*tail % FRAMES] = (struct xdp_desc){.addr = (uint64_t)frame * PAGE, .len = HEAD + DATA};
    __atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
    sendto(xdp, NULL, 0, MSG_DONTWAIT, NULL, 0);
    for (int wait = 0; wait < 100; wait++) {
        struct pollfd p = {.fd = tap, .events = POLLIN};
        if (poll(&p, 1, 20) < 1) continue;
        ssize_t n = recv(tap, seen, sizeof seen, 0);
        if (n < HEAD) continue;
        /* The loopback device shows a packet going and coming. */
        struct pollfd more = {.fd = tap, .events = POLLIN};
        while (poll(&more, 1, 20) == 1) recv(tap, seen + HEAD + DATA, sizeof seen - HEAD - DATA, 0);
        return n == HEAD + DATA && memcmp(seen, packet, HEAD + DATA) == 0;
    }
    return 0;
}

static void register_buffer(void) {
    make_ring();
    struct iovec whole = {area, PAGES * PAGE};
    MUST(syscall(SYS_io_uring_register, ring_fd, IORING_REGISTER_BUFFERS, &whole, 1) == 0);
}

int main(int argc, char **argv) {
    static const struct {
        const char *name;
        void (*open)(void);
        int (*works)(void);
    } kinds[] = {
        {"ring", make_own_ring, ring_works},
        {"buffer", register_buffer, buffer_works},
        {"umem", make_umem, umem_works},
    };
    unsigned kind = 0;
    while (kind < 3 && strcmp(kinds[kind].name, argc > 1 ? argv[1] : "")) kind++;
    if (kind == 3) return 2;
    setvbuf(stdout, NULL, _IOLBF, 0);
    make_area();
    puts("ready");
    for (char line[64]; fgets(line, sizeof line, stdin);) {
        if (strcmp(line, "open\n") == 0) {
            kinds[kind].open();
            puts("open");
        } else if (strcmp(line, "close\n") == 0) {
            puts(close(kind == 2 ? xdp : ring_fd) == 0 ? "closed" : "wrong");
        } else {
            puts(kinds[kind].works() ? "right" : "wrong");
        }
    }
    return 0;
}
