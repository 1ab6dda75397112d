/* Processes that share memory and write it all the while; each knows what every page of it must be.
 *
 *   sharer MIB WRITERS PAGES_PER_MS
 *
 * anonymous   MIB of MAP_SHARED | MAP_ANONYMOUS; page p is written by writer p % WRITERS
 * buffers     a memfd of a quarter of that, likewise, half of the time through its descriptor; the odd writers have
 *             mapped only its second half, and write to the other by pwrite(2)
 * brief       anonymous pages, written by children that end at once
 * growing     a memfd that becomes longer and shorter
 * sealed      a memfd against writing
 *
 * What a page must be lies in private memory, so that a page that came late or not at all is seen. SIGUSR1: everybody
 * looks at every page of his; a line "verdict N wrong W of C".
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, BRIEF = 64, GROWING = 200, SEALED = 20 };
typedef uint64_t page_t[WORDS];

static struct { volatile uint64_t asked, answered, wrong, looked; } *common;
static volatile sig_atomic_t wanted;

static void on_signal(int number) { (void)number; wanted++; }

static void fill(uint64_t *page, uint64_t number, uint64_t version)
{
	uint64_t word = number * 0x9e3779b97f4a7c15ull + version;
	for (int i = 0; i < WORDS; i++) {
		word ^= word << 13;
		word ^= word >> 7;
		word ^= word << 17;
		page[i] = word + version;
	}
}

static void look(const uint64_t *page, uint64_t number, uint64_t version)
{
	page_t expected;
	if (version) fill(expected, number, version);
	else memset(expected, 0, PAGE);
	__atomic_add_fetch(&common->looked, 1, __ATOMIC_SEQ_CST);
	if (memcmp(page, expected, PAGE)) __atomic_add_fetch(&common->wrong, 1, __ATOMIC_SEQ_CST);
}

static void *map(size_t size, int fd, off_t at)
{
	void *found = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED | (fd < 0 ? MAP_ANONYMOUS : 0), fd, at);
	if (found == MAP_FAILED) _exit(3);
	return found;
}

static uint64_t *versions(size_t count) { return mmap(0, count * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); }

static void put(int fd, uint64_t number, uint64_t version)
{
	page_t page;
	fill(page, number, version);
	if (pwrite(fd, page, PAGE, number * PAGE) != PAGE) _exit(4);
}

static void nap(void) { nanosleep(&(struct timespec){ 0, 1000000 }, 0); }

static void answer(uint64_t turn)
{
	__atomic_add_fetch(&common->answered, 1, __ATOMIC_SEQ_CST);
	while (common->asked == turn && common->answered) nap();
}

/* Writer W of COUNT. */
static void writer(uint64_t w, uint64_t count, page_t *anonymous, uint64_t pages, int fd, uint64_t others, uint64_t pace)
{
	uint64_t *mine = versions(pages), *theirs = versions(others), state = w + 1, turn = 0;
	uint64_t skipped = w % 2 ? others / 2 : 0;
	page_t *part = map((others - skipped) * PAGE, fd, skipped * PAGE), page;

	for (;;) {
		for (uint64_t n = 0; n < pace; n++) {
			state = state * 6364136223846793005ull + 1442695040888963407ull;
			/* A few pages are hot, some are never written. */
			uint64_t p = (state >> 33) % (n % 2 ? pages / 8 : pages - pages / 8) / count * count + w;
			if (p < pages) fill(anonymous[p], p, mine[p] + 1), mine[p]++;
			p = (state >> 20) % others / count * count + w;
			if (p >= others) continue;
			if (p < skipped || state >> 63) put(fd, p, theirs[p] + 1);
			else fill(part[p - skipped], p, theirs[p] + 1);
			theirs[p]++;
		}
		if (common->asked != turn) {
			turn = common->asked;
			for (uint64_t p = w; p < pages; p += count) look(anonymous[p], p, mine[p]);
			for (uint64_t p = w; p < others; p += count) {
				if (pread(fd, page, PAGE, p * PAGE) != PAGE) _exit(5);
				look(page, p, theirs[p]);
				if (p >= skipped) look(part[p - skipped], p, theirs[p]);
			}
			answer(turn);
		}
		nap();
	}
}

int main(int argc, char **argv)
{
	if (argc != 4) return 2;
	uint64_t pages = strtoull(argv[1], 0, 10) * 256, count = strtoull(argv[2], 0, 10), pace = strtoull(argv[3], 0, 10);
	common = map(PAGE, -1, 0);
	page_t *anonymous = map(pages * PAGE, -1, 0), *brief = map(BRIEF * PAGE, -1, 0), page;
	int buffers = memfd_create("buffers", MFD_ALLOW_SEALING), growing = memfd_create("growing", 0);
	int sealed = memfd_create("sealed", MFD_ALLOW_SEALING);
	uint64_t brief_version[BRIEF] = { 0 }, growing_version[GROWING] = { 0 }, length = 0, tick = 0;
	if (ftruncate(buffers, pages / 4 * PAGE) || fcntl(buffers, F_ADD_SEALS, F_SEAL_SHRINK)) return 3;
	for (int p = 0; p < SEALED; p++) put(sealed, p, 1);
	if (fcntl(sealed, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)) return 3;
	signal(SIGUSR1, on_signal);
	for (uint64_t w = 0; w < count; w++)
		if (!fork()) writer(w, count, anonymous, pages, buffers, pages / 4, pace);
	puts("ready");
	fflush(stdout);
	for (;; tick++) {
		nap();
		if (tick % 10 == 0) {
			uint64_t p = tick / 10 % BRIEF;
			pid_t child = fork();
			if (!child) { fill(brief[p], p, brief_version[p] + 1); _exit(0); }
			if (child > 0) waitpid(child, 0, 0), brief_version[p]++;
		}
		if (length == GROWING) {
			length = GROWING / 3;
			if (ftruncate(growing, length * PAGE)) return 3;
			for (int p = length; p < GROWING; p++) growing_version[p] = 0;
		}
		put(growing, length, ++growing_version[length]);
		length++;
		if (!wanted) continue;
		wanted--;
		common->wrong = common->looked = common->answered = 0;
		common->asked++;
		while (common->answered < count) nap();
		for (int p = 0; p < BRIEF; p++) look(brief[p], p, brief_version[p]);
		if (lseek(growing, 0, SEEK_END) != (off_t)(length * PAGE)) common->wrong++;
		for (uint64_t p = 0; p < length; p++) {
			if (pread(growing, page, PAGE, p * PAGE) != PAGE) return 5;
			look(page, p, growing_version[p]);
		}
		if (fcntl(sealed, F_GET_SEALS) != (F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)) common->wrong++;
		if (fcntl(buffers, F_GET_SEALS) != F_SEAL_SHRINK || fcntl(growing, F_GET_SEALS) != F_SEAL_SEAL) common->wrong++;
		for (int p = 0; p < SEALED; p++) {
			if (pread(sealed, page, PAGE, p * PAGE) != PAGE) return 5;
			look(page, p, 1);
		}
		printf("verdict %llu wrong %llu of %llu\n", (unsigned long long)common->asked,
		       (unsigned long long)common->wrong, (unsigned long long)common->looked);
		fflush(stdout);
		common->answered = 0;
	}
}
