"""What happens between fork and exec: namespaces, mounts, credentials, of the first process and of jobs.

This runs in the monitor and in its forked children, so it imports only what is small: the os module and friends,
`runtime.syscalls`, and nothing that pulls in dataclasses, typing machinery or a third-party package. Its input is the
launch plan (runtime/launch.py): plain JSON values, checked and resolved beforehand by a process that may be big.
"""
