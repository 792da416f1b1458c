"""A study of students: who trains on what, from which start, and how a strength is chosen."""

import copy
from dataclasses import replace

import pytest
import torch
from torchvision.models import get_model

import inference.vid.fit
from data.errors import UserError
from data.items import SupervisedData
from inference.vid.fit import Networks, build_networks, check
from inference.vid.networks import Recipe, TeacherSettings
from inference.vid.options import Size, VidOptions
from inference.vid.sources import Sources
from models.networks.classifiers import build_network, pretrained_network
from tests.inference.vid.conftest import FIVE, images, network, numbers


@pytest.fixture
def calls(monkeypatch):
    """What ``fit_student`` was called with, its students as they were before training."""
    real, found = inference.vid.fit.fit_student, []

    def fit_student(student, teacher, data, *rest, **options):
        found.append({"student": copy.deepcopy(student.state_dict()), "data": data, **options})
        return real(student, teacher, data, *rest, **options)

    monkeypatch.setattr("inference.vid.fit.fit_student", fit_student)
    return found


def test_each_run_trains_on_images_of_its_own(study, calls):
    _, records = study("student", runs=2).fit_all()
    first, second = (numbers(call["data"].items) for call in calls)
    assert len(first) == len(second) == 15
    assert first != second
    assert [record["run"] for record in records] == [0, 1]


def test_a_strength_is_chosen_on_held_out_training_images(study, calls):
    """Test images, which would score otherwise, take no part in the choice."""
    made = study("vid", strengths=(0.5, 2.0))
    strength, tried = made.choose_strength("vid", Size(5))
    assert [record["split"] for record in tried] == ["val", "val"]
    assert strength == min(tried, key=lambda record: record["nll"])["strength"]
    vid, record = made.fit("vid", Size(5), 2.0, validate=True)
    train = made.data.target.train
    seen = calls[-1]["data"]
    own = inference.vid.fit.choose_items(train, Size(5), seed=0)
    held = [i for i, image in enumerate(own.labelled.items) if int(image[0, 0, 0]) not in numbers(seen.items)]
    mask = torch.zeros(len(own.labelled), dtype=torch.bool)
    mask[held] = True
    assert len(held) == 6, "two of five in each of three classes"
    assert {key: record[key] for key in ("nll", "accuracy")} == {
        key: value for key, value in vid.scores(own.labelled.subset(mask)).items() if key in ("nll", "accuracy")
    }
    assert record["nll"] != vid.scores(made.data.target.test)["nll"]


def test_strength_zero_may_win(study, monkeypatch):
    """λ = 0 leaves no pairs, but it is a strength like others."""
    made = study("vid", "student", strengths=(0.0, 1.0))
    real = inference.vid.fit.make_record

    def make_record(vid, *rest, strength, split, **options):
        record = real(vid, *rest, strength=strength, split=split, **options)
        return record | {"nll": strength or 0.0} if split == "val" else record

    monkeypatch.setattr("inference.vid.fit.make_record", make_record)
    fitted, records = made.fit_all()
    assert [(r["method"], r["split"], r["strength"]) for r in records] == [
        ("vid", "val", 0.0),
        ("vid", "val", 1.0),
        ("vid", "test", 0.0),
        ("student", "test", None),
    ]
    assert fitted["vid", Size(5)].model.pairs == []


def test_finetuned_students_start_from_their_weights(study, calls):
    pretrained = network(seed=7)
    study("finetuned", "student", pretrained=pretrained).fit_all()
    finetuned, plain = (call["student"] for call in calls)
    for name, value in pretrained.state_dict().items():
        if not name.startswith("2."):  # the head is new
            assert torch.equal(finetuned[name], value), name
    assert not torch.equal(finetuned["2.weight"], pretrained.state_dict()["2.weight"])
    assert not torch.equal(plain["1.0.weight"], finetuned["1.0.weight"])


@pytest.mark.parametrize("mirror", [False, True])
def test_the_data_say_whether_images_may_be_mirrored(study, calls, mirror):
    study("student", mirror=mirror).fit_all()
    assert calls[0]["mirror"] is mirror


