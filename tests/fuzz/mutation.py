"""Changes to bytes, texts and JSON values: what happens to files by accident, and what is done to them on purpose."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

ODD_INTEGERS = (
    *(0, 1, 2, 3, 4, 7, 8, 16, 63, 64, 65, 100, 127, 128, 255, 256, 1000, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1),
    *(2**31, 2**32 - 1, 2**32, 2**53, 2**62, 2**63 - 1, 2**63, 2**64 - 1, 10**17, 10**19, 10**400),
)
ODD_FLOATS = (0.0, -0.0, 0.5, 1.0, 1e-320, 1e-30, 1e30, 1e308, float("nan"), float("inf"), float("-inf"))
ODD_TEXTS = (
    *(
        "",
        " ",
        "\n",
        "\x00",
        "\x1b[31mred",
        "two\nlines",
        "\x9b31m",
        "\u202eesrever",
        "\u2028",
        "\ud800",
        "\udcff",
        "\ufeff",
    ),
    *(
        "Käfer 甲虫",
        "emoji 🚲",
        "é",
        "[red]",
        ":x:",
        "{0}",
        "%s%n",
        "$HOME",
        "`id`",
        "'",
        '"',
        "\\",
        "a" * 300,
        "a" * 20_000,
    ),
    *(
        "/etc/passwd",
        "../../../etc/passwd",
        "..\\..\\x",
        "C:\\x",
        "\\\\host\\x",
        "~",
        ".",
        "..",
        "/",
        "//",
        "a/../b",
        "a/",
    ),
    *(
        "CON",
        "-rf",
        "--help",
        "http://x/y",
        "file:///etc/passwd",
        "1",
        "-1",
        "1e999",
        "nan",
        "true",
        "null",
        "0x10",
        "٣",
    ),
    *(
        "sm86",
        "sm999999",
        "fp32",
        "int8",
        "rgb",
        "softmax",
        "fast",
        "resnet",
        "darknet",
        "__class__",
        "__proto__",
        "schema",
    ),
)
_MOST_BYTES = 1 << 20  # of an input: larger ones cost time and find nothing else

Edit = Callable[[random.Random, bytearray, Sequence[bytes]], None]


def change_bytes(rng: random.Random, data: bytes, others: Sequence[bytes] = ()) -> bytes:
    """`data` after 1 to 8 changes, mostly few; parts of `others` may come in."""
    changed = bytearray(data)
    for _ in range(min(8, 1 + int(rng.expovariate(0.8)))):
        rng.choice(_EDITS)(rng, changed, others)
    return bytes(changed[:_MOST_BYTES])


def _flip(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    if data:
        data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _cut(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _leave_out(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    start, end = _part(rng, data)
    del data[start:end]


def _repeat(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    start, end = _part(rng, data)
    data[end:end] = data[start:end] * rng.choice((1, 1, 2, 50))


def _move(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    start, end = _part(rng, data)
    moved = data[start:end]
    del data[start:end]
    place = rng.randrange(len(data) + 1)
    data[place:place] = moved


def _overwrite(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    start, end = _part(rng, data)
    filler = rng.choice((b"\0", b"\xff", b"A", rng.randbytes(4)))
    data[start:end] = (filler * (end - start))[: end - start]


def _insert(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    place = rng.randrange(len(data) + 1)
    data[place:place] = rng.randbytes(rng.randint(1, 16))


def _number(rng: random.Random, data: bytearray, _: Sequence[bytes]) -> None:
    """An integer that lies: a size, a count or a position of most formats."""
    width = rng.choice((1, 2, 4, 8))
    if len(data) >= width:
        place = rng.randrange(len(data) - width + 1)
        value = rng.choice(ODD_INTEGERS) % (1 << 8 * width)
        data[place : place + width] = value.to_bytes(width, rng.choice(("little", "big")))


def _mix(rng: random.Random, data: bytearray, others: Sequence[bytes]) -> None:
    other = rng.choice(others) if others else b""
    start, end = _part(rng, other)
    place, stop = _part(rng, data)
    data[place:stop] = other[start:end]


_EDITS: tuple[Edit, ...] = (
    *(_flip, _flip, _set, _cut, _leave_out, _repeat, _move, _overwrite, _insert, _number, _number, _mix),
)


def _part(rng: random.Random, data: bytes | bytearray) -> tuple[int, int]:
    """Mostly a small one."""
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + int(rng.paretovariate(0.5)))


def odd_text(rng: random.Random) -> str:
    """A text that someone did not think of."""
    if rng.random() < 0.7:
        return rng.choice(ODD_TEXTS)
    return "".join(
        chr(rng.choice((rng.randrange(128), rng.randrange(0x3000), rng.randrange(0x110000)))) for _ in range(6)
    )


def odd_value(rng: random.Random, depth: int = 2) -> Any:
    """A JSON value that someone did not think of."""
    kind = rng.randrange(8 if depth else 6)
    if kind == 0:
        return rng.choice((None, True, False))
    if kind <= 2:
        return rng.choice((1, -1)) * rng.choice(ODD_INTEGERS)
    if kind == 3:
        return rng.choice((1, -1)) * rng.choice(ODD_FLOATS)
    if kind <= 5:
        return odd_text(rng)
    parts = [odd_value(rng, depth - 1) for _ in range(rng.choice((0, 1, 2, 4)))]
    return parts if kind == 6 else {odd_text(rng): part for part in parts}


def change_json(rng: random.Random, value: Any) -> Any:
    """A copy of a JSON value after 1 to 4 changes, mostly one: at any place, to something odd, or to what stands elsewhere."""
    changed = [copy.deepcopy(value)]  # so that the whole can be replaced as well
    for _ in range(min(4, 1 + int(rng.expovariate(1.2)))):
        places = list(_places(changed))
        holder, key = rng.choice(places)
        kind = rng.randrange(10)
        if kind == 0 and holder is not changed:
            del holder[key]
        elif kind == 1:
            other, name = rng.choice(places)
            holder[key] = copy.deepcopy(other[name])
        elif kind == 2:
            holder[key] = [holder[key]] if rng.random() < 0.5 else {odd_text(rng): holder[key]}
        elif kind == 3 and isinstance(holder, dict):
            holder[odd_text(rng)] = holder.pop(key)
        elif kind == 4 and isinstance(holder[key], list):
            holder[key] = rng.choice(([], holder[key] * 2, holder[key][::-1], holder[key][:1] * rng.choice((2, 100))))
        elif kind == 5 and isinstance(holder[key], (int, float)):
            holder[key] = rng.choice(
                (holder[key] + 1, holder[key] - 1, -holder[key], str(holder[key]), bool(holder[key]))
            )
        else:
            holder[key] = odd_value(rng)
    return changed[0]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(list or object, index or key) of everything in `value`."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], (dict, list)):
            yield from _places(value[key])


def json_bytes(rng: random.Random, value: Any) -> bytes:
    """A JSON text of `value`: as it is usually written, or as it may be."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5, indent=rng.choice((None, 2)))
    if rng.random() < 0.05 and '"' in text:  # a key twice
        text = text.replace("{", '{"name": 1, ', 1)
    encoding = rng.choice(("utf-8",) * 20 + ("utf-8-sig", "utf-16", "latin-1"))
    if encoding == "utf-8":
        return text.encode("utf-8", "surrogatepass")
    return text.encode(encoding, "replace")


def json_mutation(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """JSON files with other values, and sometimes with other bytes."""
    seed = rng.choice(seeds)
    if rng.random() < 0.15:
        return change_bytes(rng, seed, seeds)
    changed = json_bytes(rng, change_json(rng, json.loads(seed)))
    return change_bytes(rng, changed, seeds) if rng.random() < 0.1 else changed


def bytes_mutation(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """Files with other bytes; a few are nothing but noise."""
    if rng.random() < 0.02:
        return rng.randbytes(rng.choice((0, 1, 4, 64, 1000)))
    return change_bytes(rng, rng.choice(seeds), seeds)
