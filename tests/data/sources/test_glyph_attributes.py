"""Letters with attributes: a ruler finds each attribute again, of letters never seen; angles are those they were turned by."""

import math

import pytest
import torch
import torch.nn.functional as F

from data.errors import UserError
from data.sources.glyph_attributes import ATTRIBUTES, HAND, STILL, load_attributed_glyphs, load_posed_glyphs, picture, turned
from data.sources.glyphs import draw_alphabet


@pytest.fixture(scope="module")
def glyphs():
    return load_attributed_glyphs(28, images=60)


def bits(part):
    return part.labels[:, None] >> torch.arange(3) & 1


def test_classes_are_named_by_their_attributes(glyphs):
    assert glyphs.train.counts.tolist() == [60] * 8
    assert glyphs.train.items.shape == (480, 1, 28, 28)
    assert glyphs.train.items.dtype == torch.uint8
    for part in (glyphs.train, glyphs.test):
        for number, name in enumerate(part.class_names):
            assert name.split()[1:] == [words[number >> a & 1] for a, words in enumerate(ATTRIBUTES)]


def test_they_are_seeded_and_splits_differ(glyphs):
    again, other = load_attributed_glyphs(28, images=60), load_attributed_glyphs(28, images=60, seed=1)
    assert torch.equal(again.val.items, glyphs.val.items)
    assert not torch.equal(other.val.items, glyphs.val.items)
    assert not torch.equal(glyphs.train.items, glyphs.test.items)


def test_ink_is_bright_or_dark_and_strokes_are_thick_or_thin(glyphs):
    images, bright, thick = glyphs.test.items.float() / 255, bits(glyphs.test)[:, 0], bits(glyphs.test)[:, 2]
    border = images[:, 0, [0, -1]].mean((1, 2))
    assert torch.equal(border < 0.5, bright == 1), "paper is at the border"
    ink = torch.where(bright[:, None, None] == 1, images[:, 0], 1 - images[:, 0])
    share = (ink > 0.5).float().mean((1, 2))
    assert float(share[thick == 1].mean()) > 1.5 * float(share[thick == 0].mean())


def test_letters_lean_to_the_right_or_left():
    """A vertical bar without noise: its top is right of its bottom."""
    bar = torch.zeros(2, 1, 64, 64)
    bar[:, :, 10:54, 30:34] = 1
    shape = torch.eye(2).repeat(2, 1, 1)
    shape[:, 0, 1] = 0.5 * torch.tensor([1.0, -1.0])
    drawn = picture(bar, shape, torch.ones(2), 32, STILL, torch.Generator().manual_seed(0))[:, 0].float()
    columns = drawn.argmax(-1)  # of each row
    lean = columns[:, 8:14].float().mean(-1) - columns[:, 18:24].float().mean(-1)
    assert float(lean[0]) > 3
    assert float(lean[1]) < -3


def test_slants_are_those_of_the_names(glyphs):
    """Letters of a split are many: sheared back, the right ones stand as the left ones do on average."""
    images, (bright, right, _) = glyphs.train.items.float()[:, 0] / 255, bits(glyphs.train).mT
    ink = torch.where(bright[:, None, None] == 1, images, 1 - images).sub(0.45).clamp_min(0)
    row, column = torch.meshgrid(torch.linspace(-1, 1, 28), torch.linspace(-1, 1, 28), indexing="ij")
    mass = ink.sum((1, 2))
    mean = [(ink * place).sum((1, 2)) / mass for place in (row, column)]
    moment = (ink * (row - mean[0][:, None, None]) * (column - mean[1][:, None, None])).sum((1, 2)) / mass
    assert float(moment[right == 1].mean()) < 0 < float(moment[right == 0].mean()), "the higher, the more to the right"


@pytest.mark.parametrize("quarter", range(4))
def test_letters_are_turned_counterclockwise(quarter):
    drawing = draw_alphabet()["test"]["ARMENIAN CAPITAL LETTER AYB"][:1, None]
    maps = torch.cat([turned(torch.tensor([quarter * math.pi / 2])), torch.zeros(1, 2, 1)], dim=-1)
    found = F.grid_sample(drawing, F.affine_grid(maps, [1, 1, 64, 64], align_corners=False), align_corners=False)
    torch.testing.assert_close(found, torch.rot90(drawing, quarter, dims=(-2, -1)), atol=1e-3, rtol=0)


def test_poses_turn_each_letter_from_how_it_lies():
    """A picture turned back by its own angle and its letter's is more like the letter upright than any turned further."""
    found = load_posed_glyphs("test", 32, images=12, max_letters=20)
    source = found.source
    assert source.items.shape == (240, 1, 32, 32)
    assert source.counts.tolist() == [12] * 20
    assert found.targets.shape == (240,)
    assert 0.95 * math.pi / 2 < float(found.targets.abs().max()) <= math.pi / 2
    assert float(found.targets.mean()) == pytest.approx(0, abs=4 * math.pi / 12**0.5 / 240**0.5)
    assert 4.5 < float(found.lies.max() - found.lies.min()) <= 2 * math.pi
    masters = torch.stack([draw_alphabet()["test"][name][0] for name in source.class_names])
    letters = normalised(F.avg_pool2d(masters, 2))[source.labels]
    likeness = []
    for further in torch.arange(12) * math.pi / 6:
        back = turned(-(found.targets + found.lies[source.labels] + further))
        grid = F.affine_grid(torch.cat([back, torch.zeros(240, 2, 1)], dim=-1), [240, 1, 32, 32], align_corners=False)
        upright = F.grid_sample(source.items.float(), grid, align_corners=False, padding_mode="border")
        likeness.append(float((normalised(upright[:, 0]) * letters).sum(-1).mean()))
    assert likeness[0] > 0.45
    assert max(likeness[1:]) < 0.75 * likeness[0]


def normalised(images):
    """``[n, pixels]`` with mean 0 and length 1."""
    return F.normalize(images.flatten(1) - images.flatten(1).mean(-1, keepdim=True), dim=-1)


def test_poses_are_seeded_and_a_letter_lies_the_same_whatever_number_of_pictures():
    few, again, other = (load_posed_glyphs("val", 16, images=2, max_letters=5, seed=seed) for seed in (0, 0, 1))
    many = load_posed_glyphs("val", 16, images=3, max_letters=5)
    assert torch.equal(few.source.items, again.source.items)
    assert not torch.equal(few.lies, other.lies)
    assert torch.equal(few.lies, many.lies)


def test_small_images_are_refused():
    with pytest.raises(UserError, match="at least 16"):
        load_posed_glyphs("val", 8)
    with pytest.raises(UserError, match="at least 16"):
        load_attributed_glyphs(8)
    assert HAND.rotation > STILL.rotation == 0, "what is asked for is not blurred"
