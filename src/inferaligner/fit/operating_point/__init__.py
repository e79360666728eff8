"""Where the gate opens: its bias, the bound on benign traffic that comes with it, and later moves of both.

A prompt opens when its score is above the threshold. `threshold` takes a threshold from scores,
`benign_traffic` puts a gate there and writes the record, `recalibrate` moves an artifact's bias, `drift`
compares live scores with the stored ones. Nothing here changes weights or vectors.
"""
