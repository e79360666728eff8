"""Requests made from the server's own OpenAPI description: whatever is sent, no answer is a 5xx."""

from __future__ import annotations

import pytest

from tests.support.running_server import Running, Serve

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")


@pytest.mark.slow
def test_no_generated_request_is_a_5xx(serve: Serve) -> None:
    from tests.support.fuzzing import fuzz

    server: Running = serve(settings={"allow_override": True, "answer_tokens": 4})
    cases, problems, statuses = fuzz(server.url, examples=40, seed=1)
    assert cases >= 200 and problems == []
    assert {200, 400} <= set(statuses), statuses
    assert server.chat("Hello").status_code == 200
