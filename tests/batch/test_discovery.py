from __future__ import annotations

import errno
import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom import dcmread

from usvol import loading
from usvol.batch.discovery import Found, Ignored, _identity, _natural, discover
from usvol.errors import ConfigError, ReadError
from usvol.formats import dicom_series


def still(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(seed).integers(0, 255, (16, 16), np.uint8)
    Image.fromarray(samples).save(path, "PNG")
    return path


def test_every_file_is_an_item_or_ignored_with_the_reason(tmp_path):
    root = tmp_path / "in"
    still(root / "b" / "liver.png")
    still(root / "a.png")
    (root / "table.csv").write_text("a,b\n")
    (root / "blob.xyz").write_bytes(bytes(range(256)))
    (root / ".hidden.png").write_bytes(b"x")
    (root / "torn.mp4").write_bytes(b"\x00" * 100)
    found = discover([root])
    assert [item.path.name for item in found.items] == ["a.png", "liver.png", "torn.mp4"]
    assert [item.order for item in found.items] == [0, 1, 2]
    left = {path.name: reason for path, reason in found.ignored}
    assert left == {
        "table.csv": Ignored.SIDECAR,
        "blob.xyz": Ignored.UNKNOWN,
        ".hidden.png": Ignored.HIDDEN,
    }
    assert len(found.items) + len(found.ignored) == sum(p.is_file() for p in root.rglob("*"))


def test_a_label_map_beside_its_volume_is_no_item_unless_named(tmp_path):
    for name in ("v.nii.gz", "v_labels.nii.gz", "w.mha", "w-seg.nrrd", "alone_mask.nii.gz", "_labels.nii"):
        (tmp_path / name).write_bytes(b"x" * 400)
    still(tmp_path / "v_mask.png")
    found = discover([tmp_path])
    assert {path.name for path, why in found.ignored if why is Ignored.LABELS} == {
        "v_labels.nii.gz",
        "w-seg.nrrd",
    }
    assert {item.path.name for item in found.items} == {
        "v.nii.gz", "w.mha", "alone_mask.nii.gz", "_labels.nii", "v_mask.png"
    }  # fmt: skip
    named = discover([tmp_path / "v_labels.nii.gz"]).items
    assert [item.path.name for item in named] == ["v_labels.nii.gz"]


def test_numbered_stills_are_one_item(tmp_path):
    root = tmp_path / "in"
    for index in range(4):
        still(root / "sweep" / f"frame_{index:03d}.png", index)
    still(root / "other.png")
    assert [item.path.name for item in discover([root]).items] == ["other.png", "sweep"]


@pytest.mark.parametrize("number", [0, 2])
def test_a_damaged_still_fails_the_cine_it_belongs_to(tmp_path, number):
    for index in range(4):
        still(tmp_path / f"frame_{index}.png", index)
    (tmp_path / f"frame_{number}.png").write_bytes(b"")
    found = discover([tmp_path])
    assert [item.path for item in found.items] == [tmp_path]
    with pytest.raises(ReadError, match=f"frame_{number}.png: it has no bytes"):
        loading.load(tmp_path)


@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (lambda paths: paths[2].unlink(), "slices 2 and 3 are 2 mm apart"),
        (lambda paths: paths[2].write_bytes(paths[2].read_bytes()[:-40]), "bytes"),
    ],
)
def test_damaged_slices_are_one_item_that_fails_with_the_reason(tmp_path, damage, cause, slices):
    damage(slices(tmp_path / "in"))
    found = discover([tmp_path / "in"])
    (item,) = found.items
    assert item.path == tmp_path / "in"
    assert not found.ignored
    with pytest.raises(ReadError, match=cause):
        loading.load(item.path)


def test_each_series_of_a_folder_is_an_item_of_its_own(tmp_path, slices):
    root = tmp_path / "in"
    slices(root, count=4)
    slices(root, series="1.2.4", prefix="b")
    scout, cine = slices(root, count=2, series="1.2.5", prefix="scout")
    dataset = dcmread(cine)
    dataset.SeriesInstanceUID, dataset.NumberOfFrames, dataset.PixelData = "1.2.3", 3, bytes(240)
    dataset.save_as(cine)
    (root / "notes.txt").write_text("x")
    found = discover([root])
    series, others = found.items[:2], found.items[2:]
    assert [item.path.name for item in others] == [scout.name, cine.name]
    assert found.ignored == ((root / "notes.txt", Ignored.SIDECAR),)
    assert sorted(loading.load(item.path).data.shape[2] for item in series) == [4, 6]
    assert [item.path.parent for item in series] == [root, root]
    assert all(re.fullmatch(r"series-[0-9a-f]{8}-[0-9a-f]{8}", item.id) for item in series)
    slices(root, series="1.2.6", prefix="later")
    assert {item.id for item in series} < {item.id for item in discover([root]).items}
    named = discover([series[0].path, root]).items
    assert [item.id for item in named if item.path == series[0].path] == [series[0].id]


