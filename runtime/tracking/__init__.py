"""Which memory of a process changed since the last look. See docs/tracking.md.

tracker     what every tracker promises, and what its caller does
choose      the one that this host has
wp_async    userfaultfd write protection and PAGEMAP_SCAN; uffd, pagemap: thin wrappers
soft_dirty  soft-dirty bits
compare     digests of what the caller took
population  what of a range holds anything
guard       opens a userfaultfd of another process: injector (its process), injection (the story), frame, gadgets,
            ptrace
"""
