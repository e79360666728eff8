"""Vectors carried over between spaces whose true relation is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from inferaligner.errors import CalibrationError
from inferaligner.fit.transfer.linear_map import FOLDS, LEAST_EXPLAINED, carry_over, needs_map, partners
from inferaligner.method.vectors import cosine
from tests.support.tiny_models import tiny_model

PROMPTS, WIDE, NARROW = 600, 24, 16
CLASSES = ["harmful", "twin", "ordinary"] * (PROMPTS // 3)
FOLD = [number // 3 % FOLDS for number in range(PROMPTS)]


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rotation(width: int, seed: int) -> Tensor:
    return torch.linalg.qr(draw(width, width, seed=seed)).Q


def aligned_activations(layers: int = 1, width: int = NARROW) -> Tensor:
    """`[prompts, layers, width]`, a few axes of which carry most of the variance."""
    spread = torch.linspace(2, 0.3, width)
    return draw(PROMPTS, layers, width, seed=1) * spread + 5


def test_a_rotation_is_found_and_carries_vectors_exactly() -> None:
    aligned, turn = aligned_activations(width=WIDE), rotation(WIDE, 2)
    target = 3 * aligned @ turn - 1
    vectors = draw(1, WIDE, seed=3)
    for kind in ("ridge", "procrustes"):
        found = carry_over(vectors, aligned, target, CLASSES, FOLD, kind=kind)
        assert found.explained > 0.999 and found.trusted
        assert {one.kind for one in found.maps} == {kind}
        assert torch.allclose(found.ssv, 3 * vectors @ turn, rtol=0.02, atol=0.05)


def test_widths_may_differ_and_noise_lowers_what_is_explained() -> None:
    aligned, matrix = aligned_activations(), draw(NARROW, WIDE, seed=2)
    clean = aligned @ matrix
    spread = (clean - clean.mean(0)).std()
    vectors = draw(1, NARROW, seed=3)
    explained = []
    for noise in (0.0, 1.0, 3.0):
        target = clean + noise * spread * draw(PROMPTS, 1, WIDE, seed=4)
        found = carry_over(vectors, aligned, target, CLASSES, FOLD)
        assert found.ssv.shape == (1, WIDE)
        explained.append(found.explained)
    # Noise of variance v leaves 1 / (1 + v) to explain.
    assert explained[0] > 0.999
    assert explained[1] == pytest.approx(0.5, abs=0.05)
    assert explained[2] == pytest.approx(0.1, abs=0.05)
    truth = vectors @ matrix
    found = carry_over(vectors, aligned, clean + draw(PROMPTS, 1, WIDE, seed=4), CLASSES, FOLD)
    assert cosine(found.ssv, truth).item() > 0.98


def test_unrelated_activations_explain_nothing_and_are_refused() -> None:
    found = carry_over(
        draw(1, NARROW, seed=3), aligned_activations(), draw(PROMPTS, 1, WIDE, seed=9), CLASSES, FOLD
    )
    assert found.explained < 0.05 and not found.trusted
    with pytest.raises(CalibrationError, match=f"{LEAST_EXPLAINED:.0%} or more.*`accept_poor_map`"):
        found.check("target", "other")


def test_the_targets_own_class_difference_does_not_leak_in() -> None:
    """Where harm moves the two models along unlike axes, it is the aligned model's axis that comes over."""
    aligned, matrix = aligned_activations(), draw(NARROW, WIDE, seed=2)
    target = aligned @ matrix
    harmful = torch.tensor([name == "harmful" for name in CLASSES])
    refuses, harm = torch.zeros(NARROW), draw(WIDE, seed=5)
    refuses[3] = 4.0
    aligned, target = aligned.clone(), target.clone()
    aligned[harmful] += refuses
    target[harmful] += 4 * harm
    found = carry_over(refuses[None], aligned, target, CLASSES, FOLD)
    assert cosine(found.ssv, (refuses @ matrix)[None]).item() > 0.99
    assert abs(cosine(found.ssv, harm[None]).item()) < 0.6
    assert found.explained > 0.99
    # One class for all is the common mean, and least squares then carries over the target's own difference.
    leaked = carry_over(refuses[None], aligned, target, ["all"] * PROMPTS, FOLD, kind="ridge")
    assert cosine(leaked.ssv, harm[None]).item() > cosine(found.ssv, harm[None]).item() + 0.2


def test_the_best_layer_of_like_depth_is_taken() -> None:
    aligned = torch.cat([aligned_activations(1) * 0 + draw(PROMPTS, 1, NARROW, seed=s) for s in range(20)], 1)
    turn = draw(NARROW, WIDE, seed=2)
    # Target layer t looks like aligned layer t + 1.
    target = torch.stack([aligned[:, min(layer + 1, 19)] @ turn for layer in range(20)], 1)
    vectors = draw(20, NARROW, seed=3)
    best = carry_over(vectors, aligned, target, CLASSES, FOLD)
    assert [one.aligned_layer for one in best.maps][:19] == list(range(1, 20))
    depth = carry_over(vectors, aligned, target, CLASSES, FOLD, match="depth")
    assert [one.aligned_layer for one in depth.maps] == list(range(20))
    assert best.explained > 0.99 > depth.explained
    assert len(best.table()["layers"]) == 20 and best.table()["trusted"] is True


def test_partners_by_relative_depth() -> None:
    assert partners(4, 2, "depth") == [[0], [0], [0], [1]]
    assert partners(2, 4, "depth") == [[1], [3]]
    assert partners(3, 3, "best") == [[0], [1], [2]]
    wide = partners(30, 18, "best")
    assert all(len(near) > 1 for near in wide) and wide[-1][-1] == 17


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": CLASSES[1:]}, "one of each"),
        ({"folds": [0] * PROMPTS}, "one fold"),
        ({"vectors": torch.ones(1, WIDE)}, "both must be of one model"),
        ({"target": torch.full((PROMPTS, 1, WIDE), torch.nan)}, "NaN"),
    ],
)
def test_what_cannot_be_mapped(change: dict[str, object], words: str) -> None:
    given = {
        "vectors": torch.ones(1, NARROW), "aligned": aligned_activations(),
        "target": draw(PROMPTS, 1, WIDE, seed=1), "classes": CLASSES, "folds": FOLD, **change,
    }  # fmt: skip
    with pytest.raises(CalibrationError, match=words):
        carry_over(**given)  # type: ignore[arg-type]


def test_which_models_need_a_map() -> None:
    assert not needs_map(tiny_model(), tiny_model(seed=1))
    assert needs_map(tiny_model(), tiny_model(hidden_size=16))
    assert needs_map(tiny_model(), tiny_model("mistral"))
