"""The commit of a dump with lazy pages: one connection whose end decides over the source's tasks.

With `--lazy-pages` CRIU dumps everything but the pages that can wait, keeps the tasks frozen, and serves these pages
over its page-server protocol until the session ends. How it ends is the verdict (CRIU 4.1 to 4.2, page_server_serve
in criu/page-xfer.c and cr_dump_finish in criu/cr-dump.c; tried, see tests/e2e/test_warm_parts.py):

    CLOSE               answered with four zero bytes; the dump has succeeded: the tasks are killed
    reset               the dump has failed: the tasks run on
    end of file         taken for success as well: the tasks are killed

The last one is a trap: a process that dies closes its sockets in good order, and the source would be killed although
nobody said so. Therefore our end never closes in good order: SO_LINGER with a time of zero makes every close a reset,
also the kernel's when we are killed. CRIU gets its end as an inherited descriptor (`--ps-socket`): so there is no port
that somebody else could connect to, and no moment in which CRIU waits for a connection that never comes.

After a reset CRIU does not unlock the network that it locked: the caller does (or lets the hook `post-dump` fail
first, after which CRIU unlocks, and resumes the tasks whatever the session's end).

We need no page from this server: the pages are read out of the frozen tasks directly.
"""

from __future__ import annotations

import socket
import struct

from runtime.errors import SystemFault, TimedOut, from_os_error

_REQUEST = struct.Struct("=I4xQQQ")
"""struct page_server_iov: command, pages, address, id."""
_REQUEST_BEFORE_4_2 = struct.Struct("=IIQQ")
"""The same of older ones. A request that is longer than CRIU reads makes its close a reset: the rest is unread."""
_CLOSE = 0x1023
_ANSWER = bytes(4)


class PageServer:
    """Both ends of CRIU's page-server session. Use as a context manager: leaving it without a verdict resumes.

    Give `options` to `criu dump` and `inherit` to the child that becomes CRIU; call started() in between.
    """

    def __init__(self, version: tuple[int, ...] = (4, 2)) -> None:
        """VERSION: CRIU's."""
        self._request = _REQUEST if version >= (4, 2) else _REQUEST_BEFORE_4_2
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen(1)
            self._ours = socket.create_connection(listener.getsockname())
            self._ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            try:
                self._theirs: socket.socket | None = self._accept(listener)
            except BaseException:
                self._ours.close()
                raise

    def _accept(self, listener: socket.socket) -> socket.socket:
        """Our own connection: anybody on this host can connect to a port for as long as it listens."""
        while True:
            theirs, peer = listener.accept()
            if peer == self._ours.getsockname():
                return theirs
            theirs.close()

    def __enter__(self) -> PageServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.drop_to_resume()

    @property
    def inherit(self) -> int:
        """The descriptor that CRIU must inherit under the same number."""
        assert self._theirs is not None, "CRIU has been started"
        return self._theirs.fileno()

    @property
    def options(self) -> list[str]:
        return ["--lazy-pages", "--ps-socket", str(self.inherit)]

    def started(self) -> None:
        """CRIU has its end: close ours of it, so that CRIU's death is seen."""
        if self._theirs is not None:
            self._theirs.close()
            self._theirs = None

    def close_and_kill(self, timeout: float = 30.0) -> None:
        """End the dump well; CRIU then kills the tasks. Waits at most TIMEOUT seconds for its answer.

        Raises SystemFault when CRIU has gone (the tasks then run, unless it got as far as killing them), TimedOut.
        After a fault ask CRIU's exit status, which tells what became of the tasks.
        """
        self._ours.settimeout(timeout)
        doing, target = "ending the dump with", "CRIU's page server"
        try:
            self._ours.sendall(self._request.pack(_CLOSE, 0, 0, 0))
            answer = self._ours.recv(len(_ANSWER), socket.MSG_WAITALL)
        except TimeoutError:
            raise TimedOut(
                doing=doing, target=target, why=f"no answer within {timeout:g} s"
            ) from None
        except OSError as error:
            raise from_os_error(error, doing=doing, target=target) from error
        if answer != _ANSWER:
            raise SystemFault(
                doing=doing, target=target, why=f"it answered {answer.hex() or 'nothing'}"
            )

    def drop_to_resume(self) -> None:
        """Reset the connection: CRIU fails, the tasks run on. Nothing happens after close_and_kill()."""
        self.started()
        self._ours.close()
