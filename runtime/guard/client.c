/* Preloaded into a dumping CRIU: another process, the guardian, traces its tasks, and outlives it.
 *
 * Interposes ptrace(2), wait4(2) and waitpid(2) and has the guardian do what they ask for; see guardian.c. The guardian
 * is told where to serve by $CKPT_GUARD: two descriptors, of the memory that is shared with it and of the eventfd at
 * which it is woken. Without it, or when it isn't there, CRIU traces by itself.
 *
 * CRIU's own children stay its own: those that it waits for, and those that it traces to see what the kernel can do.
 * Free-standing but for errno, like the other libraries that are preloaded.
 */
#include "shared.h"

enum { ESRCH = 3, EINTR = 4, EIO = 5, ECHILD = 10, FUTEX_WAIT = 0 };
enum { P_ALL = 0, P_PID = 1, WNOHANG = 1, WEXITED = 4, WNOWAIT = 0x01000000, WALL = 0x40000000, SIGCHLD = 17 };

extern char **environ;

static struct shared *shared;
static int bell = -1;
static int life = -1; /* a pidfd of the guardian */
static int busy;  /* a request is under way */
static int again; /* SIGCHLD came meanwhile */
static int owner; /* the process that has the guardian; its children haven't */
static long calls, last = -1; /* for tests: how many were made, and after which to die */

static const char *variable(const char *name)
{
	char **e;
	for (e = environ; e && *e; e++) {
		int n = 0;
		while (name[n] && (*e)[n] == name[n]) n++;
		if (!name[n]) return *e + n;
	}
	return 0;
}

static int number(const char **text)
{
	int value = 0;
	for (; **text >= '0' && **text <= '9'; (*text)++) value = value * 10 + **text - '0';
	if (**text == ',') (*text)++;
	return value;
}

/* At the first request, and not when we are loaded: that may be by a script which starts CRIU. */
static void begin(void)
{
	const char *text = variable("CKPT_GUARD="), *die = variable("CKPT_TEST_DIE_AT_PTRACE=");
	long memory;
	int fd;

	if (die) last = number(&die);
	if (!text) return;
	fd = number(&text);
	bell = number(&text);
	memory = sys(MMAP, 0, sizeof *shared, 3, 1, fd, 0);
	if (memory < 0 && memory > -4096) return;
	shared = (struct shared *)memory;
	sys(FCNTL, fd, 2, 1);   /* F_SETFD, FD_CLOEXEC: hooks need none of it */
	sys(FCNTL, bell, 2, 1);
}

/* Whether the guardian has ended: then nobody traces any more. */
static int gone(void)
{
	struct { int fd; short events, happened; } watched = { life, 1, 0 };
	struct { long s, ns; } at_once = { 0, 0 };

	return sys(PPOLL, &watched, 1, &at_once, 0, 8) > 0;
}

/* Whether the guardian is there; it has ten seconds to come. */
static int there(void)
{
	struct { long s, ns; } while_ = { 0, 1000000 };
	int n;

	if (!shared) return 0;
	for (n = 0; n < 10000 && !LOAD(shared->ready); n++) sys(NANOSLEEP, &while_, 0);
	return LOAD(shared->ready) == 1 && (life = (int)sys(PIDFD_OPEN, LOAD(shared->guardian), 0)) >= 0 && !gone();
}

/* Whether PID is a child of ours by birth; -1: whether there is any. When CRIU waits for whoever comes, it has either
 * children (one that dumps each namespace) or tasks of which it awaits something. */
static int is_child(int pid)
{
	return sys(WAITID, pid < 0 ? P_ALL : P_PID, pid, 0, WEXITED | WNOHANG | WNOWAIT | WALL, 0) != -ECHILD;
}

static int guarded(void)
{
	return owner && owner == sys(GETPID);
}

static void test(int after)
{
	if (last >= 0 && owner == sys(GETPID) && 2 * calls + after == last) sys(KILL, owner, 9);
	calls += after;
}

/* Have the requests that lie ready done. PATIENT: it may take long, and signals end it. The result is that of the last,
 * or of the first that failed. */
