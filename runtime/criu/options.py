"""CRIU's command line for our containers.

Decisions that hold for every dump and restore:
- `--stream`: images pass through us, never through files of CRIU's own; what becomes of them is the caller's choice.
- `--manage-cgroups=ignore`: ckpt makes the cgroups and starts CRIU inside them; restored tasks inherit the place.
- `--empty-ns net`: the network namespace must belong to the container's user namespace (CRIU checks that, and
  TCP_REPAIR needs it), so CRIU makes an empty one inside it, and the hook `setup-namespaces` plugs the network in.
- `--tcp-established`, `--file-locks`, `--link-remap`: open connections, locks and removed files are part of the state.
"""

from __future__ import annotations

from collections.abc import Iterable

GHOST_LIMIT = 64 << 20
"""Bytes of a removed but open file that CRIU carries in the images; its own default is 1 MiB."""

_COMMON = [
    "--stream",
    "--manage-cgroups=ignore",
    "--tcp-established",
    "--file-locks",
    "--link-remap",
    "--ghost-limit",
    str(GHOST_LIMIT),
    "-v4",
    "--display-stats",
]


def dump_argv(
    criu: str,
    *,
    pid: int,
    images: str,
    log: str,
    externals: Iterable[tuple[str, str]],
    files: Iterable[str] = (),
    watched: Iterable[str] = (),
    own_network: bool,
    leave_running: bool,
    timeout: int,
) -> list[str]:
    """`criu dump` of the tree of PID. IMAGES: the socket's directory (85 characters at most); LOG is relative to it.

    EXTERNALS: pairs of mount point in the container and key. FILES: keys of outside files. WATCHED: where its inotify
    watches are. TIMEOUT: seconds for the freezing.
    """
    argv = [criu, "dump", *_COMMON, "-t", str(pid), "-D", images, "-o", log]
    argv += ["--network-lock", "nftables" if own_network else "skip", "--timeout", str(timeout)]
    if own_network:
        argv += ["--empty-ns", "net"]
    if leave_running:
        argv.append("--leave-running")
    for point, key in externals:
        argv += ["--external", f"mnt[{point}]:{key}"]
    for key in files:
        argv += ["--external", key]
    for path in watched:
        argv += ["--irmap-scan-path", path]
    return argv


def restore_argv(criu: str, *, images: str, log: str, pidfile: str, own_network: bool) -> list[str]:
    """`criu restore` as a child's sibling. The monitor adds root, externals and inherited pipes."""
    argv = [criu, "restore", *_COMMON, "-D", images, "-o", log, "--pidfile", pidfile]
    argv += ["--restore-detached", "--restore-sibling"]
    if own_network:
        argv += ["--empty-ns", "net"]
    return argv
