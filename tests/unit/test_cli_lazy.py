"""The command line's table of commands."""

from __future__ import annotations

from importlib import import_module

import click

from ckpt.cli import cli
from ckpt.cli.lazy import LazyGroup


def test_the_table_names_every_command_of_every_module() -> None:
    assert isinstance(cli, LazyGroup)
    for module, names in cli.commands_in.items():
        assert [command.name for command in import_module(module).COMMANDS] == list(names)


def test_each_command_is_found_by_its_name_and_has_help() -> None:
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None and command.get_short_help_str()


def test_a_command_that_is_not_there_is_refused() -> None:
    assert cli.get_command(click.Context(cli), "no-such-command") is None
