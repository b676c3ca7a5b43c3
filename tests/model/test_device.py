import time

import pytest
import torch

from tagsmith.errors import SettingError
from tagsmith.model.device import (
    arithmetic,
    bf16_is_faster,
    choose_device,
    processor_has_bf16,
    put_random_states,
    random_states,
)

HERE = torch.device("cpu")
GPU = torch.device("cuda")


def test_the_arithmetic_is_the_one_asked_for():
    asked = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    assert {name: arithmetic(name, HERE) for name in asked} == asked


@pytest.fixture
def fresh():
    """No look at this machine is remembered, neither before the test nor after it."""
    bf16_is_faster.cache_clear()
    yield
    bf16_is_faster.cache_clear()


@pytest.mark.parametrize(
    ("has_it", "slower", "taken"),
    [
        (True, torch.float32, True),
        (True, torch.bfloat16, False),
        (False, torch.float32, False),
    ],
)
@pytest.mark.usefixtures("fresh")
def test_by_itself_bf16_is_taken_where_the_processor_is_faster_in_it(has_it, slower, taken, monkeypatch):
    def product(rows, weight):
        time.sleep(0.004 if rows.dtype is slower else 0.001)

    monkeypatch.setattr("tagsmith.model.device.processor_has_bf16", lambda: has_it)
    monkeypatch.setattr("tagsmith.model.device.linear", product)
    assert arithmetic("auto", HERE) is (torch.bfloat16 if taken else torch.float32)
    assert arithmetic("bf16", HERE) is torch.bfloat16


@pytest.mark.usefixtures("fresh")
def test_each_look_at_a_machine_finds_the_same():
    found = bf16_is_faster()
    bf16_is_faster.cache_clear()
    assert bf16_is_faster() is found
    assert processor_has_bf16() or not found


def test_by_itself_a_gpu_takes_bf16_where_its_hardware_has_it(monkeypatch):
    for has_it, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda has_it=has_it, **_: has_it)
        assert arithmetic("auto", GPU) is dtype


def test_a_device_that_is_not_there_is_refused_with_a_word(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == HERE
    with pytest.raises(SettingError, match="finds 0 CUDA devices. Expected 1 or more"):
        choose_device("cuda")
    with pytest.raises(SettingError, match="no Apple GPU"):
        choose_device("mps")
    with pytest.raises(SettingError, match="no device 'gpu'"):
        choose_device("gpu")


def test_each_process_of_torchrun_takes_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert choose_device("auto") == torch.device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("auto") == choose_device("cuda") == torch.device("cuda:1")
    assert choose_device("cuda:0") == torch.device("cuda:0")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(SettingError, match="by process 2 of torchrun, but this PyTorch finds 2"):
        choose_device("auto")


def test_generators_go_on_where_they_were():
    states = random_states(HERE)
    drawn = torch.rand(3)
    put_random_states(states, HERE)
    assert torch.equal(torch.rand(3), drawn)
