"""The late part of a checkpoint may come from anywhere."""

from __future__ import annotations

import json

import pytest

from ckpt.ops.late import Late
from runtime.criu.queues import Queue
from runtime.errors import BadInput

QUEUE = Queue("q", 0o640, 0, 1000, 7, 100, ((9, "aGlnaA=="), (1, "bG93")))
LATE = Late(
    jobs={"5": {"exit_code": 7}, "9": {}},
    alive=[9],
    input={0: b"unread \x00\xff"},
    affinity={12: [0, 3]},
    queues=[QUEUE],
)


def test_it_comes_back_as_it_was() -> None:
    assert Late.from_bytes(LATE.to_bytes()) == LATE


def spoiled(**changes: object) -> bytes:
    return json.dumps({**json.loads(LATE.to_bytes()), **changes}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff\xfe",
        b"{}",
        spoiled(jobs=[]),
        spoiled(jobs={"../x": {}}),
        spoiled(jobs={"1": 3}),
        spoiled(alive=["one"]),
        spoiled(input={"0": "no base64!"}),
        spoiled(affinity={"x": []}),
        spoiled(queues=[{}]),
        spoiled(queues=[{**QUEUE.to_dict(), "name": "../../etc/passwd"}]),
        spoiled(queues=[{**QUEUE.to_dict(), "name": ".."}]),
        spoiled(queues=[{**QUEUE.to_dict(), "most": 0}]),
        spoiled(queues=[{**QUEUE.to_dict(), "size": 1 << 40}]),
        spoiled(queues=[{**QUEUE.to_dict(), "most": 1}]),
        spoiled(queues=[{**QUEUE.to_dict(), "messages": [[1, "no base64!"]]}]),
        spoiled(queues=[{**QUEUE.to_dict(), "messages": [[-1, ""]]}]),
    ],
)
def test_anything_else_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(BadInput) as fault:
        Late.from_bytes(data)
    assert "\n" not in str(fault.value)
