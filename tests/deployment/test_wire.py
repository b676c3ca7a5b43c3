"""Each route with the client that people have, against what the bundle says in this process."""

import json
import math
import shutil
import socket
import subprocess

import numpy as np
import pytest

from tagsmith.deployment.bundle import load

TEXTS = ["the room was lovely and great", "an awful rude waiter", "our parcel came in the morning"]


@pytest.fixture(scope="module")
def bundle(llama_bundle):
    return load(llama_bundle)


@pytest.fixture(scope="module")
def expected(bundle):
    """Probabilities by label of each text."""
    return [dict(zip(bundle.labels, probs, strict=True)) for probs in bundle.predict_proba(TEXTS)]


def check(found, wanted, *, tolerance=1e-5):
    """Labels with scores, the best first, are what was wanted."""
    assert [each["label"] for each in found] == sorted(wanted, key=wanted.get, reverse=True)
    for each in found:
        assert each["score"] == pytest.approx(wanted[each["label"]], abs=tolerance)


# ---- Hugging Face


@pytest.fixture(scope="module")
def hub(llama_server):
    from huggingface_hub import InferenceClient

    return InferenceClient(model=llama_server.url + "/")


def as_dicts(found):
    return [{"label": each.label, "score": each.score} for each in found]


def test_huggingface_hubs_client_gets_all_labels(hub, expected):
    for text, wanted in zip(TEXTS, expected, strict=True):
        check(as_dicts(hub.text_classification(text)), wanted)


def test_huggingface_hubs_client_gets_as_many_labels_as_it_asks_for(hub, expected):
    found = hub.text_classification(TEXTS[0], top_k=1)
    assert [each.label for each in found] == [max(expected[0], key=expected[0].get)]
    assert len(hub.text_classification(TEXTS[0], top_k=5)) == 2


def test_huggingface_hubs_client_gets_the_function_it_asks_for(hub, bundle):
    logits = bundle.engine.logits_of(bundle.engine.encode(TEXTS[:1]))[0]
    for function, wanted in (("none", logits), ("sigmoid", 1 / (1 + np.exp(-logits)))):
        found = as_dicts(hub.text_classification(TEXTS[0], function_to_apply=function))
        check(found, dict(zip(bundle.labels, map(float, wanted), strict=True)), tolerance=1e-4)
    check(as_dicts(hub.text_classification(TEXTS[0], function_to_apply="softmax")), softmax_of(bundle, logits))


def softmax_of(bundle, logits):
    powers = np.exp(logits - logits.max())
    return dict(zip(bundle.labels, map(float, powers / powers.sum()), strict=True))


def test_huggingface_hubs_client_is_told_what_is_wrong(hub):
    from huggingface_hub.errors import HfHubHTTPError

    with pytest.raises(HfHubHTTPError, match="is empty") as failure:
        hub.text_classification("  ")
    assert failure.value.response.status_code == 422
    assert failure.value.response.headers["x-request-id"]


def test_a_list_at_the_root_is_a_batch(llama_server, expected):
    answer = llama_server.ask("/", {"inputs": TEXTS, "options": {"wait_for_model": True}})
    for found, wanted in zip(answer.json, expected, strict=True):
        check(found, wanted)


def test_an_answer_says_more_when_it_is_asked_for_details(llama_server):
    long = "1 " * 100
    answer = llama_server.ask("/", {"inputs": ["a", long], "parameters": {"details": True}})
    assert [labels[0]["truncated"] for labels in answer.json] == [False, True]
    assert answer.json[0][0]["abstained"] is False
    assert answer.json[0][0]["model_version"] == answer.headers["x-model-version"]


# ---- Text Embeddings Inference and SageMaker


@pytest.mark.parametrize("path", ["/predict", "/invocations"])
def test_one_text_gets_a_flat_list_and_several_a_nested_one(path, llama_server, expected):
    check(llama_server.ask(path, {"inputs": TEXTS[0]}).json, expected[0])
    for found, wanted in zip(llama_server.ask(path, {"inputs": [[t] for t in TEXTS]}).json, expected, strict=True):
        check(found, wanted)


def test_raw_scores_are_logits(llama_server, bundle):
    logits = bundle.engine.logits_of(bundle.engine.encode(TEXTS[:1]))[0]
    found = llama_server.ask("/predict", {"inputs": TEXTS[0], "raw_scores": True}).json
    check(found, dict(zip(bundle.labels, map(float, logits), strict=True)), tolerance=1e-4)