@pytest.mark.parametrize("clock_s", [-3600, 3600])
def test_each_file_of_many_series_is_looked_at_a_few_times_whatever_the_clock_of_the_disk(
    tmp_path, clock_s, slices, monkeypatch
):
    root = tmp_path / "in"
    for series in range(12):
        slices(root, count=3, series=f"1.2.{series}", prefix=f"{series}-")
    os.utime(root, (time.time() + clock_s,) * 2)
    seen = []
    facts = dicom_series._facts
    monkeypatch.setattr(dicom_series, "_facts", lambda file: seen.append(file) or facts(file))
    monkeypatch.setattr(dicom_series, "_SETTLED_NS", 0)
    assert len(discover([root]).items) == 12
    assert len(seen) <= 3 * 36


def test_a_folder_of_two_series_cannot_be_loaded_but_says_how_each_can(tmp_path, slices):
    root = tmp_path / "in"
    slices(root, count=4)
    slices(root, series="1.2.4", prefix="b")
    with pytest.raises(ReadError, match=r"it holds 2 series\. To fix: .*in/series-.*\(6 files\)") as told:
        loading.load(root)
    assert "1.2.4" not in str(told.value)
    name = re.search(r"in/(series-\w+) \(4 files\)", str(told.value))
    assert name is not None
    scan = loading.load(root / name[1])
    assert scan.data.shape[2] == 4
    assert scan.source.path == root / name[1]
    assert loading.parts(root / name[1]) == tuple(root / f"{z}.dcm" for z in range(4))
    with pytest.raises(ReadError, match=r"no such series\. To fix: .*in/series-"):
        loading.probe(root / "series-00000000")


def test_a_damaged_slice_fails_its_own_series_and_no_other(tmp_path, slices):
    root = tmp_path / "in"
    slices(root, count=4)
    torn = slices(root, series="1.2.4", prefix="b")[-1]
    torn.write_bytes(torn.read_bytes()[:-40])
    found = discover([root])
    assert len(found.items) == 2
    (cause,) = causes(found).values()
    assert "bytes of samples are expected" in cause


def test_series_in_a_folder_whose_name_is_not_utf_8(tmp_path, slices):
    root = tmp_path / "\udce9"
    slices(root, count=4)
    slices(root, series="1.2.4", prefix="b")
    for item in discover([root]).items:
        assert loading.load(item.path).source.path == item.path


def test_stills_of_one_place_and_of_many_series_are_no_damaged_slices(tmp_path, slices):
    for number in range(4):
        slices(tmp_path / "many", count=1, series=f"1.2.{number}", prefix=f"{number}_")
        slices(tmp_path / "one", count=1, prefix=f"{number}_")
    assert len(discover([tmp_path]).items) == 8


def test_a_folder_with_one_dicom_file_is_no_name_for_it(tmp_path, slices):
    root = tmp_path / "in"
    (cine,) = slices(root, count=1)
    still(root / "key.png")
    slices(root / "patient" / "exam", count=1, prefix="clip")
    found = [item.path.relative_to(root).as_posix() for item in discover([root]).items]
    assert found == [cine.name, "key.png", "patient/exam/clip0.dcm"]
    assert loading.load(root / "patient" / "exam").kind is loading.load(cine).kind


def test_what_lies_in_the_folder_of_a_scan_is_not_lost(tmp_path, slices):
    root = tmp_path / "in"
    slices(root)
    slices(root / "second")
    still(root / "sub" / "report.png")
    still(root / "key.png")
    (root / "notes.txt").write_text("x")
    (root / "blob.xyz").write_bytes(bytes(range(256)))
    found = discover([root])
    names = ["in", "key.png", "second", "report.png"]
    assert [item.path.name for item in found.items] == names
    assert {(path.name, why) for path, why in found.ignored} == {
        ("notes.txt", Ignored.SIDECAR),
        ("blob.xyz", Ignored.UNKNOWN),
    }


