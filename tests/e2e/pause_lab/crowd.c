/* A container full of writers, each of which knows at any moment what each page of its memory must hold.
 *
 * usage: crowd PROCESSES THREADS PAGES
 *
 * Each thread has PAGES private pages, a quarter of which it goes on changing, and a slice of a region that all
 * processes share. Whatever it does to a page it writes down in a table, which lies in other pages: a copy in which two
 * pages are not of the same moment shows, even if each of them is well. It fills pages, gives some back
 * (MADV_DONTNEED), unmaps and maps others anew, and has one that it may not read itself (PROT_NONE). The first process
 * has a zombie child. Children that come and go make processes appear between two looks of whoever watches.
 *
 * SIGUSR1 to the first process: every thread checks all of its pages and says "V process thread bad=N".
 */
#define _GNU_SOURCE
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

enum { WORDS = 512, SIZE = 4096, BLOCK = 8, SLICE = 16, MOST = 64 };

static volatile sig_atomic_t asked;
static int processes, threads, pages, me;
static pid_t others[MOST];
static uint64_t *shared;

static void on_signal(int number)
{
	(void)number;
	asked++;
	if (me == 0)
		for (int n = 1; n < processes; n++) kill(others[n], SIGUSR1);
}

static uint64_t mix(uint64_t x)
{
	x ^= x >> 31; x *= 0x9FB21C651E98DF25ull;
	return x ^ (x >> 28);
}

static void fill(uint64_t *page, uint64_t value)
{
	for (int n = 0; n < WORDS; n++) page[n] = value ? mix(value + n) : 0;
}

static int bad(const uint64_t *page, uint64_t value)
{
	for (int n = 0; n < WORDS; n++)
		if (page[n] != (value ? mix(value + n) : 0)) return 1;
	return 0;
}

static void *map(size_t count)
{
	void *found = mmap(0, count * SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (found == MAP_FAILED) _exit(3);
	return found;
}

static void *work(void *argument)
{
	int thread = (int)(intptr_t)argument, answered = asked, hot = pages / 4;
	uint64_t *memory = map(pages), *hidden = map(1), *table = map(pages * 8 / SIZE + 1), *common = map(1);
	uint64_t *slice = shared + (size_t)(me * threads + thread) * SLICE * WORDS;
	uint64_t value = 1 + ((uint64_t)me << 40) + ((uint64_t)thread << 32), dice = 88172645463325252u ^ value;
	fill(hidden, value);
	uint64_t secret = value;
	mprotect(hidden, SIZE, PROT_NONE);
	for (int page = 0; page < pages; page++) fill(memory + (size_t)page * WORDS, table[page] = ++value);
	for (uint64_t round = 0;; round++) {
		for (int n = 0; n < 8; n++) {
			dice ^= dice << 13; dice ^= dice >> 7; dice ^= dice << 17;
			uint64_t page = dice % hot;
			fill(memory + page * WORDS, table[page] = ++value);
			fill(slice + page % SLICE * WORDS, common[page % SLICE] = ++value);
		}
		uint64_t block = dice % (hot / BLOCK) * BLOCK;
		if (round % 4 == 1) {
			madvise(memory + block * WORDS, BLOCK * SIZE, MADV_DONTNEED);
			memset(table + block, 0, BLOCK * sizeof *table);
		}
		if (round % 16 == 3) {
			void *place = memory + block * WORDS;
			munmap(place, BLOCK * SIZE);
			mmap(place, BLOCK * SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
			memset(table + block, 0, BLOCK * sizeof *table);
			fill(memory + block * WORDS, table[block] = ++value);
		}
		if (asked != answered) {
			answered = asked;
			int wrong = 0;
			for (int page = 0; page < pages; page++) wrong += bad(memory + (size_t)page * WORDS, table[page]);
			for (int page = 0; page < SLICE; page++) wrong += bad(slice + page * WORDS, common[page]);
			mprotect(hidden, SIZE, PROT_READ);
			wrong += bad(hidden, secret);
			mprotect(hidden, SIZE, PROT_NONE);
			printf("V %d %d bad=%d\n", me, thread, wrong);
		}
		struct timespec pause = { 0, 4000000 };
		nanosleep(&pause, 0);
	}
	return 0;
}

static void come_and_go(void)
{
	struct timespec pause = { 0, 20000000 };
	signal(SIGUSR1, SIG_IGN);
	for (;;) {
		pid_t child = fork();
		if (child == 0) {
			fill(map(1), 7);
			nanosleep(&pause, 0);
			_exit(0);
		}
		waitpid(child, 0, 0);
	}
}

int main(int argc, char **argv)
{
	if (argc != 4) return 2;
	processes = atoi(argv[1]), threads = atoi(argv[2]), pages = atoi(argv[3]);
	if (processes < 1 || processes > MOST || threads < 1 || pages < 4 * BLOCK) return 2;
	setvbuf(stdout, 0, _IOLBF, 0);
	size_t size = (size_t)processes * threads * SLICE * SIZE;
	shared = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (shared == MAP_FAILED) return 3;
	struct sigaction action = { .sa_handler = on_signal, .sa_flags = SA_RESTART };
	sigaction(SIGUSR1, &action, 0);
	if (fork() == 0) _exit(5); /* nobody waits for it */
	if (fork() == 0) come_and_go();
	for (int n = 1; n < processes && me == 0; n++)
		if ((others[n] = fork()) == 0) me = n;
	for (int n = 1; n < threads; n++) {
		pthread_t thread;
		if (pthread_create(&thread, 0, work, (void *)(intptr_t)n)) return 4;
	}
	if (me == 0) puts("ready");
	work(0);
}
