/* Preloaded into CRIU: it does not see the pages that we carry ourselves.
 *
 * Interposes ioctl(2) and pread(2) of the C library. A PAGEMAP_SCAN for content is done in pieces, around the ranges
 * that are hidden for PID; where the kernel has no such call (before 6.7) CRIU reads the entries, and those of hidden
 * pages say that there is none. Everything else goes to the kernel as it is. What to hide is asked once per process,
 * over the socket $CKPT_VEIL_FD: we send its id (u32) and get a count (u32, all ones: refused) and pairs of u64.
 *
 * Interposes lseek(2) as well: memory that is shared (a memfd, or anonymous) is a file to CRIU, which asks where its data
 * begins (SEEK_DATA). Of a file that we carry there is none. That is asked over the same socket: all ones (u32) in place
 * of a process id, then device and inode (u64 each); the answer is 1 (hidden), 0, or all ones (refused).
 *
 * Not a seccomp filter, which could do the same from outside: a tracer under a filter may not suspend the filters of
 * those that it traces (PTRACE_O_SUSPEND_SECCOMP), and CRIU must, since containers have one.
 *
 * When nobody answers, the call fails with EIO, the dump with it, and the source resumes. Free-standing but for errno:
 * it is loaded into CRIU's own C library, whichever that is, and into the small programs that CRIU starts.
 */
#include "../freestanding.h"

#define PAGEMAP_SCAN 0xc0606610ul
#define CONTENT ((1ul << 3) | (1ul << 4)) /* PAGE_IS_PRESENT, PAGE_IS_SWAPPED */
#define GUARD (1ul << 8)
#define ENTRY_GUARD (1ul << 58) /* of an entry: a guard region, which CRIU restores itself */
#define PAGE 4096
#define EIO 5
#define EINTR 4
#define ENXIO 6
#define SEEK_DATA 3
#define AN_INODE 0xffffffffu
#define REFUSED 0xffffffffu

struct scan { u64 size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, mask, anyof, returned; };
struct region { u64 start, end, categories; };
struct hidden { u32 pid, count; u64 (*pairs)[2]; };

extern char **environ;

enum { MAX_TASKS = 4096 };
static struct hidden tasks[MAX_TASKS];
static u32 known;
static int control = -2; /* -1: there is none */

static int control_fd(void)
{
	const char *name = "CKPT_VEIL_FD=";
	char **e;
	if (control != -2) return control;
	control = -1;
	for (e = environ; e && *e; e++) {
		int n = 0, value = 0;
		while (name[n] && (*e)[n] == name[n]) n++;
		if (name[n]) continue;
		for (; (*e)[n] >= '0' && (*e)[n] <= '9'; n++) value = value * 10 + (*e)[n] - '0';
		control = value;
	}
	return control;
}

static int transfer(long number, void *data, u64 size)
{
	char *at = data;
	while (size) {
		long n = sys(number, control, at, size);
		if (n == -EINTR) continue;
		if (n <= 0) return -1;
		at += n;
		size -= (u64)n;
	}
	return 0;
}

/* What FD is a link to, cut off at SIZE - 1 bytes; -1: that can't be known. */
static int link_of(int fd, char *path, u64 size)
{
	char link[32] = "/proc/self/fd/", digits[12];
	int at = 14, n = 0, number = fd;
	long length;

	if (fd < 0) return -1;
	do digits[n++] = (char)('0' + number % 10); while (number /= 10);
	while (n) link[at++] = digits[--n];
	link[at] = 0;
	length = sys(READLINKAT, -100, link, path, size - 1);
	if (length <= 0) return -1;
	path[length] = 0;
	return 0;
}

/* The process whose page map FD is; 0: FD is something else. */
static u32 whose(int fd)
{
	char path[64], *at = path + sizeof "/proc/" - 1;
	u32 pid = 0;

	if (link_of(fd, path, sizeof path) || !begins(path, "/proc/")) return 0;
	for (; *at >= '0' && *at <= '9'; at++) pid = pid * 10 + (u32)(*at - '0');
	return begins(at, "/pagemap") && !at[sizeof "/pagemap" - 1] ? pid : 0;
}

/* What is hidden of PID; 0: that can't be known. */
static struct hidden *hidden_of(u32 pid)
{
	struct hidden *task;
	u32 n, count;
	long memory;

	for (n = 0; n < known; n++) if (tasks[n].pid == pid) return &tasks[n];
	if (known == MAX_TASKS || transfer(WRITE, &pid, sizeof pid) || transfer(READ, &count, sizeof count)) return 0;
	if (count == REFUSED) return 0;
	task = &tasks[known];
	task->pid = pid;
	task->count = count;
	if (count) {
		memory = sys(MMAP, 0, (long)((u64)count * 16), 3, 0x22, -1, 0);
		if (memory < 0 && memory > -4096) return 0;
		task->pairs = (u64(*)[2])memory;
		if (transfer(READ, task->pairs, (u64)count * 16)) return 0;
	}
	known++;
	return task;
}

/* Whether FD is shared memory that is hidden: 1, 0, or -1 when that can't be known. CRIU comes back to a file once for
 * each piece of it, to one after the other. */
