"""Networks with the weights of a run's students; and trained ones, kept and found again."""

import pytest
import torch

import inference.vid.networks
from data.augmentation import CROPS, LETTERS
from data.errors import UserError
from data.items import SupervisedData
from inference.runs.folder import RunFolder
from inference.runs.training import Loop
from inference.vid.networks import Recipe, TeacherSettings, make_network, trained_network
from inference.vid.vid import VID
from models.networks.classifiers import build_network, pretrained_network
from tests.inference.vid.conftest import images


def test_a_student_of_a_run_can_teach(tmp_path):
    """Its checkpoint holds decoders too."""
    data = images(4)
    teacher, student = (build_network(name, (1, 16, 16), 3) for name in ("conv4-8", "conv4-4"))
    VID.fit(student, teacher, data.items, data.labels, method="lwf+vid", updates=2, out=str(tmp_path / "run"))
    again = pretrained_network("conv4-4", str(tmp_path / "run" / "checkpoints" / "student.safetensors"), (1, 16, 16)).eval()
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in again.state_dict().items())


class TestTrained:
    def settings(self, tmp_path, **changes):
        values = {"epochs": 1, "batch": 8, "learning_rate": 5e-3, "weight_decay": 0.05, "augment": True, "seed": 0}
        return TeacherSettings(**values | changes, loop=Loop("cpu"), cache=tmp_path / "cache")

    def test_trained_once_then_found_in_the_run_or_the_cache(self, tmp_path, monkeypatch, capsys):
        data, settings = SupervisedData("letters", images(8), images(2)), self.settings(tmp_path)
        runs = [RunFolder.create(tmp_path / name, "svi_vid", "") for name in ("first", "second")]
        states, strides = [], []
        (tmp_path / "cache").mkdir()
        left = f".{Recipe.of('conv4-4', data, settings).name}.0.12.safetensors"  # by a process that was killed
        (tmp_path / "cache" / left).touch()
        for run in (runs[0], runs[0], runs[1]):
            network = trained_network(make_network("conv4-4", data.train, 0), "conv4-4", data, settings, run)
            states.append(network.state_dict())
            strides.append([weight.stride() for weight in network.parameters()])
            assert not network.training
            monkeypatch.setattr(inference.vid.networks, "train_classifier", None)
        assert all(torch.equal(value, state[name]) for state in states[1:] for name, value in states[0].items())
        assert strides[0] == strides[1] == strides[2], "another layout would round differently"
        assert "read from" in capsys.readouterr().out
        own = [list(run.checkpoints.glob("teacher-conv4-4-*.safetensors")) for run in runs]
        assert all(len(files) == 1 for files in own), "each run folder has its teacher"
        (kept,) = (tmp_path / "cache").iterdir()
        kept.unlink()
        trained_network(make_network("conv4-4", data.train, 0), "conv4-4", data, settings, runs[1])

    def test_a_teacher_that_changed_in_the_cache_is_refused_and_the_runs_own_comes_first(self, tmp_path):
        data, settings = SupervisedData("letters", images(8), images(2)), self.settings(tmp_path)
        runs = [RunFolder.create(tmp_path / name, "svi_vid", "") for name in ("first", "second")]
        trained = trained_network(make_network("conv4-4", data.train, 0), "conv4-4", data, settings, runs[0])
        (cached,) = (tmp_path / "cache").glob("*.safetensors")
        content = bytearray(cached.read_bytes())
        content[-1] ^= 0x40
        cached.write_bytes(content)
        again = trained_network(make_network("conv4-4", data.train, 1), "conv4-4", data, settings, runs[0])
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in trained.state_dict().items())
        with pytest.raises(UserError, match=r"conv4-4-\w+\.safetensors is damaged: delete it, to train the network anew"):
            trained_network(make_network("conv4-4", data.train, 0), "conv4-4", data, settings, runs[1])
        (own,) = runs[0].checkpoints.glob("teacher-*.safetensors")
        own.write_bytes(content)
        with pytest.raises(UserError, match="is damaged, or another run's"):
            trained_network(make_network("conv4-4", data.train, 0), "conv4-4", data, settings, runs[0])

    def test_names_tell_recipes_apart(self, tmp_path):
        letters, photographs = (SupervisedData("folder", images(4), images(2), mirror=mirror) for mirror in (False, True))
        settings = self.settings(tmp_path)
        recipes = [Recipe.of("conv4-4", letters, settings), Recipe.of("conv4-4", photographs, settings)]
        recipes += [Recipe.of("conv4-4", letters, self.settings(tmp_path, **{name: 2})) for name in ("epochs", "batch", "seed")]
        recipes += [Recipe.of("conv4-8", letters, settings)]
        assert len({recipe.name for recipe in recipes}) == 6
        assert recipes[0].crops is None

    @pytest.mark.parametrize(
        ("mirror", "augment", "expected"), [(True, True, CROPS), (False, True, LETTERS), (True, False, None)]
    )
    def test_teachers_learn_with_the_augmentation_of_their_data(self, tmp_path, monkeypatch, mirror, augment, expected):
        used = []
        monkeypatch.setattr(
            inference.vid.networks, "train_classifier", lambda *rest, augmentation, **options: used.append(augmentation)
        )
        data = SupervisedData("folder", images(4), images(2), mirror=mirror)
        run = RunFolder.create(tmp_path / "run", "svi_vid", "")
        settings = self.settings(tmp_path, augment=augment)
        trained_network(make_network("conv4-4", data.train, 0), "conv4-4", data, settings, run)
        assert used == [expected]
