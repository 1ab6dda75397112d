"""run, create, start, stop, kill, rm, ps, inspect, logs, wait, rename, update, stats, spec."""

from __future__ import annotations

import json
import secrets
import signal
import sys
from pathlib import Path
from typing import Any

import click

from ckpt.cli import show
from ckpt.cli.types import CONTAINER, command, json_option
from ckpt.ops import create as creating
from ckpt.ops import execute, info, lifecycle, limits
from ckpt.ops.host import Host, lock_container
from runtime.cgroups.parse import (
    parse_cpus,
    parse_cpuset,
    parse_device_rate,
    parse_duration_us,
    parse_size,
)
from runtime.errors import BadInput
from runtime.network.config import parse_network, parse_publish
from runtime.spec import DeviceRate, Options, from_flags

_LIMITS = [
    click.option("--memory", "-m", metavar="SIZE", help="Memory limit, for instance 512m."),
    click.option("--memory-swap", metavar="SIZE", help="Memory and swap together; -1: no limit."),
    click.option("--memory-reservation", metavar="SIZE", help="Memory kept for it under pressure."),
    click.option("--cpus", metavar="N", help="CPUs' worth of time, for instance 1.5."),
    click.option(
        "--cpu-shares", type=int, metavar="N", help="Weight among others (1024 is usual)."
    ),
    click.option("--cpu-burst", metavar="TIME", help="Unused quota that may be saved up: 20ms."),
    click.option("--cpuset-cpus", metavar="LIST", help="CPUs it may use: 0-2,5."),
    click.option("--cpuset-mems", metavar="LIST", help="Memory nodes it may use."),
    click.option("--pids-limit", type=int, metavar="N", help="Processes and threads, at most."),
    click.option("--io-weight", type=int, metavar="N", help="Weight for disks, 10 to 1000."),
    click.option("--device-read-bps", multiple=True, metavar="DEV:RATE", help="/dev/sda:10m."),
    click.option("--device-write-bps", multiple=True, metavar="DEV:RATE", help="/dev/sda:10m."),
]

_RUN = [
    click.option("--name", help="Its name; a random one otherwise."),
    click.option("-e", "--env", multiple=True, metavar="NAME=VALUE", help="Environment variable."),
    click.option("-w", "--workdir", default="/", show_default=True, help="Working directory."),
    click.option("-u", "--user", default="", metavar="USER[:GROUP]", help="Name or id."),
    click.option("--hostname", default="", help="Its host name; its name otherwise."),
    click.option(
        "-v", "--volume", multiple=True, metavar="SRC:DST[:ro]", help="Bind a path of the host."
    ),
    click.option(
        "--tmpfs", multiple=True, metavar="PATH[:OPTIONS]", help="A tmpfs, e.g. /tmp:size=64m."
    ),
    click.option("--read-only", is_flag=True, help="A root file system that can't be written."),
    click.option("-t", "--tty", is_flag=True, help="A terminal."),
    click.option("-i", "--interactive", is_flag=True, help="Keep standard input open."),
    click.option(
        "--network",
        default="bridge",
        show_default=True,
        metavar="KIND",
        help="none, host, bridge, or l2=BRIDGE,ip=ADDRESS/PREFIX[,gw=ADDRESS].",
    ),
    click.option(
        "-p", "--publish", multiple=True, metavar="[IP:]PORT:PORT[/PROTO]", help="Publish a port."
    ),
    click.option("--dns", multiple=True, metavar="ADDRESS", help="A name server."),
    click.option("--cap-add", multiple=True, metavar="CAP", help="Give a capability, or ALL."),
    click.option("--cap-drop", multiple=True, metavar="CAP", help="Take a capability, or ALL."),
    click.option(
        "--security-opt", multiple=True, metavar="OPTION", help="seccomp=unconfined|FILE."
    ),
    click.option(
        "--sysctl", multiple=True, metavar="KEY=VALUE", help="A setting of its own namespaces."
    ),
    click.option("--ulimit", multiple=True, metavar="NAME=SOFT[:HARD]", help="nofile=1024:4096."),
    click.option(
        "--userns",
        type=click.Choice(["auto", "host"]),
        default="auto",
        show_default=True,
        help="auto: an id range of its own; host: the host's ids.",
    ),
    click.option(
        "--restart",
        default="no",
        show_default=True,
        metavar="POLICY",
        help="no, on-failure[:N] or always.",
    ),
    click.option("--label", multiple=True, metavar="KEY=VALUE", help="An annotation."),
    *_LIMITS,
]


