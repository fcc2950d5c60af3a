from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from usvol.batch.outcome import Outcome, Status
from usvol.report import charts, page, panels, preview

FACTS = {
    "task": "toy",
    "state": "finished",
    "begun": "2026-01-01T00:00:00+00:00",
    "inputs": ["in"],
    "device": "cpu",
    "versions": {"usvol": "0.1.0"},
    "model": {"weights_sha256": "ab" * 32},
    "summary": {"computed": 2, "seconds": 1.0, "items_per_second": 2.0},
}
VOID = {"meta", "input", "img", "line", "rect", "br", "link"}


class Checked(HTMLParser):
    """Collect rows and links, and fail on tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[dict[str, str | None]] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attrs):
        facts = dict(attrs)
        self.addresses += [str(facts[key]) for key in ("src", "href") if key in facts]
        if tag == "tr" and "data-status" in facts:
            self.rows.append(facts)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def read(path) -> tuple[Checked, str]:
    text = path.read_text(encoding="utf-8")
    parser = Checked()
    parser.feed(text)
    assert not parser.open
    return parser, text


def done(index: int, value: float, out) -> Outcome:
    folder = out / "items" / f"item-{index}"
    folder.mkdir(parents=True)
    Image.new("RGB", (320, 200), (index * 20 % 255, 40, 40)).save(folder / "preview.png")
    row = {
        "kind": "cine",
        "measurements": {"volume [mL]": value, "volume [mL] low": value - 1, "volume [mL] high": value + 1},
        "scores": {"grade": {"0": 0.25, "1": 0.75, "": "1"}},
        "flags": [["uncalibrated", "info", "No scale."], ["odd", "severe", "Very <odd>."]],
        "preview": ["preview.png"],
    }
    return Outcome(f"item-{index}", index, f"in/clip_{index}.mp4", Status.DONE, seconds=0.5, row=row)


def outcomes(out, count: int = 2) -> list[Outcome]:
    items = [done(index, 10.0 + index, out) for index in range(count)]
    bad = "in/<script>alert(1)</script>.mp4"
    items.insert(0, Outcome("bad", count, bad, Status.FAILED, "TruncatedFileError", "It ends & stops."))
    items.append(
        Outcome("still", count + 1, "in/still.png", Status.SKIPPED, "KindError", "still.png: a still.")
    )
    return items


def test_the_report_is_one_valid_file_that_loads_nothing(tmp_path):
    parsed, text = read(
        page.write_report(tmp_path, outcomes(tmp_path), facts=FACTS, ignored=[("a.csv", "table")])
    )
    assert "Not a medical device" in text
    assert "ab" * 32 in text
    assert "a.csv" in text
    pictures = [a for a in parsed.addresses if a.startswith("data:image/jpeg;base64,")]
    assert len(pictures) == 2
    assert not [a for a in parsed.addresses if re.match(r"(https?:)?//", a)]
    assert "@import" not in text
    assert "url(" not in text


def test_every_item_is_a_row_with_its_facts(tmp_path):
    parsed, text = read(page.write_report(tmp_path, outcomes(tmp_path), facts=FACTS, ignored=[]))
    assert [row["data-status"] for row in parsed.rows] == ["done", "done", "failed", "skipped"]
    assert parsed.rows[0]["data-flags"].split() == ["uncalibrated", "odd"]
    assert "10 (9 to 11)" in text
    assert "TruncatedFileError" in text
    assert "width:75.0%" in text


def test_only_grades_go_from_calm_to_alarming():
    assert panels.class_colour(0, 4) == panels.RAMP[0]
    assert panels.class_colour(3, 4) == panels.RAMP[-1]
    assert not {panels.class_colour(index, 2) for index in range(2)} & set(panels.RAMP)


def test_names_from_the_input_are_escaped(tmp_path):
    _, text = read(page.write_report(tmp_path, outcomes(tmp_path), facts=FACTS, ignored=[("<b>.csv", "x")]))
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text
    assert "It ends &amp; stops." in text
    assert "<b>.csv" not in text
    assert "Very <odd>" not in text


def test_many_items_are_linked_instead_of_embedded(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "EMBED_LIMIT", 3)
    monkeypatch.setattr(page, "ROW_LIMIT", 5)
    parsed, text = read(page.write_report(tmp_path, outcomes(tmp_path, 6), facts=FACTS, ignored=[]))
    assert "data:image" not in text
    assert "items/item-0/preview.png" in parsed.addresses
    assert len(parsed.rows) == 5
    assert "Listed here: 4 of 6 done, 1 of 1 failed;" in text


def test_a_run_without_any_result_still_has_a_report(tmp_path):
    failed = [Outcome("x", 0, "in/x.mp4", Status.FAILED, "ReadError", "no")]
    parsed, text = read(
        page.write_report(tmp_path, failed, facts={"task": "t", "state": "running"}, ignored=[])
    )
    assert len(parsed.rows) == 1
    assert "begin unknown" in text


def test_thumbnails_are_small(tmp_path):
    path = tmp_path / "preview.png"
    Image.effect_noise((320, 420), 90).save(path)
    assert len(preview.thumbnail(path)) < 20_000


@pytest.mark.parametrize(
    ("values", "counts"),
    [([0, 0, 1, 3], [2, 1, 1]), ([1.5] * 4, [4]), ([float("nan"), 2.0], [1])],
)
def test_histograms_count_every_known_value(values, counts):
    drawn = charts.histogram("h", values)
    shown = [int(n) for n in re.findall(r'class="count"[^>]*>(\d+)<', drawn)]
    assert shown == counts


def test_histograms_of_many_numbers_lose_none():
    values = [index**1.5 for index in range(300)]
    hints = [int(n) for n in re.findall(r"<title>[^<]*: (\d+)</title>", charts.histogram("h", values))]
    assert sum(hints) == 300


@pytest.mark.parametrize(
    "values", [[0.3, 0.1 + 0.2] * 3, [133.21006944444446, 133.21006944444443], [1e308, -1e308]]
)
def test_numbers_without_bins_between_them_are_one_bar(values):
    drawn = charts.histogram("h", values)
    assert re.findall(r'class="count"[^>]*>(\d+)<', drawn) == [str(len(values))]


def test_failures_and_flags_are_listed_where_not_all_fit(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "ROW_LIMIT", 8)
    plain = [Outcome(f"p{n}", n, f"in/p{n}.mp4", Status.DONE) for n in range(30)]
    flagged = [dataclasses.replace(done(n, 1.0, tmp_path), order=30 + n) for n in range(30)]
    failed = [Outcome(f"f{n}", 60 + n, f"in/f{n}.mp4", Status.FAILED, "ReadError", "no") for n in range(9)]
    parsed, text = read(page.write_report(tmp_path, [*plain, *flagged, *failed], facts=FACTS, ignored=[]))
    assert [row["data-status"] for row in parsed.rows] == ["done"] * 6 + ["failed"] * 2
    assert [bool(row["data-flags"]) for row in parsed.rows] == [False] * 3 + [True] * 3 + [False] * 2
    assert "Listed here: 6 of 60 done, 2 of 9 failed;" in text


def test_charts_escape_their_labels():
    drawn = charts.bars("<t>", [charts.Bar("<b>", 1)])
    assert "<t>" not in drawn
    assert "&lt;b&gt;" in drawn
