"""Lake's one-shot runs by the modified Hausdorff distance, the baseline that comes with them.

``python -m benchmarks.one_shot_hausdorff all_runs.zip`` prints the share of errors of each run and of all, which is known to be
38.8 % on the original archive. Nothing is learned: a test drawing is of the class whose one drawing is nearest.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from data.episodes import Episode
from data.errors import UserError
from data.sources.one_shot_runs import one_shot_runs

SIZE = 105  # pixels of the drawings as they were made
INK = 128


def ink(image: Tensor) -> np.ndarray:
    """``[n, 2]``: rows and columns of the bright pixels of ``[1, height, width]`` uint8, with their mean at the origin."""
    points = (image[0] >= INK).nonzero().double().numpy()
    return points - points.mean(0)


def modified_hausdorff(a: np.ndarray, b: np.ndarray) -> float:
    """The larger of the mean distances of the points of each set to the nearest of the other. Source: Dubuisson and Jain 1994,
    where it is d22.

    Args:
        a, b: ``[n, 2]`` and ``[m, 2]``.
    """
    return max(float(KDTree(to).query(points)[0].mean()) for points, to in ((a, b), (b, a)))


def errors(runs: Episode) -> Tensor:
    """``[runs]``: the share of test drawings whose nearest training drawing is of another class."""
    assert runs.query_y is not None
    shares = []
    for support, labels, queries, truth in zip(runs.support_x, runs.support_y, runs.query_x, runs.query_y, strict=True):
        known, drawn = ([ink(image) for image in images] for images in (support, queries))
        distances = torch.tensor([[modified_hausdorff(one, other) for other in known] for one in drawn])
        shares.append((labels[distances.argmin(1)] != truth).double().mean())
    return torch.stack(shares)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser("benchmarks.one_shot_hausdorff", description=__doc__.partition("\n")[0])
    parser.add_argument("runs", help="folder or archive of the runs, such as all_runs.zip")
    options = parser.parse_args(arguments)
    try:
        shares = errors(one_shot_runs(options.runs, SIZE))
    except UserError as error:
        parser.error(str(error))
    for number, share in enumerate(shares.tolist(), start=1):
        print(f"run {number:2}: {100 * share:4.1f} % errors")
    print(f"mean:   {100 * float(shares.mean()):4.1f} %")


if __name__ == "__main__":
    main()
