/* Memory that holds up whoever reads it: on a file system that does not answer.
 *
 *   holds KIND FOLDER    KIND is what it does when told to strike:
 *     lock   its address space stays locked: one thread reads such memory, another waits to map something
 *     leave  makes a child whose first thread ends and cannot close its file: it has left the memory, and is no zombie
 *     none   nothing
 *
 * Says "ready", then answers each line: "strike", and "check", the number of wrong bytes. For "leave", a strike answers
 * with how many pages the child found with other bytes than zeros where another thread of it had discarded them. As an ordinary user it mounts
 * in a user namespace of its own; where that cannot be it says "no". */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096
#define PAGES 512
#define SIZE (PAGES * PAGE)
#define MOST_S 130 /* longer than any test */

static unsigned char *area, *away;
static int device;

static void fill(unsigned char *at) {
    for (uint32_t k = 0; k < PAGES; k++) {
        for (int i = 0; i < PAGE; i++) at[k * PAGE + i] = (unsigned char)(1 + (i * 7 + k * 13) % 251);
        memcpy(at + k * PAGE, &k, 4), at[k * PAGE + 3] = 99;
    }
}

static void answer(uint64_t unique, const void *body, size_t n) {
    char buffer[512];
    struct fuse_out_header head = {.len = sizeof head + n, .unique = unique};
    memcpy(buffer, &head, sizeof head), memcpy(buffer + sizeof head, body, n);
    if (write(device, buffer, head.len) < 0) perror("answer");
}

/* Whether a process has ended, or is about to: then its first thread may have to wait for memory that others of it have
 * locked, and before it has got that nobody is told of its end. */
