"""Pipes, FIFOs, Unix sockets, event descriptors, terminals, System V IPC and POSIX queues."""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import signal
import socket
import struct
import termios
import tty
from collections.abc import Iterator

from conductor import claim, same
from processes import Helper

libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
F_SETPIPE_SZ, F_GETPIPE_SZ = 1031, 1032


@claim
def pipes_with_unread_data() -> Iterator[None]:
    read, write = os.pipe()
    fcntl.fcntl(write, F_SETPIPE_SZ, 256 * 1024)
    os.set_blocking(read, False)
    half_closed, closing = os.pipe()
    os.write(closing, b"the end")
    os.close(closing)
    last = b"the end"
    while True:
        content = os.urandom(150_000)
        os.write(write, content)
        yield
        same(fcntl.fcntl(read, F_GETPIPE_SZ), 256 * 1024, "the pipe's size")
        found = b""
        while len(found) < len(content):
            found += os.read(read, 1 << 20)
        same(found == content, True, "whether the content is the same")
        try:
            os.read(read, 1)
        except BlockingIOError:
            pass
        else:
            raise AssertionError("the empty pipe has something, or its end")
        same((os.read(half_closed, 100), os.read(half_closed, 100)), (last, b""))
        last = b""


@claim
def fifos_with_unread_data() -> Iterator[None]:
    os.mkfifo("/tmp/fifo")
    both = os.open("/tmp/fifo", os.O_RDWR)
    reader = os.open("/tmp/fifo", os.O_RDONLY | os.O_NONBLOCK)
    os.mkfifo("/tmp/fifo-removed")
    removed = os.open("/tmp/fifo-removed", os.O_RDWR)
    os.unlink("/tmp/fifo-removed")
    while True:
        os.write(both, b"through the fifo")
        os.write(removed, b"nameless")
        yield
        same(os.read(reader, 100), b"through the fifo")
        same(os.read(removed, 100), b"nameless")
        late = os.open("/tmp/fifo", os.O_WRONLY)
        os.write(late, b"opened by name")
        os.close(late)
        same(os.read(reader, 100), b"opened by name")


@claim
def unix_socket_pairs_with_data_in_flight() -> Iterator[None]:
    pairs = {
        kind: socket.socketpair(socket.AF_UNIX, kind)
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET)
    }
    while True:
        big = os.urandom(100_000)
        for kind, (one, other) in pairs.items():
            for packet in (b"first", b"second"):
                one.send(packet)
            other.send(b"back")
            if kind == socket.SOCK_STREAM:
                one.send(big)
        yield
        for kind, (one, other) in pairs.items():
            same(one.recv(100), b"back")
            if kind == socket.SOCK_STREAM:
                same(other.recv(11), b"firstsecond")
                found = b""
                while len(found) < len(big):
                    found += other.recv(1 << 20)
                same(found == big, True, "whether the stream's content is the same")
            else:
                same((other.recv(100), other.recv(100)), (b"first", b"second"), str(kind))


@claim
def unix_sockets_by_name() -> Iterator[None]:
    server = socket.socket(socket.AF_UNIX)
    server.bind("/tmp/unix-named")
    server.listen(7)
    abstract = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    abstract.bind("\0abstract-name")
    sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sender.connect("\0abstract-name")
    client = socket.socket(socket.AF_UNIX)
    client.connect("/tmp/unix-named")
    served, _ = server.accept()
    while True:
        sender.send(b"datagram")
        client.send(b"a question")
        yield
        same(abstract.recv(100), b"datagram")
        same(served.recv(100), b"a question")
        served.send(b"an answer")
        same(client.recv(100), b"an answer")
        same(server.getsockname(), "/tmp/unix-named")
        with socket.socket(socket.AF_UNIX) as another:
            another.connect("/tmp/unix-named")
            accepted, _ = server.accept()
            another.send(b"new")
            same(accepted.recv(10), b"new")
            accepted.close()


@claim
def unix_connection_that_waits_to_be_accepted() -> Iterator[None]:
    server = socket.socket(socket.AF_UNIX)
    server.bind("/tmp/unix-backlog")
    server.listen(7)
    while True:
        client = socket.socket(socket.AF_UNIX)
        client.connect("/tmp/unix-backlog")
        yield
        client.send(b"early words")
        served, _ = server.accept()
        same(served.recv(100), b"early words")
        served.send(b"welcome")
        same(client.recv(100), b"welcome")
        served.close()
        client.close()


@claim
def unix_socket_options_and_states() -> Iterator[None]:
    one, other = socket.socketpair()
    one.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 30_000)
    one.settimeout(5)
    shut, peer = socket.socketpair()
    shut.shutdown(socket.SHUT_WR)
    gone, kept = socket.socketpair()
    gone.send(b"last words")
    gone.close()
    words = b"last words"
    size = one.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    while True:
        yield
        same(one.getsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED), 1)
        same(one.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF), size)
        same(peer.recv(10), b"", "what comes from a socket that was shut down")
        peer.send(b"the other way")
        same(shut.recv(100), b"the other way")
        same((kept.recv(100), kept.recv(100)), (words, b""))
        words = b""


