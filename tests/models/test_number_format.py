from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from inferaligner.models.number_format import format_words, number_format, other_format
from tests.support.tiny_models import tiny_model


def test_plain_weights() -> None:
    model = tiny_model()
    here = number_format(model)
    assert here == {"target dtype": "float32", "target quantization": "none"}
    assert format_words(here) == "float32"
    assert other_format(model, here) is None


def test_another_precision_is_told() -> None:
    fitted = number_format(tiny_model())
    told = other_format(tiny_model().to(torch.bfloat16), fitted)
    assert told is not None and "float32" in told and "bfloat16" in told


def test_quantised_weights_are_another_format() -> None:
    model: Any = tiny_model()
    plain = number_format(model)
    model.is_quantized = True
    settings: Any = BitsAndBytesConfig
    model.config.quantization_config = settings(load_in_8bit=True)
    assert number_format(model)["target quantization"] == "bitsandbytes int8"
    told = other_format(model, plain)
    assert told is not None and "float32, quantised (bitsandbytes int8)" in told
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    assert number_format(model)["target quantization"] == "gptq"
    model.config.quantization_config = SimpleNamespace()
    assert number_format(model)["target quantization"] == "unknown"


def test_artifacts_of_before_tell_the_dtype_alone() -> None:
    model = tiny_model()
    assert other_format(model, {"inferaligner": "0", "target dtype": "float32"}) is None
    assert other_format(model, {"inferaligner": "0"}) is None
    assert other_format(model, {"target dtype": "float16"}) is not None
