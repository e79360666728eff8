"""A LLaVA around SmolLM2-135M: the tower, the projector, the processor and the chat template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from inferaligner.models.loading import LoadedModel, load_model
from inferaligner.models.placement import read_device
from reproduction.vision.pages import GRID, SIDE

TARGET = "builtin:smollm2-135m"
PLACEHOLDER = "<image>"

# SmolLM2's own template, its system prompt included; a picture goes where its part stands.
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def vision_config() -> Any:
    """A vision transformer of 4.2 million parameters with rotary positions, so that a word is the same word
    anywhere on a page. Its patches are the squares of a page's raster."""
    from transformers import MLCDVisionConfig

    return MLCDVisionConfig(
        image_size=SIDE,
        patch_size=SIDE // GRID,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=5,
        num_attention_heads=4,
        hidden_act="gelu",
    )


def build(seed: int = 0) -> LoadedModel:
    """The language model with a tower that has learned nothing yet."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    language = load_model(TARGET, dtype="float32", device="cpu")
    tokenizer = language.tokenizer
    tokenizer.add_special_tokens({"additional_special_tokens": [PLACEHOLDER]})
    place = tokenizer.convert_tokens_to_ids(PLACEHOLDER)
    tokenizer.chat_template = TEMPLATE
    text = language.model.config
    config = LlavaConfig(
        vision_config=vision_config(),
        text_config=text.to_dict(),
        image_token_id=place,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        image_seq_length=GRID * GRID,
        tie_word_embeddings=True,
    )
    torch.manual_seed(seed)
    model: Any = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(language.model.model.state_dict())
    if place >= text.vocab_size:
        model.resize_token_embeddings(len(tokenizer))
    model.tie_weights()
    model.generation_config = language.model.generation_config
    model.config._name_or_path = "SmolLM2-135M-LLaVA"
    return LoadedModel(model.eval(), tokenizer, TARGET, processor(tokenizer))


def on_device(loaded: LoadedModel) -> LoadedModel:
    """The same on the best device there is."""
    loaded.model.to(read_device("auto"))
    return loaded


def processor(tokenizer: Any) -> Any:
    """Reduces a picture to the tower's size; pages of twice that size lose nothing on the way."""
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    images = CLIPImageProcessorPil(
        size={"height": SIDE, "width": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        resample=4,  # the mean of the pixels that fall together, as `Image.reduce` takes it
        do_center_crop=False,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=SIDE // GRID,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=PLACEHOLDER,
        chat_template=TEMPLATE,
    )


def save(loaded: LoadedModel, folder: Path) -> None:
    """As a folder that `load_model` reads."""
    loaded.model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)
