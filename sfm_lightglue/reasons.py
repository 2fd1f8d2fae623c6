"""Why a pair was rejected and why a photo is in no model, in words, and what to try. Pure functions of what a run has stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sfm_lightglue.mistakes import count_of, shortened
from sfm_lightglue.products import TwoViewGeometry

VERIFIED, REJECTED, NOT_VERIFIED, NOT_MATCHED = "verified", "rejected", "not verified", "not matched"
PAIR_VERDICTS = (VERIFIED, REJECTED, NOT_VERIFIED, NOT_MATCHED)
"""The verdicts about a pair. The last two say that the stage did not come to it."""
REGISTERED, OTHER_MODEL, UNREGISTERED, NO_FEATURES, UNREADABLE, PENDING = (
    "registered",
    "other model",
    "unregistered",
    "no features",
    "unreadable",
    "pending",
)
PHOTO_VERDICTS = (REGISTERED, OTHER_MODEL, UNREGISTERED, NO_FEATURES, UNREADABLE, PENDING)
"""The verdicts about a photo: in the largest model, in another one, in none; not usable; or the run did not come to it."""

FEW_KEYPOINTS = 200
"""A photo with fewer keypoints than this, or than a fifth of the median, is said to have few."""
WITHOUT_DEPTH = ("PLANAR", "PANORAMIC", "PLANAR_OR_PANORAMIC")
"""COLMAP's names of two-view geometries that a plane or a pure rotation gives."""
OVERLAP = "nothing, if the photos show different things; else take photos between the two, or try other features"


SAVE_AGAIN = "open the photo in another program and save it again, or remove it"
UNREADABLE_ADVICE = (
    ("pip install", "install the package and run again, or convert the photo to JPEG"),
    ("not in the photo folder", "correct the list of photos, or put the file into the folder"),
    ("truncated", "the file is cut: copy it again from the camera or a backup"),
    ("is empty", "the file is cut: copy it again from the camera or a backup"),
    ("cannot identify", "it is no photo, or in a format that is not read: convert it to JPEG, or remove it"),
    ("is shorter than", "use the photo in its full size, or remove it"),
    ("no such file", "put the file back, or remove it from the list of photos"),
    ("permission denied", "allow this user to read the file"),
)
"""Words of the decoder in small letters -> what to try."""


class Finding(NamedTuple):
    """What is said about a photo or a pair."""

    verdict: str
    """One of `PHOTO_VERDICTS` or `PAIR_VERDICTS`."""
    reason: str = ""
    """Why, in words and numbers; empty if there is nothing to explain."""
    advice: str = ""
    """What to try; empty if nothing is to be done."""


@dataclass(frozen=True)
class Limits:
    """The limits that a run was made with. None if the files do not say."""

    min_mean_score: float | None = None
    """`geometries.min_mean_score`."""
    min_model_size: int | None = None
    """`reconstruction.min_model_size`."""
    min_confirmed: float | None = None
    """`geometries.min_confirmed`."""


# --- pairs ---------------------------------------------------------------------------------------------------------------


def judge_pair(
    geometry: TwoViewGeometry | None, num_matches: int | None, keypoints: tuple[int | None, int | None], limits: Limits
) -> Finding:
    """The verdict about a pair.

    Args:
        geometry: Its two-view geometry, None if it was not verified yet. The matches and matrices are not used.
        num_matches: Number of its matches, None if it was not matched yet.
        keypoints: Number of keypoints of both photos, None if unknown.
        limits: The limits of the verification.
    """
    if geometry is None:
        if num_matches is None:
            return Finding(NOT_MATCHED, "the stage match did not come to this pair", "run again: what is done is kept")
        return Finding(NOT_VERIFIED, "the stage verify did not come to this pair", "run again: what is done is kept")
    if geometry.is_verified:
        return _judge_verified(geometry)
    return Finding(REJECTED, *_judge_rejected(geometry, keypoints, limits))


def _judge_verified(geometry: TwoViewGeometry) -> Finding:
    if geometry.configuration in WITHOUT_DEPTH:
        reason = "the matches fit a plane or a pure rotation: this pair alone gives no depth"
        return Finding(VERIFIED, reason, "move the camera sideways between photos, and do not only turn it")
    if geometry.configuration == "WATERMARK":
        return Finding(
            VERIFIED, "the matches move as one block at the border, like an overlay", "mask the overlay (dataset.masks)"
        )
    if geometry.confirmed is not None:
        reason = f"the inliers are unsure (mean score {geometry.mean_score or 0:.2f}), but {_confirmed(geometry.confirmed)}"
        return Finding(VERIFIED, reason)
    return Finding(VERIFIED)


def _confirmed(share: float) -> str:
    """What third photos say about the matches of a pair, in words."""
    return f"third photos confirm {100 * share:.0f} % of them"


