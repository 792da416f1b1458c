"""Training of the whole network through the guide: on which images, what becomes of it, and that it is done once."""

import pytest
import torch
from torch import nn

from data.errors import UserError
from inference.meta import stages, tuning
from inference.meta.options import SibOptions
from inference.meta.stages import fit
from inference.meta.training import MetaTraining
from inference.meta.tuning import BatchNorm, ImageEmbedding
from inference.runs.folder import RunFolder
from inference.runs.tensors import load_features, load_tensors
from models.networks.feature_network import FeatureNetwork
from models.networks.feature_space import FeatureSpace
from models.networks.layers import embed
from tests.conftest import marked_images, splits_of

TINY = {
    "way": 3,
    "queries": 4,
    "tasks": 16,
    "validations": 1,
    "validation_tasks": 20,
    "progress": False,
    "beta": 0.1,
    "steps": 1,
}
TUNED = {**TINY, "train_features": "all", "network_tasks": 8, "network_learning_rate": 1e-3, "backbone": "conv4-4", "epochs": 0}


def embedding(batch_norm) -> ImageEmbedding:
    torch.manual_seed(0)
    network = FeatureNetwork("conv4-4", (1, 16, 16))
    return ImageEmbedding(network, FeatureSpace(network.num_features, learned=True), batch_norm).train()


def norms(module: nn.Module) -> list[torch.Tensor]:
    return [value.clone() for name, value in module.state_dict().items() if "running" in name]


def test_statistics_stay_or_follow_as_asked():
    """With running ones an image's features do not depend on the other images of a step."""
    images = torch.rand(2, 3, 1, 16, 16)
    for batch_norm in BatchNorm:
        made = embedding(batch_norm)
        before = norms(made)
        alone, together = made(images[:, :1])[0, 0], made(images)[0, 0]
        stays = batch_norm is BatchNorm.RUNNING
        assert torch.allclose(alone, together, atol=1e-6) is stays
        assert all(torch.equal(a, b) for a, b in zip(before, norms(made), strict=True)) is stays


@pytest.fixture
def judged(monkeypatch):
    """Validation of the guide trained on given features has a loss of 2, of the network trained with it the one that is set."""
    losses = {"tuned": 1.0}
    validate = MetaTraining.validate

    def judge(module, *processes):
        tuned = isinstance(module, tuning.ImageTraining)
        return {**validate(module, *processes), "val/loss": losses["tuned"] if tuned else 2.0}

    monkeypatch.setattr(MetaTraining, "validate", judge)
    return losses


def test_the_network_is_trained_once_and_features_are_the_trained_ones(tmp_path, monkeypatch, judged):
    images, seen = marked_images(classes=6, images=10, image_size=16), []

    class Spy(tuning.ImageTraining):
        def draw(self, tasks, seed):
            drawn = MetaTraining.draw(self, tasks, seed)
            seen.append(splits_of(torch.cat([drawn.query_x, drawn.support_x], dim=1).flatten(0, 1)))
            return super().draw(tasks, seed)

    monkeypatch.setattr(tuning, "ImageTraining", Spy)
    run, pretrain, before = RunFolder.create(tmp_path / "run", "sib", ""), stages.pretrain, {}

    def remembered(*given):
        network = pretrain(*given)
        before.update({name: value.clone() for name, value in network.state_dict().items()})
        return network

    monkeypatch.setattr(stages, "pretrain", remembered)
    learner = next(iter(fit(SibOptions(**TUNED), images, run).values()))
    assert seen
    assert all(splits == {"train"} for splits in seen)
    after = load_tensors(run.network)[0]
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {name for name, _ in learner.network.named_parameters()}, "batch norm's statistics stay"
    torch.testing.assert_close(load_features(run.features)["test"].items, embed(learner.network, images.test.items))
    monkeypatch.setattr(tuning, "train", lambda *given, **options: pytest.fail("it has been trained"))
    fit(SibOptions(**TUNED), images, run)


def test_a_network_that_was_better_before_stays(tmp_path, judged, capsys):
    judged["tuned"] = 2.0
    images, run = marked_images(classes=6, images=10, image_size=16), RunFolder.create(tmp_path / "run", "sib", "")
    plain = RunFolder.create(tmp_path / "plain", "sib", "")
    fit(SibOptions(**TUNED), images, run)
    fit(SibOptions(**{**TUNED, "train_features": "linear"}), images, plain)
    for name, value in load_tensors(run.network)[0].items():
        assert torch.equal(value, load_tensors(plain.network)[0][name]), name
    assert torch.equal(load_features(run.features)["test"].items, load_features(plain.features)["test"].items)
    assert "the network stays as pre-trained: validation tasks cost 2.00 nats with it, 2.00 tuned" in capsys.readouterr().out


def test_the_guide_is_trained_before_the_network_and_slowly_with_it(tmp_path, monkeypatch, judged):
    images, seen = marked_images(classes=6, images=10, image_size=16), []
    train = tuning.train

    def watched(module, loop, run, stage, **options):
        start = [p.detach().clone() for p in module.objective.parameters()]
        train(module, loop, run, stage, **options)
        seen.append((stage, module, start, [p.detach().clone() for p in module.objective.parameters()]))

    monkeypatch.setattr(tuning, "train", watched)
    options = SibOptions(**TUNED)
    fit(options, images, RunFolder.create(tmp_path / "run", "sib", ""))
    (first, on_features, start, trained), (second, on_images, handed_on, end) = seen
    assert (first, type(on_features), second, type(on_images).__name__) == (
        tuning.FIRST,
        MetaTraining,
        tuning.STAGE,
        "ImageTraining",
    )
    before, after = on_features.schedule, on_images.schedule
    assert (before.tasks, after.tasks) == (options.tasks, options.network_tasks)
    assert after.learning_rate == pytest.approx(tuning.SLOWER * before.learning_rate)
    assert after.feature_learning_rate == pytest.approx(tuning.SLOWER * before.feature_learning_rate)
    assert all(torch.equal(a, b) for a, b in zip(trained, handed_on, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(start, trained, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(handed_on, end, strict=True))


@pytest.mark.parametrize(
    ("options", "words"),
    [({"features": "x.safetensors"}, "start from images"), ({"methods": "nearest-mean"}, "`methods=sib`")],
)
def test_what_cannot_be_trained_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        SibOptions(**{**TINY, "train_features": "all", **options})
