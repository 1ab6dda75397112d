"""The same workload dumped and restored on one host, without ckpt: what the product is held against.

    raw         CRIU's own dump to files in memory and restore: the floor of everything that uses CRIU plainly
    pipeline    a warm move made of ckpt's parts, with nothing between them: no ssh, no agent, no transaction, no
                network, no files: what the parts could do at best
    reference   such a pipeline from elsewhere: --reference names a directory with container.py
                (ROOT NETNS COMMAND...: starts a container in that network namespace) and warm_pipeline.py (PID:
                moves it; told of CRIU, ROOTFS, NETNS_SRC and NETNS_DST by its environment)

Each runs in pid, mount and network namespaces of its own, which take all of it along when they end.

    python -m benchmarks.alone raw|pipeline|reference --mib N --root ROOT [--per-ms N]       (used by downtime.py)
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import pipeline
from benchmarks.bare import bind_to_itself, mount_tmpfs, start
from benchmarks.results import say
from benchmarks.workload import Ticks, WrongPages, command
from tests import needs

KINDS = ("raw", "pipeline", "reference")
_APART = ("--mount", "--pid", "--net", "--fork", "--kill-child", "--mount-proc")
_COMMON = ("--manage-cgroups=ignore", "--network-lock", "skip", "-v2")


def gap_ms(kind: str, root: Path, mib: int, per_ms: int, reference: Path | None = None) -> float:
    """One run of KIND: the workload's largest gap. Raises RuntimeError with what went wrong."""
    argv = [sys.executable, "-m", "benchmarks.alone", kind, "--root", root, "--mib", mib]
    argv += ["--per-ms", per_ms, *(["--reference", reference] if reference else [])]
    done = subprocess.run(
        ["unshare", *_APART, "--propagation", "private", "--", *map(str, argv)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=900,
    )
    if done.returncode:
        raise RuntimeError(f"{kind} with {mib} MiB: {(done.stderr or done.stdout)[-1500:]}")
    return float(json.loads(done.stdout.splitlines()[-1])["gap_ms"])


def criu() -> str:
    found = needs.find_criu()
    if found is None:
        raise RuntimeError("no CRIU: run scripts/setup-criu")
    return found


def raw(pid: int, root: Path, folder: Path) -> None:
    """`criu dump` and `criu restore`, one after the other."""
    common = [*_COMMON, "-D", str(folder)]
    subprocess.run([criu(), "dump", *common, "-t", str(pid), "-o", "d.log"], check=True)
    os.waitpid(pid, 0)  # ours since its parent ended
    words = ["restore", "--restore-detached", *common, "-o", "r.log", "--root", str(root)]
    subprocess.run([criu(), *words], check=True)


def reference(place: Path, root: Path, mib: int, per_ms: int, ticks: Ticks) -> None:
    """Have the programs in PLACE start and move the workload."""
    mount_tmpfs("/run/netns")
    for name in ("src", "dst"):
        subprocess.run(["ip", "netns", "add", name], check=True)
    words = [str(root), "src", *command(mib, per_ms)]
    subprocess.run([sys.executable, str(place / "container.py"), *words], check=True)
    ticks.wait_ready()
    ticks.wait_on()
    environment = {"CRIU": criu(), "ROOTFS": str(root), "NETNS_SRC": "src", "NETNS_DST": "dst"}
    subprocess.run(
        [sys.executable, str(place / "warm_pipeline.py"), str(workload())],
        env={**os.environ, **environment},
        check=True,
        stdout=sys.stderr,
    )


def workload() -> int:
    """The process id of the workload that runs in our namespace, the newest one."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                before, _, after = (entry / "stat").read_text().rpartition(")")
                if before.endswith("(load") and after.split()[0] not in "ZX":
                    found.append(int(entry.name))
    if not found:
        raise RuntimeError("the workload doesn't run any more")
    return max(found)


def measure(options: argparse.Namespace, folder: Path) -> float:
    root = options.root
    # Not on a mount of its own: CRIU would make that one anew.
    (root / "ticks/t").unlink(missing_ok=True)
    ticks = Ticks(root / "ticks/t")
    if options.kind == "reference":
        since = time.time_ns()
        reference(options.reference, root, options.mib, options.per_ms, ticks)
    else:
        bind_to_itself(str(root))
        pid = start(str(root), command(options.mib, options.per_ms))
        ticks.wait_ready()
        ticks.wait_on()
        since = time.time_ns()
        if options.kind == "raw":
            raw(pid, root, folder)
        else:
            pipeline.move(criu(), pid, root, folder)
    ticks.wait_on()
    gap = ticks.gap_ms(since)
    os.kill(workload(), signal.SIGUSR1)
    if bad := ticks.verdict():
        raise WrongPages(f"{bad} pages are wrong")
    return gap


def main() -> None:
    parser = argparse.ArgumentParser(description="Used by downtime.py.")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--mib", type=int, required=True)
    parser.add_argument("--per-ms", type=int, default=10)
    parser.add_argument("--reference", type=Path)
    options = parser.parse_args()
    if os.getpid() != 1:
        parser.error("not in a pid namespace of its own: it kills what is in there")
    # CRIU asks the kernel about TCP when it starts.
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory(prefix="ckpt-bench-") as name:
        mount_tmpfs(name)  # seen here only; memory, as the other contestants have it
        try:
            say(json.dumps({"gap_ms": measure(options, Path(name))}))
        except subprocess.CalledProcessError as error:
            logs = [path.read_text(errors="replace")[-1000:] for path in Path(name).rglob("*.log")]
            sys.exit(f"{error}\n" + "\n".join(logs))
        finally:
            _end_others()
            subprocess.run(["umount", "--lazy", name], check=False)


def _end_others() -> None:
    """Every process of this namespace but us: we are its first."""
    if os.getpid() == 1:
        os.kill(-1, signal.SIGKILL)


if __name__ == "__main__":
    main()
