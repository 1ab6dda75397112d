/* What a program may try to write more than its container's disk limit allows.
 *
 *   quota_escapes project FILE      put FILE into project 0; exit status: 0, else the errno
 *   quota_escapes inherit DIR       let what is made in DIR belong to no project; the same
 *   quota_escapes map FILE MIB      write through a mapping of a sparse file: SIGBUS where there is no room
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

static int change(const char *path, int inherit)
{
	struct fsxattr attributes;
	int fd = open(path, O_RDONLY);

	if (fd < 0 || ioctl(fd, FS_IOC_FSGETXATTR, &attributes) < 0)
		return errno;
	if (inherit)
		attributes.fsx_xflags &= ~FS_XFLAG_PROJINHERIT;
	else
		attributes.fsx_projid = 0;
	return ioctl(fd, FS_IOC_FSSETXATTR, &attributes) < 0 ? errno : 0;
}

static int map(const char *path, size_t size)
{
	int fd = open(path, O_RDWR | O_CREAT, 0600);
	char *memory;

	if (fd < 0 || ftruncate(fd, size) < 0)
		return errno;
	memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (memory == MAP_FAILED)
		return errno;
	memset(memory, 'x', size);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 3 && (!strcmp(argv[1], "project") || !strcmp(argv[1], "inherit")))
		return change(argv[2], argv[1][0] == 'i');
	if (argc == 4 && !strcmp(argv[1], "map"))
		return map(argv[2], (size_t)atoi(argv[3]) << 20);
	return 255;
}
