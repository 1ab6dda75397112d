/* The container's pid 1, and what gives a process a terminal.
 *
 *   init [-t[ROWS,COLUMNS]] COMMAND [ARG...]
 *
 * As pid 1 it starts COMMAND in a session of its own, passes signals on to it, reaps every orphan, and ends when COMMAND
 * ends, with its status. It is a free-standing static binary without libc, so that it runs in any root file system, maps
 * one small file, and gives CRIU next to nothing to dump. It reports on descriptor 3 (a pipe to the monitor, outside)
 * in records of two u32:
 *   {pid, STARTED}       COMMAND was executed            {0, errno}     COMMAND could not be executed
 *   {pid, wait status}   some child of ours ended: COMMAND or a job that the monitor had put into the pid namespace
 * A job is not its parent's child any more once the monitor's helper is gone, but pid 1's; so this is where its
 * exit status is to be had, wherever the container has moved to.
 *
 * -t: COMMAND gets a pty whose both ends live in the container, so that no terminal has an end outside (which CRIU
 * could not dump). A keeper copies between its master and the pipes to the monitor, and ends when the kernel hangs the
 * terminal up, at the latest when COMMAND, its session's leader, ends. The keeper is COMMAND's child, and nobody else
 * has the master open. That is for CRIU: a shell that opened /dev/tty can be dumped only if the first end of the terminal
 * that CRIU meets on its way from parents to children is the shell's own (tty_verify_ctty in its tty.c). COMMAND knows
 * nothing of this child: one that was made without an exit signal is not seen by an ordinary wait (clone(2), __WCLONE).
 *
 * Other than as pid 1 (a job with a terminal) it makes the keeper and becomes COMMAND.
 */

#define STATUS_FD 3
#define STARTED 0xffffffffu

typedef unsigned long ulong_t;
typedef unsigned int u32;

#if defined(__x86_64__)
enum { READ = 0, WRITE = 1, CLOSE = 3, RT_SIGPROCMASK = 14, IOCTL = 16, GETPID = 39, CLONE = 56, EXECVE = 59,
       WAIT4 = 61, KILL = 62, SETSID = 112, EXIT_GROUP = 231, OPENAT = 257, PPOLL = 271, SIGNALFD4 = 289, DUP3 = 292,
       PIPE2 = 293 };
static long sys(long n, long a, long b, long c, long d, long e)
{
	long r;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	__asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
	return r;
}
__asm__(".globl _start\n_start:\n xor %ebp,%ebp\n mov %rsp,%rdi\n and $-16,%rsp\n call entry\n");
#elif defined(__aarch64__)
enum { READ = 63, WRITE = 64, CLOSE = 57, RT_SIGPROCMASK = 135, IOCTL = 29, GETPID = 172, CLONE = 220, EXECVE = 221,
       WAIT4 = 260, KILL = 129, SETSID = 157, EXIT_GROUP = 94, OPENAT = 56, PPOLL = 73, SIGNALFD4 = 74, DUP3 = 24,
       PIPE2 = 59 };
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
__asm__(".globl _start\n_start:\n mov x29,#0\n mov x0,sp\n bl entry\n");
#else
#error "x86-64 or aarch64"
#endif

#define SYS(n, a, b, c, d) sys(n, (long)(a), (long)(b), (long)(c), (long)(d), 0)

enum { EINTR = 4, EAGAIN = 11, EACCES = 13, ENOENT = 2, ENOTDIR = 20 };
enum { SIG_SETMASK = 2, SIGKILL = 9, SIGCHLD = 17, SIGSTOP = 19 };
enum { POLLIN = 1, POLLOUT = 4, POLLERR = 8, POLLHUP = 16 };
enum { O_RDWR = 2, O_NOCTTY = 0400, O_NONBLOCK = 04000, O_CLOEXEC = 02000000, AT_FDCWD = -100, WNOHANG = 1 };
enum { TIOCSCTTY = 0x540E, TIOCSWINSZ = 0x5414, TIOCGPTPEER = 0x5441, TIOCSPTLCK = 0x40045431 };

struct pollfd { int fd; short events, revents; };
struct half { char data[4096]; long from, to; }; /* bytes on their way in one direction */

static int is_init;
static struct half in, out;

/* gcc may turn loops into calls of these */
void *memset(void *at, int byte, ulong_t n) { char *p = at; while (n--) *p++ = (char)byte; return at; }
void *memcpy(void *to, const void *from, ulong_t n)
{
	char *p = to; const char *q = from;
	while (n--) *p++ = *q++;
	return to;
}

