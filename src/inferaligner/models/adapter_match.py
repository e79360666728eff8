"""Checks that a PEFT adapter belongs to a base model, and that two forms of a model compute the same."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

# Tokens of the prompt on which two forms of a model are compared.
_PROBED = 32

# Largest root mean square difference of logits that rounding may cause, as a share of their standard
# deviation: in float32, and in units in the last place of the weights' own format.
_ROUNDING = 1e-3
_UNITS = 20

# PEFT's names of an embedding that is stored whole with an adapter, below the name of its module.
_WHOLE = ("weight", "base_layer.weight", "token_adapter.base_layer.weight")


def resize_embeddings(model: nn.Module, stored: Mapping[str, Tensor]) -> str | None:
    """Resizes the base model's embeddings to those that are stored with an adapter, if any are.

    Args:
        model: The base model; changed if the adapter was trained on a model with more or fewer rows.
        stored: The adapter's weights, by their names in its file.

    Returns:
        Why the embeddings cannot be given the adapter's size; None if they have it.
    """
    base: Any = model
    rows, width = base.get_input_embeddings().weight.shape
    output = base.get_output_embeddings()
    tied = output is None or output.weight is base.get_input_embeddings().weight
    stored_rows = {
        side: _whole(stored, name, width)
        for side, name in (
            ("input", _name_of(base, base.get_input_embeddings())),
            ("output", _name_of(base, output)),
        )
    }
    sizes = {number for number in stored_rows.values() if number is not None}
    if not sizes or sizes == {rows}:
        return None
    if len(sizes) > 1:
        return (
            f"its input and output embeddings have {stored_rows['input']} and {stored_rows['output']} rows."
        )
    if not tied and None in stored_rows.values():
        lacking = next(side for side, number in stored_rows.items() if number is None)
        return (
            f"it was trained on a model with {sizes.pop()} rows of embeddings, the base has {rows}, and it "
            f"does not hold the {lacking} embeddings. Save it again with save_embedding_layers=True."
        )
    base.resize_token_embeddings(sizes.pop(), mean_resizing=False)
    return None


def misfit(adapted: nn.Module, stored: Iterable[str], result: Any) -> str | None:
    """Which weights of an adapter were not loaded, or are missing; None if every weight has its place.

    Args:
        adapted: The PeftModel.
        stored: The names of the weights in the adapter's file.
        result: The result of `load_adapter`: the names of unexpected and of missing weights.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    changed = tuple(
        f"{name}."
        for name, module in adapted.named_modules()
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))
    )
    if not any(name.startswith(changed) for name in stored):
        return (
            "its file holds no weights of a layer, so it may have been made for other layers. Save it "
            "with all of its weights (for UniLoRA, with save_indices=True)."
        )
    unused = sorted(result.unexpected_keys)
    if unused:
        return f"the model has no place for {len(unused)} of its weights, such as {unused[0]}."
    missing = set(result.missing_keys)
    if not missing:
        return None
    state = adapted.state_dict()
    # Some kinds keep one tensor for all layers, which is in the file under the first of its names.
    loaded = {_place(tensor) for name, tensor in state.items() if name not in missing}
    lacking = sorted(name for name in missing if name not in state or _place(state[name]) not in loaded)
    if lacking:
        return f"it lacks {len(lacking)} weights that the model has a place for, such as {lacking[0]}."
    return None


def shares_weights(adapted: nn.Module) -> bool:
    """Whether an adapter changes a module whose weight another module shares, such as tied embeddings and
    repeated layers: merging would change both modules."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    uses = Counter(
        id(parameter)
        for module in adapted.modules()
        for parameter in module._parameters.values()
        if parameter is not None
    )
    return any(
        uses[id(parameter)] > 1
        for module in adapted.modules()
        if isinstance(module, BaseTunerLayer)
        for parameter in _base(module).parameters()
    )


def probe_logits(model: nn.Module, owner: nn.Module) -> Tensor | None:
    """Logits of a fixed prompt, `[1, tokens, vocabulary]`; None if the weights have no data.

    Args:
        model: The model to run.
        owner: The model whose configuration names the tokens of images and the like.
    """
    parameter = next(owner.parameters())
    if parameter.device.type == "meta":
        return None
    base: Any = owner
    embeddings = base.get_input_embeddings().weight
    special = {
        value
        for name, value in base.config.to_dict().items()
        if re.search(r"_token_(id|index)$", name) and isinstance(value, int)
    }
    ids = torch.linspace(0, embeddings.shape[0] - 1, _PROBED + len(special)).long().tolist()
    ids = [token for token in ids if token not in special][:_PROBED]
    with torch.no_grad():
        logits: Tensor = model(
            input_ids=torch.tensor([ids], device=embeddings.device), use_cache=False
        ).logits
    return logits.cpu()


def same_logits(expected: Tensor | None, actual: Tensor | None) -> bool:
    """Whether two models' logits differ by rounding alone; True if either has none."""
    if expected is None or actual is None or not bool(expected.isfinite().all()):
        return True
    if expected.shape != actual.shape:
        return False
    share = max(_ROUNDING, _UNITS * torch.finfo(expected.dtype).eps)
    difference = (expected.float() - actual.float()).square().mean().sqrt()
    return bool(difference <= share * expected.float().std())


def _whole(stored: Mapping[str, Tensor], name: str | None, width: int) -> int | None:
    """The number of rows of the embedding of that name, if it is stored whole."""
    for ending in _WHOLE:
        tensor = stored.get(f"base_model.model.{name}.{ending}")
        if tensor is not None and tensor.ndim == 2 and tensor.shape[1] == width:
            return int(tensor.shape[0])
    return None


def _name_of(model: nn.Module, wanted: nn.Module | None) -> str | None:
    return next((name for name, module in model.named_modules() if module is wanted), None)


def _base(layer: Any) -> nn.Module:
    base: nn.Module = layer.get_base_layer()
    return base


def _place(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    return tensor.data_ptr(), tuple(tensor.shape)
