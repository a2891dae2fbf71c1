"""Head tensors to detections: the public names of the NumPy reference, the oracle for every other implementation."""

from __future__ import annotations

from yolact_deploy.reference.detections import RawDetections
from yolact_deploy.reference.postprocess import assemble_masks, decode, detect, softmax

__all__ = ["RawDetections", "assemble_masks", "decode", "detect", "softmax"]
