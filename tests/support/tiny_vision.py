"""Tiny random vision-language models of every family, with processors that need no more than Pillow.

    from tests.support.tiny_vision import VISION_FAMILIES, tiny_vision

``tiny_vision(family)`` is a `LoadedModel`: the model in float32 and eval mode, and its processor around the
tiny tokenizer. Pictures take few image tokens, and in some families another number for another shape.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from packaging.version import Version
from PIL import Image

from inferaligner.models.loading import LoadedModel
from inferaligner.models.processors import without_videos
from inferaligner.prompts.images import ImagePrompt, picture_from
from tests.support.tiny_models import tiny_tokenizer

WIDTH = 32

_TEXT = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

_TOKENS = {
    "image_token": "<image>",
    "video_token": "<video>",
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
}

_TEMPLATE = (
    "{%% for message in messages %%}<|im_start|>{{ message['role'] }}\n"
    "{%% for part in message['content'] %%}{%% if part['type'] == 'image' %%}%s"
    "{%% elif part['type'] == 'text' %%}"
    "{{ part['text'] }}{%% endif %%}{%% endfor %%}<|im_end|>\n{%% endfor %%}"
    "{%% if add_generation_prompt %%}<|im_start|>assistant\n{%% endif %%}"
)


def picture(number: int = 0, size: tuple[int, int] = (32, 32)) -> Any:
    """A picture of random colours; every number is another."""
    draw = torch.Generator().manual_seed(number)
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=draw, dtype=torch.uint8)
    return picture_from(Image.fromarray(pixels.numpy()))


def prompts() -> list[Any]:
    """Text alone, one picture, two pictures, and one of another shape."""
    return [
        "How do I bake a loaf of bread at home?",
        ImagePrompt("Which flour should I choose?", (picture(1),)),
        ImagePrompt("Explain the evening in a few words.", (picture(2), picture(3))),
        "Why is the sky blue?",
        ImagePrompt("Write a story.", (picture(4, (64, 32)),)),
    ]


@functools.cache
def tiny_vision(family: str) -> LoadedModel:
    """See the module; the same object for every call, so that tests leave it as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, processor = _FAMILIES[family]()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return LoadedModel(model.eval(), processor.tokenizer, family, processor)


def backbone_of(family: str, name: str) -> Any:
    """A text-only model with the weights of the language model inside a vision-language model."""
    seeing = tiny_vision(family).model
    config = seeing.config.get_text_config()
    alone = getattr(transformers, name)(config).eval()
    inner = getattr(seeing.model, "language_model", None) or seeing.model.text_model
    alone.model.load_state_dict(inner.state_dict())
    return alone


def save_vision(family: str, folder: Path) -> LoadedModel:
    """Writes the model with its processor, as its publishers do; returns it as it is in memory."""
    loaded = tiny_vision(family)
    loaded.model.save_pretrained(folder)
    loaded.processor.tokenizer.save_pretrained(folder)
    loaded.processor.image_processor.save_pretrained(folder)
    known = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")
    settings = {
        name: value
        for name in (*known, "image_seq_len", "image_seq_length")
        if (value := getattr(loaded.processor, name, None)) is not None
    }
    settings["processor_class"] = type(loaded.processor).__name__
    (folder / "processor_config.json").write_text(json.dumps(settings))
    return loaded


def _tokenizer(place: str, *more: str) -> Any:
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [*_TOKENS.values(), *more]})
    tokenizer._set_model_specific_special_tokens(_TOKENS)  # as the checkpoints' tokenizer settings do
    tokenizer.chat_template = _TEMPLATE % place
    return tokenizer


def _clip(size: int = 32, patch: int = 16) -> dict[str, Any]:
    return {
        "model_type": "clip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 4,  # as many as the decoder has
        "num_attention_heads": 2,
        "image_size": size,
        "patch_size": patch,
    }


def _llava() -> tuple[Any, Any]:
    from transformers import CLIPImageProcessorPil, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    tokenizer = _tokenizer("<image>\n")
    config = LlavaConfig(
        text_config={"model_type": "llama", **_TEXT, "vocab_size": len(tokenizer)},
        vision_config=_clip(),
        image_token_id=tokenizer.image_token_id,
        vision_feature_layer=-2,
    )
    images = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_center_crop=True
    )
    processor = LlavaProcessor(
        images,
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    return LlavaForConditionalGeneration(config), processor


def _llava_next() -> tuple[Any, Any]:
    from transformers import (
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessorPil,
        LlavaNextProcessor,
    )

    tokenizer, grid = _tokenizer("<image>\n"), [[32, 32], [64, 32], [32, 64]]
    config = LlavaNextConfig(
        text_config={"model_type": "mistral", **_TEXT, "vocab_size": len(tokenizer)},
        vision_config=_clip(),
        image_token_id=tokenizer.image_token_id,
        image_grid_pinpoints=grid,
        vision_feature_layer=-2,
    )
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=grid
    )
    processor = LlavaNextProcessor(
        images,
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )
    return LlavaNextForConditionalGeneration(config), processor


