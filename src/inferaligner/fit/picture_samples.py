"""Pictures of the labelled prompts, beside their text: for a target that reads images."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from inferaligner.fit.samples import Sample, Samples
from inferaligner.prompts.picture_styles import STYLES, Draw, render
from inferaligner.prompts.typography import draw_text

SHARE = 0.3
"""Share of the prompts that are drawn. Each costs a forward pass over an image's tokens."""


def with_pictures(samples: Samples, share: float = SHARE, draw: Draw = draw_text) -> Samples:
    """Adds pictures of some samples, to the fitting part and to the test part.

    The content alone decides which prompts are drawn, and in which style, so both sides of a pair are drawn
    in one style or not at all. A prompt that does not fit on a page stays text.
    """
    fitting, test = _pictured(samples.fitting, share, draw), _pictured(samples.test, share, draw)
    described = {**samples.described, "in pictures": len(fitting), "held out": len(samples.test) + len(test)}
    described["text digest"] = described["digest"]
    described["digest"] = hashlib.sha256(f"{described['digest']} in pictures {share}".encode()).hexdigest()
    return Samples((*samples.fitting, *fitting), (*samples.test, *test), described)


def _pictured(samples: tuple[Sample, ...], share: float, draw: Draw) -> tuple[Sample, ...]:
    by_content: dict[str, list[Sample]] = {}
    for sample in samples:
        if not sample.wrapped and sample.shown is None:
            by_content.setdefault(sample.content, []).append(sample)
    pictured: list[Sample] = []
    for content, together in by_content.items():
        drawn = int.from_bytes(hashlib.sha256(f"picture\n{content}".encode()).digest()[:8], "big")
        if drawn / 2**64 >= share:
            continue
        style = STYLES[drawn % len(STYLES)]
        shown = [render(style, sample.text, draw) for sample in together]
        if all(shown):
            # Wrapped: a picture is a frame around a request, and counts as one.
            pictured += [
                replace(sample, shown=picture, wrapped=True)
                for sample, picture in zip(together, shown, strict=True)
            ]
    return tuple(pictured)
