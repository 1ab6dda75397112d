/* A program that notices when anything of it was changed behind its back.

   usage: selfcheck MODE COUNTER      MODE says what its main thread does all the time
   COUNTER is a file of three 64-bit numbers: rounds done, faults found, signals sent again because nothing came of the
   first. The first fault ends the program.

   registers  every general and vector register, the flags and the red zone, without a system call
   sleep      nanosleep, which the kernel would go on with by its own means
   poll       poll with a time limit
   read       read from a pipe that a thread writes to
   futex      a mutex that a thread fights for
   suspend    sigsuspend with a mask of its own, ended by a thread's signals
   calls      short system calls without end
   own-stack  registers, on a stack that isn't the main one
*/
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <immintrin.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

static volatile uint64_t *counter;

static void fault(const char *what)
{
	int number = errno;

	counter[1]++;
	fprintf(stderr, "selfcheck: %s (errno %d)\n", what, number);
	_exit(9);
}

/* Values go into all registers, time passes, values come out. */
static uint64_t vectors_in[16][4], vectors_out[16][4], general_out[12], red_zone[16];

static void spin(void)
{
	static const uint64_t want[12] = { 0x1111111111111111, 0x2222222222222222, 0x3333333333333333,
		0x4444444444444444, 0x5555555555555555, 0x6666666666666666, 0x7777777777777777,
		0x0888888888888888, 0x0999999999999999, 0x0aaaaaaaaaaaaaaa, 0x0bbbbbbbbbbbbbbb,
		0x0ccccccccccccccc };
	static uint64_t flags;

	for (int i = 0; i < 16; i++)
		for (int j = 0; j < 4; j++)
			vectors_in[i][j] = 0x0102030405060708ull * (i + 1) + j;
	memset(vectors_out, 0, sizeof vectors_out);
	__asm__ volatile(
		"push %%rbp\n"
		"lea %[vi], %%rax\n"
		"vmovdqu 0(%%rax), %%ymm0\n vmovdqu 32(%%rax), %%ymm1\n vmovdqu 64(%%rax), %%ymm2\n"
		"vmovdqu 96(%%rax), %%ymm3\n vmovdqu 128(%%rax), %%ymm4\n vmovdqu 160(%%rax), %%ymm5\n"
		"vmovdqu 192(%%rax), %%ymm6\n vmovdqu 224(%%rax), %%ymm7\n vmovdqu 256(%%rax), %%ymm8\n"
		"vmovdqu 288(%%rax), %%ymm9\n vmovdqu 320(%%rax), %%ymm10\n vmovdqu 352(%%rax), %%ymm11\n"
		"vmovdqu 384(%%rax), %%ymm12\n vmovdqu 416(%%rax), %%ymm13\n vmovdqu 448(%%rax), %%ymm14\n"
		"vmovdqu 480(%%rax), %%ymm15\n"
		"movabs $0x1111111111111111, %%rbx\n movabs $0x2222222222222222, %%rdx\n"
		"movabs $0x3333333333333333, %%rsi\n movabs $0x4444444444444444, %%rdi\n"
		"movabs $0x5555555555555555, %%rbp\n movabs $0x6666666666666666, %%r8\n"
		"movabs $0x7777777777777777, %%r9\n movabs $0x0888888888888888, %%r10\n"
		"movabs $0x0999999999999999, %%r12\n movabs $0x0aaaaaaaaaaaaaaa, %%r13\n"
		"movabs $0x0bbbbbbbbbbbbbbb, %%r14\n movabs $0x0ccccccccccccccc, %%r15\n"
		/* a red zone with something in it */
		"mov $15, %%ecx\n"
		"4: mov %%rcx, %%r11\n neg %%r11\n mov %%r11, (%%rsp,%%r11,8)\n dec %%rcx\n jnz 4b\n"
		"mov $120000, %%ecx\n"
		"mov $0x7fffffff, %%r11d\n"
		"5: dec %%ecx\n jnz 5b\n"
		/* flags: carry and overflow, set here and read after a while */
		"mov $60000, %%ecx\n add $1, %%r11d\n"
		"6: lea -1(%%rcx), %%rcx\n jrcxz 7f\n jmp 6b\n"
		"7: lahf\n seto %%al\n"
		"movzx %%ax, %%eax\n mov %%rax, %[fl]\n"
		"lea %[go], %%rax\n"
		"mov %%rbx, 0(%%rax)\n mov %%rdx, 8(%%rax)\n mov %%rsi, 16(%%rax)\n mov %%rdi, 24(%%rax)\n"
		"mov %%rbp, 32(%%rax)\n mov %%r8, 40(%%rax)\n mov %%r9, 48(%%rax)\n mov %%r10, 56(%%rax)\n"
		"mov %%r12, 64(%%rax)\n mov %%r13, 72(%%rax)\n mov %%r14, 80(%%rax)\n mov %%r15, 88(%%rax)\n"
		"lea %[vo], %%rax\n"
		"vmovdqu %%ymm0, 0(%%rax)\n vmovdqu %%ymm1, 32(%%rax)\n vmovdqu %%ymm2, 64(%%rax)\n"
		"vmovdqu %%ymm3, 96(%%rax)\n vmovdqu %%ymm4, 128(%%rax)\n vmovdqu %%ymm5, 160(%%rax)\n"
		"vmovdqu %%ymm6, 192(%%rax)\n vmovdqu %%ymm7, 224(%%rax)\n vmovdqu %%ymm8, 256(%%rax)\n"
		"vmovdqu %%ymm9, 288(%%rax)\n vmovdqu %%ymm10, 320(%%rax)\n vmovdqu %%ymm11, 352(%%rax)\n"
		"vmovdqu %%ymm12, 384(%%rax)\n vmovdqu %%ymm13, 416(%%rax)\n vmovdqu %%ymm14, 448(%%rax)\n"
		"vmovdqu %%ymm15, 480(%%rax)\n"
		"lea %[rz], %%rax\n mov $15, %%ecx\n"
		"8: mov %%rcx, %%r11\n neg %%r11\n mov (%%rsp,%%r11,8), %%r11\n mov %%r11, (%%rax,%%rcx,8)\n"
		"dec %%rcx\n jnz 8b\n"
		"pop %%rbp\n"
		: [vo] "=m"(vectors_out), [go] "=m"(general_out), [rz] "=m"(red_zone), [fl] "=m"(flags)
		: [vi] "m"(vectors_in)
		: "rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
		  "r15", "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7",
		  "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
	if (memcmp(vectors_in, vectors_out, sizeof vectors_in))
		fault("a vector register changed");
	if (memcmp(want, general_out, sizeof want))
		fault("a general register changed");
	for (int i = 1; i < 16; i++)
		if (red_zone[i] != (uint64_t)-(int64_t)i)
			fault("the red zone changed");
	if (!(flags & 1) || !(flags & 0x8000))
		fault("the flags changed");
}

static int pipe_ends[2];
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static uint64_t guarded[2];
static pthread_t main_thread;
static volatile sig_atomic_t handled;
static volatile uint64_t suspended;

static void pause_ns(long ns)
{
	struct timespec time = { 0, ns };

	while (nanosleep(&time, &time))
		;
}

static void *writer(void *unused)
{
	for (uint32_t n = 0;; n++) {
		if (write(pipe_ends[1], &n, sizeof n) != sizeof n)
			fault("write");
		pause_ns(300000);
	}
	return unused;
}

static void *fighter(void *unused)
{
	for (;;) {
		pthread_mutex_lock(&mutex);
		guarded[0]++;
		pause_ns(200000);
		guarded[1]++;
		pthread_mutex_unlock(&mutex);
		pause_ns(20000);
	}
	return unused;
}

static void *killer(void *unused)
{
	uint64_t seen = 0;

	for (;;) {
		for (int n = 0; suspended == seen; n++) {
			pause_ns(1000000);
			if (n == 3000) {
				counter[2]++;
				break;
			}
		}
		seen = suspended;
		pthread_kill(main_thread, SIGUSR1);
	}
	return unused;
}

static void *busy(void *unused)
{
	volatile uint64_t n = 0;

	for (;;) {
		n++;
		if (!(n & 0xfffff))
			pause_ns(1000000);
	}
	return unused;
}

static void on_usr1(int number)
{
	handled += number == SIGUSR1;
}

static int64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ll + time.tv_nsec;
}

