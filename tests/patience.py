"""How long tests wait for what must come: limits are for machines like the developers', times CKPT_TEST_SLOWNESS.

tests/vm sets it for emulated guests. A limit only ends what hangs: no test measures with one.
"""

from __future__ import annotations

import os

SLOWNESS = float(os.environ.get("CKPT_TEST_SLOWNESS", "1"))


def patient(seconds: float) -> float:
    """SECONDS on a developer's machine, as many as that is here."""
    return seconds * SLOWNESS
