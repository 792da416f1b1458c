"""Crops of photographs: whole pixels of a zero-padded image, mirrored; and who gets them."""

import torch

from data.augmentation import CROPS, LETTERS, Crops, augmentation_for


def cuts(image, shift):
    """All crops of the padded image and their mirror images, one by one."""
    size = image.shape[-1]
    padded = torch.zeros(image.shape[0], size + 2 * shift, size + 2 * shift, dtype=image.dtype)
    padded[:, shift : shift + size, shift : shift + size] = image
    places = [(i, j) for i in range(2 * shift + 1) for j in range(2 * shift + 1)]
    found = [padded[:, i : i + size, j : j + size] for i, j in places]
    return found + [cut.flip(-1) for cut in found]


def test_crops_are_whole_pixels_of_the_padded_image():
    image = torch.randint(1, 255, (3, 32, 32), dtype=torch.uint8)
    known = {cut.contiguous().numpy().tobytes() for cut in cuts(image, 4)}
    drawn = CROPS(image.expand(3000, -1, -1, -1), seed=0)
    assert drawn.dtype == torch.uint8
    kinds = {one.contiguous().numpy().tobytes() for one in drawn}
    assert kinds <= known, "no value is made up, none interpolated"
    assert len(kinds) == len(known) == 162, "shifts by up to 4 pixels each way, mirrored or not"


def test_crops_are_seeded_and_height_and_width_have_their_own_shift():
    images = torch.rand(20, 1, 16, 8)
    assert torch.equal(CROPS(images, seed=1), CROPS(images, seed=1))
    assert not torch.equal(CROPS(images, seed=1), CROPS(images, seed=2))
    still = Crops(shift=0.0, mirror=False)(images, seed=0)
    assert torch.equal(still, images)
    tall = Crops(shift=0.1, mirror=False)(images, seed=0)
    assert {int((one[0].sum(-1) == 0).sum()) for one in tall} == {0, 1, 2}, "a tenth of 16 rows is 2"


def test_photographs_are_cut_and_letters_are_not():
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    assert augmentation_for(images, mirror=True) is CROPS
    assert augmentation_for(images, mirror=False) is LETTERS
    assert augmentation_for(images.float(), mirror=True) is None
    assert augmentation_for(images.flatten(1), mirror=False) is None
