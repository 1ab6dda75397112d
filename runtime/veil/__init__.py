"""CRIU behind a veil: it does not see the pages that we carry ourselves.

A dump with `--lazy-pages` leaves the pages in place, but CRIU still drains each of them into pipes and writes an entry
for it: 75 ms per GiB inside the frozen window. It finds the pages with the ioctl PAGEMAP_SCAN on /proc/PID/pagemap
(criu/pagemap-cache.c), or before Linux 6.7 by reading that file. So a small library of ours is preloaded into CRIU
(preload.c), whose ioctl() does these scans around the ranges that we carry, and whose pread() blanks their entries.
Which these are it asks once per process, when CRIU comes to it; then everything is frozen already.

    veil.py      the caller's side: starting CRIU so, and answering what is hidden
    preload.c    inside CRIU
    carry.py     which memory may be hidden at all
    handover.*   at the other end: a restoring CRIU takes shared memory that is there already

A seccomp filter could do the same without a library. But a tracer under a filter may not suspend the filters of those
it traces, and CRIU must: nearly every container has one.

What can go wrong, and then: the caller dies: the next question gets no answer, the scan fails with EIO, the dump fails,
the source resumes. The caller's `hide` fails: likewise. CRIU is never told a lie by accident: what is not hidden is
scanned by the real ioctl.

What processes share is hidden as a whole, object by object: CRIU looks for data in it with lseek(2).

What must not be hidden of a process's own: anything but anonymous private memory (a hidden page of a private file
mapping would come back as the file's), and the stack of the first thread, which CRIU wants itself. See docs/warm.md.
"""
