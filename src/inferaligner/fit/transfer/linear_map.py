"""Vectors of an aligned model of another width or depth, carried over to the target.

1. The same prompts, rendered in each model's own template, give activations of both: A `[prompts, width']`
   after an aligned layer, T `[prompts, width]` after a target layer.
2. Both sides are centred on the mean of each prompt's class. What is left is how prompts differ from each
   other *within* a class; a map fitted on that knows nothing of the classes' own difference, which is what is
   to be carried over. (Centred on the common mean, least squares would carry the aligned model's class
   difference to the *target's own*, whatever the aligned model knows: regression predicts class means.)
3. Two linear maps A → T: ridge, its λ by held-out error, and orthogonal Procrustes with one scale
   (P. Schönemann, Psychometrika 31, 1966).
4. Each target layer gets the aligned layer of like depth that predicts it best on held-out prompts, and of
   the two maps the better one. θ_target = θ_aligned · M: a map of differences needs no intercept.

The share of held-out variance that a map explains says how far to trust it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from inferaligner.errors import CalibrationError
from inferaligner.fit.options import LayerMatch, MapKind
from inferaligner.fit.progress import Advance
from inferaligner.models.anatomy import dissect

RIDGES = (1e-4, 1e-3, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""λ as multiples of the mean squared singular value of the centred aligned activations."""

LEAST_EXPLAINED = 0.5
"""Below this median over the steerable layers, `fit` refuses: the map loses more than it keeps."""

TOO_MUCH_ALIKE = 0.9
"""Cosine with the SRV from which on a carried SSV is little else than the target's own difference."""

FOLDS = 3
_REACH = 0.15  # of the depth: how far a layer's partner may lie from its own relative depth


def needs_map(target: nn.Module, aligned: nn.Module) -> bool:
    """Whether the two models differ in width or depth, so that vectors of one do not fit the other."""
    ours, theirs = dissect(target), dissect(aligned)
    return (ours.width, ours.depth) != (theirs.width, theirs.depth)


@dataclass(frozen=True)
class LayerMap:
    """How one target layer is reached. `explained` is a share of held-out within-class variance."""

    layer: int
    aligned_layer: int
    kind: MapKind
    ridge: float | None
    explained: float


