"""From rendered prompts to what a model takes, through its tokenizer or its processor.

A *reader* turns prompts into tokens: the tokenizer of a language model, or the processor of a vision-language
model, which holds a tokenizer. Where images come along, the processor is the authority: it knows how many
image tokens a picture takes and in which tensors the pixels go.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from inferaligner.errors import InputError
from inferaligner.prompts.images import Picture

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase
    from transformers.processing_utils import ProcessorMixin

Reader: TypeAlias = "PreTrainedTokenizerBase | ProcessorMixin"


class SeenTokens(list[int]):
    """Token ids of a prompt in company of prompts with pictures, and what its inputs are made from."""

    def __init__(
        self, ids: Sequence[int], rendered: str, pictures: Sequence[Picture], processor: ProcessorMixin
    ) -> None:
        super().__init__(ids)
        self.rendered = rendered
        self.pictures = tuple(pictures)
        self.processor = processor


def tokenizer_of(reader: Reader) -> Any:
    """The tokenizer itself, or the one inside a processor."""
    return getattr(reader, "tokenizer", reader)


def template_of(reader: Reader) -> str | None:
    """The chat template in use: a processor's own goes before its tokenizer's.

    Raises `InputError` where there are several templates and none is named default.
    """
    template = getattr(reader, "chat_template", None)
    return default_template(template or getattr(tokenizer_of(reader), "chat_template", None))


def default_template(templates: str | Mapping[str, str] | None, owner: str = "The tokenizer") -> str | None:
    """The one template, or of several, by name, the one named default.

    Raises `InputError` where there are several and none is named default; `owner` is the message's subject.
    """
    if not isinstance(templates, Mapping):
        return templates
    if "default" in templates:
        return templates["default"]
    raise InputError(
        f"{owner} has {len(templates)} named chat templates ({', '.join(sorted(templates))}), and none of "
        "them is named default. Choose one with --chat-template NAME (chat_template='NAME' in load_model)."
    )


def sees_images(reader: Reader) -> bool:
    """Whether prompts with pictures can be read."""
    return getattr(reader, "image_processor", None) is not None


def encode_seen(
    reader: Reader, rendered: Sequence[str], pictures: Sequence[Sequence[Picture]]
) -> list[SeenTokens]:
    """Token ids of rendered prompts, each with its pictures or without; image tokens are in their places.

    Raises:
        InputError: a model without eyes, a template that leaves pictures out, or a text that holds the
            placeholder of an image.
    """
    if not sees_images(reader):
        raise InputError(
            "A prompt has a picture, and there is no image processor to read it with. Use a vision-language "
            "model, with its processor in place of the tokenizer; Pillow must be installed "
            "(pip install 'inferaligner[vision]')."
        )
    processor: Any = reader
    check_places(reader, rendered, [len(shown) for shown in pictures])
    return [
        SeenTokens(_processed(processor, [text], [shown])["input_ids"][0], text, shown, processor)
        for text, shown in zip(rendered, pictures, strict=True)
    ]


def check_places(reader: Reader, rendered: Sequence[str], counts: Sequence[int]) -> None:
    """Raises `InputError` unless each rendered prompt has as many places for a picture as it has pictures."""
    placeholder = getattr(reader, "image_token", None)
    if not sees_images(reader) or placeholder is None:
        return
    for number, (text, count) in enumerate(zip(rendered, counts, strict=True), start=1):
        found = text.count(placeholder)
        if found != count:
            raise InputError(
                f"Prompt {number} has {count} pictures, and its rendering {found} places for one "
                f"({placeholder}). Leave that placeholder out of the text"
                + ("; or the chat template is not one for images." if count else ".")
            )


def has_pictures(ids: Sequence[int]) -> bool:
    """Whether pictures belong to these token ids."""
    return isinstance(ids, SeenTokens) and bool(ids.pictures)


def seen_inputs(batch: Sequence[Sequence[int]], padding_side: str) -> Mapping[str, Tensor]:
    """What the model's forward takes for these prompts, all of `encode_seen`: ids and mask by row, and what
    the pictures become, which in most families does not go by rows."""
    rows = [ids for ids in batch if isinstance(ids, SeenTokens)]
    assert len(rows) == len(batch)
    inputs: Mapping[str, Tensor] = _processed(
        rows[0].processor,
        [row.rendered for row in rows],
        [row.pictures for row in rows],
        padding=True,
        padding_side=padding_side,
        return_tensors="pt",
    )
    lengths = inputs["attention_mask"].sum(1).tolist()
    if lengths != [len(row) for row in rows]:
        raise InputError(
            f"{type(rows[0].processor).__name__} gives prompts another length in company than alone "
            f"({lengths} and {[len(row) for row in rows]} tokens), so where they end is not known."
        )
    return inputs


def image_tokens(config: Any) -> tuple[int, ...]:
    """The ids that a model's configuration gives to places where an image (or a video) stands."""
    names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    found = (getattr(config, name, None) for name in names)
    return tuple(dict.fromkeys(int(token) for token in found if isinstance(token, int)))


def own_positions(config: Any) -> bool:
    """Whether a model gives tokens after an image other positions than their number: the Qwen families'."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    rope: Mapping[str, Any] = getattr(text, "rope_parameters", None) or {}
    return "mrope_section" in rope


def _processed(
    processor: Any, rendered: Sequence[str], pictures: Sequence[Sequence[Picture]], **options: Any
) -> Any:
    shown = [[picture.pixels() for picture in each] for each in pictures]
    # The template writes the special tokens itself; adding them again would double <bos>.
    return processor(
        text=list(rendered), images=shown if any(shown) else None, add_special_tokens=False, **options
    )
