import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagsmith.data.earlier import ASIDE, NEW, SPLITS, Earlier
from tagsmith.data.folding import fold
from tagsmith.data.splitting import split_by
from tagsmith.data.table import Splits, Table
from tagsmith.errors import BundleError, DataError

SHARES = {"validation_share": 0.1, "test_share": 0.2}


def splits_of(*parts):
    return Splits(*(Table.of(list(texts), ["a"] * len(texts)) for texts in parts))


@st.composite
def grown(draw):
    """A table, and one with the same rows and some more; groups of the larger one may join those of the smaller."""
    old, new = draw(st.integers(12, 40)), draw(st.integers(0, 30))
    labels = ["a", "b"] * ((old + new + 1) // 2)
    texts = [f"text {i}" for i in range(old + new)]
    before = [draw(st.integers(0, 25)) for _ in range(old)]
    after = before + [draw(st.integers(0, 40)) for _ in range(new)]
    small = Table.of(texts[:old], labels[:old], groups=before)
    return small, Table.of(texts, labels[: old + new], groups=after)


@pytest.mark.parametrize("kind", ["group", "hash"])
@given(tables=grown(), seed=st.integers(0, 3))
def test_rows_of_an_earlier_run_keep_their_part_and_bridges_are_set_aside(kind, tables, seed):
    small, large = tables
    try:
        first = split_by(kind, small, **SHARES, seed=seed)
        second = split_by(kind, large, **SHARES, seed=seed + 1, earlier=Earlier.of(first))
    except DataError as error:  # by chance, a hash leaves fewer than two labels to train on
        assert "Expected at least two labels" in str(error)
        return
    before = {text: name for name, part in first.items() for text in part.texts}
    after = {text: name for name, part in second.items() for text in part.texts}
    assert {text: after[text] for text in before if text in after} == {
        text: name for text, name in before.items() if text in after
    }
    gone = set(large.texts) - set(after)
    counted = sum(
        change.rows_before - change.rows_after
        for change in dict.fromkeys(change for _, part in second.items() for change in part.history)
        if change.step == "set aside"
    )
    assert counted == len(gone)
    for group in set(large.groups.tolist()):
        members = [text for text, of in zip(large.texts, large.groups, strict=True) if of == group]
        parts = {after[text] for text in members if text in after}
        if len(parts) > 1:
            assert all(text in before for text in members if text in after)


def test_a_new_row_takes_the_part_of_its_group_and_a_bridge_takes_none():
    earlier = Earlier.of(splits_of(["one", "two"], ["three"], [], ["four"]))
    table = Table.of(["ONE ", "two", "four", "near two", "near both", "all new"], ["a"] * 6, groups=[0, 1, 2, 1, 0, 3])
    assert earlier.parts_of(table).tolist() == [0, 0, 3, 0, 0, NEW]
    bridging = Table.of(["one", "four", "between"], ["a"] * 3, groups=[0, 0, 0])
    assert earlier.parts_of(bridging).tolist() == [0, 3, ASIDE]


def test_a_text_of_several_parts_counts_for_training():
    earlier = Earlier.of(splits_of(["one"], [], [], ["One", "two"]))
    assert earlier.parts_of(Table.of(["one", "two"], ["a", "b"])).tolist() == [0, 3]


def test_what_only_an_older_run_knew_is_not_forgotten():
    older = Earlier.of(splits_of(["one"], [], [], ["two", "three"]))
    newer = Earlier.of(splits_of(["one", "three"], [], [], []), older)
    assert newer.parts_of(Table.of(["one", "two", "three"], list("abc"))).tolist() == [0, 3, 0]


def test_new_groups_fill_the_shares():
    texts = [f"text {i}" for i in range(2000)]
    first = split_by("group", Table.of(texts[:1000], ["a", "b"] * 500), **SHARES, seed=1)
    skewed = Earlier.of(Splits(first.train, first.validation, first.calibration, first.test.take(np.arange(50))))
    kept = [text for text in texts if text not in set(first.test.texts[50:])]
    second = split_by("group", Table.of(kept, ["a", "b"] * (len(kept) // 2)), **SHARES, seed=1, earlier=skewed)
    assert len(second.test) == pytest.approx(0.2 * len(kept), abs=2)


def test_writing_and_reading_gives_the_same_and_holds_no_text(tmp_path):
    earlier = Earlier.of(splits_of(["some private text"], ["another one"], [], ["third text"]))
    earlier.write(tmp_path)
    read = Earlier.read(tmp_path)
    assert np.array_equal(read.hashes, earlier.hashes)
    assert np.array_equal(read.parts, earlier.parts)
    content = (tmp_path / SPLITS).read_bytes()
    assert b"private" not in content
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert {name: header[name]["dtype"] for name in ("hashes", "parts")} == {"hashes": "U64", "parts": "U8"}


def test_the_hash_is_the_start_of_sha256_of_the_folded_text():
    import hashlib

    text = " Größe\tof  IT "
    expected = int.from_bytes(hashlib.sha256(fold(text).encode()).digest()[:8], "big")
    assert Earlier.of(splits_of([text], [], [], [])).hashes.tolist() == [expected]


def test_a_folder_without_splits_is_refused(tmp_path):
    with pytest.raises(BundleError, match=r"holds no splits\.safetensors.*train it again, or leave out data\.earlier"):
        Earlier.read(tmp_path)
