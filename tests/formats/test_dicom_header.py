"""DICOM headers that are cut, damaged or private: the error names the attribute, never what it holds."""

from __future__ import annotations

import traceback
from itertools import product

import numpy as np
import pytest

from usvol.errors import ReadError, TruncatedFileError, UnknownFormatError, UsvolError
from usvol.formats import dicom

CINE = np.zeros((4, 30, 40), np.uint8)
PLACEHOLDER = "87654321"


FORMS = ("DOE^JANE", "D'O \"E.^", "19480317")
NUMBERS = (
    "NumberOfFrames",
    "FrameTime",
    "CineRate",
    "RescaleSlope",
    "PixelSpacing",
    "PhotometricInterpretation",
)


@pytest.mark.parametrize("written", list(product(NUMBERS, FORMS)), ids=" ".join)
def test_values_are_not_quoted(tmp_path, dicom_files, caplog, capfd, recwarn, written):
    keyword, form = written
    attributes = {"FrameTime": 40, keyword: PLACEHOLDER}
    if keyword == "PixelSpacing":
        attributes[keyword] = [PLACEHOLDER, PLACEHOLDER]
    if keyword == "RescaleSlope":
        attributes["RescaleIntercept"] = 0
    path = dicom_files.save(tmp_path / "a.dcm", dicom_files.build(CINE, **attributes))
    content = path.read_bytes()
    assert PLACEHOLDER.encode() in content
    path.write_bytes(content.replace(PLACEHOLDER.encode(), form.encode()))
    for open_ in (dicom.probe, dicom.read):
        try:
            source = open_(path).source
            told = " ".join([*source.warnings, source.calibration.reason])
        except UsvolError as error:
            told = "".join(traceback.format_exception(error)).replace(str(path), "")
        assert form not in told
        assert "JANE" not in told
    assert not caplog.records
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


def test_a_value_of_the_wrong_length_is_told_without_it(tmp_path, dicom_files, caplog):
    path = dicom_files.save(tmp_path / "a.dcm", dicom_files.build(CINE))
    content = path.read_bytes()
    place = content.index(b"\x28\x00\x10\x00US\x02\x00") + 6  # Rows, two bytes long
    path.write_bytes(content[:place] + b"\x03\x00J" + content[place + 2 :])
    with pytest.raises(ReadError) as caught:
        dicom.probe(path)
    assert "b'" not in str(caught.value)
    assert not caplog.records


def test_a_cut_header_is_truncated(tmp_path, dicom_files):
    path = dicom_files.save(tmp_path / "a.dcm", dicom_files.build(CINE))
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"\x28\x00\x02\x00US")])
    with pytest.raises(TruncatedFileError, match="within its header"):
        dicom.probe(path)


@pytest.mark.parametrize("content", [bytes(5000), bytes(range(7, 256)) * 20])
def test_other_bytes_under_the_name_of_dicom(tmp_path, content):
    path = tmp_path / "a.dcm"
    path.write_bytes(content)
    with pytest.raises(UnknownFormatError, match="not DICOM"):
        dicom.probe(path)
