"""Which parameters of a camera its photos decide: principal point, aspect, second radial term, tangential distortion.

All of them are estimated together, and their covariance says how well the photos determine them. Subsets of them are compared by
their Bayesian evidence under weak priors (Gaussian approximation; MacKay, Information Theory, Inference, and Learning Algorithms,
chapter 28): the evidence rises if parameters explain the photos, and falls if photos say little about them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

NAMES = ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2")
"""Parameters of COLMAP's model OPENCV."""
GROUPS = {"principal point": (2, 3), "aspect": (1,), "second radial term": (5,), "tangential distortion": (6, 7)}
"""Parameters that are chosen together, by their positions in NAMES. The others are always there: focal length, k1."""
PRIOR_STD = np.array([np.inf, 0.003, 0.015, 0.015, np.inf, 0.1, 0.001, 0.001])
"""How far parameters are from those of an ideal camera. The aspect is fy / fx - 1; the principal point relates to the longest
side of the photo. Measured on calibrated cameras: aspect up to 0.004, principal point 0.002 to 0.028 (median 0.01)."""
NEED_PRINCIPAL_POINT = ("aspect", "tangential distortion")
"""Groups that are chosen only together with the principal point: alone they imitate it (temple: 18 px from the middle)."""
PENALTY = 11.0
"""Logarithm of the evidence that each group must bring. It is high because the photos of a camera share errors that no comparison
of photos shows. Measured gains of the principal point before the penalty, with finer keypoints: fountain-P11 190 to 220,
Herz-Jesu-P8 86 to 109, Temple 19 to 26 and TUM 12 to 25, where it helps; Lund door 8, where the reference has it in
the middle."""


@dataclass(frozen=True)
class CameraChoice:
    """The parameters of a camera as far as its photos decide them."""

    params: np.ndarray
    """float64 (8,): the parameters in NAMES, px. Parameters that were not chosen are those of an ideal camera."""
    std: np.ndarray
    """float64 (8,): their standard deviations, px; 0 for parameters that were not chosen."""
    groups: tuple[str, ...]
    """The chosen groups."""
    gains: Mapping[str, float]
    """For most possible groups: how much the logarithm of the evidence rises if the best subset has it, or would fall."""

    @property
    def model(self) -> str:
        """The simplest of COLMAP's models that has these parameters."""
        if {"aspect", "tangential distortion"} & {*self.groups}:
            return "OPENCV"
        return "RADIAL" if "second radial term" in self.groups else "SIMPLE_RADIAL"

    def model_params(self) -> list[float]:
        """The parameters in the order of `model`."""
        positions = {"OPENCV": range(8), "RADIAL": (0, 2, 3, 4, 5), "SIMPLE_RADIAL": (0, 2, 3, 4)}[self.model]
        return [float(self.params[position]) for position in positions]


def choose_parameters(
    params: np.ndarray, covariance: np.ndarray, size: tuple[int, int], possible: tuple[str, ...], always: tuple[str, ...] = ()
) -> CameraChoice:
    """The subset of the `possible` groups with the largest evidence, and the most probable parameters for it.

    Args:
        params: float64 (8,), free estimates of the parameters in NAMES, px.
        covariance: float64 (8, 8) of `params`.
        size: (width, height) px.
        possible: groups that may be chosen.
        always: groups that are chosen in any case, and get no prior.
    """
    values, matrix = _to_deviations(params, covariance, size)
    prior = _prior(always)
    possible = tuple(group for group in possible if group not in always)
    subsets = [
        subset
        for count in range(len(possible) + 1)
        for subset in itertools.combinations(possible, count)
        if "principal point" in (*always, *subset) or not {*subset} & {*NEED_PRINCIPAL_POINT}
    ]
    evidence = {subset: _log_evidence(values, matrix, prior, subset) - PENALTY * len(subset) for subset in subsets}
    best = max(subsets, key=lambda subset: (evidence[subset], -len(subset)))
    gains = {}
    for group in possible:
        other = tuple(each for each in possible if (each in best) != (each == group))
        if other in evidence:
            gains[group] = abs(evidence[best] - evidence[other]) * (1 if group in best else -1)
    found, std = _posterior(values, matrix, prior, best)
    return CameraChoice(*_from_deviations(found, std, size), (*always, *best), gains)


def most_probable(
    choice: CameraChoice, params: np.ndarray, covariance: np.ndarray, size: tuple[int, int], always: tuple[str, ...] = ()
) -> CameraChoice:
    """The groups of `choice` with their most probable values for new estimates. Arguments as in `choose_parameters`."""
    values, matrix = _to_deviations(params, covariance, size)
    found, std = _posterior(values, matrix, _prior(always), tuple(group for group in choice.groups if group not in always))
    params, std = _from_deviations(found, std, size)
    return replace(choice, params=params, std=std)


def _prior(always: tuple[str, ...]) -> np.ndarray:
    """PRIOR_STD without the prior of the groups `always`."""
    prior = PRIOR_STD.copy()
    prior[[position for group in always for position in GROUPS[group]]] = np.inf
    return prior


def _to_deviations(params: np.ndarray, covariance: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Parameters as deviations from an ideal camera, in the units of PRIOR_STD, and their covariance."""
    longest, values, jacobian = max(size), np.array(params, np.float64), np.eye(8)
    values[1] = params[1] / params[0] - 1
    jacobian[1, 0], jacobian[1, 1] = -params[1] / params[0] ** 2, 1 / params[0]
    for position, side in ((2, size[0]), (3, size[1])):
        values[position] = (params[position] - side / 2) / longest
        jacobian[position, position] = 1 / longest
    return values, jacobian @ covariance @ jacobian.T


def _from_deviations(values: np.ndarray, std: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `_to_deviations`; standard deviations instead of a covariance."""
    params, std, longest = values.copy(), std.copy(), max(size)
    params[1], std[1] = values[0] * (1 + values[1]), max(std[0], values[0] * std[1])
    for position, side in ((2, size[0]), (3, size[1])):
        params[position], std[position] = side / 2 + values[position] * longest, std[position] * longest
    return params, std


def _is_ideal(prior: np.ndarray, subset: tuple[str, ...]) -> np.ndarray:
    """bool (8,): parameters that are those of an ideal camera if the groups of `subset` are chosen."""
    ideal: np.ndarray = np.isfinite(prior)
    ideal[[position for group in subset for position in GROUPS[group]]] = False
    return ideal


def _log_evidence(values: np.ndarray, covariance: np.ndarray, prior: np.ndarray, subset: tuple[str, ...]) -> float:
    """Log probability density of the estimates, for parameters that deviate as `prior` says if they are in `subset`."""
    known = np.isfinite(prior)
    variance = np.where(_is_ideal(prior, subset), 0, prior)[known] ** 2
    total, deviation = covariance[np.ix_(known, known)] + np.diag(variance), values[known]
    return float(-0.5 * (deviation @ np.linalg.solve(total, deviation) + np.linalg.slogdet(total)[1]))


def _posterior(
    values: np.ndarray, covariance: np.ndarray, prior: np.ndarray, subset: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """The most probable parameters, and their standard deviations: estimates and priors together, ideal parameters at 0."""
    free = ~_is_ideal(prior, subset)
    information = np.linalg.inv(covariance)
    total = information[np.ix_(free, free)] + np.diag(1 / prior[free] ** 2)
    found, std = np.zeros(8), np.zeros(8)
    found[free] = np.linalg.solve(total, information[free] @ values)
    std[free] = np.sqrt(np.diag(np.linalg.inv(total)))
    return found, std
