/* Memory that isn't anonymous: a private mapping of a file, and a System V segment. It knows what every page must be.
 *
 *   keeper FILE_MIB SYSTEM_V_MIB PAGES_PER_MS RUN
 *
 * Of both every other RUN pages are written, the rest stay as they were. Of the mapping so many pages are written again
 * each millisecond, some with zeros, and some of those given back, whereupon they are the file's. SIGUSR1: it looks at
 * every page, and says "verdict N wrong W of C".
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8 };
typedef uint64_t page_t[WORDS];

static volatile sig_atomic_t wanted;

static void on_signal(int number) { (void)number; wanted++; }

/* VERSION 0 is the file's. */
static void fill(uint64_t *page, uint64_t number, uint64_t version)
{
	if (version && number % 16 == 3) {
		memset(page, 0, PAGE);
		return;
	}
	uint64_t word = (number + 1) * 0x9e3779b97f4a7c15ull + version;
	for (int i = 0; i < WORDS; i++) {
		word ^= word << 13;
		word ^= word >> 7;
		word ^= word << 17;
		page[i] = word + version;
	}
}

static int differs(const uint64_t *page, uint64_t number, uint64_t version)
{
	page_t expected;
	fill(expected, number, version);
	return memcmp(page, expected, PAGE) != 0;
}

int main(int argc, char **argv)
{
	if (argc != 5) return 2;
	uint64_t pages = strtoull(argv[1], 0, 10) * 256, others = strtoull(argv[2], 0, 10) * 256;
	uint64_t pace = strtoull(argv[3], 0, 10), run = strtoull(argv[4], 0, 10), state = 1, turn = 0;
	uint32_t *versions = calloc(pages + 1, sizeof *versions);
	int fd = open("/data", O_RDWR | O_CREAT | O_TRUNC, 0644);
	page_t page, *mine = 0, *segment = 0;

	for (uint64_t p = 0; p < pages; p++) {
		fill(page, p, 0);
		if (pwrite(fd, page, PAGE, p * PAGE) != PAGE) return 3;
	}
	if (pages && (mine = mmap(0, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0)) == MAP_FAILED) return 4;
	if (others) {
		int id = shmget(IPC_PRIVATE, others * PAGE, IPC_CREAT | 0600);
		if (id < 0 || (segment = shmat(id, 0, 0)) == (void *)-1) return 5;
	}
	for (uint64_t p = 0; p < pages; p++) if (p / run % 2) fill(mine[p], p, versions[p] = 1);
	for (uint64_t p = 0; p < others; p++) if (p / run % 2) fill(segment[p], p, 1);
	signal(SIGUSR1, on_signal);
	puts("ready");
	fflush(stdout);
	for (;;) {
		nanosleep(&(struct timespec){ 0, 1000000 }, 0);
		for (uint64_t n = 0; n < pace && pages; n++) {
			state = state * 6364136223846793005ull + 1442695040888963407ull;
			uint64_t p = (state >> 33) % pages;
			if (!(p / run % 2)) continue;
			if (n % 4 == 3) versions[p] = 0, madvise(mine[p], PAGE, MADV_DONTNEED);
			else fill(mine[p], p, ++versions[p]);
		}
		if (turn == (uint64_t)wanted) continue;
		uint64_t wrong = 0, looked = 0;
		for (uint64_t p = 0; p < pages; p++, looked++) wrong += differs(mine[p], p, versions[p]);
		for (uint64_t p = 0; p < others; p++) if (p / run % 2) looked++, wrong += differs(segment[p], p, 1);
		printf("verdict %llu wrong %llu of %llu\n", (unsigned long long)++turn, (unsigned long long)wrong,
		       (unsigned long long)looked);
		fflush(stdout);
	}
}
