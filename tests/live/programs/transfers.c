/* Transfers that a stop may cut short, and time-outs that it may end: each kind over and over in a thread of its own,
 * against a slow peer in another process. Counts and bytes are checked; what is wrong is told by kind.
 *
 *     transfers FOLDER SECONDS TRANSFERS BYTES SEED [KIND...]
 *
 * Ends when each kind has done TRANSFERS (0: any number), SECONDS are over or its input has ended. First line: READY, and
 * the address of PAGES pages at rest; it begins at the first line of its input. Last line: OK, or WRONG, and each kind with how many
 * transfers it made. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define MUST(x) do { if (!(x)) { printf("WRONG %s:%d: %s: %s\n", __FILE__, __LINE__, #x, strerror(errno)); fflush(stdout); _exit(2); } } while (0)
#define PAGES 64
#define MESSAGES 40
#define PIECES 23

static const char *folder;
static double deadline;
static long wanted;
static size_t bytes;
static unsigned seed;
static unsigned char *pattern; /* twice `bytes`, so that any part of the endless repetition of it is one piece */
static atomic_int wrongs;
static atomic_bool ended;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

struct kind {
    const char *name;
    void (*once)(struct kind *);
    int fd, other;     /* ours, and the peer's or a second of ours */
    int sends;         /* the peer receives; else it sends */
    int peers;         /* there is a peer that moves bytes */
    int messages;      /* the peer moves messages, not bytes */
    long done;
    unsigned char *buffer;
    int file, copy;
    double longest;
};

static void wrong(struct kind *k, const char *format, ...) {
    if (atomic_fetch_add(&wrongs, 1) >= 20) return;
    char text[200];
    va_list a;
    va_start(a, format);
    vsnprintf(text, sizeof text, format, a);
    va_end(a);
    printf("WRONG %s: transfer %ld: %s\n", k->name, k->done, text);
    fflush(stdout);
}

static void whole(struct kind *k, ssize_t n, size_t asked) {
    if (n < 0) wrong(k, "errno %d (%s)", errno, strerror(errno));
    else if ((size_t)n != asked) wrong(k, "%zd of %zu", n, asked);
}

static void same(struct kind *k, size_t n) {
    if (memcmp(k->buffer, pattern, n)) wrong(k, "other bytes");
}

/* --- peers -------------------------------------------------------------------------------------------------------- */

struct peer {
    struct kind *kind;
    int fd;
};

/* Many small transfers, now and then with a pause. */
static void *peer(void *argument) {
    struct peer *p = argument;
    struct kind *k = p->kind;
    unsigned r = seed ^ (unsigned)p->fd;
    size_t at = 0;
    unsigned char *buffer = malloc(bytes);
    for (;;) {
        size_t n = 1 + (size_t)rand_r(&r) % 16384;
        if (rand_r(&r) % 8 == 0) usleep((unsigned)rand_r(&r) % 1500);
        if (k->messages) n = 100;
        if (k->sends) {
            ssize_t got = read(p->fd, buffer, n < bytes ? n : bytes);
            if (got <= 0) return NULL;
            if (memcmp(buffer, k->messages ? pattern : pattern + at, (size_t)got)) {
                wrong(k, "the peer got other bytes at %zu", at);
                return NULL;
            }
            at = (at + (size_t)got) % bytes;
        } else {
            if (n > bytes) n = bytes;
            ssize_t put = write(p->fd, k->messages ? pattern : pattern + at, n);
            if (put <= 0) return NULL;
            at = (at + (size_t)put) % bytes;
        }
    }
}

/* --- kinds -------------------------------------------------------------------------------------------------------- */

static void pipes(struct kind *k) {
    int p[2];
    MUST(pipe(p) == 0);
    k->fd = p[1], k->other = p[0];
}

static void fifo(struct kind *k) {
    char name[200];
    snprintf(name, sizeof name, "%s/fifo-%d", folder, getpid());
    MUST(mkfifo(name, 0600) == 0);
    k->other = open(name, O_RDONLY | O_NONBLOCK);
    k->fd = open(name, O_WRONLY);
    MUST(k->fd >= 0 && k->other >= 0 && fcntl(k->other, F_SETFL, 0) == 0);
    unlink(name);
}

