"""Plain values and arrays pass in every protocol; whatever could run or reserve something does not."""

import io
import pickle
import struct
import zipfile

import numpy as np
import pytest

from ibisagent.errors import InputError
from ibisagent.safe_pickle import load_pickle, read_npz


class Touch:
    """Unpickling this creates a file: the proof that code ran."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (eval, (f"open({self.path!r}, 'w').close()",))


QUESTIONS = [
    {
        "answer_type": "yes/no",
        "img_id": "train_0422",
        "label": {"yes": 1},
        "question_id": 7,
        "sent": "is it?",
    },
    {"answer_type": "other", "img_id": "train_0423", "label": {}, "question_id": 8.5, "sent": "été"},
]


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_pass_in_every_protocol(protocol):
    values = [QUESTIONS, None, True, (1, 2**80, -3), b"\x00\xff", {"a", "b"}, {1: [2.5]}, "x" * 300]
    assert load_pickle(pickle.dumps(values, protocol)) == values


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.uint16).reshape(2, 3, 4),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(["liver", "left kidney"]),
        np.array([b"a", b"bc"]),
        np.arange(4, dtype=">i4"),
        np.array([True, False]),
        np.zeros((0, 4), np.float32),
    ],
    ids=lambda array: str(array.dtype),
)
def test_arrays_pass_in_every_protocol(protocol, array):
    got = load_pickle(pickle.dumps(array, protocol))
    np.testing.assert_array_equal(got, array)
    assert got.dtype == array.dtype


@pytest.mark.parametrize("protocol", range(6))
def test_object_arrays_hold_what_they_held(protocol):
    inner = np.array([1, 2], np.int64)
    array = np.array([{"1": "liver", "box": inner}, [np.float32(2.5), "x"], None, 3], object).reshape(2, 2)
    for given in (array, np.asfortranarray(array)):
        got = load_pickle(pickle.dumps(given, protocol))
        assert got.shape == (2, 2) and got.dtype == object
        assert got[0, 0]["1"] == "liver" and got[0, 1] == [2.5, "x"] and got[1, 0] is None and got[1, 1] == 3
        np.testing.assert_array_equal(got[0, 0]["box"], inner)


def test_a_list_that_holds_itself_is_read():
    loop = [1]
    loop.append(loop)
    got = load_pickle(pickle.dumps(loop))
    assert got[0] == 1 and got[1] is got


@pytest.mark.parametrize("protocol", range(6))
def test_code_never_runs(tmp_path, protocol):
    mark = tmp_path / "ran"
    for value in (Touch(mark), [1, {"a": (Touch(mark),)}], np.array([Touch(mark)], object)):
        with pytest.raises(InputError, match="plain values"):
            load_pickle(pickle.dumps(value, protocol))
    assert not mark.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"cnumpy\nndarray\n((I1000000000000\nttR.",  # an array without bytes
        b"cnumpy\nndarray\n.",  # the class itself
        b"cnumpy\ndtype\n.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"c__builtin__\neval\n(S'1'\ntR.",
        b"cposixpath\njoin\n(S'a'\ntR.",
        b"\x80\x02cnumpy\nndarray\n)\x81.",  # NEWOBJ
        b"(icollections\nOrderedDict\n.",  # INST
        b"P1\n.",  # persistent id
        b"\x82\x01.",  # extension registry
        b"Nr" + struct.pack("<I", 2**31) + b".",  # a memo of 2**31 places
        b"c_codecs\nencode\n(Vx\nVzlib\ntR.",
        b"]" * 100_000 + b"a" * 99_999 + b".",  # nested 100,000 deep
        b"",
        b".",
        b"\x80\x05\x95",
        b"\x80\x04]\x94(K\x01",
        b"not a pickle at all",
    ],
)
def test_whatever_else_is_refused(data):
    with pytest.raises(InputError):
        load_pickle(data)


def test_an_array_must_have_the_bytes_that_its_shape_says():
    good = pickle.dumps(np.arange(10, dtype=np.uint8), 2)
    bad = good.replace(b"K\n\x85", b"M\xff\xff\x85")  # shape (10,) becomes (65535,)
    assert bad != good
    with pytest.raises(InputError):
        load_pickle(bad)


def test_a_structured_dtype_is_refused():
    array = np.zeros(2, [("a", "i4"), ("b", "f8")])
    with pytest.raises(InputError):
        load_pickle(pickle.dumps(array))


def test_npz_with_object_arrays_is_read(tmp_path):
    prompts = {"1": "liver in CT", "2": "spleen", "instance_label": 0}
    boxes = np.array([{"z_min": 1, "z_max": 3}], object)
    for save in (np.savez, np.savez_compressed):
        save(
            tmp_path / "a.npz",
            imgs=np.arange(24).reshape(2, 3, 4),
            text_prompts=prompts,
            boxes=boxes,
            spacing=[1.0, 2, 3],
        )
        got = read_npz(tmp_path / "a.npz")
        assert got["text_prompts"].item() == prompts
        assert got["boxes"][0] == {"z_min": 1, "z_max": 3}
        np.testing.assert_array_equal(got["imgs"], np.arange(24).reshape(2, 3, 4))
        assert got["spacing"].tolist() == [1, 2, 3]


def test_a_malicious_npz_is_refused(tmp_path):
    mark = tmp_path / "ran"
    np.savez(tmp_path / "bad.npz", imgs=np.zeros(3), text_prompts=np.array(Touch(mark), object))
    with pytest.raises(InputError, match="plain values"):
        read_npz(tmp_path / "bad.npz")
    assert not mark.exists()


def test_damaged_npz_files_are_named(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, imgs=np.zeros((50, 50)))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="whole zip"):
        read_npz(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="whole zip"):
        read_npz(path)
    with pytest.raises(InputError, match="whole zip"):
        read_npz(tmp_path / "missing.npz")
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((50, 50)))
    with zipfile.ZipFile(path, "w") as archive:  # a header that claims more than there is
        archive.writestr("imgs.npy", buffer.getvalue().replace(b"(50, 50)", b"(90, 90)"))
    with pytest.raises(InputError, match="whole zip"):
        read_npz(path)
