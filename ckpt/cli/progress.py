"""Progress of what takes longer than a second: one changing line on a terminal, lines otherwise."""

from __future__ import annotations

import sys
import time

import click

from ckpt.cli.show import size


class MigrationProgress:
    """Phases, bytes and rate, on stderr."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._began = time.monotonic()
        self._phase = ""
        self._drawn = 0.0
        self._dirty = False

    def __enter__(self) -> MigrationProgress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._dirty:
            click.echo("", err=True)

    def show(self, phase: str, count: int) -> None:
        """PHASE is under way or just ended; COUNT bytes have been sent in all."""
        if self._quiet:
            return
        now = time.monotonic()
        if self._terminal:
            if phase == self._phase and now - self._drawn < 0.1:
                return
            passed = now - self._began
            rate = count / passed if passed else 0
            line = f"{phase:<10} {size(count):>10}  {size(rate):>10}/s  {passed:5.1f} s"
            click.echo(f"\r{line}\x1b[K", err=True, nl=False)
            self._dirty = True
        elif phase != self._phase:
            click.echo(f"{now - self._began:6.2f} s  {phase}  {size(count)}", err=True)
        self._phase, self._drawn = phase, now
