/* Preloaded into a restoring CRIU: shared memory that is here already takes the place of what CRIU makes for it.
 *
 * For each memfd, and for anonymous shared memory likewise, one of CRIU's processes
 *
 *   memfd_create()                      noted: this is the newest
 *   ftruncate(), mmap()
 *   asks for pagemap-shmem-N.img        seen in writev(2): this socket's next answer may bring a descriptor
 *   reads the answer                    it did: it is put over the newest, in size as that
 *
 * and goes on with what is under that number now: owner, mode, its own mappings, seals. Its image of the content is
 * empty. Who sent the descriptor must look whether the restored tasks have it: this may not be loaded at all.
 *
 * Free-standing but for errno, like preload.c.
 */
#include "../freestanding.h"

struct part { const char *base; u64 size; };
struct message { void *name; u32 name_size; struct part *parts; u64 count; void *control; u64 control_size; int flags; };
struct control { u64 size; int level, kind; int fds[8]; };

#define IMAGE "pagemap-shmem-"
#define EIO 5
enum { SOL_SOCKET = 1, SCM_RIGHTS = 1, F_GETFD = 1, CLOEXEC = 02000000, CMSG_CLOEXEC = 0x40000000, HEAD = 16 };

static int newest = -1; /* the memfd that this process made last, until its content was asked for */
static int asked = -1;  /* the socket whose next answer is about that content */

/* A request of CRIU's streaming protocol for the content of shared memory: its length, then a message whose first field
 * is the name. */
static int is_request(const struct part *parts, int count)
{
	return count == 2 && parts[0].size == 4 && parts[1].size >= sizeof IMAGE + 2 && parts[1].base[0] == 0x0a
	       && begins(parts[1].base + 2, IMAGE);
}

/* FD, which is closed, in place of what CRIU has just made. */
static int take_place(int fd)
{
	struct status made, ready;
	long flags = newest < 0 ? -1 : sys(FCNTL, newest, F_GETFD);
	int failed = flags < 0 || sys(FSTAT, newest, &made) || sys(FSTAT, fd, &ready)
		     || made.device != ready.device || sys(FTRUNCATE, fd, made.size)
		     || sys(DUP3, fd, newest, flags & 1 ? CLOEXEC : 0) < 0;

	sys(CLOSE, fd);
	return failed;
}

/* The beginning of the answer, and the descriptor that may come with it. */
static long receive(int fd, void *data, u64 size)
{
	struct part part = { data, size };
	struct control control = { 0 };
	struct message message = { 0, 0, &part, 1, &control, sizeof control, 0 };
	long result = sys(RECVMSG, fd, &message, CMSG_CLOEXEC);

	if (result > 0 && message.control_size > HEAD && control.level == SOL_SOCKET && control.kind == SCM_RIGHTS
	    && take_place(control.fds[0]))
		return -EIO;
	return result;
}

__attribute__((visibility("default"))) int memfd_create(const char *name, u32 flags)
{
	long result = sys(MEMFD_CREATE, name, flags);
	if (result >= 0) newest = (int)result;
	return (int)given(result);
}

__attribute__((visibility("default"))) long writev(int fd, const struct part *parts, int count)
{
	long result = sys(WRITEV, fd, parts, count);
	if (result > 0 && is_request(parts, count)) asked = fd;
	return given(result);
}

__attribute__((visibility("default"))) long read(int fd, void *data, u64 size)
{
	long result;

	if (fd < 0 || fd != asked) return given(sys(READ, fd, data, size));
	asked = -1;
	result = receive(fd, data, size);
	newest = -1;
	return given(result);
}
