"""From a file that someone calls a checkpoint to a plain dictionary of named tensors."""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from yolact_deploy.errors import CheckpointError
from yolact_deploy.files import open_bytes
from yolact_deploy.text import printable

# Where training scripts put the weights inside a larger dictionary, and what they put before every name.
_WRAPPER_KEYS = ("state_dict", "model_state_dict", "model", "net", "weights")
_NAME_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
_NEVER_RUN = "semantic_seg_conv."  # a loss of training, which is no reason to refuse a network
_MAX_WRAPPERS = 3
_SNIFF_BYTES = 512
_CHUNK_BYTES = 1 << 20
_ZIP_MAGIC = b"PK\x03\x04"
_PICKLE_MAGIC = b"\x80"  # torch.save before version 1.6
_KNOWN_CONTENT = (
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 (Keras) file"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"ustar", "a tar archive; unpack it first"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
    (b"ftrt", "a TensorRT plan"),
)


def read_weights(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Name -> tensor as stored (any dtype, on the CPU), and notes of what was forgiven.

    No code in the file is run. Raises CheckpointError naming the likely cause when the file holds no state_dict.
    """
    _check_is_weights(path)
    notes: list[str] = []
    tensors = _unwrap(_load(path), path, notes)
    return _strip_prefixes(tensors, notes), tuple(notes)


def _check_is_weights(path: Path) -> None:
    try:
        with open_bytes(path) as stream:
            head = stream.read(_SNIFF_BYTES)
            size_bytes = stream.seek(0, os.SEEK_END)
    except IsADirectoryError as exc:
        raise CheckpointError(f"{path} is a folder. Give the .pth file in it.") from exc
    except FileNotFoundError as exc:
        raise CheckpointError(f"no such file: {path}.") from exc
    except OSError as exc:
        raise CheckpointError(f"can't read {path}: {exc.strerror or exc}.") from exc
    if not head:
        raise CheckpointError(f"{path} is empty (0 bytes). Copy or download it again.")
    if head.startswith(_ZIP_MAGIC):
        _check_zip(path, size_bytes)
    elif not head.startswith(_PICKLE_MAGIC):
        raise CheckpointError(f"{path} is no PyTorch checkpoint: {_describe_content(head)}")


def _check_zip(path: Path, size_bytes: int) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.rpartition("/")[2] for name in archive.namelist()]
    except Exception as exc:  # a damaged directory raises more than BadZipFile: UnicodeDecodeError, struct.error, ...
        raise _truncated(path, size_bytes) from exc
    if "constants.pkl" in names:
        raise CheckpointError(
            f"{path} is a TorchScript program, not a state_dict. Give the checkpoint that training saved, or save "
            "torch.jit.load(path).state_dict() with torch.save."
        )
    if "data.pkl" not in names:
        raise CheckpointError(
            f"{path} is a zip archive of {len(names)} files, none of them PyTorch's data.pkl. "
            "If the checkpoint was zipped, unpack it first."
        )
    _check_entries(path)


def _check_entries(path: Path) -> None:
    """Raise CheckpointError where an entry's bytes are not those of its CRC-32, which torch.load does not look at.

    A file whose every entry disagrees was saved without checksums (`torch.serialization.set_crc32_options(False)`).
    """
    damaged = []
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        for entry in entries:
            try:
                with archive.open(entry) as stream:
                    while stream.read(_CHUNK_BYTES):
                        pass
            except (
                Exception
            ):  # what a damaged header raises is not BadZipFile alone: UnicodeDecodeError, zlib.error, ...
                damaged.append(entry.filename)
    if damaged and len(damaged) < len(entries):
        raise CheckpointError(
            f"{path} is damaged: the bytes of {len(damaged)} of its {len(entries)} entries are not those that were saved, "
            f"first of {printable(damaged[0])} (its checksum differs). Get the file again."
        )


def _describe_content(head: bytes) -> str:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "it is a web page (HTML), most likely the download page and not the file behind it. Download it again."
    if text.startswith(b"version https://git-lfs"):
        return 'it is a Git LFS pointer, the file itself was not fetched. Run "git lfs pull" in its repository.'
    if head[8:9] == b"{" and head[:8].endswith(b"\x00\x00\x00"):
        return "it is a safetensors file. Save its tensors with torch.save to use it here."
    if head[:1] == b"\x08" and head[2:3] in (b"\x12", b":", b"B"):  # ir_version, then producer, graph or opset
        return "it looks like an ONNX model, which needs no export. Give the .pth file it was made from."
    for magic, description in _KNOWN_CONTENT:
        if magic in (head[: len(magic)], head[257 : 257 + len(magic)]):
            return f"it is {description}."
    return f"its first bytes {head[:8].hex(' ')} are neither a zip archive nor a pickle."


def _load(path: Path) -> Any:
    try:
        with warnings.catch_warnings():  # of unusual pickle versions, which then either load or fail
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:
        found = re.search(r"GLOBAL (\S+)", str(exc))
        if found is None:
            raise _truncated(path, path.stat().st_size) from exc
        raise CheckpointError(
            f"{path} holds more than tensors (found {found[1]}), and opening it would run code from the file. Where it "
            "was made, save the weights alone: torch.save(model.state_dict(), path)."
        ) from exc
    # Depending on where the damage is, torch raises nearly any built-in exception, AssertionError included.
    except Exception as exc:
        raise _truncated(path, path.stat().st_size) from exc


def _truncated(path: Path, size_bytes: int) -> CheckpointError:
    return CheckpointError(
        f"{path} is damaged or cut short ({size_bytes:,} bytes): an interrupted download, copy or save. "
        "Compare its size with the original's and get it again."
    )


def _unwrap(content: Any, path: Path, notes: list[str]) -> dict[str, Tensor]:
    for _ in range(_MAX_WRAPPERS):
        key = _wrapper_key(content)
        if key is None:
            break
        content = content[key]
        notes.append(f'the weights were taken from the entry "{key}" of the file.')
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, not a dictionary of named tensors. "
            "Save model.state_dict() with torch.save."
        )
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        keys = ", ".join(repr(key) for key in list(content)[:3]) or "nothing"
        raise CheckpointError(
            f"{path} holds a dictionary with no tensors (its entries: {keys}). Save model.state_dict() with torch.save."
        )
    odd = [name for name, tensor in tensors.items() if not _is_plain(tensor)]
    for name in [name for name in odd if _NEVER_RUN in name]:
        odd.remove(name)
        del tensors[name]
    if odd:
        raise CheckpointError(
            f"{path} holds {len(odd)} tensors that are sparse, nested or without values, the first is "
            f"{printable(odd[0])}. Save the weights as dense tensors: tensor.to_dense().cpu()."
        )
    if any(not isinstance(value, Tensor) for value in content.values()):
        others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
        notes.append(f"ignored {len(others)} entries that are no tensors ({', '.join(others[:3])}).")
    return tensors


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_nested and tensor.device.type == "cpu"


def _wrapper_key(content: Any) -> str | None:
    if not isinstance(content, Mapping):
        return None
    return next((key for key in _WRAPPER_KEYS if isinstance(content.get(key), Mapping)), None)


def _strip_prefixes(tensors: dict[str, Tensor], notes: list[str]) -> dict[str, Tensor]:
    stripped = True
    while stripped:
        stripped = False
        for prefix in _NAME_PREFIXES:
            if all(name.startswith(prefix) for name in tensors):
                tensors = {name[len(prefix) :]: tensor for name, tensor in tensors.items()}
                notes.append(f'removed the prefix "{prefix}" from every name.')
                stripped = True
    return tensors
