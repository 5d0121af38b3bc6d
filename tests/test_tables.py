"""HTML tables: nothing gets through unescaped, unclipped or unseen."""

import pandas as pd
import pytest
from toy_workbook import write_case

from f5lab import load_case, tables
from f5lab.findings import Finding

HOSTILE = '<img src=x onerror="alert(1)">'


def test_names_values_and_captions_are_escaped() -> None:
    source = tables.table([{HOSTILE: HOSTILE}], caption=HOSTILE)._repr_html_()
    assert "<img" not in source
    assert source.count("&lt;img") == 3


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\u202eevil", "⟨U+202E⟩evil"),
        ("\ufeff ", "⟨BOM⟩ "),
        ("a\x00b\x1b[31m", "a␀b␛[31m"),
        ("\u00a0", "⟨NBSP⟩"),
        ("zero\u200bwidth", "zero⟨U+200B⟩width"),
        ("\ud800", "⟨U+D800⟩"),
        ("line\u2028break", "line⟨U+2028⟩break"),
        ("  ", "␣␣"),
        ("ação", "ação"),
        ("", ""),
    ],
)
def test_what_a_reader_can_not_see_is_written_out(text: str, shown: str) -> None:
    assert tables.visible(text) == shown
    shown.encode("utf-8")


def test_long_strings_say_how_much_is_left_out() -> None:
    source = tables.table([{"text": "x" * 1000}], clip=10)._repr_html_()
    assert "x" * 10 + "… (+990)" in source
    assert "x" * 11 not in source


def test_long_tables_say_how_many_rows_are_left_out() -> None:
    source = tables.table([{"n": i} for i in range(12)], caption="Rows", limit=5)._repr_html_()
    assert source.count("<tr>") == 1 + 5
    assert "Rows (first 5 of 12 rows)" in source


def test_numbers_stand_right_and_undefined_ones_are_named() -> None:
    source = tables.table([{"cer": 0.123456, "path": "raw"}, {"cer": float("nan"), "path": None}])._repr_html_()
    assert '<td class="num" style="text-align:right">0.1235</td>' in source
    assert ">undefined</td>" in source
    assert '<td style="text-align:left">—</td>' in source


def test_frame_and_rows_give_one_table() -> None:
    rows = [{"path": "raw", "cer": 0.5}, {"path": "ema", "cer": 0.25}]
    frame = pd.DataFrame(rows)
    assert tables.table(frame)._repr_html_() == tables.table(rows)._repr_html_()
    assert ">path</th>" in tables.table(frame.set_index("path"))._repr_html_()


def test_columns_of_all_rows_appear() -> None:
    source = tables.table([{"a": 1}, {"b": 2}])._repr_html_()
    assert source.index(">a</th>") < source.index(">b</th>")
    assert tables.table([])._repr_html_().startswith("<table")


def test_findings_show_verdict_in_words_and_sign() -> None:
    found = Finding(id="01-x", question="?", claim=HOSTILE, verdict="refuted", value=None, limitation="why <none>")
    source = tables.show_findings([found])._repr_html_()
    assert "✘ refuted" in source
    assert "<img" not in source
    assert "why &lt;none&gt;" in source


def test_provenance_names_case_digest_versions_and_facts(tmp_path) -> None:
    source = tables.provenance(load_case(write_case(tmp_path)), device="cpu", seeds=[0, 1])._repr_html_()
    assert "toy (language not stated)" in source
    assert "9a129038d9a00aed" in source  # sha256 of b"weights"
    assert "python 3." in source
    assert ">0, 1</td>" in source
