"""What users have in hand becomes the same items, whatever it comes in."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from data.errors import UserError
from data.inputs import as_items, as_targets, as_tensor, fit_images, image_files
from data.sources.folder import find_classes

IMAGES = torch.randint(0, 256, (5, 3, 8, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 2, 1, 1, 0])
PIL = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in IMAGES]


class Pairs(Dataset):
    """As torchvision's sets are: PIL images, numbers of classes, and their names."""

    classes = ("a", "b", "c")

    def __len__(self):
        return len(PIL)

    def __getitem__(self, i):
        if i >= len(PIL):
            raise IndexError
        return PIL[i], int(LABELS[i])


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(IMAGES, LABELS, strict=True))


GIVEN = {
    "tensors": lambda: as_items(IMAGES, LABELS),
    "a pair": lambda: as_items((IMAGES, LABELS)),
    "arrays": lambda: as_items(IMAGES.numpy(), LABELS.numpy()),
    "channels last": lambda: as_items(IMAGES.permute(0, 2, 3, 1).numpy(), LABELS.tolist()),
    "PIL": lambda: as_items(PIL, LABELS[:, None]),
    "a list": lambda: as_items(list(IMAGES), [str(i) for i in LABELS.tolist()]),
    "a data set": lambda: as_items(TensorDataset(IMAGES, LABELS)),
    "a stream": lambda: as_items(Stream()),
    "a loader": lambda: as_items(DataLoader(TensorDataset(IMAGES, LABELS), batch_size=2)),
    "a data set's own loader": lambda: as_items(Pairs(), class_names=("0", "1", "2")),
}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_all_are_the_same_items(given):
    items = given()
    assert torch.equal(items.items, IMAGES)
    assert torch.equal(items.labels, LABELS)
    assert items.labels.dtype == torch.int64
    assert items.class_names == ("0", "1", "2")


def test_names_of_classes():
    assert as_items(Pairs()).class_names == ("a", "b", "c")
    named = as_items(IMAGES, ["dog", "cat", "dog", "ant", "cat"])
    assert named.class_names == ("ant", "cat", "dog")
    assert named.labels.tolist() == [2, 1, 2, 0, 1]
    assert as_targets(["dog"], ("dog", "ant"))[0].tolist() == [0]


def test_real_targets_have_no_classes():
    x = torch.randn(4, 2)
    for y in (torch.randn(4), torch.randn(4, 1), torch.randn(4, 3)):
        items = as_items(x, y)
        assert not items.class_names
        torch.testing.assert_close(items.labels, y.squeeze(1) if y.shape[1:] == (1,) else y)
    assert as_items(x.double().numpy(), np.arange(4.0)).items.dtype == torch.get_default_dtype()


def test_images_take_the_networks_shape(tmp_path):
    Image.fromarray(np.full((30, 40), 7, np.uint8)).save(tmp_path / "grey.png")
    Image.fromarray(np.full((20, 20, 3), 9, np.uint8)).save(tmp_path / "colour.jpg")
    files = image_files(tmp_path)
    assert [file.name for file in files] == ["colour.jpg", "grey.png"]
    colour = as_tensor(files, image_shape=(3, 12, 12))
    assert (colour.shape, colour.dtype) == ((2, 3, 12, 12), torch.uint8)
    assert (int(colour[0].float().mean().round()), int(colour[1].float().mean())) == (9, 7)
    assert as_tensor(PIL, image_shape=(1, 6, 6)).shape == (5, 1, 6, 6)
    assert as_tensor(tmp_path / "grey.png").shape == (1, 1, 30, 40)


def test_photographs_are_upright(tmp_path):
    """A camera held on its side says so in the file."""
    wide = Image.fromarray(np.repeat(np.arange(0, 256, 16, dtype=np.uint8)[None], 8, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90° clockwise
    wide.save(tmp_path / "turned.png", exif=exif)
    assert as_tensor([tmp_path / "turned.png"]).shape == (1, 1, 16, 8)
    (loaded,) = as_tensor([tmp_path / "turned.png"], image_shape=(1, 16, 16))
    assert float(loaded[0, -1].float().mean()) > float(loaded[0, 0].float().mean()) + 200


def test_floats_stay_floats():
    assert fit_images(IMAGES.float() / 255, (1, 4, 4)).dtype == torch.float32
    assert fit_images(IMAGES, (1, 4, 4)).dtype == torch.uint8


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: as_items(IMAGES), "no targets: give one per item"),
        (lambda: as_items(IMAGES, [1, 2]), "5 items and 2 targets"),
        (lambda: as_items(TensorDataset(IMAGES)), "without targets"),
        (lambda: as_items([PIL[0], PIL[1].resize((4, 4))], [0, 1]), "item 1 is 3×4×4 where the first is 3×8×10"),
        (lambda: as_items(7, [0]), "not int"),
        (lambda: as_items([], []), "no items"),
        (lambda: as_items([object()], [0]), "an item of type object"),
        (lambda: as_targets([0, -1]), "whole numbers from 0"),
        (lambda: as_targets([0, 3], ("a", "b")), "up to 3, but `class_names` has 2"),
        (lambda: as_targets(["x"], ("a", "b")), "targets name x"),
        (lambda: as_targets([[1], [2, 3]]), "targets must be numbers"),
        (lambda: fit_images(torch.zeros(4, 2, 3, 3), (3, 4, 4)), "1 or 3 channels, not 4×2×3×3"),
        (lambda: image_files("nowhere"), "no such file or folder: nowhere"),
    ],
)
def test_errors_are_one_line(given, message):
    with pytest.raises(UserError, match=message) as error:
        given()
    assert "\n" not in str(error.value)