def test_a_list_of_two_texts_is_a_pair_which_a_classifier_of_single_texts_refuses(llama_server):
    answer = llama_server.ask("/predict", {"inputs": TEXTS[:2]})
    assert answer.status == 422
    assert "pair" in answer.json["error"]
    assert llama_server.ask("/predict", {"inputs": TEXTS}).status == 422


def test_a_long_text_is_cut_and_said_to_be_or_refused_when_it_is_not_to_be_cut(llama_server):
    long = "1 " * 100
    answer = llama_server.ask("/predict", {"inputs": [["a"], [long]]})
    assert (answer.status, answer.headers["x-truncated"]) == (200, "1")
    refused = llama_server.ask("/predict", {"inputs": long, "truncate": False})
    assert refused.status == 422
    assert "48 tokens" in refused.json["error"]
    assert refused.json["error_type"] == "Validation"


def test_the_other_side_of_a_long_text_cannot_be_had(llama_server):
    body = {"inputs": "a", "truncation_direction": "Left"}
    assert llama_server.ask("/predict", body).status == 422
    assert llama_server.ask("/predict", body | {"truncation_direction": "right"}).status == 200


def test_every_answer_tells_its_times_tokens_and_version(llama_server):
    headers = llama_server.ask("/predict", {"inputs": "a room"}, headers={"x-request-id": "mine-1"}).headers
    assert headers["x-request-id"] == "mine-1"
    assert int(headers["x-compute-tokens"]) >= 2
    assert len(headers["x-model-version"]) == 12
    for name in ("x-queue-time", "x-inference-time", "x-tokenization-time", "x-total-time"):
        assert int(headers[name]) >= 0


