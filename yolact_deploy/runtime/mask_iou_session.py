"""The mask-IoU network that an exported YOLACT++ carries in its metadata, or its plan beside it, in onnxruntime."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any

from yolact_deploy.arrays import FloatArray
from yolact_deploy.errors import EngineError, SpecError
from yolact_deploy.mask_iou import MaskIouModel
from yolact_deploy.spec import MASK_IOU_METADATA_KEY, ModelSpec

_EXPORT_AGAIN = "Export it again with `yolact-deploy export`."


def extract_mask_iou(
    metadata: Mapping[str, str],  # of the exported ONNX
    spec: ModelSpec,
    source: str,  # names the file in errors
) -> bytes | None:
    """The network's own ONNX file; None for a model whose masks keep their box's score.

    Raises SpecError when the spec asks for one and the metadata has none, or one that is damaged.
    """
    if not spec.mask_iou_layers:
        return None
    encoded = metadata.get(MASK_IOU_METADATA_KEY)
    if encoded is None:
        raise SpecError(
            f"{source} is a YOLACT++ by its spec, but carries no mask-IoU network ({MASK_IOU_METADATA_KEY!r}), so its "
            f"masks can't be scored. {_EXPORT_AGAIN}"
        )
    try:
        return base64.b64decode(encoded, validate=True)
    except binascii.Error as exc:
        raise SpecError(f"the mask-IoU network in {source} is damaged: {exc}. {_EXPORT_AGAIN}") from exc


def open_mask_iou(
    content: bytes,  # an ONNX file
    spec: ModelSpec,
    source: str,  # names the file in errors
    open_session: Callable[[bytes], Any],  # makes an onnxruntime session of an ONNX file's content
) -> MaskIouModel:
    """The network as a function of soft masks [n, Hp, Wp].

    Raises SpecError when it can't be opened, or is of other sizes than the spec says.
    """
    try:
        session = open_session(content)
    except Exception as exc:  # onnxruntime's exception classes share no public base
        raise SpecError(f"onnxruntime can't open the mask-IoU network in {source}: {exc}. {_EXPORT_AGAIN}") from exc
    found = [tuple(tensor.shape[1:]) for tensor in (*session.get_inputs(), *session.get_outputs())]
    expected = [(spec.proto_size, spec.proto_size), (spec.num_classes,)]
    if found != expected:
        raise SpecError(
            f"the mask-IoU network in {source} maps {found[0]} to {found[-1]}, its spec makes it {expected[0]} to "
            f"{expected[1]}. {_EXPORT_AGAIN}"
        )

    def judge(masks: FloatArray) -> FloatArray:
        try:
            (result,) = session.run(None, {session.get_inputs()[0].name: masks})
        except Exception as exc:  # as above
            raise EngineError(f"onnxruntime failed to score {len(masks)} masks with {source}: {exc}") from exc
        judged: FloatArray = result
        return judged

    return judge
