"""The command line. A file per group of commands; each parses, calls one operation, and renders."""

from __future__ import annotations

import logging
import sys

import click

from ckpt import __version__
from ckpt.cli.edge import conclude
from ckpt.cli.lazy import LazyGroup
from ckpt.ops import interrupt
from ckpt.ops.host import Host


class _Commands(LazyGroup):
    commands_in = {
        "ckpt.cli.running": ("run", "create", "spec"),
        "ckpt.cli.containers": ("start", "stop", "kill", "rm", "inspect", "wait", "rename"),
        "ckpt.cli.looking": ("ps", "logs"),
        "ckpt.cli.limits": ("update", "stats"),
        "ckpt.cli.jobs": ("exec", "attach", "jobs"),
        "ckpt.cli.checkpoints": ("dump", "restore", "checkpoints"),
        "ckpt.cli.migration": ("migrate", "recover"),
        "ckpt.cli.serving": ("agent",),
        "ckpt.cli.forecast": ("forecast",),
        "ckpt.cli.doctor": ("doctor",),
        "ckpt.cli.hosts": ("host",),
        "ckpt.cli.internal": ("internal",),
    }


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="ckpt")
@click.option(
    "--root",
    envvar="CKPT_ROOT",
    metavar="DIR",
    help="Where this host keeps its containers and checkpoints.  [default: /var/lib/ckpt]",
)
@click.option("-v", "--verbose", count=True, help="Say what is done; twice: everything.")
@click.pass_context
def cli(context: click.Context, root: str | None, verbose: int) -> None:
    """Containers that move: run, checkpoint, restore and live-migrate them.

    \b
    ckpt run -d --name web ./rootfs -- nginx -g 'daemon off;'
    ckpt dump web --leave-running
    ckpt migrate web root@other
    """
    level = {0: logging.ERROR, 1: logging.INFO}.get(verbose, logging.DEBUG)
    logging.basicConfig(level=level, format="%(asctime)s %(name)s: %(message)s")
    if verbose < 3:
        logging.getLogger("paramiko").setLevel(logging.CRITICAL)
    context.obj = Host.here(root)


def main() -> None:
    """The command line, to its exit code. click's own ways to end are its; all others are the edge's."""
    interrupt.install()
    try:
        # Not standalone: click would turn an interruption into "Aborted!" and a code of its own.
        code = cli.main(prog_name="ckpt", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort as error:
        sys.exit(conclude(error.__cause__ or KeyboardInterrupt()))
    except (Exception, interrupt.Interrupted) as error:  # outside of any command
        sys.exit(conclude(error))
    sys.exit(code if isinstance(code, int) else 0)
