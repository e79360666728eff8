"""Where the decoder layers of a model are, and how their output is read and replaced.

Steering and extraction meet a model only through this file:

1. ``dissect(model)`` finds the list of decoder layers, without a table of architectures;
2. ``backbone(model)`` is the module to call when the LM head is not wanted;
3. inside a forward hook on a layer, ``residual(output)`` is the residual stream after that layer,
   ``[rows, tokens, width]``, and ``with_residual(output, tensor)`` is the same output with another stream.

A *row* is one sequence of a batch. Nothing here guesses: a model whose layers cannot be told apart
with certainty is refused with the list of what was found, and ``register_layout`` settles it.
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

# Towers that read or write something other than text, and extra prediction heads. Their layers can be
# as many as the decoder's.
_OTHER_TOWERS = ("vision", "visual", "image", "video", "audio", "speech", "mtp")

# What `register_layout` has added, and one configuration of transformers that counts attention blocks
# where a layer holds two of them.
_layouts: dict[str, str] = {"longcat_flash": "model.layers"}


@dataclass(frozen=True)
class Anatomy:
    """The decoder of one model.

    Attributes:
        layers: the decoder layers, first to last.
        path: dotted path of ``layers`` from the model that was given to :func:`dissect`.
        width: size of the residual stream.
        depth: number of decoder layers.
    """

    layers: nn.ModuleList
    path: str
    width: int
    depth: int


def register_layout(model_type: str, dotted_path: str) -> None:
    """Say where the decoder layers of an architecture are, for models that ``dissect`` cannot read.

    Args:
        model_type: ``config.model_type`` of the model, or the class name of the model.
        dotted_path: path of the ``nn.ModuleList`` of decoder layers from the bare model (not from a
            PEFT or ``torch.compile`` wrapper around it), such as ``"model.decoder.layers"``.
    """
    if not model_type or not dotted_path or any(not part for part in dotted_path.split(".")):
        raise UnknownArchitectureError(
            f"register_layout({model_type!r}, {dotted_path!r}): expected a model type and a dotted path "
            'such as register_layout("my_model", "model.layers").'
        )
    _layouts[model_type] = dotted_path


def dissect(model: nn.Module) -> Anatomy:
    """Find the decoder layers of a causal language model.

    The decoder layers are the one ``nn.ModuleList`` that is as long as the text configuration says,
    holds composite modules (not norms or projections), lies in no other such list (experts do) and in
    no vision or audio tower.

    Raises:
        UnknownArchitectureError: no list or several fit, the model is an encoder-decoder, or its
            configuration does not give depth and width.
        SteeringError: see :func:`unwrap`.
    """
    inner = unwrap(model)
    config = text_config(inner)
    width = width_of(config)
    if width is None:
        raise UnknownArchitectureError(
            f"The configuration of {type(inner).__name__} does not tell the width of the residual stream; "
            f"expected one of {', '.join(WIDTH_NAMES)}. Set `model.config.hidden_size`."
        )
    layers = _registered_layers(inner)
    if layers is None:
        layers = _only_list(inner, config)
    # Looking the list up again from the given model gives the path with every wrapper in it.
    path = next(name for name, module in model.named_modules() if module is layers)
    return Anatomy(layers=layers, path=path, width=width, depth=len(layers))


def backbone(model: nn.Module) -> nn.Module:
    """The module that runs the decoder without the LM head.

    Call it like the model (``input_ids``, ``attention_mask``, ``use_cache=False``); its result holds the
    last hidden state instead of logits. Adapters that change weights stay active.
    """
    inner = unwrap(model)
    anatomy = dissect(inner)
    body: Any = getattr(inner, "base_model", inner)
    if (not isinstance(body, nn.Module) or body is inner) and _has_head(inner):
        # Remote code may name its body otherwise than `base_model_prefix` says.
        body = inner.get_submodule(anatomy.path.partition(".")[0])
    # A list of layers cannot be called: it is reached when the layers hang on the model itself.
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
    """The device on which ``model`` takes token ids: that of its embeddings, wherever its layers are."""
    inner: Any = unwrap(model)
    try:
        embeddings = inner.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        embeddings = None
    return module_device(inner if embeddings is None else embeddings)


def module_device(module: nn.Module) -> torch.device:
    """The device on which ``module`` computes, wherever accelerate keeps its weights until then."""
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    if device.type == "meta":
        hooks = (getattr(part, "_hf_hook", None) for part in module.modules())
        places = (getattr(hook, "execution_device", None) for hook in hooks)
        device = torch.device(next((place for place in places if place is not None), device))
    return device


def check_stream(model: nn.Module) -> None:
    """Run six tokens through ``model`` and check that every decoder layer returns ``[rows, tokens, width]``.

    Needed for code that is shipped with a checkpoint: some of it keeps tokens before rows, which no
    shape alone can tell.

    Raises:
        UnknownArchitectureError: a layer returns something else, or did not run.
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
    # Code that does not name its head: any projection to the vocabulary.
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
    found = dict(model.named_modules()).get(path)
    if not isinstance(found, nn.ModuleList) or len(found) == 0:
        raise UnknownArchitectureError(
            f"The registered layout {path!r} of {type(model).__name__} is "
            f"{'missing' if found is None else 'a ' + type(found).__name__}; expected an nn.ModuleList of "
            "decoder layers. Correct the path given to register_layout."
        )
    return found


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
            f"The configuration of {type(model).__name__} does not tell the number of hidden layers; "
            f"expected one of {', '.join(DEPTH_NAMES)}. {_advice(model)}"
        )
    found = _candidates(model, depth)
    if len(found) > 1 and hasattr(model, "get_decoder"):
        # The model's own word on which part is the decoder settles towers of the same depth.
        get_decoder: Any = model.get_decoder
        inside = {id(module) for _, module in _candidates(get_decoder(), depth)}
        found = [(name, module) for name, module in found if id(module) in inside] or found
    if len(found) == 1:
        return found[0][1]
    if found:
        raise UnknownArchitectureError(
            f"{type(model).__name__} has {len(found)} lists that could be its {depth} decoder layers: "
            f"{', '.join(name for name, _ in found)}; expected one. {_advice(model)}"
        )
    lists = list(_lists(model))
    outermost = [
        f"{name} ({len(module)})"
        for name, module in lists
        if not any(name.startswith(f"{other}.") for other, _ in lists)
    ]
    others = ", ".join(outermost) or "none"
    raise UnknownArchitectureError(
        f"{type(model).__name__} has no list of {depth} decoder layers; lists found: {others}. "
        f"{_advice(model)}"
    )


def _advice(model: nn.Module) -> str:
    key = getattr(getattr(model, "config", None), "model_type", "") or type(model).__name__
    return (
        "Name the list with inferaligner.models.register_layout("
        f'"{key}", "path.to.layers") before using the model.'
    )
