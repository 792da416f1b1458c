"""VID runs: what they leave, exactness at λ = 0, every method, protocols, resuming, and errors."""

import copy
import json
import time

import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import resnet18

from data.errors import UserError
from data.items import LabelledItems
from data.sources.glyphs import load_capitals, load_digits
from inference.svi_vid import main as svi_vid
from inference.vid.methods import Method
from inference.vid.networks import pretrained_network, replace_head
from inference.vid.vid import VID
from models.networks.classifiers import build_network
from tests.conftest import kill_midway

TINY = ["--image-size", "16", "--teacher", "conv4-8", "--student", "conv4-4", "--epochs", "1", "--updates", "8"]
TINY += ["--batch", "32", "--per-class", "4", "--runs", "1", "--progress", "false"]
RECORD = {"method": str, "per_class": int, "accuracy": float, "nll": float, "ece": float, "run": int}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("teachers"))


@pytest.fixture
def tiny(cache, tmp_path):
    """The command with small settings: ``tiny(*options)`` gives the test records."""

    def call(*options):
        run = svi_vid([*TINY, "--cache", cache, "--out", str(tmp_path / f"run{time.time_ns()}"), *options])
        return [r for r in json.loads(run.metrics.read_text())["results"] if r["method"] != "teacher"]

    return call


@pytest.mark.slow
class TestCommand:
    def test_run_folder_holds_what_is_promised(self, cache, tmp_path, capsys):
        options = ["--methods", "student,kd,vid", "--per-class", "3,6", "--runs", "2", "--cache", cache]
        run = svi_vid([*TINY, *options, "--out", str(tmp_path / "run")])
        metrics = json.loads(run.metrics.read_text())
        assert metrics.keys() == {"command", "dataset", "seed", "seconds", "results"}
        teacher, *students = metrics["results"]
        assert teacher["method"] == "teacher"
        assert [r["method"] for r in students] == 2 * ["student", "student", "kd", "kd", "vid", "vid"]
        for record in students:
            for name, kind in RECORD.items():
                assert isinstance(record[name], kind), (name, record[name])
            assert (record["mutual_information"] is None) == (record["method"] != "vid")
        assert list(students[4]["mutual_information"]) == ["1.2", "1.6", "1.10", "1.14"]
        assert {p.stem for p in run.plots.glob("*.png")} == {"accuracy", "reliability", "information", "surprise"}
        assert list((run.path / "logs").glob("*/events*"))
        capsys.readouterr()
        again = svi_vid(["--config", str(run.config), "--out", str(tmp_path / "again")])
        assert "read from" in capsys.readouterr().out, "the teacher is cached"
        assert json.loads(again.metrics.read_text())["results"] == metrics["results"], "same seed, same numbers"

    def test_teacher_of_another_configuration_is_another_file(self, tmp_path):
        cache = tmp_path / "teachers"
        for number, options in enumerate(([], ["--epochs", "2"], ["--seed", "1"])):
            svi_vid([*TINY, "--methods", "student", "--cache", str(cache), *options, "--out", str(tmp_path / str(number))])
            assert len(list(cache.iterdir())) == number + 1

    @pytest.mark.parametrize(
        "method", ["lwf", "fitnet", "fitnet-stages", "at", "nst", "vid-logits", "kd+vid", "kd+at", "0.5*lwf+2*fitnet"]
    )
    def test_every_method_trains(self, tiny, method):
        (record,) = tiny("--methods", method)
        assert 0 < record["accuracy"] <= 1
        assert record["strength"] == 1.0

    def test_strength_is_chosen_on_held_out_images(self, tiny):
        records = tiny("--methods", "student,vid", "--strength", "0.1,10")
        assert [r["split"] for r in records] == ["test", "val", "val", "test"]
        assert [r["method"] for r in records] == ["student", "vid", "vid", "vid"]
        best = min(records[1:3], key=lambda r: r["nll"])
        assert records[3]["strength"] == best["strength"]

    def test_labels_for_some(self, tiny):
        records = tiny("--methods", "student,kd,vid", "--labels", "2,4", "--per-class", "8")
        assert [(r["per_class"], r["labels"]) for r in records] == [(8, 2)] * 3 + [(8, 4)] * 3
        (record,) = tiny("--methods", "student", "--labels", "2", "--per-class", "all")
        assert (record["per_class"], record["labels"]) == (200, 2), "N counts the images without labels too"

    def test_transfer_to_another_data_set(self, cache, tmp_path):
        sources = ["--teacher-data", "glyphs", "--data", "letters"]
        methods = "student,finetuned,lwf,vid,vid-logits,finetuned+vid"
        run = svi_vid([*TINY, *sources, "--methods", methods, "--cache", cache, "--out", str(tmp_path / "run")])
        records = json.loads(run.metrics.read_text())["results"]
        assert [r["method"] for r in records] == methods.split(","), "no row for the teacher, whose task is another"

    def test_batch_norm_of_pretrained_students_goes_on_learning(self):
        x, y, _ = digits()
        teacher, student = networks()
        VID.fit(student, teacher, x, y, method="student", updates=2)
        before = student.state_dict()["1.1.running_mean"].clone()
        VID.fit(student, teacher, x, y, method="vid", updates=2)
        assert not torch.equal(student.state_dict()["1.1.running_mean"], before)

    def test_mlp_learns_from_maps(self, tiny):
        records = tiny("--student", "mlp-16", "--methods", "vid,vid-logits")
        assert len(records[0]["mutual_information"]) == 4

    def test_pairs_by_name_and_heteroscedastic(self, tiny):
        (record,) = tiny("--methods", "vid", "--pairs", "1.6:1.6,1.8:1.9", "--heteroscedastic", "true")
        assert list(record["mutual_information"]) == ["1.6", "1.8"]

    def test_killed_run_ends_with_the_numbers_of_an_unbroken_one(self, cache, tmp_path):
        arguments = [*TINY, "--methods", "fitnet-stages,vid", "--updates", "120", "--cache", cache]
        whole = svi_vid([*arguments, "--out", str(tmp_path / "whole")])
        kill_midway("svi_vid", arguments, tmp_path / "broken", "fitnet-stages-n4-run0")
        broken = svi_vid(["--resume", str(tmp_path / "broken")])
        first, second = (json.loads(r.metrics.read_text())["results"] for r in (whole, broken))
        assert first == second


