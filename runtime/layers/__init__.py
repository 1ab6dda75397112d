"""Read-only file system layers, named by the digest of what they hold."""

from __future__ import annotations

from .copy import Devices
from .limits import Limits
from .store import Layer, LayerStore

__all__ = ["Devices", "Layer", "LayerStore", "Limits"]
