"""A run's students and teacher load again, with their decoders."""

import shutil

import pytest
import torch
from torchvision.models import get_model

import inference.vid.load
from data.errors import UserError
from data.items import SupervisedData
from inference.runs.commands import options_to_yaml
from inference.runs.folder import RunFolder
from inference.runs.tensors import load_tensors, save_tensors
from inference.vid.fit import Study, check
from inference.vid.options import Size, VidOptions
from inference.vid.sources import Sources
from inference.vid.vid import VID
from tests.inference.vid.conftest import images, network


@pytest.fixture
def finished(tmp_path):
    """A run folder with its options, data and students."""
    options = VidOptions(
        methods="student,vid,vid-logits", per_class="3,5", runs=1, epochs=1, updates=2, batch=8, student="conv4-4",
        teacher="conv4-8", cache=str(tmp_path / "cache"), out=str(tmp_path / "run"), device="cpu", progress=False,
    )  # fmt: skip
    data = SupervisedData("letters", images(10), images(5, seed=1))
    sources = Sources(data, data)
    networks = check(options, sources)
    run = RunFolder.create(options.out, "svi_vid", options_to_yaml(options))
    return run, sources, Study.prepare(options, sources, networks, run).fit_all()[0]


def same(loaded, vid, x):
    torch.testing.assert_close(loaded.probabilities(x), vid.probabilities(x))
    assert loaded.decoding_gain(x) == pytest.approx(vid.decoding_gain(x), rel=1e-4)
    assert (loaded.method, loaded.strength) == (vid.method, vid.strength)


def test_students_of_a_run(finished):
    run, data, fitted = finished
    x = data.target.test.items
    for (method, size), vid in fitted.items():
        same(VID.load(run.path, method, size.per_class), vid, x)
    same(VID.load(str(run.path)), fitted["vid", Size(5)], x)
    assert list(VID.load(run).decoding_gain(x)) == ["1.2", "1.6", "1.10", "1.14"]


def test_runs_written_before_load_too(finished, monkeypatch):
    """Their files name no pairs, and their teacher is in the cache alone, or in the run as a student."""
    run, data, fitted = finished
    x = data.target.test.items
    for file in run.checkpoints.glob("*-run0.safetensors"):
        tensors, metadata = load_tensors(file)
        save_tensors(file, tensors, {name: metadata[name] for name in ("method", "strength")})
    monkeypatch.setattr(inference.vid.load.Sources, "load", lambda options: data)
    same(VID.load(run, "vid-logits", 3), fitted["vid-logits", Size(3)], x)
    (teacher,) = run.checkpoints.glob("teacher-*.safetensors")
    tensors, _ = load_tensors(teacher)
    save_tensors(teacher, {f"student.{name}": value for name, value in tensors.items()}, {})
    same(VID.load(run, "vid", 3), fitted["vid", Size(3)], x)
    teacher.unlink()
    same(VID.load(run, "vid", 3), fitted["vid", Size(3)], x)
    shutil.rmtree(run.path.parent / "cache")
    with pytest.raises(UserError, match="is neither in its checkpoints nor at"):
        VID.load(run, "vid", 3)


def test_runs_with_given_weights(tmp_path):
    """Of colour images, shown grayscale ones; before 0.4 their layers had other names."""
    name, files = "shufflenet_v2_x0_5", {}
    for role, classes in (("teacher", 3), ("student", 7)):
        files[f"{role}_weights"] = str(tmp_path / f"{role}.pth")
        torch.save(get_model(name, weights=None, num_classes=classes).state_dict(), files[f"{role}_weights"])
    options = VidOptions(
        methods="finetuned,vid-logits+vid", per_class="5", runs=1, updates=1, batch=8, student=name, teacher=name, **files,
        pairs="1.stage3:1.1.stage3", out=str(tmp_path / "run"), device="cpu", progress=False,
    )  # fmt: skip
    data = SupervisedData("letters", images(5), images(5, seed=1))
    sources = Sources(data, data)
    run = RunFolder.create(options.out, "svi_vid", options_to_yaml(options))
    fitted, _ = Study.prepare(options, sources, check(options, sources), run).fit_all()
    x = data.test.items
    for method in options.parsed_methods:
        same(VID.load(run, method), fitted[method, Size(5)], x)
    saved = VID.load(VID.load(run, "finetuned").save(tmp_path / "student.safetensors"))
    torch.testing.assert_close(saved.probabilities(x), fitted["finetuned", Size(5)].probabilities(x))
    (file,) = run.checkpoints.glob("vid-logits*-run0.safetensors")
    tensors, metadata = load_tensors(file)
    assert [pair[0] for pair in metadata["pairs"]] == ["2", "1.stage3"]
    earlier = [[old, *pair[1:]] for old, pair in zip(("2.fc", "2.stage3"), metadata["pairs"], strict=True)]
    del metadata["layers"]
    save_tensors(file, tensors, metadata | {"pairs": earlier})
    same(VID.load(run, "vid-logits+vid"), fitted["vid-logits+vid", Size(5)], x)


def test_students_fitted_to_networks_of_ones_own(tmp_path):
    data = images(4)
    teacher, student = network("conv4-8"), network()
    vid = VID.fit(student, teacher, data.items, data.labels, updates=2, out=str(tmp_path / "run"))
    again = VID.load(tmp_path / "run", student=network(seed=5), teacher=teacher)
    same(again, vid, data.items)
    with pytest.raises(UserError, match="networks of your own: give `student`"):
        VID.load(tmp_path / "run")
    x, y = torch.randn(9, 5), torch.arange(9) % 3
    mlps = [torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3)) for _ in range(3)]
    vid = VID.fit(mlps[0], mlps[1], x, y, updates=2, out=str(tmp_path / "vectors"))
    same(VID.load(tmp_path / "vectors", student=mlps[2], teacher=mlps[1]), vid, x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("kd",), "no finished student of kd, any number of images per class, run 0; it has student-n3-run0"),
        (("vid", 4), "no finished student of vid, 4 images per class, run 0"),
        (("vid", 3, None, 1), "run 1; it has"),
    ],
)
def test_students_that_are_not_there_are_named(finished, arguments, message):
    with pytest.raises(UserError, match=message):
        VID.load(finished[0], *arguments)


@pytest.mark.parametrize("name", ["per_class", "labels", "number"])
def test_numbers_that_are_none_are_refused_before_anything_is_read(name, tmp_path):
    with pytest.raises(UserError, match=f"`{name}=.*` must be a whole number"):
        VID.load(tmp_path, **{name: torch.ones(2).half()})
