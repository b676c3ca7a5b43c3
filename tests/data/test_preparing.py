from collections import Counter
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from tagsmith.config import DataConfig
from tagsmith.data.duplicates import leak
from tagsmith.data.earlier import Earlier
from tagsmith.data.preparing import limit_training, prepare, prepare_given
from tagsmith.data.readers import read
from tagsmith.data.table import Splits, Table
from tagsmith.errors import BundleError, DataError, SettingError


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


# --- kinds of splits ------------------------------------------------------------------------------------------------


def with_column(table, name, values):
    return Table(table.frame.with_columns(pl.Series(name, [str(value) for value in values])), table.history)


@pytest.mark.parametrize(
    "settings", [{"split": "hash"}, {"split": "time", "time": "when"}, {"split": "kfold", "fold": 2}], ids=str
)
def test_no_kind_of_split_has_a_twin_of_a_test_row_elsewhere(settings):
    table = with_column(table_of(400, 1), "time", range(400))
    prepared = prepare(table, DataConfig(**settings), seed=1)
    elsewhere = pl.concat([part.frame["text"] for name, part in prepared.splits.items() if name != "test"])
    assert leak(elsewhere, prepared.splits.test.texts, near=0.8).near_rows == 0
    assert (prepared.leak["exact"], prepared.leak["near"], len(prepared.leaked)) == (0, 0, len(prepared.splits.test))
    assert sum(len(part) for _, part in prepared.splits.items()) == 400


def test_all_folds_together_test_each_row_once():
    table = table_of(200, 1)
    tested = [
        row
        for fold in (1, 2, 3)
        for row in prepare(table, DataConfig(split="kfold", folds=3, fold=fold), seed=1).splits.test.rows.tolist()
    ]
    assert sorted(tested) == table.rows.tolist()


