"""The flags of run, create, spec and update, and what they mean."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ckpt.ops import create as creating
from ckpt.ops import execute, lifecycle
from ckpt.ops.host import Host
from ckpt.ops.volumes import with_source
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

LIMITS = [
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
    click.option(
        "--disk", metavar="SIZE", help="What it may write, volumes apart: 2g; -1: no limit."
    ),
    click.option("--io-weight", type=int, metavar="N", help="Weight for disks, 10 to 1000."),
    click.option("--device-read-bps", multiple=True, metavar="DEV:RATE", help="/dev/sda:10m."),
    click.option("--device-write-bps", multiple=True, metavar="DEV:RATE", help="/dev/sda:10m."),
]

RUN = [
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
    click.option("--log-size", metavar="SIZE", help="Of one file of its log.  [default: 16m]"),
    click.option(
        "--log-files", type=click.IntRange(1, 100), metavar="N", help="Of its log.  [default: 4]"
    ),
    click.option("--label", multiple=True, metavar="KEY=VALUE", help="An annotation."),
    *LIMITS,
]


Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def options(several: Sequence[Decorator]) -> Decorator:
    """Several click options as one decorator."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(several):
            function = option(function)
        return function

    return decorate


def _pairs(values: tuple[str, ...], what: str) -> dict[str, str]:
    for value in values:
        if "=" not in value:
            raise BadInput(doing="reading", target=f"{what} {value!r}", why="it is KEY=VALUE")
    return dict(value.split("=", 1) for value in values)


def _rates(values: tuple[str, ...]) -> tuple[DeviceRate, ...]:
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


def limits_of(flags: dict[str, Any]) -> dict[str, Any]:
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
        "disk": size("disk"),
        "io_weight": flags.get("io_weight"),
        "io_read_bps": _rates(flags.get("device_read_bps") or ()),
        "io_write_bps": _rates(flags.get("device_write_bps") or ()),
    }


# What is not of the spec, or can be said besides.
_BUNDLE_TOO = frozenset(
    {"name", "network", "publish", "dns", "restart", "interactive", "rm", "log_size", "log_files"}
)


def _given(flags: dict[str, Any]) -> set[str]:
    """The flags that are on the command line."""
    source = click.get_current_context().get_parameter_source
    return {name for name in flags if source(name) is ParameterSource.COMMANDLINE}


def wish_of(host: Host, flags: dict[str, Any], rootfs: str, args: tuple[str, ...]) -> creating.Wish:
    """What the flags of run and create mean."""
    name = flags["name"] or f"c-{secrets.token_hex(4)}"
    network = parse_network(flags["network"])
    ports = tuple(port for text in flags["publish"] for port in parse_publish(text))
    network = network.replace(
        ports=network.ports + ports, dns_servers=network.dns_servers + tuple(flags["dns"])
    )
    path = Path(rootfs).absolute()
    if (path / "config.json").is_file():
        given = _given(flags)
        refused = sorted(given - _BUNDLE_TOO)
        if refused:
            raise BadInput(
                doing="reading",
                target="--" + refused[0].replace("_", "-"),
                why=f"with a bundle its {path / 'config.json'} says this",
            )
        bundle = creating.wish_from_bundle(
            path,
            name,
            args,
            network=network if given & {"network", "publish", "dns"} else None,
            restart=lifecycle.parse_restart(flags["restart"]) if "restart" in given else None,
            stdin=flags["interactive"],
            remove=flags.get("rm", False),
        )
        return replace(bundle, log=_log(flags))
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
            volumes=tuple(with_source(text, host.paths) for text in flags["volume"]),
            tty=flags["tty"],
            read_only=flags["read_only"],
            cap_add=flags["cap_add"],
            cap_drop=flags["cap_drop"],
            sysctl=_pairs(flags["sysctl"], "sysctl"),
            rlimits=flags["ulimit"],
            network=network.to_dict(),
            restart=flags["restart"],
            user_namespace=flags["userns"] == "auto",
            seccomp=_seccomp(flags["security_opt"]),
            annotations=_pairs(flags["label"], "label"),
            **limits_of(flags),
        )
    )
    size = execute.own_size() if flags["tty"] else None
    if size is not None:
        spec["process"]["consoleSize"] = {"height": size[0], "width": size[1]}
    return creating.Wish(
        name=name,
        spec=spec,
        rootfs=path,
        network=network,
        user_namespace=flags["userns"] == "auto",
        stdin=flags["interactive"],
        remove=flags.get("rm", False),
        restart=lifecycle.parse_restart(flags["restart"]),
        log=_log(flags),
    )


def _log(flags: dict[str, Any]) -> dict[str, int]:
    found = {}
    if flags["log_size"] is not None:
        found["max_bytes"] = parse_size(flags["log_size"], what="log_size")
        if found["max_bytes"] < 1:
            raise BadInput(doing="reading", target="--log-size", why="it has to be larger than 0")
    if flags["log_files"] is not None:
        found["files"] = flags["log_files"]
    return found