class NoLength(Dataset):
    def __getitem__(self, i):
        return IMAGES[i], 0


class Sizes(Pairs):
    def __getitem__(self, i):
        return torch.zeros(3, 8, 8 + i), 0


class Broken(Pairs):
    def __getitem__(self, i):
        raise TypeError("the user's own mistake")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda: as_items(NoLength()), "NoLength has no length: define __len__"),
        (lambda: as_items(DataLoader(Pairs(), 2)), "the DataLoader cannot make batches"),
        (lambda: as_items(DataLoader(Sizes(), 2)), "the DataLoader cannot make batches"),
        (lambda: as_targets("abc"), "a single name"),
        (lambda: as_targets([["a", "b"], ["c", "d"]]), "one per item"),
        (lambda: as_targets(torch.zeros(2, dtype=torch.complex64)), "not complex"),
        (lambda: as_tensor(IMAGES[0].movedim(0, -1).numpy(), image_shape=(3, 4, 4)), "not 8×10×3"),
        (lambda: as_tensor(torch.ones(2, 4).to_sparse()), "items are a sparse_coo tensor: give one that holds every number"),
        (lambda: as_tensor([torch.ones(4).to_sparse()]), "items are a sparse_coo tensor"),
        (lambda: as_tensor(torch.ones(2, 4, device="meta")), "items are a meta tensor"),
        (lambda: as_targets(torch.ones(2).to_sparse()), "targets are a sparse_coo tensor"),
        (lambda: as_tensor([Image.new("F", (4, 4), 0.5)]), "32 bits from 0.5 to 0.5"),
        (lambda: as_tensor([Image.new("I", (4, 4), 70000)]), "32 bits from 70000 to 70000"),
    ],
)
def test_more_errors_are_one_line(given, message):
    with pytest.raises(UserError, match=message) as error:
        given()
    assert "\n" not in str(error.value)


def test_errors_of_a_users_data_set_stay_as_they_are():
    with pytest.raises(TypeError, match="own mistake"):
        as_items(Broken())


def test_names_in_a_column_or_of_bytes():
    assert as_targets([["b"], ["a"], ["b"]])[0].tolist() == [1, 0, 1]
    assert as_targets(np.array([b"b", "ä".encode()]))[1] == ("b", "ä")


def test_resized_floats_stay_in_their_range():
    """The weights of antialiasing sum up to 1 in exact arithmetic alone."""
    white = fit_images(torch.ones(2, 3, 45, 37), (3, 28, 28))
    assert float(white.max()) == 1.0
    assert float(white.min()) > 0.999


def test_sixteen_bits_are_read_as_eight():
    ramp = np.linspace(0, 65535, 16).reshape(4, 4).astype(np.uint16)
    (read,) = as_tensor([Image.fromarray(ramp)])
    np.testing.assert_array_equal(read[0].numpy(), ramp // 256)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_images_stand_on_white(mode, tmp_path):
    """Black ink on nothing is not black on black."""
    drawn = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    drawn.paste((0, 0, 0, 255), (0, 0, 8, 16))
    drawn = drawn if mode == "RGBA" else drawn.convert("LA") if mode == "LA" else drawn.quantize()
    drawn.save(tmp_path / "ink.png")
    given = Image.open(tmp_path / "ink.png")
    for read in (as_tensor([given]), as_tensor([tmp_path / "ink.png"], image_shape=(3, 16, 16))):
        assert read.shape == (1, 3, 16, 16)
        assert read[0, :, :, :7].eq(0).all()
        assert read[0, :, :, 9:].eq(255).all()


def test_links_to_folders_are_followed_and_end(tmp_path):
    (tmp_path / "real" / "cat").mkdir(parents=True)
    Image.fromarray(np.full((8, 8), 7, np.uint8)).save(tmp_path / "real" / "cat" / "0.png")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "cat").symlink_to(tmp_path / "real" / "cat")
    (tmp_path / "tree" / "loop").symlink_to(tmp_path / "tree")
    assert [file.name for file in image_files(tmp_path / "tree")] == ["0.png"]
    assert list(find_classes(tmp_path / "tree")) == [("cat",)]


def test_colours_become_grey_as_pil_makes_them():
    grey = as_tensor(IMAGES, image_shape=(1, 8, 10))
    expected = torch.stack([torch.from_numpy(np.array(image.convert("L"))) for image in PIL])[:, None]
    assert int((grey.int() - expected.int()).abs().max()) <= 1
