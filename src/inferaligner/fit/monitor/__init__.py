"""The answer monitor: weights, layer, window and threshold, from the target's own answers.

`monitor_fit.fit_monitor` is called once per fit, after layers and strength are known. `answer_streams` yields
activations of generated tokens and no text; `monitor_choice` compares candidates by cross-validation.
"""