def digits(**options):
    data = load_digits(16, train=6, test=10, **options)
    return data.train.items, data.train.labels, data.test


def networks(seed=0):
    torch.manual_seed(seed)
    return build_network("conv4-8", (1, 16, 16), 10), build_network("conv4-4", (1, 16, 16), 10)


class TestLibrary:
    def test_weight_zero_is_the_plain_student_bit_for_bit(self):
        x, y, _ = digits()
        trained = []
        for method, strength in (("student", 1.0), ("vid", 0.0), ("kd+vid+at", 0.0)):
            teacher, student = networks()
            trained.append(VID.fit(student, teacher, x, y, method=method, strength=strength, updates=10).student.state_dict())
        for other in trained[1:]:
            assert all(torch.equal(value, other[name]) for name, value in trained[0].items())

    def test_teacher_stays_as_it_was(self):
        x, y, _ = digits()
        teacher, student = networks()
        teacher.train()
        before = copy.deepcopy(teacher.state_dict())
        VID.fit(student, teacher, x, y, method="kd+vid+lwf", updates=5)
        assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
        assert all(p.grad is None for p in teacher.parameters())
        assert not any(m._forward_hooks for n in (teacher, student) for m in n.modules())

    @pytest.mark.slow
    def test_a_student_of_its_own_kind_learns_what_its_teacher_knows(self):
        """With labels of three images a class the bound rises, and accuracy exceeds the plain student's."""
        data = load_digits(16, train=100, test=40)
        teacher, _ = networks()
        VID.fit(teacher, teacher, data.train.items, data.train.labels, method="student", updates=200)
        few = data.train.choose_per_class(3, 0)
        fitted = {}
        for method in ("student", "vid"):
            torch.manual_seed(1)
            student = build_network("conv4-8", (1, 16, 16), 10)
            start = VID.fit(copy.deepcopy(student), teacher, few.items, few.labels, method=method, strength=0.3, updates=1)
            fitted[method] = VID.fit(student, teacher, few.items, few.labels, method=method, strength=0.3, updates=400)
        accuracy = {method: vid.scores(data.test)["accuracy"] for method, vid in fitted.items()}
        assert accuracy["vid"] > accuracy["student"] + 0.08
        before, after = start.information(data.test.items), fitted["vid"].information(data.test.items)
        assert list(after) == ["1.2", "1.6", "1.10", "1.14"]
        assert all(after[layer] > before[layer] + 1 for layer in after)
        maps = fitted["vid"].surprise(data.test.items[:5])
        assert [m.shape for m in maps.values()] == [(5, 8, 8), (5, 4, 4), (5, 2, 2), (5, 1, 1)]

    def test_vectors_and_modules_of_any_kind(self):
        torch.manual_seed(0)
        x, y = torch.randn(90, 5), torch.arange(90) % 3
        teacher, student = (nn.Sequential(nn.Linear(5, h), nn.Tanh(), nn.Linear(h, 3)) for h in (16, 4))
        fitted = VID.fit(student, teacher, x, y, method="kd+vid+vid-logits", updates=60)
        assert list(fitted.information(x)) == ["1", "2"]
        assert fitted.surprise(x) == {}
        assert fitted.probabilities(x).shape == (90, 3)

    def test_nothing_to_learn_from(self):
        x, _, _ = digits()
        teacher, student = networks()
        with pytest.raises(UserError, match="labels alone, and there are none"):
            VID.fit(student, teacher, x, None, method="student")

    def test_probe_trains_decoders_alone(self):
        x, y, _ = digits()
        teacher, student = networks()
        VID.fit(student, teacher, x, y, method="student", updates=20)
        before = copy.deepcopy(student.state_dict())
        probes = [VID.probe(student, teacher, x, updates=updates, augment=False) for updates in (1, 100)]
        assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
        assert all(torch.equal(value, before[name]) for name, value in probes[1].student.network.state_dict().items())
        first, last = (list(probe.information(x).values()) for probe in probes)
        assert all(b > a for a, b in zip(first, last, strict=True))
        assert last[0] > 10

    def test_unlabelled_images_alone(self):
        x, _, _ = digits()
        teacher, student = networks()
        before = copy.deepcopy(student.state_dict())
        fitted = VID.fit(student, teacher, x, None, method="vid", updates=5)
        assert torch.equal(before["2.weight"], student.state_dict()["2.weight"]), "no label, no gradient for the classifier"
        assert not torch.equal(before["1.0.weight"], student.state_dict()["1.0.weight"])
        assert fitted.probabilities(x).shape == (60, 10)

    @pytest.mark.parametrize(
        ("text", "method"),
        [
            ("student", Method()),
            ("vid+at", Method(((1.0, "vid"), (1.0, "at")))),
            ("0.5*kd + 2*vid", Method(((0.5, "kd"), (2.0, "vid")))),
            ("finetuned+vid", Method(((1.0, "vid"),), finetuned=True)),
            ("fitnet-stages", Method(((1.0, "kd"),), stages=True)),
        ],
    )
    def test_methods_parse(self, text, method):
        assert Method.parse(text) == method


