import sys
from pathlib import Path

import pytest
import torch

from tagsmith.model.mapping import let_go

ROWS = 40_000


def mapped_bytes():
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    line = next(line for line in lines if line.startswith("RssFile"))
    return int(line.split()[1]) * 1024


@pytest.fixture
def mapped(tmp_path):
    return torch.from_file(str(tmp_path / "states"), shared=True, size=ROWS * 256, dtype=torch.float32).view(ROWS, 256)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of this process from /proc")
def test_what_was_written_leaves_memory_and_stays_in_the_file(mapped):
    before = mapped_bytes()
    for start in range(0, ROWS, 500):
        mapped[start : start + 500] = start
        let_go(mapped[start : start + 500])
    assert mapped_bytes() - before < mapped.nbytes / 4
    for start in range(0, ROWS, 500):
        assert (mapped[start : start + 500] == start).all()
    assert mapped_bytes() - before > mapped.nbytes / 2


def test_plain_memory_is_left_alone():
    plain = torch.arange(100_000)
    let_go(plain[1000:50_000])
    assert torch.equal(plain, torch.arange(100_000))