static int is_hidden(int fd)
{
	static u64 device, inode;
	static u32 answer;
	struct status status;
	struct { u32 what; u64 device, inode; } __attribute__((packed)) question = { AN_INODE, 0, 0 };
	char path[16];

	if (link_of(fd, path, sizeof path) || !(begins(path, "/memfd:") || begins(path, "/dev/zero"))) return 0;
	if (sys(FSTAT, fd, &status)) return -1;
	if (!inode || status.device != device || status.inode != inode) {
		question.device = device = status.device;
		question.inode = inode = status.inode;
		if (transfer(WRITE, &question, sizeof question) || transfer(READ, &answer, sizeof answer)) answer = REFUSED;
	}
	return answer == REFUSED ? -1 : (int)answer;
}

/* The scan, around what is hidden; the kernel's own result: regions found, or an error. */
static long scan_around(int fd, struct scan *asked, struct hidden *task)
{
	u64 at = asked->start, found = 0, pages = 0;
	u32 n = 0;

	while (at < asked->end) {
		struct scan piece = *asked;
		u64 until = asked->end, next = asked->end, i;
		long result;

		while (n < task->count && task->pairs[n][1] <= at) n++;
		if (n < task->count && task->pairs[n][0] < asked->end) {
			until = task->pairs[n][0] > at ? task->pairs[n][0] : at;
			next = task->pairs[n][1] < asked->end ? task->pairs[n][1] : asked->end;
		}
		if (until > at) {
			if (asked->vec_len && found == asked->vec_len) break;
			if (asked->max_pages && pages >= asked->max_pages) break;
			piece.start = at;
			piece.end = until;
			piece.walk_end = 0;
			if (asked->vec_len) {
				piece.vec += found * sizeof(struct region);
				piece.vec_len -= found;
			}
			if (asked->max_pages) piece.max_pages -= pages;
			result = sys(IOCTL, fd, PAGEMAP_SCAN, &piece);
			if (result < 0) return result;
			for (i = 0; i < (u64)result && asked->vec_len; i++) {
				struct region *one = (struct region *)asked->vec + found + i;
				pages += (one->end - one->start) / PAGE;
			}
			found += (u64)result;
			if (piece.walk_end < until) {
				at = piece.walk_end;
				break;
			}
		}
		at = next;
	}
	asked->walk_end = at;
	return (long)found;
}

__attribute__((visibility("default"))) int ioctl(int fd, unsigned long request, void *argument)
{
	struct scan *asked = argument;
	struct hidden *task;
	long result;
	u32 pid;

	if (request == PAGEMAP_SCAN && control_fd() >= 0 && (pid = whose(fd)) && asked->size == sizeof *asked
	    && (asked->mask | asked->anyof) & CONTENT && !(asked->mask & GUARD)) {
		task = hidden_of(pid);
		result = !task ? -EIO : task->count ? scan_around(fd, asked, task)
						    : sys(IOCTL, fd, request, argument);
	} else {
		result = sys(IOCTL, fd, request, argument);
	}
	return (int)given(result);
}

__attribute__((visibility("default"))) long lseek64(int fd, long offset, int whence)
{
	int hidden = whence == SEEK_DATA && control_fd() >= 0 ? is_hidden(fd) : 0;

	return given(hidden < 0 ? -EIO : hidden ? -ENXIO : sys(LSEEK, fd, offset, whence));
}

__attribute__((visibility("default"), alias("lseek64"))) long lseek(int fd, long offset, int whence);

/* Entries that were read, SIZE bytes of them at OFFSET, without what is hidden. */
static void blank(char *entries, u64 size, u64 offset, struct hidden *task)
{
	u64 first = offset / 8, count = size / 8, low, high, at;
	u64 *entry = (u64 *)entries;
	u32 n;

	for (n = 0; n < task->count; n++) {
		low = task->pairs[n][0] / PAGE;
		high = task->pairs[n][1] / PAGE;
		if (high <= first) continue;
		if (low >= first + count) break;
		for (at = low > first ? low : first; at < high && at < first + count; at++) entry[at - first] &= ENTRY_GUARD;
	}
}

/* off_t has 64 bits on both processors. */
static long read_at(int fd, void *data, u64 size, long offset)
{
	long result = sys(PREAD, fd, data, size, offset);
	struct hidden *task;
	u32 pid;

	if (result > 0 && control_fd() >= 0 && (pid = whose(fd))) {
		task = hidden_of(pid);
		if (!task || (offset | result) % 8)
			result = -EIO;
		else
			blank(data, (u64)result, (u64)offset, task);
	}
	return given(result);
}

__attribute__((visibility("default"))) long pread64(int fd, void *data, u64 size, long offset)
{
	return read_at(fd, data, size, offset);
}

__attribute__((visibility("default"), alias("pread64"))) long pread(int fd, void *data, u64 size, long offset);

/* What a CRIU that was built with _FORTIFY_SOURCE calls; the room was looked at by the compiler, or is here. */
__attribute__((visibility("default"))) long __pread64_chk(int fd, void *data, u64 size, long offset, u64 room)
{
	if (size > room) __builtin_trap();
	return read_at(fd, data, size, offset);
}
