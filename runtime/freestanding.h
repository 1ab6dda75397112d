/* What our small C programs and libraries have in place of a C library: system calls, and where a program starts. */

typedef unsigned long u64;
typedef unsigned int u32;

#if defined(__x86_64__)
enum { READ = 0, WRITE = 1, CLOSE = 3, FSTAT = 5, LSEEK = 8, MMAP = 9, MUNMAP = 11, RT_SIGPROCMASK = 14, IOCTL = 16,
       PREAD = 17, WRITEV = 20, NANOSLEEP = 35, GETPID = 39, SENDMSG = 46, RECVMSG = 47, GETSOCKOPT = 55, CLONE = 56,
       EXECVE = 59, WAIT4 = 61, KILL = 62, FCNTL = 72, FTRUNCATE = 77, PTRACE = 101, SETSID = 112,
       SCHED_SETSCHEDULER = 144, FUTEX = 202, SCHED_SETAFFINITY = 203, CLOCK_GETTIME = 228, EXIT_GROUP = 231, WAITID = 247,
       OPENAT = 257, READLINKAT = 267, PPOLL = 271, SIGNALFD4 = 289, DUP3 = 292, PIPE2 = 293, GETCPU = 309,
       PROCESS_VM_READV = 310, MEMFD_CREATE = 319, PIDFD_OPEN = 434 };
static long sys6(long n, long a, long b, long c, long d, long e, long f)
{
	long r;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	__asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return r;
}
#define START __asm__(".globl _start\n_start:\n xor %ebp,%ebp\n mov %rsp,%rdi\n and $-16,%rsp\n call entry\n")
#elif defined(__aarch64__)
enum { READ = 63, WRITE = 64, CLOSE = 57, FSTAT = 80, LSEEK = 62, MMAP = 222, RT_SIGPROCMASK = 135, IOCTL = 29,
       WRITEV = 66, PREAD = 67, GETPID = 172, SENDMSG = 211, RECVMSG = 212, GETSOCKOPT = 209, CLONE = 220, EXECVE = 221, WAIT4 = 260,
       KILL = 129, FCNTL = 25, FTRUNCATE = 46, SETSID = 157, EXIT_GROUP = 94, OPENAT = 56, READLINKAT = 78, PPOLL = 73,
       SIGNALFD4 = 74, DUP3 = 24, PIPE2 = 59, MEMFD_CREATE = 279 };
static long sys6(long n, long a, long b, long c, long d, long e, long f)
{
	register long x8 __asm__("x8") = n;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	register long x5 __asm__("x5") = f;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
	return x0;
}
#define START __asm__(".globl _start\n_start:\n mov x29,#0\n mov x0,sp\n bl entry\n")
#else
#error "x86-64 or aarch64"
#endif

/* sys(NUMBER, up to six arguments of any kind); the kernel's own result, errors as negative numbers.
 * START: for programs, whose `entry` gets the stack as execve(2) leaves it: argc, argv, 0, environ, 0.
 */
#define sys(...) SYS_FILLED(__VA_ARGS__, 0, 0, 0, 0, 0, 0, 0)
#define SYS_FILLED(n, a, b, c, d, e, f, ...) \
	sys6(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), (long)(f))

/* fstat(2)'s beginning: as far as this the two kinds of processors agree. */
struct status { u64 device, inode, rest[4], size, more[24]; };

/* Whether TEXT, which may end behind that only, begins with WITH. */
static int begins(const char *text, const char *with)
{
	while (*with && *text == *with) text++, with++;
	return !*with;
}

/* For libraries: the result of a system call as the C library gives it. */
extern int *__errno_location(void);
static long given(long result)
{
	if (result >= 0) return result;
	*__errno_location() = (int)-result;
	return -1;
}
