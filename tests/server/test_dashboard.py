"""The Grafana dashboard asks for metrics that exist, and leaves none out."""

from __future__ import annotations

import json
import re
from importlib.resources import files

from tests.support.running_server import Running

BY_NEED = {"inferaligner_drift_distance", "inferaligner_drift_p_value", "inferaligner_open_rate_limit"}
"""Metrics that are there once there is something to compare."""


def test_every_expression_names_a_metric(server: Running) -> None:
    for _ in range(2):
        server.chat("Hello")
    dashboard = json.loads(files("inferaligner.server").joinpath("grafana.json").read_text(encoding="utf-8"))
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = set(re.findall(r"inferaligner_[a-z_]+", " ".join(expressions)))
    there = {name.partition("{")[0] for name in server.metrics()} | BY_NEED
    assert asked and asked <= there, asked - there
    assert all('{job=~"$job"' in expression for expression in expressions)
    places = [tuple(panel["gridPos"].values()) for panel in dashboard["panels"]]
    assert len(set(places)) == len(places) and len({panel["id"] for panel in dashboard["panels"]}) == len(
        places
    )