static int ends(pid_t pid) {
    char path[32], text[512];
    unsigned long flags = 0;
    sprintf(path, "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
    if (fd >= 0) close(fd);
    if (n <= 0) return 1;
    text[n] = 0;
    char *rest = strrchr(text, ')');
    return rest && sscanf(rest, ") %*c %*d %*d %*d %*d %*d %lu", &flags) == 1 && flags & 4; /* PF_EXITING */
}

static int threads_of(pid_t pid) {
    char path[32];
    struct stat folder;
    sprintf(path, "/proc/%d/task", (int)pid);
    return stat(path, &folder) ? 0 : (int)folder.st_nlink - 2;
}

/* A file system of one file, which may be opened and mapped; reads of it are never answered. Ends with `client`. Who
 * closes the file as it ends waits until it is the only thread that is left. */
static void serve(pid_t client) {
    static char buffer[1 << 17];
    uint64_t flush = 0;
    pid_t flushes = 0;
    struct fuse_attr file = {.ino = 2, .size = SIZE, .mode = 0100666, .nlink = 1, .uid = getuid(), .gid = getgid(), .blksize = PAGE};
    struct fuse_attr root = {.ino = 1, .mode = 040777, .nlink = 2, .uid = getuid(), .gid = getgid(), .blksize = PAGE};
    while (!ends(client)) {
        struct pollfd asked = {device, POLLIN, 0};
        if (flush && threads_of(flushes) < 2) answer(flush, NULL, 0), flush = 0;
        if (poll(&asked, 1, 100) <= 0) continue;
        ssize_t n = read(device, buffer, sizeof buffer);
        if (n < 0 && (errno == EINTR || errno == EAGAIN || errno == ENOENT)) continue;
        if (n < (ssize_t)sizeof(struct fuse_in_header)) return;
        struct fuse_in_header *in = (void *)buffer;
        if (in->opcode == FUSE_INIT) {
            struct fuse_init_out out = {.major = FUSE_KERNEL_VERSION, .minor = FUSE_KERNEL_MINOR_VERSION, .max_write = PAGE};
            answer(in->unique, &out, sizeof out);
        } else if (in->opcode == FUSE_LOOKUP) {
            struct fuse_entry_out out = {.nodeid = 2, .attr_valid = 1000, .entry_valid = 1000, .attr = file};
            answer(in->unique, &out, sizeof out);
        } else if (in->opcode == FUSE_GETATTR) {
            struct fuse_attr_out out = {.attr_valid = 1000, .attr = in->nodeid == 1 ? root : file};
            answer(in->unique, &out, sizeof out);
        } else if (in->opcode == FUSE_OPEN) {
            struct fuse_open_out out = {.fh = 1};
            answer(in->unique, &out, sizeof out);
        } else if (in->opcode == FUSE_FLUSH && threads_of(in->pid) > 1 && ends(in->pid)) {
            flush = in->unique, flushes = in->pid;
        } else if (in->opcode == FUSE_FLUSH || in->opcode == FUSE_RELEASE) answer(in->unique, NULL, 0);
    }
}

static void put(const char *path, const char *text) {
    int fd = open(path, O_WRONLY);
    if (fd < 0 || write(fd, text, strlen(text)) < 0) perror(path);
    close(fd);
}

static void pass(int line, int fd) {
    char space[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec one = {&fd, 1};
    struct msghdr message = {.msg_iov = &one, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    struct cmsghdr *head = CMSG_FIRSTHDR(&message);
    head->cmsg_level = SOL_SOCKET, head->cmsg_type = SCM_RIGHTS, head->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(head), &fd, sizeof fd);
    if (sendmsg(line, &message, 0) < 0) perror("pass");
}

static int be_passed(int line) {
    int fd = -1;
    char byte, space[CMSG_SPACE(sizeof fd)];
    struct iovec one = {&byte, 1};
    struct msghdr message = {.msg_iov = &one, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    if (recvmsg(line, &message, 0) == 1 && CMSG_FIRSTHDR(&message)) memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    return fd;
}

/* Mounted, opened and served by processes of their own that end with this one: else this one could not end, nor, as an
 * ordinary user, be attached. */
static int open_unanswered(const char *folder) {
    int line[2], user = getuid();
    pid_t client = getpid();
    socketpair(AF_UNIX, SOCK_STREAM, 0, line);
    if (fork() == 0) {
        char text[256], options[128];
        close(line[0]);
        if (user) {
            if (unshare(CLONE_NEWUSER | CLONE_NEWNS)) perror("unshare"), _exit(1);
            put("/proc/self/setgroups", "deny");
            sprintf(text, "%d %d 1", user, user), put("/proc/self/uid_map", text), put("/proc/self/gid_map", text);
        }
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        /* Somebody else that waits for that memory can keep the parent from ending, and from having this one killed. */
        alarm(MOST_S);
        device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
        sprintf(options, "fd=%d,rootmode=40000,user_id=%d,group_id=%d", device, user, (int)getgid());
        if (device < 0 || mount("unanswered", folder, "fuse", MS_NOSUID | MS_NODEV, options)) perror("mount"), _exit(1);
        if (fork() == 0) {
            close(device);
            sprintf(text, "%s/file", folder);
            pass(line[1], open(text, O_RDWR));
            umount2(folder, MNT_DETACH);
            _exit(0);
        }
        close(line[1]);
        serve(client);
        _exit(0);
    }
    close(line[1]);
    int fd = be_passed(line[0]);
    close(line[0]);
    return fd;
}

static unsigned char *map_unanswered(int fd) {
    unsigned char *at = fd < 0 ? MAP_FAILED : mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    return at == MAP_FAILED ? NULL : at;
}

/* Discards pages and returns how many of them do not read as zeros. */
static int not_zero_once_discarded(uint32_t first, uint32_t last) {
    int others = 0;
    madvise(area + first * PAGE, (last - first) * PAGE, MADV_DONTNEED);
    for (uint32_t k = first; k < last; k++) {
        int zero = 1;
        for (int i = 0; i < PAGE; i++) zero &= !((volatile unsigned char *)area)[k * PAGE + i];
        others += !zero;
    }
    return others;
}

static int left_behind, fuse;

static void *go_on(void *unused) {
    char path[64], text[64] = "";
    sprintf(path, "/proc/self/task/%d/statm", (int)getpid());
    close(fuse);
    while (strncmp(text, "0 ", 2)) {
        usleep(1000);
        int fd = open(path, O_RDONLY);
        if (fd < 0 || read(fd, text, sizeof text) < 2) _exit(255);
        close(fd);
    }
    int others = left_behind;
    for (uint32_t k = PAGES / 4; k < PAGES; k += PAGES / 4) others += not_zero_once_discarded(k, k + PAGES / 8);
    _exit(others > 254 ? 254 : others);
    return unused;
}

/* In a child: its first thread ends, with a table of descriptors of its own, of which one cannot be closed. */
static int leave(int discards_before) {
    int status;
    pthread_t thread;
    if (fork() == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (discards_before) left_behind = not_zero_once_discarded(0, PAGES / 8);
        pthread_create(&thread, NULL, go_on, NULL);
        unshare(CLONE_FILES);
        syscall(SYS_exit, 0);
    }
    wait(&status);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* Reading it by this file keeps the address space locked, for others to read, until it is answered. */
static void *read_it(void *unused) {
    unsigned char byte;
    int own = open("/proc/self/mem", O_RDONLY);
    if (pread(own, &byte, 1, (off_t)(uintptr_t)away) == 1) printf("answered\n");
    return unused;
}

/* Whoever waits to change it has all wait that come after. */
static void *change(void *unused) {
    mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return unused;
}

int main(int argc, char **argv) {
    char line[64];
    pthread_t thread;
    if (argc < 3) return 2;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    const char *kind = strdup(argv[1]);
    fuse = strcmp(kind, "none") ? open_unanswered(argv[2]) : -1;
    away = strcmp(kind, "lock") ? NULL : map_unanswered(fuse);
    if (fuse < 0 && strcmp(kind, "none")) return puts("no"), 1;
    area = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    fill(area);
    puts("ready"), fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        int wrong = 0;
        if (!strncmp(line, "check", 5))
            for (uint32_t k = 0; k < PAGES; k++)
                for (int i = 4; i < PAGE; i++) wrong += area[k * PAGE + i] != (unsigned char)(1 + (i * 7 + k * 13) % 251);
        else if (!strcmp(kind, "leave")) wrong = leave(!strncmp(line, "strike later", 12));
        else if (!strcmp(kind, "lock")) {
            pthread_create(&thread, NULL, read_it, NULL);
            usleep(100000);
            pthread_t other;
            /* Its stack is mapped before: afterwards nothing can be. */
            static char stack[1 << 16] __attribute__((aligned(64)));
            pthread_attr_t attributes;
            pthread_attr_init(&attributes), pthread_attr_setstack(&attributes, stack, sizeof stack);
            pthread_create(&other, &attributes, change, NULL);
            usleep(100000);
        }
        char told[32];
        int n = sprintf(told, "%d\n", wrong);
        if (write(1, told, n) < 0) return 1;
    }
    return 0;
}
