"""Tasks to train on and to choose by."""

import pickle

import torch

from inference.meta.options import SibOptions
from inference.meta.tasks import training_tasks
from tests.conftest import marked_splits


def test_samplers_are_sent_to_processes_that_are_started():
    sampler = training_tasks(SibOptions(way=3, queries=4), marked_splits(images=60)["train"])
    sent = pickle.loads(pickle.dumps(sampler))
    assert torch.equal(sent.sample(4, seed=0).query_x, sampler.sample(4, seed=0).query_x)