static long ask(int patient)
{
	/* No whole seconds: CRIU's alarm comes after such, and has to interrupt, not to come in between. */
	struct { long s, ns; } limit = { patient ? 7 : 0, 700000000 };
	static int asked, lost;
	u64 one = 1;
	u32 cpu = 0;

	if (lost) {
		shared->count = 0;
		return shared->result = -ESRCH;
	}
	if (!(asked++ & 15) && !sys(GETCPU, &cpu, 0, 0)) shared->cpu = cpu;
	STORE(shared->cancel, 0);
	STORE(shared->state, ASKED);
	if (LOAD(shared->asleep)) sys(WRITE, bell, &one, 8);
	while (LOAD(shared->state) == ASKED) {
		long result;
		STORE(shared->waits, 1);
		result = sys(FUTEX, &shared->state, FUTEX_WAIT, ASKED, &limit);
		STORE(shared->waits, 0);
		if (result == -EINTR && patient && !LOAD(shared->cancel)) {
			STORE(shared->cancel, 1);
			sys(WRITE, bell, &one, 8);
		}
		if (gone()) {
			lost = 1;
			shared->result = -ESRCH;
			break;
		}
	}
	shared->count = 0;
	STORE(shared->state, IDLE);
	return shared->result;
}

/* After a request: what the handler of SIGCHLD couldn't do in between. */
static void free_again(void)
{
	busy = 0;
	if (!again) return;
	again = 0;
	sys(KILL, owner, SIGCHLD);
}

/* One more request; SIZE bytes of the buffer are for it. */
static struct request *add(int number, int pid, u64 address, u64 data, u64 size)
{
	struct request *last = shared->count ? &shared->requests[shared->count - 1] : 0;
	struct request *one = &shared->requests[shared->count];

	one->number = number;
	one->pid = pid;
	one->address = (long)address;
	one->data = (long)data;
	one->at = last ? last->at + ((last->size + 7) & ~7u) : 0;
	one->size = (u32)size;
	shared->count++;
	return one;
}

/* Have what was put off done, if there is no room for another request of SIZE bytes. */
static long make_room(u64 size)
{
	struct request *last = shared->count ? &shared->requests[shared->count - 1] : 0;

	if (!last || (shared->count < MANY - 2 && last->at + last->size + 8 + size < BUFFER)) return 0;
	return ask(0);
}

/* Whether a request may be put off until the next that may not: its result is no news. What fails then ends that. */
static int may_be_late(int request, int pid, u64 address, const char *in)
{
	static u64 written, where; /* CRIU has code of its own there; where the task is to go on */
	static int whose;
	int calls = written && where == written && whose == pid;

	switch (request) {
	case SETOPTIONS: case POKEUSER: case SETSIGMASK: return 1;
	case SETREGSET:
		if (address != 1) return 0;
		whose = pid;
		copy(&where, in + 16 * 8, 8);
		return 1;
	case POKEDATA:
		/* What puts the original back is done at once. */
		written = written == address && whose == pid ? 0 : address;
		whose = pid;
		where = 0;
		return !!written;
	case CONT: return calls; /* of a system call: CRIU waits for its end next */
	}
	return 0;
}

/* Bytes at DATA that go to the kernel (`in`) and come back (`out`); -1: a request that isn't known here. */
static int sizes(int request, u64 address, u64 *in, u64 *out)
{
	*in = *out = 0;
	switch (request) {
	case POKEDATA: case POKEUSER: case CONT: case DETACH: case SYSCALL: case SETOPTIONS: case SEIZE: case INTERRUPT:
		return 0;
	case PEEKDATA: case PEEKUSER: *out = 8; return 0;
	case GETFPREGS: *out = 512; return 0;
	case SETFPREGS: *in = 512; return 0;
	case GET_THREAD_AREA: *out = 16; return 0;
	case GETSIGINFO: *out = SIGINFO; return 0;
	case GETSIGMASK: *out = 8; return 0;
	case SETSIGMASK: *in = 8; return 0;
	case GET_RSEQ: *out = address; return 0;
	case GET_METADATA: *in = *out = address; return 0;
	case GET_FILTER: *out = 4096 * 8; return 0; /* BPF_MAXINSNS */
	default: return -1; /* no CRIU from 4.1 to 4.2.1 has it in a dump */
	}
}