class TestNetworks:
    def data(self):
        target = SupervisedData("letters", images(10), images(5))
        return Sources(target, SupervisedData("glyphs", images(10), images(5)))

    def test_weights_that_no_method_uses_are_named(self, tmp_path):
        with pytest.raises(UserError, match="`student_weights` are for finetuned students, and `methods` has none"):
            build_networks(VidOptions(student_weights="x.pth", methods="student,kd"), self.data())

    def test_weights_are_read_once(self, tmp_path, monkeypatch):
        file = tmp_path / "teacher.pt"
        torch.save(network("conv4-8").state_dict(), file)
        reads = []

        def counted(*arguments):
            reads.append(arguments)
            return pretrained_network(*arguments)

        monkeypatch.setattr("inference.vid.networks.pretrained_network", counted)
        options = VidOptions(teacher="conv4-8", teacher_weights=str(file), student="conv4-4", methods="kd,vid", per_class="5")
        networks = check(options, self.data())
        assert len(reads) == 1
        made = inference.vid.fit.Study.prepare(options, self.data(), networks, None)
        assert len(reads) == 1
        assert made.networks.teacher is networks.teacher

    def test_a_teacher_of_other_classes_than_its_data_is_named(self, tmp_path):
        file = tmp_path / "teacher.pt"
        torch.save(build_network("conv4-8", (1, 16, 16), 7).state_dict(), file)
        options = VidOptions(teacher="conv4-8", teacher_weights=str(file), teacher_data="glyphs")
        with pytest.raises(UserError, match="has 7 outputs, and `teacher_data=glyphs` 3 classes"):
            build_networks(options, self.data())

    def test_teachers_and_students_of_torchvision(self, tmp_path):
        """The teacher is torchvision's network, head and all; the student keeps all but the head, which need not be there."""
        torch.manual_seed(0)
        given = get_model("shufflenet_v2_x0_5", weights=None, num_classes=3).eval()
        torch.save({"state_dict": given.state_dict()}, tmp_path / "teacher.pth")
        body = {key: value for key, value in given.state_dict().items() if not key.startswith("fc.")}
        torch.save(body, tmp_path / "student.pth")
        files = {f"{role}_weights": str(tmp_path / f"{role}.pth") for role in ("teacher", "student")}
        names = {"teacher": "shufflenet_v2_x0_5", "student": "shufflenet_v2_x0_5"}
        options = VidOptions(**names, **files, methods="finetuned,kd", per_class="5")
        networks, items = check(options, self.data()), self.data().target.test.items
        mean, std = (torch.tensor(value)[:, None, None] for value in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        with torch.no_grad():
            expected = given((items.expand(-1, 3, -1, -1) / 255 - mean) / std)
            torch.testing.assert_close(networks.teacher.eval()(items), expected, atol=1e-6, rtol=0)
            torch.testing.assert_close(given.fc(networks.pretrained.eval()[:-1](items)), expected, atol=1e-6, rtol=0)
        assert networks.pretrained[-1].out_features == 3
        with pytest.raises(UserError, match=r"student\.pth has no last layer, which gives the classes"):
            check(replace(options, teacher_weights=files["student_weights"]), self.data())

    def test_few_layers_are_told_in_one_line(self, capsys, monkeypatch):
        monkeypatch.setattr("inference.vid.fit.few_layers", lambda *where: "only one pair of layers was found")
        check(VidOptions(student="conv4-4", teacher="conv4-8", methods="vid,at", per_class="5"), self.data())
        assert capsys.readouterr().out == "note: only one pair of layers was found\n"


def test_a_cache_that_cannot_keep_the_teacher_is_refused_before_it_is_trained(tmp_path):
    data = SupervisedData("folder", images(10), images(5, seed=1, first=100))
    (cache := tmp_path / "cache").write_text("a file")
    options = VidOptions(teacher="conv4-4", student="conv4-4", per_class=5, methods="kd", cache=str(cache))
    with pytest.raises(UserError, match=r"`cache=.*` cannot be made"):
        check(options, Sources(data, data))
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / f"{Recipe.of('conv4-4', data, TeacherSettings.of(options)).name}.safetensors").write_text("")
    kept.chmod(0o555)
    check(replace(options, cache=str(kept)), Sources(data, data))  # the teacher is there: nothing is written


def test_what_is_read_back_gives_the_numbers_of_the_unbroken_run_bit_for_bit(study):
    """Convolutions round differently in another layout in memory, in which files do not keep weights."""
    first = study("vid")
    runs = [first, replace(first, networks=Networks(network("conv4-8", 1).eval(), None))]
    vids, records = zip(*(each.fit("vid", FIVE, 1.0) for each in runs), strict=True)
    assert records[0] == records[1]
    for one, other in zip(*(vid.model.parameters() for vid in vids), strict=True):
        assert one.stride() == other.stride()
    assert torch.equal(*(vid.probabilities(first.data.target.test.items) for vid in vids))
