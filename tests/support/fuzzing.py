"""Sends a server what schemathesis makes of its OpenAPI description, valid and invalid.

python -m tests.support.fuzzing http://127.0.0.1:8000 --examples 2500
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from typing import Any

import hypothesis
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis import GenerationMode


def fuzz(url: str, *, examples: int, seed: int) -> tuple[int, list[str], Counter[int]]:
    """Cases sent, what was wrong with their answers, and the statuses.

    `examples` are made per operation with a body and kind (valid, invalid); routes without one get a few.
    """
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    statuses: Counter[int] = Counter()
    problems: list[str] = []
    for result in schema.get_all_operations():
        operation: Any = result.ok()
        count = examples if operation.body else max(1, examples // 20)
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            def send(case: Any) -> None:
                answer = case.call(base_url=url, timeout=60)
                statuses[answer.status_code] += 1
                shown = f"{case.method} {case.formatted_path} {answer.status_code} {str(case.body)[:200]!r}"
                if answer.status_code >= 500:
                    problems.append(shown)
                elif answer.status_code >= 400:
                    error = answer.json().get("error", {})
                    if set(error) != {"message", "type", "param", "code"}:
                        problems.append(f"not OpenAI's shape: {shown}")

            run = hypothesis.seed(seed)(
                hypothesis.settings(
                    max_examples=count,
                    deadline=None,
                    database=None,
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                )(hypothesis.given(case=operation.as_strategy(generation_mode=mode))(send))
            )
            try:
                run()
            except hypothesis.errors.Unsatisfiable:  # nothing about this route can be invalid
                continue
    return sum(statuses.values()), problems, statuses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--examples", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sent, wrong, seen = fuzz(options.url, examples=options.examples, seed=options.seed)
    print(f"{sent} cases, statuses {dict(sorted(seen.items()))}, {len(wrong)} problems")
    for line in wrong[:20]:
        print(line)
    sys.exit(bool(wrong))
