"""Where each row's prompt begins and ends, from the arguments of a call of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from inferaligner.errors import SteeringError
from inferaligner.prompts.template_ends import EndKind, TemplateEnds


@dataclass(frozen=True)
class PromptSpans:
    """Positions of the prompts in a batch, each `[rows]` on the CPU; padding and cached tokens count.

    Attributes:
        begins: the first prompt token.
        ends: the last prompt token.
        lasts: the last token of the call, where parts of the answer came with the prompt; else None.
        turns: the last token before the assistant's turn: before `ends` in a begun answer. None where the
            ends were not checked.
        kinds: how each row ends; None where the ends were not checked.
    """

    begins: Tensor
    ends: Tensor
    lasts: Tensor | None = None
    turns: Tensor | None = None
    kinds: tuple[EndKind, ...] | None = None

    @property
    def reads(self) -> Tensor:
        """Positions `[rows]` of the last token that the guidance gate reads."""
        return self.ends if self.turns is None else self.turns

    def repeated(self, times: int) -> PromptSpans:
        """A copy with every row repeated in place, as for beams and several return sequences."""

        def rows(places: Tensor) -> Tensor:
            return places.repeat_interleave(times)

        return PromptSpans(
            rows(self.begins),
            rows(self.ends),
            None if self.lasts is None else rows(self.lasts),
            None if self.turns is None else rows(self.turns),
            None if self.kinds is None else tuple(kind for kind in self.kinds for _ in range(times)),
        )


def generate_setting(arguments: Mapping[str, Any], defaults: Any, name: str) -> Any:
    """A setting of a `generate(...)` call: an argument, else its configuration's, else the model's own.

    Args:
        arguments: the call's arguments by name.
        defaults: the model's generation configuration.
        name: of the setting.
    """
    places = (arguments.get("generation_config"), defaults)
    given = (arguments.get(name), *(getattr(place, name, None) for place in places))
    return next((value for value in given if value is not None), None)


def generate_end_tokens(arguments: Mapping[str, Any], defaults: Any) -> list[int]:
    """The tokens that end an answer in a `generate(...)` call. `defaults`: see `generate_setting`."""
    ends = generate_setting(arguments, defaults, "eos_token_id")
    if isinstance(ends, Tensor):
        ends = ends.tolist()
    return list(ends) if isinstance(ends, (list, tuple)) else [] if ends is None else [int(ends)]


def spans_of_generate(arguments: Mapping[str, Any], defaults: Any) -> PromptSpans:
    """The prompts of a `generate(...)` call, before rows are repeated. `defaults`: see `generate_setting`."""
    tokens = arguments.get("inputs_embeds")
    ids = arguments.get("inputs") if arguments.get("inputs") is not None else arguments.get("input_ids")
    mask = arguments.get("attention_mask")
    if tokens is None:
        tokens = ids
    if tokens is None:
        return _spans(1, 1, None)  # generation from the beginning-of-text token alone
    if mask is None and ids is not None:
        pad, eos = (generate_setting(arguments, defaults, f"{name}_token_id") for name in ("pad", "eos"))
        mask = _mask_from_padding(ids, pad, eos)
    return _spans(tokens.shape[0], tokens.shape[1], mask)


def spans_of_forward(tokens: Tensor, arguments: Mapping[str, Any], start: int) -> PromptSpans:
    """The prompts of a direct forward call whose first token stands at position `start`."""
    return _spans(tokens.shape[0], start + tokens.shape[1], arguments.get("attention_mask"))


def spans_from_lengths(
    lengths: Sequence[int], tokens: Tensor, arguments: Mapping[str, Any], start: int
) -> PromptSpans:
    """The prompts of a direct forward call whose lengths in tokens, padding not counted, are known.

    Raises:
        SteeringError: lengths that do not fit the rows.
    """
    whole = spans_of_forward(tokens, arguments, start)
    if len(lengths) != len(whole.ends):
        raise SteeringError(f"{len(lengths)} prompt lengths were given for {len(whole.ends)} rows.")
    ends = whole.begins + torch.tensor(lengths) - 1
    if bool((ends > whole.ends).any()) or min(lengths) < 1:
        raise SteeringError(
            f"Prompt lengths {list(lengths)} do not fit rows of {(whole.ends - whole.begins + 1).tolist()} "
            "tokens; expected 1 or more, and no more than the row has."
        )
    return PromptSpans(whole.begins, ends, whole.ends if bool((ends < whole.ends).any()) else None)


def with_turns(spans: PromptSpans, ids: Tensor, start: int, ends: TemplateEnds) -> PromptSpans:
    """Returns `spans` with each row's kind of end, and where the template hands over to the assistant.

    Args:
        spans: where the prompts begin and end.
        ids: token ids `[prompts, tokens]`; only the new tokens of a prompt that is cached in part.
        start: position of the first of these tokens.
        ends: the ends that the chat template writes.
    """
    rows, kinds, turns = ids.tolist(), list[EndKind](), spans.ends.clone()
    for row, (begin, end) in enumerate(zip(spans.begins.tolist(), spans.ends.tolist(), strict=True)):
        first = max(begin, start)
        end_kind = ends.end_of(rows[row][first - start : end + 1 - start])
        kinds.append(end_kind.kind)
        if end_kind.turn_end is not None:
            turns[row] = first + end_kind.turn_end - 1
    return replace(spans, turns=turns, kinds=tuple(kinds))


def cached_tokens(cache: Any) -> int:
    """Tokens in a KV cache; waits for the device if the cache counts there."""
    if cache is None:
        return 0
    try:
        return int(cache.get_seq_length())
    except AttributeError:
        raise SteeringError(
            f"Unknown KV cache {type(cache).__name__}: cannot tell where the prompt ends. "
            "Use one of the caches of transformers."
        ) from None
    except ValueError:  # linear attention alone: a state without a length
        if not cache.has_previous_state():
            return 0
        raise SteeringError(
            f"The {type(cache).__name__} of a model without attention layers does not count the tokens "
            "that it has seen, so the new turn's positions are unknown. Pass the whole conversation without "
            "the cache."
        ) from None


def refuse_packed(arguments: Mapping[str, Any]) -> None:
    """Raises `SteeringError` where one row holds several sequences."""
    packed = any(arguments.get(name) is not None for name in ("cu_seq_lens_q", "block_table", "block_tables"))
    positions = arguments.get("position_ids")
    if arguments.get("attention_mask") is None and isinstance(positions, Tensor) and positions.ndim == 2:
        packed = packed or bool((positions.diff(dim=1) < 0).any())
    if packed:
        raise SteeringError(
            "Several sequences are packed into one row (continuous batching or padding-free input), so a row "
            "has no single last prompt token. Use padded batches, or the vLLM engine for serving."
        )


def refuse_image_reads(
    tokens: Tensor, ends: Tensor, start: int, offsets: Sequence[int], image_tokens: Sequence[int]
) -> None:
    """Raises `SteeringError` where the gate would read a token of an image.

    A chat template writes its own tokens after every picture, so only a prompt that was not rendered with it
    can end in one.

    Args:
        tokens: token ids `[rows, tokens]`.
        ends: positions `[rows]` of the last tokens that the gate reads.
        start: position of the first of `tokens`.
        offsets: the gate's offsets before `ends`.
        image_tokens: ids of the tokens of images.
    """
    if not image_tokens or tokens.is_floating_point():
        return
    columns = ends[:, None] - torch.tensor(list(offsets)) - start
    inside = (columns >= 0) & (columns < tokens.shape[1])
    read = tokens.cpu().gather(1, columns.clamp(0, tokens.shape[1] - 1))
    if bool((torch.isin(read, torch.tensor(list(image_tokens))) & inside).any()):
        raise SteeringError(
            "The gate would read a token of an image: the prompt does not end as the chat template ends one. "
            "Render it with the processor's chat template, up to where the assistant begins to speak."
        )


def _spans(rows: int, width: int, mask: Any) -> PromptSpans:
    if isinstance(mask, Tensor) and mask.ndim == 2:
        seen = mask.cpu().long()  # the one wait for the device
        width = seen.shape[1]  # covers cached tokens as well, when only new ones are passed
        return PromptSpans(seen.argmax(dim=1), width - 1 - seen.flip(1).argmax(dim=1))
    return PromptSpans(torch.zeros(rows, dtype=torch.long), torch.full((rows,), width - 1, dtype=torch.long))


def _mask_from_padding(ids: Tensor, pad_token_id: object, eos_token_ids: object) -> Tensor | None:
    """The attention mask that `generate` infers where none is given."""
    if ids.dtype not in (torch.long, torch.int) or not isinstance(pad_token_id, int):
        return None
    endings = eos_token_ids if isinstance(eos_token_ids, (list, tuple)) else [eos_token_ids]
    if pad_token_id in endings or not bool((ids == pad_token_id).any()):
        return None
    return (ids != pad_token_id).long()