def _judge_rejected(geometry: TwoViewGeometry, keypoints: tuple[int | None, int | None], limits: Limits) -> tuple[str, str]:
    """Reason and advice."""
    known = [count for count in keypoints if count is not None]
    if known and min(known) == 0:
        return "one of the photos has no keypoints", "see the photo's reason in photos.tsv"
    matches = _count_matches(geometry)
    needed = geometry.num_needed
    if geometry.rejected_because == "few matches":
        reason = f"few matches: {matches}" + ("" if needed is None else f", {needed} are needed")
        if geometry.num_stationary >= geometry.num_matches - geometry.num_stationary:
            return reason, "mask the overlay (dataset.masks), so that the keypoints are spent on the scene"
        if known and min(known) < FEW_KEYPOINTS:
            return f"{reason}; one photo has only {min(known)} keypoints", "a sharper, brighter photo, or features.max_keypoints"
        return reason, OVERLAP
    if geometry.rejected_because == "few inliers":
        found = f"{geometry.num_agreeing}" if geometry.num_agreeing is not None else "too few"
        enough = "" if needed is None else f", {needed} are needed to be more than chance"
        return f"few inliers: {found} of {matches} agree with one geometry{enough}", OVERLAP
    if geometry.rejected_because == "low score":
        limit = "" if limits.min_mean_score is None else f", geometries.min_mean_score is {limits.min_mean_score:g}"
        score = "are unsure" if geometry.mean_score is None else f"have a mean score of {geometry.mean_score:.2f}"
        agreeing = "the inliers" if geometry.num_agreeing is None else f"the {geometry.num_agreeing} inliers"
        reason = f"low score: {agreeing} {score}{limit}"
        if geometry.confirmed is not None:
            needed_share = "" if limits.min_confirmed is None else f", {100 * limits.min_confirmed:.0f} % are needed"
            reason += f"; {_confirmed(geometry.confirmed)}{needed_share}"
        return reason, "look whether both photos show the same side of the scene; if they do, lower geometries.min_mean_score"
    return "no two-view geometry was found", OVERLAP


def _count_matches(geometry: TwoViewGeometry) -> str:
    """The matches that verification saw, in words."""
    left = geometry.num_matches - geometry.num_stationary
    if not geometry.num_stationary:
        return count_of(left, "match", "matches") if left else "no matches"
    return f"{count_of(left, 'match', 'matches')} ({geometry.num_stationary} more stand still in an overlay and were dropped)"


# --- photos --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Partner:
    """A pair of a photo, as seen from the photo."""

    photo: str
    """The other photo."""
    verdict: str
    """One of `PAIR_VERDICTS`."""
    reason: str
    matches: int
    inliers: int
    mean_score: float | None
    configuration: str
    model: int | None
    """Number of the model that has the other photo; None if none has it."""


def group_sizes(num_photos: int, edges: Iterable[Sequence[int]]) -> list[int]:
    """Size of the group of each photo: those that verified pairs connect, directly or by way of others.

    Args:
        num_photos: Number of photos.
        edges: Numbers of both photos of each verified pair.
    """
    parents = list(range(num_photos))

    def root(photo: int) -> int:
        while parents[photo] != photo:
            parents[photo] = photo = parents[parents[photo]]
        return photo

    for first, second in edges:
        parents[root(first)] = root(second)
    roots = [root(photo) for photo in range(num_photos)]
    sizes = Counter(roots)
    return [sizes[photo] for photo in roots]


@dataclass(frozen=True)
class PhotoFacts:
    """What is known about one photo."""

    keypoints: int | None
    """None if the photo has no record in the file of features."""
    skipped: str
    """Why the photo could not be used; empty if it could."""
    model: int | None
    """Number of its model; None if it is in none."""
    partners: Sequence[Partner]
    group: int
    """Photos that verified pairs connect with it, and itself."""
    known_points: int | None = None
    """Its keypoints that match points of the largest model; None if unknown."""


@dataclass(frozen=True)
class RunFacts:
    """What is known about the run, for the verdicts about its photos."""

    limits: Limits
    sizes: Sequence[int]
    """Photos of each model, by its number; empty without models."""
    median_keypoints: float
    finished: Sequence[str]
    """The stages among `pairs`, `verify` and `reconstruct` that have finished."""


def judge_photo(facts: PhotoFacts, run: RunFacts) -> Finding:
    """The verdict about a photo."""
    if facts.keypoints is None:
        if not facts.skipped:
            return Finding(PENDING, "the stage extract did not come to this photo", "run again: what is done is kept")
        return Finding(UNREADABLE, facts.skipped, _advice_for_unreadable(facts.skipped))
    if facts.model == 0:
        return Finding(REGISTERED)
    if facts.model is not None:
        return _judge_other_model(facts, run)
    if facts.keypoints == 0:
        return Finding(NO_FEATURES, "no keypoints were found", "look whether the photo is black, blank or blurred, or masked out")
    for stage, done in (("pairs", "pairs were selected"), ("verify", "its pairs were verified")):
        if stage not in run.finished:
            return Finding(PENDING, f"the run stopped before {done}", "run again: what is done is kept")
    verdicts = {partner.verdict for partner in facts.partners}
    if verdicts & {NOT_MATCHED, NOT_VERIFIED}:
        return Finding(PENDING, "the run stopped before all its pairs were verified", "run again: what is done is kept")
    if "reconstruct" not in run.finished and VERIFIED in verdicts:
        return Finding(PENDING, "the run stopped before the reconstruction", "run again: what is done is kept")
    return _judge_unregistered(facts, run)


