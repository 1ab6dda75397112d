/* A program whose memory changes in every way that trackers know of, one step for each line on its standard input.

   A command is one line; the answer, when it is done, is "ok ..." on standard output. Addresses are in hexadecimal.

   map KIND SIZE        map memory: anon, small (never in huge pages), shared, guard (no access), huge (transparent huge pages),
                        file; answers the address
   map-at ADDR SIZE     map over what is there
   unmap ADDR SIZE
   write ADDR SIZE SEED fill with bytes that follow from the seed
   touch ADDR           write one byte
   read ADDR            read one byte
   kernel ADDR SIZE     have the kernel write there: read(2) from a file
   free ADDR SIZE       MADV_DONTNEED
   move ADDR OLD NEW    mremap; answers the new address
   protect ADDR SIZE N  mprotect
   grow SIZE            brk; answers the old end
   stack KIB            recurse so deep, writing
   threads N ADDR SIZE  N threads write all pages at once, and end
   fork ADDR SIZE       fork a child that writes there and stays; answers its pid
   fork-write ADDR SIZE fork, then the parent writes while the child lives; answers the child's pid
   vfork-exec           start a program by vfork and exec, wait for it
   exec                 exec itself
   end-child            end the last child
   swap-out ADDR SIZE   MADV_PAGEOUT
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
#include <unistd.h>

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

static pid_t child;
static char *area;
static size_t area_size;

static void fill(char *at, size_t size, unsigned seed)
{
	for (size_t i = 0; i < size; i += 8) {
		uint64_t value = (i + 1) * 0x9e3779b97f4a7c15ull + seed;
		memcpy(at + i, &value, 8);
	}
}

static void *thread(void *number)
{
	for (size_t i = 0; i < area_size; i += 4096)
		((volatile char *)area)[i + (size_t)number]++;
	return NULL;
}

static int deep(int kib)
{
	volatile char here[1024];

	memset((char *)here, kib, sizeof here);
	return kib ? deep(kib - 1) + here[kib % 1024] : 0;
}

static void *map(const char *kind, size_t size)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS, access = PROT_READ | PROT_WRITE, fd = -1;
	char *got;

	if (!strcmp(kind, "shared"))
		flags = MAP_SHARED | MAP_ANONYMOUS;
	if (!strcmp(kind, "guard"))
		access = PROT_NONE;
	if (!strcmp(kind, "file")) {
		flags = MAP_PRIVATE;
		fd = open("/proc/self/exe", O_RDONLY);
	}
	if (!strcmp(kind, "huge")) {
		char *all = mmap(NULL, size + (2 << 20), access, flags, -1, 0);
		got = (char *)(((uintptr_t)all + (2 << 20) - 1) & ~(uintptr_t)((2 << 20) - 1));
		munmap(all, got - all);
		madvise(got, size, MADV_HUGEPAGE);
		return got;
	}
	got = mmap(NULL, size, access, flags, fd, 0);
	if (!strcmp(kind, "small"))
		madvise(got, size, MADV_NOHUGEPAGE);
	if (fd >= 0)
		close(fd);
	return got;
}

int main(int count, char **words)
{
	char line[256], name[64], kind[64];
	unsigned long a, b, c;

	(void)count;
	setvbuf(stdin, NULL, _IONBF, 0);
	setvbuf(stdout, NULL, _IOLBF, 0);
	if (count > 1)
		printf("ok\n");
	while (fgets(line, sizeof line, stdin)) {
		void *volatile result = NULL; /* vfork */
		int wrong = 0;

		a = b = c = 0;
		sscanf(line, "%63s", name);
		if (!strcmp(name, "map")) {
			sscanf(line, "%*s %63s %lx", kind, &b);
			result = map(kind, b);
			wrong = result == MAP_FAILED;
		} else {
			sscanf(line, "%*s %lx %lx %lx", &a, &b, &c);
		}
		if (!strcmp(name, "map-at"))
			wrong = mmap((void *)a, b, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)
				== MAP_FAILED;
		if (!strcmp(name, "unmap"))
			wrong = munmap((void *)a, b);
		if (!strcmp(name, "write"))
			fill((char *)a, b, c);
		if (!strcmp(name, "touch"))
			(*(volatile char *)a)++;
		if (!strcmp(name, "read"))
			result = (void *)(long)*(volatile char *)a;
		if (!strcmp(name, "kernel")) {
			int fd = open("/dev/urandom", O_RDONLY);
			wrong = read(fd, (void *)a, b) != (ssize_t)b;
			close(fd);
		}
		if (!strcmp(name, "free"))
			wrong = madvise((void *)a, b, MADV_DONTNEED);
		if (!strcmp(name, "swap-out"))
			wrong = madvise((void *)a, b, MADV_PAGEOUT);
		if (!strcmp(name, "move")) {
			result = mremap((void *)a, b, c, MREMAP_MAYMOVE);
			if (b == c) {
				/* the same size never moves by itself */
				void *place = mmap(NULL, c, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
				result = mremap((void *)a, b, c, MREMAP_MAYMOVE | MREMAP_FIXED, place);
			}
			wrong = result == MAP_FAILED;
		}
		if (!strcmp(name, "protect"))
			wrong = mprotect((void *)a, b, c);
		if (!strcmp(name, "grow"))
			result = sbrk(a);
		if (!strcmp(name, "stack"))
			deep(a);
		if (!strcmp(name, "threads")) {
			pthread_t ids[16];
			area = (char *)b;
			area_size = c;
			for (size_t n = 0; n < a; n++)
				pthread_create(&ids[n], NULL, thread, (void *)(n * 8));
			for (size_t n = 0; n < a; n++)
				pthread_join(ids[n], NULL);
		}
		if (!strcmp(name, "fork") || !strcmp(name, "fork-write")) {
			child = fork();
			if (!child) {
				if (!strcmp(name, "fork"))
					fill((char *)a, b, 77);
				for (;;)
					pause();
			}
			if (!strcmp(name, "fork-write"))
				fill((char *)a, b, 88);
			result = (void *)(long)child;
		}
		if (!strcmp(name, "vfork-exec")) {
			int status;
			pid_t other = vfork();
			if (!other) {
				execl("/bin/true", "true", NULL);
				_exit(1);
			}
			waitpid(other, &status, 0);
			wrong = status;
		}
		if (!strcmp(name, "end-child")) {
			kill(child, SIGKILL);
			waitpid(child, NULL, 0);
		}
		if (!strcmp(name, "exec"))
			execl("/proc/self/exe", words[0], "again", NULL);
		if (wrong)
			printf("failed\n");
		else
			printf("ok %lx\n", (unsigned long)result);
	}
	return 0;
}
