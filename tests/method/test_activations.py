from typing import Any

import pytest
import torch
from torch import Tensor

from inferaligner.errors import InputError
from inferaligner.method import activations
from inferaligner.method.activations import _Recorder, is_recording, record_activations
from inferaligner.models.anatomy import dissect, residual
from tests.support.tiny_models import FAMILIES, tiny_model


def prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 300, (length,), generator=generator).tolist() for length in lengths]


def expected(model: Any, rows: list[list[int]], layers: tuple[int, ...], offsets: tuple[int, ...]) -> Tensor:
    """Each prompt alone, the whole forward pass, hooks that copy everything."""
    caught: dict[int, Tensor] = {}
    handles = [
        layer.register_forward_hook(
            lambda m, i, output, at=at: caught.__setitem__(at, residual(output).clone())
        )
        for at, layer in enumerate(dissect(model).layers)
    ]
    values = []
    with torch.no_grad():
        for row in rows:
            model(input_ids=torch.tensor([row]), use_cache=False)
            values.append(
                torch.stack([torch.stack([caught[at][0, -1 - o] for o in offsets]) for at in layers])
            )
    for handle in handles:
        handle.remove()
    return torch.stack(values)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_and_offset(family: str) -> None:
    model = FAMILIES[family]()
    rows = prompts(9, 5, 12, 5, 7)
    layers = tuple(range(dissect(model).depth))
    recorded = record_activations(model, rows, offsets=(0, 3, 1))
    assert recorded.layers == layers
    assert recorded.offsets == (0, 3, 1)
    assert recorded.values.shape == (5, len(layers), 3, 32)
    torch.testing.assert_close(
        recorded.values, expected(model, rows, layers, (0, 3, 1)), atol=1e-5, rtol=1e-5
    )


