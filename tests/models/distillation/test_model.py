"""The distillation model against its terms computed one by one, and the plain student."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from guides.empty import EmptyGuide
from inference.elbo import RateDistortionELBO
from models.distillation.losses import Transfer, knowledge_distillation, learning_without_forgetting
from models.distillation.model import DistillationModel, Pair
from models.networks.layers import capture, features


def networks():
    teacher = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    teacher.append(nn.Linear(6 * 16, 3))
    student = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 64, 5), nn.Linear(5, 3))
    return teacher, student


class TestDistillation:
    def test_loss_is_task_loss_minus_weighted_log_densities(self, float64):
        teacher, student = networks()
        x, y = torch.randn(6, 1, 8, 8), torch.randint(3, (6,))
        pairs = [Pair("3", "1", 0.3), Pair("5", "3", 2.0)]
        model = DistillationModel(student, teacher, pairs, x).eval()
        taught = features(teacher, x, ["3", "5"])
        terms = RateDistortionELBO()(model, EmptyGuide()).terms(x, y, taught)
        assert set(terms.distortions) == {"labels", "teacher.3", "teacher.5"}
        torch.testing.assert_close(terms.distortions["labels"], F.cross_entropy(student(x), y, reduction="sum"))
        with capture(student, ["1", "3"]) as found:
            student(x)
        for pair in pairs:
            expected = -pair.weight * model.decoders[pair.teacher](found[pair.student]).log_prob(taught[pair.teacher]).sum()
            torch.testing.assert_close(terms.distortions[f"teacher.{pair.teacher}"], expected)

    def test_weight_zero_is_the_plain_student_bit_for_bit(self):
        x, y = torch.randn(32, 1, 8, 8), torch.randint(3, (32,))
        trained = []
        for distil in (True, False):
            torch.manual_seed(0)
            teacher, student = networks()
            if distil:
                model = DistillationModel(student, teacher, [Pair("3", "1", 0.0)], x)
                objective = RateDistortionELBO()(model, EmptyGuide())
                taught = features(teacher, x, ["3"])
            optimizer = torch.optim.SGD(student.parameters(), 0.01)
            for _ in range(5):
                loss = (
                    objective(x, y, taught) if distil else -torch.distributions.Categorical(logits=student(x)).log_prob(y).sum()
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            trained.append([p.detach().clone() for p in student.parameters()])
        for a, b in zip(*trained, strict=True):
            assert torch.equal(a, b)

    def test_other_methods_are_factors_of_the_same_program(self, float64):
        teacher, student = networks()
        x, y = torch.randn(6, 1, 8, 8), torch.randint(3, (6,))
        chosen = [("5", "4", Transfer.KD), ("5", "3", Transfer.LWF), ("3", "1", Transfer.FITNET), ("3", "1", Transfer.AT)]
        chosen += [("3", "1", Transfer.NST), ("3", "1", Transfer.VID)]
        pairs = [Pair(t, s, 0.1 * (i + 1), transfer) for i, (t, s, transfer) in enumerate(chosen)]
        model = DistillationModel(student, teacher, pairs, x).eval()
        assert model.teacher_layers == ["5", "3"]
        taught = features(teacher, x, model.teacher_layers)
        terms = RateDistortionELBO()(model, EmptyGuide()).terms(x, y, taught)
        assert set(terms.distortions) == {"labels", "kd.5", "lwf.5", "fitnet.3", "at.3", "nst.3", "teacher.3"}
        with capture(student, ["1", "3", "4"]) as found:
            student(x)
        for pair, module in zip(pairs[:5], model.transfers, strict=False):
            expected = pair.weight * module(found[pair.student], taught[pair.teacher]).sum()
            torch.testing.assert_close(terms.distortions[pair.site], expected)
        expected = 0.1 * knowledge_distillation(found["4"], taught["5"]).sum()
        torch.testing.assert_close(terms.distortions["kd.5"], expected)

    def test_teacher_does_not_change_and_hooks_do_not_leak(self):
        teacher, student = networks()
        teacher.train()
        before = {name: value.clone() for name, value in teacher.state_dict().items()}
        x = torch.randn(4, 1, 8, 8)
        model = DistillationModel(student, teacher, [Pair("3", "1")], x)
        objective = RateDistortionELBO()(model, EmptyGuide())
        objective(x, torch.zeros(4, dtype=torch.long), features(teacher, x, ["3"])).backward()
        assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
        assert all(p.grad is None for p in teacher.parameters())
        assert teacher.training
        with pytest.raises(RuntimeError), capture(student, ["1"]):
            student(torch.randn(1, 3, 8, 8))
        for network in (teacher, student):
            assert not any(module._forward_hooks for module in network.modules())

    def test_unlabelled_images_train_through_the_layers(self):
        teacher, student = networks()
        x = torch.randn(4, 1, 8, 8)
        model = DistillationModel(student, teacher, [Pair("3", "1")], x)
        RateDistortionELBO()(model, EmptyGuide())(x, None, features(teacher, x, ["3"])).backward()
        assert bool((student[0].weight.grad != 0).any())
        assert student[4].weight.grad is None

    @pytest.mark.parametrize(
        ("pair", "size", "message"),
        [
            (Pair("nine", "1"), 8, r"no layer 'nine': choose from 0, 1, 2, 3, 4, 5"),
            (Pair("3", "head"), 8, r"no layer 'head': choose from 0, 1, 2, 3, 4"),
            (Pair("3", "1", -1.0), 8, "must not be negative"),
            (Pair("3", "1"), 10, "cannot take inputs of shape 1×10×10"),
            (Pair("5", "3", 1.0, Transfer.KD), 8, "lwf keeps a head"),
            (Pair("3", "3", 1.0, Transfer.AT), 8, "at compares maps"),
        ],
    )
    def test_bad_input_is_named(self, pair, size, message):
        with pytest.raises(ValueError, match=message):
            DistillationModel(*reversed(networks()), [pair], torch.randn(2, 1, size, size))

    def test_a_pair_given_twice_is_named(self):
        with pytest.raises(ValueError, match=r"teacher\.3 is given twice"):
            DistillationModel(*reversed(networks()), [Pair("3", "1"), Pair("3", "0")], torch.randn(2, 1, 8, 8))

    @pytest.mark.parametrize("temperature", [None, 3.0])
    def test_temperature_is_that_of_kd_and_lwf(self, float64, temperature):
        teacher, student = networks()
        x = torch.randn(6, 1, 8, 8)
        pairs = [Pair("5", "4", 1.0, Transfer.KD), Pair("5", "3", 1.0, Transfer.LWF), Pair("3", "1", 1.0, Transfer.AT)]
        model = DistillationModel(student, teacher, pairs, x, temperature=temperature).eval()
        taught = features(teacher, x, ["5", "3"])
        terms = RateDistortionELBO()(model, EmptyGuide()).terms(x, None, taught)
        learned = features(student, x, ["3", "4"])
        kd = knowledge_distillation(learned["4"], taught["5"], temperature=temperature or 4.0)
        lwf = learning_without_forgetting(model.transfers[1].adapter(learned["3"]), taught["5"], temperature=temperature or 2.0)
        torch.testing.assert_close(terms.distortions["kd.5"], kd.sum())
        torch.testing.assert_close(terms.distortions["lwf.5"], lwf.sum())
