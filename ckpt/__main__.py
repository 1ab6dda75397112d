"""Where the program begins: `ckpt` and `python -m ckpt`.

Importing takes a while, and a Ctrl-C meanwhile has nothing to undo: it ends the process at once and without a word, as
the kernel would have it. The command line sets handlers of its own before it does anything.
"""

from __future__ import annotations

import os
import signal

SYSTEM = ("/usr/local/sbin", "/usr/sbin", "/sbin")


def with_system_programs(path: str) -> str:
    """PATH with the directories of root's programs (nft) at its end: cron doesn't name them."""
    words = (path or os.defpath).split(":")
    return ":".join([*words, *(one for one in SYSTEM if one not in words)])


def main() -> None:
    # For all that is started from here as well.
    os.environ["PATH"] = with_system_programs(os.environ.get("PATH", ""))
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from ckpt.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