def test_the_trace_of_a_caller_is_the_id_of_its_request(llama_server):
    trace = "0af7651916cd43dd8448eb211c80319c"
    answer = llama_server.ask("/predict", {"inputs": "a"}, headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"})
    assert answer.headers["x-request-id"] == trace


def test_sagemakers_ping_and_the_probes_answer(llama_server):
    assert [llama_server.ask(path).status for path in ("/ping", "/health", "/ready")] == [200, 200, 200]


# ---- vLLM


@pytest.mark.parametrize("path", ["/classify", "/v1/classify"])
def test_vllms_route_names_the_likeliest_label_and_all_probabilities(path, llama_server, expected, bundle):
    answer = llama_server.ask(path, {"model": "toy", "input": TEXTS}).json
    assert (answer["object"], answer["model"]) == ("list", "toy")
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0
    for place, (found, wanted) in enumerate(zip(answer["data"], expected, strict=True)):
        assert (found["index"], found["num_classes"]) == (place, 2)
        assert found["label"] == max(wanted, key=wanted.get)
        assert found["probs"] == pytest.approx([wanted[label] for label in bundle.labels], abs=1e-5)


def test_vllms_route_refuses_a_long_text_unless_it_may_be_cut(llama_server):
    long = "1 " * 100
    assert llama_server.ask("/classify", {"input": long}).status == 400
    answer = llama_server.ask("/classify", {"input": long, "truncate_prompt_tokens": -1})
    assert answer.json["data"][0]["truncated"] is True
    assert llama_server.ask("/classify", {"input": "a", "truncate_prompt_tokens": 7}).status == 400


def test_vllms_route_gives_logits_when_no_activation_is_wanted(llama_server, bundle):
    logits = bundle.engine.logits_of(bundle.engine.encode(TEXTS[:1]))[0]
    answer = llama_server.ask("/classify", {"input": TEXTS[0], "use_activation": False}).json
    assert answer["data"][0]["probs"] == pytest.approx(logits.tolist(), abs=1e-4)


@pytest.mark.parametrize("given", [[1, 2, 3], [[1], [2]], [], None, {"a": 1}], ids=str)
def test_token_ids_and_other_inputs_are_refused_as_openai_shapes_errors(given, llama_server):
    answer = llama_server.ask("/classify", {"input": given})
    assert answer.status == 400
    assert set(answer.json["error"]) == {"message", "type", "param", "code"}


def test_a_model_that_is_not_there_is_not_found(llama_server):
    assert llama_server.ask("/v1/classify", {"input": "a", "model": "gpt"}).status == 404
    assert llama_server.ask("/v2/models/gpt/infer", {"inputs": []}).status == 404
    assert llama_server.ask("/v2/models/toy/versions/7").status == 404


# ---- OpenAI


@pytest.fixture(scope="module")
def openai_client(several_server):
    import openai

    with openai.OpenAI(base_url=several_server.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


def test_openais_client_reads_labels_as_categories(openai_client, several_bundle):
    bundle = load(several_bundle)
    answers = bundle.answer(TEXTS)
    found = openai_client.moderations.create(input=TEXTS)
    assert found.model == "guard"
    for result, answer in zip(found.results, answers, strict=True):
        told = json.loads(result.model_dump_json())
        assert result.flagged == bool(answer.labels)
        assert {name for name in bundle.labels if told["categories"][name]} == set(answer.labels)
        scores = [told["category_scores"][name] for name in bundle.labels]
        assert scores == pytest.approx(answer.probabilities, abs=1e-5)


def test_openais_client_reads_parts_of_text_and_lists_the_model(openai_client):
    parts = [{"type": "text", "text": "a lovely room"}]
    assert len(openai_client.moderations.create(input=parts, model="omni-moderation-latest").results) == 1
    assert [model.id for model in openai_client.models.list()] == ["guard"]


def test_openais_client_is_told_what_is_wrong(openai_client):
    import openai

    with pytest.raises(openai.UnprocessableEntityError, match="is empty"):
        openai_client.moderations.create(input="")
    with pytest.raises(openai.NotFoundError, match="no such model"):
        openai_client.moderations.create(input="a", model="another")


def test_a_classifier_of_one_label_is_asked_which_labels_flag(llama_server, start, llama_bundle):
    refused = llama_server.ask("/v1/moderations", {"input": TEXTS[1]})
    assert refused.status == 422
    assert "deployment.flagged" in refused.json["error"]["message"]
    server = start(llama_bundle, "--engine", "tfidf", "--set", 'deployment.flagged=["complaint"]')
    results = server.ask("/v1/moderations", {"input": TEXTS[:2]}).json["results"]
    assert [result["flagged"] for result in results] == [False, True]


def test_several_labels_are_sigmoids_on_hugging_faces_route(several_server, several_bundle):
    bundle = load(several_bundle)
    wanted = dict(zip(bundle.labels, bundle.predict_proba(TEXTS[:1])[0], strict=True))
    check(several_server.ask("/", {"inputs": TEXTS[0]}).json[0], wanted)
    assert not math.isclose(sum(wanted.values()), 1)


# ---- KServe


@pytest.fixture
def triton(llama_server):
    from tritonclient import http

    client = http.InferenceServerClient(llama_server.url.removeprefix("http://"))
    yield client
    client.close()


@pytest.mark.parametrize("binary_in", [False, True], ids=["JSON in", "binary in"])
@pytest.mark.parametrize("binary_out", [False, True, None], ids=["JSON out", "binary out", "unsaid"])
def test_tritons_client_gets_labels_and_probabilities(binary_in, binary_out, triton, bundle, expected):
    from tritonclient import http

    tensor = http.InferInput("text", [len(TEXTS)], "BYTES")
    tensor.set_data_from_numpy(np.array(TEXTS, dtype=object), binary_data=binary_in)
    outputs = None
    if binary_out is not None:
        outputs = [http.InferRequestedOutput(name, binary_data=binary_out) for name in ("label", "probabilities")]
    answer = triton.infer("toy", [tensor], outputs=outputs, request_id="42")
    assert answer.get_response()["id"] == "42"
    labels = [each.decode() if isinstance(each, bytes) else each for each in answer.as_numpy("label")]
    assert labels == [max(wanted, key=wanted.get) for wanted in expected]
    wanted = [[probs[label] for label in bundle.labels] for probs in expected]
    np.testing.assert_allclose(answer.as_numpy("probabilities"), wanted, atol=1e-5)


def test_tritons_client_asks_how_things_are(triton, llama_server):
    version = llama_server.ask("/info").json["version"]
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("toy")
    assert triton.is_model_ready("toy", version)
    assert not triton.is_model_ready("another")
    assert triton.get_server_metadata()["name"] == "tagsmith"
    assert [tensor["name"] for tensor in triton.get_model_metadata("toy")["inputs"]] == ["text"]


@pytest.mark.parametrize(
    "output", [{"name": []}, {"name": {}}, {}, {"name": "x"}, {"name": "label", "parameters": 1}], ids=str
)
def test_an_output_that_is_none_is_refused(output, llama_server):
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}
    assert llama_server.ask("/v2/models/toy/infer", {"inputs": [tensor], "outputs": [output]}).status == 400


@pytest.mark.parametrize(
    "tensor",
    [
        {"name": "text", "shape": [3], "datatype": "BYTES", "data": ["a"]},
        {"name": "text", "shape": [1], "datatype": "FP32", "data": [1.0]},
        {"name": "other", "shape": [1], "datatype": "BYTES", "data": ["a"]},
        {"name": "text", "shape": [1], "datatype": "BYTES", "data": [7]},
        {"name": "text", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 900}},
        {"name": "text", "shape": [-1], "datatype": "BYTES", "data": ["a"]},
    ],
    ids=["shape", "type", "name", "numbers", "size", "negative"],
)
def test_a_tensor_that_is_no_text_is_refused(tensor, llama_server):
    answer = llama_server.ask("/v2/models/toy/infer", {"inputs": [tensor]})
    assert answer.status == 400
    assert isinstance(answer.json["error"], str)


