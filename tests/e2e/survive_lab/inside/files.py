"""Open, removed, locked and watched files; the contents of file systems."""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import select
import stat
import struct
from collections.abc import Iterator

from conductor import claim, same
from processes import Helper

libc = ctypes.CDLL(None, use_errno=True)
F_OFD_SETLK, F_OFD_GETLK = 37, 36


@claim
def open_files_keep_offset_and_flags() -> Iterator[None]:
    path = "/tmp/offset"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.write(fd, b"0123456789" * 10)
    os.lseek(fd, 42, os.SEEK_SET)
    appending = os.open(path, os.O_WRONLY | os.O_APPEND)
    cloexec = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    plain = os.dup(cloexec)
    os.set_inheritable(plain, True)
    size = 100
    while True:
        flags = [fcntl.fcntl(number, fcntl.F_GETFL) for number in (fd, appending, cloexec, plain)]
        yield
        same(
            [fcntl.fcntl(number, fcntl.F_GETFL) for number in (fd, appending, cloexec, plain)],
            flags,
        )
        same([os.get_inheritable(number) for number in (cloexec, plain)], [False, True])
        same(os.lseek(fd, 0, os.SEEK_CUR), 42, "the offset")
        same(os.read(fd, 3), b"234")
        os.lseek(fd, 42, os.SEEK_SET)
        os.write(appending, b"+")
        size += 1
        same(os.fstat(fd).st_size, size, "the size after appending")


@claim
def descriptors_shared_after_dup_and_fork() -> Iterator[None]:
    fd = os.open("/tmp/shared-offset", os.O_RDWR | os.O_CREAT)
    os.write(fd, bytes(1000))
    os.lseek(fd, 0, os.SEEK_SET)
    twin = os.dup2(fd, 77)
    helper = Helper(tell=lambda: len(os.read(fd, 10)))
    while True:
        before = os.lseek(fd, 0, os.SEEK_CUR)
        yield
        same(helper.ask(), 10)
        same(
            os.lseek(twin, 0, os.SEEK_CUR), before + 10, "the twin's offset after the child's read"
        )


@claim
def removed_file() -> Iterator[None]:
    fd = os.open("/tmp/removed", os.O_RDWR | os.O_CREAT, 0o640)
    content = os.urandom(300_000)
    os.write(fd, content)
    os.fchown(fd, 1000, 1000)
    os.unlink("/tmp/removed")
    while True:
        yield
        found = os.pread(fd, 1 << 20, 0)
        same(hashlib.sha256(found).digest(), hashlib.sha256(content).digest(), "its content")
        now = os.fstat(fd)
        same((now.st_nlink, now.st_uid, stat.S_IMODE(now.st_mode)), (0, 1000, 0o640))
        assert not os.path.exists("/tmp/removed")
        same([n for n in os.listdir("/tmp") if n.startswith("link_remap")], [], "what CRIU left")


