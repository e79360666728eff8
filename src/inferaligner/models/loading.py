"""Loading a model with its tokenizer, ready for extraction and steering."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from inferaligner.errors import InferAlignerError, MissingExtraError, ModelLoadError, UnknownArchitectureError
from inferaligner.models.anatomy import check_stream
from inferaligner.models.peft_adapters import apply_adapter
from inferaligner.models.placement import read_device, read_dtype, read_quantization
from inferaligner.models.processors import load_processor
from inferaligner.models.sources import Checkpoint, has_tokenizer, resolve
from inferaligner.models.templates import read_choice, read_template, stop_at_turn_ends, use_template

# transformers takes longer to import than all other modules together, and callers that only need the anatomy
# of a model import this module too: it is imported where it is used.
if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to use.

    Attributes:
        model: The model in eval mode, on its device.
        tokenizer: Pads on the left, and has a pad token.
        spec: The spec that it was loaded from, as the user wrote it.
        processor: The processor of a vision-language model, around the same tokenizer; None for a model that
            reads text alone.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    spec: str
    processor: Any = None

    @property
    def reader(self) -> Any:
        """The processor if there is one, else the tokenizer: turns prompts into tokens."""
        return self.tokenizer if self.processor is None else self.processor


def load_model(
    spec: str | os.PathLike[str],
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    quantization: str | None = None,
    chat_template: str | os.PathLike[str] | None = None,
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Loads the model that a spec names, with its tokenizer.

    Args:
        spec: Hub id, folder, ``.gguf`` file, PEFT adapter folder or ``builtin:NAME``. An adapter is merged
            into its base, except on quantised weights.
        dtype: ``"auto"`` keeps the checkpoint's; or ``"float32"``, ``"bfloat16"``, ``"float16"``.
        device: ``"auto"`` (cuda, then mps, then cpu), a device, or ``"balanced"`` / ``"auto-map"`` to spread
            the layers over all devices.
        quantization: None, ``"int8"`` or ``"int4"``, with bitsandbytes or torchao.
        chat_template: A jinja file, a template, or the name of one of the tokenizer's templates. By default
            the tokenizer's own, and of several the one named default.
        trust_remote_code: Whether to run code that is shipped with the checkpoint.

    Raises:
        ModelLoadError: The spec names no usable model.
        UnknownArchitectureError: The model is not a decoder-only language model.
        InputError: An option cannot be used.
        MissingExtraError: An optional package is needed.

    Example:
        loaded = load_model("builtin:smollm2-135m", dtype="bfloat16")
    """
    # Cheap checks first, so that a misspelled option fails before a large model is loaded.
    chosen_dtype = read_dtype(dtype)
    chosen_device = read_device(device)
    quantizer = read_quantization(quantization, chosen_device)
    template = None if chat_template is None else read_choice(chat_template)

    checkpoint = resolve(spec)
    tokenizer = _load_tokenizer(checkpoint, trust_remote_code)
    config = _load_config(checkpoint, trust_remote_code)
    if quantizer is not None and getattr(config, "quantization_config", None) is not None:
        raise ModelLoadError(
            f"{checkpoint.weights} is quantised already, so quantization={quantization!r} cannot be applied. "
            "Load it without that option, or give the model in full precision."
        )
    processor = None
    if _sees_images(config):
        processor = load_processor(checkpoint, config, tokenizer)
    use_template(
        tokenizer if processor is None else processor, template, f"The tokenizer of {checkpoint.tokenizer}"
    )
    model = _load_weights(checkpoint, config, chosen_dtype, chosen_device, quantizer, trust_remote_code)
    for folder in checkpoint.adapters:
        model = apply_adapter(model, folder, merge=not getattr(model, "is_quantized", False))
    if checkpoint.tokenizer in map(str, checkpoint.adapters):
        _check_vocabulary(model, tokenizer, checkpoint)
    model.eval()
    if template is not None:
        stop_at_turn_ends(model, tokenizer)
    if getattr(model, "generation_config", None) is not None and model.generation_config.pad_token_id is None:
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    if trust_remote_code and not type(config).__module__.startswith("transformers."):
        check_stream(model)
    return LoadedModel(model=model, tokenizer=tokenizer, spec=os.fspath(spec), processor=processor)


def _check_vocabulary(model: Any, tokenizer: Any, checkpoint: Checkpoint) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ModelLoadError(
            f"The tokenizer of {checkpoint.tokenizer} has {len(tokenizer)} tokens, the embeddings of "
            f"{checkpoint.weights} have {rows} rows, and the adapter has no embeddings: it was trained "
            "on rows that were not saved. Save it again with save_embedding_layers=True, or remove the added "
            "tokens from its tokenizer."
        )


