"""Build the self-contained HTML report of a batch."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

from usvol.batch.outcome import Outcome, Status
from usvol.report import charts, panels, preview

EMBED_LIMIT = 500  # more thumbnails than this would make a file that browsers open slowly
ROW_LIMIT = 5000
_MAX_HISTOGRAMS = 6


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the report's table."""

    outcome: Outcome
    name: str
    message: str
    image: str
    link: str
    cells: tuple[str, ...]
    sort_keys: tuple[str, ...]
    scores: tuple[Markup, ...]
    flags: tuple[tuple[str, str, str], ...]


def write_report(
    out: Path,
    outcomes: Sequence[Outcome],
    *,
    facts: Mapping[str, Any],
    ignored: Sequence[tuple[str, str]],
) -> Path:
    """Write ``report.html`` into ``out`` by rename and return its path.

    ``facts`` is the content of ``run.json``; ``ignored`` holds path and reason of files left aside.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("usvol.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    listed = _listed(outcomes)
    columns = _columns(outcomes)
    score_names = list(dict.fromkeys(name for o in outcomes for name in o.row.get("scores", {})))
    html = environment.get_template("report.html.j2").render(
        facts=facts,
        counts=Counter(str(o.status) for o in outcomes),
        total=len(outcomes),
        columns=columns,
        score_names=score_names,
        rows=[_row(o, out, columns, score_names, embed=len(outcomes) <= EMBED_LIMIT) for o in listed],
        listed=Counter(str(o.status) for o in listed),
        charts=_charts(outcomes, columns, score_names),
        flag_codes=sorted({code for o in listed for code, _, _ in o.row.get("flags", ())}),
        problems=_problems(outcomes),
        ignored=ignored[:ROW_LIMIT],
        ignored_total=len(ignored),
        style=Markup(_asset("report.css")),  # noqa: S704 (our own file)
        script=Markup(_asset("report.js")),  # noqa: S704 (our own file)
    )
    path = out / "report.html"
    partial = path.with_name(".report.html.part")
    partial.write_text(html, encoding="utf-8")
    partial.replace(path)
    return path


def _listed(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Choose the items of the table, results first; where not all fit, a quarter is for those without.

    Of what has results, flagged items have up to half of the room. The order of the input is kept.
    """
    done = [o for o in outcomes if o.status is Status.DONE]
    rest = [o for o in outcomes if o.status is not Status.DONE]
    rest = rest[: max(ROW_LIMIT // 4, ROW_LIMIT - len(done))]
    room = ROW_LIMIT - len(rest)
    flagged = [o.id for o in done if o.row.get("flags")]
    plain = [o.id for o in done if not o.row.get("flags")]
    chosen = flagged[: max(room // 2, room - len(plain))]
    chosen = {*chosen, *plain[: room - len(chosen)]}
    return [*(o for o in done if o.id in chosen), *rest]


def _asset(name: str) -> str:
    return (resources.files("usvol.report") / name).read_text(encoding="utf-8")


def _columns(outcomes: Sequence[Outcome]) -> list[str]:
    names = dict.fromkeys(name for o in outcomes for name in o.row.get("measurements", {}))
    return [name for name in names if not name.endswith((" low", " high"))]


def _row(
    outcome: Outcome, out: Path, columns: Sequence[str], score_names: Sequence[str], *, embed: bool
) -> Row:
    measured = outcome.row.get("measurements", {})
    pictures = outcome.row.get("preview", ())
    folder = f"items/{outcome.id}"
    return Row(
        outcome=outcome,
        name=Path(outcome.path).name,
        image=_image(out, folder, pictures, embed=embed),
        message=outcome.message.removeprefix(f"{Path(outcome.path).name}: "),
        link=f"{folder}/{pictures[-1]}" if pictures else "",
        cells=tuple(_shown(measured, name) for name in columns),
        sort_keys=tuple("" if measured.get(name) is None else str(measured[name]) for name in columns),
        scores=tuple(_score(outcome.row.get("scores", {}).get(name)) for name in score_names),
        flags=tuple((code, severity, message) for code, severity, message in outcome.row.get("flags", ())),
    )


def _image(out: Path, folder: str, pictures: Sequence[str], *, embed: bool) -> str:
    if not pictures or not (out / folder / pictures[0]).is_file():
        return ""
    if not embed:
        return f"{folder}/{pictures[0]}"
    try:
        small = preview.thumbnail(out / folder / pictures[0])
    except OSError:  # damaged since
        return ""
    return f"data:image/jpeg;base64,{base64.b64encode(small).decode('ascii')}"


def _shown(measured: Mapping[str, Any], name: str) -> str:
    value = measured.get(name)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    text = f"{value:.4g}"
    low, high = measured.get(f"{name} low"), measured.get(f"{name} high")
    return text if low is None or high is None else f"{text} ({low:.3g} to {high:.3g})"


def _score(probabilities: Mapping[str, Any] | None) -> Markup:
    if not probabilities:
        return Markup()
    shares = {name: share for name, share in probabilities.items() if name}
    parts = []
    for index, (name, share) in enumerate(shares.items()):
        colour = "rgb({},{},{})".format(*panels.class_colour(index, len(shares)))
        style = f"width:{100 * (share or 0):.1f}%;background:{colour}"
        hint = f"{name}: {share:.2f}" if share is not None else name
        parts.append(Markup('<i style="{}" title="{}"></i>').format(style, hint))
    return Markup('<b>{}</b><span class="shares">{}</span>').format(probabilities[""], Markup().join(parts))


def _charts(outcomes: Sequence[Outcome], columns: Sequence[str], score_names: Sequence[str]) -> list[Markup]:
    figures: list[Markup] = []
    for name in score_names:
        answers = [o.row["scores"][name] for o in outcomes if name in o.row.get("scores", {})]
        decided = Counter(answer[""] for answer in answers)
        classes = [key for key in answers[0] if key]
        data = [charts.Bar(label, decided[label]) for label in classes]
        figures.append(charts.bars(f"{name.replace('_', ' ')}: decisions", data))
    for name in columns:
        values = [o.row.get("measurements", {}).get(name) for o in outcomes]
        numbers = [v for v in values if isinstance(v, int | float)]
        if numbers and len(figures) < _MAX_HISTOGRAMS:
            figures.append(charts.histogram(name, numbers))
    flags = Counter(code for o in outcomes for code in {code for code, _, _ in o.row.get("flags", ())})
    if flags:
        data = [charts.Bar(code.replace("_", " "), count) for code, count in flags.most_common(6)]
        figures.append(charts.bars("Quality flags: items", data))
    return figures


def _problems(outcomes: Sequence[Outcome]) -> list[tuple[str, str, list[Outcome]]]:
    """Group what was not done by status and reason, most frequent first."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        if outcome.status in {Status.SKIPPED, Status.FAILED}:
            groups.setdefault((str(outcome.status), outcome.reason), []).append(outcome)
    return [(*key, members) for key, members in sorted(groups.items(), key=lambda g: (g[0][0], -len(g[1])))]
