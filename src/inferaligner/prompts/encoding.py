"""Tokenizers and processors behind one name, and the model inputs of prompts with pictures.

A *reader* turns prompts into tokens: the tokenizer of a language model, or the processor of a vision-language
model, which holds a tokenizer. Prompts with pictures always go through the processor: only it knows how many
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
    """Token ids of a prompt in a batch with pictures, with the text and the pictures they were made from."""

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
    """The chat template in use: a processor's own takes precedence over its tokenizer's.

    Raises:
        InputError: There are several templates and none is named default.
    """
    template = getattr(reader, "chat_template", None)
    return default_template(template or getattr(tokenizer_of(reader), "chat_template", None))


def default_template(templates: str | Mapping[str, str] | None, owner: str = "The tokenizer") -> str | None:
    """The only template, or the one named default of several.

    Args:
        templates: One template, several by name, or None.
        owner: The subject of the error message.

    Raises:
        InputError: There are several templates and none is named default.
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
    """Whether the reader can read pictures."""
    return getattr(reader, "image_processor", None) is not None


def encode_seen(
    reader: Reader, rendered: Sequence[str], pictures: Sequence[Sequence[Picture]]
) -> list[SeenTokens]:
    """Token ids of rendered prompts with their pictures, image tokens included.

    Args:
        reader: The processor.
        rendered: The prompts as the chat template renders them.
        pictures: The pictures of each prompt; empty for a prompt without any.

    Raises:
        InputError: The reader cannot read pictures, the template leaves them out, or a text holds the
            placeholder of an image.
    """
    if not sees_images(reader):
        raise InputError(
            "A prompt has a picture, and there is no image processor to read it. Use a vision-language "
            "model, with its processor in place of the tokenizer; Pillow must be installed "
            "(pip install 'inferaligner[vision]')."
        )
    processor: Any = reader
    check_placeholders(reader, rendered, [len(shown) for shown in pictures])
    return [
        SeenTokens(_processed(processor, [text], [shown])["input_ids"][0], text, shown, processor)
        for text, shown in zip(rendered, pictures, strict=True)
    ]


def check_placeholders(reader: Reader, rendered: Sequence[str], counts: Sequence[int]) -> None:
    """Raises `InputError` unless each rendered prompt has one image placeholder for each of its pictures."""
    placeholder = getattr(reader, "image_token", None)
    if not sees_images(reader) or placeholder is None:
        return
    for number, (text, count) in enumerate(zip(rendered, counts, strict=True), start=1):
        placeholders = text.count(placeholder)
        if placeholders != count:
            raise InputError(
                f"Prompt {number} has {count} pictures, but its rendering has {placeholders} placeholders "
                f"for pictures ({placeholder}). Leave the placeholder out of the text"
                + ("; or the chat template is not one for images." if count else ".")
            )


def has_pictures(ids: Sequence[int]) -> bool:
    """Whether the token ids belong to a prompt with pictures."""
    return isinstance(ids, SeenTokens) and bool(ids.pictures)


def seen_inputs(batch: Sequence[Sequence[int]], padding_side: str) -> Mapping[str, Tensor]:
    """The model's inputs for a batch with pictures.

    Args:
        batch: Token ids from `encode_seen`.
        padding_side: "left" or "right".

    Returns:
        `input_ids` and `attention_mask` `[rows, tokens]`, and the tensors of the pictures, which in most
        families have no dimension of rows.

    Raises:
        InputError: The processor gives a prompt another length in the batch than alone.
    """
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
            f"{type(rows[0].processor).__name__} gives prompts another length in a batch than alone "
            f"({lengths} and {[len(row) for row in rows]} tokens), so their last tokens are unknown. "
            "Give these prompts one at a time."
        )
    return inputs


def image_tokens(config: Any) -> tuple[int, ...]:
    """The placeholder tokens of images and videos in a model's configuration."""
    names = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")
    tokens = (getattr(config, name, None) for name in names)
    return tuple(dict.fromkeys(int(token) for token in tokens if isinstance(token, int)))


def own_positions(config: Any) -> bool:
    """Whether the position of a token after an image is not its index, as in the Qwen-VL families."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    rope: Mapping[str, Any] = getattr(text, "rope_parameters", None) or {}
    return "mrope_section" in rope


def _processed(
    processor: Any, rendered: Sequence[str], pictures: Sequence[Sequence[Picture]], **options: Any
) -> Any:
    images = [[picture.pixels() for picture in each] for each in pictures]
    # The template writes the special tokens itself; adding them again would double <bos>.
    return processor(
        text=list(rendered), images=images if any(images) else None, add_special_tokens=False, **options
    )
