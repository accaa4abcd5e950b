"""Tables that are valid Markdown and show what they were given."""

from __future__ import annotations

from distil_jax.evaluation.report import COLUMNS, measures_table
from distil_jax.tables import markdown


def cells(line: str) -> list[str]:
    assert line.startswith("| ") and line.endswith(" |")
    return [cell.strip() for cell in line[1:-1].split("|")]


def test_measures_stand_under_their_headings_in_a_fixed_order() -> None:
    text = measures_table(
        {
            "teacher": {"accuracy": 0.5, "parameters": 1234567.0, "mlm_loss": 2.34567},
            "student": {"mlm_loss": 3.0, "parameters": 1000.0, "kl": 0.12345, "accuracy": 0.4},
        }
    )
    head, rule, *rows = text.splitlines()
    assert cells(head) == ["model", "parameters", "held-out loss", "accuracy", "KL to teacher"]
    assert [cells(row) for row in rows] == [
        ["teacher", "1,234,567", "2.346", "50.0%", ""],
        ["student", "1,000", "3.000", "40.0%", "0.123"],
    ]
    assert len({len(line) for line in (head, rule, *rows)}) == 1
    assert rule.split("|")[1].endswith("-") and all(part.endswith("-:") for part in rule.split("|")[2:-1])


def test_every_measure_of_the_evaluator_has_a_column() -> None:
    assert {"mlm_loss", "perplexity", "accuracy", "kl", "agreement", "predictions"} <= COLUMNS.keys()


def test_the_first_column_is_left_and_the_others_right() -> None:
    assert markdown(["a", "number"], [["long name", "1"], ["b", "23"]]).splitlines() == [
        "| a         | number |",
        "|-----------|-------:|",
        "| long name |      1 |",
        "| b         |     23 |",
    ]


def test_a_table_without_rows_is_its_heading() -> None:
    assert markdown(["a", "b"], []).splitlines() == ["| a | b |", "|---|--:|"]