static long forward(int request, int pid, u64 address, u64 data)
{
	struct part *set = (struct part *)data;
	char *from = (char *)data, *to = from;
	struct request *one;
	u64 in = 0, out = 0;
	long result;

	switch (request) {
	case GETREGSET: to = set->base; out = set->size; break;
	case SETREGSET: from = set->base; in = set->size; break;
	case PEEKSIGINFO: from = (char *)address; in = 16; out = 16 + *(u32 *)(from + 12) * SIGINFO; break;
	case ARCH_PRCTL: to = (char *)address; out = 8; break;
	default: if (sizes(request, address, &in, &out)) return -EIO;
	}
	if (in > BUFFER || out > BUFFER) return -EIO;
	if (request == GETSIGINFO && shared->fetched == (u32)pid) {
		copy(to, shared->siginfo, SIGINFO);
		return 0;
	}
	if (request == GETREGSET && address == 1 && shared->fetched == (u32)pid && out >= shared->registers_size) {
		copy(to, shared->registers, set->size = shared->registers_size);
		return 0;
	}
	if (request == SETREGSET || request == CONT || request == SYSCALL || request == DETACH) shared->fetched = 0;
	result = make_room(in > out ? in : out);
	if (result < 0) return result;
	one = add(request, pid, address, data, in > out ? in : out);
	copy(shared->buffer + one->at, from, in);
	if (may_be_late(request, pid, address, from)) return 0;
	result = ask(0);
	if (result < 0) return result;
	from = shared->buffer + one->at;
	switch (request) {
	case GETREGSET: out = set->size = one->size; break;
	case PEEKSIGINFO: from += 16; out = (u64)result * SIGINFO; break;
	case GET_FILTER: out = (u64)result * 8; break;
	}
	copy(to, from, out);
	return result;
}

/* A word of a task's memory: nobody need trace it for that. */
static int peek(int pid, void *address, long *word)
{
	struct part here = { (char *)word, 8 }, there = { address, 8 };

	if (shared->count && ask(0) < 0) return -1;
	return sys(PROCESS_VM_READV, pid, &here, 1, &there, 1, 0) == 8 ? 0 : -1;
}

__attribute__((visibility("default"))) long ptrace(int request, int pid, void *address, void *data)
{
	int peeks = request >= 1 && request <= 3;
	static int begun;
	long word, result;

	if (!begun) {
		begun = 1;
		begin();
	}
	if (request == SEIZE && !owner && !is_child(pid)) {
		owner = (int)sys(GETPID);
		if (!there()) shared = 0;
	}
	if (peeks) data = &word;
	test(0);
	if (!guarded() || !shared) {
		result = sys(PTRACE, request, pid, address, data);
	} else {
		busy = 1;
		result = request == PEEKDATA && !peek(pid, address, &word) ? 0 : forward(request, pid, (u64)address, (u64)data);
		free_again();
	}
	test(1);
	if (peeks && result >= 0) {
		*__errno_location() = 0;
		return word;
	}
	return given(result);
}

__attribute__((visibility("default"))) int wait4(int pid, int *status, int options, void *usage)
{
	struct request *one;
	long result;

	if (!guarded() || !shared || pid == 0 || pid < -1 || !LOAD(shared->traced) || is_child(pid))
		return (int)given(sys(WAIT4, pid, status, options, usage));
	if (busy) { /* in the handler of SIGCHLD, which had better come again */
		again = 1;
		return 0;
	}
	test(0);
	busy = 1;
	shared->fetched = 0;
	one = add(WAIT, pid, 0, (u64)options, 8);
	result = ask(1);
	if (result > 0 && status) *status = (int)one->data;
	free_again();
	test(1);
	return (int)given(result);
}

__attribute__((visibility("default"))) int waitpid(int pid, int *status, int options)
{
	return wait4(pid, status, options, 0);
}
