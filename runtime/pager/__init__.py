"""The pager: gives restored tasks their pages, those that they touch at once and all others behind their back.

`criu restore --lazy-pages` registers the tasks' private memory with userfaultfds and sends these to whoever listens on
`lazy-pages.socket` in its work directory (criu/uffd.c). That is our pager, a process of its own which holds the pages
(memfds, see runtime/pagecache) and outlives the agent: from the commit on, these pages are all there is.

    __main__.py   the keeper, and in its child the worker; see there why two
    journal.py    what happened so far, in memory that both share
    worker.py     the loop: faults, CRIU's messages, our own orders, filling
    task.py       one address space: what it still needs, and its userfaultfd
    pending.py    the arithmetic of that: ranges that move, vanish and are copied by fork
    uffd.py       userfaultfd(2)'s ioctls and messages
    client.py     starting it and speaking to it
    privilege.py  vm.unprivileged_userfaultfd, while somebody needs it

The great danger is silence: when the last descriptor of a userfaultfd is closed, the kernel fills what is missing with
zeros, and nobody notices. So a userfaultfd is closed only when everything that it needs was placed; a page that can't
be had leaves its task waiting; and two processes hold the descriptors, either of which can go on alone.

Fork, mremap, munmap and madvise of a running task arrive as events, and the task waits until they were read. CRIU asks
for them; for a container in a user namespace as well, since the ioctl that enables them is made by a process of its own
outside. Without them a forked child would get zeros: then nothing must run before the filling is done (see Status).
"""
