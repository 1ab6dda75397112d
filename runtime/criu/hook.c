/* CRIU's action script: at some actions it waits for the word of the process that started all this.
 *
 * At the actions in $CKPT_HOOKS it writes "ACTION PID\n" ($CRTOOLS_SCRIPT_ACTION, $CRTOOLS_INIT_PID) and reads a
 * number, which is our exit status. The two pipes are that process's own, opened through /proc/$CKPT_PID/fd: when it is
 * gone they are gone, we fail, and CRIU undoes what it did: a dump's tasks resume, a restore's are killed.
 *
 * A program and not a script, since CRIU runs it ten times in the frozen window, mostly for actions that mean nothing
 * to us. Free-standing, like runtime/init/init.c.
 */

#include "../freestanding.h"

START;

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
