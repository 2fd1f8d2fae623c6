"""How large a photo may be on this machine, and how many are decoded at the same time."""

from __future__ import annotations

from sfm_lightglue.memory import MemoryBudget, memory_bytes

ORDINARY_PIXELS = 178_956_970
"""Photos up to this size are decoded on every machine. PIL refuses larger ones by default."""
MAX_PIXELS_PER_BYTE = 500
"""Larger photos must not be compressed more than this. A photo has less than 50 pixels for each byte of its file, and a black
JPEG less than 200. Files that are made to fill the memory have thousands."""


def decoding_bytes(size: tuple[int, int], mode: str) -> int:
    """Largest memory that decoding a photo of (width, height) px and resizing it takes, bytes. `mode` is PIL's."""
    return size[0] * size[1] * (12 if mode in ("1", "L", "P", "RGB", "CMYK", "YCbCr") else 32)


def too_large(size: tuple[int, int], mode: str, file_bytes: int) -> str:
    """Why a photo of (width, height) px in a file of `file_bytes` is not decoded; empty if it is."""
    pixels = size[0] * size[1]
    if pixels <= ORDINARY_PIXELS:
        return ""
    about = f"{size[0]} x {size[1]} px"
    if pixels > MAX_PIXELS_PER_BYTE * file_bytes:
        return f"{about} in a file of {file_bytes} bytes: no photo is compressed that much, so it is not decoded"
    needed = decoding_bytes(size, mode)
    if needed > memory_bytes() // 2:
        return (
            f"{about} take {_gigabytes(needed)} to decode, this machine has {_gigabytes(memory_bytes())}: make the photo smaller"
        )
    return ""


decoding_memory = MemoryBudget(memory_bytes() // 2)
"""What the photos that are being decoded in this process take together."""


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB"
