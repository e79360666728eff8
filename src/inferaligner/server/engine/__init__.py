"""The engine: one thread that owns the model and generates all answers in one running batch.

Other threads call only `Engine.start`, `submit`, `cancel`, `call`, `swap` and `stop`. The engine's thread
calls the rest, in every round in this order:

1. functions given to `Engine.call`; jobs that were cancelled leave;
2. `RunningBatch.prefill`: a pass over new prompts under the guard (`batch`), then per prompt
   `GateDecisions.report` (`gate_decisions`) and the event `Decided` (`jobs`);
3. `RunningBatch.step`: a pass over all rows `[rows, 1]`, with the KV cache of `cache`;
4. after 2 and 3, `TokenEmitter.emit` (`decoding`): the next token of each row (`sampling`) from logits
   `[rows, vocabulary]`, its text (`detokenizer`), and the events `Piece` and `Finished`.

`image_input`, `projection` and `token_text` are called by the routes, not by the engine.
"""
