"""Throw-away hosts on this machine, joined by an Ethernet segment, reachable over real SSH.

    from tests.lab import Lab

    with Lab() as lab:
        lab["a"].ckpt("run", "-d", "--name", "web", "--network", "l2=br0,ip=10.77.0.100/24", ...)
        lab["a"].ckpt("migrate", "web", "b")
        lab["c"].run(["redis-cli", "-h", "10.77.0.100", "ping"])

Needs no pytest. For people: `python -m tests.lab up`, `... shell a`, `... down`.
"""

from tests.lab.lab import Host, Lab, LabError

__all__ = ["Host", "Lab", "LabError"]
