/* A task as CRIU restores it, in a test's hands: its memory is registered with a userfaultfd that was given to a pager.
 *
 * usage: uffdtask SOCKET NUMBER PAGES
 *
 * Maps 2 * PAGES pages at BASE; the first half is to be filled by the pager (page p holds words p * 512 + i, every 8th
 * page nothing), the second is room for moving. Then obeys lines from standard input and answers each with one line:
 *
 *   touch P        read a page             write P G      give it a generation
 *   move A B N     mremap N pages          drop A N       madvise(MADV_DONTNEED)
 *   unmap A N      munmap                  check          compare everything: "bad N"
 *   fork           a child checks: "bad N" finish         what CRIU says last
 *   hangup         close CRIU's connection without it
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define BASE ((char *)0x200000000000)
#define PAGE 4096

enum { UNMAPPED = -2, ZERO = -1 };

static long pages, *holds;
static uint64_t *generation;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static volatile uint64_t *at(long page) { return (uint64_t *)(BASE + page * PAGE); }

static int is_bad(long page) {
    volatile uint64_t *word = at(page);
    for (int i = 0; i < 512; i++) {
        uint64_t want = holds[page] == ZERO ? 0 : (uint64_t)holds[page] * 512 + i;
        if (generation[page]) want = generation[page] + i;
        if (word[i] != want) return 1;
    }
    return 0;
}

static long check(void) {
    long bad = 0;
    for (long page = 0; page < 2 * pages; page++)
        if (holds[page] != UNMAPPED) bad += is_bad(page);
    return bad;
}

static int give(const char *path, int number, int uffd) {
    int sock = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    strncpy(name.sun_path, path, sizeof name.sun_path - 1);
    if (connect(sock, (struct sockaddr *)&name, sizeof name)) die("connect");
    if (send(sock, &number, 4, 0) != 4) die("send");
    char byte = 0, control[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec iov = {&byte, 1};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *part = CMSG_FIRSTHDR(&message);
    part->cmsg_level = SOL_SOCKET, part->cmsg_type = SCM_RIGHTS, part->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(part), &uffd, sizeof uffd);
    if (sendmsg(sock, &message, 0) != 1) die("sendmsg");
    int zombie = -7; /* as CRIU announces one */
    if (send(sock, &zombie, 4, 0) != 4) die("send");
    return sock;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    pages = atol(argv[3]);
    holds = calloc(2 * pages, sizeof *holds);
    generation = calloc(2 * pages, sizeof *generation);
    char *memory = mmap(BASE, pages * PAGE, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (memory != BASE) die("mmap");
    for (long page = 0; page < 2 * pages; page++) holds[page] = page >= pages ? UNMAPPED : page % 8 == 3 ? ZERO : page;
    int uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (uffd < 0) die("userfaultfd");
    struct uffdio_api api = {.api = UFFD_API,
                             .features = UFFD_FEATURE_EVENT_FORK | UFFD_FEATURE_EVENT_REMAP |
                                         UFFD_FEATURE_EVENT_UNMAP | UFFD_FEATURE_EVENT_REMOVE};
    if (ioctl(uffd, UFFDIO_API, &api)) die("UFFDIO_API");
    /* Two mappings: a copy must not reach over the boundary. */
    if (mprotect(BASE + pages / 2 * PAGE, PAGE, PROT_READ)) die("mprotect");
    struct uffdio_register reg = {.range = {(uint64_t)BASE, pages * PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    if (ioctl(uffd, UFFDIO_REGISTER, &reg)) die("UFFDIO_REGISTER");
    int criu = give(argv[1], atoi(argv[2]), uffd);
    close(uffd);
    setlinebuf(stdout);
    printf("ready\n");
    char line[256], word[32];
    while (fgets(line, sizeof line, stdin)) {
        long a = 0, b = 0, n = 0;
        if (sscanf(line, "%31s %ld %ld %ld", word, &a, &b, &n) < 1) return 2;
        if (!strcmp(word, "touch")) {
            printf("%s\n", is_bad(a) ? "bad" : "ok");
        } else if (!strcmp(word, "write")) {
            for (int i = 0; i < 512; i++) at(a)[i] = b + i;
            generation[a] = b;
            printf("ok\n");
        } else if (!strcmp(word, "move")) {
            if (mremap(BASE + a * PAGE, n * PAGE, n * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, BASE + b * PAGE) == MAP_FAILED)
                die("mremap");
            for (long i = 0; i < n; i++) {
                holds[b + i] = holds[a + i], generation[b + i] = generation[a + i];
                holds[a + i] = UNMAPPED, generation[a + i] = 0;
            }
            printf("ok\n");
        } else if (!strcmp(word, "drop")) {
            if (madvise(BASE + a * PAGE, b * PAGE, MADV_DONTNEED)) die("madvise");
            for (long i = a; i < a + b; i++) holds[i] = ZERO, generation[i] = 0;
            printf("ok\n");
        } else if (!strcmp(word, "unmap")) {
            if (munmap(BASE + a * PAGE, b * PAGE)) die("munmap");
            for (long i = a; i < a + b; i++) holds[i] = UNMAPPED, generation[i] = 0;
            printf("ok\n");
        } else if (!strcmp(word, "check")) {
            printf("bad %ld\n", check());
        } else if (!strcmp(word, "fork")) {
            int pair[2];
            if (pipe(pair)) die("pipe");
            pid_t child = fork();
            if (child == 0) {
                long bad = check();
                if (write(pair[1], &bad, sizeof bad) != sizeof bad) _exit(1);
                _exit(0);
            }
            close(pair[1]);
            long bad = -1;
            if (read(pair[0], &bad, sizeof bad) != sizeof bad) bad = -1;
            close(pair[0]);
            waitpid(child, NULL, 0);
            printf("bad %ld\n", bad);
        } else if (!strcmp(word, "finish")) {
            uint32_t last = 0x52535446;
            if (send(criu, &last, 4, 0) != 4) die("send");
            printf("ok\n");
        } else if (!strcmp(word, "hangup")) {
            close(criu);
            printf("ok\n");
        }
    }
    return 0;
}
