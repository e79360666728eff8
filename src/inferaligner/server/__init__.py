"""The embedded OpenAI-compatible server: a transformers model with an aligner, gated per request.

`inferaligner serve --engine transformers` calls `app.make_app`, then `run.serve_until_stopped`. A request
passes

1. `auth_middleware`: API key (`keys`), size limit, HTTP metrics (`metrics`);
2. a route of `app`, whose fields `schema` describes;
3. `generation`: `prompts` renders and encodes the prompt, and one job per prompt is made;
4. `request_stream`: gives the jobs to the engine (`server.engine`) and brings its events to the event loop;
5. `generation` again: formats the events as JSON, or as server-sent events (`event_stream`).

The engine reports decisions to `event_log`, which writes the metrics and the audit log. `admin` replaces the
operating point while the server runs.
"""
