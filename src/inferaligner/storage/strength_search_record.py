"""The record of the strength search in an artifact (`calibration["search"]`, plain JSON), in words.

Tables, cards and figures use these functions, so that they agree on the chosen setting and on its
description. A field that an older record does not have counts as not measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Trial = Mapping[str, Any]


def same_setting(one: Trial, other: Trial) -> bool:
    """Whether two trials have the same layers and strengths."""
    return (list(one["layers"]), one["strength"], list(one.get("profile") or ())) == (
        list(other["layers"]),
        other["strength"],
        list(other.get("profile") or ()),
    )


def finalists(search: Mapping[str, Any]) -> list[Trial]:
    """The trials with generated answers: the chosen one first, then those with the most refusals."""
    generated = [trial for trial in search["trials"] if trial["refusal"] is not None]
    return sorted(generated, key=lambda t: (same_setting(t, search["chosen"]), t["refusal"]), reverse=True)


def strength_words(strength: float, profile: Sequence[float] | None) -> str:
    """α, and α·p_l by layer where the strength differs by layer."""
    if not profile:
        return f"{strength:.3g}"
    return f"{strength:.3g} on average ({', '.join(f'{strength * factor:.2g}' for factor in profile)})"


def span(layers: Sequence[int]) -> str:
    """Layers as a range where they follow each other."""
    together = len(layers) > 1 and list(layers) == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]}–{layers[-1]}" if together else ", ".join(map(str, layers))


def false_open_words(search: Mapping[str, Any]) -> str | None:
    """The answers to harmless prompts that open the gate, in words; None where they were not measured."""
    chosen, bare = search["chosen"], search.get("harmless_unsteered")
    if not search.get("harmless") or chosen.get("drift") is None:
        return None
    shares = ", ".join(
        f"{chosen[f'harmless_{name}']:.0%} {name}" for name in ("refusal", "compliance", "gibberish")
    )
    words = f"Of {search['harmless']} harmless prompts that open the gate or come near it: {shares}"
    if bare:
        words += f" (unsteered: {bare['refusal']:.0%} refusal, {bare['gibberish']:.0%} gibberish)"
    return f"{words}; the bare model's own answers to them lose {chosen['drift']:.2f} nats a token"


def order_words(search: Mapping[str, Any]) -> str | None:
    """The cost of steering only from the gate's last layer on, in words; None where it was not measured."""
    below = [trial for trial in search.get("below_gate") or [] if trial["cross_entropy"] is not None]
    above = [
        trial for trial in search["trials"] if trial["cross_entropy"] is not None and not trial.get("profile")
    ]
    if not below or not above:
        return None
    best, other = (min(side, key=lambda trial: trial["cross_entropy"]) for side in (above, below))
    kept, free = best["cross_entropy"], other["cross_entropy"]
    words = (
        f"Steering from the gate's last layer ({search['gate_layer']}) on: cross-entropy {kept:.3f} at best; "
        f"from below it: {free:.3f}, at layers {other['layers'][0]}-{other['layers'][-1]} × "
        f"{other['strength']:.3g}"
    )
    if free >= kept:
        return f"{words}. One pass for gate and steering costs nothing here"
    words += f". One pass for gate and steering costs {kept - free:.3f} nats a token"
    if other.get("refusal") is not None:
        words += f" (the setting below refuses {other['refusal']:.0%}, {other['gibberish']:.0%} gibberish)"
    return words