def _load_config(checkpoint: Checkpoint, trust_remote_code: bool) -> Any:
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(
            checkpoint.weights, revision=checkpoint.revision, trust_remote_code=trust_remote_code
        )
    except Exception as error:
        raise _unreadable("configuration", checkpoint.weights, error) from error
    if getattr(config, "is_encoder_decoder", False):
        raise UnknownArchitectureError(
            f"{checkpoint.weights} is an encoder-decoder model ({config.model_type}); expected a "
            "decoder-only language model."
        )
    return config


def _load_tokenizer(checkpoint: Checkpoint, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    import transformers

    place = checkpoint.tokenizer
    if Path(place).is_dir() and not has_tokenizer(Path(place)):
        # Without this check, transformers would make an empty tokenizer from the configuration.
        raise ModelLoadError(
            f"{place} holds a model and no tokenizer; expected tokenizer.json or the like beside the "
            "weights. Save the model's tokenizer into that folder."
        )
    try:
        tokenizer: PreTrainedTokenizerBase = transformers.AutoTokenizer.from_pretrained(
            place,
            revision=checkpoint.revision if place == checkpoint.weights else None,
            trust_remote_code=trust_remote_code,
            padding_side="left",
        )
    except Exception as error:
        raise _unreadable("tokenizer", place, error) from error
    if checkpoint.template is not None:
        tokenizer.chat_template = read_template(checkpoint.template)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise ModelLoadError(
                f"The tokenizer in {place} has neither a pad nor an eos token, so prompts cannot be batched. "
                "Set pad_token in its tokenizer_config.json."
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _load_weights(
    checkpoint: Checkpoint,
    config: Any,
    dtype: str | torch.dtype,
    device: torch.device | str,
    quantizer: Any,
    trust_remote_code: bool,
) -> Any:
    device_map: Any = device if isinstance(device, str) else None
    on_accelerator = isinstance(device, torch.device) and device.type not in ("cpu", "meta")
    # Loading straight onto a GPU needs accelerate; without it, the model is moved there afterwards.
    if quantizer is not None or (on_accelerator and find_spec("accelerate") is not None):
        device_map = device if isinstance(device, str) else {"": device}
    try:
        model, report = _model_class(config).from_pretrained(
            checkpoint.weights,
            revision=checkpoint.revision,
            config=config,
            dtype=dtype,
            device_map=device_map,
            quantization_config=quantizer,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
        if device_map is None:
            model = model.to(device)
    except torch.cuda.OutOfMemoryError as error:
        raise ModelLoadError(
            f"{checkpoint.weights} does not fit into the memory of {device}. Use quantization='int4', "
            "device='balanced', or a smaller model."
        ) from error
    except Exception as error:
        raise _unreadable("model", checkpoint.weights, error) from error
    missing = sorted(report["missing_keys"])
    if missing:
        # transformers fills these with random numbers and only warns.
        raise ModelLoadError(
            f"The weights in {checkpoint.weights} are incomplete: {len(missing)} tensors are missing, such "
            f"as {missing[0]}. Download or save the model again."
        )
    return model


def _sees_images(config: Any) -> bool:
    from transformers.models.auto import modeling_auto

    return type(config) in modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def _model_class(config: Any) -> Any:
    """The auto class of a language model, or of a vision-language model that has no text-only class."""
    import transformers
    from transformers.models.auto import modeling_auto

    remote = getattr(config, "auto_map", None) or {}
    text_only = type(config) in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING or "AutoModelForCausalLM" in remote
    if not text_only and _sees_images(config):
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForCausalLM


def _unreadable(what: str, place: str, error: Exception) -> InferAlignerError:
    import transformers

    text = str(error).strip() or type(error).__name__
    if isinstance(error, ImportError):
        return MissingExtraError(
            f"The {what} in {place} needs a package that is not installed: {text.splitlines()[0][:300]} "
            "Install it with pip."
        )
    if "trust_remote_code" in text:
        return ModelLoadError(
            f"{place} runs code that is shipped with the model. If you trust it, load it with "
            "trust_remote_code (--trust-remote-code)."
        )
    if "does not recognize this architecture" in text or "Unrecognized configuration class" in text:
        return UnknownArchitectureError(
            f"transformers {transformers.__version__} does not know {place} as a language model: "
            f"{text.splitlines()[0]} A newer transformers may."
        )
    return ModelLoadError(
        f"The {what} in {place} cannot be read: {type(error).__name__}: {text.splitlines()[0][:300]} "
        "Expected what save_pretrained writes. Save or download it again."
    )
