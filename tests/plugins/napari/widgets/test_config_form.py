from __future__ import annotations

from typing import Literal

import pytest
from pydantic import BaseModel, Field
from qtpy.QtWidgets import QCheckBox, QComboBox

pytest.importorskip("napari")

from usvol_napari.widgets.config_form import ConfigForm


class Config(BaseModel):
    threshold: float = Field(100.0, ge=0, le=255, description="grey level above which a sample is bright")
    member: int | None = Field(None, ge=0, description="one network of the ensemble")
    flips: bool = Field(True, description="average over mirrored copies")
    precision: Literal["f32", "bf16"] = Field("f32", description="arithmetic")
    weights: str = Field("shipped", description="name or file")
    window: tuple[int, int] = Field((4, 8), description="two sizes")


@pytest.fixture
def form(viewer_application, qtbot):
    form = ConfigForm(Config)
    qtbot.addWidget(form)
    return form


def test_every_field_has_a_control_of_its_name_and_help(form):
    assert list(form.controls) == list(Config.model_fields)
    for name, info in Config.model_fields.items():
        assert info.description in form.controls[name].toolTip()
    assert isinstance(form.controls["flips"], QCheckBox)
    assert isinstance(form.controls["precision"], QComboBox)
    assert form.controls["member"].placeholderText() == "not set"


def test_only_what_differs_from_the_defaults_is_a_setting(form):
    assert form.valid
    assert form.settings() == {}
    for name, value in (("threshold", 12.5), ("member", 3), ("flips", False), ("precision", "bf16")):
        form.set_value(name, value)
    config = Config.model_validate(form.settings())
    assert (config.threshold, config.member, config.flips, config.precision) == (12.5, 3, False, "bf16")
    form.set_value("window", (5, 6))
    assert Config.model_validate(form.settings()).window == (5, 6)
    form.set_value("member", None)
    assert "member" not in form.settings()


def test_what_is_wrong_is_said_in_words_until_it_is_right(form, qtbot):
    with qtbot.waitSignal(form.changed):
        form.set_value("threshold", 300)
    assert not form.valid
    assert form.problem.text().startswith("threshold: Input should be less than or equal to 255")
    form.set_value("threshold", "many")
    assert "threshold: Input should be a valid number" in form.problem.text()
    form.set_value("threshold", 30)
    assert form.valid