def test_numbers_in_names_count_as_numbers(tmp_path):
    for name in ("clip_10.png", "clip_2.png", "clip_1.png", "Clip.png"):
        still(tmp_path / "in" / "x" / name)
    still(tmp_path / "in" / "x" / "zebra.png")
    names = [p.name for p in sorted((tmp_path / "in" / "x").iterdir(), key=_natural)]
    assert names == ["Clip.png", "clip_1.png", "clip_2.png", "clip_10.png", "zebra.png"]


@given(st.lists(st.text(st.characters(exclude_characters="/\0"), min_size=1), min_size=2))
def test_any_names_can_be_sorted(names):
    assert len(sorted(map(Path, names), key=_natural)) == len(names)


def test_ids_do_not_collide_and_do_not_depend_on_where_or_how(tmp_path):
    for place in ("here", "there"):
        root = tmp_path / place / "study"
        still(root / "a" / "x.png")
        still(root / "b" / "x.png")
        still(root / "b" / "x.jpg")
    here = discover([tmp_path / "here" / "study"]).items
    there = discover([tmp_path / "there" / "study"]).items
    assert [item.id for item in here] == [item.id for item in there]
    assert len({item.id for item in here}) == 3
    assert here[0].id.startswith("a_x-")
    folder = {item.path.name: item.id for item in discover([tmp_path / "here" / "study" / "b"]).items}
    single = discover([tmp_path / "here" / "study" / "b" / "x.png"]).items[0].id
    assert folder["x.png"] == single
    both = discover([tmp_path / "here" / "study", tmp_path / "there" / "study"]).items
    assert len({item.id for item in both}) == 6


def test_ids_are_safe_file_names(tmp_path):
    root = tmp_path / "in"
    still(root / "Größe µ ..".strip() / ("x" * 150 + ".png"))
    (item,) = discover([root]).items
    assert len(item.id) < 90
    assert item.id.isascii()
    assert not set(item.id) & set("/\\. ")


@given(st.lists(st.text("abAB._- 1ä", min_size=1, max_size=12).filter(lambda t: t.strip(". ")), unique=True))
def test_names_that_look_alike_get_ids_of_their_own(names):
    taken: set[str] = set()
    root = Path("/no/such/folder")
    for name in names:
        taken.add(_identity(root / name, root / name, taken))
    assert len(taken) == len(names)


def test_a_file_given_twice_counts_once(tmp_path, monkeypatch):
    still(tmp_path / "in" / "a.png")
    still(tmp_path / "in" / "b.png")
    monkeypatch.chdir(tmp_path)
    found = discover(["in/b.png", "in", "in/*.png", str(tmp_path / "in" / "a.png")])
    assert [item.path.name for item in found.items] == ["b.png", "a.png"]


def test_a_sidecar_named_outright_is_an_item_so_that_it_is_reported(tmp_path):
    (tmp_path / "labels.csv").write_text("a,b\n")
    found = discover([tmp_path, tmp_path / "labels.csv"])
    assert [item.path.name for item in found.items] == ["labels.csv"]
    assert not found.ignored


def test_the_output_folder_is_not_searched(tmp_path):
    still(tmp_path / "a.png")
    still(tmp_path / "out" / "items" / "x" / "preview.png")
    found = discover([tmp_path], exclude=tmp_path / "out")
    assert [item.path.name for item in found.items] == ["a.png"]


def test_results_of_an_earlier_run_are_left_out_and_said_so(tmp_path):
    still(tmp_path / "a.png")
    for name, schema in (("out", "usvol.run/1"), ("theirs", "other/1")):
        still(tmp_path / name / "items" / "x" / "preview.png")
        (tmp_path / name / "run.json").write_text(json.dumps({"schema": schema}))
    found = discover([tmp_path])
    assert [item.path.name for item in found.items] == ["a.png", "preview.png"]
    assert (tmp_path / "out", Ignored.RESULTS) in found.ignored
    with pytest.raises(ConfigError, match="holds the results of a run"):
        discover([tmp_path, tmp_path / "out"])
    named = discover([tmp_path / "out" / "items" / "x" / "preview.png"])
    assert [item.path.name for item in named.items] == ["preview.png"]


@pytest.fixture
def shut(monkeypatch):
    """Return a function that makes files and folders unreadable, also to root."""
    paths = set()

    def guarded(original):
        def method(self, *arguments, **options):
            if self in paths:
                raise PermissionError(errno.EACCES, "Permission denied", str(self))
            return original(self, *arguments, **options)

        return method

    for name in ("open", "iterdir"):
        monkeypatch.setattr(Path, name, guarded(getattr(Path, name)))
    return paths.add


