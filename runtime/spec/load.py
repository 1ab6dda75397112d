"""Read an OCI bundle: a directory with config.json and, usually, the root file system."""

from __future__ import annotations

import json
import os
import stat
from typing import Any

from runtime.errors import BadInput, NotFound, RuntimeFault, Unsupported, from_os_error

from .model import Spec
from .validate import validate

_MOST = 16 << 20  # bytes of a config.json; real ones have some 10 KiB


def load_bundle(directory: str) -> Spec:
    """The valid spec of a bundle, `root.path` made absolute.

    Raises NotFound if there is no config.json, BadInput or Unsupported for the first problem, by
    its JSON path.
    """
    path = os.path.join(directory, "config.json")
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise BadInput(doing="reading the spec", target=path, why="is no regular file")
            content = file.read(_MOST + 1)
    except FileNotFoundError as error:
        raise NotFound(
            doing="reading the spec",
            target=path,
            why="there is no such file",
            hint="a bundle is a directory with a config.json",
        ) from error
    except OSError as error:
        raise from_os_error(error, doing="reading the spec", target=path) from error
    spec = parse(content, path)
    root = os.path.join(os.path.abspath(directory), spec["root"]["path"])
    spec["root"]["path"] = os.path.normpath(root)
    if not os.path.isdir(root):
        raise NotFound(doing="reading the spec", target=path, why=f"root.path: no directory {root}")
    return Spec(spec)


def parse(content: bytes, name: str) -> dict[str, Any]:
    """A valid spec from JSON text. Raises BadInput, Unsupported; `name` says where it is from."""
    if len(content) > _MOST:
        raise BadInput(
            doing="reading the spec", target=name, why=f"is larger than {_MOST >> 20} MiB"
        )
    try:
        spec = json.loads(content, object_pairs_hook=_once, parse_constant=_no_constant)
    except RecursionError as error:
        raise BadInput(doing="reading the spec", target=name, why="is nested too deep") from error
    except ValueError as error:
        raise BadInput(
            doing="reading the spec", target=name, why=f"is no valid JSON: {error}"
        ) from error
    fault = first_problem(spec, name)
    if fault is not None:
        raise fault
    return dict(spec)


def first_problem(spec: Any, name: str) -> RuntimeFault | None:
    """The first thing wrong with a spec as a fault, None if it is valid."""
    problems = validate(spec)
    if not problems:
        return None
    kind = Unsupported if problems[0].unsupported else BadInput
    more = len(problems) - 1
    hint = f"and {more} more problem{'s' if more > 1 else ''}" if more else ""
    return kind(doing="reading the spec", target=name, why=str(problems[0]), hint=hint)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Two readers of a field that is there twice could see two different specs."""
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the field {twice!r} is there twice in one object")
    return result


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")
