"""Golden: the equations of the paper in plain numpy, on a Llama that is written out in numpy as well."""

import numpy as np
import pytest
import torch

from inferaligner.method.activations import record_activations
from inferaligner.method.gate import GateRead, GuidanceGate
from inferaligner.method.vectors import mean_difference, unit
from inferaligner.steering.guard import Guard
from inferaligner.steering.plan import Positions, SteeringPlan
from tests.support.numpy_llama import Array, NumpyLlama
from tests.support.tiny_models import tiny_model


@pytest.mark.parametrize("positions", ["from_gate", "all"])
@pytest.mark.parametrize(("gate_layer", "steered"), [(1, (1, 2, 3)), (2, (0, 1, 3))])
def test_the_equations(gate_layer: int, steered: tuple[int, ...], positions: Positions) -> None:
    target, aligned = tiny_model(seed=0).double(), tiny_model(seed=1).double()
    plain = NumpyLlama(target)
    draw = np.random.default_rng(0)
    harmful, harmless, test = (
        [draw.integers(3, 320, size=int(length)).tolist() for length in draw.integers(5, 12, size=rows)]
        for rows in (6, 5, 8)
    )

    def last(model: NumpyLlama, prompts: list[list[int]]) -> Array:
        return np.stack([model.run(prompt)[1][:, -1] for prompt in prompts])  # [prompts, layers, width]

    # Equations 1 and 2: the SRV of the target, the SSV of the aligned model.
    differences = {}
    for name, model in (("target", target), ("aligned", aligned)):
        mine = mean_difference(*(record_activations(model, p).at() for p in (harmful, harmless)))
        numpy_model = NumpyLlama(model)
        by_hand = last(numpy_model, harmful).mean(0) - last(numpy_model, harmless).mean(0)
        np.testing.assert_allclose(mine.numpy(), by_hand, rtol=1e-5, atol=1e-6)
        differences[name] = (mine, by_hand)
    srv = differences["target"][1][gate_layer]
    srv = srv / np.linalg.norm(srv)
    np.testing.assert_allclose(unit(differences["target"][0])[gate_layer].numpy(), srv, rtol=1e-5, atol=1e-6)

    # Equation 3: the gate, with minus the mean projection of the extraction prompts as its bias.
    bias = -float((last(plain, harmful + harmless)[:, gate_layer] @ srv).mean())
    scores = last(plain, test)[:, gate_layer] @ srv + bias
    assert 0 < (scores > 0).sum() < len(test), "the test needs prompts of both kinds"

    # Equation 4: α·θ_l on the open prompts.
    strength = 2.5
    additions = {layer: strength * differences["aligned"][1][layer] for layer in steered}
    gate = GuidanceGate("reference", (GateRead(gate_layer),), torch.tensor(srv)[None].float(), bias)
    plan = SteeringPlan(
        gate, {layer: torch.tensor(vector).float() for layer, vector in additions.items()}, positions
    )
    width = max(map(len, test))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in test])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in test])
    with torch.no_grad(), Guard(target, plan) as guard:  # type: ignore[arg-type]
        output = target.generate(
            ids, attention_mask=mask, max_new_tokens=4, do_sample=False, return_dict_in_generate=True,
            output_logits=True, eos_token_id=None, pad_token_id=0,
        )  # fmt: skip
    np.testing.assert_allclose([decision.score for decision in guard.decisions], scores, rtol=1e-4, atol=1e-5)
    assert [decision.open for decision in guard.decisions] == (scores > 0).tolist()
    for row, prompt in enumerate(test):
        tokens = list(prompt)
        first = len(prompt) - 1 if positions == "from_gate" else 0
        for step in range(4):
            logits, _ = plain.run(tokens, additions if scores[row] > 0 else None, first)
            np.testing.assert_allclose(
                output.logits[step][row].double().numpy(), logits[-1], rtol=1e-4, atol=1e-5
            )
            tokens.append(int(logits[-1].argmax()))
        assert output.sequences[row, width:].tolist() == tokens[len(prompt) :]
