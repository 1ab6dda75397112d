"""How the threads of a migration take turns."""

from __future__ import annotations

SWITCH = 0.0005
"""Seconds that a thread may keep the interpreter while another waits for it. Inside the frozen window CRIU, the files
and the last pages are served by a thread each, and Python's own 5 ms come in multiples.
"""
