"""What every picture must be: titled by a question, with nothing over what it shows; and what TensorBoard must be told."""

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def assert_readable(figure, about=""):
    """The title asks, and says which run it is; no key lies over a panel, its labels or the title."""
    figure.canvas.draw()
    title = figure.get_suptitle()
    assert "?" in title, title
    assert about in title.replace("\n", " "), title
    renderer = figure.canvas.get_renderer()
    panels = [axis.get_tightbbox(renderer) for axis in figure.axes if axis.get_visible()]
    others = [text.get_window_extent(renderer) for text in (figure._suptitle, figure._supxlabel) if text is not None]
    assert not [axis for axis in figure.axes if axis.get_legend() is not None]
    for legend in figure.legends:
        extent = legend.get_window_extent(renderer)
        assert not any(extent.overlaps(other) for other in (*panels, *others))
        assert -1 <= extent.x0 < extent.x1 <= figure.bbox.x1 + 1, "it is cut off"
    assert not any(others[0].overlaps(panel) for panel in panels), "the title lies over a panel"
    assert -1 <= others[0].x0 < others[0].x1 <= figure.bbox.x1 + 1, "the title is cut off"


def assert_tags(run, expected):
    """Every tag of a run's logs says the split, or that it is a picture; epochs are not of a split."""
    logs = [EventAccumulator(str(folder)).Reload().Tags() for folder in (run.path / "logs").iterdir()]
    tags = {tag for log in logs for kind in ("scalars", "images") for tag in log[kind]}
    assert {tag.partition("/")[0] for tag in tags - {"epoch", "own_epoch", "hp_metric"}} == expected, tags
