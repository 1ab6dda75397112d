/* CRIU's action script: at some actions it waits for the word of the process that started all this.
 *
 * At the actions in $CKPT_HOOKS it writes "ACTION PID\n" ($CRTOOLS_SCRIPT_ACTION, $CRTOOLS_INIT_PID) and reads a
 * number, which is our exit status. The two pipes are that process's own, opened through /proc/$CKPT_PID/fd: when it is
 * gone they are gone, we fail, and CRIU undoes what it did: a dump's tasks resume, a restore's are killed.
 *
 * A program and not a script, since CRIU runs it ten times in the frozen window, mostly for actions that mean nothing
 * to us. Free-standing, like runtime/init/init.c.
 */

typedef unsigned long ulong_t;

#if defined(__x86_64__)
enum { READ = 0, WRITE = 1, EXIT_GROUP = 231, OPENAT = 257 };
static long sys(long n, long a, long b, long c, long d)
{
	long r;
	register long r10 __asm__("r10") = d;
	__asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10) : "rcx", "r11", "memory");
	return r;
}
__asm__(".globl _start\n_start:\n xor %ebp,%ebp\n mov %rsp,%rdi\n and $-16,%rsp\n call entry\n");
#elif defined(__aarch64__)
enum { READ = 63, WRITE = 64, EXIT_GROUP = 94, OPENAT = 56 };
static long sys(long n, long a, long b, long c, long d)
{
	register long x8 __asm__("x8") = n;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
	return x0;
}
__asm__(".globl _start\n_start:\n mov x29,#0\n mov x0,sp\n bl entry\n");
#else
#error "x86-64 or aarch64"
#endif

enum { O_WRONLY = 1, O_RDONLY = 0, AT_FDCWD = -100, EINTR = 4, LONGEST = 120 };

static __attribute__((noreturn)) void leave(int status)
{
	for (;;) sys(EXIT_GROUP, status, 0, 0, 0);
}

/* The value of a variable; an empty one if there is none. */
static const char *variable(char **all, const char *name)
{
	for (; *all; all++) {
		int n = 0;
		while (name[n] && (*all)[n] == name[n]) n++;
		if (!name[n] && (*all)[n] == '=') return *all + n + 1;
	}
	return "";
}

/* Whether WORD is one of WORDS, which spaces separate. */
static int among(const char *words, const char *word)
{
	while (*words) {
		int n = 0;
		while (word[n] && words[n] == word[n]) n++;
		if (!word[n] && (!words[n] || words[n] == ' ')) return 1;
		while (*words && *words != ' ') words++;
		while (*words == ' ') words++;
	}
	return 0;
}

static char *append(char *to, const char *end, const char *text)
{
	while (*text && to < end) *to++ = *text++;
	return to;
}

/* A descriptor of the process that waits for us. */
static long opened(char **variables, const char *number, int mode)
{
	char path[LONGEST + 1], *at = path;
	at = append(at, path + LONGEST, "/proc/");
	at = append(at, path + LONGEST, variable(variables, "CKPT_PID"));
	at = append(at, path + LONGEST, "/fd/");
	at = append(at, path + LONGEST, variable(variables, number));
	*at = 0;
	return sys(OPENAT, AT_FDCWD, (long)path, mode, 0);
}

__attribute__((used, noreturn)) void entry(long *stack)
{
	char **variables = (char **)(stack + 1 + stack[0] + 1);
	const char *action = variable(variables, "CRTOOLS_SCRIPT_ACTION");
	const char *pid = variable(variables, "CRTOOLS_INIT_PID");
	char line[LONGEST], *at = line, digit;
	int status = 0, digits = 0;
	long fd, n;

	if (!*action || !among(variable(variables, "CKPT_HOOKS"), action)) leave(0);
	at = append(at, line + LONGEST - 1, action);
	at = append(at, line + LONGEST - 1, " ");
	at = append(at, line + LONGEST - 1, *pid ? pid : "0");
	*at++ = '\n';
	fd = opened(variables, "CKPT_ASK", O_WRONLY);
	if (fd < 0 || sys(WRITE, fd, (long)line, at - line, 0) != at - line) leave(1);
	fd = opened(variables, "CKPT_ANSWER", O_RDONLY);
	if (fd < 0) leave(1);
	for (;;) {
		n = sys(READ, fd, (long)&digit, 1, 0);
		if (n == -EINTR) continue;
		if (n != 1) leave(1); /* they are gone */
		if (digit == '\n') leave(digits ? status : 1);
		if (digit < '0' || digit > '9' || digits++ > 3) leave(1);
		status = status * 10 + digit - '0';
	}
}