# ---- Pairs

PAIRS = [("the room was great", "our waiter was rude"), ("soup", "bread and soup")]


@pytest.fixture(scope="module")
def expected_of_pairs(pair_bundle):
    bundle = load(pair_bundle)
    answers = bundle.engine.answer([first for first, _ in PAIRS], [second for _, second in PAIRS])
    return [dict(zip(bundle.labels, answer.probabilities, strict=True)) for answer in answers]


def test_a_pair_is_flat_and_pairs_are_nested_on_the_route_of_text_embeddings_inference(pair_server, expected_of_pairs):
    check(pair_server.ask("/predict", {"inputs": list(PAIRS[0])}).json, expected_of_pairs[0])
    found = pair_server.ask("/predict", {"inputs": [list(pair) for pair in PAIRS]}).json
    for labels, wanted in zip(found, expected_of_pairs, strict=True):
        check(labels, wanted)


def test_pairs_are_answered_on_every_route_that_has_a_way_to_say_them(pair_server, expected_of_pairs):
    said = [{"text": first, "text_pair": second} for first, second in PAIRS]
    for labels, wanted in zip(pair_server.ask("/", {"inputs": said}).json, expected_of_pairs, strict=True):
        check(labels, wanted)
    tensors = [
        {"name": name, "shape": [2], "datatype": "BYTES", "data": [pair[place] for pair in PAIRS]}
        for place, name in enumerate(["text", "text_pair"])
    ]
    answer = pair_server.ask("/v2/models/pairs/infer", {"inputs": tensors, "outputs": [{"name": "probabilities"}]})
    wanted = [list(probs.values()) for probs in expected_of_pairs]
    np.testing.assert_allclose(np.reshape(answer.json["outputs"][0]["data"], (2, 2)), wanted, atol=1e-5)
    lines = "\n".join(map(json.dumps, said)).encode()
    answer = pair_server.ask("/batch", raw=lines, headers={"content-type": "application/x-ndjson"})
    for line, probs in zip(answer.body.splitlines(), expected_of_pairs, strict=True):
        assert json.loads(line)["probabilities"] == pytest.approx(probs, abs=1e-5)


def test_a_classifier_of_pairs_refuses_single_texts(pair_server):
    for path, body in (("/", {"inputs": "a"}), ("/predict", {"inputs": [["a"], ["b"]]}), ("/classify", {"input": "a"})):
        answer = pair_server.ask(path, body)
        assert answer.status == (400 if path == "/classify" else 422)
        assert b"pairs of texts" in answer.body


# ---- Many lines


def test_each_line_is_answered_in_order_and_a_bad_one_by_itself(llama_server, expected):
    lines = [json.dumps({"id": i, "text": text}) for i, text in enumerate(TEXTS)]
    bad = ["nonsense", '{"id": 9, "text": " "}', '{"text": 1}', '"\\ud800"']
    raw = "\n".join([lines[0], *bad, "", json.dumps(TEXTS[1]), lines[2]]).encode()
    answer = llama_server.ask("/batch", raw=raw, headers={"content-type": "application/x-ndjson"})
    rows = [json.loads(line) for line in answer.body.splitlines()]
    assert [row["line"] for row in rows] == [1, 2, 3, 4, 5, 7, 8]
    assert [row.get("status", 200) for row in rows] == [200, 400, 422, 422, 422, 200, 200]
    assert [row.get("id") for row in rows] == [0, None, 9, None, None, None, 2]
    for row, wanted in zip([rows[0], rows[5], rows[6]], expected, strict=True):
        assert row["probabilities"] == pytest.approx(wanted, abs=1e-5)
        assert row["label"] == max(wanted, key=wanted.get)


def test_more_lines_than_the_queue_holds_are_all_answered(llama_server):
    raw = b"".join(json.dumps({"id": i, "text": f"room {i % 50}"}).encode() + b"\n" for i in range(3000))
    answer = llama_server.ask("/batch", raw=raw, headers={"content-type": "application/x-ndjson"})
    rows = [json.loads(line) for line in answer.body.splitlines()]
    assert [row["id"] for row in rows] == list(range(3000))
    assert not [row for row in rows if "error" in row]


