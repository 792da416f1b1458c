"""Items that stand in a file are the items that stand in memory."""

import os
import sys

import pytest
import torch

from data import gather as module
from data.errors import UserError
from data.gather import gather, mapped, take

CHUNKS = [torch.arange(24 * n, dtype=torch.int64).view(n, 2, 12) + n for n in (3, 1, 2)]


@pytest.mark.parametrize("in_memory", [2**28, 300, 0])
@pytest.mark.parametrize("at_once", [2**26, 800, 100])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16, torch.float64])
def test_equals_concatenation(monkeypatch, in_memory, at_once, dtype):
    monkeypatch.setattr(module, "IN_MEMORY", in_memory)
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    chunks = [chunk.to(dtype) for chunk in CHUNKS]
    whole = gather(iter(chunks))
    assert torch.equal(whole, torch.cat(chunks))
    assert torch.equal(whole[torch.tensor([5, 0])], torch.cat(chunks)[[5, 0]])


def test_a_large_tensor_is_mapped_and_leaves_no_file(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "IN_MEMORY", 1000)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    whole = gather(torch.full((1, 500), i, dtype=torch.uint8) for i in range(100))
    assert whole.shape == (100, 500)
    assert not os.listdir(tmp_path)
    if os.path.exists("/proc/self/maps"):
        with open("/proc/self/maps") as maps:
            assert any(str(tmp_path) in line and "deleted" in line for line in maps)


@pytest.mark.parametrize("in_memory", [2**28, 1000])
def test_chunks_are_not_held_together(monkeypatch, in_memory):
    """Small tensors that stay between a network's batches break memory up, so that it grows by several times their size."""
    monkeypatch.setattr(module, "IN_MEMORY", in_memory)
    alive, most = [], 0

    def chunks():
        nonlocal most
        import weakref

        for i in range(50):
            chunk = torch.full((1, 400), i, dtype=torch.uint8)
            alive.append(weakref.ref(chunk))
            yield chunk
            del chunk
            most = max(most, sum(ref() is not None for ref in alive))

    assert len(gather(chunks())) == 50
    assert most <= 2


def test_errors():
    with pytest.raises(UserError, match="no items"):
        gather([])
    with pytest.raises(UserError, match=r"not of one kind: 3×4 torch\.float32 and 3×5 torch\.float32"):
        gather([torch.zeros(1, 3, 4), torch.zeros(1, 3, 5)])


def test_time_grows_with_the_number_of_chunks(monkeypatch):
    """A loader may give one large item at a time: what is held is counted once for each of them."""
    monkeypatch.setattr(module, "AT_ONCE", 8)
    counted = []

    class Counted(torch.Tensor):
        @property
        def nbytes(self):
            counted.append(1)
            return super().nbytes

    gather(torch.zeros(1, 2).as_subclass(Counted) for _ in range(200))
    assert len(counted) == 200


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count what is mapped in other ways")
def test_a_file_larger_than_memory_is_mapped(tmp_path):
    """Linux sets memory aside for a private mapping that may be written to, unless it is told not to."""
    size = 2 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with open(tmp_path / "sparse", "w+b") as file:
        file.truncate(size)
        file.seek(size - 2)
        file.write(bytes([3, 4]))
        file.flush()
        whole = mapped(file, torch.uint8, (2, -1))
    assert whole[:, -2:].tolist() == [[0, 0], [3, 4]]
    whole[1, -1] = 5
    with open(tmp_path / "sparse", "rb") as file:
        file.seek(size - 1)
        assert file.read() == b"\4", "what is changed in memory stays there"


@pytest.mark.parametrize("in_memory", [2**28, 100])
def test_rows_are_taken_in_their_order(monkeypatch, in_memory):
    monkeypatch.setattr(module, "IN_MEMORY", in_memory)
    monkeypatch.setattr(module, "AT_ONCE", 48)
    items, rows = torch.arange(60.0).view(20, 3), torch.randperm(20)[:17]
    assert torch.equal(take(items, rows), items[rows])
