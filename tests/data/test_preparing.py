from collections import Counter

import numpy as np
import pytest

from tagsmith.config import DataConfig
from tagsmith.data.preparing import prepare, prepare_given
from tagsmith.data.readers import read
from tagsmith.data.table import Table
from tagsmith.errors import DataError, SettingError


def table_of(count, seed, *, share=0.3):
    """Random texts; every fourth one repeats the one before it with another case."""
    random = np.random.default_rng(seed)
    words = ["".join(random.choice(list("abcdefghijklmnop"), size=6)) for _ in range(300)]
    texts = [" ".join(random.choice(words, size=8)) for _ in range(count)]
    texts[3::4] = [text.upper() for text in texts[2::4][: len(texts[3::4])]]
    labels = random.choice(["yes", "no"], size=count, p=[share, 1 - share])
    labels[3::4] = labels[2::4][: len(labels[3::4])]
    return Table.of(texts, labels.tolist())


def test_no_test_row_has_a_twin_elsewhere():
    prepared = prepare(table_of(400, 1), DataConfig(), seed=1)
    assert (prepared.leak["exact"], prepared.leak["near"]) == (0, 0)
    assert not prepared.leaked.any()
    assert len(prepared.leaked) == len(prepared.splits.test)
    assert prepared.duplicates["exact_rows"] == 100


@pytest.mark.parametrize("how", ["undersample", "oversample", "weights"])
def test_balancing_touches_training_rows_only(how):
    table = table_of(400, 1)
    plain, balanced = (prepare(table, DataConfig(balance=balance), seed=1) for balance in ("none", how))
    for (name, one), (_, other) in zip(plain.splits.items(), balanced.splits.items(), strict=True):
        assert name == "train" or one.rows.tolist() == other.rows.tolist()
    assert balanced.true_priors == plain.true_priors
    if how == "weights":
        assert set(balanced.class_weights) == {"yes", "no"}
    else:
        assert len(set(Counter(balanced.splits.train.labels).values())) == 1
    assert balanced.history[-1].step == "balance"


def test_preparing_twice_gives_the_same(heard):
    one, other = (prepare(table_of(200, 1), DataConfig(), seed=7, listen=heard.append) for _ in range(2))
    assert one.history == other.history
    assert [part.texts for _, part in one.splits.items()] == [part.texts for _, part in other.splits.items()]
    assert {event.stage for event in heard} == {"data"}
    assert heard[-1].name == "done"


def test_one_label_only_is_refused_before_any_work(heard):
    with pytest.raises(DataError, match="one label only"):
        prepare(Table.of(["one", "two"], ["a", "a"]), DataConfig(), seed=1, listen=heard.append)
    assert not heard


def test_the_books_split_says_what_it_costs(shared_data):
    table = read(shared_data / "sms_spam" / "SMSSpamCollection.tsv", quoting="standard")
    prepared = prepare(table, DataConfig(split="book", quoting="standard"), seed=123)
    assert (prepared.leak["exact"], prepared.leak["near"], prepared.leaked.sum()) == (40, 58, 58)
    assert prepared.true_priors["1"] == pytest.approx(747 / 5572)
    assert "58 of 300 test rows (19.3%)" in prepared.notes[0]
    assert "36%" in prepared.notes[0]
    assert "13.4%" in prepared.notes[1]


def test_the_books_split_takes_no_other_shares():
    with pytest.raises(SettingError, match=r"fixed at 70/10/20; found data\.test_share = 0\.3"):
        prepare(table_of(40, 1), DataConfig(split="book", test_share=0.3), seed=1)


def test_the_default_split_of_sms_spam_leaks_nothing(shared_data):
    prepared = prepare(read(shared_data / "sms_spam" / "SMSSpamCollection.tsv"), DataConfig(), seed=123)
    assert [len(part) for _, part in prepared.splits.items()] == pytest.approx([3902, 279, 279, 1115], abs=3)
    assert (prepared.leak["exact"], prepared.leak["near"]) == (0, 0)


# --- given parts ----------------------------------------------------------------------------------------------------


def test_a_given_test_file_is_kept_and_its_leaks_are_counted():
    train, test = table_of(300, 1), table_of(50, 2)
    leaking = Table.of([*test.texts, train.texts[0].upper()], [*test.labels, train.labels[0]])
    prepared = prepare_given(train, None, leaking, DataConfig(validation_share=0.2), seed=1)
    assert prepared.splits.test.texts == leaking.texts
    assert len(prepared.splits.train) + len(prepared.splits.validation) == 300
    twin_learns = train.texts[0] in prepared.splits.train.texts or train.texts[0].upper() in prepared.splits.train.texts
    assert prepared.leak["exact"] == int(twin_learns) == prepared.leaked[-1]


def test_a_given_validation_file_is_kept_and_the_test_rows_are_split_off():
    prepared = prepare_given(table_of(300, 1), table_of(60, 2), None, DataConfig(), seed=1)
    assert len(prepared.splits.validation) == 60
    assert len(prepared.splits.calibration) == 0
    assert len(prepared.splits.test) == pytest.approx(60, abs=2)
    assert prepared.leak["near"] == 0
    assert "no calibration rows" in " ".join(change.reason for change in prepared.history)


def test_both_given_files_leave_train_whole_and_large_validation_is_halved():
    train, validation, test = table_of(300, 1), table_of(500, 2), table_of(60, 3)
    prepared = prepare_given(train, validation, test, DataConfig(), seed=1)
    assert prepared.splits.train.texts == train.texts
    assert prepared.splits.test.texts == test.texts
    assert len(prepared.splits.validation) + len(prepared.splits.calibration) == 500
    assert len(prepared.splits.calibration) == pytest.approx(250, abs=2)
    groups = [set(part.groups.tolist()) for part in (prepared.splits.validation, prepared.splits.calibration)]
    assert not groups[0] & groups[1]


def test_groups_hold_across_given_files():
    train, test = table_of(100, 1), table_of(40, 2)
    leaking = Table.of([*test.texts, train.texts[0]], [*test.labels, train.labels[0]])
    prepared = prepare_given(train, table_of(40, 3), leaking, DataConfig(), seed=1)
    assert prepared.splits.test.groups[-1] == prepared.splits.train.groups[0]


@pytest.mark.parametrize("name", ["validation", "test"])
def test_labels_that_training_does_not_hold_are_refused(name):
    other = Table.of(["one text", "two texts"], ["yes", "maybe"])
    given = {"validation": None, "test": None, name: other}
    with pytest.raises(DataError, match=rf"Labels of the {name} rows not seen in training: \['maybe'\]; known: \['no'"):
        prepare_given(table_of(100, 1), **given, config=DataConfig(), seed=1)


def test_the_books_split_takes_no_given_files():
    with pytest.raises(SettingError, match="makes its own validation and test rows"):
        prepare_given(table_of(40, 1), None, table_of(40, 2), DataConfig(split="book"), seed=1)


def test_the_shared_hate_set_leaks_236_texts(shared_data):
    parts = [read(shared_data / "hate" / f"{name}.parquet") for name in ("train", "validation", "test")]
    prepared = prepare_given(*parts, DataConfig(), seed=1)
    assert prepared.leak["exact"] == 236
