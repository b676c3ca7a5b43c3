import asyncio
import contextlib
import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tagsmith.deployment.frames import Frame, FrameError, pack, read, receive

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
ARRAYS = arrays.arrays(
    dtype=st.sampled_from(["<i4", "<i8", "<f4", "<f8", "|b1"]),
    shape=arrays.array_shapes(max_dims=2, min_side=0, max_side=5),
)
FRAMES = st.builds(
    Frame,
    kind=st.text(),
    number=st.integers(0, 2**31),
    values=st.dictionaries(st.text(), JSON, max_size=3),
    arrays=st.dictionaries(st.text(), ARRAYS, max_size=3),
)


def received(raw):
    async def run():
        reader = asyncio.StreamReader()
        reader.feed_data(raw)
        reader.feed_eof()
        return await receive(reader)

    return asyncio.run(run())


def same(one, other):
    assert (one.kind, one.number, one.values) == (other.kind, other.number, other.values)
    assert set(one.arrays) == set(other.arrays)
    for name, array in one.arrays.items():
        assert array.dtype == other.arrays[name].dtype
        np.testing.assert_array_equal(array, other.arrays[name])


@given(FRAMES)
def test_a_frame_comes_out_as_it_went_in(frame):
    raw = pack(frame)
    same(read(io.BytesIO(raw)), frame)
    same(received(raw), frame)


def test_frames_follow_one_another():
    file = io.BytesIO(pack(Frame("a")) + pack(Frame("b")))
    assert [read(file).kind, read(file).kind, read(file)] == ["a", "b", None]
    assert received(b"") is None


@given(FRAMES, st.data())
def test_a_frame_that_is_cut_short_is_refused(frame, data):
    raw = pack(frame)
    cut = raw[: data.draw(st.integers(1, len(raw) - 1))]
    with pytest.raises(FrameError):
        read(io.BytesIO(cut))
    with pytest.raises(FrameError):
        received(cut)


@given(st.binary(max_size=200))
def test_other_bytes_are_refused_and_never_run(raw):
    framed = struct.pack("<4sII", b"TSF1", len(raw), 0) + raw
    for bad in (raw or b"x", framed):
        with pytest.raises(FrameError):
            read(io.BytesIO(bad))


@given(FRAMES, st.data())
def test_a_flipped_bit_gives_a_frame_or_a_refusal_and_nothing_else(frame, data):
    raw = bytearray(pack(frame))
    place = data.draw(st.integers(0, 8 * len(raw) - 1))
    raw[place // 8] ^= 1 << place % 8
    with contextlib.suppress(FrameError):
        read(io.BytesIO(bytes(raw)))


@pytest.mark.parametrize(
    "head",
    [
        '{"kind":"a","number":1,"values":{},"arrays":[["x","|O",[1]]]}',
        '{"kind":"a","number":1,"values":{},"arrays":[["x","<f4",[1073741824,1073741824]]]}',
        '{"kind":"a","number":1,"values":{},"arrays":[["x","<f4",[-1]]]}',
        '{"kind":"a","number":1,"values":{},"arrays":[["x","<f4",[1,1,1,1]]]}',
        '{"kind":"a","number":1,"values":[],"arrays":[]}',
        "[" * 100_000,
        '{"kind":"a"}',
        "null",
    ],
    ids=["objects", "huge", "negative", "axes", "values", "deep", "missing", "nothing"],
)
def test_a_head_that_describes_no_plain_array_is_refused(head):
    raw = struct.pack("<4sII", b"TSF1", len(head), 8) + head.encode() + b"\0" * 8
    with pytest.raises(FrameError, match="head"):
        read(io.BytesIO(raw))


def test_a_frame_that_claims_gigabytes_is_refused_before_it_is_read():
    with pytest.raises(FrameError, match="no frame"):
        read(io.BytesIO(struct.pack("<4sII", b"TSF1", 2**31, 0)))
