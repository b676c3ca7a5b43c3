import json
import subprocess
import sys

import pytest

import tagsmith

HEAVY = ["torch", "transformers", "polars", "pydantic", "sklearn", "scipy", "numpy", "matplotlib", "huggingface_hub"]
MEASURE = (
    "import json, sys, time; start = time.perf_counter(); import tagsmith; took = time.perf_counter() - start; "
    "print(json.dumps([took, sorted(name for name in sys.modules if '.' not in name)]))"
)


def import_once():
    command = [sys.executable, "-c", MEASURE]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.alone
def test_importing_tagsmith_takes_less_than_50_ms():
    assert min(import_once()[0] for _ in range(5)) < 0.050


def test_importing_tagsmith_imports_nothing_heavy():
    assert [name for name in HEAVY if name in import_once()[1]] == []


def test_every_public_name_is_there():
    assert [name for name in tagsmith.__all__ if not hasattr(tagsmith, name)] == []
    assert set(tagsmith.__all__) <= set(dir(tagsmith))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = tagsmith.trian
