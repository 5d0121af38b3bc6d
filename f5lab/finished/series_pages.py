"""A series of checkpoints as one HTML page that needs no network: verdict, figure, table."""

import base64
import io
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from f5lab import tables
from f5lab.execution import markup
from f5lab.paths import TEMPLATES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from f5lab.scale.series import Series

PART_LABELS = {"probe": "probe loss", "speech": "CER"}


def draw(series: "Series") -> "Figure":
    """Draw norms, distances, EMA share, probe loss and CER over updates, as far as each was measured."""
    from f5lab import plots
    from f5lab.scale import trends

    plots.use_style()
    chosen = [
        (label, lines) for label, lines in _lines(series) if any(y is not None for p in lines.values() for _, y in p)
    ]
    files = sum(not row.get("unreadable") for row in series.rows)
    figure, axes = trends.panels(
        max(1, len(chosen)), caption=f"{series.folder.name}: {files} checkpoints; bars: 95 % intervals, noise seed 0"
    )
    for ax, (label, lines) in zip(axes, chosen):
        part = next((p for p, name in PART_LABELS.items() if name == label), "")
        trends.plot_lines(
            ax, lines, ylabel=label, spans=_spans(series, part) if part else None, mark=_mark(series, part)
        )
    if not chosen:
        axes[0].text(0.5, 0.5, "nothing could be measured", ha="center")
    return figure


def _lines(series: "Series") -> list[tuple[str, dict[str, list[tuple[float, float | None]]]]]:
    from f5lab.scale.series import mean_interval

    def over(pick: Any) -> dict[str, list[tuple[float, float | None]]]:
        found = {slot: [(x, pick(row, slot)) for x, row in _placed(series)] for slot in ("raw", "ema")}
        return {slot: points for slot, points in found.items() if any(y is not None for _, y in points)}

    share = [(x, row.get("ema_share") or {}) for x, row in _placed(series)]
    shares = {kind: [(x, _times(s.get(kind), 100)) for x, s in share] for kind in ("measured", "expected")}
    return [
        ("L2 norm of the weights", over(lambda row, slot: row.get("norm", {}).get(slot))),
        ("distance to the base (%)", over(lambda row, slot: _times(row.get("from_base", {}).get(slot), 100))),
        ("base in the EMA (%)", {k: p for k, p in shares.items() if any(y is not None for _, y in p)}),
        *((name, over(lambda row, slot, part=part: (mean_interval(row, part, slot) or (None,))[0])) for part, name in PART_LABELS.items()),
    ]  # fmt: skip


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else factor * value


def _placed(series: "Series") -> list[tuple[int, dict[str, Any]]]:
    """Return the rows that have a place on the axis; one without any update has none, and stands in the table only."""
    rows = [(row.get("update") if row.get("update") is not None else row["number"], row) for row in series.rows]
    return [(x, row) for x, row in rows if x is not None and not row.get("unreadable")]


def _spans(series: "Series", part: str) -> dict[str, list[tuple[float, float, float]]]:
    from f5lab.scale.series import mean_interval

    found = {slot: [(x, mean_interval(row, part, slot)) for x, row in _placed(series)] for slot in ("raw", "ema")}
    return {slot: [(x, v[1], v[2]) for x, v in points if v] for slot, points in found.items()}


def _mark(series: "Series", part: str) -> tuple[float, float] | None:
    from f5lab.scale.series import CER, LOSS, label, mean_interval

    choice = series.choices.get({"probe": LOSS, "speech": CER}.get(part, ""))
    for x, row in _placed(series) if choice is not None else []:
        for slot in row.get(part, {}):
            if label(row, slot) == choice.best and (value := mean_interval(row, part, slot)):
                return x, value[0]
    return None


def page(series: "Series") -> str:
    """Return the page."""
    import matplotlib.pyplot as plt

    from f5lab.scale.series import table_rows

    figure, buffer = draw(series), io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    rows = table_rows(series)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )  # fmt: skip
    environment.filters["shown"] = lambda value: tables.cell_text(value, 400)
    body = environment.get_template("series.html.j2").render(
        css=Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")), policy=markup.CONTENT_SECURITY_POLICY,
        name=series.folder.name, count=len(series.rows), choices=list(series.choices.values()), notes=series.notes,
        failed=series.failed, figure=base64.b64encode(buffer.getvalue()).decode(), context=series.context,
        table=markup.clean(tables.table(rows, caption="One row a checkpoint").source),
    )  # fmt: skip
    return markup.encodable(body)
