"""Number format, device and quantization of a model that is to be loaded."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from inferaligner.errors import InputError, MissingExtraError

# Names of accelerate's device maps, which spread a model over all devices. "auto" means one device here, so
# accelerate's "auto" is called "auto-map".
_DEVICE_MAPS = {
    "auto-map": "auto",
    "balanced": "balanced",
    "balanced_low_0": "balanced_low_0",
    "sequential": "sequential",
}
_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_QUANTIZATIONS = ("int8", "int4")


def read_dtype(dtype: str | torch.dtype) -> str | torch.dtype:
    """Reads a number format.

    Returns:
        ``"auto"`` (keep the checkpoint's) or a torch dtype.

    Raises:
        InputError: The format is unknown.
    """
    if dtype == "auto" or dtype in _DTYPES.values():
        return dtype
    if isinstance(dtype, str) and dtype in _DTYPES:
        return _DTYPES[dtype]
    raise InputError(f"dtype {str(dtype)!r} is unknown; expected auto, {', '.join(_DTYPES)}.")


def read_device(device: str | torch.device) -> torch.device | str:
    """Reads a device or a device map.

    Args:
        device: ``"auto"`` for the best single device (cuda, then mps, then cpu), a device such as
            ``"cuda:1"``, or ``"balanced"``, ``"auto-map"``, ``"sequential"`` to spread layers over devices.

    Returns:
        One device, or the name of a device map for accelerate.

    Raises:
        InputError: This machine has no such device.
        MissingExtraError: A device map needs accelerate.
    """
    if isinstance(device, str) and device in _DEVICE_MAPS:
        if find_spec("accelerate") is None:
            raise MissingExtraError(
                f"device={device!r} spreads a model over devices, which needs accelerate. "
                'Install it with `pip install "inferaligner[models]"`.'
            )
        return _DEVICE_MAPS[device]
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise InputError(
            f"Device {device!r} is unknown; expected auto, cpu, cuda, cuda:N, mps, {', '.join(_DEVICE_MAPS)}."
        ) from error
    count = {
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
    }.get(chosen.type)
    if count is not None and (chosen.index or 0) >= count:
        raise InputError(
            f"Device {str(device)!r} does not exist: torch sees {count} {chosen.type} devices on this "
            "machine. Give another device, or auto."
        )
    return chosen


def read_quantization(quantization: str | None, device: torch.device | str) -> Any:
    """The transformers configuration of a quantization; None for None.

    bitsandbytes is preferred if it is installed, except on mps, which it does not support.

    Raises:
        InputError: The quantization is unknown.
        MissingExtraError: Neither bitsandbytes nor torchao is usable.
    """
    if quantization is None:
        return None
    if quantization not in _QUANTIZATIONS:
        raise InputError(
            f"Quantisation {quantization!r} is unknown; expected {' or '.join(_QUANTIZATIONS)}, or none."
        )
    import transformers as untyped

    transformers: Any = untyped  # its quantisation configs have no type hints
    on_mps = isinstance(device, torch.device) and device.type == "mps"
    if not on_mps and find_spec("bitsandbytes") is not None:
        if quantization == "int8":
            return transformers.BitsAndBytesConfig(load_in_8bit=True)
        return transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
    if find_spec("torchao") is not None:
        from torchao import quantization as torchao
        from torchao.quantization.granularity import PerGroup

        # For int4, torchao's faster Int4WeightOnlyConfig needs kernels that only some GPUs have.
        scheme = (
            torchao.Int8WeightOnlyConfig()
            if quantization == "int8"
            else torchao.IntxWeightOnlyConfig(weight_dtype=torch.__dict__["int4"], granularity=PerGroup(32))
        )
        return transformers.TorchAoConfig(scheme)
    raise MissingExtraError(
        f"Quantisation to {quantization} needs torchao{'' if on_mps else ' or bitsandbytes'}, and neither is "
        f"usable here. Install one with `pip install {'torchao' if on_mps else 'bitsandbytes'}`."
    )
