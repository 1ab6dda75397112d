/* A workload that measures its own downtime.
 *
 *   load MIB TICKS [PAGES_PER_MS [SEED]]
 *
 * Fills MIB mebibytes of private memory with incompressible bytes, then writes "ready" and each millisecond the time
 * (CLOCK_REALTIME, ns; a restored time namespace shifts the other clocks) as 8 bytes to the file TICKS, and changes
 * PAGES_PER_MS random pages. SIGUSR1: verifies every page and writes how many are wrong (as a negative number - 1).
 *
 * Each page is a pure function of its number and of a generation that it carries, so that any byte lost, doubled or
 * late shows. Built static, so that it needs nothing of its root file system.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { WORDS = 512 };

static volatile sig_atomic_t wanted;
static void on_signal(int number) { (void)number; wanted = 1; }

static uint64_t mix(uint64_t x)
{
	x ^= x >> 32; x *= 0xd6e8feb86659fd93u;
	x ^= x >> 32; x *= 0xd6e8feb86659fd93u;
	return x ^ (x >> 32);
}

static void fill(uint64_t *page, uint64_t number, uint64_t generation)
{
	uint64_t state = mix(number * 2654435761u + generation + 1);
	page[0] = generation;
	for (int n = 1; n < WORDS; n++) { state ^= state << 13; state ^= state >> 7; state ^= state << 17; page[n] = state; }
}

static int wrong(const uint64_t *page, uint64_t number)
{
	uint64_t state = mix(number * 2654435761u + page[0] + 1);
	for (int n = 1; n < WORDS; n++) {
		state ^= state << 13; state ^= state >> 7; state ^= state << 17;
		if (page[n] != state) return 1;
	}
	return 0;
}

static int64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void tick(int fd, int64_t value) { if (write(fd, &value, sizeof value) != sizeof value) _exit(3); }

int main(int argc, char **argv)
{
	if (argc < 3) return 2;
	uint64_t pages = strtoull(argv[1], 0, 10) * 256, generation = 0, dice = 88172645463325252u;
	int per_ms = argc > 3 ? atoi(argv[3]) : 0;
	int fd = open(argv[2], O_WRONLY | O_CREAT | O_APPEND, 0644);
	if (fd < 0) return 1;
	if (argc > 4) dice = strtoull(argv[4], 0, 10) | 1;
	uint64_t *memory = mmap(0, pages * 4096 + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED) return 1;
	struct sigaction action = { .sa_handler = on_signal };
	sigaction(SIGUSR1, &action, 0);
	for (uint64_t n = 0; n < pages; n++) fill(memory + n * WORDS, n, 0);
	tick(fd, 0);
	for (;;) {
		struct timespec pause = { 0, 1000000 };
		tick(fd, now());
		for (int n = 0; n < per_ms && pages; n++) {
			dice ^= dice << 13; dice ^= dice >> 7; dice ^= dice << 17;
			fill(memory + dice % pages * WORDS, dice % pages, ++generation);
		}
		if (wanted) {
			int64_t bad = 0;
			wanted = 0;
			for (uint64_t n = 0; n < pages; n++) bad += wrong(memory + n * WORDS, n);
			tick(fd, -bad - 1);
		}
		nanosleep(&pause, 0);
	}
}
