"""The one unpickler for files from elsewhere: plain values and NumPy arrays, nothing that can run code.

Published data sets hold pickles (PathVQA's question lists, object arrays in CVPR-25 npz files), and
a pickle is a program. Here opcodes and names are allowed one by one, and what they build are
stand-ins that are checked before any array is made: no class of the file's choosing is ever called,
and sizes are compared with the bytes that are there. Left out: classes, structured arrays, dates.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ibisagent.errors import InputError

MAX_PICKLE_BYTES = 256 * 1024**2
MAX_ARRAYS_BYTES = 4 * 1024**3  # of all arrays in an npz, unpacked

_OPCODES_ALLOWED = """
    PROTO FRAME STOP MARK POP POP_MARK MEMOIZE PUT BINPUT LONG_BINPUT GET BINGET LONG_BINGET
    NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8
    UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8
    EMPTY_LIST APPEND APPENDS LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    EMPTY_DICT DICT SETITEM SETITEMS EMPTY_SET ADDITEMS FROZENSET
    GLOBAL STACK_GLOBAL REDUCE BUILD
"""
_OPCODES = frozenset(_OPCODES_ALLOWED.split())
_KINDS = frozenset("biufcSUO")  # of dtypes: bool, numbers, bytes, text, objects
_RULE = "a pickle holds only plain values and NumPy arrays"
_FIX = "ask its source for JSON or plain arrays, and do not open it in another way"


def load_pickle(data: bytes) -> Any:
    """The value of a pickle: None, bool, numbers, text, bytes, list, tuple, dict, set, NumPy arrays.

    Raises InputError for anything else, for damage, and for more than `MAX_PICKLE_BYTES`.
    """
    if len(data) > MAX_PICKLE_BYTES:
        raise InputError(f"a pickle has at most {MAX_PICKLE_BYTES // 1024**2} MB", f"{len(data)} bytes", _FIX)
    try:
        _check_opcodes(data)
        return _finished(_Unpickler(io.BytesIO(data), encoding="latin1").load(), {})
    except InputError:
        raise
    except RecursionError:
        raise InputError(_RULE, "values nested too deeply", _FIX) from None
    # a damaged pickle can fail in any of these ways within the standard library
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, EOFError, OverflowError) as error:
        raise InputError("a pickle is whole", type(error).__name__, "copy it again from its source") from None
    except (pickle.UnpicklingError, MemoryError, ImportError) as error:
        raise InputError("a pickle is whole", type(error).__name__, "copy it again from its source") from None


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an npz file by name; object arrays through `load_pickle`.

    Raises InputError for what is no npz, holds anything but arrays, is damaged, or is larger than
    `MAX_ARRAYS_BYTES`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [info for info in archive.infolist() if info.filename.endswith(".npy")]
            whole = sum(info.file_size for info in members)
            if whole > MAX_ARRAYS_BYTES:
                raise InputError(
                    f"the arrays of a file have at most {MAX_ARRAYS_BYTES // 1024**2} MB",
                    f"{whole} bytes",
                    "split it",
                )
            return {info.filename[: -len(".npy")]: _read_member(archive, info) for info in members}
    except InputError:
        raise
    except (OSError, zipfile.BadZipFile, ValueError, EOFError, NotImplementedError) as error:
        raise InputError(
            "an npz file is a whole zip archive of arrays", type(error).__name__, "copy it again"
        ) from None


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(info) as file:
        version = npy.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError
        read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        count = int(np.prod(shape, dtype=object))
        if dtype.hasobject:
            array = load_pickle(file.read())
            if not isinstance(array, np.ndarray) or array.shape != shape:
                raise InputError("an object array has the shape that its header says", shape, "save it again")
            return array
        if dtype.kind not in _KINDS or dtype.names:
            raise InputError("arrays hold numbers or text", dtype.kind, "save them as plain arrays")
        data = file.read()
    if count * dtype.itemsize != len(data):
        raise ValueError
    return np.frombuffer(data, dtype, count).reshape(shape, order="F" if fortran else "C")


# --- pickles ----------------------------------------------------------------------------------


def _check_opcodes(data: bytes) -> None:
    """Refuse other opcodes, and memo numbers beyond what a writer needs (they reserve memory)."""
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data), start=1):
        if opcode.name not in _OPCODES:
            raise InputError(_RULE, f"the operation {opcode.name}", _FIX)
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= int(argument or 0) <= count:
            raise InputError(_RULE, "a memo number out of order", _FIX)


class _Unpickler(pickle.Unpickler):
    """Names resolve to the stand-ins below and to nothing else."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        module_name = {"__builtin__": "builtins"}.get(module_name, module_name)
        module_name = module_name.replace("numpy.core", "numpy._core")
        found = _NAMES.get((module_name, global_name))
        if found is None:
            raise InputError(_RULE, f"{module_name}.{global_name}"[:80], _FIX)
        return found


class _ArrayType:
    """Stands for the class numpy.ndarray; it cannot be called."""


