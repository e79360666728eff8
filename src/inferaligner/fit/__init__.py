"""Every choice that is made from data, once, before an aligner is used.

`fit.fit_artifact(context)` runs the steps in this order. Each takes the one `FitContext` (models, prompts,
options, judge, progress), and the results of the steps before it:

1. `vectors`: SRV of the target, SSV of the aligned model; `transfer/` where their shapes differ
2. `gate/`: which gate, its weights; `operating_point/`: its bias
3. `strength/`: which layers are steered, and how strongly
4. `monitor/`: the monitor of answers, if the user wants one

`options` declares what a user can fix. `samples` are the labelled prompts, in a fitting part and a test part;
no step chooses anything by the test part. `diagnosis` predicts before a fit how well it will go.
"""
