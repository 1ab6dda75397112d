/* A program that knows at any time what each byte of its memory must be.
 *
 * usage: pagehog MIB THREADS CHILDREN LOG
 *
 * Each page of a region of MIB says what it should hold: its number, a generation, and words computed from both. Each
 * thread gives some of its own pages a new generation every few milliseconds, and keeps a patterned array on its stack.
 * CHILDREN forked processes do the same with their copy of the region. On SIGUSR1 a process checks everything and
 * appends one line to LOG: "V who bad=N gap_us=G rounds=R", where G is the longest time by CLOCK_REALTIME between two
 * ticks of 1 ms since the last check. On SIGUSR2 it forks a child that checks and reports as "fork", as a program
 * that forks while its pages are still being filled in.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define WORDS 512
#define STACK_WORDS 4096

static uint64_t *memory;
static size_t pages, threads;
static int out;
static volatile sig_atomic_t want_check, want_fork;
static char who[16] = "main";
static pthread_rwlock_t lock = PTHREAD_RWLOCK_INITIALIZER;
static volatile size_t bad_stacks;
static volatile uint64_t rounds;

static uint64_t scramble(uint64_t x) {
    x ^= x >> 31;
    x *= 0x9FB21C651E98DF25ull;
    x ^= x >> 28;
    return x;
}

static void fill(size_t page, uint64_t generation) {
    uint64_t *word = memory + page * WORDS;
    word[0] = page;
    word[1] = generation;
    for (int i = 2; i < WORDS; i++) word[i] = (i & 1) ? scramble(page + generation * 7919 + i) : page + i;
}

static int is_bad(size_t page) {
    uint64_t *word = memory + page * WORDS, generation = word[1];
    if (generation == 0 && page % 16 == 5) { /* such pages stay zero until first written */
        for (int i = 0; i < WORDS; i++)
            if (word[i]) return 1;
        return 0;
    }
    if (word[0] != page) return 1;
    for (int i = 2; i < WORDS; i++)
        if (word[i] != ((i & 1) ? scramble(page + generation * 7919 + i) : page + i)) return 1;
    return 0;
}

static int stack_is_bad(uint64_t *array, uint64_t seed) {
    for (int i = 0; i < STACK_WORDS; i++)
        if (array[i] != scramble(seed + i)) return 1;
    return 0;
}

static void nap(long ns) {
    struct timespec t = {0, ns};
    nanosleep(&t, NULL);
}

static void *worker(void *argument) {
    uint64_t me = (uint64_t)argument, state = 88172645463325252ull + me, seed = me * 1000;
    volatile uint64_t array[STACK_WORDS];
    for (int i = 0; i < STACK_WORDS; i++) array[i] = scramble(seed + i);
    for (uint64_t generation = 1;; generation++) {
        pthread_rwlock_rdlock(&lock);
        for (int i = 0; i < 32 && pages >= threads; i++) {
            state ^= state << 13, state ^= state >> 7, state ^= state << 17;
            fill(state % (pages / threads) * threads + me, generation);
        }
        if (stack_is_bad((uint64_t *)array, seed)) bad_stacks++;
        seed++;
        for (int i = 0; i < STACK_WORDS; i++) array[i] = scramble(seed + i);
        rounds++;
        pthread_rwlock_unlock(&lock);
        nap(5000000);
    }
    return NULL;
}

static void say(const char *name, uint64_t gap) {
    size_t bad = bad_stacks;
    for (size_t page = 0; page < pages; page++) bad += is_bad(page);
    char line[128];
    int length = snprintf(line, sizeof line, "V %s bad=%zu gap_us=%llu rounds=%llu\n", name, bad,
                          (unsigned long long)gap, (unsigned long long)rounds);
    if (write(out, line, length) != length) _exit(3);
}

static void on_check(int number) { (void)number, want_check = 1; }
static void on_fork(int number) { (void)number, want_fork = 1; }

static uint64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return t.tv_sec * 1000000ull + t.tv_nsec / 1000;
}

static void run(void) {
    for (size_t i = 0; i < threads; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, worker, (void *)i)) _exit(4);
    }
    char line[64];
    int length = snprintf(line, sizeof line, "READY %s\n", who);
    if (write(out, line, length) != length) _exit(3);
    uint64_t last = now_us(), gap = 0;
    for (;;) {
        nap(1000000);
        uint64_t now = now_us();
        if (now - last > gap) gap = now - last;
        last = now;
        if (want_fork) {
            want_fork = 0;
            pthread_rwlock_wrlock(&lock);
            if (fork() == 0) {
                say("fork", gap);
                _exit(0);
            }
            pthread_rwlock_unlock(&lock);
        }
        if (want_check) {
            want_check = 0;
            pthread_rwlock_wrlock(&lock);
            say(who, gap);
            pthread_rwlock_unlock(&lock);
            gap = 0;
            last = now_us();
        }
        while (waitpid(-1, NULL, WNOHANG) > 0) {}
    }
}

int main(int argc, char **argv) {
    if (argc != 5) return 2;
    pages = strtoul(argv[1], NULL, 10) * 256;
    threads = strtoul(argv[2], NULL, 10);
    int children = atoi(argv[3]);
    out = open(argv[4], O_WRONLY | O_CREAT | O_APPEND, 0644);
    if (out < 0 || threads < 1) return 2;
    signal(SIGUSR1, on_check);
    signal(SIGUSR2, on_fork);
    memory = mmap(NULL, pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return 2;
    for (size_t page = 0; page < pages; page++)
        if (page % 16 != 5) fill(page, 0);
    for (int i = 0; i < children; i++)
        if (fork() == 0) {
            snprintf(who, sizeof who, "child%d", i);
            break;
        }
    run();
}
