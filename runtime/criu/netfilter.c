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
#include "../freestanding.h"

typedef unsigned short u16;

struct part { char *base; u64 size; };
struct message { u16 *name; u32 name_size; struct part *parts; u64 count; void *control; u64 control_size; int flags; };
struct header { u32 size; u16 type, flags; u32 number, port; };

enum {
	AF_NETLINK = 16, SOL_SOCKET = 1, SO_PROTOCOL = 38, NETLINK_NETFILTER = 12,
	SO_DOMAIN = 39, DELETE_TABLE = 10 << 8 | 2, CTNETLINK = 1, CTNETLINK_EXP = 2, GET = 1, REQUEST = 1, ACK = 4, DUMP = 0x300, NOOP = 1,
};

static int option(int fd, int name)
{
	int value = -1, size = sizeof value;
	return sys(GETSOCKOPT, fd, SOL_SOCKET, name, &value, &size) ? -1 : value;
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
	long fd = sys(OPENAT, -100, "/proc/sys/net/netfilter/nf_conntrack_count"), size;

	if (fd < 0) return 0;
	size = sys(READ, fd, text, sizeof text);
	sys(CLOSE, fd);
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
	return given(sys(SENDMSG, fd, message, flags));
}

__attribute__((visibility("default"))) int close(int fd)
{
	if (fd >= 0 && fd == keep) {
		keep = -1;
		return 0;
	}
	return (int)given(sys(CLOSE, fd));
}
