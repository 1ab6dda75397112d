/* The container program of the migration tests: it knows its own pauses.
 *
 *   ticker [-m MIB] [-p PORT] [-w] [-f FILE]
 *
 * Each millisecond it reads CLOCK_REALTIME; a step above 10 ms is a line "END_NS GAP_NS" in /gaps, written at once.
 * A client of PORT gets each line that it sends back, with a counter that only this process's life has. -m fills
 * that much memory with a pattern, which is checked all the time (a wrong byte ends it with status 9). -w writes
 * a file in /w each millisecond, over and over. -f keeps FILE (a volume's) open.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static uint64_t now(void)
{
	struct timespec ts;
	clock_gettime(CLOCK_REALTIME, &ts);
	return ts.tv_sec * 1000000000ull + ts.tv_nsec;
}

static uint64_t pattern(uint64_t word)
{
	word ^= word >> 31;
	word *= 0x7fb5d329728ea185ull;
	word ^= word >> 27;
	return word * 0x81dadef4bc2dd44dull;
}

int main(int argc, char **argv)
{
	int option, port = 0, writing = 0;
	uint64_t words = 0;
	while ((option = getopt(argc, argv, "m:p:wf:")) != -1) {
		if (option == 'm') words = strtoull(optarg, 0, 10) << 17;
		else if (option == 'p') port = atoi(optarg);
		else if (option == 'w') writing = 1;
		else if (option == 'f') { if (open(optarg, O_RDONLY) < 0) return 3; }
		else return 2;
	}
	uint64_t *memory = 0;
	if (words) {
		memory = mmap(0, words * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		for (uint64_t i = 0; i < words; i++) memory[i] = pattern(i + 1);
	}
	int gaps = open("/gaps", O_WRONLY | O_CREAT | O_APPEND, 0644);
	if (gaps < 0) return 3;
	struct pollfd fds[17];
	int used = 0, yes = 1;
	if (port) {
		struct sockaddr_in6 any = { .sin6_family = AF_INET6, .sin6_port = htons(port) };
		fds[0].fd = socket(AF_INET6, SOCK_STREAM, 0);
		fds[0].events = POLLIN;
		setsockopt(fds[0].fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
		if (bind(fds[0].fd, (void *)&any, sizeof any) || listen(fds[0].fd, 8)) return 4;
		used = 1;
	}
	if (writing) mkdir("/w", 0755);
	puts("ready");
	fflush(stdout);
	uint64_t last = now(), at = 0, count = 0, turn = 0;
	for (;;) {
		int n = poll(fds, used, 1);
		uint64_t t = now();
		if (t - last > 10000000) dprintf(gaps, "%llu %llu\n", (unsigned long long)t, (unsigned long long)(t - last));
		last = t;
		for (int k = 0; words && k < 512; k++, at = (at + 1) % words)
			if (memory[at] != pattern(at + 1)) return 9;
		if (writing) {
			char name[32], text[64];
			snprintf(name, sizeof name, "/w/%llu", (unsigned long long)(turn % 50));
			int fd = open(name, O_WRONLY | O_CREAT | O_TRUNC, 0644);
			int size = snprintf(text, sizeof text, "%llu\n", (unsigned long long)turn++);
			if (fd < 0 || write(fd, text, size) != size) return 5;
			close(fd);
		}
		if (n <= 0) continue;
		for (int i = used - 1; i > 0; i--) {
			char buffer[4096];
			if (!(fds[i].revents & (POLLIN | POLLHUP | POLLERR))) continue;
			ssize_t got = read(fds[i].fd, buffer, sizeof buffer - 64);
			if (got <= 0) {
				close(fds[i].fd);
				fds[i] = fds[--used];
				continue;
			}
			got += sprintf(buffer + got - 1, " %llu\n", (unsigned long long)++count) - 1;
			if (write(fds[i].fd, buffer, got) != got) return 6;
		}
		if (port && fds[0].revents & POLLIN && used < 17) {
			fds[used].fd = accept(fds[0].fd, 0, 0);
			setsockopt(fds[used].fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
			fds[used].events = POLLIN;
			fds[used].revents = 0;
			used++;
		}
	}
}
