"""A kernel that QEMU starts directly: the ELF image inside a bzImage.

An ELF kernel with a PVH note skips the real-mode code and, what counts under emulation, unpacking
itself. Where the payload lies: Documentation/arch/x86/boot.rst, fields setup_sects, payload_offset
and payload_length.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from pathlib import Path

import zstandard


def unpacked(image: Path) -> bytes | None:
    """The ELF kernel in bzImage IMAGE; None if it's packed in a way that isn't known here."""
    raw = image.read_bytes()
    if raw[0x202:0x206] != b"HdrS":
        return None
    start = (raw[0x1F1] + 1) * 512
    offset, length = struct.unpack_from("<II", raw, 0x248)
    payload = raw[start + offset : start + offset + length]
    kernel = expand(payload)
    return kernel if kernel is not None and kernel.startswith(b"\x7fELF") else None


def expand(packed: bytes) -> bytes | None:
    """Content of PACKED (xz, zstd, gzip, lzma), what follows the first stream ignored; None for other formats."""
    if packed.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(packed)
    if packed.startswith(b"\x28\xb5\x2f\xfd"):
        return zstandard.ZstdDecompressor().decompressobj().decompress(packed)
    if packed.startswith(b"\x1f\x8b"):
        return zlib.decompressobj(wbits=31).decompress(packed)
    if packed.startswith(b"\x5d\0\0"):
        return lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(packed)
    return None
