import pickle

import numpy as np
import pytest
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks, get_tags

from tagsmith.deployment.bundle import load
from tagsmith.errors import DataError
from tagsmith.estimator import TextClassifier

QUICK = {
    "model": {"layers": "all", "max_tokens": 48},
    "tuning": {"epochs": 1, "precision": "fp32"},
    "evaluation": {"resamples": 200},
}

# The checks of scikit-learn that need no array of numbers. It skips all others by itself for an estimator whose tags
# say that `X` is no two-dimensional array (the test below holds it to that), since each of them fits on such an array:
#   check_fit*, check_estimators_*, check_classifiers_*, check_n_features_in*, check_dtype_object, check_complex_data,
#   check_estimator_sparse_*, check_sample_weight*, check_supervised_y_*, check_readonly_memmap_input and their like.
# What these ask (fit gives itself and keeps parameters, not fitted, seeds, pickles, classes) is asked of texts.
WITHOUT_NUMBERS = [
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_tags_renamed",
    "check_get_params_invariance",
    "check_mixin_order",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_set_params",
    "check_valid_tag_types",
]


@pytest.fixture(scope="module")
def estimator(tiny_folder):
    return TextClassifier(backbone=str(tiny_folder), settings=QUICK, seed=7)


@pytest.fixture(scope="module")
def rows(make_rows):
    texts, labels = zip(*make_rows(80), strict=True)
    return list(texts), np.array(labels)


@pytest.fixture(scope="module")
def fitted(estimator, rows):
    return clone(estimator).fit(*rows)


@pytest.mark.parametrize("name", WITHOUT_NUMBERS)
def test_it_has_scikit_learns_manners(name):
    getattr(estimator_checks, name)("TextClassifier", TextClassifier())


def test_scikit_learn_itself_skips_all_checks_that_fit_on_numbers():
    with pytest.warns(SkipTestWarning, match="requires input  of type"):
        names = [check.func.__name__ for _, check in estimator_checks.estimator_checks_generator(TextClassifier())]
    assert set(names) <= set(WITHOUT_NUMBERS)


def test_it_says_that_it_is_a_classifier_of_strings(estimator):
    assert is_classifier(estimator)
    tags = get_tags(estimator)
    assert tags.input_tags.string
    assert not tags.input_tags.two_d_array
    assert tags.target_tags.required


def test_a_clone_has_the_same_parameters_and_is_not_fitted(fitted):
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        copy.predict(["lovely"])


def test_before_fit_it_answers_nothing(estimator):
    for ask in (estimator.predict, estimator.predict_proba):
        with pytest.raises(NotFittedError):
            ask(["lovely"])


def test_fit_changes_no_parameter_and_gives_itself(estimator, rows):
    copy = clone(estimator)
    before = copy.get_params()
    assert copy.fit(*rows) is copy
    assert copy.get_params() == before


def test_answers_are_those_of_the_bundle(fitted, rows):
    texts, _ = rows
    np.testing.assert_allclose(fitted.predict_proba(texts), fitted.bundle_.predict_proba(texts), atol=1e-6)
    assert fitted.predict(texts).tolist() == fitted.bundle_.predict(texts)
    assert fitted.classes_.tolist() == ["complaint", "praise"]
    assert fitted.report_["test"]["n"] > 0


@pytest.mark.parametrize(
    "classes",
    [[0, 1], [2, 10], [-1, 1], [False, True], ["b", "a"], [0.5, 1.5]],
    ids=["ints", "two and ten", "signed", "bools", "strings", "floats"],
)
def test_columns_follow_classes_for_labels_of_any_kind(classes, estimator, make_rows):
    texts, names = zip(*make_rows(80), strict=True)
    kinds = {"complaint": classes[0], "praise": classes[1]}
    y = np.array([kinds[name] for name in names])
    fitted = clone(estimator).fit(texts, y)
    assert fitted.classes_.tolist() == sorted(classes)
    assert fitted.classes_.dtype == y.dtype
    probs = fitted.predict_proba(texts)
    np.testing.assert_allclose(probs.sum(1), 1)
    by_name = dict(zip(fitted.bundle_.labels, fitted.bundle_.predict_proba(texts).T, strict=True))
    for column, label in zip(probs.T, fitted.classes_.tolist(), strict=True):
        np.testing.assert_allclose(column, by_name[str(label)], atol=1e-6)
    assert set(fitted.predict(texts).tolist()) <= set(classes)
    assert fitted.predict(texts).dtype == y.dtype


def test_the_same_seed_gives_the_same_answers(estimator, fitted, rows):
    np.testing.assert_array_equal(clone(estimator).fit(*rows).predict_proba(rows[0]), fitted.predict_proba(rows[0]))


def test_it_works_in_cross_validation_and_in_a_pipeline(estimator, rows):
    steps = [
        ("lower", FunctionTransformer(lambda texts: [text.lower() for text in texts])),
        ("model", clone(estimator)),
    ]
    texts, labels = np.array(rows[0], dtype=object), rows[1]
    probs = cross_val_predict(Pipeline(steps), texts, labels, cv=2, method="predict_proba")
    assert probs.shape == (80, 2)
    np.testing.assert_allclose(probs.sum(1), 1)


def test_it_works_in_a_search(estimator, rows):
    texts, labels = np.array(rows[0], dtype=object), rows[1]
    search = GridSearchCV(clone(estimator), {"seed": [1, 2]}, cv=2).fit(texts, labels)
    assert search.best_params_["seed"] in (1, 2)
    assert 0 <= search.score(texts, labels) <= 1


def test_a_fitted_one_can_be_pickled(fitted, rows):
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_allclose(again.predict_proba(rows[0]), fitted.predict_proba(rows[0]), atol=1e-6)


def test_an_empty_text_is_refused_and_named(fitted):
    with pytest.raises(DataError, match="Text 1 is empty"):
        fitted.predict(["lovely", " "])


@pytest.mark.parametrize("bad", [[1, 2], ["a", None], [["a"]]], ids=str)
def test_what_is_no_text_is_refused(bad, fitted, estimator):
    with pytest.raises(DataError, match="of X is a"):
        fitted.predict(bad)
    with pytest.raises(DataError, match="of X is a"):
        clone(estimator).fit(bad, ["a"] * len(bad))


def test_texts_and_labels_of_other_numbers_are_refused(estimator):
    with pytest.raises(DataError, match="Found 2 texts and labels of shape"):
        clone(estimator).fit(["a", "b"], ["x"])


def test_one_string_is_not_taken_for_a_list_of_texts(fitted):
    with pytest.raises(DataError, match="one string"):
        fitted.predict("lovely")


def test_a_bundle_is_kept_where_out_says(estimator, rows, tmp_path):
    fitted = clone(estimator).set_params(out=tmp_path / "b").fit(*rows)
    np.testing.assert_allclose(load(tmp_path / "b").predict_proba(rows[0]), fitted.predict_proba(rows[0]), atol=1e-6)


def test_groups_are_kept_whole(estimator, rows):
    texts, labels = rows
    groups = np.arange(80) // 4
    assert clone(estimator).fit(texts, labels, groups=groups).report_["data"]["rows"] == 80
