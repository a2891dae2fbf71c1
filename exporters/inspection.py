"""What a checkpoint is, as far as its tensors and its name tell."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from exporters.checkpoint import drop_old_names
from exporters.inference import infer_architecture
from exporters.spec_choice import choose_spec
from exporters.weights_file import read_weights
from yolact_deploy.errors import CheckpointError, SpecError
from yolact_deploy.files import sha256_file
from yolact_deploy.spec_json import encode


def inspect_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """JSON-able facts: "architecture" as the tensors show it, and the "spec" where name or tensors decide it; where they
    do not, "spec" is None and "spec_error" says what to give. Raises CheckpointError for a file that is no YOLACT.
    """
    path = Path(path)
    stored, read_notes = read_weights(path)
    notes = list(read_notes)
    tensors = drop_old_names(stored, notes)
    found = infer_architecture(tensors, path)
    spec = spec_error = None
    try:
        choice = choose_spec(path, found)
        spec = choice.spec.to_dict()
        notes[:0] = choice.notes
    except (CheckpointError, SpecError) as exc:
        spec_error = str(exc)
    return {
        "kind": "checkpoint",
        "path": str(path),
        "bytes": path.stat().st_size,
        "sha256": sha256_file(path),
        "num_tensors": len(stored),
        "num_parameters": sum(tensor.numel() for tensor in tensors.values()),
        "architecture": {"backbone": found.backbone, **encode(found)},
        "notes": notes,
        "spec": spec,
        "spec_error": spec_error,
    }
