"""Pickles are read as data: whatever would run something is refused before it runs."""

import os
import pickle
import struct
from collections import OrderedDict

import numpy as np
import pytest

from llrflow.data.unpickle import UnsafePickle, unpickle


class Runs:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_plain_data_and_arrays_come_back(protocol):
    rows = np.arange(24, dtype=np.uint8).reshape(4, 6)
    data = {"data": rows, "labels": [1, 2, -3, 10**12], "f": np.asfortranarray(rows), "n": None, "t": (True, 0.5)}
    got = unpickle(pickle.dumps(data, protocol))
    assert got["labels"] == data["labels"] and got["n"] is None and got["t"] == (True, 0.5)
    for key in ("data", "f"):
        assert got[key].dtype == np.uint8 and (got[key] == rows).all()


def test_a_pickle_of_python_2_comes_back_with_bytes():
    # cPickle of Python 2.7, protocol 2: {'labels': [3], 'data': numpy.array([[7, 8]], numpy.uint8)}
    written = (
        b"\x80\x02}q\x01(U\x06labelsq\x02]q\x03K\x03aU\x04dataq\x04cnumpy.core.multiarray\n_reconstruct\nq\x05"
        b"cnumpy\nndarray\nq\x06K\x00\x85U\x01b\x87Rq\x07(K\x01K\x01K\x02\x86cnumpy\ndtype\nq\x08U\x02u1K\x00K\x01\x87R"
        b"q\x09(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x02\x07\x08tbu."
    )
    got = unpickle(written)
    assert got[b"labels"] == [3] and got[b"data"].tolist() == [[7, 8]]


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    "function", [os.system, eval, exec, __import__, getattr, print, os.remove, np.load], ids=lambda f: f.__name__
)
def test_functions_are_refused_before_they_run(tmp_path, function, protocol):
    victim = tmp_path / "victim"
    victim.write_text("there")
    argument = {"system": f"rm {victim}", "remove": str(victim)}.get(function.__name__, f"open({str(victim)!r}, 'w')")
    content = pickle.dumps({"data": [Runs(function, argument)]}, protocol)
    with pytest.raises(UnsafePickle, match="asks for"):
        unpickle(content)
    assert victim.read_text() == "there"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (pickle.dumps(OrderedDict(a=1), 2), "asks for collections.OrderedDict"),
        (pickle.dumps({1, 2}, 4), "uses the opcode EMPTY_SET"),
        (pickle.dumps(np.array([{}, os.system], object), 2), "asks for|array of type 'O8'"),
        (pickle.dumps(np.array([{}], object), 2), "array of type 'O8'"),
        (pickle.dumps(np.zeros(2, "f8"), 2), "array of type 'f8'"),
        (pickle.dumps(np.dtype("u1"), 2), "holds a Dtype"),
        (b"cnumpy\nload\n.", "asks for numpy.load, which could run any program"),
        (pickle.dumps(np.zeros(2, np.float32), 2), "holds an array of type 'f4'$"),
        (b"(ios\nsystem\nS'id'\no.", "opcode INST"),
        (b"\x80\x02P0\n.", "."),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "asks for os.system"),
        (b"cnumpy\ndtype\n(S'u1'\nI0\nI1\ntR(I3\nS'w'\nNNNI-1\nI-1\nI0\ntb.", "byte order 'w'"),
        (b"c_codecs\nencode\n(Vx\nVrot13\ntR.", "encodes text as 'rot13'"),
        (b"c_codecs\nlookup\n.", "asks for _codecs.lookup"),
    ],
)
def test_whatever_else_is_refused(content, says):
    with pytest.raises((UnsafePickle, ValueError), match=says):
        unpickle(content)


def test_damaged_pickles_are_one_line_and_take_no_memory():
    intact = pickle.dumps({"data": np.zeros((10, 12), np.uint8), "labels": list(range(10))}, 2)
    for cut in range(0, len(intact) - 1, 7):
        with pytest.raises(ValueError) as caught:
            unpickle(intact[:cut])
        assert "\n" not in str(caught.value)
    greedy = b"\x80\x02N" + b"r" + struct.pack("<I", 2**31) + b"."  # LONG_BINPUT: a memo of 2**31 places
    with pytest.raises(ValueError, match="memo index"):
        unpickle(greedy)
    with pytest.raises(ValueError):
        unpickle(b"]" * 50 + b"a" * 49 + b".")  # nested
    itself = b"]q\x00h\x00a."  # a list that holds itself
    with pytest.raises(ValueError, match="holds more than its bytes could say"):
        unpickle(itself)
