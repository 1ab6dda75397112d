"""A group whose commands are imported when they are called: `ckpt ps` need not wait for an SSH library."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

import click


class LazyGroup(click.Group):
    """COMMANDS_IN names, by module, the commands that its COMMANDS list has."""

    commands_in: Mapping[str, tuple[str, ...]] = {}

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted(name for names in self.commands_in.values() for name in names)

    def get_command(self, context: click.Context, cmd_name: str) -> click.Command | None:
        for module, names in self.commands_in.items():
            if cmd_name in names:
                commands: list[click.Command] = import_module(module).COMMANDS
                return next(command for command in commands if command.name == cmd_name)
        return None