def _advice_for_unreadable(reason: str) -> str:
    """What to try with a photo that could not be used, by the decoder's words."""
    return next((advice for words, advice in UNREADABLE_ADVICE if words in reason.lower()), SAVE_AGAIN)


def _judge_other_model(facts: PhotoFacts, run: RunFacts) -> Finding:
    links = [partner for partner in facts.partners if partner.verdict == VERIFIED and partner.model == 0]
    size = run.sizes[facts.model] if facts.model is not None and facts.model < len(run.sizes) else 0
    reason = f"in model {facts.model} of {count_of(size, 'photo')}, apart from the largest of {run.sizes[0]}"
    if links:
        reason += f"; {count_of(len(links), 'verified pair')} with photos of the largest, too few common points to join"
    else:
        reason += "; no verified pair joins it to a photo of the largest"
    return Finding(OTHER_MODEL, reason, "take photos between both parts, or select more pairs between them")


def _judge_unregistered(facts: PhotoFacts, run: RunFacts) -> Finding:
    """Why a photo with keypoints is in no model."""
    verified = [partner for partner in facts.partners if partner.verdict == VERIFIED]
    few = ""
    if facts.keypoints is not None and facts.keypoints < max(FEW_KEYPOINTS, run.median_keypoints / 5):
        few = f"only {count_of(facts.keypoints, 'keypoint')} (median of all photos: {run.median_keypoints:.0f}); "
    if not facts.partners:
        reason = "no partner: it is in no pair"
        return Finding(UNREGISTERED, few + reason, "pairs=exhaustive, or more neighbours for the pair source")
    if not verified:
        advice = "a sharper, brighter photo of the same place, or features.max_keypoints" if few else OVERLAP_OF_PHOTO
        return Finding(UNREGISTERED, few + _describe_rejected(facts.partners), advice)
    if all(partner.configuration in WITHOUT_DEPTH for partner in verified) and not run.sizes:
        reason = f"all its {count_of(len(verified), 'verified pair')} fit a plane or a pure rotation: no depth"
        return Finding(UNREGISTERED, few + reason, "photos from other places: move the camera sideways, do not only turn it")
    return _judge_mapped(facts, run, verified, few)


OVERLAP_OF_PHOTO = "nothing, if it shows something else; else photos between it and the others, or other features"


def _describe_rejected(partners: Sequence[Partner]) -> str:
    """That no pair of a photo was verified, with the reasons and the best pair."""
    kinds = Counter(partner.reason.split(":")[0] for partner in partners)
    best = max(partners, key=lambda partner: (partner.inliers, partner.matches, partner.photo))
    listed = ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items(), key=lambda item: (-item[1], item[0])))
    pairs = f"none of its {len(partners)} pairs was" if len(partners) > 1 else "its only pair was not"
    return f"{pairs} verified ({listed}); the best, with {best.photo}: {best.reason}"


def _judge_mapped(facts: PhotoFacts, run: RunFacts, verified: Sequence[Partner], few: str) -> Finding:
    """Why a photo with verified pairs is in no model."""
    links = [partner for partner in verified if partner.model is not None]
    planar = sum(partner.configuration in WITHOUT_DEPTH for partner in verified)
    note = f"; {planar} of its {len(verified)} verified pairs fit a plane or a pure rotation" if planar else ""
    if links:
        best = max(links, key=lambda partner: (partner.inliers, partner.photo))
        pairs = (
            f"{count_of(len(links), 'verified pair')} with registered photos, the best with {best.photo} ({best.inliers} inliers)"
        )
        if facts.known_points is not None:
            pairs += f", but only {count_of(facts.known_points, 'keypoint')} match points of the largest model"
        reason = f"the mapper found no sure pose for it: {pairs}"
        return Finding(
            UNREGISTERED, few + reason + note, "more photos around it that overlap; more keypoints (features.max_keypoints)"
        )
    others = sorted(partner.photo for partner in verified)
    if run.sizes:
        reason = f"its verified pairs lead only to photos that are in no model either ({shortened(others)})"
    else:
        pairs = f"{count_of(len(verified), 'pair')} of this photo {'is' if len(verified) == 1 else 'are'} verified"
        best = max(verified, key=lambda partner: (partner.inliers, partner.photo))
        reason = f"the mapper found no model, although {pairs} (the best, with {best.photo}, has {best.inliers} inliers)"
    if run.limits.min_model_size is not None and facts.group < run.limits.min_model_size:
        reason += f"; a group of {facts.group} is smaller than reconstruction.min_model_size={run.limits.min_model_size}"
        return Finding(
            UNREGISTERED, few + reason + note, "photos that connect this group with the others, or a smaller min_model_size"
        )
    advice = "look whether its verified pairs show the same thing; if so, photos from more places around it"
    return Finding(UNREGISTERED, few + reason + note, advice)
