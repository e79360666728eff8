from importlib.util import find_spec
from typing import Any

import pytest
import torch

from inferaligner.errors import InputError, MissingExtraError
from inferaligner.models import placement
from inferaligner.models.placement import read_device, read_dtype, read_quantization


def pretend_installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(placement, "find_spec", lambda name: object() if name in names else None)


def test_dtypes() -> None:
    assert read_dtype("auto") == "auto"
    assert read_dtype("bfloat16") is torch.bfloat16
    assert read_dtype(torch.float16) is torch.float16


@pytest.mark.parametrize("dtype", ["float8", "fp16", torch.int8, ""])
def test_unknown_dtypes(dtype: Any) -> None:
    with pytest.raises(InputError, match="expected auto, float32, float16, bfloat16"):
        read_dtype(dtype)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_prefers_cuda_then_mps(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert read_device("auto") == torch.device(expected)


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert read_device("cpu") == torch.device("cpu")
    assert read_device("cuda:1") == torch.device("cuda", 1)
    assert read_device(torch.device("cuda")) == torch.device("cuda")
    with pytest.raises(InputError, match="'cuda:2' was asked for and torch sees 2 cuda devices"):
        read_device("cuda:2")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError, match="torch sees 0 mps devices"):
        read_device("mps")
    with pytest.raises(InputError, match="Device 'gpu' is unknown"):
        read_device("gpu")


def test_device_maps_need_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch, "accelerate")
    assert read_device("balanced") == "balanced"
    assert read_device("auto-map") == "auto"
    pretend_installed(monkeypatch)
    with pytest.raises(MissingExtraError, match=r"inferaligner\[models\]"):
        read_device("balanced")


def test_quantization_is_optional_and_checked() -> None:
    assert read_quantization(None, torch.device("cpu")) is None
    with pytest.raises(InputError, match="expected int8 or int4"):
        read_quantization("int2", torch.device("cpu"))


def test_quantization_without_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch)
    with pytest.raises(MissingExtraError, match="pip install bitsandbytes"):
        read_quantization("int8", torch.device("cpu"))
    pretend_installed(monkeypatch, "bitsandbytes")
    with pytest.raises(MissingExtraError, match="pip install torchao"):
        read_quantization("int8", torch.device("mps"))


def test_bitsandbytes_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch, "bitsandbytes")
    assert read_quantization("int8", torch.device("cpu")).load_in_8bit
    four = read_quantization("int4", "balanced")
    assert four.load_in_4bit
    assert four.bnb_4bit_quant_type == "nf4"


@pytest.mark.extras
@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed: make test-extras")
@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_torchao_settings(monkeypatch: pytest.MonkeyPatch, quantization: str) -> None:
    pretend_installed(monkeypatch, "torchao")
    assert read_quantization(quantization, torch.device("cpu")).quant_method == "torchao"