def causes(found: Found) -> dict[str, str]:
    """Return why items cannot be read, by the names of their paths."""
    told = {}
    for item in found.items:
        try:
            loading.probe(item.path)
        except ReadError as error:
            told[item.path.name] = error.cause
    return told


def test_what_is_shut_fails_with_the_reason_and_the_others_go_on(tmp_path, shut):
    for name in ("a.png", "m.png", "shut/z.png", "z.png"):
        still(tmp_path / name)
    (tmp_path / "m.csv").write_text("a,b\n")
    for name in ("m.png", "m.csv", "shut"):
        shut(tmp_path / name)
    found = discover([tmp_path])
    assert [item.path.name for item in found.items] == ["a.png", "m.png", "shut", "z.png"]
    assert [path.name for path, _ in found.ignored] == ["m.csv"]
    assert causes(found) == dict.fromkeys(("m.png", "shut"), "it cannot be opened (Permission denied)")


def test_a_shut_file_beside_series_is_never_a_slice_less(tmp_path, shut, slices):
    slices(tmp_path)
    shut(slices(tmp_path, series="1.2.4", prefix="b")[-1])
    told = causes(discover([tmp_path]))
    assert len(told) == 3
    assert set(told.values()) == {"it cannot be opened (Permission denied)"}


def test_a_bug_met_in_one_file_does_not_stop_the_search(tmp_path, monkeypatch):
    for name in ("a/odd.png", "a/z.png", "b/frame_1.png", "b/frame_2.png"):
        still(tmp_path / name)

    def classify(path):
        if path.name in {"odd.png", "b"}:
            raise ValueError("a bug")
        return loading.classify(path)

    def scans_in(folder):
        return (folder,) if classify(folder) is loading.FileClass.SCAN else ()

    monkeypatch.setattr("usvol.batch.discovery.classify", classify)
    monkeypatch.setattr("usvol.batch.discovery.scans_in", scans_in)
    names = ["odd.png", "z.png", "frame_1.png", "frame_2.png"]
    assert [item.path.name for item in discover([tmp_path]).items] == names


def test_broken_links_fail_and_pipes_are_not_opened(tmp_path):
    still(tmp_path / "a.png")
    for name in ("gone_1.png", "gone_2.png", "gone.csv"):
        (tmp_path / name).symlink_to("nowhere.png")
    (tmp_path / "self.png").symlink_to("self.png")
    os.mkfifo(tmp_path / "pipe")
    found = discover([tmp_path, tmp_path / "gone_1.png"])
    assert [item.path.name for item in found.items] == ["a.png", "gone_1.png", "gone_2.png", "self.png"]
    assert {(path.name, why) for path, why in found.ignored} == {
        ("gone.csv", Ignored.SIDECAR),
        ("pipe", Ignored.UNKNOWN),
    }
    told = causes(found)
    assert told.keys() == {"gone_1.png", "gone_2.png", "self.png"}
    assert all("there is no such file" in cause for cause in told.values())


def test_links_in_a_circle_end_and_a_folder_linked_to_counts_once(tmp_path):
    still(tmp_path / "in" / "a" / "x.png")
    for name in ("loop_1", "loop_2"):
        (tmp_path / "in" / "a" / name).symlink_to(tmp_path / "in")
    (tmp_path / "in" / "b").symlink_to(tmp_path / "in" / "a")
    (item,) = discover([tmp_path / "in"]).items
    assert item.path == tmp_path / "in" / "a" / "x.png"


def test_a_name_too_long_for_the_disk_is_an_item_that_fails(tmp_path):
    found = discover([tmp_path / ("n" * 300)])
    assert list(causes(found).values()) == ["it cannot be opened (File name too long)"]


def test_a_name_that_begins_as_a_home_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    still(tmp_path / "~$lock.png")
    still(tmp_path / "home" / "own.png", 1)
    found = discover(["~$lock.png", "~/own.png"])
    assert [str(item.path) for item in found.items] == ["~$lock.png", str(tmp_path / "home" / "own.png")]
    with pytest.raises(ConfigError, match="does not exist"):
        discover(["~nobody-of-this-name/own.png"])


@pytest.mark.parametrize(
    ("given_path", "cause"), [("none.png", "does not exist"), ("*.xyz", "matches no file")]
)
def test_inputs_that_are_not_there_are_refused(tmp_path, given_path, cause):
    with pytest.raises(ConfigError, match=cause):
        discover([str(tmp_path / given_path)])
