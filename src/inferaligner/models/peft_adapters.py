"""PEFT adapter folders: reading their configuration, and putting them onto a base model.

An adapter is loaded only if the loaded model computes the same as PEFT's own model. Most adapters are merged
into the weights. Adapters that cannot be merged exactly stay beside the weights, in PEFT's layers. Kinds that
need more than layers (virtual tokens, a task id, a second model) are refused.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from inferaligner.errors import MissingExtraError, ModelLoadError
from inferaligner.models.adapter_match import (
    misfit,
    probe_logits,
    resize_embeddings,
    same_logits,
    shares_weights,
)
from inferaligner.models.specs import BUILTIN_PREFIX
from inferaligner.models.unwrap import unwrap

_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

_VIRTUAL_TOKENS = "adds virtual tokens to every prompt, which move the positions that a gate reads"

# Kinds that do not act in layers alone, and the reason why each is refused.
_REFUSED = {
    "PROMPT_TUNING": _VIRTUAL_TOKENS,
    "P_TUNING": _VIRTUAL_TOKENS,
    "PREFIX_TUNING": _VIRTUAL_TOKENS,
    "MULTITASK_PROMPT_TUNING": _VIRTUAL_TOKENS,
    "CPT": _VIRTUAL_TOKENS,
    "CARTRIDGE": _VIRTUAL_TOKENS,
    "ADAPTION_PROMPT": _VIRTUAL_TOKENS,
    "XLORA": "mixes several adapters, with weights that it takes from a first pass over every prompt",
    "POLY": "needs the number of a task with every prompt",
    "SHADOW": "runs a second model beside the base model",
}

# Initializations of LoRA that change the base's weights at random or from data: PEFT cannot repeat them.
_UNREPEATABLE = ("pissa_niter", "corda", "loftq", "lora_ga")

# Kinds that PEFT merges exactly. Every other kind stays beside the weights, as PEFT runs it.
_MERGED = frozenset(
    ["LORA", "ADALORA", "BOFT", "C3A", "DEFT", "DELORA", "FOURIERFT", "FROD", "GLORA", "GRALORA",
     "HIRA", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR", "MISS", "OFT", "OSF", "PEANUT", "PSOFT", "PVERA",
     "RANDLORA", "ROAD", "SHIRA", "SUPERTUNING", "TINYLORA", "TRAINABLE_TOKENS", "UNILORA", "VBLORA", "VERA",
     "WAVEFT"]
)  # fmt: skip


@dataclass(frozen=True)
class AdapterSource:
    """An adapter folder and its base model.

    Attributes:
        folder: The adapter's folder.
        base: The spec of the model that it was trained on, as ``parse_spec`` reads it.
    """

    folder: Path
    base: str


def read_adapter(folder: Path) -> AdapterSource:
    """Reads ``adapter_config.json`` and checks that the weights exist.

    Raises:
        ModelLoadError: The configuration is broken or names no base, the weights are missing, or the adapter
            is of a kind that cannot be used.
    """
    path = folder / "adapter_config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(
            f"The adapter configuration {path} cannot be read: {error}. Expected the JSON that PEFT writes; "
            "save the adapter again."
        ) from error
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise ModelLoadError(
            f"The adapter configuration {path} names no peft_type; expected the JSON that PEFT writes. "
            "Save the adapter again with save_pretrained."
        )
    if (kind := config["peft_type"]) in _REFUSED:
        raise _refused(folder, f"is of type {kind}, which {_REFUSED[kind]}")
    if config.get("alora_invocation_tokens"):
        raise _refused(
            folder,
            "is an activated LoRA (alora_invocation_tokens), which acts after certain tokens of a prompt and "
            "leaves other prompts to the base model",
        )
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise ModelLoadError(
            f"The adapter in {folder} is for the task {config['task_type']}; expected CAUSAL_LM, an adapter "
            "of a language model."
        )
    if config.get("arrow_config"):
        raise _refused(folder, "is a router (arrow_config), which mixes several adapters token by token")
    init = str(config.get("init_lora_weights"))
    if init.startswith(_UNREPEATABLE):
        raise ModelLoadError(
            f"The adapter in {folder} began with init_lora_weights={init}, which changed the base model's "
            "weights when training started and cannot be repeated. Save it as a plain LoRA: PEFT's "
            "save_pretrained with path_initial_model_for_weight_conversion."
        )
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str) or not base.strip():
        raise ModelLoadError(
            f"The adapter configuration {path} names no base model. Set base_model_name_or_path in it to the "
            "model that the adapter was trained on."
        )
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise ModelLoadError(
            f"The adapter folder {folder} has no weights; expected {' or '.join(_WEIGHTS)}. Copy the whole "
            "folder."
        )
    base = base.strip()
    if not Path(base).is_absolute() and (folder / base).is_dir():
        base = str(folder / base)  # a base that is stored in its adapter's folder
    revision = config.get("revision")
    on_hub = not base.startswith(BUILTIN_PREFIX) and "@" not in base and not Path(base).exists()
    if isinstance(revision, str) and revision and on_hub:
        base = f"{base}@{revision}"
    return AdapterSource(folder, base)


def require_peft(folder: Path) -> None:
    """Checks that PEFT is installed, before its base model is loaded.

    Raises:
        MissingExtraError: PEFT is not installed.
    """
    if find_spec("peft") is None:
        raise MissingExtraError(
            f"{folder} is a PEFT adapter, which needs peft. Install it with `pip install "
            '"inferaligner[models]"`.'
        )


def apply_adapter(model: Any, folder: Path, *, merge: bool) -> Any:
    """Puts the adapter in ``folder`` onto ``model``.

    Args:
        model: The base model. Merging changes its weights, and its embeddings are resized to the embeddings
            that are stored with the adapter.
        folder: An adapter folder that ``read_adapter`` has accepted.
        merge: Whether to merge the adapter into the weights where that is exact.

    Returns:
        The plain model if the adapter was merged, else a PeftModel with the adapter beside the weights.

    Raises:
        ModelLoadError: A part of the adapter does not fit the model (PEFT alone would load the part that
            fits), or it does not act in the model's layers alone.
        MissingExtraError: PEFT is not installed.
    """
    require_peft(folder)
    import peft

    try:
        settings = peft.PeftConfig.from_pretrained(str(folder))
    except Exception as error:
        raise ModelLoadError(
            f"peft {peft.__version__} cannot read the adapter in {folder}: {_first_line(error)} It may have "
            "been written by a newer version: upgrade peft, or save the adapter again."
        ) from error
    if settings.is_prompt_learning:
        raise _refused(folder, f"is of type {settings.peft_type.value}, which {_VIRTUAL_TOKENS}")
    try:
        stored = peft.utils.load_peft_weights(str(folder), device="cpu")
        problem = resize_embeddings(model, stored)
        if problem is not None:
            raise ValueError(problem)
        with warnings.catch_warnings():
            # PEFT warns of missing and of tied weights; both are checked here.
            warnings.simplefilter("ignore")
            adapted = peft.PeftModel.from_pretrained(model, str(folder), is_trainable=False)
            problem = misfit(adapted, stored, adapted.load_adapter(str(folder), "default"))
        if problem is not None:
            raise ValueError(problem)
    except ImportError as error:
        raise MissingExtraError(
            f"The adapter in {folder} is of type {settings.peft_type.value}, which needs a package that is "
            f"not installed: {_first_line(error)}"
        ) from error
    except Exception as error:
        raise ModelLoadError(
            f"The adapter in {folder} does not fit its base model: {_reason(error)} Check that "
            "base_model_name_or_path names the model that it was trained on."
        ) from error
    adapted.eval()
    beside = _beside(adapted, settings, folder)
    if merge and settings.peft_type.value in _MERGED and not _inexact(adapted, settings):
        adapted = _merged(adapted, beside, folder)
    if merge:
        # As in any loaded model. PEFT has frozen the base; torch copies frozen weights for every row if the
        # input of a matrix product is a slice, as the LM head's input is, which costs gigabytes and seconds.
        for parameter in adapted.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(True)
    return adapted.eval()


def _inexact(adapted: Any, settings: Any) -> bool:
    """Whether merging would change other modules than the adapter does, or lose a part of the adapter."""
    return (
        # The base's layers seldom have a bias to merge one of LoRA's into.
        bool(getattr(settings, "lora_bias", False))
        or bool(getattr(settings, "layer_replication", None))
        or shares_weights(adapted)
    )


def _beside(adapted: Any, settings: Any, folder: Path) -> Any:
    """Logits `[1, tokens, vocabulary]` of the model with the adapter beside its weights; None without data.

    They must not depend on PEFT's wrapper, because hooks and gates run the model inside it.
    """
    try:
        with_wrapper = probe_logits(adapted, adapted)
        alone = probe_logits(unwrap(adapted), adapted)
    except Exception as error:
        kind = settings.peft_type.value
        raise _refused(
            folder, f"is of type {kind}, which fails on a plain prompt ({_first_line(error)})"
        ) from error
    if not same_logits(with_wrapper, alone):
        raise _refused(
            folder, f"is of type {settings.peft_type.value}, and acts outside of the model's layers as well"
        )
    return with_wrapper


def _merged(adapted: Any, expected: Any, folder: Path) -> Any:
    try:
        merged = adapted.merge_and_unload(safe_merge=True)  # safe: refuses to write NaN into the weights
    except Exception as error:
        raise ModelLoadError(
            f"The adapter in {folder} cannot be merged into its base model: {_first_line(error)} Check its "
            "weights, or save it again."
        ) from error
    if not same_logits(expected, probe_logits(merged, merged)):
        raise ModelLoadError(
            f"The adapter in {folder} cannot be merged into its base model: the merged model computes other "
            "logits than PEFT's model with the adapter beside its weights. Give the model in float32 "
            "(--dtype float32), or merge it yourself, check the result, and give that folder."
        )
    return merged


def _refused(folder: Path, what: str) -> ModelLoadError:
    return ModelLoadError(
        f"The adapter in {folder} {what}; expected one that changes weights, such as LORA. Train such an "
        "adapter, or give the base model alone."
    )


def _reason(error: Exception) -> str:
    """The line of an error with the reason: torch lists tensors of other shapes below a heading."""
    if isinstance(error, KeyError):
        return f"it lacks the weights {error.args[0]}."
    lines = (str(error) or type(error).__name__).strip().splitlines()
    return next((line.strip() for line in lines if "size mismatch" in line), lines[0])[:300]


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0][:300]
