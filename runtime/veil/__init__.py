"""CRIU behind a veil: it does not see the pages that we carry ourselves.

A dump with `--lazy-pages` leaves the pages in place, but CRIU still drains each of them into pipes and writes an entry
for it: 75 ms per GiB inside the frozen window. It finds the pages with the ioctl PAGEMAP_SCAN on /proc/PID/pagemap
(criu/pagemap-cache.c). So CRIU runs under a seccomp filter that turns exactly this ioctl into a user notification, and
a process of ours answers it without the ranges that we carry.

What takes part:

    caller    Veil(hide): asked once per dumped process, when CRIU comes to it (then everything is frozen), which
              ranges of it to hide. Runs in a thread of the caller.
    launcher  becomes CRIU: loads the filter, hands the listener over, execs (launcher.py; a process of its own,
              because a process with threads must not fork and run Python).
    guard     answers the notifications (guard.py, answer.py); a process of its own, so that the caller's interpreter
              lock costs CRIU nothing.

What can go wrong, and then: the guard dies, or the caller does and with it the guard: the listener is closed, the
kernel answers every further PAGEMAP_SCAN with ENOSYS, the dump fails, the source resumes. The guard hangs: CRIU waits,
killably; whoever watches the dump kills it and the source resumes. The caller's `hide` fails: the guard answers with
EIO, the dump fails as well. CRIU is never told a lie by accident: what is not hidden is scanned by the real ioctl.

What must not be hidden: anything but anonymous private memory (a hidden page of a private file mapping would come back
as the file's), and the stack of the first thread, which CRIU wants itself. See docs/warm.md.

Needs a kernel with PAGEMAP_SCAN (6.7). Without it CRIU reads /proc/PID/pagemap, past us: Unsupported.
"""
