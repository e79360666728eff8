"""Which layers are steered, how strongly: searched by cross-entropy, chosen by generating.

`steering_choice.choose_steering` is called once per fit. A setting is a `Trial`: layers, strength, factor per
layer. `strength_grid` proposes settings, `teacher_forcing` scores one by a forward pass, `layer_profile`
refines one by gradient, `strength_search` generates with the best and chooses.
"""
