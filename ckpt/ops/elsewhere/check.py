"""`ckpt host check`: whether containers can move to another machine, as far as that can be said without one."""

from __future__ import annotations

import platform

from ckpt.ops.doctor import Row, examine_host
from ckpt.ops.elsewhere import cargo
from ckpt.ops.elsewhere.setup import Machine, look
from ckpt.ops.host import Host
from ckpt.ops.hosts import Registry
from runtime.errors import RuntimeFault


def check(host: Host, text: str, *, prefix: str) -> list[Row]:
    """Rows about the machine at TEXT (a name, or [USER@]HOST[:PORT]). Raises TransportFault when it can't be asked.

    The doctor's own rows follow when ckpt is there; of these only those that aren't well.
    """
    hosts = Registry(host)
    named = hosts.meant(text)
    fix = f"ckpt host setup {named.name or 'NAME'}"
    with hosts.connect(text) as session:
        found = look(session, prefix)
        where = session.direct_address or str(session.target)
    rows = [Row("SSH", f"logged in at {where}"), _system(found)]
    rows += [_code(found, fix), _criu(host, found, fix)]
    if found.answers:
        seen = {row.name for row in rows}
        examined, _ = examine_host(host, text)
        rows += [row for row in examined if row.level != "ok" and row.name not in seen]
    return rows


def prefix_of(host: Host, text: str, default: str) -> str:
    """Where `ckpt host setup` has installed it."""
    command = Registry(host).meant(text).command
    return command.removesuffix("/bin/ckpt") if command.endswith("/bin/ckpt") else default


def _system(found: Machine) -> Row:
    value = f"{found.system}, {found.machine}, Linux {found.kernel}"
    if found.machine != platform.machine():
        return Row("system", value, "bad", f"nothing from here ({platform.machine()}) runs there")
    return Row("system", value)


def _code(found: Machine, fix: str) -> Row:
    if not found.answers:
        return Row("ckpt", "none", "bad", "nothing can move there", fix)
    if found.code != cargo.own_digest():
        what = f"{found.answers}, another build than here"
        return Row("ckpt", what, "warn", "it moves only if both understand each other", fix)
    return Row("ckpt", f"{found.answers}, the same as here")


def _criu(host: Host, found: Machine, fix: str) -> Row:
    try:
        here = host.criu.text
    except RuntimeFault:
        here = "none"
    if not found.criu:
        return Row("CRIU", "none that is new enough", "bad", "nothing can be restored there", fix)
    if found.criu != here:
        value = f"{found.criu}, here {here}"
        return Row("CRIU", value, "warn", "what one writes the other may not understand", fix)
    return Row("CRIU", f"{found.criu}, the same as here")
