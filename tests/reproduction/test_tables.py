"""Tables say what the JSON says, and say so where a cell is missing."""

from __future__ import annotations

from reproduction.stages.ablation import strength_lines, strength_table
from reproduction.tables import experiment_page, families_table, table_one, time_table, times

from tests.support.report_rows import figure_row, found

_CELL = found({"none": 0.95, "inferaligner": 0.05}, utility={"none": 0.7, "inferaligner": 0.698}, base=0.25)
_OTHER = found({"none": 0.9}, utility={"none": 0.6}, base=0.3, domain="Finance")


def test_a_page_has_harm_utility_gate_time_and_data() -> None:
    page, drawn = experiment_page(_CELL)
    assert "| advbench | None | 95.0 [90.0, 100.0] | 4.5" in page
    assert "| arithmetic | base model | 25.0 [20.0, 30.0] | -45.0 [-50.0, -40.0] | 100 |" in page
    assert "| arithmetic | Inferaligner | 69.8 [64.8, 74.8] | -0.2" in page
    assert "| mathematics (calibration) | 0.3%, at most 2.0% | 300 |" in page
    assert "layers 3–4, strength 0.35 on the differences, from_gate" in page
    assert "| gsm8k | 10 | 8 | gsm8k 2 |" in page
    assert "× 1.010" in page
    assert "loss 3.00 → 1.00" in page
    assert set(drawn) == {"outcomes"} and drawn["outcomes"].startswith("<svg")


def test_table_one_has_a_table_for_each_domain() -> None:
    finance, mathematics = table_one([_OTHER, _CELL]).split("\n## ")[1:]
    assert finance.startswith("Finance\n") and mathematics.startswith("Mathematics\n")
    head, _, base, *methods = [line for line in mathematics.splitlines() if line.startswith("|")]
    assert head == "| Method | advbench, compliance | arithmetic, accuracy |"
    assert base == "| base model | – | 25.0 [20.0, 30.0] |"
    assert methods[1].startswith("| Inferaligner | 5.0 [0.0, 10.0] | 69.8")
    assert "Inferaligner" not in finance


def test_families_are_compared_with_and_without() -> None:
    table, svg = families_table([_CELL])
    assert "| SmolLM2 | advbench | 95.0 [90.0, 100.0] | 5.0 [0.0, 10.0] | 9.5" in table
    assert svg.startswith("<svg")


def test_times_are_told_against_the_bare_model_of_the_same_run() -> None:
    lines = time_table(times(_CELL))
    assert lines[-1].startswith("| inferaligner | closed | ") and lines[-1].endswith("| × 1.010 |")
    assert len(lines) == 4


def test_curves_begin_at_the_unsteered_model_and_ascend() -> None:
    rows = [figure_row("none", "advbench", metric, 0.5) for metric in ("compliance", "refusal", "gibberish")]
    for strength, value in ((2, 0.1), (0.5, 0.3)):
        for source in ("aligned", "target"):
            name = f"{source}, layers 2-3, x {strength}, from_gate"
            for metric in ("compliance", "refusal", "gibberish"):
                rows.append(figure_row(name, "advbench", metric, value))
    lines = strength_lines(rows, "advbench", "compliance")
    assert set(lines) == {"aligned's vectors", "target's vectors"}
    assert [x for x, _ in lines["aligned's vectors"]] == [0.0, 0.5, 2.0]
    assert [point.value for _, point in lines["aligned's vectors"]] == [0.5, 0.3, 0.1]
    table = strength_table("Title", rows, 256)
    assert "at most 256 tokens" in table
    assert "| advbench | – | 0 | 50.0" in table
    assert "| advbench | target | 2 | 10.0" in table
