/* Preloaded into CRIU: its conversations with netfilter don't hold up the frozen window.
 *
 * An empty table of connections is not walked. CRIU asks the kernel for the table of the container's network namespace,
 * twice (connections, expectations). The table is one for all namespaces, so the kernel goes through every bucket of it
 * for each: 262144 of them, 5 to 25 ms. How many entries the namespace has is in a file. If it's none, the question is
 * replaced by one that means nothing (NLMSG_NOOP), whose acknowledgement is for CRIU the end of an empty answer.
 *
 * A socket over which a table was deleted isn't closed. CRIU unlocks the network by deleting a table, just before the
 * tasks resume. That is done at once, but what was deleted is freed after an RCU grace period, and the close of the socket
 * waits for that: 13 to 17 ms. It is closed when CRIU ends, which is soon.
 *
 * Interposes sendmsg(2) and close(2); free-standing but for errno, like runtime/veil/preload.c.
 */
typedef unsigned long u64;
typedef unsigned int u32;
typedef unsigned short u16;

struct part { char *base; u64 size; };
struct message { u16 *name; u32 name_size; struct part *parts; u64 count; void *control; u64 control_size; int flags; };
struct header { u32 size; u16 type, flags; u32 number, port; };

enum {
	AF_NETLINK = 16, SOL_SOCKET = 1, SO_PROTOCOL = 38, NETLINK_NETFILTER = 12,
	SO_DOMAIN = 39, DELETE_TABLE = 10 << 8 | 2, CTNETLINK = 1, CTNETLINK_EXP = 2, GET = 1, REQUEST = 1, ACK = 4, DUMP = 0x300, NOOP = 1,
};

#if defined(__x86_64__)
enum { READ = 0, CLOSE = 3, SENDMSG = 46, GETSOCKOPT = 55, OPENAT = 257 };
static long sys(long n, long a, long b, long c, long d, long e)
{
	long r;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	__asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8) : "rcx", "r11", "memory");
	return r;
}
#elif defined(__aarch64__)
enum { READ = 63, CLOSE = 57, SENDMSG = 211, GETSOCKOPT = 209, OPENAT = 56 };
static long sys(long n, long a, long b, long c, long d, long e)
{
	register long x8 __asm__("x8") = n;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
	return x0;
}
#else
#error "x86-64 or aarch64"
#endif

extern int *__errno_location(void);

/* The result of a system call as the C library gives it. */
static long given(long result)
{
	if (result >= 0) return result;
	*__errno_location() = (int)-result;
	return -1;
}

static int option(int fd, int name)
{
	int value = -1, size = sizeof value;
	return sys(GETSOCKOPT, fd, SOL_SOCKET, name, (long)&value, (long)&size) ? -1 : value;
}

static int is_netfilter(int fd)
{
	return option(fd, SO_DOMAIN) == AF_NETLINK && option(fd, SO_PROTOCOL) == NETLINK_NETFILTER;
}

/* Whether MESSAGE deletes a table of nf_tables, in a batch with other messages. */
static int deletes(const struct message *message)
{
	u64 i, at;

	for (i = 0; i < message->count; i++) {
		for (at = 0; at + sizeof(struct header) <= message->parts[i].size;) {
			struct header *header = (struct header *)(message->parts[i].base + at);
			if (header->type == DELETE_TABLE) return 1;
			if (header->size < sizeof *header) break;
			at += (header->size + 3) & ~3u;
		}
	}
	return 0;
}

static int keep = -1; /* the socket that is not to be closed */

/* The header of a question for the whole table; 0: MESSAGE is something else. */
static struct header *question(int fd, const struct message *message)
{
	struct header *header;

	if (!message->name || message->name_size < 2 || message->name[0] != AF_NETLINK) return 0;
	if (message->count != 1 || message->parts[0].size < sizeof *header) return 0;
	header = (struct header *)message->parts[0].base;
	if (header->type != (CTNETLINK << 8 | GET) && header->type != (CTNETLINK_EXP << 8 | GET)) return 0;
	if ((header->flags & DUMP) != DUMP) return 0;
	return is_netfilter(fd) ? header : 0;
}

/* Whether the network namespace that we are in tracks nothing. */
static int nothing_tracked(void)
{
	char text[4];
	long fd = sys(OPENAT, -100, (long)"/proc/sys/net/netfilter/nf_conntrack_count", 0, 0, 0), size;

	if (fd < 0) return 0;
	size = sys(READ, fd, (long)text, sizeof text, 0, 0);
	sys(CLOSE, fd, 0, 0, 0, 0);
	return size == 2 && text[0] == '0' && text[1] == '\n';
}

__attribute__((visibility("default"))) long sendmsg(int fd, const struct message *message, int flags)
{
	struct header *header = question(fd, message);

	if (header && nothing_tracked()) {
		header->type = NOOP;
		header->flags = REQUEST | ACK;
	}
	if (is_netfilter(fd) && deletes(message)) keep = fd;
	return given(sys(SENDMSG, fd, (long)message, flags, 0, 0));
}

__attribute__((visibility("default"))) int close(int fd)
{
	if (fd >= 0 && fd == keep) {
		keep = -1;
		return 0;
	}
	return (int)given(sys(CLOSE, fd, 0, 0, 0, 0));
}