def _options(options: list[Any]) -> Any:
    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _pairs(values: tuple[str, ...], what: str) -> dict[str, str]:
    for value in values:
        if "=" not in value:
            raise BadInput(doing="reading", target=f"{what} {value!r}", why="it is KEY=VALUE")
    return dict(value.split("=", 1) for value in values)


def _rates(values: tuple[str, ...]) -> tuple[DeviceRate, ...]:
    import os

    rates = []
    for value in values:
        path, rate = parse_device_rate(value)
        try:
            device = os.stat(path).st_rdev
        except OSError as error:
            raise BadInput(
                doing="reading", target=f"device {path}", why=error.strerror or str(error)
            ) from None
        rates.append(DeviceRate(os.major(device), os.minor(device), rate))
    return tuple(rates)


def _seccomp(values: tuple[str, ...]) -> Any:
    profile: Any = "default"
    for value in values:
        key, _, setting = value.partition("=")
        if key != "seccomp" or not setting:
            raise BadInput(
                doing="reading", target=f"--security-opt {value!r}", why="it is seccomp=…"
            )
        if setting == "unconfined":
            profile = "unconfined"
            continue
        try:
            profile = json.loads(Path(setting).read_text())
        except (OSError, ValueError) as error:
            raise BadInput(doing="reading", target=setting, why=str(error)) from None
    return profile


def _limits(flags: dict[str, Any]) -> dict[str, Any]:
    """Flags as the fields of Options."""

    def size(key: str) -> int | None:
        text = flags.get(key)
        return None if text is None else parse_size(text, what=key)

    cpus = None
    if flags.get("cpus") is not None:
        quota = parse_cpus(flags["cpus"])
        cpus = quota / 100_000 if quota > 0 else None
    burst = flags.get("cpu_burst")
    for key in ("cpuset_cpus", "cpuset_mems"):
        if flags.get(key):
            parse_cpuset(flags[key])
    return {
        "memory": size("memory"),
        "memory_swap": size("memory_swap"),
        "memory_reservation": size("memory_reservation"),
        "cpus": cpus,
        "cpu_shares": flags.get("cpu_shares"),
        "cpu_burst": None if burst is None else parse_duration_us(burst),
        "cpuset_cpus": flags.get("cpuset_cpus") or "",
        "cpuset_mems": flags.get("cpuset_mems") or "",
        "pids": flags.get("pids_limit"),
        "io_weight": flags.get("io_weight"),
        "io_read_bps": _rates(flags.get("device_read_bps") or ()),
        "io_write_bps": _rates(flags.get("device_write_bps") or ()),
    }


def wish_of(flags: dict[str, Any], rootfs: str, args: tuple[str, ...]) -> creating.Wish:
    """What the flags of run and create mean."""
    name = flags["name"] or f"c-{secrets.token_hex(4)}"
    network = parse_network(flags["network"])
    ports = tuple(port for text in flags["publish"] for port in parse_publish(text))
    network = network.replace(
        ports=network.ports + ports, dns_servers=network.dns_servers + tuple(flags["dns"])
    )
    path = Path(rootfs).absolute()
    restart = lifecycle.parse_restart(flags["restart"])
    common = {
        "stdin": flags["interactive"],
        "remove": flags.get("rm", False),
        "restart": restart,
    }
    if (path / "config.json").is_file():
        wish = creating.wish_from_bundle(path, name, network)
        return creating.with_settings(wish, args, **common)
    if not args:
        raise BadInput(
            doing="reading",
            target="the command",
            why="there is none",
            hint="ckpt run ROOTFS -- COMMAND",
        )
    spec = from_flags(
        Options(
            args=args,
            rootfs=str(path) if path.is_dir() else "",
            env=flags["env"],
            cwd=flags["workdir"],
            user=flags["user"],
            hostname=flags["hostname"] or name,
            tmpfs=flags["tmpfs"],
            volumes=flags["volume"],
            tty=flags["tty"],
            read_only=flags["read_only"],
            cap_add=flags["cap_add"],
            cap_drop=flags["cap_drop"],
            sysctl=_pairs(flags["sysctl"], "sysctl"),
            rlimits=flags["ulimit"],
            network={"kind": network.kind},
            restart=flags["restart"],
            user_namespace=flags["userns"] == "auto",
            seccomp=_seccomp(flags["security_opt"]),
            annotations=_pairs(flags["label"], "label"),
            **_limits(flags),
        )
    )
    return creating.Wish(
        name=name,
        spec=spec,
        rootfs=path,
        network=network,
        user_namespace=flags["userns"] == "auto",
        **common,
    )


