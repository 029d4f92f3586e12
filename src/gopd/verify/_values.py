# Python values as JSON and back, each with its own type: what passes between a grader and a program in the sandbox.
# Imported by the package, and put before `_calls.py` as text inside the sandbox: it imports the standard library only.
#
# None, booleans, finite and other floats, text and lists are JSON's own. Everything else is an object with one key:
# {"int": hex} for integers beyond 64 bits (JSON's would be slow, and Python refuses more than 4300 digits),
# {"tuple": [...]}, {"set": [...]}, {"frozenset": [...]}, {"dict": [[key, value], ...]}, {"complex": [re, im]},
# {"bytes": hex}, and {"other": name} for a value of any other class, which equals nothing.
import hashlib
import json
from collections import Counter

_PLAIN = 1 << 63
_EQUAL_HASHES = 100


class Other:
    """A value of a class that is not carried over; equal to nothing, itself included."""

    __hash__ = None  # type: ignore[assignment]

    def __init__(self, name: str) -> None:
        self.name = name

    def __eq__(self, other: object) -> bool:
        return False


def encode(value: object) -> object:
    """The value as JSON carries it. Subclasses count as the class they come from."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int):
        return int(value) if -_PLAIN <= value < _PLAIN else {"int": hex(value)}
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, list):
        return [encode(item) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [encode(item) for item in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in value.items()]}
    if isinstance(value, (set, frozenset)):
        kind = "set" if isinstance(value, set) else "frozenset"
        return {kind: [encode(item) for item in value]}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": bytes(value).hex()}
    return {"other": type(value).__name__}


def decode(tree: object) -> object:
    """The value again. Raises ValueError for what `encode` does not write and for sets and dictionaries made
    slow, TypeError for a key that has no hash, OverflowError for a complex number of integers beyond all floats."""
    if isinstance(tree, list):
        return [decode(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if len(tree) != 1:
        raise ValueError("not an encoded value")
    ((kind, content),) = tree.items()
    if kind == "int":
        return int(content, 16)
    if kind == "tuple":
        return tuple(decode(item) for item in content)
    if kind == "set":
        return set(_hashed([decode(item) for item in content]))
    if kind == "frozenset":
        return frozenset(_hashed([decode(item) for item in content]))
    if kind == "dict":
        keys = _hashed([decode(key) for key, _ in content])
        return dict(zip(keys, [decode(item) for _, item in content]))  # noqa: B905
    if kind == "complex":
        return complex(*content)
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind == "other":
        return Other(content)
    raise ValueError("not an encoded value")


def _hashed(items: list[object]) -> list[object]:
    """The same. Raises ValueError when many share a hash: each would be compared with all of the others."""
    if len(items) > _EQUAL_HASHES and max(Counter(map(hash, items)).values()) > _EQUAL_HASHES:
        raise ValueError("items of equal hash")
    return items


def digest(value: object) -> str:
    """One text for all values that are equal to each other in Python (`1`, `1.0`, `True`), others for others."""
    return hashlib.sha256(_canonical(value).encode()).hexdigest()


def _canonical(value: object) -> str:
    if isinstance(value, (bool, int)):
        return hex(value)
    if isinstance(value, float):
        return hex(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, (list, tuple)):
        inside = ",".join(map(_canonical, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    if isinstance(value, (set, frozenset)):
        return "{" + ",".join(sorted(map(_canonical, value))) + "}"
    if isinstance(value, dict):
        return "{" + ",".join(sorted(f"{_canonical(k)}:{_canonical(v)}" for k, v in value.items())) + ":}"
    return repr(encode(value))
