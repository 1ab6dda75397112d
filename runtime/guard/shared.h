/* What the library in CRIU and the guardian have in common: a few requests at a time, in memory that both have mapped. */
#include "../freestanding.h"

enum { IDLE, ASKED, ANSWERED };
enum { BUFFER = 60 << 10, MANY = 12, WAIT = -1, REGISTERS = 256, SIGINFO = 128 };

struct request {
	int number, pid;
	long address, data;
	u32 at, size; /* what it takes and gives of the buffer */
};

struct shared {
	u32 state;    /* a futex */
	u32 ready;    /* 1: the guardian serves; 2: it can't */
	u32 guardian; /* its process id */
	u32 asleep;   /* the guardian wants to be rung at its eventfd */
	u32 waits;    /* the library waits at the futex */
	u32 cancel;   /* a signal came while it waited: no tracee is to be waited for any more */
	u32 traced;   /* how many tracees there are */
	u32 cpu;      /* where the library runs */
	u32 count;    /* of requests; the first that fails ends them */
	u32 fetched;  /* the task whose registers and whose reason to stop lie ready, since CRIU always asks for them */
	long result;  /* of the last that was done */
	u64 registers_size;
	char registers[REGISTERS], siginfo[SIGINFO];
	struct request requests[MANY];
	char buffer[BUFFER];
};

#define LOAD(x) __atomic_load_n(&(x), __ATOMIC_SEQ_CST)
#define STORE(x, value) __atomic_store_n(&(x), value, __ATOMIC_SEQ_CST)

/* ptrace(2)'s requests that CRIU uses. */
enum {
	TRACEME = 0, PEEKDATA = 2, PEEKUSER = 3, POKEDATA = 5, POKEUSER = 6, CONT = 7, GETFPREGS = 14, SETFPREGS = 15,
	DETACH = 17, SYSCALL = 24, GET_THREAD_AREA = 25, ARCH_PRCTL = 30, SETOPTIONS = 0x4200, GETSIGINFO = 0x4202,
	GETREGSET = 0x4204, SETREGSET = 0x4205, SEIZE = 0x4206, INTERRUPT = 0x4207, PEEKSIGINFO = 0x4209,
	GETSIGMASK = 0x420a, SETSIGMASK = 0x420b, GET_FILTER = 0x420c, GET_METADATA = 0x420d, GET_RSEQ = 0x420f,
};

struct part { char *base; u64 size; };

/* Not a loop, of which the compiler makes a call of memcpy(3), which there is none of. */
static void copy(void *to, const void *from, u64 size)
{
	__asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) :: "memory");
}
