import pytest

from tagsmith.config import Config
from tagsmith.errors import ResourceError
from tagsmith.scale.nodes import Node
from tagsmith.scale.tune import SideBySide

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray", "ignore::DeprecationWarning:pydantic")


def test_a_cluster_without_a_processor_cannot_search():
    with pytest.raises(ResourceError, match="Searching needs 1 worker"):
        SideBySide.of([Node("id", "a", 0.0, 0.0, 1e9)])


@pytest.mark.slow
@pytest.mark.ray
def test_candidates_tried_side_by_side_are_judged_as_one_after_the_other(
    cluster, toy_csv, tiny_folder, tmp_path, heard, capsys
):
    """The same candidates, and the same losses within rounding; the winner is left for the training."""
    import json

    from tagsmith.pipeline import prepare_rows, search_ready
    from tagsmith.scale.nodes import living

    config = Config.of(
        {
            "data": {"split": "hash"},
            "model": {"backbone": str(tiny_folder), "layers": 3, "max_tokens": 48},
            "tuning": {"method": "auto", "budget": "60s", "precision": "fp32"},
            "seed": 7,
        }
    )
    ready, found = prepare_rows(toy_csv, config=config), {}
    for name, together in (("one", OneByOne()), ("many", SideBySide.of(living()))):
        heard.clear()
        search_ready(ready, out=tmp_path / name, config=config, together=together, resume=False, listen=heard.append)
        found[name] = {
            event.values["name"]: event.values["loss"]
            for event in heard
            if event.name == "candidate" and event.values["is_judged"]
        }
    assert capsys.readouterr().out == "", "what a command prints is not Ray's"
    assert len(found["many"]) > 2
    assert found["many"].keys() == found["one"].keys()
    for name, loss in found["one"].items():
        assert found["many"][name] == pytest.approx(loss, abs=1e-3), name
    plans = [json.loads((tmp_path / f"{name}.plan.json").read_text()) for name in ("one", "many")]
    assert plans[0]["settings"]["tuning"]["method"] == plans[1]["settings"]["tuning"]["method"]


class OneByOne:
    """The trials as they are without a cluster, with as much time."""

    lanes = 3

    def __call__(self, trials):
        return [trial.judged() for trial in trials]