def test_the_newest_rows_are_tested():
    prepared = prepare(with_column(table_of(400, 1), "time", range(400)), DataConfig(split="time", time="when"), seed=1)
    assert prepared.splits.test.rows.min() > prepared.splits.train.rows.max()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"time": "when"}, r"data\.time = when belongs to data\.split = time; found data\.split = group"),
        ({"split": "time"}, r"data\.split=time needs to know when"),
        ({"fold": 2}, r"data\.fold = 2 belongs to data\.split = kfold"),
        ({"split": "kfold", "folds": 3, "fold": 4}, r"data\.fold is 4, of 3 folds\. Expected 1 to 3"),
        ({"split": "kfold", "test_share": 0.3}, r"data\.test_share = 0\.3 belongs to"),
        ({"split": "kfold", "earlier": "old"}, r"data\.earlier = old belongs to data\.split = group or hash or time"),
        ({"split": "hash", "split_column": "part"}, r"says where each row belongs; found data\.split = hash too"),
        ({"rare_name": "rest"}, r"data\.rare_name = rest belongs to data\.rare_labels = merge"),
        ({"rare_labels": "keep", "rare_below": 5}, r"data\.rare_below = 5 belongs to"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, told):
    with pytest.raises(SettingError, match=told) as error:
        prepare(table_of(40, 1), DataConfig(**settings), seed=1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("settings", [{"split": "kfold"}, {"split": "time", "time": "when"}, {"earlier": "bundle"}])
def test_given_parts_go_with_no_setting_that_decides_for_them(settings):
    with pytest.raises(SettingError, match="decides where each row belongs; found rows of your own"):
        prepare_given(table_of(40, 1), None, table_of(40, 2), DataConfig(**settings), seed=1)


# --- a column that says it ------------------------------------------------------------------------------------------


def test_a_column_puts_each_row_where_it_says_and_leaks_are_counted():
    names = ["TRAIN", " train", "dev", "Val", "valid", "Validation", "calibration", "test"] * 25
    table = with_column(table_of(200, 1), "part", names)
    prepared = prepare(table, DataConfig(split_column="where"), seed=1)
    assert [len(part) for _, part in prepared.splits.items()] == [50, 100, 25, 25]
    assert prepared.splits.test.rows.tolist() == list(range(7, 200, 8))
    assert prepared.splits.calibration.rows.tolist() == list(range(6, 200, 8))
    assert prepared.leaked.tolist() == [False] * 25  # each test row repeats the calibration row before it
    swapped = with_column(table_of(200, 1), "part", ["train", "train", "train", "test"] * 50)
    assert prepare(swapped, DataConfig(split_column="where", validation_share=0.01), seed=1).leak["exact"] >= 48


def test_what_the_column_does_not_name_is_split_off_train():
    table = with_column(table_of(200, 1), "part", ["train"] * 160 + ["test"] * 40)
    prepared = prepare(table, DataConfig(split_column="where"), seed=1)
    assert prepared.splits.test.rows.tolist() == list(range(160, 200))
    assert len(prepared.splits.validation) == pytest.approx(16, abs=2)


def test_other_words_in_the_column_are_named_with_their_row():
    table = with_column(table_of(40, 1), "part", ["train"] * 38 + ["holdout", "x"])
    with pytest.raises(DataError, match=r"column 'where' holds \['holdout', 'x'\], first in row 38\. Expected train"):
        prepare(table, DataConfig(split_column="where"), seed=1)


def test_a_column_of_training_rows_alone_is_refused():
    with pytest.raises(DataError, match="are of 'train'. Expected training rows and rows of another part"):
        prepare(with_column(table_of(40, 1), "part", ["train"] * 40), DataConfig(split_column="where"), seed=1)


def test_a_table_in_memory_has_no_such_column():
    with pytest.raises(SettingError, match=r"data\.split_column = 'where' names a column of a file"):
        prepare(table_of(40, 1), DataConfig(split_column="where"), seed=1)


# --- labels that are rare or in conflict ----------------------------------------------------------------------------


def test_conflicts_are_settled_before_the_split():
    table = table_of(200, 1)
    odd = Table.of([*table.texts, table.texts[0], table.texts[0]], [*table.labels, "yes", "no"])
    prepared = prepare(odd, DataConfig(conflicts="drop"), seed=1)
    assert prepared.duplicates["conflicting_rows"] == 0
    assert prepare(odd, DataConfig(), seed=1).duplicates["conflicting_rows"] == 3
    assert sum(len(part) for _, part in prepared.splits.items()) == 199


@pytest.mark.parametrize(("how", "rows"), [("keep", 201), ("drop", 200)])
def test_a_label_of_one_row_is_decided_by_the_setting(how, rows):
    table = table_of(200, 1)
    odd = Table.of([*table.texts, "a text of its own"], [*table.labels, "rare"])
    with pytest.raises(DataError, match="fewer than 2 rows of the label 'rare'"):
        prepare(odd, DataConfig(), seed=1)
    prepared = prepare(odd, DataConfig(rare_labels=how), seed=1)
    assert sum(len(part) for _, part in prepared.splits.items()) == rows
    assert "'rare'" in " ".join(change.reason for change in prepared.history)
    assert ("rare" in prepared.splits.train.labels) == (how == "keep")


def test_labels_that_are_rare_in_training_are_merged_in_given_parts_too():
    train, test = table_of(200, 1), table_of(40, 2)
    train = Table.of([*train.texts, "one odd text", "two odd texts"], [*train.labels, "odd", "strange"])
    test = Table.of([*test.texts, "three odd texts"], [*test.labels, "odd"])
    prepared = prepare_given(train, None, test, DataConfig(rare_labels="merge"), seed=1)
    assert Counter(prepared.splits.test.labels)["other"] == 1
    assert prepared.true_priors.keys() == {"no", "other", "yes"}


# --- several labels a row -------------------------------------------------------------------------------------------


def multi(count, seed):
    table = table_of(count, seed)
    sets = [["yes", "polite"] if label == "yes" else [label] for label in table.labels]
    return Table.of(table.texts, [labels if i % 7 else [] for i, labels in enumerate(sets)])


def test_a_multi_label_table_is_prepared_with_its_own_weights_and_priors():
    prepared = prepare(multi(400, 1), DataConfig(balance="weights"), seed=1)
    share = np.mean(["polite" in labels for labels in prepared.splits.train.label_sets])
    assert prepared.true_priors["polite"] == pytest.approx(share)
    assert prepared.class_weights["polite"] == pytest.approx((1 - share) / share)
    assert prepared.leak["near"] == 0


@pytest.mark.parametrize("how", ["undersample", "oversample"])
def test_rows_with_label_sets_are_not_resampled(how):
    with pytest.raises(SettingError, match=rf"data\.balance={how} is for one label a row.*data\.balance=weights"):
        prepare(multi(100, 1), DataConfig(balance=how), seed=1)


def test_given_multi_label_parts_are_checked_and_leaks_are_told_by_label():
    train, test = multi(200, 1), multi(60, 2)
    leaking = Table.of([*test.texts, train.texts[1]], [*test.label_sets, ["polite"]])
    prepared = prepare_given(train, multi(60, 3), leaking, DataConfig(), seed=1)
    assert prepared.leaked[-1]
    assert "among test rows of 'polite'" in prepared.notes[0]
    unknown = Table.of(["some text"], [["polite", "rude"]])
    with pytest.raises(DataError, match=r"Labels of the test rows not seen in training: \['rude'\]"):
        prepare_given(train, None, unknown, DataConfig(), seed=1)


# --- an earlier run -------------------------------------------------------------------------------------------------


def test_a_table_that_grew_keeps_its_test_rows(tmp_path):
    large = table_of(300, 1)
    first = prepare(large.take(np.arange(200)), DataConfig(balance="undersample"), seed=1)
    first.remembered.write(tmp_path)
    second = prepare(large, DataConfig(earlier=str(tmp_path)), seed=9)
    tested = set(first.splits.test.texts)
    assert tested <= set(second.splits.test.texts)
    assert len(second.splits.test) > len(tested)
    assert second.leak["near"] == 0
    told = " ".join(change.reason for change in second.history)
    assert "200 rows keep the part that their text or group had before, 100 are new" in told


def test_an_earlier_run_that_leaked_still_has_its_leaks_counted(tmp_path):
    table = table_of(200, 1)
    near, none = table.texts[0][:-1] + "#", table.take(np.arange(0))
    first = Splits(table.take(np.arange(150)), none, none, Table.of([near, *table.texts[152:]], ["yes"] * 49))
    Earlier.of(first).write(tmp_path)
    again = Table.of([*table.texts, near], [*table.labels, table.labels[0]])
    prepared = prepare(again, DataConfig(earlier=str(tmp_path)), seed=1)
    assert prepared.leak["near"] == prepared.leaked.sum() == 1


def test_an_earlier_bundle_without_splits_is_refused(tmp_path):
    with pytest.raises(BundleError, match=r"holds no splits\.safetensors"):
        prepare(table_of(40, 1), DataConfig(earlier=str(tmp_path)), seed=1)


def test_a_limit_says_what_the_llm_does_not_learn_from_and_nothing_where_it_is_nothing():
    prepared = prepare(table_of(400, 1), DataConfig(), seed=1)
    rows = len(prepared.splits.train)
    fewer = limit_training(prepared, 50, seed=1)
    assert len(fewer.splits.train) == 50
    assert len(fewer.whole_train) == rows
    assert f"from 50 of {rows} training rows" in fewer.notes[-1]
    train = Table.of(["one", "two", "three"], ["a", "b", "c"])
    alone = replace(prepared, splits=replace(prepared.splits, train=train))
    assert limit_training(alone, 2, seed=1) is alone, "of each label there is one row"
