"""Which pictures a run leaves: none is drawn before it is asked for, and none of what is not there."""

import matplotlib.pyplot as plt
import pytest

from inference.vid.draw import run_figures
from inference.vid.options import Size


def names(made, fitted, records):
    return set(run_figures(fitted, made.data.target.test, records, made.run))


def test_pictures_of_methods_with_and_without_decoders(study):
    made = study("student", "vid")
    fitted, records = made.fit_all()
    figures = run_figures(fitted, made.data.target.test, records, made.run)
    assert set(figures) == {"accuracy", "reliability", "information", "surprise"}
    for draw in figures.values():
        plt.close(draw())
    plain = {key: vid for key, vid in fitted.items() if key[0] == "student"}
    assert names(made, plain, records) == {"accuracy", "reliability"}


def test_maps_of_a_single_position_have_no_picture_over_space(study):
    """All decoded maps are 1 × 1: the run keeps its results, and its other pictures."""
    made = study("vid")
    object.__setattr__(made, "settings", made.settings.__class__(made.settings.schedule, pairs=(("1.14", "1.14"),)))
    fitted, records = made.fit_all()
    assert names(made, fitted, records) == {"accuracy", "reliability", "information"}


def test_strength_zero_has_no_decoders_to_draw(study):
    made = study("vid", strengths=(0.0,))
    fitted, records = made.fit_all()
    assert fitted["vid", Size(5)].model.pairs == []
    assert names(made, fitted, records) == {"accuracy", "reliability"}


@pytest.mark.parametrize("smallest", [Size(3), Size(5)])
def test_the_smallest_size_is_drawn(study, monkeypatch, smallest):
    made = study("student", sizes=(smallest, Size(7)))
    fitted, records = made.fit_all()
    shown = []
    monkeypatch.setattr("inference.vid.draw.draw_reliability", lambda students, *_, **about: shown.append(students))
    run_figures(fitted, made.data.target.test, records, made.run)["reliability"]()
    assert shown == [{"student": fitted["student", smallest]}]
