"""Model files as accidents and attackers make them."""

import hashlib
import io
import json
import struct
import zipfile
from typing import Any

import numpy as np

from grpo_core.saving import model_file

_VALUES: list[Any] = [
    *(None, True, 0, -1, 1, 2**31, 2**63, 10**30, 1e308, -0.0, "", "x", "\ud800", "a" * 5000, "nan", "0x1p+5000"),
    *([], {}, [[]], [0], [-1], [2**40, 2**40], {"type": "Discrete", "n": 0}, {"a": {"a": {"a": {}}}}),
]
_ARRAY_HEADS = [
    "if 1:\n    x\n  y\n",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "-" * 900 + "1,)}",
    "(" * 900,
    "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
    "{'descr': '<f8', 'fortran_order': True, 'shape': (99999999999,), }",
    "{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-4,), }",
    "\0" * 50,
    "__import__('os').system('true')",
]
_NAMES = ["../x", "/etc/passwd", "weights/", "", "a\0b", "weights/../grpo_meta.json", "W" * 300, "optimizer/0/x.npy"]


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Damage a file in one to three places, without mending its checksums."""
    damaged = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        if not damaged:
            break
        # Half of the places lie where a zip describes its content.
        size = len(damaged)
        place = int(rng.integers(size)) if rng.random() < 0.5 else int(rng.integers(max(0, size - 3000), size))
        n = int(rng.integers(1, 9))
        match rng.integers(6):
            case 0:
                damaged[place] ^= 1 << int(rng.integers(8))
            case 1:
                damaged[place : place + n] = rng.bytes(n)
            case 2:
                del damaged[place : place + n]
            case 3:
                damaged[place:place] = rng.bytes(n)
            case 4:
                other = int(rng.integers(size))
                damaged[place : place + 64] = damaged[other : other + 64]
            case 5:
                del damaged[place:]
    return bytes(damaged)


def craft(content: bytes, rng: np.random.Generator) -> bytes:
    """Forge a file whose checksums fit again."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    meta = json.loads(members.pop(model_file.META_MEMBER))
    name = str(rng.choice(list(members)))
    match rng.integers(5):
        case 0 | 1:
            _change(meta, rng)
        case 2:
            head = _ARRAY_HEADS[rng.integers(len(_ARRAY_HEADS))].encode()
            members[name] = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + rng.bytes(16)
        case 3:
            file = io.BytesIO()
            dtype = str(rng.choice(["<f8", "<f4", "<f2", "<i8", "|b1", "<c8", "<U3", ">f4"]))
            shape = tuple(int(n) for n in rng.integers(0, 5, rng.integers(0, 4)))
            with np.errstate(all="ignore"):
                array = (np.ones(shape) * float(rng.choice([1.0, 1e300, np.nan]))).astype(dtype)
            np.save(file, array)
            members[name] = file.getvalue()
        case 4:
            members[_NAMES[rng.integers(len(_NAMES))]] = members.pop(name)
    if rng.random() < 0.9:
        meta["sha256"] = {name: hashlib.sha256(member).hexdigest() for name, member in members.items()}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, member in {model_file.META_MEMBER: json.dumps(meta).encode(), **members}.items():
            archive.writestr(zipfile.ZipInfo(name), member)
    forged = bytearray(file.getvalue())
    if rng.random() < 0.1:  # the numbers at the end of the directory
        place = len(forged) - int(rng.integers(1, model_file.N_TAIL_BYTES))
        forged[place : place + 2] = rng.bytes(2)
    return bytes(forged)


def _change(meta: dict[str, Any], rng: np.random.Generator) -> None:
    """Replace or remove one value anywhere in the metadata."""
    node: Any = meta
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = keys[rng.integers(len(keys))]
        child = node[key]
        if isinstance(child, dict | list) and child and rng.random() < 0.8:
            node = child
            continue
        if rng.random() < 0.2:
            del node[key]
        else:
            node[key] = _VALUES[rng.integers(len(_VALUES))]
        return
