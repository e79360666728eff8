"""Which layers are steered, how strongly: searched by cross-entropy, chosen by generating.

`choice.choose_steering` is called once per fit. A setting is a `Trial`: layers, strength, factor per layer.
`strength_grid` proposes settings, `teacher_forcing` scores one by a forward pass, `layer_profile` refines one
by gradient, `search` generates with the best and chooses.
"""
