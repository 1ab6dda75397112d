"""The monitor's start and its last act; what lies between is runtime/monitor/monitor.py.

Started by path with `-I -S`, so that nothing of the environment and no site-packages are looked at, with two
arguments: the launch plan's path, and the descriptor of a socket to the starter. A script is compiled anew each time,
so there is next to nothing here.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    # Nobody's child from now on: no zombie of a long-lived starter remains, and its end doesn't matter.
    if os.fork():
        os._exit(0)
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, os.path.dirname(os.path.dirname(here)))
    from runtime.monitor import monitor

    monitor.run(sys.argv[1], int(sys.argv[2]))


if __name__ == "__main__":
    main()
