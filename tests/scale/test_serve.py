import importlib.util
import inspect
from pathlib import Path

import pytest

from tagsmith.deployment.limits import Keys
from tagsmith.deployment.server import Door
from tagsmith.deployment.supervisor import Launch
from tagsmith.deployment.versions import Plan
from tagsmith.errors import BundleError, ResourceError, SettingError
from tagsmith.scale.serve import Replicas, served

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")


def of_one_server(name):
    """A file of the tests of `tagsmith serve`, to be asked of a cluster as well."""
    path = Path(__file__).parents[1] / "deployment" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_of_one_server", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WIRE, CONFTEST = of_one_server("test_wire"), of_one_server("conftest")
ASKED = [
    (WIRE.test_huggingface_hubs_client_gets_all_labels, {}),
    (WIRE.test_huggingface_hubs_client_is_told_what_is_wrong, {}),
    (WIRE.test_one_text_gets_a_flat_list_and_several_a_nested_one, {"path": "/predict"}),
    (WIRE.test_a_long_text_is_cut_and_said_to_be_or_refused_when_it_is_not_to_be_cut, {}),
    (WIRE.test_every_answer_tells_its_times_tokens_and_version, {}),
    (WIRE.test_sagemakers_ping_and_the_probes_answer, {}),
    (WIRE.test_vllms_route_names_the_likeliest_label_and_all_probabilities, {"path": "/classify"}),
    (WIRE.test_token_ids_and_other_inputs_are_refused_as_openai_shapes_errors, {"given": [1, 2]}),
    (WIRE.test_a_model_that_is_not_there_is_not_found, {}),
    (WIRE.test_each_line_is_answered_in_order_and_a_bad_one_by_itself, {}),
    (WIRE.test_the_openapi_description_is_whole, {}),
    (WIRE.test_info_tells_what_is_served_and_its_limits, {}),
]


class Asked(CONFTEST.Served):
    """What is served on a cluster, asked as a single server is."""

    def __init__(self, url):
        self.url, self.port = url, int(url.rpartition(":")[2])

    def ask(self, path, body=None, *, headers=None, **options):
        """One request with the key."""
        return super().ask(path, body, headers={"authorization": f"Bearer {KEY}"} | (headers or {}), **options)


def plan_of(bundle):
    return Plan(launch=Launch(bundle, engine="reference"), name="toy", settings={})


KEY = "k" * 32


@pytest.fixture(scope="module")
def on_cluster(cluster, llama_bundle):
    with served(plan_of(llama_bundle), Door(port=0, keys=Keys({"me": KEY}))) as url:
        yield Asked(url)


@pytest.fixture(scope="module")
def known(on_cluster, llama_bundle):
    """What the tests of one server ask for, by name."""
    from huggingface_hub import InferenceClient

    from tagsmith.deployment.bundle import load

    bundle = load(llama_bundle)
    probs = bundle.predict_proba(WIRE.TEXTS)
    expected = [dict(zip(bundle.labels, each, strict=True)) for each in probs]
    hub = InferenceClient(model=on_cluster.url + "/", token=KEY)
    return {"llama_server": on_cluster, "hub": hub, "bundle": bundle, "expected": expected}


@pytest.mark.ray
@pytest.mark.parametrize(("test", "given"), ASKED, ids=[test.__name__.removeprefix("test_") for test, _ in ASKED])
def test_on_a_cluster(test, given, known):
    test(**{name: given.get(name, known.get(name)) for name in inspect.signature(test).parameters})


@pytest.mark.ray
def test_without_the_key_nothing_is_answered(on_cluster):
    assert on_cluster.ask("/predict", {"inputs": "a"}, headers={"authorization": "Bearer wrong"}).status == 401


@pytest.mark.ray
def test_a_request_for_another_host_is_refused_on_a_cluster_too(on_cluster):
    assert on_cluster.ask("/predict", {"inputs": "a"}, headers={"host": "evil.example"}).status in (400, 403, 421)


def test_an_address_that_others_reach_needs_keys(llama_bundle):
    with pytest.raises(SettingError, match="key"), served(plan_of(llama_bundle), Door(host="0.0.0.0")):
        pass


def test_a_folder_that_is_no_bundle_is_refused_before_a_cluster_starts(tmp_path):
    with pytest.raises(BundleError), served(plan_of(tmp_path), Door()):
        pass


@pytest.mark.parametrize("asked", ["0", "3:1", "auto"])
def test_numbers_of_replicas_that_make_no_sense_are_refused(asked):
    with pytest.raises(SettingError, match="Expected a number, as 2"):
        Replicas.read(asked)


@pytest.mark.ray
def test_replicas_that_do_not_fit_are_refused_instead_of_waited_for(cluster, llama_bundle):
    wanted = Replicas(fewest=40, most=40)
    with pytest.raises(ResourceError, match="needs 40 workers"), served(plan_of(llama_bundle), Door(), replicas=wanted):
        pass
