"""Closed vendor volumes are named, with the export that can be read."""

from __future__ import annotations

import numpy as np
import pytest

from usvol.errors import UnsupportedFormatError
from usvol.formats import dicom, vendor

PIXELS = np.zeros((4, 6), np.uint8)


def test_kretz_volumes_are_named(tmp_path):
    path = tmp_path / "baby.vol"
    path.write_bytes(b"KRETZFILE 1.0   " + b"\0" * 300)
    assert vendor.sniff(path, path.read_bytes())
    assert dicom.sniff(path, path.read_bytes())
    for refuse in (vendor.probe, vendor.read, dicom.probe, dicom.read):
        with pytest.raises(UnsupportedFormatError, match=r"Kretz.*Cartesian.*NRRD"):
            refuse(path)


@pytest.mark.parametrize("sop_class", ["1.2.840.113543.6.6.1.3.10002", "1.3.46.670589.2.5.1.1"])
def test_philips_private_objects_are_named(tmp_path, dicom_files, sop_class):
    path = dicom_files.save(tmp_path / "a.dcm", dicom_files.build(PIXELS, SOPClassUID=sop_class))
    with pytest.raises(UnsupportedFormatError, match=r"Philips.*QLAB"):
        dicom.probe(path)


@pytest.mark.parametrize(
    ("group", "creator", "match"),
    [
        (0x200D, "Philips US Private 3D", "Philips"),
        (0x200D, "Philips US Imaging DD 036", "Philips"),
        (0x7FE1, "KRETZ_US", "Kretz"),
    ],
)
def test_private_volumes_are_named(tmp_path, dicom_files, group, creator, match):
    dataset = dicom_files.build(PIXELS)
    dataset.private_block(group, creator, create=True).add_new(0x01, "OB", b"\1\2\3\4")
    with pytest.raises(UnsupportedFormatError, match=match):
        dicom.read(dicom_files.save(tmp_path / "a.dcm", dataset))


def test_private_display_settings_do_no_harm(tmp_path, dicom_files):
    dataset = dicom_files.build(PIXELS)
    dataset.private_block(0x200D, "Philips US Imaging DD 113", create=True).add_new(0x02, "UL", 1)
    assert dicom.read(dicom_files.save(tmp_path / "a.dcm", dataset)).data.shape[-1] == 6


def test_the_real_philips_image_is_read(shared_data):
    assert dicom.probe(shared_data / "dicom" / "palette_2frame.dcm").frames == 2