static void unix_pair(struct kind *k) {
    int s[2];
    MUST(socketpair(AF_UNIX, SOCK_STREAM, 0, s) == 0);
    k->fd = s[0], k->other = s[1];
}

static void messages(struct kind *k) {
    int s[2];
    MUST(socketpair(AF_UNIX, SOCK_DGRAM, 0, s) == 0);
    k->fd = s[0], k->other = s[1], k->messages = 1;
}

static void tcp_pair(struct kind *k) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof a;
    int l = socket(AF_INET, SOCK_STREAM, 0);
    MUST(l >= 0 && bind(l, (struct sockaddr *)&a, size) == 0 && listen(l, 1) == 0);
    MUST(getsockname(l, (struct sockaddr *)&a, &size) == 0);
    k->fd = socket(AF_INET, SOCK_STREAM, 0);
    MUST(connect(k->fd, (struct sockaddr *)&a, size) == 0);
    k->other = accept(l, NULL, NULL);
    MUST(k->other >= 0);
    close(l);
}

static void terminal(struct kind *k) {
    k->other = posix_openpt(O_RDWR | O_NOCTTY);
    MUST(k->other >= 0 && grantpt(k->other) == 0 && unlockpt(k->other) == 0);
    k->fd = open(ptsname(k->other), O_RDWR | O_NOCTTY);
    MUST(k->fd >= 0);
    struct termios t;
    MUST(tcgetattr(k->fd, &t) == 0);
    cfmakeraw(&t);
    MUST(tcsetattr(k->fd, TCSANOW, &t) == 0);
}

static int file_of_pattern(size_t size) {
    char name[200];
    snprintf(name, sizeof name, "%s/file-XXXXXX", folder);
    int f = mkstemp(name);
    MUST(f >= 0);
    unlink(name);
    for (size_t at = 0; at < size;) {
        ssize_t n = write(f, pattern, bytes < size - at ? bytes : size - at);
        MUST(n > 0);
        at += (size_t)n;
    }
    return f;
}

static void timed(struct kind *k, int option, double seconds) {
    struct timeval t = {(time_t)seconds, (suseconds_t)((seconds - (time_t)seconds) * 1e6)};
    MUST(setsockopt(k->fd, SOL_SOCKET, option, &t, sizeof t) == 0);
}

static size_t in_pieces(struct kind *k, struct iovec *v) {
    size_t at = 0, each = bytes / PIECES;
    for (int i = 0; i < PIECES; i++) {
        size_t n = i == 5 ? 0 : i == PIECES - 1 ? bytes - at : each + (size_t)i;
        v[i] = (struct iovec){k->buffer + at, n};
        at += n;
    }
    return at;
}

static void fresh(struct kind *k) { memset(k->buffer, 0, bytes); }

static void do_write(struct kind *k) { whole(k, write(k->fd, pattern, bytes), bytes); }

/* They are slow: their peer verifies a repetition of the same bytes. */
static void do_write_part(struct kind *k) {
    static size_t at;
    size_t part = bytes / 16;
    whole(k, write(k->fd, pattern + at, part), part);
    at = (at + part) % bytes;
}

static void do_writev(struct kind *k) {
    struct iovec v[PIECES];
    memcpy(k->buffer, pattern, bytes);
    whole(k, writev(k->fd, v, (in_pieces(k, v), PIECES)), bytes);
}

static void do_send(struct kind *k) { whole(k, send(k->fd, pattern, bytes, 0), bytes); }

static void do_sendmsg(struct kind *k) {
    struct iovec v[PIECES];
    memcpy(k->buffer, pattern, bytes);
    in_pieces(k, v);
    struct msghdr m = {.msg_iov = v, .msg_iovlen = PIECES};
    whole(k, sendmsg(k->fd, &m, 0), bytes);
}

static void do_recv(struct kind *k) {
    fresh(k);
    whole(k, recv(k->fd, k->buffer, bytes, MSG_WAITALL), bytes);
    same(k, bytes);
}

