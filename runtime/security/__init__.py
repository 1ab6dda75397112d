"""What a container's processes may do: capabilities, system calls, paths, kernel settings, limits.

Everything is decided in the CLI process, as plain data (numbers, bytes) that goes to the monitor as
JSON; the stage that becomes the container's program only carries it out (`apply`).
"""
