"""CRIU, pycriu, and the compiler of the containers' init."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ckpt.ops.doctor.row import Probe, Row, reason
from ckpt.ops.host import Host
from runtime.criu import binary
from runtime.errors import RuntimeFault
from runtime.init.build import init_program
from runtime.programs import run

# `criu check --feature`: what its lack means. Asked one by one: with several, CRIU tells only whether all are there.
_FEATURES = (
    ("uffd-noncoop", "no lazy restore"),
    ("timens", "clocks of restored processes jump"),
    ("memfd_hugetlb", "huge-page memfds can't be dumped"),
    ("mem_dirty_track", ""),  # we track by ourselves
)
_SECONDS = 10.0


def probes(host: Host) -> dict[str, Probe]:
    return {
        "CRIU": criu,
        "CRIU check": check,
        "CRIU features": features,
        "pycriu": pycriu,
        "C compiler": lambda: compiler(host),
    }


def criu() -> Row:
    try:
        found = binary.find()
    except RuntimeFault as fault:
        return Row("CRIU", fault.why, "bad", "nothing can be dumped or restored", _CURE, "criu")
    return Row("CRIU", f"{found.text} at {found.path}")


_CURE = "ckpt doctor --fix, or install CRIU 4.1 or newer and set CKPT_CRIU"


def check() -> Row:
    try:
        done = run([binary.find().path, "check"], what="asking", timeout=_SECONDS, check=False)
    except RuntimeFault as fault:
        return Row("CRIU check", "not possible", "bad", reason(fault), _CURE)
    if done.returncode == 0:
        return Row("CRIU check", "looks good")
    said = (done.stdout + done.stderr).decode(errors="replace").splitlines()
    errors = [line for line in said if "Error" in line] or said[-1:]
    why = errors[0].strip() if errors else f"exit status {done.returncode}"
    return Row("CRIU check", "failed", "bad", f"dump and restore fail: {why}", _CURE)


def features() -> Row:
    path = binary.find().path
    there, missing = [], []
    for feature, consequence in _FEATURES:
        done = run(
            [path, "check", "--feature", feature], what="asking", timeout=_SECONDS, check=False
        )
        if done.returncode == 0:
            there.append(feature)
        else:
            missing.append((feature, consequence))
    value = " ".join(there) or "none"
    if missing:
        value += f"; without {', '.join(name for name, _ in missing)}"
    felt = [f"{name}: {why}" for name, why in missing if why]
    if felt:
        return Row("CRIU features", value, "warn", "; ".join(felt), "a newer kernel or CRIU")
    return Row("CRIU features", value)


def pycriu() -> Row:
    try:
        from pycriu import rpc_pb2
        from pycriu.images import images, img_streamer_pb2
    except ImportError as error:
        return Row(
            "pycriu",
            str(error),
            "bad",
            "checkpoints can't be taken apart, CRIU's streams not read",
            "ckpt doctor --fix, or install python3-pycriu (never PyPI's crit or pycriu)",
            "pycriu",
        )
    del images, img_streamer_pb2
    return Row("pycriu", str(Path(rpc_pb2.__file__).resolve().parent))


def compiler(host: Host) -> Row:
    """Whether there is an init for containers: built earlier, or buildable now."""
    cache = host.paths.root / "init"
    if list(cache.glob("init-*")):
        return Row("C compiler", "not needed: the containers' init is built")
    with tempfile.TemporaryDirectory(prefix="ckpt-doctor-") as folder:
        try:
            program = init_program(Path(folder))
        except RuntimeFault as fault:
            return Row(
                "C compiler",
                f"no: {fault.why}",
                "bad",
                "no container can be made here (those that arrive by migration bring their init along)",
                "apt install gcc libc6-dev",
            )
    return Row("C compiler", f"builds the containers' init ({len(program)} bytes)")