class TestPretrained:
    def test_torchvision_state_dicts(self, tmp_path):
        source = resnet18(num_classes=7).eval()
        torch.save(source.state_dict(), tmp_path / "weights.pth")
        network = pretrained_network("resnet18", str(tmp_path / "weights.pth"), (3, 32, 32)).eval()
        images = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8)
        mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        torch.testing.assert_close(network(images), source((images / 255 - mean) / std))
        assert replace_head(network, 3)(images).shape == (2, 3)

    def test_own_files(self, tmp_path):
        network = build_network("lenet", (1, 16, 16), 4)
        torch.save(network.state_dict(), tmp_path / "lenet.pt")
        again = pretrained_network("lenet", str(tmp_path / "lenet.pt"), (1, 16, 16))
        x = torch.randn(2, 1, 16, 16)
        torch.testing.assert_close(network(x), again(x))

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("resnet18", b"nothing", "damaged or no state dict"),
            ("resnet18", {"a": 1}, "holds no state dict"),
            ("resnet18", {"a": torch.zeros(3)}, "no linear layer"),
            ("resnet18", {"fc.weight": torch.zeros(3, 4)}, "does not fit resnet18"),
            ("resnet18", None, "neither a file nor weights of resnet18: torchvision has IMAGENET1K_V1"),
            ("wrn-16-1", None, "torchvision has no model wrn-16-1"),
        ],
    )
    def test_bad_files(self, name, content, message, tmp_path):
        file = tmp_path / "weights.pth"
        if isinstance(content, bytes):
            file.write_bytes(content)
        elif content is not None:
            torch.save(content, file)
        with pytest.raises(UserError, match=message):
            pretrained_network(name, str(file), (3, 32, 32))


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--per-class", "1000"], "1000 images a class asked for, but class A has 200"),
            (["--per-class", "five"], "--per-class five: five is not a positive whole number, or all"),
            (["--labels", "9"], "--labels 9 exceeds the 4 images per class of --per-class"),
            (["--methods", "magic"], "unknown method 'magic': choose student, finetuned"),
            (["--methods", "0*vid"], "coefficient '0'"),
            (["--methods", ","], "--methods ,: give at least one value"),
            (["--methods", "finetuned"], "give --teacher_data or --student_weights"),
            (["--methods", "vid", "--pairs", "1.9999:1.2"], "vid: no layer '1.9999': choose from 0, 1, 1.0"),
            (["--methods", "vid", "--pairs", "1.2"], "teacher_layer:student_layer"),
            (["--methods", "vid", "--pairs", "1.2:1.2,1.2:1.6"], "teacher.1.2 is given twice"),
            (["--methods", "at", "--student", "mlp-8"], "at compares maps"),
            (["--methods", "kd", "--teacher-data", "glyphs"], "kd compares the same classes"),
            (["--strength", "-1"], "--strength -1: -1 is not a finite number, 0 or more"),
            (["--strength", "1,2", "--per-class", "1"], "cannot hold out 1 images a class"),
            (["--teacher", "wrn-9-1"], "depth 6 n + 4, not 9"),
            (["--student", "magic"], "unknown network 'magic'"),
            (["--teacher", "vgg9"], "at least 32×32"),
            (["--data", "curve"], "has no classes"),
            (["--teacher-weights", "nowhere.pth"], "nowhere.pth is no file"),
            (["--updates", "0"], "--updates 0: must be a whole number, above 0"),
            (["--methods", "finetuned", "--student-weights", "nowhere.pth"], "nowhere.pth is no file"),
        ],
    )
    def test_one_line_and_nothing_left(self, options, message, cache, tmp_path):
        with pytest.raises(UserError) as error:
            svi_vid([*TINY, *options, "--cache", cache, "--out", str(tmp_path / "run")])
        assert message in str(error.value)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "run").exists()

    def test_other_input_sizes_are_named(self, cache, tmp_path):
        for part in ("train/a", "train/b", "test/a", "test/b"):
            (tmp_path / "images" / part).mkdir(parents=True)
            Image.new("RGB", (20, 20)).save(tmp_path / "images" / part / "0.png")
        sources = ["--data", "letters", "--teacher-data", "folder", "--teacher-root", str(tmp_path / "images")]
        with pytest.raises(UserError, match="teacher's images are 3×32×32 and the student's 1×28×28"):
            svi_vid([*TINY[2:], *sources, "--cache", cache, "--out", str(tmp_path / "run")])

    def test_networks_of_other_sizes_are_named(self):
        x, y, _ = digits()
        _, student = networks()
        with pytest.raises(UserError, match="the teacher cannot take inputs of shape 1×16×16"):
            VID.fit(student, nn.Sequential(nn.Flatten(), nn.Linear(9, 10)), x, y)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda x, y: (x, y + 5), "labels from 5 to 14, but the network has outputs for 0 to 9"),
            (lambda x, y: (x.float().index_fill(0, torch.tensor([3]), torch.nan), y), "1 of 60 items hold NaN"),
            (lambda x, y: (x[:, :, :8], y), "cannot take items of shape 1×8×16"),
        ],
    )
    def test_bad_data_is_named(self, change, message):
        x, y, _ = digits()
        teacher, student = networks()
        with pytest.raises(UserError, match=message):
            VID.fit(student, teacher, *change(x, y))


def test_letters_are_as_promised():
    data = load_capitals(16, train=3, test=2)
    assert data.train.items.shape == (78, 1, 16, 16)
    assert data.test.class_names == tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def test_smaller_choices_are_parts_of_larger_ones():
    items = LabelledItems(torch.arange(40), torch.arange(4).repeat(10), tuple("abcd"))
    small, large = items.choose_per_class(3, 5), items.choose_per_class(7, 5)
    assert torch.equal(small.counts, torch.full((4,), 3))
    assert set(small.items.tolist()) < set(large.items.tolist())
    assert torch.equal(items.labels[small.items], small.labels)
