"""Spec files: a whole `ModelSpec` as JSON, or the fields in which a model differs from a published configuration."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from exporters.configs import published_spec
from yolact_deploy.errors import SpecError
from yolact_deploy.spec import ModelSpec, read_spec_file

EXTENDS = "extends"


def load_spec(path: str | os.PathLike[str], *, on_note: Callable[[str], None] | None = None) -> ModelSpec:
    """The spec in a JSON file.

    With ``"extends": "<published name>"`` the file's other fields override those of that configuration: objects are
    merged field by field, lists and values are replaced. `name` defaults to the file's stem. `on_note` is told of every
    value that was derived and not written. Raises SpecError naming the file and the field.
    """
    fields = read_spec_file(path)
    stem = Path(path).stem
    notes: list[str] = []
    try:
        base_name = fields.pop(EXTENDS, None)
        if base_name is None:
            spec = ModelSpec.from_dict({"name": stem, **fields})
        else:
            spec = _extend(base_name, {"name": stem, **fields}, notes)
    except SpecError as exc:
        raise SpecError(f"the spec file {path}: {exc}") from exc
    if on_note is not None:
        for note in notes:
            on_note(note)
    return spec


def _extend(base_name: Any, fields: dict[str, Any], notes: list[str]) -> ModelSpec:
    if not isinstance(base_name, str):
        raise SpecError(f'"{EXTENDS}" must be the name of a published configuration, found {base_name!r}.')
    base = published_spec(base_name)
    merged = _merge(base.to_dict(), fields)
    names = fields.get("class_names")
    if isinstance(names, list) and "category_ids" not in fields:
        merged["category_ids"] = list(range(1, len(names) + 1))
        notes.append(f"category_ids not given with class_names: taken as 1..{len(names)}.")
    spec = ModelSpec.from_dict(merged)
    scales_given = isinstance(fields.get("priors"), Mapping) and "scales" in fields["priors"]
    if spec.input_size != base.input_size and spec.priors.use_pixel_scales and not scales_given:
        notes.append(
            f"input_size is {spec.input_size}, prior scales are still those of {base_name} at {base.input_size} "
            f"pixels: {[list(level) for level in spec.priors.scales]}."
        )
    return spec


def _merge(base: Mapping[str, Any], override: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in override.items():
        inherited = base.get(key)
        if isinstance(value, Mapping) and isinstance(inherited, Mapping):
            merged[key] = _merge(inherited, value)
        else:
            merged[key] = value
    return merged
