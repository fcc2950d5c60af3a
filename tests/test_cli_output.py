from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from usvol.cli_output import print_json


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_any_name_is_printed_as_strict_json(monkeypatch, encoding):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    print_json({"path": Path("in/\udce9.png"), "half": "\ud83d", "é": "胎児"})
    sys.stdout.flush()
    text = raw.getvalue().decode(encoding)
    assert json.loads(text) == {"path": "in/\ufffd.png", "half": "\ufffd", "é": "胎児"}
    assert ("胎児" in text) == (encoding == "utf-8")