@claim
def large_removed_file_is_sparse() -> Iterator[None]:
    fd = os.open("/tmp/removed-large", os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(fd, 1 << 30)
    os.pwrite(fd, b"in the middle", 1 << 29)
    os.unlink("/tmp/removed-large")
    while True:
        yield
        same(os.fstat(fd).st_size, 1 << 30)
        same(os.pread(fd, 13, 1 << 29), b"in the middle")
        assert os.fstat(fd).st_blocks < 2048, "the holes are filled"


@claim
def removed_file_with_another_name() -> Iterator[None]:
    fd = os.open("/tmp/name-one", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"two names")
    os.link("/tmp/name-one", "/tmp/name-two")
    os.unlink("/tmp/name-one")
    while True:
        yield
        same(os.pread(fd, 20, 0), b"two names")
        same(os.fstat(fd).st_ino, os.stat("/tmp/name-two").st_ino, "its inode")
        same(os.fstat(fd).st_nlink, 1, "the number of names")


@claim
def renamed_file() -> Iterator[None]:
    fd = os.open("/tmp/old-name", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"renamed")
    os.rename("/tmp/old-name", "/tmp/new-name")
    while True:
        yield
        same(os.readlink(f"/proc/self/fd/{fd}"), "/tmp/new-name")
        same(os.pread(fd, 10, 0), b"renamed")


@claim
def file_replaced_by_another_of_its_name() -> Iterator[None]:
    fd = os.open("/tmp/replaced", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"the old one")
    with open("/tmp/replaced.new", "w") as file:
        file.write("the new one")
    os.rename("/tmp/replaced.new", "/tmp/replaced")
    while True:
        yield
        same(os.pread(fd, 20, 0), b"the old one")
        with open("/tmp/replaced") as file:
            same(file.read(), "the new one")


@claim
def nameless_file() -> Iterator[None]:
    fd = os.open("/tmp", os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, b"nameless")
    while True:
        yield
        same(os.pread(fd, 20, 0), b"nameless")


@claim
def file_of_a_lower_layer_removed_while_open() -> Iterator[None]:
    fd = os.open("/survive/lower", os.O_RDONLY)
    os.unlink("/survive/lower")
    content = os.pread(fd, 100, 0)
    while True:
        yield
        same(os.pread(fd, 100, 0), content)
        assert not os.path.exists("/survive/lower"), "the removed file is back"


@claim
def directories_stay_open() -> Iterator[None]:
    os.makedirs("/tmp/work/here", exist_ok=True)
    os.chdir("/tmp/work/here")
    fd = os.open("/tmp/work", os.O_RDONLY | os.O_DIRECTORY)
    path_only = os.open("/tmp/work/here", os.O_PATH)
    while True:
        yield
        same(os.getcwd(), "/tmp/work/here")
        same(os.listdir(fd), ["here"])
        same(os.readlink(f"/proc/self/fd/{path_only}"), "/tmp/work/here")


@claim
def removed_working_directory() -> Iterator[None]:
    os.makedirs("/tmp/gone-directory", exist_ok=True)
    os.chdir("/tmp/gone-directory")
    os.rmdir("/tmp/gone-directory")
    while True:
        yield
        assert os.readlink("/proc/self/cwd").endswith("(deleted)"), os.readlink("/proc/self/cwd")


@claim
def changed_root_directory() -> Iterator[None]:
    os.makedirs("/tmp/jail/inner", exist_ok=True)

    def enter() -> None:
        os.chroot("/tmp/jail")
        os.chdir("/inner")

    helper = Helper(first=enter, tell=lambda: (os.listdir("/"), os.getcwd()))
    while True:
        yield
        same(helper.ask(), (["inner"], "/inner"))


def _holder(lock: object, path: str) -> Helper:
    """A child that tries to take the same lock by a descriptor of its own, and tells whether it got it."""

    def attempt() -> bool:
        fd = os.open(path, os.O_RDWR)
        try:
            lock(fd)  # type: ignore[operator]
            return True
        except BlockingIOError:
            return False
        finally:
            os.close(fd)

    return Helper(tell=attempt)


@claim
def flock_is_held() -> Iterator[None]:
    fd = os.open("/tmp/flock", os.O_RDWR | os.O_CREAT)
    other = _holder(lambda fd: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB), "/tmp/flock")
    while True:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
        same(other.ask(), False, "whether another got the lock")
        fcntl.flock(fd, fcntl.LOCK_UN)
        same(other.ask(), True, "whether another got the lock after it was released")


@claim
def posix_record_locks_are_held() -> Iterator[None]:
    fd = os.open("/tmp/record-lock", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 1000)

    def attempt(start: int) -> object:
        return lambda fd: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, start)

    inside, outside = (
        _holder(attempt(105), "/tmp/record-lock"),
        _holder(attempt(200), "/tmp/record-lock"),
    )
    while True:
        fcntl.lockf(fd, fcntl.LOCK_EX, 50, 100)
        yield
        same((inside.ask(), outside.ask()), (False, True))


@claim
def open_file_description_locks_are_held() -> Iterator[None]:
    fd = os.open("/tmp/ofd-lock", os.O_RDWR | os.O_CREAT)

    def request(kind: int) -> bytes:
        return struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 10, 0)

    other = _holder(
        lambda fd: fcntl.fcntl(fd, F_OFD_SETLK, request(fcntl.F_WRLCK)), "/tmp/ofd-lock"
    )
    fcntl.fcntl(fd, F_OFD_SETLK, request(fcntl.F_WRLCK))
    while True:
        yield
        same(other.ask(), False)


@claim
def lease_is_held() -> Iterator[None]:
    fd = os.open("/tmp/lease", os.O_RDONLY | os.O_CREAT)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    while True:
        yield
        same(fcntl.fcntl(fd, fcntl.F_GETLEASE), fcntl.F_RDLCK)


@claim
def inotify_watches() -> Iterator[None]:
    os.makedirs("/tmp/watched", exist_ok=True)
    fd = libc.inotify_init1(os.O_NONBLOCK)
    watch = libc.inotify_add_watch(fd, b"/tmp/watched", 0x100 | 0x200)  # IN_CREATE | IN_DELETE
    assert watch > 0
    with open("/tmp/watched-file", "w"):
        pass
    single = libc.inotify_add_watch(fd, b"/tmp/watched-file", 0x2)  # IN_MODIFY
    while True:
        yield
        with open("/tmp/watched/new", "w"):
            pass
        with open("/tmp/watched-file", "a") as file:
            file.write("x")
        os.unlink("/tmp/watched/new")
        found = []
        assert select.select([fd], [], [], 60)[0], "no event comes"
        data = os.read(fd, 4096)
        while data:
            number, mask, _, length = struct.unpack_from("iIII", data)
            found.append((number, mask))
            data = data[16 + length :]
        same(found, [(watch, 0x100), (single, 0x2), (watch, 0x200)])


