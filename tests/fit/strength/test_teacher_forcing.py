import functools
from typing import Any

import pytest
import torch

from inferaligner.fit.strength.teacher_forcing import TeacherForcing
from inferaligner.models.anatomy import dissect, residual, with_residual
from inferaligner.models.kv_cache import cache_in
from inferaligner.prompts.chat import encode_chats
from tests.support.tiny_models import FAMILIES, tiny_tokenizer

PROMPTS = ["How do I bake bread?", "Hi", "Explain why the sky is blue."]
ANSWERS = ["I cannot help with that, sorry.", "Hello!", "Because of how light scatters<|im_end|>"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


def sharp_model(family: str = "llama") -> Any:
    """Random weights hardly prefer one token to another; this one does, so that every change shows."""
    model = FAMILIES[family]()
    with torch.no_grad():
        model.get_output_embeddings().weight *= 20  # type: ignore[union-attr]
    return model


def vectors(*layers: int, scale: float = 0.5) -> dict[int, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {layer: torch.randn(32, generator=generator) * scale for layer in layers}


def by_hand(
    model: Any, tokenizer: Any, additions: dict[int, torch.Tensor], *, whole: bool, system: Any = None
) -> float:
    """Every prompt alone, every layer computed, every token's loss written out."""
    starts = encode_chats(tokenizer, PROMPTS, system=system)
    losses: list[float] = []
    layers = dissect(model).layers
    for start, answer in zip(starts, ANSWERS, strict=True):
        tokens = start + tokenizer(answer, add_special_tokens=False)["input_ids"]
        first = 0 if whole else len(start) - 1

        def hook(vector: torch.Tensor, first: int = first) -> Any:
            def add(module: Any, inputs: Any, output: Any) -> Any:
                stream = residual(output).clone()
                stream[:, first:] += vector
                return with_residual(output, stream)

            return add

        handles = [layers[at].register_forward_hook(hook(vector)) for at, vector in additions.items()]
        with torch.no_grad():
            chances = (
                model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].double().log_softmax(-1)
            )
        for handle in handles:
            handle.remove()
        losses += [-float(chances[at - 1, tokens[at]]) for at in range(len(start), len(tokens))]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("layers", [(), (0,), (2,), (3,), (1, 3), (0, 1, 2, 3)])
def test_against_the_plain_computation(tokenizer: Any, layers: tuple[int, ...], whole: bool) -> None:
    model = sharp_model()
    forcing = TeacherForcing(model, tokenizer, PROMPTS, ANSWERS, whole_prompt=whole)
    additions = vectors(*layers)
    expected = by_hand(model, tokenizer, additions, whole=whole)
    assert forcing.cross_entropy(additions) == pytest.approx(expected, rel=1e-5)
    if layers:
        assert forcing.cross_entropy(additions) != pytest.approx(forcing.cross_entropy({}), rel=1e-3)


@pytest.mark.parametrize("whole", [False, True])
def test_the_end_of_an_answer_is_scored_with_it(tokenizer: Any, whole: bool) -> None:
    model = sharp_model()
    model.generation_config.eos_token_id = 2
    ended = [row % 2 == 0 for row in range(len(PROMPTS))]
    bare = TeacherForcing(model, tokenizer, PROMPTS, ANSWERS, whole_prompt=whole)
    forcing = TeacherForcing(model, tokenizer, PROMPTS, ANSWERS, ended=ended, whole_prompt=whole)
    assert forcing.tokens == bare.tokens + sum(ended)
    # The same as an answer in whose text the end token is written out.
    written = [a + tokenizer.decode([2]) if end else a for a, end in zip(ANSWERS, ended, strict=True)]
    expected = TeacherForcing(model, tokenizer, PROMPTS, written, whole_prompt=whole)
    for additions in ({}, vectors(1, 2)):
        assert forcing.cross_entropy(additions) == pytest.approx(expected.cross_entropy(additions), abs=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_skipped_layers_change_nothing(family: str, tokenizer: Any) -> None:
    """Also where a layer writes into its input: what was recorded must stay as it is."""
    model = sharp_model(family)
    forcing = TeacherForcing(model, tokenizer, PROMPTS, ANSWERS)
    for layers in ((2, 3), (1,), (2, 3)):
        expected = by_hand(model, tokenizer, vectors(*layers), whole=False)
        assert forcing.cross_entropy(vectors(*layers)) == pytest.approx(expected, rel=1e-4)
    assert forcing.cross_entropy({}) == pytest.approx(by_hand(model, tokenizer, {}, whole=False), rel=1e-4)


def test_the_two_positions_differ(tokenizer: Any) -> None:
    model = sharp_model()
    scores = {
        whole: TeacherForcing(model, tokenizer, PROMPTS, ANSWERS, whole_prompt=whole).cross_entropy(
            vectors(1)
        )
        for whole in (False, True)
    }
    assert scores[False] != pytest.approx(scores[True], rel=1e-4)


def test_system_prompts(tokenizer: Any) -> None:
    model = sharp_model()
    forcing = TeacherForcing(model, tokenizer, PROMPTS, ANSWERS, system="Be brief.")
    expected = by_hand(model, tokenizer, vectors(2), whole=False, system="Be brief.")
    assert forcing.cross_entropy(vectors(2)) == pytest.approx(expected, rel=1e-5)


def test_lower_layers_run_once(tokenizer: Any) -> None:
    model = sharp_model()
    ran: list[int] = []
    for at, layer in enumerate(model.model.layers):
        layer.mlp.register_forward_hook(lambda m, i, o, at=at: ran.append(at))
    forcing = TeacherForcing(model, tokenizer, PROMPTS, ANSWERS, whole_prompt=True)
    assert ran == [0, 1, 2, 3]
    ran.clear()
    forcing.cross_entropy(vectors(2))
    forcing.cross_entropy({})
    assert ran == [2, 3, 3]


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_alone(tokenizer: Any, fails: bool) -> None:
    model = sharp_model()
    ids = torch.tensor(encode_chats(tokenizer, PROMPTS[:1]))
    bare = model(ids).logits
    own = model.model.layers[0].forward
    marked = lambda *args, **kwargs: own(*args, **kwargs)  # noqa: E731
    model.model.layers[0].forward = marked  # as accelerate puts one there
    forcing = TeacherForcing(model, tokenizer, PROMPTS, ANSWERS)
    assert all(not layer._forward_hooks for layer in model.model.layers)
    if fails:
        with pytest.raises(RuntimeError):
            forcing.cross_entropy({2: torch.ones(7)})
    else:
        forcing.cross_entropy(vectors(2))
    assert model.model.layers[0].__dict__["forward"] is marked
    assert all("forward" not in layer.__dict__ for layer in list(model.model.layers)[1:])
    assert all(not layer._forward_hooks for layer in model.model.layers)
    assert torch.equal(model(ids).logits, bare)


def test_under_accelerate(tokenizer: Any) -> None:
    accelerate = pytest.importorskip("accelerate")
    expected = TeacherForcing(sharp_model(), tokenizer, PROMPTS, ANSWERS).cross_entropy(vectors(1, 2))
    dispatched = sharp_model()
    places = {name: "cpu" for name in ("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head")}
    places |= {f"model.layers.{at}": "cpu" for at in range(4)}
    accelerate.dispatch_model(dispatched, places, main_device="cpu", force_hooks=True)
    forwards = [layer.__dict__["forward"] for layer in dispatched.model.layers]
    forcing = TeacherForcing(dispatched, tokenizer, PROMPTS, ANSWERS)
    assert forcing.cross_entropy(vectors(1, 2)) == pytest.approx(expected, rel=1e-6)
    assert [layer.__dict__["forward"] for layer in dispatched.model.layers] == forwards


def test_bfloat16_is_scored_in_float32(tokenizer: Any) -> None:
    model = sharp_model().to(torch.bfloat16)
    score = TeacherForcing(model, tokenizer, PROMPTS, ANSWERS).cross_entropy(vectors(1))
    expected = TeacherForcing(sharp_model(), tokenizer, PROMPTS, ANSWERS).cross_entropy(vectors(1))
    assert score == pytest.approx(expected, rel=0.01)
    assert score != pytest.approx(float(torch.tensor(score).to(torch.bfloat16)), abs=1e-6)


def test_as_many_answers_as_prompts(tokenizer: Any) -> None:
    with pytest.raises(ValueError):
        TeacherForcing(sharp_model(), tokenizer, PROMPTS, ANSWERS[:2])


NO_PLAIN_CACHE = {"odd_h", "odd_layers"}


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_are_run_once_where_the_cache_allows_it(family: str, tokenizer: Any) -> None:
    model = sharp_model(family)
    forcing = TeacherForcing(model, tokenizer, PROMPTS, ANSWERS)
    assert forcing.keeps_prompts == (family not in NO_PLAIN_CACHE)
    assert not TeacherForcing(model, tokenizer, PROMPTS, ANSWERS, whole_prompt=True).keeps_prompts


def test_a_cache_that_gives_other_results_is_not_used(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = sharp_model()
    forward = type(model).forward

    @functools.wraps(forward)
    def forgetful(self: Any, *args: Any, **kwargs: Any) -> Any:
        cache = cache_in(kwargs)
        if cache is not None:
            for layer in cache.layers:
                if getattr(layer, "keys", None) is not None and layer.keys.numel():
                    layer.keys = torch.zeros_like(layer.keys)
                    layer.values = torch.zeros_like(layer.values)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "forward", forgetful)
    forcing = TeacherForcing(model, tokenizer, PROMPTS, ANSWERS)
    assert not forcing.keeps_prompts
    monkeypatch.undo()
    expected = by_hand(model, tokenizer, vectors(2), whole=False)
    assert forcing.cross_entropy(vectors(2)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("whole", [False, True])
def test_the_gradient_is_the_slope_of_the_cross_entropy(tokenizer: Any, whole: bool) -> None:
    model = sharp_model()
    forcing = TeacherForcing(model, tokenizer, PROMPTS, ANSWERS, whole_prompt=whole)
    directions = vectors(1, 2)
    strengths = torch.tensor([0.6, 0.3], requires_grad=True)
    forcing.loss({1: strengths[0] * directions[1], 2: strengths[1] * directions[2]}).backward()  # type: ignore[no-untyped-call]
    assert strengths.grad is not None
    step = 1e-2
    for at in (0, 1):
        sides = []
        for sign in (1, -1):
            moved = strengths.detach().clone()
            moved[at] += sign * step
            sides.append(forcing.cross_entropy({1: moved[0] * directions[1], 2: moved[1] * directions[2]}))
        assert float(strengths.grad[at]) == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=0.02)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
