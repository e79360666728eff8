"""A LLaVA that reads without a mistake, to measure how much a better tower could gain.

Tower and projector are taught to give, in every patch of a page, the language model's embedding of the token
that begins there. Here they are replaced by just that for pages whose text is known; the language model, its
adapter and the aligner are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from inferaligner.models.loading import LoadedModel
from inferaligner.prompts.contrast import load_contrast_set
from inferaligner.prompts.images import picture_from
from inferaligner.prompts.picture_styles import STYLES, split_request
from reproduction.vision.pages import GRID, what_stands
from reproduction.vision.raster import draw_text, fits


def pages_of_the_suites() -> set[str]:
    """The texts of all pages in the suites of the contrast set's test part."""
    prompts = load_contrast_set().part("test", wrapped=False)
    parts = [split_request(style, prompt.text) for prompt in prompts for style in STYLES]
    return {split[0] for split in parts if split is not None and fits(split[0])}


@contextmanager
def perfect_reading(seeing: LoadedModel, texts: Iterable[str]) -> Iterator[None]:
    """Within this context the pages with these texts are read without a mistake.

    Raises:
        KeyError: The model gets another picture.
    """
    inner: Any = seeing.model.model
    known = {_key(pixels): text for text, pixels in _drawn(seeing, sorted(texts))}
    embeddings = seeing.model.get_input_embeddings().weight.detach()
    tokenizer: Any = seeing.tokenizer
    (blank,) = tokenizer(" ", add_special_tokens=False)["input_ids"]
    looked = inner.get_image_features

    def read(pixel_values: Tensor, *args: Any, **options: Any) -> Any:
        found = looked(pixel_values, *args, **options)
        told = [_features(known[_key(pixels)], embeddings, tokenizer, blank) for pixels in pixel_values]
        found.pooler_output = [rows.to(seen) for rows, seen in zip(told, found.pooler_output, strict=True)]
        return found

    inner.get_image_features = read
    try:
        yield
    finally:
        del inner.get_image_features  # the class's own is behind it


def _features(text: str, embeddings: Tensor, tokenizer: Any, blank: int) -> Tensor:
    """`[patches, width]`: mean embedding of the tokens that begin in a patch; a blank's where none does."""
    begun: dict[int, list[int]] = {}
    for patch, token in what_stands(text, tokenizer)[0]:
        begun.setdefault(patch, []).append(token)
    return torch.stack([embeddings[begun.get(patch, [blank])].mean(0) for patch in range(GRID * GRID)])


def _drawn(seeing: LoadedModel, texts: list[str]) -> Iterator[tuple[str, Tensor]]:
    processor: Any = seeing.processor
    for text in texts:
        pixels = picture_from(draw_text(text)).pixels()
        yield text, processor.image_processor([pixels], return_tensors="pt")["pixel_values"][0]


def _key(pixels: Tensor) -> bytes:
    """A key of a picture as the tower gets it, the same in every precision."""
    return (pixels.float() * 100).round().to(torch.int16).cpu().numpy().tobytes()