static void die(int status) { for (;;) SYS(EXIT_GROUP, status, 0, 0, 0); }

static void report(u32 pid, u32 status)
{
	u32 record[2] = { pid, status };
	/* The monitor's end is non-blocking for us: a monitor that is gone must not stop the reaping. */
	if (is_init) SYS(WRITE, STATUS_FD, record, sizeof record, 0);
}

static int exit_code(int status) { return (status & 0x7f) ? 128 + (status & 0x7f) : (status >> 8) & 0xff; }

static long length(const char *s) { long n = 0; while (s[n]) n++; return n; }

static long execute(char **argv, char **envp)
{
	static char file[4096 + 256];
	const char *path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
	char **e, *s;
	long error = -ENOENT, r, n;

	for (s = argv[0]; *s; s++)
		if (*s == '/') return SYS(EXECVE, argv[0], argv, envp, 0);
	for (e = envp; *e; e++)
		if ((*e)[0] == 'P' && (*e)[1] == 'A' && (*e)[2] == 'T' && (*e)[3] == 'H' && (*e)[4] == '=') path = *e + 5;
	while (*path) {
		for (n = 0; path[n] && path[n] != ':'; n++) ;
		if (n + length(argv[0]) + 2 < (long)sizeof file) {
			memcpy(file, path, n);
			file[n] = '/';
			memcpy(file + n + 1, argv[0], length(argv[0]) + 1);
			r = SYS(EXECVE, n ? file : file + 1, argv, envp, 0);
			if (r != -ENOENT && r != -ENOTDIR) { error = r; if (r != -EACCES) break; }
		}
		path += n + (path[n] == ':');
	}
	return error;
}

/* The size is there before the command looks: "-t24,80". */
static void set_size(int master, const char *s)
{
	unsigned short size[4] = { 0, 0, 0, 0 };
	int at = 0;
	for (; *s; s++) {
		if (*s == ',') at = 1;
		else size[at] = (unsigned short)(size[at] * 10 + (*s - '0'));
	}
	if (size[0]) SYS(IOCTL, master, TIOCSWINSZ, size, 0);
}

static void say(const char *s) { SYS(WRITE, 2, s, length(s), 0); }

