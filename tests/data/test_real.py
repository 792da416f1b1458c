"""The real archives load as they are; skipped where they are absent."""

from data.catalogue import load_data
from data.sources.folder import load_tree


def test_omniglot_archive(shared_data, tmp_path, monkeypatch):
    name = "images_background_small1.zip"
    monkeypatch.setenv("SIBYL_CACHE", str(tmp_path))
    data = load_data("omniglot", shared_data / "omniglot" / name, image_size=28)
    assert sum(data[s].num_classes for s in data.splits) == 136
    assert all((data[s].counts == 20).all() for s in data.splits)
    assert load_tree(shared_data / "omniglot" / name, 28).num_classes == sum(data[s].num_classes for s in data.splits)