@command("run", context_settings={"ignore_unknown_options": False})
@_options(_RUN)
@click.option("-d", "--detach", is_flag=True, help="Don't wait for its end.")
@click.option("--rm", is_flag=True, help="Remove it when it has ended.")
@click.argument("rootfs")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def run(host: Host, rootfs: str, args: tuple[str, ...], detach: bool, **flags: Any) -> None:
    """Run a command in a new container.

    ROOTFS is a directory, a tar archive (plain, gzip, zstd), or an OCI bundle with a config.json.

    \b
    ckpt run --rm -it ./debian -- bash
    ckpt run -d --name db --memory 1g -p 5432:5432 ./pg.tar.zst -- postgres -D /data
    """
    wish = wish_of(flags, rootfs, args)
    if detach:
        container = creating.run(host, wish)
        click.echo(container.record.name)
        return
    container = creating.create(host, wish)
    name = container.record.name
    try:
        control, terminal = execute.attach(host, name)
        with lock_container(container):
            lifecycle.start(host, container)
    except BaseException:
        creating.forget(host, container)
        raise
    with control:
        end = execute.follow(control, terminal=terminal, stdin=wish.stdin)
    if wish.remove:
        lifecycle.remove_quietly(host, name)
    sys.exit(end["exit_code"])


@command("create")
@_options(_RUN)
@click.option("--rm", is_flag=True, help="Remove it when it has ended.")
@click.argument("rootfs")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def create(host: Host, rootfs: str, args: tuple[str, ...], **flags: Any) -> None:
    """Make a container without starting its command.

    \b
    ckpt create --name web ./rootfs -- nginx -g 'daemon off;'
    ckpt start web
    """
    click.echo(creating.create(host, wish_of(flags, rootfs, args)).record.name)


@command("spec")
@_options(_RUN)
@click.argument("rootfs")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
def spec(host: Host, rootfs: str, args: tuple[str, ...], **flags: Any) -> None:
    """Print the OCI spec that these flags produce."""
    click.echo(json.dumps(wish_of(flags, rootfs, args).spec, indent=2))


@command("start")
@click.argument("names", nargs=-1, required=True, type=CONTAINER)
def start(host: Host, names: tuple[str, ...]) -> None:
    """Start containers that are created or have ended."""
    for name in names:
        container = host.find(name)
        with lock_container(container):
            lifecycle.start(host, host.find(container.record.id))
        click.echo(container.record.name)


@command("stop")
@click.option(
    "-t",
    "--time",
    "grace",
    type=click.FloatRange(0),
    default=10.0,
    show_default=True,
    help="Seconds until it is killed.",
)
@click.option(
    "-s", "--signal", "number", default="TERM", show_default=True, help="What asks it to end."
)
@click.argument("names", nargs=-1, required=True, type=CONTAINER)
def stop(host: Host, names: tuple[str, ...], grace: float, number: str) -> None:
    """Ask containers to end; kill them if they don't."""
    for name in names:
        container = host.find(name)
        with lock_container(container):
            lifecycle.stop(
                host, host.find(container.record.id), grace=grace, number=_signal(number)
            )
        click.echo(container.record.name)


@command("kill")
@click.option("-s", "--signal", "number", default="KILL", show_default=True)
@click.argument("names", nargs=-1, required=True, type=CONTAINER)
def kill(host: Host, names: tuple[str, ...], number: str) -> None:
    """Send a signal to containers' first processes."""
    for name in names:
        lifecycle.kill(host.find(name), _signal(number))
        click.echo(name)


def _signal(text: str) -> int:
    try:
        return (
            int(text)
            if text.isdigit()
            else int(signal.Signals["SIG" + text.upper().removeprefix("SIG")])
        )
    except KeyError:
        raise BadInput(
            doing="reading", target=f"signal {text!r}", why="there is none such"
        ) from None


@command("rm")
@click.option("-f", "--force", is_flag=True, help="Kill it first.")
@click.argument("names", nargs=-1, required=True, type=CONTAINER)
def rm(host: Host, names: tuple[str, ...], force: bool) -> None:
    """Delete containers, with everything they wrote."""
    for name in names:
        container = host.find(name)
        with lock_container(container):
            lifecycle.remove(host, host.find(container.record.id), force=force)
        click.echo(container.record.name)