@claim
def descriptor_on_its_way_through_a_unix_socket() -> Iterator[None]:
    one, other = socket.socketpair()
    while True:
        fd = os.open("/tmp/passed", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.write(fd, b"passed on")
        socket.send_fds(one, [b"x"], [fd])
        os.close(fd)
        yield
        _, fds, _, _ = socket.recv_fds(other, 10, 1)
        same(len(fds), 1, "the number of descriptors received")
        same(os.pread(fds[0], 20, 0), b"passed on")
        os.close(fds[0])


@claim
def epoll() -> Iterator[None]:
    poll = select.epoll()
    read, write = os.pipe()
    edge_read, edge_write = os.pipe()
    poll.register(read, select.EPOLLIN)
    poll.register(edge_read, select.EPOLLIN | select.EPOLLET)
    nested = select.epoll()
    nested.register(poll.fileno(), select.EPOLLIN)
    while True:
        os.write(write, b"level")
        yield
        assert (read, select.EPOLLIN) in poll.poll(60), "the event of before is not told"
        assert nested.poll(60), "the nested one tells nothing"
        os.read(read, 100)
        os.write(edge_write, b"edge")
        assert (edge_read, select.EPOLLIN) in poll.poll(60)
        same(poll.poll(0), [], "what is told twice of an edge")
        os.read(edge_read, 100)


@claim
def eventfd() -> Iterator[None]:
    plain, empty = os.eventfd(5), os.eventfd(0, os.EFD_NONBLOCK)
    while True:
        yield
        same(os.eventfd_read(plain), 5)
        try:
            os.eventfd_read(empty)
        except BlockingIOError:
            pass
        else:
            raise AssertionError("the empty one has something")
        os.eventfd_write(plain, 5)


@claim
def signalfd() -> Iterator[None]:
    number = int(signal.SIGRTMIN) + 8
    signal.pthread_sigmask(signal.SIG_BLOCK, {number, signal.SIGUSR2})
    mask = struct.pack("Q", 1 << (number - 1) | 1 << (signal.SIGUSR2 - 1))
    fd = (
        libc.syscall(289, -1, mask, 8, os.O_NONBLOCK)
        if os.uname().machine == "x86_64"
        else libc.signalfd(-1, mask, 0)
    )
    assert fd >= 0
    while True:
        os.kill(os.getpid(), number)
        yield
        same(struct.unpack_from("I", os.read(fd, 128))[0], number, "the signal that was pending")
        os.kill(os.getpid(), signal.SIGUSR2)
        same(struct.unpack_from("I", os.read(fd, 128))[0], int(signal.SIGUSR2))


@claim
def pseudo_terminals() -> Iterator[None]:
    master, slave = os.openpty()
    tty.setraw(slave)
    termios.tcsetwinsize(slave, (33, 111))
    settings = termios.tcgetattr(slave)
    name = os.ttyname(slave)
    while True:
        os.write(master, b"typed")
        os.write(slave, b"shown")
        yield
        same(os.ttyname(slave), name)
        same(termios.tcgetattr(slave), settings, "the settings")
        same(termios.tcgetwinsize(master), (33, 111))
        assert select.select([slave], [], [], 60)[0], "what was typed is lost"
        same(os.read(slave, 100), b"typed")
        same(os.read(master, 100), b"shown")
        os.write(master, b"again")
        same(os.read(slave, 100), b"again")


@claim
def session_with_a_terminal() -> Iterator[None]:
    """A shell-like session: controlling terminal, foreground group, Ctrl-C from the keyboard."""
    master, slave = os.openpty()

    def lead() -> None:
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        signal.signal(signal.SIGINT, lambda *_: seen.append("interrupted"))

    seen: list[str] = []

    def tell() -> tuple[object, ...]:
        with open("/dev/tty") as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpid(), tuple(seen)

    leader = Helper(first=lead, tell=tell)
    count = 0
    same(leader.ask(), (True, ()))
    while True:
        yield
        os.write(master, b"\x03")
        count += 1
        os.read(master, 100)
        while leader.ask() != (True, ("interrupted",) * count):
            pass


# ---- System V


IPC_CREAT, IPC_RMID, IPC_STAT, SETALL, GETALL, IPC_NOWAIT = 0o1000, 0, 2, 17, 13, 0o4000


@claim
def sysv_shared_memory() -> Iterator[None]:
    attached = libc.shmget(0x1111, 1 << 20, IPC_CREAT | 0o640)
    alone = libc.shmget(0x1112, 8192, IPC_CREAT | 0o600)
    assert attached >= 0 and alone >= 0
    address = libc.shmat(attached, None, 0)
    memory = (ctypes.c_char * (1 << 20)).from_address(address)
    memory[:8] = b"attached"
    other = libc.shmat(alone, None, 0)
    ctypes.memmove(other, b"detached", 8)
    libc.shmdt(ctypes.c_void_p(other))
    while True:
        yield
        same(memory[:8], b"attached")
        same(libc.shmget(0x1111, 0, 0), attached, "its id")
        same(libc.shmget(0x1112, 0, 0), alone, "its id")
        again = libc.shmat(attached, None, 0)
        ctypes.memmove(again + 8, b"!", 1)
        same(memory[:9], b"attached!", "what both attachments see")
        libc.shmdt(ctypes.c_void_p(again))
        other = libc.shmat(alone, None, 0)
        same(ctypes.string_at(other, 8), b"detached")
        libc.shmdt(ctypes.c_void_p(other))


@claim
def sysv_semaphores() -> Iterator[None]:
    number = libc.semget(0x2222, 3, IPC_CREAT | 0o600)
    assert number >= 0
    values = (ctypes.c_ushort * 3)(5, 0, 9)
    assert libc.semctl(number, 0, SETALL, values) == 0
    while True:
        yield
        same(libc.semget(0x2222, 0, 0), number)
        found = (ctypes.c_ushort * 3)()
        libc.semctl(number, 0, GETALL, found)
        same(list(found), [5, 0, 9])


@claim
def sysv_message_queues() -> Iterator[None]:
    number = libc.msgget(0x3333, IPC_CREAT | 0o600)
    assert number >= 0
    while True:
        for kind, text in ((3, b"third"), (1, b"first")):
            message = struct.pack("l", kind) + text
            assert libc.msgsnd(number, message, len(text), 0) == 0
        yield
        same(libc.msgget(0x3333, 0), number)
        buffer = ctypes.create_string_buffer(100)
        for kind, text in ((1, b"first"), (3, b"third")):
            same(libc.msgrcv(number, buffer, 90, kind, IPC_NOWAIT), 5)
            same(buffer.raw[8:13], text)


# ---- POSIX


class MqAttributes(ctypes.Structure):
    _fields_ = [("values", ctypes.c_long * 8)]


@claim
def posix_message_queues() -> Iterator[None]:
    attributes = MqAttributes((ctypes.c_long * 8)(0, 7, 100))
    queue = libc.mq_open(b"/survivor", os.O_RDWR | os.O_CREAT, 0o640, ctypes.byref(attributes))
    assert queue >= 0, os.strerror(ctypes.get_errno())
    unopened = libc.mq_open(b"/unopened", os.O_RDWR | os.O_CREAT, 0o600, None)
    libc.mq_send(unopened, b"waiting", 7, 3)
    libc.mq_close(unopened)
    buffer = ctypes.create_string_buffer(8192)
    while True:
        for priority, text in ((1, b"low"), (9, b"high"), (1, b"later")):
            assert libc.mq_send(queue, text, len(text), priority) == 0
        yield
        found = MqAttributes()
        assert libc.mq_getattr(queue, ctypes.byref(found)) == 0, "the descriptor is none"
        same(list(found.values)[1:4], [7, 100, 3])
        again = libc.mq_open(b"/survivor", os.O_RDONLY)
        assert again >= 0, "there is no queue of that name"
        for descriptor, priority, text in (
            (again, 9, b"high"),
            (queue, 1, b"low"),
            (again, 1, b"later"),
        ):
            got = ctypes.c_uint()
            length = libc.mq_receive(descriptor, buffer, 100, ctypes.byref(got))
            same((buffer.raw[: max(0, length)], got.value), (text, priority))
        libc.mq_close(again)
        unopened = libc.mq_open(b"/unopened", os.O_RDWR)
        assert unopened >= 0, os.strerror(ctypes.get_errno())
        same(libc.mq_receive(unopened, buffer, 8192, None), 7)
        libc.mq_send(unopened, b"waiting", 7, 3)
        libc.mq_close(unopened)


@claim
def posix_semaphores() -> Iterator[None]:
    libc.sem_open.restype = ctypes.c_void_p
    number = libc.sem_open(b"/semaphore", os.O_CREAT, 0o600, 4)
    assert number
    value = ctypes.c_int()
    while True:
        yield
        libc.sem_getvalue(ctypes.c_void_p(number), ctypes.byref(value))
        same(value.value, 4)
        again = libc.sem_open(b"/semaphore", 0)
        assert again, "there is no semaphore of that name"
        libc.sem_post(ctypes.c_void_p(again))
        libc.sem_getvalue(ctypes.c_void_p(number), ctypes.byref(value))
        same(value.value, 5, "its value after a post through its name")
        libc.sem_wait(ctypes.c_void_p(number))


@claim
def process_shared_futex() -> Iterator[None]:
    """A child waits for a semaphore in shared memory; posting it after the restore wakes the child."""
    import mmap

    area = mmap.mmap(-1, 4096)
    base = ctypes.addressof(ctypes.c_char.from_buffer(area))
    assert libc.sem_init(ctypes.c_void_p(base), 1, 0) == 0
    while True:
        child = os.fork()
        if child == 0:
            os._exit(9 if libc.sem_wait(ctypes.c_void_p(base)) == 0 else 1)
        yield
        same(os.waitpid(child, os.WNOHANG), (0, 0), "whether the child has ended already")
        libc.sem_post(ctypes.c_void_p(base))
        same(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 9)