class _Dtype:
    """Stands for a dtype: `numpy.dtype("f8", False, True)`, then its byte order as state."""

    def __init__(self, text: object, *flags: object) -> None:
        if not isinstance(text, str) or not all(isinstance(flag, bool | int) for flag in flags):
            raise TypeError("a dtype has a text")
        self.dtype = np.dtype(text)
        if self.dtype.kind not in _KINDS or self.dtype.names or self.dtype.subdtype:
            raise InputError("arrays in a pickle hold plain values", text[:20], _FIX)

    def __setstate__(self, state: Any) -> None:
        if state[3] is not None or state[4] is not None:
            raise InputError("arrays in a pickle hold plain values", "a structured dtype", _FIX)
        if self.dtype.kind in "SU":  # the text of the dtype has no length: the state has
            self.dtype = np.dtype(f"{self.dtype.kind}{int(state[5]) // (4 if self.dtype.kind == 'U' else 1)}")
        order = _text(state[1])
        self.dtype = self.dtype.newbyteorder("<" if order == "<" else ">" if order == ">" else "=")


class _Array:
    """Stands for an array until its parts are known to fit together."""

    def __init__(self) -> None:
        self.array: NDArray[Any] | None = None
        self.items: list[Any] = []

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.fill(shape, dtype, "F" if fortran else "C", data)

    def fill(self, shape: Any, dtype: Any, order: str, data: Any) -> None:
        if not isinstance(dtype, _Dtype) or not all(isinstance(n, int) and n >= 0 for n in shape):
            raise TypeError("an array has a shape and a dtype")
        count = int(np.prod(shape, dtype=object))
        if dtype.dtype.hasobject:
            if not isinstance(data, list) or len(data) != count:
                raise ValueError("as many objects as the shape says")
            self.items = data
            self.array = np.empty(shape, object)  # NumPy lists objects row by row in either order
            return
        data = data.encode("latin1") if isinstance(data, str) else bytes(data)
        if len(data) != count * dtype.dtype.itemsize:
            raise ValueError("as many bytes as the shape says")
        self.array = np.frombuffer(data, dtype.dtype, count).reshape(shape, order=order)  # type: ignore[call-overload]


def _reconstruct(kind: object, shape: object, dtype: object) -> _Array:
    if kind is not _ArrayType:
        raise InputError(_RULE, "a subclass of an array", _FIX)
    return _Array()


def _from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.fill(shape, dtype, "F" if order == "F" else "C", buffer)
    return array


def _scalar(dtype: Any, data: Any) -> Any:
    array = _Array()
    if dtype.dtype.hasobject:
        raise InputError(_RULE, "an object scalar", _FIX)
    array.fill((), dtype, "C", data)
    assert array.array is not None
    return array.array[()]


def _encode(text: object, encoding: object) -> bytes:
    """How old protocols write bytes: `_codecs.encode(text, "latin1")`."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise InputError(_RULE, "an encoding other than latin1", _FIX)
    return text.encode("latin1")


def _empty_bytes() -> bytes:
    """How old protocols write `b""`: `bytes()`."""
    return b""


_NAMES: dict[tuple[str, str], Any] = {
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "bytes"): _empty_bytes,
    ("numpy", "ndarray"): _ArrayType,
    ("numpy", "dtype"): _Dtype,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encode,
}


def _text(value: object) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _finished(value: Any, seen: dict[int, tuple[Any, Any]]) -> Any:
    """`value` with every stand-in replaced by its array; lists and dicts in place, so cycles hold.

    `seen` has, by id, each value (so that its id stays its own) and what it became: parts that are
    shared are finished once, or nested pairs of one part would double the work at every level.
    """
    if id(value) in seen:
        return seen[id(value)][1]
    if isinstance(value, _Array):
        if value.array is None:
            raise ValueError("an array without content")
        seen[id(value)] = value, value.array
        for index, item in enumerate(value.items):
            value.array.reshape(-1)[index] = _finished(item, seen)
        return value.array
    if isinstance(value, list):
        seen[id(value)] = value, value
        value[:] = [_finished(item, seen) for item in value]
    elif isinstance(value, dict):
        seen[id(value)] = value, value
        for key, item in list(value.items()):
            _plain(key, seen)
            value[key] = _finished(item, seen)
    elif isinstance(value, tuple):
        whole = tuple(_finished(item, seen) for item in value)
        seen[id(value)] = value, whole
        return whole
    elif isinstance(value, set | frozenset):
        for item in value:
            _plain(item, seen)
    else:
        _plain(value, seen)
    return value


def _plain(value: object, seen: dict[int, tuple[Any, Any]]) -> None:
    """Refuse what only stands for a class or function."""
    if isinstance(value, tuple | frozenset):
        if id(value) not in seen:
            seen[id(value)] = value, value
            for item in value:
                _plain(item, seen)
    elif value is not None and not isinstance(
        value, bool | int | float | complex | str | bytes | bytearray | np.generic
    ):
        raise InputError(_RULE, type(value).__name__, _FIX)
