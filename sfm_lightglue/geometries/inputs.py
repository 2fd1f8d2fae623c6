"""What the geometries of pairs are computed from: checks, and stamps that show whether a stored geometry is still valid."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter

import numpy as np

from sfm_lightglue.cameras import Camera
from sfm_lightglue.products import Matches, Pair
from sfm_lightglue.storage import H5Reader, PartOfFeatures, match_key


def image_names(pairs: Sequence[Pair]) -> list[str]:
    """The images of some pairs, sorted."""
    return sorted({*map(attrgetter("name0"), pairs), *map(attrgetter("name1"), pairs)})


def check_names(pairs: Sequence[Pair], names: Iterable[str], features: H5Reader) -> None:
    """Raises: KeyError if an image has no features, ValueError if a pair has an image that is not in `names`."""
    names = set(names)
    for name in sorted(names):
        if not features.has(name):
            features.features(name)  # raises, with the closest name
    unknown = [name for name in image_names(pairs) if name not in names]
    if unknown:
        raise ValueError(f"{len(unknown)} images of the pairs are missing, such as {unknown[0]!r}: run the stage pairs again")


def geometry_stamps(
    pairs: Sequence[Pair], features: H5Reader, matches: H5Reader, cameras: Mapping[str, Camera], *, check_origin: bool = False
) -> list[str]:
    """The stamp of each pair's geometry: a hash of the stamps of its features and matches, and of its cameras.

    Of several kinds of features, only those count of which the pair has matches: a geometry stays valid if its photos get more.

    Raises: ValueError if `check_origin` and the matches were made from other features.
    """
    names = image_names(pairs)
    of_images = dict(zip(names, features.stamps(names), strict=True))
    of_matches = matches.match_stamps(pairs)
    if check_origin:
        _check_origin(pairs, of_images, of_matches, features, matches)
    if "kinds" in features.settings and "kinds" in matches.settings:
        of_images, of_matches = dict.fromkeys(names, ""), [stamp.rpartition(" ")[2] for stamp in of_matches]
    parts = {name: repr((stamp, cameras[name])) for name, stamp in of_images.items()}  # once for each image: it takes 10 us
    return [
        hashlib.sha256(f"({stamp!r}, [{parts[pair.name0]}, {parts[pair.name1]}])".encode()).hexdigest()[:16]
        for pair, stamp in zip(pairs, of_matches, strict=True)
    ]


def check_geometries(
    pairs: Sequence[Pair], geometries: H5Reader, features: H5Reader, matches: H5Reader, cameras: Mapping[str, Camera]
) -> list[str]:
    """Checks that all pairs were verified with these features, matches and cameras. Returns the stamps of their geometries.

    They differ from `geometry_stamps` for pairs that third photos confirm: what is made from the geometries depends on that too.

    Raises: KeyError if a pair was not verified, ValueError if it was verified with others.
    """
    for key, expected in input_fingerprints(features, matches).items():
        if geometries.settings.get(key) != expected:
            raise ValueError(f"{geometries.path} was made with other {key}: run the stage verify again")
    stamps = geometry_stamps(pairs, features, matches, cameras)
    stored = geometries.stamps([match_key(pair.name0, pair.name1) for pair in pairs])
    for pair, stamp, expected in zip(pairs, stored, stamps, strict=True):
        if not stamp:
            geometries.geometry(pair.name0, pair.name1)  # raises
        if stamp not in (expected, accepted_stamp(expected)):
            raise ValueError(
                f"{geometries.path}: {pair.name0!r} and {pair.name1!r} were verified with other features, matches or cameras: "
                "run the stage verify again"
            )
    return stored


def accepted_stamp(stamp: str) -> str:
    """The stamp of a geometry that is verified only because third photos confirm it, 16 hexadecimal digits."""
    return hashlib.sha256(f"{stamp} confirmed".encode()).hexdigest()[:16]


def read_matches(reader: H5Reader, pair: Pair) -> Matches:
    """The matches of a pair. Raises: KeyError if the pair was not matched."""
    matches = reader.find_matches(pair.name0, pair.name1)
    if matches is None:
        raise KeyError(f"{reader.path} has no matches of {pair.name0!r} and {pair.name1!r}: run the stage match first")
    return matches


def scales_of_most(matches: Matches, kinds0: Sequence[PartOfFeatures], kinds1: Sequence[PartOfFeatures]) -> tuple[float, float]:
    """Size of a detection pixel in both images for the kind of features that has most matches; of equal ones the first.

    The error limit of a pair is then that of the features which decide about it.
    """
    starts = [part.start for part in kinds0]
    counts = np.bincount(np.searchsorted(starts, matches.indices[:, 0], side="right") - 1, minlength=len(starts))
    most = kinds0[int(counts.argmax())]
    same = next((part for part in kinds1 if part.kind == most.kind), kinds1[0])  # without matches, it may lack the kind
    return most.pixel_scale, same.pixel_scale


def input_fingerprints(features: H5Reader, matches: H5Reader) -> dict[str, str]:
    """What identifies the settings of the files of features and matches."""
    return {"features": features.fingerprint, "matches": matches.fingerprint}


def _check_origin(
    pairs: Sequence[Pair], of_images: Mapping[str, str], of_matches: Sequence[str], features: H5Reader, matches: H5Reader
) -> None:
    """Raises: ValueError if the matches were made from other features. Files of other programs do not say from which."""
    origin = matches.settings.get("features")
    if origin is None:
        return
    if origin != features.fingerprint:
        raise ValueError(f"{matches.path} was made with other features than {features.path} has: run the stage match again")
    changed = [
        pair
        for pair, stamp in zip(pairs, of_matches, strict=True)
        if stamp
        and not f"{stamp} ".startswith(f"{of_images[pair.name0]} {of_images[pair.name1]} ")  # kinds of features may follow
    ]
    if changed:
        raise ValueError(
            f"the features of {len(changed)} pairs changed after they were matched, such as {changed[0].name0!r} and "
            f"{changed[0].name1!r}: run the stage match again"
        )