static void do_recvmsg(struct kind *k) {
    struct iovec v[PIECES];
    fresh(k);
    in_pieces(k, v);
    struct msghdr m = {.msg_iov = v, .msg_iovlen = PIECES};
    whole(k, recvmsg(k->fd, &m, MSG_WAITALL), bytes);
    same(k, bytes);
}

static void do_sendmmsg(struct kind *k) {
    struct mmsghdr m[MESSAGES];
    struct iovec v = {pattern, 100};
    memset(m, 0, sizeof m);
    for (int i = 0; i < MESSAGES; i++) m[i].msg_hdr.msg_iov = &v, m[i].msg_hdr.msg_iovlen = 1;
    whole(k, sendmmsg(k->fd, m, MESSAGES, 0), MESSAGES);
    for (int i = 0; i < MESSAGES; i++)
        if (m[i].msg_len != 100) wrong(k, "message %d: %u bytes", i, m[i].msg_len);
}

static void do_recvmmsg(struct kind *k) {
    struct mmsghdr m[MESSAGES];
    struct iovec v[MESSAGES];
    fresh(k);
    memset(m, 0, sizeof m);
    for (int i = 0; i < MESSAGES; i++) {
        v[i] = (struct iovec){k->buffer + 100 * i, 100};
        m[i].msg_hdr.msg_iov = &v[i], m[i].msg_hdr.msg_iovlen = 1;
    }
    whole(k, recvmmsg(k->fd, m, MESSAGES, 0, NULL), MESSAGES);
    for (int i = 0; i < MESSAGES; i++)
        if (memcmp(k->buffer + 100 * i, pattern, 100)) wrong(k, "message %d: other bytes", i);
}

static void varied(struct kind *k, size_t n) {
    /* Of any number of random bytes few pages begin with eight zeros. */
    for (size_t at = 0; at + 8 <= n; at += 4096)
        if (!memcmp(k->buffer + at, (char[8]){0}, 8)) wrong(k, "nothing at %zu", at);
}

static void do_urandom(struct kind *k) {
    fresh(k);
    whole(k, read(k->file, k->buffer, bytes), bytes);
    varied(k, bytes);
}

static void do_getrandom(struct kind *k) {
    fresh(k);
    whole(k, getrandom(k->buffer, bytes, 0), bytes);
    varied(k, bytes);
}

static void do_zeros(struct kind *k) {
    struct iovec v[PIECES];
    memset(k->buffer, 1, bytes);
    in_pieces(k, v);
    whole(k, readv(k->file, v, PIECES), bytes);
    for (size_t i = 0; i < bytes; i += 61)
        if (k->buffer[i]) wrong(k, "no zero at %zu", i);
}

static void do_sendfile(struct kind *k) {
    off_t at = 0;
    whole(k, sendfile(k->fd, k->file, &at, bytes), bytes);
    if ((size_t)at != bytes) wrong(k, "the offset is %zd", (ssize_t)at);
}

static void copied(struct kind *k) {
    fresh(k);
    MUST(pread(k->copy, k->buffer, bytes, 0) == (ssize_t)bytes);
    same(k, bytes);
    MUST(ftruncate(k->copy, 0) == 0 && lseek(k->copy, 0, SEEK_SET) == 0);
}

static void do_sendfile_to_file(struct kind *k) {
    MUST(lseek(k->file, 0, SEEK_SET) == 0);
    whole(k, sendfile(k->copy, k->file, NULL, bytes), bytes);
    copied(k);
}

static void do_copy_file_range(struct kind *k) {
    off_t from = 0;
    whole(k, copy_file_range(k->file, &from, k->copy, NULL, bytes, 0), bytes);
    copied(k);
}

static int through[2];
static void do_splice(struct kind *k) {
    static size_t at;
    const size_t part = 65536;
    MUST(write(through[1], pattern + at, part) == (ssize_t)part);
    at = (at + part) % bytes;
    whole(k, splice(through[0], NULL, k->fd, NULL, part, 0), part);
}