static void once(const char *mode)
{
	if (!strcmp(mode, "registers") || !strcmp(mode, "own-stack")) {
		spin();
	} else if (!strcmp(mode, "sleep")) {
		struct timespec time = { 0, 2000000 };
		int64_t begun = now();
		if (nanosleep(&time, NULL))
			fault("nanosleep was interrupted");
		if (now() - begun < 2000000)
			fault("nanosleep was too short");
	} else if (!strcmp(mode, "poll")) {
		struct pollfd fd = { pipe_ends[0], POLLIN, 0 };
		int64_t begun = now();
		int result = poll(&fd, 1, 2);
		if (result)
			fault("poll's result");
		if (now() - begun < 2000000)
			fault("poll was too short");
	} else if (!strcmp(mode, "read")) {
		static uint32_t expected;
		uint32_t found = ~0u;
		if (read(pipe_ends[0], &found, sizeof found) != sizeof found)
			fault("read's result");
		if (found != expected++)
			fault("read's data");
	} else if (!strcmp(mode, "futex")) {
		if (pthread_mutex_lock(&mutex))
			fault("lock");
		if (guarded[0] != guarded[1])
			fault("the mutex didn't exclude");
		pthread_mutex_unlock(&mutex);
	} else if (!strcmp(mode, "suspend")) {
		sigset_t mask;
		int before = handled;
		sigfillset(&mask);
		sigdelset(&mask, SIGUSR1);
		suspended++;
		if (sigsuspend(&mask) != -1 || errno != EINTR)
			fault("sigsuspend's result");
		if (handled == before)
			fault("sigsuspend returned without a signal");
		sigprocmask(SIG_SETMASK, NULL, &mask);
		if (!sigismember(&mask, SIGUSR1) || sigismember(&mask, SIGUSR2))
			fault("the signal mask changed");
	} else if (!strcmp(mode, "calls")) {
		for (int n = 0; n < 100; n++) {
			if (syscall(SYS_getppid) != getppid())
				fault("getppid's result");
			if (syscall(SYS_close, 12345) != -1 || errno != EBADF)
				fault("close's result");
		}
	} else {
		fault("no such mode");
	}
}