def test_hidden_states_of_transformers() -> None:
    """Layer l is hidden_states[l + 1], except the last, which transformers gives after the final norm."""
    model = tiny_model()
    rows = prompts(8, 6)
    recorded = record_activations(model, rows)
    for row, tokens in enumerate(rows):
        with torch.no_grad():
            states = model(input_ids=torch.tensor([tokens]), output_hidden_states=True).hidden_states
        for layer in range(3):
            torch.testing.assert_close(
                recorded.at()[row, layer], states[layer + 1][0, -1], atol=1e-5, rtol=1e-5
            )
        last = model.model.norm(recorded.at()[row, 3])
        torch.testing.assert_close(last, states[4][0, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch_tokens", [1, 10, 24, 1000])
def test_batches_keep_the_callers_order(batch_tokens: int) -> None:
    model = tiny_model()
    rows = prompts(9, 5, 12, 5, 7, 12, 6)
    seen: list[int] = []
    shapes: list[tuple[int, int]] = []
    handle = model.model.embed_tokens.register_forward_hook(lambda m, i, o: shapes.append(tuple(o.shape[:2])))
    recorded = record_activations(model, rows, layers=(2,), batch_tokens=batch_tokens, advance=seen.append)
    handle.remove()
    torch.testing.assert_close(recorded.values, expected(model, rows, (2,), (0,)), atol=1e-5, rtol=1e-5)
    assert sum(seen) == 7
    assert [count for count, _ in shapes] == seen
    assert all(count == 1 or count * width <= batch_tokens for count, width in shapes)
    assert [width for _, width in shapes] == sorted(width for _, width in shapes)
    assert len(shapes) == {1: 7, 10: 6, 24: 3, 1000: 1}[batch_tokens]


def test_the_forward_stops_after_the_last_layer() -> None:
    model = tiny_model()
    ran: list[int] = []
    handles = [
        layer.register_forward_hook(lambda m, i, o, at=at: ran.append(at))
        for at, layer in enumerate(model.model.layers)
    ]
    handles.append(model.lm_head.register_forward_hook(lambda *_: ran.append(99)))
    recorded = record_activations(model, prompts(4), layers=(2, 0, 2))
    assert recorded.layers == (0, 2)
    assert ran == [0, 1, 2]
    ran.clear()
    record_activations(model, prompts(4))
    assert ran == [0, 1, 2, 3], "all layers, and no LM head"
    for handle in handles:
        handle.remove()


def test_the_model_is_left_alone() -> None:
    model = tiny_model()
    ids = torch.tensor(prompts(7))
    before = model(ids).logits
    record_activations(model, prompts(6, 7), layers=(1,))
    with pytest.raises(ZeroDivisionError):
        record_activations(model, prompts(6), advance=lambda n: 1 / 0)
    assert all(not layer._forward_hooks for layer in model.model.layers)
    assert torch.equal(model(ids).logits, before)
    assert not is_recording()


def test_values_are_on_the_cpu_in_the_models_dtype() -> None:
    recorded = record_activations(tiny_model().to(torch.bfloat16), prompts(4, 6))
    assert recorded.values.dtype == torch.bfloat16
    assert recorded.values.device.type == "cpu"
    assert not recorded.values.requires_grad


def test_views() -> None:
    recorded = record_activations(tiny_model(), prompts(4, 6, 5), offsets=(0, 2))
    assert torch.equal(recorded.at(2), recorded.values[:, :, 1])
    some = recorded.take([2, 0])
    assert torch.equal(some.values, recorded.values[[2, 0]])
    assert (some.layers, some.offsets) == (recorded.layers, recorded.offsets)
    assert torch.equal(recorded.take(torch.tensor([True, False, True])).values, recorded.values[[0, 2]])
    with pytest.raises(ValueError):
        recorded.at(1)


@pytest.mark.parametrize("fits", [3, 1])
def test_out_of_memory_halves_the_batch(fits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    rows = prompts(6, 7, 8, 8, 7, 6, 5)
    sizes: list[int] = []
    run = activations._run

    def hungry(model: Any, recorder: Any, batch: Any, *rest: Any) -> Tensor:
        sizes.append(len(batch))
        values = run(model, recorder, batch, *rest)
        if len(batch) > fits:
            raise torch.OutOfMemoryError("as an accelerator says it")
        return values

    monkeypatch.setattr(activations, "_run", hungry)
    recorded = record_activations(model, rows, layers=(1, 3))
    torch.testing.assert_close(recorded.values, expected(model, rows, (1, 3), (0,)), atol=1e-5, rtol=1e-5)
    assert sizes[0] == 7
    assert sum(size for size in sizes if size <= fits) == 7
    assert sum(size > fits for size in sizes) <= 3, "it must not take many failures to find a size"
    assert all(not layer._forward_hooks for layer in model.model.layers)


def test_out_of_memory_for_one_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(activations, "_run", hungry)
    with pytest.raises(torch.OutOfMemoryError):
        record_activations(tiny_model(), prompts(6, 7))


@pytest.mark.parametrize(
    ("rows", "options", "told"),
    [
        ([], {}, "No prompts"),
        ([[5, 6]], {"layers": (0, 4)}, "layers 0 to 3"),
        ([[5, 6]], {"layers": (-1,)}, "layers 0 to 3"),
        ([[5, 6]], {"layers": ()}, "layers 0 to 3"),
        ([[5, 6, 7], [5, 6]], {"offsets": (0, 2)}, "shortest prompt .2 tokens"),
        ([[5, 6]], {"offsets": (-1,)}, "shortest prompt"),
    ],
)
def test_refusals(rows: list[list[int]], options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        record_activations(tiny_model(), rows, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_shared_beginnings_change_nothing(family: str) -> None:
    model = FAMILIES[family]()
    system, one, other = prompts(6, 40, 44)
    ends = prompts(5, 9, 7, 3, 12, 8, 6, 4, 11, 10)
    rows = [
        *([*system, *one, *end] for end in ends[:4]),
        *([*system, *end] for end in ends[4:6]),
        *([*system, *other, *end] for end in ends[6:]),
    ]
    layers = tuple(range(dissect(model).depth))
    seen: list[int] = []
    recorded = record_activations(model, rows, offsets=(0, 2), share_prefixes=True, advance=seen.append)
    wanted = expected(model, rows, layers, (0, 2))
    torch.testing.assert_close(recorded.values, wanted, atol=1e-5, rtol=1e-4)
    assert sum(seen) == len(rows)


def test_shared_beginnings_are_run_once() -> None:
    model = tiny_model()
    beginning, *ends = prompts(50, 4, 6, 5, 8, 7)
    rows = [[*beginning, *end] for end in ends]
    tokens: list[int] = []
    handle = model.model.embed_tokens.register_forward_hook(
        lambda m, i, o: tokens.append(o.shape[0] * o.shape[1])
    )
    record_activations(model, rows, layers=(1,), share_prefixes=True)
    shared = sum(tokens)
    tokens.clear()
    record_activations(model, rows, layers=(1,))
    handle.remove()
    assert shared == 50 + 5 * 8  # the beginning, and the ends padded to the longest
    assert sum(tokens) == 5 * 58


def test_columns_are_copied_to_a_device_once_a_batch() -> None:
    """A copy to an accelerator makes the host wait: not in every layer."""
    recorder = _Recorder(dissect(tiny_model()), [0])
    device = torch.device("meta")
    try:
        recorder.expect(torch.zeros((2, 1), dtype=torch.long))
        first = recorder._columns_on(device)
        assert first.device == device and recorder._columns_on(device) is first
        recorder.expect(torch.zeros((3, 1), dtype=torch.long))
        assert recorder._columns_on(device).shape == (3, 1)
    finally:
        recorder.remove()