/* Ends neither early nor much late. */
static void in_time(struct kind *k, ssize_t r, int error, double since, double seconds) {
    int was = errno;
    double took = now() - since;
    if (took > k->longest) k->longest = took;
    if (r != -1 || was != error) wrong(k, "%zd, errno %d (%s), after %f s", r, was, strerror(was), took);
    else if (took < seconds - 0.005) wrong(k, "after %f s only", took);
}

static void do_recv_in_time(struct kind *k) {
    double since = now();
    char c;
    in_time(k, recv(k->fd, &c, 1, 0), EAGAIN, since, 0.4);
}

static void do_accept_in_time(struct kind *k) {
    double since = now();
    in_time(k, accept(k->fd, NULL, NULL), EAGAIN, since, 0.4);
}

static void do_send_in_time(struct kind *k) {
    double since = now();
    char c = 0;
    in_time(k, send(k->fd, &c, 1, 0), EAGAIN, since, 0.4);
}

static void do_sendfile_in_time(struct kind *k) {
    double since = now();
    off_t at = 0;
    in_time(k, sendfile(k->fd, k->file, &at, 100), EAGAIN, since, 0.4);
    if (at) wrong(k, "the offset is %zd", (ssize_t)at);
}

static void do_splice_out_in_time(struct kind *k) {
    double since = now();
    in_time(k, splice(k->file, NULL, k->fd, NULL, 6, 0), EAGAIN, since, 0.4);
}

static void do_splice_in_in_time(struct kind *k) {
    double since = now();
    in_time(k, splice(k->fd, NULL, k->copy, NULL, 6, 0), EAGAIN, since, 0.4);
}

static void do_epoll_pwait2(struct kind *k) {
    struct timespec t = {0, 400000000};
    struct epoll_event e;
    sigset_t mask;
    sigemptyset(&mask);
    double since = now();
    long r = syscall(SYS_epoll_pwait2, k->file, &e, 1, &t, k->done % 2 ? &mask : NULL, 8);
    /* It tells that time is over by 0. */
    if (r == 0) r = -1, errno = ETIME;
    in_time(k, r, ETIME, since, 0.4);
}

/* Fewer messages than asked for are right here; an error that a stop leaves behind is not. */
static void few_messages(struct kind *k, struct timespec *limit) {
    struct mmsghdr m[10];
    struct iovec v[10];
    char c[10];
    memset(m, 0, sizeof m);
    for (int i = 0; i < 10; i++) v[i] = (struct iovec){c + i, 1}, m[i].msg_hdr.msg_iov = &v[i], m[i].msg_hdr.msg_iovlen = 1;
    int n = recvmmsg(k->fd, m, 10, 0, limit);
    if (n <= 0) wrong(k, "%d, errno %d", n, errno);
    ssize_t next = recv(k->fd, c, 1, 0);
    if (next != 1) wrong(k, "next: %zd, errno %d", next, errno);
}

static void do_recvmmsg_stream(struct kind *k) { few_messages(k, NULL); }
static void do_recvmmsg_limited(struct kind *k) { few_messages(k, &(struct timespec){0, 20000000}); }

/* A time-out that is never reached. */
static void do_recv_sooner(struct kind *k) {
    unsigned char c[16384];
    ssize_t n = recv(k->fd, c, sizeof c, 0);
    if (n <= 0) wrong(k, "%zd, errno %d", n, errno);
}

