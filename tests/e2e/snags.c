/* What a container's process can be in the way of a dump, one by name:  snags NAME [ARGUMENT...]
 *
 * Each prints "ready" once it is as it says, then counts up, a number a line, 50 a second: who reads
 * that sees that it runs, and that it never stood still for good.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static void need(long result, const char *what)
{
	if (result < 0) {
		fprintf(stderr, "snags: %s: %s\n", what, strerror(errno));
		exit(1);
	}
}

static void io_uring(void)
{
	char parameters[256] = {0};
	need(syscall(SYS_io_uring_setup, 4, parameters), "io_uring_setup");
}

/* An open file of the path given; with a size it is made that large. */
static int hold(const char *path, const char *size)
{
	static char block[1 << 20];
	int fd = open(path, O_RDWR | O_NOCTTY | (size ? O_CREAT | O_TRUNC : 0), 0644);
	long left = size ? atol(size) : 0;
	need(fd, path);
	memset(block, 'x', sizeof block);
	while (left > 0) {
		long step = left < (long)sizeof block ? left : (long)sizeof block;
		need(write(fd, block, step), path);
		left -= step;
	}
	return fd;
}

static void ghost(const char *path, const char *size)
{
	hold(path, size);
	need(unlink(path), path);
}

static int unix_client(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	strncpy(address.sun_path, path, sizeof address.sun_path - 1);
	need(connect(fd, (struct sockaddr *)&address, sizeof address), path);
	return fd;
}

/* Takes a descriptor from whoever listens at the path, and lets go of the connection. */
static void receive(const char *path)
{
	char byte, space[CMSG_SPACE(sizeof(int))];
	struct iovec data = {&byte, 1};
	struct msghdr message = {
		.msg_iov = &data, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
	int connection = unix_client(path);
	need(recvmsg(connection, &message, 0), "recvmsg");
	if (CMSG_FIRSTHDR(&message) == NULL)
		need(-1, "no descriptor came");
	close(connection);
}

/* Serves one connection at a time: sends back what comes. */
static int listening(int port)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
	int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	need(bind(fd, (struct sockaddr *)&address, sizeof address), "bind");
	need(listen(fd, 5), "listen");
	return fd;
}

static void echo(int server)
{
	char data[4096];
	for (;;) {
		ssize_t count;
		int fd = accept(server, NULL, NULL);
		if (fd < 0)
			continue;
		while ((count = read(fd, data, sizeof data)) > 0)
			if (write(fd, data, count) != count)
				break;
		close(fd);
	}
}

static void memory(const char *size)
{
	size_t count = atol(size);
	unsigned *words = mmap(NULL, count, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	unsigned value = 12345;
	if (words == MAP_FAILED)
		need(-1, "mmap");
	for (size_t i = 0; i < count / sizeof *words; i++)
		words[i] = value = value * 1664525 + 1013904223;
}

int main(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : "";
	if (!strcmp(name, "io_uring"))
		io_uring();
	else if (!strcmp(name, "hold"))
		hold(argv[2], argv[3]);
	else if (!strcmp(name, "ghost"))
		ghost(argv[2], argv[3]);
	else if (!strcmp(name, "unix"))
		unix_client(argv[2]);
	else if (!strcmp(name, "receive"))
		receive(argv[2]);
	else if (!strcmp(name, "memory"))
		memory(argv[2]);
	else if (!strcmp(name, "echo")) {
		int server = listening(atoi(argv[2]));
		if (fork() == 0)
			echo(server);
	} else if (!strcmp(name, "vsock"))
		need(socket(AF_VSOCK, SOCK_STREAM, 0), "vsock");
	else if (strcmp(name, "count")) {
		fprintf(stderr, "snags: what is %s?\n", name);
		return 2;
	}
	puts("ready");
	for (long number = 0;; number++) {
		struct timespec pause = {0, 20 * 1000 * 1000};
		printf("%ld\n", number);
		fflush(stdout);
		nanosleep(&pause, NULL);
	}
}
