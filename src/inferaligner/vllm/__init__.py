"""Gated steering on stock vLLM, switched on by vLLM's own flags.

    from vllm import LLM
    from inferaligner.vllm import engine_args, gate_of

    model = LLM("my-model", **engine_args("my-aligner"))
    answer, = model.chat([{"role": "user", "content": "Hello"}])
    gate_of(answer)                     # score, open, action

Who does what, for one request:
1. The front end (`front.py`) refuses what the gate could not judge, such as a prompt without the chat
   template.
2. The scheduler (`scheduler.py`) owns the decision. It caps the prefix-cache hit before the first token that
   the gate reads, keeps steered blocks out of the cache, and sends the worker an order when a request begins
   or resumes (`messages.py`).
3. The worker (`worker.py`) gives the request a slot, tells before every forward pass which rows are read and
   which are steered (`rows.py`), and hands decisions back with its output. Hooks on the decoder layers
   (`layers.py`) call two custom operations (`ops.py`) that read the rows from buffers, so that compiled
   graphs stay as they are.
4. The scheduler notes the decision before anything else sees the step's output, and reports it with the last
   one.

What all of this relies on in vLLM is listed in `contract.py`; what differs between versions, and what is
refused, is in `compatibility.py`.
"""

from __future__ import annotations

from inferaligner.vllm.settings import EngineSettings, engine_args, gate_of, serve_command

__all__ = ["EngineSettings", "engine_args", "gate_of", "serve_command"]
