"""A form made from a task's ``Config``: the same names, the same help, checked as it is filled in."""

from __future__ import annotations

import types
import typing
from typing import Any, Literal, Union

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QCheckBox, QComboBox, QFormLayout, QLabel, QLineEdit, QWidget

from usvol_napari.widgets.signals import Signal


class ConfigForm(QWidget):
    """One control for each field; ``changed`` tells of edits."""

    changed = Signal()

    def __init__(self, model: type[BaseModel], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.model = model
        layout = QFormLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.ExpandingFieldsGrow)
        self.controls: dict[str, QWidget] = {}
        for name, info in model.model_fields.items():
            control = self._control(info)
            label = QLabel(name.replace("_", " "))
            for part in (control, label):
                part.setToolTip(f"<p>{info.description or name}</p>")
            control.setObjectName(name)
            self.controls[name] = control
            layout.addRow(label, control)
        self.problem = QLabel()
        self.problem.setWordWrap(True)
        self.problem.setTextFormat(Qt.TextFormat.PlainText)
        self.problem.setStyleSheet("color: #ff8f6b")
        layout.addRow(self.problem)
        self._begun = {name: self._value(name) for name in self.controls}
        self._check()

    def settings(self) -> dict[str, Any]:
        """Return the fields that differ from their defaults, as ``--set`` would give them."""
        values = {name: self._value(name) for name in self.controls}
        return {name: value for name, value in values.items() if value != self._begun[name]}

    @property
    def valid(self) -> bool:
        """Whether the task would take the settings."""
        return not self.problem.text()

    def set_value(self, name: str, value: Any) -> None:
        """Fill in one field."""
        control = self.controls[name]
        if isinstance(control, QCheckBox):
            control.setChecked(bool(value))
        elif isinstance(control, QComboBox):
            control.setCurrentText(str(value))
        elif isinstance(control, QLineEdit):
            control.setText(_text(value))

    def _control(self, info: FieldInfo) -> QWidget:
        default, choices = _default(info), _choices(info.annotation)
        if info.annotation is bool:
            box = QCheckBox()
            box.setChecked(bool(default))
            box.toggled.connect(self._check)
            return box
        if choices:
            menu = QComboBox()
            menu.addItems([str(choice) for choice in choices])
            menu.setCurrentText(str(default))
            menu.currentTextChanged.connect(self._check)
            return menu
        line = QLineEdit(_text(default))
        line.setPlaceholderText("not set" if _optional(info.annotation) else "")
        line.textChanged.connect(self._check)
        return line

    def _value(self, name: str) -> Any:
        control, annotation = self.controls[name], self.model.model_fields[name].annotation
        if isinstance(control, QCheckBox):
            return control.isChecked()
        if isinstance(control, QComboBox):
            return next(c for c in _choices(annotation) if str(c) == control.currentText())
        assert isinstance(control, QLineEdit)
        text = control.text().strip()
        if annotation is str:
            return text
        try:
            return yaml.safe_load(text) if text else None
        except yaml.YAMLError:
            return text  # what is wrong with it, the model says

    def _check(self) -> None:
        try:
            self.model.model_validate(self.settings())
            self.problem.setText("")
        except ValidationError as error:
            self.problem.setText("\n".join(_sentence(item) for item in error.errors()))
        self.problem.setVisible(bool(self.problem.text()))
        self.changed.emit()


def _sentence(item: Any) -> str:
    place = ".".join(str(part) for part in item["loc"]) or "settings"
    return f"{place.replace('_', ' ')}: {item['msg']}"


def _default(info: FieldInfo) -> Any:
    return info.get_default(call_default_factory=True)


def _text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return yaml.safe_dump(to_jsonable_python(value), default_flow_style=True).split("\n...")[0].strip()


def _choices(annotation: Any) -> tuple[Any, ...]:
    return typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()


def _optional(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (Union, types.UnionType) and type(None) in typing.get_args(
        annotation
    )