def test_a_line_that_is_too_long_is_refused_and_the_next_one_answered(llama_server):
    raw = b'"' + b"a" * 1_500_000 + b'"\n"lovely"\n'
    answer = llama_server.ask("/batch", raw=raw, headers={"content-type": "application/x-ndjson"})
    rows = [json.loads(line) for line in answer.body.splitlines()]
    assert [(row["line"], row.get("status", 200)) for row in rows] == [(1, 413), (2, 200)]


def test_answers_come_while_the_client_is_still_sending(llama_server):
    head = (
        b"POST /batch HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked"
    )
    with socket.create_connection(("127.0.0.1", llama_server.port), timeout=20) as client:
        client.sendall(head + b'\r\n\r\n9\r\n"lovely"\n\r\n')
        answer = b""
        while b'"line": 1' not in answer:
            answer += client.recv(65536)
        client.sendall(b'8\r\n"awful"\n\r\n0\r\n\r\n')
        while not answer.endswith(b"0\r\n\r\n"):
            answer += client.recv(65536)
    assert answer.count(b"model_version") == 2


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl_sends_a_file_of_lines(llama_server, tmp_path):
    (tmp_path / "lines.jsonl").write_text('"lovely"\n"awful"\n', encoding="utf-8")
    kind, file = "content-type: application/x-ndjson", f"@{tmp_path / 'lines.jsonl'}"
    command = ["curl", "-s", "-m", "20", "-H", kind, "--data-binary", file, llama_server.url + "/batch"]
    lines = subprocess.run(command, capture_output=True, check=True).stdout.splitlines()
    assert [json.loads(line)["line"] for line in lines] == [1, 2]


# ---- What the server says of itself


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_every_line_for_curl_on_the_page_of_routes_works(llama_server):
    import html
    import re
    import shlex

    page = llama_server.ask("/docs").body.decode()
    assert "<script" not in page
    assert re.findall(r"""(?:src|href)=["'](?!openapi\.json)""", page) == []
    lines = [html.unescape(line) for line in re.findall(r"<pre>(curl .*?)</pre>", page)]
    assert len(lines) >= 15
    for line in lines:
        assert f" {llama_server.url}/" in line
        asked = line.replace("{model}", "toy").replace("{version}", llama_server.ask("/info").json["version"])
        command = [*shlex.split(asked), "-s", "-o", "/dev/null", "-w", "%{http_code}"]
        status = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert status == ("422" if "moderations" in line else "200"), line


def test_a_browser_at_the_root_is_led_to_the_page(llama_server):
    answer = llama_server.ask("/")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/html")


def test_the_openapi_description_is_whole(llama_server):
    paths = llama_server.ask("/openapi.json").json["paths"]
    wanted = {"/", "/predict", "/invocations", "/ping", "/classify", "/v1/classify", "/v1/moderations", "/v1/models"}
    wanted |= {"/v2", "/v2/models/{model}/infer", "/batch", "/health", "/ready", "/info", "/metrics"}
    assert wanted <= set(paths)


def test_info_tells_what_is_served_and_its_limits(llama_server, bundle):
    info = llama_server.ask("/info").json
    assert (info["name"], info["labels"], info["max_tokens"]) == ("toy", list(bundle.labels), 48)
    assert info["limits"]["texts"] == 32
    assert info["limits"]["letters"] == 250 * 48


NAMES = [
    *("requests_total", "request_duration_seconds", "queue_duration_seconds", "tokenize_duration_seconds"),
    *("inference_duration_seconds", "batch_texts", "batch_tokens", "batch_padding_ratio", "queue_texts"),
    *("queue_tokens", "rejected_total", "truncated_texts_total", "unknown_char_texts_total", "predictions_total"),
    *("confidence", "nonfinite_total", "model_info", "reload_total", "shadow_disagreement_total"),
]


def test_counters_have_their_names(llama_server):
    llama_server.ask("/predict", {"inputs": "1 " * 100})
    text = llama_server.ask("/metrics").body.decode()

    assert [name for name in NAMES if f"# TYPE tagsmith_{name} " not in text] == []
    assert "process_resident_memory_bytes" in text
    assert llama_server.metric("tagsmith_truncated_texts_total") > 0
    assert llama_server.metric('tagsmith_requests_total{code="200",route="/predict"}') > 0
