"""Guidance from an aligned model whose vectors do not fit the target as they are.

`linear_map` carries vectors `[layers, width]` over to the target's shape. `answer_vectors` learns vectors in
the target from text, so it needs no common shape; `learned_vectors` chooses its prompts and layers.
"""