@command("ps")
@click.option("-a", "--all", "everything", is_flag=True, help="Those that don't run, too.")
@click.option("-q", "--quiet", is_flag=True, help="Only names.")
@json_option
def ps(host: Host, everything: bool, quiet: bool, as_json: bool) -> None:
    """List containers."""
    found = [info.summary(container) for container in host.containers()]
    if not everything:
        found = [one for one in found if one["state"] in lifecycle.LIVE]
    if as_json:
        show.emit_json(found)
    elif quiet:
        for one in found:
            click.echo(one["name"])
    else:
        show.table(
            ("NAME", "ID", "STATE", "CREATED", "ADDRESS", "COMMAND"),
            (
                (
                    one["name"],
                    one["id"],
                    one["state_text"],
                    show.ago(one["created_ns"]),
                    ",".join(one["addresses"]) or "-",
                    " ".join(one["args"])[:60],
                )
                for one in found
            ),
        )


@command("inspect")
@click.argument("name", type=CONTAINER)
def inspect(host: Host, name: str) -> None:
    """Everything about a container, as JSON."""
    click.echo(json.dumps(info.details(host, host.find(name)), indent=2))


@command("logs")
@click.option("-f", "--follow", is_flag=True, help="Go on as it writes.")
@click.option("-n", "--tail", type=click.IntRange(0), help="Only the last lines.")
@click.option("-t", "--timestamps", is_flag=True)
@click.option("--job", type=int, default=0, help="The log of a job.")
@click.argument("name", type=CONTAINER)
def logs(host: Host, name: str, follow: bool, tail: int | None, timestamps: bool, job: int) -> None:
    """What a container wrote."""
    for stream, line in info.log_lines(
        host.find(name), job=job, follow=follow, tail=tail, stamps=timestamps
    ):
        target = sys.stderr if stream == "stderr" else sys.stdout
        target.buffer.write(line)
        target.flush()


@command("wait")
@click.option("--job", type=int, default=0, help="Wait for a job instead.")
@json_option
@click.argument("name", type=CONTAINER)
def wait(host: Host, name: str, job: int, as_json: bool) -> None:
    """Wait until a container has ended; print its exit status."""
    end = lifecycle.wait(host.find(name), job)
    if as_json:
        show.emit_json(end)
    else:
        click.echo(end["exit_code"])


@command("rename")
@click.argument("name", type=CONTAINER)
@click.argument("new_name")
def rename(host: Host, name: str, new_name: str) -> None:
    """Give a container another name."""
    lifecycle.rename(host, host.find(name), new_name)


@command("update")
@_options(_LIMITS)
@click.argument("name", type=CONTAINER)
def update(host: Host, name: str, **flags: Any) -> None:
    """Change the limits of a container, also while it runs.

    \b
    ckpt update --memory 2g --cpus 3 web
    """
    limits.update(host, host.find(name), _limits(flags))


@command("stats")
@json_option
@click.argument("names", nargs=-1, type=CONTAINER)
def stats(host: Host, names: tuple[str, ...], as_json: bool) -> None:
    """What running containers use."""
    chosen = [host.find(name) for name in names] or [
        container for container in host.containers() if container.status().state in lifecycle.LIVE
    ]
    found = [limits.stats(host, container) for container in chosen]
    if as_json:
        show.emit_json(found)
        return
    show.table(
        ("NAME", "MEMORY", "LIMIT", "CPU TIME", "PIDS", "READ", "WRITTEN", "OOM KILLS"),
        (_usage(one) for one in found),
    )


def _usage(one: dict[str, Any]) -> tuple[str, ...]:
    memory, cpu, pids = one["memory"], one["cpu"], one["pids"]

    def size(value: int | None) -> str:
        return "-" if value is None else show.size(value)

    return (
        one["name"],
        size(memory["usage"]),
        size(memory["limit"]),
        "-" if cpu["usage_us"] is None else f"{cpu['usage_us'] / 1e6:.2f} s",
        "-" if pids["current"] is None else str(pids["current"]),
        size(sum(entry["read_bytes"] for entry in one["io"])),
        size(sum(entry["write_bytes"] for entry in one["io"])),
        "-" if memory["oom_kill"] is None else str(memory["oom_kill"]),
    )


COMMANDS = [
    run,
    create,
    spec,
    start,
    stop,
    kill,
    rm,
    ps,
    inspect,
    logs,
    wait,
    rename,
    update,
    stats,
]