static const char *the_mode;

static void forever(void)
{
	for (;;) {
		once(the_mode);
		counter[0]++;
	}
}

int main(int count, char **words)
{
	int fd;
	pthread_t thread;
	sigset_t mask;
	static ucontext_t here, there;
	static char stack[65536];

	if (count != 3)
		return 2;
	fd = open(words[2], O_RDWR | O_CLOEXEC);
	counter = mmap(NULL, 24, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (counter == MAP_FAILED || pipe(pipe_ends))
		return 2;
	close(fd);
	the_mode = words[1];
	main_thread = pthread_self();
	signal(SIGUSR1, on_usr1);
	if (!strcmp(the_mode, "suspend")) {
		sigemptyset(&mask);
		sigaddset(&mask, SIGUSR1);
		sigprocmask(SIG_BLOCK, &mask, NULL);
		pthread_create(&thread, NULL, killer, NULL);
	}
	if (!strcmp(the_mode, "read"))
		pthread_create(&thread, NULL, writer, NULL);
	if (!strcmp(the_mode, "futex"))
		pthread_create(&thread, NULL, fighter, NULL);
	pthread_create(&thread, NULL, busy, NULL);
	if (!strcmp(the_mode, "own-stack")) {
		getcontext(&there);
		there.uc_stack.ss_sp = stack;
		there.uc_stack.ss_size = sizeof stack;
		makecontext(&there, forever, 0);
		swapcontext(&here, &there);
	}
	forever();
}
