"""128-bit hashes of keys and of stamps, the numbers by which an index finds a result among millions.

The hash of a text with exactly one separator, such as the key `name0/name1` of a pair, mixes the hashes of its two parts. So the
hashes of a million pairs come from the hashes of their photos with a few operations on arrays.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import operator
from collections.abc import Iterable, Sequence

import numpy as np

from sfm_lightglue.products import Pair

KEY_SEPARATOR, STAMP_SEPARATOR = "/", " "
MIXERS = np.array([[0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], [0xD6E8FEB86659FD93, 0xA0761D6478BD642F]], np.uint64)
"""Odd numbers: row 0 for the first part of a text, row 1 for the second. Sums of products of random numbers are random again."""


def hash_texts(texts: Iterable[str], separator: str) -> np.ndarray:
    """uint64 (n, 2): the hashes of texts."""
    codes: dict[str, int] = {}
    firsts: list[int] = []
    seconds: list[int] = []
    for text in texts:
        first, found, second = text.partition(separator)
        if found and separator not in second:
            firsts.append(codes.setdefault(first, len(codes)))
            seconds.append(codes.setdefault(second, len(codes)))
        else:
            firsts.append(codes.setdefault(text, len(codes)))
            seconds.append(-1)
    return mix_parts(_hash_parts(codes), np.array(firsts, np.int64), np.array(seconds, np.int64))


def hash_pairs(parts: Sequence[str], firsts: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """uint64 (n, 2): the hashes of the texts `parts[first]` + separator + `parts[second]`. The parts contain no separator."""
    return mix_parts(_hash_parts(parts), firsts, seconds)


def code_pairs(pairs: Sequence[Pair]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The names in pairs of images, each once, and int64 (n,): the position of each pair's first and second name there."""
    names0, names1 = ([*map(operator.attrgetter(name), pairs)] for name in ("name0", "name1"))
    codes = {name: code for code, name in enumerate(dict.fromkeys(itertools.chain(names0, names1)))}
    firsts, seconds = (np.fromiter(map(codes.__getitem__, names), np.int64, len(names)) for names in (names0, names1))
    return list(codes), firsts, seconds


def mix_parts(hashes: np.ndarray, firsts: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """uint64 (n, 2): the hashes of texts from those of their parts (m, 2). A second part of -1 means that there is none."""
    if not len(firsts):
        return np.zeros((0, 2), np.uint64)
    mixed: np.ndarray = hashes[firsts] * MIXERS[0] + hashes[seconds] * MIXERS[1]
    alone = seconds < 0
    mixed[alone] = hashes[firsts[alone]]
    return mixed


def hash_text(text: str, separator: str) -> tuple[int, int]:
    """The hash of one text, as `hash_texts` gives it, fast."""
    first, found, second = text.partition(separator)
    if not found or separator in second:
        return _hash_part(text)
    (high0, low0), (high1, low1) = _hash_part(first), _hash_part(second)
    return (high0 * _MIXERS[0][0] + high1 * _MIXERS[1][0]) & _MASK, (low0 * _MIXERS[0][1] + low1 * _MIXERS[1][1]) & _MASK


_MIXERS, _MASK = MIXERS.tolist(), (1 << 64) - 1


def _hash_parts(parts: Iterable[str]) -> np.ndarray:
    digests = b"".join(_digest(part) for part in parts)
    return np.frombuffer(digests, "<u8").astype(np.uint64).reshape(-1, 2)


@functools.lru_cache(1 << 15)
def _hash_part(part: str) -> tuple[int, int]:
    digest = _digest(part)
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def _digest(part: str) -> bytes:
    return hashlib.blake2b(part.encode("utf-8", "surrogatepass"), digest_size=16).digest()
