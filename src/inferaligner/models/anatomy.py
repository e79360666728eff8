"""Where the decoder layers of a model are, and how their output is read and replaced.

Steering and extraction use a model's structure only through this file:

1. ``dissect(model)`` finds the list of decoder layers, without a table of architectures;
2. ``backbone(model)`` is the module to call if the LM head is not needed;
3. inside a forward hook on a layer, ``residual(output)`` is the residual stream after that layer,
   ``[rows, tokens, width]``, and ``with_residual(output, tensor)`` is the same output with another stream.

A *row* is one sequence of a batch. No function here guesses: a model whose decoder layers are ambiguous is
refused with the list of candidates, and ``register_layout`` names the right one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from inferaligner.errors import UnknownArchitectureError
from inferaligner.models.residual_stream import residual, with_residual
from inferaligner.models.unwrap import DEPTH_NAMES, WIDTH_NAMES, depth_of, text_config, unwrap, width_of

__all__ = [
    "Anatomy",
    "backbone",
    "check_stream",
    "dissect",
    "input_device",
    "module_device",
    "register_layout",
    "residual",
    "text_config",
    "unwrap",
    "with_residual",
]

# Towers for other inputs and outputs than text, and extra prediction heads. They can have as many layers as
# the decoder.
_OTHER_TOWERS = ("vision", "visual", "image", "video", "audio", "speech", "mtp")

# The layouts of `register_layout`, and one configuration of transformers that counts attention blocks
# although a layer has two of them.
_layouts: dict[str, str] = {"longcat_flash": "model.layers"}


@dataclass(frozen=True)
class Anatomy:
    """The decoder of one model.

    Attributes:
        layers: The decoder layers, first to last.
        path: The dotted path of ``layers`` from the model that was given to :func:`dissect`.
        width: The size of the residual stream.
        depth: The number of decoder layers.
    """

    layers: nn.ModuleList
    path: str
    width: int
    depth: int


def register_layout(model_type: str, dotted_path: str) -> None:
    """Names the decoder layers of an architecture that ``dissect`` cannot read.

    Args:
        model_type: ``config.model_type`` of the model, or the class name of the model.
        dotted_path: The path of the ``nn.ModuleList`` of decoder layers from the bare model (not from a
            PEFT or ``torch.compile`` wrapper around it).

    Raises:
        UnknownArchitectureError: The type or a part of the path is empty.

    Example:
        register_layout("my_model", "model.decoder.layers")
    """
    if not model_type or not dotted_path or any(not part for part in dotted_path.split(".")):
        raise UnknownArchitectureError(
            f"register_layout({model_type!r}, {dotted_path!r}): expected a model type and a dotted path "
            'such as register_layout("my_model", "model.layers").'
        )
    _layouts[model_type] = dotted_path


def dissect(model: nn.Module) -> Anatomy:
    """Finds the decoder layers of a causal language model.

    They are the only ``nn.ModuleList`` that has the length of the text configuration, holds composite modules
    (not norms or projections), and is neither inside another such list (experts are) nor in a vision or audio
    tower.

    Raises:
        UnknownArchitectureError: No list or several lists fit, the model is an encoder-decoder, or its
            configuration does not give depth and width.
        SteeringError: See :func:`unwrap`.
    """
    inner = unwrap(model)
    config = text_config(inner)
    width = width_of(config)
    if width is None:
        raise UnknownArchitectureError(
            f"The configuration of {type(inner).__name__} lacks the width of the residual stream; "
            f"expected one of {', '.join(WIDTH_NAMES)}. Set `model.config.hidden_size`."
        )
    layers = _registered_layers(inner)
    if layers is None:
        layers = _only_list(inner, config)
    # Looked up from the given model, the path has every wrapper in it.
    path = next(name for name, module in model.named_modules() if module is layers)
    return Anatomy(layers=layers, path=path, width=width, depth=len(layers))


def backbone(model: nn.Module) -> nn.Module:
    """The module that runs the decoder without the LM head.

    Call it like the model (``input_ids``, ``attention_mask``, ``use_cache=False``); its result holds the
    last hidden state instead of logits. Adapters that change weights stay active.

    Raises:
        UnknownArchitectureError: The model has no such module.
    """
    inner = unwrap(model)
    anatomy = dissect(inner)
    body: Any = getattr(inner, "base_model", inner)
    if (not isinstance(body, nn.Module) or body is inner) and _has_head(inner):
        # Remote code may give its body another name than `base_model_prefix`.
        body = inner.get_submodule(anatomy.path.partition(".")[0])
    # A list of layers cannot be called. It is the result if the layers are children of the model itself.
    if (
        not isinstance(body, nn.Module)
        or body is anatomy.layers
        or all(m is not anatomy.layers for m in body.modules())
    ):
        raise UnknownArchitectureError(
            f"{type(inner).__name__} has no module that runs {anatomy.path} without the LM head; expected "
            "`base_model` to be that module. Give the model without its head."
        )
    if body is not inner and hasattr(body, "get_output_embeddings") and _has_head(body):
        return backbone(body)  # a language model with its head, inside a model of several modalities
    return body


def input_device(model: nn.Module) -> torch.device:
    """The device on which ``model`` takes token ids: the device of its embeddings."""
    inner: Any = unwrap(model)
    try:
        embeddings = inner.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        embeddings = None
    return module_device(inner if embeddings is None else embeddings)


def module_device(module: nn.Module) -> torch.device:
    """The device on which ``module`` computes, also if accelerate keeps its weights elsewhere."""
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    if device.type == "meta":
        hooks = (getattr(part, "_hf_hook", None) for part in module.modules())
        places = (getattr(hook, "execution_device", None) for hook in hooks)
        device = torch.device(next((place for place in places if place is not None), device))
    return device


def check_stream(model: nn.Module) -> None:
    """Runs six tokens through ``model`` and checks that every decoder layer returns ``[rows, tokens,
    width]``.

    Needed for code that is shipped with a checkpoint: some of it has the tokens before the rows, which a
    shape alone does not show.

    Raises:
        UnknownArchitectureError: A layer returns another shape or did not run.
    """
    anatomy = dissect(model)
    rows, tokens = 2, 3
    shapes: dict[int, list[int]] = {}

    def note(index: int) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            shapes[index] = list(residual(output).shape)

        return hook

    body = backbone(model)
    handles = [layer.register_forward_hook(note(index)) for index, layer in enumerate(anatomy.layers)]
    try:
        ids = torch.arange(rows * tokens, device=input_device(model)).reshape(rows, tokens)
        with torch.no_grad():
            body(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    expected = [rows, tokens, anatomy.width]
    for index in range(anatomy.depth):
        if shapes.get(index) != expected:
            raise UnknownArchitectureError(
                f"Decoder layer {index} of {type(unwrap(model)).__name__} returned "
                f"{shapes.get(index, 'nothing')} for {rows} rows of {tokens} tokens; expected {expected}. "
                "This code cannot be steered."
            )


def _has_head(model: nn.Module) -> bool:
    get_head: Any = getattr(model, "get_output_embeddings", None)
    try:
        if get_head is not None and get_head() is not None:
            return True
    except (AttributeError, NotImplementedError):
        return True
    # For code that does not name its head: any projection to the vocabulary.
    vocabulary = getattr(text_config(model), "vocab_size", None)
    return any(
        getattr(module, "out_features", None) == vocabulary and vocabulary is not None
        for module in model.modules()
    )


def _registered_layers(model: nn.Module) -> nn.ModuleList | None:
    keys = (getattr(getattr(model, "config", None), "model_type", ""), type(model).__name__)
    path = next((_layouts[key] for key in keys if key in _layouts), None)
    if path is None:
        return None
    layers = dict(model.named_modules()).get(path)
    if not isinstance(layers, nn.ModuleList) or len(layers) == 0:
        raise UnknownArchitectureError(
            f"The registered layout {path!r} of {type(model).__name__} is "
            f"{'missing' if layers is None else 'a ' + type(layers).__name__}; expected an nn.ModuleList of "
            "decoder layers. Correct the path given to register_layout."
        )
    return layers


def _lists(root: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    for name, module in root.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) > 0:
            yield name, module


def _candidates(root: nn.Module, depth: int) -> list[tuple[str, nn.ModuleList]]:
    fitting = [
        (name, module)
        for name, module in _lists(root)
        if len(module) == depth
        and all(any(True for _ in item.children()) for item in module)
        and not any(tower in name.lower() for tower in _OTHER_TOWERS)
    ]
    return [
        (name, module)
        for name, module in fitting
        if not any(name.startswith(f"{other}.") for other, _ in fitting)
    ]


def _only_list(model: nn.Module, config: Any) -> nn.ModuleList:
    depth = depth_of(config)
    if depth is None:
        raise UnknownArchitectureError(
            f"The configuration of {type(model).__name__} lacks the number of hidden layers; "
            f"expected one of {', '.join(DEPTH_NAMES)}. {_advice(model)}"
        )
    candidates = _candidates(model, depth)
    if len(candidates) > 1 and hasattr(model, "get_decoder"):
        # The model itself names its decoder, which decides between towers of the same depth.
        get_decoder: Any = model.get_decoder
        inside = {id(module) for _, module in _candidates(get_decoder(), depth)}
        candidates = [(name, module) for name, module in candidates if id(module) in inside] or candidates
    if len(candidates) == 1:
        return candidates[0][1]
    if candidates:
        raise UnknownArchitectureError(
            f"{type(model).__name__} has {len(candidates)} lists that could be its {depth} decoder layers: "
            f"{', '.join(name for name, _ in candidates)}; expected one. {_advice(model)}"
        )
    lists = list(_lists(model))
    outermost = [
        f"{name} ({len(module)})"
        for name, module in lists
        if not any(name.startswith(f"{other}.") for other, _ in lists)
    ]
    others = ", ".join(outermost) or "none"
    raise UnknownArchitectureError(
        f"{type(model).__name__} has no list of {depth} decoder layers; its lists are: {others}. "
        f"{_advice(model)}"
    )


def _advice(model: nn.Module) -> str:
    key = getattr(getattr(model, "config", None), "model_type", "") or type(model).__name__
    return (
        "Name the list with inferaligner.models.register_layout("
        f'"{key}", "path.to.layers") before using the model.'
    )