static void with_peer(struct kind *k) { k->peers = 1; }
static void out_pipe(struct kind *k) { pipes(k), with_peer(k), k->sends = 1; }
static void out_fifo(struct kind *k) { fifo(k), with_peer(k), k->sends = 1; }
static void out_unix(struct kind *k) { unix_pair(k), with_peer(k), k->sends = 1; }
static void out_tcp(struct kind *k) { tcp_pair(k), with_peer(k), k->sends = 1; }
static void out_terminal(struct kind *k) { terminal(k), with_peer(k), k->sends = 1; }
static void out_messages(struct kind *k) { messages(k), with_peer(k), k->sends = 1; }
static void in_unix(struct kind *k) { unix_pair(k), with_peer(k); }
static void in_tcp(struct kind *k) { tcp_pair(k), with_peer(k); }
static void in_messages(struct kind *k) { messages(k), with_peer(k); }
static void in_patience(struct kind *k) { in_unix(k), timed(k, SO_RCVTIMEO, 5); }
static void out_file(struct kind *k) { out_tcp(k), k->file = file_of_pattern(bytes); }
static void files(struct kind *k) { k->file = file_of_pattern(bytes), k->copy = file_of_pattern(0); }
static void out_spliced(struct kind *k) { out_unix(k); MUST(pipe(through) == 0 && fcntl(through[1], F_SETPIPE_SZ, 65536) > 0); }
static void urandom(struct kind *k) { MUST((k->file = open("/dev/urandom", O_RDONLY)) >= 0); }
static void zeros(struct kind *k) { MUST((k->file = open("/dev/zero", O_RDONLY)) >= 0); }
static void nothing(struct kind *k) { (void)k; }
static void quiet(struct kind *k) { tcp_pair(k), timed(k, SO_RCVTIMEO, 0.4); }

static void listening(struct kind *k) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    k->fd = socket(AF_INET, SOCK_STREAM, 0);
    MUST(bind(k->fd, (struct sockaddr *)&a, sizeof a) == 0 && listen(k->fd, 1) == 0);
    timed(k, SO_RCVTIMEO, 0.4);
}

static void full(struct kind *k) {
    unix_pair(k);
    while (send(k->fd, pattern, 4096, MSG_DONTWAIT) > 0) {}
    while (send(k->fd, pattern, 1, MSG_DONTWAIT) > 0) {}
    timed(k, SO_SNDTIMEO, 0.4);
}

static void full_and_file(struct kind *k) { full(k), k->file = file_of_pattern(bytes); }

static void full_and_pipe(struct kind *k) {
    int p[2];
    full(k);
    MUST(pipe(p) == 0 && write(p[1], "abcdef", 6) == 6);
    k->file = p[0];
}

static void quiet_and_pipe(struct kind *k) {
    int p[2];
    quiet(k);
    MUST(pipe(p) == 0);
    k->copy = p[1];
}

static void nothing_to_tell(struct kind *k) { MUST((k->file = epoll_create1(0)) >= 0); }
static void full_device(struct kind *k) { MUST((k->file = open("/dev/full", O_RDONLY)) >= 0); }

static struct {
    const char *name;
    void (*prepare)(struct kind *);
    void (*once)(struct kind *);
} kinds[] = {
    {"write-pipe", out_pipe, do_write},
    {"writev-pipe", out_pipe, do_writev},
    {"write-fifo", out_fifo, do_write},
    {"write-terminal", out_terminal, do_write_part},
    {"write-unix", out_unix, do_write},
    {"writev-tcp", out_tcp, do_writev},
    {"send-unix", out_unix, do_send},
    {"send-tcp", out_tcp, do_send},
    {"sendmsg-unix", out_unix, do_sendmsg},
    {"sendmsg-tcp", out_tcp, do_sendmsg},
    {"sendmmsg", out_messages, do_sendmmsg},
    {"recv-unix", in_unix, do_recv},
    {"recv-tcp", in_tcp, do_recv},
    {"recv-patience", in_patience, do_recv},
    {"recvmsg-unix", in_unix, do_recvmsg},
    {"recvmsg-tcp", in_tcp, do_recvmsg},
    {"recvmmsg", in_messages, do_recvmmsg},
    {"read-urandom", urandom, do_urandom},
    {"getrandom", nothing, do_getrandom},
    {"readv-zero", zeros, do_zeros},
    {"sendfile-tcp", out_file, do_sendfile},
    {"sendfile-file", files, do_sendfile_to_file},
    {"copy_file_range", files, do_copy_file_range},
    {"splice-unix", out_spliced, do_splice},
    {"recv-in-time", quiet, do_recv_in_time},
    {"accept-in-time", listening, do_accept_in_time},
    {"send-in-time", full, do_send_in_time},
    {"recv-sooner", in_patience, do_recv_sooner},
    {"sendfile-in-time", full_and_file, do_sendfile_in_time},
    {"splice-out-in-time", full_and_pipe, do_splice_out_in_time},
    {"splice-in-in-time", quiet_and_pipe, do_splice_in_in_time},
    {"epoll_pwait2", nothing_to_tell, do_epoll_pwait2},
    {"recvmmsg-stream", in_tcp, do_recvmmsg_stream},
    {"recvmmsg-limited", in_messages, do_recvmmsg_limited},
    {"readv-full", full_device, do_zeros},
};
enum { KINDS = sizeof kinds / sizeof *kinds };
static struct kind running[KINDS];

