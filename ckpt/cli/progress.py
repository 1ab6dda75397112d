"""Progress of what takes longer than a second: one changing line on a terminal, lines otherwise."""

from __future__ import annotations

import sys
import time

import click

from ckpt.cli.show import size

_REDRAW = 0.1
_WINDOW = 2.0
"""Seconds over which the rate is taken: long enough to stand still, short enough to follow."""


class MigrationProgress:
    """Phases, bytes, rate and remaining time, on stderr."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._began = time.monotonic()
        self._phase = ""
        self._drawn = 0.0
        self._dirty = False
        self._samples: list[tuple[float, int]] = []

    def __enter__(self) -> MigrationProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """The line is done; what is printed next begins a new one."""
        if self._dirty:
            self._dirty = False
            click.echo("", err=True)

    def show(self, phase: str, count: int, expected: int) -> None:
        """PHASE is under way; COUNT bytes of EXPECTED (0: not known) have been sent in all."""
        if self._quiet:
            return
        now = time.monotonic()
        if self._terminal:
            if phase == self._phase and now - self._drawn < _REDRAW:
                return
            click.echo(f"\r{self._line(now, phase, count, expected)}\x1b[K", err=True, nl=False)
            self._dirty = True
        elif phase != self._phase:
            click.echo(f"{now - self._began:6.2f} s  {phase}  {size(count)}", err=True)
        self._phase, self._drawn = phase, now

    def _line(self, now: float, phase: str, count: int, expected: int) -> str:
        rate = self._rate(now, count)
        line = f"{phase:<10} {size(count):>10}"
        if expected > count:
            line += f" of {size(expected)}"
        if rate:
            line += f"  {size(rate)}/s"
            if expected > count:
                line += f"  {(expected - count) / rate:.0f} s left"
        return f"{line}  {now - self._began:.1f} s"

    def _rate(self, now: float, count: int) -> float:
        self._samples.append((now, count))
        while len(self._samples) > 2 and now - self._samples[0][0] > _WINDOW:
            self._samples.pop(0)
        began, before = self._samples[0]
        return (count - before) / (now - began) if now > began else 0.0
