"""The decoding step's one addition, on every kind of number."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from inferaligner.steering.batch_state import Pass, Steers
from inferaligner.steering.hooks import SteerHook

INTEGERS = {
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}
DTYPES = pytest.mark.parametrize("dtype", INTEGERS, ids=str)


def armed(addition: Tensor, open_rows: list[bool], steers: Steers) -> SteerHook:
    state: Any = SimpleNamespace(scope=object(), now=Pass(5, 1, reads_gate=False, steers=steers))
    hook = SteerHook(state, addition)
    hook.arm(torch.tensor(open_rows)[:, None, None], steers)
    return hook


def numbers(dtype: torch.dtype) -> Tensor:
    """Every number of the 16-bit types; of the others zeros, infinities, denormals and many more."""
    integer = INTEGERS[dtype]
    if integer is torch.int16:
        every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    else:
        info = torch.finfo(dtype)
        chosen = torch.tensor(
            [0.0, torch.inf, info.tiny, info.smallest_normal / 2, info.max, info.eps], dtype=dtype
        )
        spread = torch.randn(2000, generator=torch.Generator().manual_seed(0)).to(dtype)
        every = torch.cat([chosen, -chosen, spread, spread * info.tiny])
    return every[~every.isnan()]


def bits(values: Tensor) -> Tensor:
    return values.view(INTEGERS[values.dtype])


@DTYPES
@pytest.mark.parametrize("form", ["tensor", "tuple"])
def test_closed_rows_of_a_mixed_batch_keep_their_bits(dtype: torch.dtype, form: str) -> None:
    row = numbers(dtype)
    assert bool(((row == 0) & torch.signbit(row)).any()), "negative zero is what may go wrong"
    stream = row.expand(3, 1, -1).clone()
    addition = torch.full((len(row),), 0.5)
    hook = armed(addition.to(dtype), [False, True, False], "open_rows")
    output = hook(torch.nn.Identity(), (), stream if form == "tensor" else (stream, None))
    steered: Any = output if form == "tensor" else output[0]  # type: ignore[index]
    assert steered.dtype == dtype
    for closed in (0, 2):
        assert torch.equal(bits(steered[closed, 0]), bits(row))
    assert torch.equal(steered[1, 0], row + addition.to(dtype))
    assert hook.ran


def test_an_addition_of_another_dtype() -> None:
    """Decoding may run in another precision than the prompt did."""
    stream = torch.full((2, 1, 4), -0.0, dtype=torch.bfloat16)
    output: Any = armed(torch.ones(4), [False, True], "open_rows")(torch.nn.Identity(), (), stream)
    assert output.dtype == torch.bfloat16
    assert torch.equal(bits(output[0]), bits(stream[0]))
    assert torch.equal(output[1], torch.ones(1, 4, dtype=torch.bfloat16))


@pytest.mark.parametrize("tokens", [1, 3])
def test_several_tokens_at_once(tokens: int) -> None:
    """As when drafted tokens are verified."""
    stream = torch.randn(2, tokens, 4)
    addition = torch.randn(4)
    mixed: Any = armed(addition, [False, True], "open_rows")(torch.nn.Identity(), (), stream)
    assert torch.equal(mixed, torch.stack([stream[0], stream[1] + addition]))
    every: Any = armed(addition, [True, True], "everything")(torch.nn.Identity(), (), stream)
    assert torch.equal(every, stream + addition)


def test_armed_anew_for_every_batch() -> None:
    addition = torch.ones(4)
    hook = armed(addition, [True, False], "open_rows")
    stream = torch.zeros(2, 1, 4)
    hook.arm(torch.tensor([False, True])[:, None, None], "open_rows")
    output: Any = hook(torch.nn.Identity(), (), stream)
    assert output.sum(-1).flatten().tolist() == [0, 4]
