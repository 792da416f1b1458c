"""Randomness by counters: the same parts give the same stream, and the state outside is left alone."""

import pytest
import torch

from data.seeding import mix_seed, seeded


def test_neighbouring_seeds_are_unrelated():
    seeds = [mix_seed(0, epoch, batch) for epoch in range(40) for batch in range(40)]
    assert len(set(seeds)) == 1600
    assert mix_seed(1, 2) != mix_seed(2, 1)
    assert mix_seed(0) != mix_seed(0, 0)
    assert all(0 <= seed < 2**63 for seed in seeds)
    bits = torch.tensor([[seed >> i & 1 for i in range(63)] for seed in seeds], dtype=torch.float)
    assert float((bits.mean(0) - 0.5).abs().max()) < 0.06, "every bit is fair: 4.5 standard deviations of 1600 draws"


def test_mix_seed_is_splitmix64():
    """The first output of SplitMix64 from state 0 (Steele et al. 2014), without its top bit."""
    assert mix_seed(0) == 0xE220A8397B1DCDAF & 0x7FFFFFFFFFFFFFFF


def test_blocks_are_decided_by_their_parts_alone():
    def draw(*parts):
        with seeded(*parts):
            return torch.rand(4)

    first = draw(0, 1)
    torch.rand(7)
    assert torch.equal(draw(0, 1), first)
    assert not torch.equal(draw(0, 2), first)
    assert not torch.equal(draw(1, 0), first)


def test_whether_there_is_an_accelerator_is_asked_once(monkeypatch):
    """Where there is none torch looks for a driver each time."""
    with seeded(0):
        pass
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: pytest.fail("asked again"))
    with seeded(0):
        pass


def test_the_state_outside_is_restored():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with seeded(0):
        torch.rand(5)
    assert torch.equal(torch.rand(2), expected)
    torch.manual_seed(3)
    with pytest.raises(RuntimeError, match="invalid"), seeded(0):
        torch.rand(5).reshape(2)
    assert torch.equal(torch.rand(2), expected), "also after an error"


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), "cuda"])
def test_device_is_forked_with_the_cpu(device, monkeypatch):
    forked = {}

    class Fork:
        def __init__(self, **options):
            forked.update(options)

        def __enter__(self):
            torch.manual_seed(0)

        def __exit__(self, *_):
            return None

    monkeypatch.setattr(torch.random, "fork_rng", Fork)
    with seeded(0, device=device):
        pass
    assert forked["devices"] == ([] if torch.device(device).type == "cpu" else [torch.device(device)])
    assert forked["device_type"] == "cuda"