@claim
def upper_directory_changes() -> Iterator[None]:
    base = "/var/changes"
    os.makedirs(base + "/directory", exist_ok=True)
    with open(base + "/file", "wb") as file:
        file.write(os.urandom(100_000))
    os.chmod(base + "/file", 0o4751)
    os.chown(base + "/file", 1000, 2000)
    os.utime(base + "/file", ns=(10**18, 10**18 + 7))
    os.setxattr(base + "/file", "user.survive", b"value")
    os.link(base + "/file", base + "/hard")
    os.symlink("file", base + "/soft")
    os.mkfifo(base + "/fifo", 0o600)
    with open(base + "/sparse", "wb") as file:
        file.truncate(1 << 30)
    os.unlink("/survive/lower-removed")
    os.chmod("/survive/lower-changed", 0o600)

    def look() -> list[object]:
        found: list[object] = []
        for name in sorted(os.listdir(base)):
            path = f"{base}/{name}"
            s = os.lstat(path)
            found.append((name, s.st_mode, s.st_uid, s.st_gid, s.st_nlink, s.st_size))
        with open(base + "/file", "rb") as file:
            found.append(hashlib.sha256(file.read()).hexdigest())
        found.append((os.lstat(base + "/file").st_mtime_ns, os.lstat(base + "/sparse").st_blocks))
        found.append((os.getxattr(base + "/file", "user.survive"), os.readlink(base + "/soft")))
        found.append(os.stat(base + "/file").st_ino == os.stat(base + "/hard").st_ino)
        found.append(
            (os.path.exists("/survive/lower-removed"), os.stat("/survive/lower-changed").st_mode)
        )
        return found

    wanted = look()
    while True:
        yield
        same(look(), wanted)


@claim
def tmpfs_contents() -> Iterator[None]:
    base = "/scratch"
    os.makedirs(base + "/a/b", exist_ok=True)
    content = os.urandom(2 << 20)
    with open(base + "/a/b/file", "wb") as file:
        file.write(content)
    os.chown(base + "/a/b/file", 1000, 1000)
    os.chmod(base + "/a/b/file", 0o640)
    os.link(base + "/a/b/file", base + "/a/hard")
    os.symlink("b/file", base + "/a/soft")
    os.mkfifo(base + "/a/fifo")
    fd = os.open(base + "/a/b/open", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"open")
    removed = os.open(base + "/removed", os.O_RDWR | os.O_CREAT)
    os.write(removed, b"removed")
    os.unlink(base + "/removed")
    with open("/dev/shm/posix", "wb") as file:
        file.write(b"shared")
    while True:
        yield
        with open(base + "/a/soft", "rb") as file:
            same(file.read() == content, True, "whether the content is the same")
        s = os.stat(base + "/a/hard")
        same((s.st_nlink, s.st_uid, stat.S_IMODE(s.st_mode)), (2, 1000, 0o640))
        assert stat.S_ISFIFO(os.stat(base + "/a/fifo").st_mode)
        same((os.pread(fd, 10, 0), os.pread(removed, 10, 0)), (b"open", b"removed"))
        with open("/dev/shm/posix", "rb") as file:
            same(file.read(), b"shared")


@claim
def files_of_proc_and_devices() -> Iterator[None]:
    fds = {
        path: os.open(path, flags)
        for path, flags in (
            ("/dev/null", os.O_RDWR),
            ("/dev/zero", os.O_RDONLY),
            ("/dev/urandom", os.O_RDONLY),
            ("/dev/full", os.O_WRONLY),
            ("/proc/self/status", os.O_RDONLY),
            ("/proc/meminfo", os.O_RDONLY),
            ("/proc/sys/kernel/hostname", os.O_RDONLY),
        )
    }
    while True:
        yield
        same(os.read(fds["/dev/zero"], 3), bytes(3))
        assert len(os.read(fds["/dev/urandom"], 9)) == 9
        try:
            os.write(fds["/dev/full"], b"x")
        except OSError as error:
            same(error.errno, 28)
        else:
            raise AssertionError("/dev/full takes something")
        assert os.pread(fds["/proc/self/status"], 100, 0).startswith(b"Name:")
        assert os.pread(fds["/proc/meminfo"], 100, 0).startswith(b"MemTotal:")
        same(os.write(fds["/dev/null"], b"x"), 1)
