"""The bare model inside its wrappers, and the configuration of its language model."""

from __future__ import annotations

from typing import Any

from torch import nn

from inferaligner.errors import SteeringError, UnknownArchitectureError

# Names of depth and width in configurations. transformers maps most of them to the first one; the others
# occur in code that is shipped with a checkpoint.
DEPTH_NAMES = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_transformer_layers")
WIDTH_NAMES = ("hidden_size", "n_embd", "d_model", "model_dim", "dim")

# Sections with the language model's settings in composite configurations of remote code; for transformers'
# own models, `get_text_config` finds the section.
_TEXT_SECTIONS = ("llm_config", "language_config", "text_config")


def unwrap(model: nn.Module) -> nn.Module:
    """The bare model inside PEFT, ``torch.compile`` and data-parallel wrappers.

    Raises:
        SteeringError: The wrapper is a prompt-learning adapter, which puts virtual tokens in front of
            every prompt: positions inside the model would no longer be positions of the prompt.
    """
    while True:
        inner: Any = None
        if type(model).__module__.partition(".")[0] == "peft" and hasattr(model, "get_base_model"):
            if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
                raise SteeringError(
                    f"{type(model).__name__} has a prompt-learning adapter, which adds virtual tokens to "
                    "every prompt; expected a model whose adapter changes weights (LoRA and its variants). "
                    "Train such an adapter."
                )
            get_base: Any = model.get_base_model
            inner = get_base()
        elif hasattr(model, "_orig_mod"):  # torch.compile
            inner = model._orig_mod
        elif isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = model.module
        if not isinstance(inner, nn.Module) or inner is model:
            return model
        model = inner


def text_config(model: nn.Module) -> Any:
    """The configuration of the language model inside ``model``, without vision or audio sections.

    Raises:
        UnknownArchitectureError: The model has no configuration or several for text, or is an
            encoder-decoder.
    """
    inner = unwrap(model)
    config = getattr(inner, "config", None)
    if config is None:
        raise UnknownArchitectureError(
            f"{type(inner).__name__} has no `config`, so its depth and width are unknown; expected a model "
            "as transformers loads it (AutoModelForCausalLM.from_pretrained)."
        )
    if getattr(config, "is_encoder_decoder", False):
        raise UnknownArchitectureError(
            f"{type(inner).__name__} is an encoder-decoder model; expected a decoder-only language model. "
            "The method reads the prompt's last token in the decoder; here the encoder has the prompt."
        )
    if hasattr(config, "get_text_config"):
        try:
            config = config.get_text_config()
        except ValueError as error:
            raise UnknownArchitectureError(
                f"{type(inner).__name__} has several text configurations: {error} Expected one; "
                "give the language model inside it instead."
            ) from error
    if depth_of(config) is None:
        for section in _TEXT_SECTIONS:
            if depth_of(getattr(config, section, None)) is not None:
                return getattr(config, section)
    return config


def depth_of(config: Any) -> int | None:
    """The number of decoder layers in a text configuration; None if it has none of `DEPTH_NAMES`."""
    return _number(config, DEPTH_NAMES)


def width_of(config: Any) -> int | None:
    """The size of the residual stream in a text configuration; None if it has none of `WIDTH_NAMES`."""
    return _number(config, WIDTH_NAMES)


def _number(config: Any, names: tuple[str, ...]) -> int | None:
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None
