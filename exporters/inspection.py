"""What a checkpoint is, as far as its tensors and its name tell."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from exporters.checkpoint import drop_old_names
from exporters.evidence import inferred, not_in_tensors
from exporters.inference import infer_architecture
from exporters.spec_choice import SpecChoice, choose_spec
from exporters.trainers.recognition import as_original
from exporters.weights_file import read_weights
from yolact_deploy.errors import CheckpointError, SpecError
from yolact_deploy.files import sha256_file
from yolact_deploy.spec_json import encode


def inspect_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """JSON-able facts: "architecture" as the tensors show it, and the "spec" where name or tensors decide it; where they
    do not, "spec" is None and "spec_error" says what to give. "inferred" has every value with the tensor it was seen in,
    "not_in_tensors" the others with where they come from. Raises CheckpointError for a file that is no YOLACT.
    """
    path = Path(path)
    stored, read_notes = read_weights(path)
    notes = list(read_notes)
    weights = as_original(stored, path)
    notes += weights.notes
    tensors = drop_old_names(weights.tensors, notes)
    found = infer_architecture(tensors, path, trainer=weights.trainer, conventions=weights.conventions)
    choice: SpecChoice | None = None
    spec_error = None
    try:
        choice = choose_spec(path, found)
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
        "trainer": found.trainer,
        "architecture": {"backbone": found.backbone, **encode(found)},
        "inferred": [evidence.to_dict() for evidence in inferred(found, tensors, weights)],
        "not_in_tensors": [evidence.to_dict() for evidence in not_in_tensors(choice)],
        "notes": notes,
        "spec": choice and choice.spec.to_dict(),
        "spec_error": spec_error,
    }
