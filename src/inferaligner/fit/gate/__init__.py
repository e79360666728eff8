"""Which gate: the layers and token positions that it reads, and its weights.

A way of making weights is a `GateBuilder` (`builder.py`): one class with `name`, `shrinkage` and

    fit(harmful: Moments, harmless: Moments) -> (weights [features] float32, offset)

Features are the activations at the places to read, one after the other, centred; `Moments` are their weighted
sums. The score of a prompt is weights · features + offset, larger = more harmful. The builder's offset makes
scores of different folds comparable: 0 half-way between the class means. The threshold is chosen afterwards.

`gate_choice.choose_gate` calls a builder once per fold of the cross-validation and candidate;
`gate_choice.build_gate` calls it once more on all prompts. To add a builder, write its class in a file here,
import it in `builder.py`, and in `gate_choice.py` add it to the candidates of `choose_gate`, to their number
(`number_of_trials`) and to the names of `GateTrial.family`. `tests/fit/gate/test_gates.py` tests this
contract on its list `BUILDERS`.
"""
