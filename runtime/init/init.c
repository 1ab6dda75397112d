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

#include "../freestanding.h"

START;

#define STATUS_FD 3
#define STARTED 0xffffffffu

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
void *memset(void *at, int byte, u64 n) { char *p = at; while (n--) *p++ = (char)byte; return at; }
void *memcpy(void *to, const void *from, u64 n)
{
	char *p = to; const char *q = from;
	while (n--) *p++ = *q++;
	return to;
}

static void die(int status) { for (;;) sys(EXIT_GROUP, status); }

static void report(u32 pid, u32 status)
{
	u32 record[2] = { pid, status };
	/* The monitor's end is non-blocking for us: a monitor that is gone must not stop the reaping. */
	if (is_init) sys(WRITE, STATUS_FD, record, sizeof record);
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
		if (*s == '/') return sys(EXECVE, argv[0], argv, envp);
	for (e = envp; *e; e++)
		if ((*e)[0] == 'P' && (*e)[1] == 'A' && (*e)[2] == 'T' && (*e)[3] == 'H' && (*e)[4] == '=') path = *e + 5;
	while (*path) {
		for (n = 0; path[n] && path[n] != ':'; n++) ;
		if (n + length(argv[0]) + 2 < (long)sizeof file) {
			memcpy(file, path, n);
			file[n] = '/';
			memcpy(file + n + 1, argv[0], length(argv[0]) + 1);
			r = sys(EXECVE, n ? file : file + 1, argv, envp);
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
	if (size[0]) sys(IOCTL, master, TIOCSWINSZ, size);
}

static void say(const char *s) { sys(WRITE, 2, s, length(s)); }

static int open_pty(int *slave)
{
	int zero = 0;
	long master = sys(OPENAT, AT_FDCWD, "/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
	if (master < 0) die(126);
	sys(IOCTL, master, TIOCSPTLCK, &zero);
	*slave = (int)sys(IOCTL, master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (*slave < 0) die(126);
	return (int)master;
}

static void drain(int fd, struct half *half)
{
	while (half->from < half->to) {
		long n = sys(WRITE, fd, half->data + half->from, half->to - half->from);
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
	do n = sys(READ, fd, half->data, sizeof half->data); while (n == -EINTR);
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
		if (sys(PPOLL, fds, 3) < 0) continue;
		if (fds[0].revents && !fill(0, &in)) stdin_open = 0;
		if (fds[1].revents & (POLLIN | POLLHUP | POLLERR) && !out.to && !fill(master, &out)) {
			sys(CLOSE, master);
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
		if (sys(PPOLL, &fd, 1) < 0) continue;
		if (sys(READ, signals, info, sizeof info) != sizeof info) continue;
		u32 number = *(u32 *)info;
		if (number != SIGCHLD) sys(KILL, child, number);
		for (;;) {
			long pid = sys(WAIT4, -1, &status, WNOHANG);
			if (pid <= 0) break;
			report((u32)pid, (u32)status);
			if (pid == child) done = exit_code(status);
			if (pid == keeper) keeper = 0;
		}
		/* The keeper is ours to reap since COMMAND's end, unless COMMAND has done so. */
		if (done >= 0 && (!keeper || sys(KILL, keeper, 0) < 0)) die(done);
	}
}

static long start_keeper(int master)
{
	long keeper = sys(CLONE, 0);
	if (keeper < 0) die(126);
	if (keeper == 0) {
		sys(SETSID);
		/* what is left open could keep the terminal or the monitor's pipes from their end */
		for (int fd = 2; fd < 16; fd++)
			if (fd != master) sys(CLOSE, fd);
		keep(master);
	}
	sys(CLOSE, master);
	return keeper;
}

static void take_terminal(int slave)
{
	sys(IOCTL, slave, TIOCSCTTY);
	sys(DUP3, slave, 0);
	sys(DUP3, slave, 1);
	sys(DUP3, slave, 2);
}

/* A job that has a terminal. */
static void become_job(char **argv, char **envp, int master, int slave)
{
	u64 none = 0;
	long error;

	start_keeper(master);
	take_terminal(slave);
	sys(RT_SIGPROCMASK, SIG_SETMASK, &none, 0, 8);
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
	u64 all = ~0ul, none = 0;
	int terminal = 0, master = -1, slave = -1, started[2], signals;
	long child, keeper = 0, error = 0;

	argv++;
	argc--;
	if (argc > 0 && argv[0][0] == '-' && argv[0][1] == 't') { terminal = 1; size = argv[0] + 2; argv++; argc--; }
	if (argc < 1) die(125);
	is_init = sys(GETPID) == 1;

	sys(RT_SIGPROCMASK, SIG_SETMASK, &all, 0, 8);
	if (terminal) { master = open_pty(&slave); set_size(master, size); }
	if (!is_init) become_job(argv, envp, master, slave);
	signals = (int)sys(SIGNALFD4, -1, &all, 8, O_CLOEXEC | O_NONBLOCK);
	if (sys(PIPE2, started, O_CLOEXEC) < 0) die(126);

	child = sys(CLONE, SIGCHLD);
	if (child < 0) die(126);
	if (child == 0) {
		sys(SETSID);
		if (terminal) {
			keeper = start_keeper(master);
			sys(WRITE, started[1], &keeper, sizeof keeper);
			take_terminal(slave);
		}
		sys(CLOSE, STATUS_FD);
		sys(RT_SIGPROCMASK, SIG_SETMASK, &none, 0, 8);
		error = execute(argv, envp);
		sys(WRITE, started[1], &error, sizeof error);
		die(error == -ENOENT || error == -ENOTDIR ? 127 : 126);
	}
	sys(CLOSE, started[1]);
	if (terminal) {
		sys(CLOSE, master);
		sys(CLOSE, slave);
		sys(READ, started[0], &keeper, sizeof keeper);
	}
	if (sys(READ, started[0], &error, sizeof error) == sizeof error) report(0, (u32)-error);
	else report((u32)child, STARTED);
	sys(CLOSE, started[0]);
	serve(signals, child, keeper);
}
