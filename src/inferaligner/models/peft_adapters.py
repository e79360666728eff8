"""PEFT adapter folders: reading their configuration, and putting them onto a base model."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from inferaligner.errors import MissingExtraError, ModelLoadError
from inferaligner.models.specs import BUILTIN_PREFIX

_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")

# Adapters that put virtual tokens in front of a prompt cannot become weights, and move every position.
_PROMPT_LEARNING = frozenset(
    {"PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "CPT", "ADAPTION_PROMPT"}
)


@dataclass(frozen=True)
class AdapterSource:
    """What an adapter folder says about itself.

    Attributes:
        folder: where it is.
        base: spec of the model it was trained on, as ``parse_spec`` reads it.
    """

    folder: Path
    base: str


def read_adapter(folder: Path) -> AdapterSource:
    """Read ``adapter_config.json`` and check that the weights are there.

    Raises:
        ModelLoadError: the configuration is broken or names no base, the weights are missing, or the adapter
            is of a kind that cannot be used here.
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
    if config["peft_type"] in _PROMPT_LEARNING:
        raise ModelLoadError(
            f"The adapter in {folder} is of type {config['peft_type']}, which adds virtual tokens to every "
            "prompt; expected one that changes weights, such as LORA."
        )
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        raise ModelLoadError(
            f"The adapter in {folder} is for the task {config['task_type']}; expected CAUSAL_LM, an adapter "
            "of a language model."
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
        base = str(folder / base)  # a base that travels beside its adapter
    revision = config.get("revision")
    on_hub = not base.startswith(BUILTIN_PREFIX) and "@" not in base and not Path(base).exists()
    if isinstance(revision, str) and revision and on_hub:
        base = f"{base}@{revision}"
    return AdapterSource(folder, base)


def require_peft(folder: Path) -> None:
    """Raise MissingExtraError if PEFT is not installed; called before a base model is loaded in vain."""
    if find_spec("peft") is None:
        raise MissingExtraError(
            f"{folder} is a PEFT adapter, which needs peft. Install it with `pip install "
            '"inferaligner[models]"`.'
        )


def apply_adapter(model: Any, folder: Path, *, merge: bool) -> Any:
    """Put the adapter in ``folder`` onto ``model``.

    Args:
        model: the base model; its weights are changed when merging.
        folder: an adapter folder that ``read_adapter`` has accepted.
        merge: add the adapter to the weights and return the plain model. Otherwise it stays beside them, as
            it must on quantised weights, and the result is a PeftModel.

    Raises:
        ModelLoadError: the adapter does not fit the model, wholly: PEFT would load the part that fits.
        MissingExtraError: PEFT is not installed.
    """
    require_peft(folder)
    import peft

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            adapted = peft.PeftModel.from_pretrained(model, str(folder), is_trainable=False)
        problem = next((str(w.message) for w in caught if "missing adapter keys" in str(w.message)), None)
        if problem is None:
            problem = _unused_keys(adapted, folder)
        if problem is not None:
            raise ValueError(problem)
        if merge:
            adapted = adapted.merge_and_unload(safe_merge=True)  # safe: refuses to write NaN into the weights
            # As any loaded model. PEFT has frozen the base, and of frozen weights torch makes a copy per row
            # where the input of a matrix product is a slice, as the LM head's is: gigabytes, seconds.
            adapted.requires_grad_(True)
    except Exception as error:
        raise ModelLoadError(
            f"The adapter in {folder} does not fit its base model: {_first_line(error)} Check that "
            "base_model_name_or_path names the very model it was trained on."
        ) from error
    return adapted.eval()


def _unused_keys(adapted: Any, folder: Path) -> str | None:
    """LoRA weights in the file for which the model has no place; PEFT leaves them out silently."""
    path = folder / _WEIGHTS[0]
    if not path.is_file():
        return None
    import peft
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        stored = {key for key in file.keys() if "lora_" in key}  # noqa: SIM118 (not a dict)
    placed = set(peft.get_peft_model_state_dict(adapted, save_embedding_layers=False))
    unused = sorted(stored - placed)
    if not unused:
        return None
    return f"the model has no place for {len(unused)} of its weights, such as {unused[0]}."


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0][:300]