static void *run(void *argument) {
    struct kind *k = argument;
    while (!atomic_load(&ended) && now() < deadline && (!wanted || k->done < wanted) && atomic_load(&wrongs) < 20) {
        k->once(k);
        k->done++;
    }
    return NULL;
}

static void *await_end(void *argument) {
    while (getchar() != EOF) {}
    atomic_store(&ended, 1);
    return argument;
}

int main(int argc, char **argv) {
    MUST(argc >= 6);
    folder = argv[1];
    double seconds = atof(argv[2]);
    wanted = atol(argv[3]);
    bytes = (size_t)atol(argv[4]);
    seed = (unsigned)atol(argv[5]);
    pattern = malloc(2 * bytes);
    MUST(pattern);
    unsigned r = seed;
    for (size_t i = 0; i < bytes; i++) pattern[i] = pattern[i + bytes] = (unsigned char)(1 + rand_r(&r) % 255);
    unsigned n = 0;
    for (unsigned i = 0; i < KINDS; i++) {
        int chosen = argc == 6;
        for (int j = 6; j < argc; j++) chosen |= !strcmp(argv[j], kinds[i].name);
        if (!chosen) continue;
        struct kind *k = &running[n++];
        k->name = kinds[i].name, k->once = kinds[i].once, k->fd = k->other = -1;
        k->buffer = malloc(bytes);
        MUST(k->buffer);
        kinds[i].prepare(k);
    }
    MUST(n > 0);
    pid_t child = fork();
    MUST(child >= 0);
    if (!child) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        signal(SIGPIPE, SIG_IGN);
        pthread_t t;
        for (unsigned i = 0; i < n; i++) {
            close(running[i].fd);
            if (!running[i].peers) continue;
            struct peer *p = malloc(sizeof *p);
            *p = (struct peer){&running[i], running[i].other};
            MUST(pthread_create(&t, NULL, peer, p) == 0);
        }
        for (;;) pause();
    }
    for (unsigned i = 0; i < n; i++)
        if (running[i].peers) close(running[i].other);
    unsigned char *rest = mmap(NULL, PAGES * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    MUST(rest != MAP_FAILED);
    for (size_t i = 0; i < PAGES; i++) memset(rest + 4096 * i, (int)i + 1, 4096);
    printf("READY %lu\n", (unsigned long)rest);
    fflush(stdout);
    MUST(getchar() != EOF);
    deadline = now() + seconds;
    pthread_t threads[KINDS], end;
    MUST(pthread_create(&end, NULL, await_end, NULL) == 0);
    for (unsigned i = 0; i < n; i++) MUST(pthread_create(&threads[i], NULL, run, &running[i]) == 0);
    for (unsigned i = 0; i < n; i++) pthread_join(threads[i], NULL);
    for (size_t i = 0; i < PAGES * 4096; i++)
        if (rest[i] != i / 4096 + 1) MUST(!"a page at rest holds other bytes");
    kill(child, SIGKILL);
    printf("%s", atomic_load(&wrongs) ? "WRONG" : "OK");
    for (unsigned i = 0; i < n; i++) {
        printf(" %s=%ld", running[i].name, running[i].done);
        if (running[i].longest) printf("(%.3fs)", running[i].longest);
    }
    printf("\n");
    fflush(stdout);
    _exit(atomic_load(&wrongs) != 0);
}
