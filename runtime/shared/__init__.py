"""Memory that processes share without a file: MAP_SHARED | MAP_ANONYMOUS, and memfds.

The kernel keeps both as files of one internal tmpfs, whose inodes are what there is: mappings and descriptors of any
process come and go, and none of them sees all that is written. So an object is followed by its inode and its content.

    find.py     which objects processes have
    follow.py   one of them: what of it changed since it was read
"""