static int open_pty(int *slave)
{
	int zero = 0;
	long master = SYS(OPENAT, AT_FDCWD, "/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK, 0);
	if (master < 0) die(126);
	SYS(IOCTL, master, TIOCSPTLCK, &zero, 0);
	*slave = (int)SYS(IOCTL, master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC, 0);
	if (*slave < 0) die(126);
	return (int)master;
}

static void drain(int fd, struct half *half)
{
	while (half->from < half->to) {
		long n = SYS(WRITE, fd, half->data + half->from, half->to - half->from, 0);
		if (n == -EINTR) continue;
		if (n == -EAGAIN) return;
		if (n <= 0) n = half->to - half->from; /* nobody listens: drop */
		half->from += n;
	}
	half->from = half->to = 0;
}

static int fill(int fd, struct half *half) /* 0: that end is closed */
{
	long n;
	do n = SYS(READ, fd, half->data, sizeof half->data, 0); while (n == -EINTR);
	if (n == -EAGAIN) return 1;
	if (n <= 0) return 0;
	half->from = 0;
	half->to = n;
	return 1;
}

/* The keeper's whole life: copies both ways until the terminal is hung up and what was written last is passed on. */
static void keep(int master)
{
	int stdin_open = 1;

	for (;;) {
		struct pollfd fds[3] = {
			{ master >= 0 && stdin_open && !in.to ? 0 : -1, POLLIN, 0 },
			{ master, (short)((out.to ? 0 : POLLIN) | (in.to ? POLLOUT : 0)), 0 },
			{ out.to ? 1 : -1, POLLOUT, 0 },
		};
		if (SYS(PPOLL, fds, 3, 0, 0) < 0) continue;
		if (fds[0].revents && !fill(0, &in)) stdin_open = 0;
		if (fds[1].revents & (POLLIN | POLLHUP | POLLERR) && !out.to && !fill(master, &out)) {
			SYS(CLOSE, master, 0, 0, 0);
			master = -1;
		}
		if (in.to && master >= 0) drain(master, &in);
		if (out.to) drain(1, &out);
		if (master < 0 && !out.to) die(0);
	}
}

/* Pid 1's loop: ends with COMMAND, but not before its terminal's keeper. */
static void serve(int signals, long child, long keeper)
{
	char info[128];
	int status, done = -1;

	for (;;) {
		struct pollfd fd = { signals, POLLIN, 0 };
		if (SYS(PPOLL, &fd, 1, 0, 0) < 0) continue;
		if (SYS(READ, signals, info, sizeof info, 0) != sizeof info) continue;
		u32 number = *(u32 *)info;
		if (number != SIGCHLD) SYS(KILL, child, number, 0, 0);
		for (;;) {
			long pid = SYS(WAIT4, -1, &status, WNOHANG, 0);
			if (pid <= 0) break;
			report((u32)pid, (u32)status);
			if (pid == child) done = exit_code(status);
			if (pid == keeper) keeper = 0;
		}
		/* The keeper is ours to reap since COMMAND's end, unless COMMAND has done so. */
		if (done >= 0 && (!keeper || SYS(KILL, keeper, 0, 0, 0) < 0)) die(done);
	}
}

static long start_keeper(int master)
{
	long keeper = SYS(CLONE, 0, 0, 0, 0);
	if (keeper < 0) die(126);
	if (keeper == 0) {
		SYS(SETSID, 0, 0, 0, 0);
		/* what is left open could keep the terminal or the monitor's pipes from their end */
		for (int fd = 2; fd < 16; fd++)
			if (fd != master) SYS(CLOSE, fd, 0, 0, 0);
		keep(master);
	}
	SYS(CLOSE, master, 0, 0, 0);
	return keeper;
}

static void take_terminal(int slave)
{
	SYS(IOCTL, slave, TIOCSCTTY, 0, 0);
	SYS(DUP3, slave, 0, 0, 0);
	SYS(DUP3, slave, 1, 0, 0);
	SYS(DUP3, slave, 2, 0, 0);
}

/* A job that has a terminal. */
static void become_job(char **argv, char **envp, int master, int slave)
{
	ulong_t none = 0;
	long error;

	start_keeper(master);
	take_terminal(slave);
	SYS(RT_SIGPROCMASK, SIG_SETMASK, &none, 0, 8);
	error = execute(argv, envp);
	say("ckpt: cannot execute ");
	say(argv[0]);
	say(error == -ENOENT || error == -ENOTDIR ? ": not found\n" : ": not executable\n");
	die(error == -ENOENT || error == -ENOTDIR ? 127 : 126);
}

__attribute__((used)) void entry(long *stack)
{
	long argc = stack[0];
	char **argv = (char **)(stack + 1), **envp = argv + argc + 1;
	const char *size = "";
	ulong_t all = ~0ul, none = 0;
	int terminal = 0, master = -1, slave = -1, started[2], signals;
	long child, keeper = 0, error = 0;

	argv++;
	argc--;
	if (argc > 0 && argv[0][0] == '-' && argv[0][1] == 't') { terminal = 1; size = argv[0] + 2; argv++; argc--; }
	if (argc < 1) die(125);
	is_init = SYS(GETPID, 0, 0, 0, 0) == 1;

	SYS(RT_SIGPROCMASK, SIG_SETMASK, &all, 0, 8);
	if (terminal) { master = open_pty(&slave); set_size(master, size); }
	if (!is_init) become_job(argv, envp, master, slave);
	signals = (int)SYS(SIGNALFD4, -1, &all, 8, O_CLOEXEC | O_NONBLOCK);
	if (SYS(PIPE2, started, O_CLOEXEC, 0, 0) < 0) die(126);

	child = SYS(CLONE, SIGCHLD, 0, 0, 0);
	if (child < 0) die(126);
	if (child == 0) {
		SYS(SETSID, 0, 0, 0, 0);
		if (terminal) {
			keeper = start_keeper(master);
			SYS(WRITE, started[1], &keeper, sizeof keeper, 0);
			take_terminal(slave);
		}
		SYS(CLOSE, STATUS_FD, 0, 0, 0);
		SYS(RT_SIGPROCMASK, SIG_SETMASK, &none, 0, 8);
		error = execute(argv, envp);
		SYS(WRITE, started[1], &error, sizeof error, 0);
		die(error == -ENOENT || error == -ENOTDIR ? 127 : 126);
	}
	SYS(CLOSE, started[1], 0, 0, 0);
	if (terminal) {
		SYS(CLOSE, master, 0, 0, 0);
		SYS(CLOSE, slave, 0, 0, 0);
		SYS(READ, started[0], &keeper, sizeof keeper, 0);
	}
	if (SYS(READ, started[0], &error, sizeof error, 0) == sizeof error) report(0, (u32)-error);
	else report((u32)child, STARTED);
	SYS(CLOSE, started[0], 0, 0, 0);
	serve(signals, child, keeper);
}