@dataclass(frozen=True)
class CarriedVectors:
    """SSV in the target's space, float32 `[layers, width]`, and the maps that brought it there."""

    ssv: Tensor
    maps: tuple[LayerMap, ...]

    @property
    def explained(self) -> float:
        """Median of the held-out variance explained over the layers of `upper`."""
        return median(one.explained for one in self.maps[self.upper])

    @property
    def upper(self) -> slice:
        """The layers that are steered as a rule, from the middle to the last but one."""
        return slice(len(self.maps) // 2, max(len(self.maps) - 1, 1))

    @property
    def trusted(self) -> bool:
        """Whether the map is good enough for `fit`."""
        return self.explained >= LEAST_EXPLAINED

    def table(self) -> dict[str, Any]:
        """For the artifact: plain JSON."""
        return {
            "explained": self.explained,
            "least": LEAST_EXPLAINED,
            "trusted": self.trusted,
            "layers": [asdict(one) for one in self.maps],
        }

    def check(self, target: str, aligned: str) -> None:
        """Raises `CalibrationError` if the map explains less than `LEAST_EXPLAINED`."""
        if not self.trusted:
            raise CalibrationError(
                f"The map from {aligned} to {target} explains {self.explained:.0%} of how the target's "
                f"activations vary between held-out prompts; expected {LEAST_EXPLAINED:.0%} or more. Its "
                "vectors would hardly be the aligned model's. Give a sibling of the target's own base model, "
                "more prompts, or `accept_poor_map`."
            )


def carry_over(
    vectors: Tensor,
    aligned: Tensor,
    target: Tensor,
    classes: Sequence[str],
    folds: Sequence[int],
    *,
    match: LayerMatch = "best",
    kind: MapKind | None = None,
    advance: Advance | None = None,
) -> CarriedVectors:
    """Carries an aligned model's vectors over to the target.

    Args:
        vectors: `[aligned layers, aligned width]`.
        aligned, target: last-token activations `[prompts, layers, width]` of the same prompts.
        classes: of each prompt; both sides are centred on each class's mean.
        folds: of each prompt, 0 to `FOLDS` - 1; a fold is predicted by maps fitted on the others.
        match: the best-predicting aligned layer of like depth, or the one of the same relative depth.
        kind: only this map; None takes the better one, layer by layer.
        advance: called with 1 after every aligned layer.

    Raises:
        CalibrationError: too few prompts, or not the same ones.
    """
    _check(vectors, aligned, target, classes, folds)
    depth, aligned_depth = target.shape[1], aligned.shape[1]
    at = torch.tensor(list(folds))
    wanted = partners(depth, aligned_depth, match)
    of_target = [_centred(target[:, layer].float(), classes) for layer in range(depth)]
    best: dict[int, tuple[LayerMap, Tensor]] = {}
    for source in range(aligned_depth):
        reached = [layer for layer in range(depth) if source in wanted[layer]]
        if reached:
            x = _centred(aligned[:, source].float(), classes)
            maps = _maps(x, [of_target[r] for r in reached], reached, source, at, kind)
            for layer, (described, matrix) in maps.items():
                if layer not in best or described.explained > best[layer][0].explained:
                    best[layer] = (described, vectors[source].float() @ matrix)
        if advance is not None:
            advance(1)
    return CarriedVectors(
        torch.stack([best[layer][1] for layer in range(depth)]),
        tuple(best[layer][0] for layer in range(depth)),
    )


def partners(depth: int, aligned_depth: int, match: LayerMatch) -> list[list[int]]:
    """For each of `depth` target layers, the aligned layers (of `aligned_depth`) that may stand for it."""
    candidates = []
    for layer in range(depth):
        # The output of layer l is l + 1 of `depth` blocks deep.
        there = (layer + 1) / depth * aligned_depth - 1
        nearest = min(range(aligned_depth), key=lambda source: abs(source - there))
        near = [source for source in range(aligned_depth) if abs(source - there) <= _REACH * aligned_depth]
        candidates.append(near if match == "best" and nearest in near else [nearest])
    return candidates


def _maps(
    x: Tensor, ys: list[Tensor], layers: list[int], source: int, folds: Tensor, kind: MapKind | None
) -> dict[int, tuple[LayerMap, Tensor]]:
    """The better map to each target layer, by held-out error, refitted on every prompt."""
    kinds: list[tuple[MapKind, float | None]] = []
    if kind in (None, "ridge"):
        kinds += [("ridge", ridge) for ridge in RIDGES]
    if kind in (None, "procrustes"):
        kinds.append(("procrustes", None))
    left = torch.zeros(len(layers), len(kinds), dtype=torch.float64)
    for fold in sorted(set(folds.tolist())):
        held = folds == fold
        basis = _Basis(x[~held])
        for number, y in enumerate(ys):
            fits = basis.toward(y[~held])
            for which, (name, ridge) in enumerate(kinds):
                guess = fits.predict(x[held], name, ridge)
                left[number, which] += (y[held] - guess).double().square().sum()
    whole = _Basis(x)
    maps = {}
    for number, (layer, y) in enumerate(zip(layers, ys, strict=True)):
        which = int(left[number].argmin())
        name, ridge = kinds[which]
        total = float(y.double().square().sum())
        explained = 1 - float(left[number, which]) / total if total else 0.0
        matrix = whole.toward(y).matrix(name, ridge)
        maps[layer] = (LayerMap(layer, source, name, ridge, explained), matrix)
    return maps


class _Basis:
    """The principal axes of the aligned side, shared by every ridge and every target layer."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        values, self.axes = torch.linalg.eigh(x.T @ x)
        self.values = values.clamp_min(0)
        self.unit = float(self.values.mean()) or 1.0

    def toward(self, y: Tensor) -> _Fits:
        return _Fits(self, self.x.T @ y, y)


class _Fits:
    """The maps from one aligned layer to one target layer, `[aligned width, width]`."""

    def __init__(self, basis: _Basis, cross: Tensor, y: Tensor) -> None:
        self._basis = basis
        self._cross = cross
        self._along = basis.axes.T @ cross

    def predict(self, x: Tensor, kind: MapKind, ridge: float | None) -> Tensor:
        if kind == "procrustes":
            return torch.matmul(x, self.matrix(kind, ridge))
        return torch.matmul(x @ self._basis.axes, self._shrunk(ridge))

    def matrix(self, kind: MapKind, ridge: float | None) -> Tensor:
        if kind == "ridge":
            return torch.matmul(self._basis.axes, self._shrunk(ridge))
        left, values, right = torch.linalg.svd(self._cross, full_matrices=False)
        # Where the widths differ the map is a projection, and only what it keeps of X sets the scale.
        rotation = left @ right
        kept = (self._basis.x @ rotation).square().sum()
        scale = float(values.sum()) / max(float(kept), torch.finfo(kept.dtype).tiny)
        return torch.mul(rotation, scale)

    def _shrunk(self, ridge: float | None) -> Tensor:
        assert ridge is not None
        return torch.div(self._along, (self._basis.values + ridge * self._basis.unit)[:, None])


def _centred(values: Tensor, classes: Sequence[str]) -> Tensor:
    """`[prompts, width]` minus the mean of each prompt's class."""
    centred = values.clone()
    for name in set(classes):
        rows = torch.tensor([name == other for other in classes])
        centred[rows] -= values[rows].double().mean(0).float()
    return centred


def _check(
    vectors: Tensor, aligned: Tensor, target: Tensor, classes: Sequence[str], folds: Sequence[int]
) -> None:
    if not len(aligned) == len(target) == len(classes) == len(folds):
        raise CalibrationError(
            f"{len(aligned)} prompts of the aligned model, {len(target)} of the target, {len(classes)} "
            f"classes and {len(folds)} folds were given; expected one of each per prompt."
        )
    if vectors.shape != aligned.shape[1:]:
        raise CalibrationError(
            f"The vectors are {tuple(vectors.shape)}, the aligned model's activations "
            f"{tuple(aligned.shape[1:])} [layers, width]; both must be of one model."
        )
    if len(set(folds)) < 2:
        raise CalibrationError("A map needs prompts to be held out, and all are in one fold; give more.")
    if not (torch.isfinite(aligned.float()).all() and torch.isfinite(target.float()).all()):
        raise CalibrationError(
            "The activations hold NaN or infinity. Load both models in float32 or bfloat16."
        )