def _qwen(version: str) -> tuple[Any, Any]:
    import transformers
    from transformers import Qwen2VLImageProcessorPil

    name = {"2_5": "Qwen2_5_VL", "3": "Qwen3VL"}[version]
    tokenizer = _tokenizer("<|vision_start|><image><|vision_end|>")
    vision: dict[str, Any] = {
        "depth": 4,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "patch_size": 8,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": WIDTH,
    }
    text: dict[str, Any] = {**_TEXT, "vocab_size": len(tokenizer)}
    # Shares of half a head's width, for time, height and width.
    sections = [WIDTH // 16, WIDTH // 32, WIDTH // 32]
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": sections}
    if version == "3":
        vision |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
        text |= {
            "head_dim": WIDTH // 4,
            "rope_parameters": rope,
        }
    else:
        vision |= {"fullatt_block_indexes": [3], "window_size": 32}
        text["rope_parameters"] = rope
    config = getattr(transformers, f"{name}Config")(
        text_config=text,
        vision_config=vision,
        image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id,
        vision_start_token_id=tokenizer.vision_bos_token_id,
        vision_end_token_id=tokenizer.vision_eos_token_id,
    )
    images = Qwen2VLImageProcessorPil(
        patch_size=8,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": 16 * 16, "longest_edge": 64 * 64},
    )
    processor = without_videos(getattr(transformers, f"{name}Processor"))(
        images, tokenizer, None, chat_template=tokenizer.chat_template
    )
    return getattr(transformers, f"{name}ForConditionalGeneration")(config), processor


def _gemma3() -> tuple[Any, Any]:
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3ImageProcessorPil,
        Gemma3Processor,
    )

    tokenizer = _tokenizer("<start_of_image>")
    config = Gemma3Config(
        text_config={
            **_TEXT,
            "num_hidden_layers": 6,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": 16,
            "vocab_size": len(tokenizer),
        },
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 6,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        mm_tokens_per_image=4,
        image_token_id=tokenizer.image_token_id,
        boi_token_id=tokenizer.boi_token_id,
        eoi_token_id=tokenizer.eoi_token_id,
    )
    images = Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    processor = Gemma3Processor(images, tokenizer, image_seq_length=4, chat_template=tokenizer.chat_template)
    model = Gemma3ForConditionalGeneration(config)
    # Zeros until a checkpoint is loaded: nothing of a picture would come through.
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)
    return model, processor


def _idefics(name: str) -> tuple[Any, Any]:
    import transformers

    rows = [f"<row_{row + 1}_col_{column + 1}>" for row in range(6) for column in range(6)]
    tokenizer = _tokenizer("<image>", *rows)
    processor_class = getattr(transformers, f"{name}Processor")
    config = getattr(transformers, f"{name}Config")(
        text_config={"model_type": "llama", **_TEXT, "vocab_size": len(tokenizer)},
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        scale_factor=2,
        image_token_id=tokenizer.image_token_id,
        pad_token_id=0,
    )
    images = getattr(transformers, f"{name}ImageProcessorPil")(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
    )
    options = {"image_seq_len": 4, "chat_template": tokenizer.chat_template}
    if name == "SmolVLM":
        processor = without_videos(processor_class)(images, tokenizer, None, **options)
    else:
        processor = processor_class(images, tokenizer, **options)
    return getattr(transformers, f"{name}ForConditionalGeneration")(config), processor


def _internvl() -> tuple[Any, Any]:
    from transformers import (
        GotOcr2ImageProcessorPil,
        InternVLConfig,
        InternVLForConditionalGeneration,
        InternVLProcessor,
    )

    tokenizer = _tokenizer("<IMG_CONTEXT>\n")
    config = InternVLConfig(
        text_config={"model_type": "qwen2", **_TEXT, "vocab_size": len(tokenizer)},
        vision_config={
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "image_size": [32, 32],
            "patch_size": [8, 8],
        },
        image_token_id=tokenizer.context_image_token_id,
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    images = GotOcr2ImageProcessorPil(size={"height": 32, "width": 32}, crop_to_patches=True, max_patches=2)
    processor = without_videos(InternVLProcessor)(
        images, tokenizer, None, image_seq_length=4, chat_template=tokenizer.chat_template
    )
    return InternVLForConditionalGeneration(config), processor


_FAMILIES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "qwen2_5_vl": functools.partial(_qwen, "2_5"),
    "qwen3_vl": functools.partial(_qwen, "3"),
    "gemma3": _gemma3,
    "idefics3": functools.partial(_idefics, "Idefics3"),
    "smolvlm": functools.partial(_idefics, "SmolVLM"),
    "internvl": _internvl,
}
# Before 5.18, transformers reads images of these with torchvision alone.
_NEED_TORCHVISION = ("idefics3", "smolvlm")
_ALL = find_spec("torchvision") is not None or Version(transformers.__version__).release >= (5, 18)
VISION_FAMILIES = tuple(family for family in _FAMILIES if _ALL or family not in _NEED_TORCHVISION)
