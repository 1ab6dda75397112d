"""Where the program begins: `ckpt` and `python -m ckpt`.

Importing takes a while, and a Ctrl-C meanwhile has nothing to undo: it ends the process at once and without a word, as
the kernel would have it. The command line sets handlers of its own before it does anything.
"""

from __future__ import annotations

import signal


def main() -> None:
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from ckpt.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
