"""Letters in hands of their own: the same classes in every task, faces that no other split has, and tasks by their numbers."""

import itertools

import pytest
import torch

from data.errors import UserError
from data.sources.domains import AT_ONCE, FACES, LetterDomains, draw_masters


@pytest.fixture(scope="module")
def tasks():
    return LetterDomains(16).tasks("test", slice(0, AT_ONCE + 4), 2)


def test_no_face_is_in_two_splits():
    for one, two in itertools.combinations(FACES.values(), 2):
        assert not set(one) & set(two)
    families = {split: {face.split("-")[0].rstrip("0123456789") for face in faces} for split, faces in FACES.items()}
    assert not families["test"] & (families["train"] | families["val"])


@pytest.mark.parametrize("split", FACES)
def test_every_face_has_every_letter_and_no_two_faces_are_alike(split):
    masters = draw_masters(split)
    assert masters.shape[:4] == (len(FACES[split]), 3, 2, 26)
    ink = masters.mean((-2, -1))
    assert (ink > 0.01).all()
    assert (ink.diff(dim=1) > 0).all(), "strokes grow"
    plain = masters[:, 0, 0].flatten(1)
    apart = (plain[:, None] - plain[None]).abs().mean(-1) + torch.eye(len(plain))
    assert apart.min() > 0.001


def test_every_task_has_all_letters_by_the_same_numbers_and_no_support(tasks):
    assert tasks.query_x.shape == (AT_ONCE + 4, 52, 1, 16, 16)
    assert tasks.query_x.dtype == torch.uint8
    assert (tasks.query_y == torch.arange(26).repeat_interleave(2)).all()
    assert tasks.support_x.shape == (AT_ONCE + 4, 0, 1, 16, 16)
    assert tasks.support_y.shape == (AT_ONCE + 4, 0)
    assert tasks.way == 26


def test_a_number_is_of_the_letter_that_it_names():
    """The mean picture of a letter over one split's hands is most like that of the same letter over another's, for most of the
    letters; by chance it would be one in 26."""

    def looks(split: str) -> torch.Tensor:
        pictures = LetterDomains(16).tasks(split, slice(0, 2 * AT_ONCE), 2).query_x.float().view(-1, 26, 2, 256).mean(2)
        signed = pictures * (pictures.mean((1, 2)) < 127).float().mul(2).sub(1)[:, None, None]  # dark ink on bright paper
        mean = signed.mean(0)
        return torch.nn.functional.normalize(mean - mean.mean(0), dim=-1)

    nearest = (looks("train") @ looks("test").T).argmax(-1)
    assert (nearest == torch.arange(26)).sum() > 13


def test_a_domain_is_the_same_whatever_else_is_drawn(tasks):
    again = LetterDomains(16).tasks("test", slice(10, AT_ONCE + 2), 2)
    assert torch.equal(again.query_x, tasks.query_x[10 : AT_ONCE + 2])
    assert torch.equal(again.query_y, tasks.query_y[10 : AT_ONCE + 2])


def test_domains_splits_and_seeds_differ(tasks):
    assert len(torch.unique(tasks.query_x.flatten(1), dim=0)) == len(tasks.query_x)
    for other in (LetterDomains(16, seed=1).tasks("test", slice(0, 4), 2), LetterDomains(16).tasks("val", slice(0, 4), 2)):
        assert not torch.equal(other.query_x, tasks.query_x[:4])


def test_unequal_letters_keep_the_number_of_queries_and_the_style(tasks):
    unequal = LetterDomains(16).tasks("test", slice(0, 8), 2, imbalance=2.0)
    assert unequal.query_x.shape[1] == 52
    counts = torch.stack([torch.bincount(labels, minlength=26) for labels in unequal.query_y])
    assert (counts.sum(-1) == 52).all()
    assert (counts.amax(-1) >= 4).all()
    assert (unequal.query_y.diff(dim=-1) >= 0).all(), "in the order of their letters"
    paper = [part.query_x[:8].float().mean((1, 2, 3, 4)) for part in (unequal, tasks)]
    assert torch.corrcoef(torch.stack(paper))[0, 1] > 0.95, "the same inks and papers"


def test_fewer_letters_are_the_first_ones():
    data = LetterDomains(16, way=3)
    assert data.class_names == ("A", "B", "C")
    assert data.tasks("val", slice(0, 2), 2).query_y.tolist() == [[0, 0, 1, 1, 2, 2]] * 2


@pytest.mark.parametrize("wrong", [{"way": 27}, {"way": 1}, {"image_size": 8}])
def test_what_cannot_be_drawn_is_refused_in_one_line(wrong):
    with pytest.raises(UserError, match=r"way=|image size"):
        LetterDomains(**wrong)
