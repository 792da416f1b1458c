"""Calls of the Python interface with arguments of other kinds."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

PRELUDE = """
import copy, io
from pathlib import Path
import numpy as np, torch
from torch import nn
from PIL import Image
import sibyl
from sibyl import *
from models.networks.feature_network import FeatureNetwork
torch.manual_seed(0)
net, x, y = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(12, 3), torch.arange(12) % 2
features, labels = torch.randn(48, 6), torch.arange(48) % 12
images = torch.randint(0, 255, (48, 3, 16, 16), dtype=torch.uint8)
few = dict(tasks=32, validations=2, validation_tasks=8, beta=0.1, steps=1, way=2, queries=2, train_way=2, train_shot=1)
"""
"""What the Python of a case may name."""
VALUES = (
    *("None", "True", "-1", "0", "1", "3", "2**63", "10**400", "1.5", "float('nan')", "float('inf')", "1e300", "''", "'x'"),
    *("b'x'", "[]", "{}", "()", "object()", "np.float64(0.1)", "np.int64(3)", "np.bool_(True)", "np.array([1, 2])"),
    *("Path('out2')", "'vanilla'", "torch.tensor(1)", "torch.empty(0)", "torch.full((12, 3), float('nan'))"),
    *("torch.randn(12, 3)", "torch.randn(12, 3, 2)", "x.numpy()", "lambda: 0", "nn.Linear(5, 2)", "nn.Linear(3, 2)"),
    *("[[1, 2], [3]]", "['a'] * 12", "images", "features", "1j", "x.double()", "x.half()"),
    *("torch.randn(10**5, 10**9, device='meta')", "[None] * 12", "y + 10**9", "-y", "y.float()", "x.to_sparse()"),
    *("Image.new('L', (3, 3))", "'runs/sib'", "'runs/bnn'", "'runs/vid'", "'runs'", "'bnn.safetensors'", "'sib.safetensors'"),
    *("'vid.safetensors'", "'x' * 300", "'a\\0b'", "'network.pth'", "torch.float16", "torch.int8", "'cuda:99'", "'meta'"),
    *("torch.device('cpu')", "iter([])", "(x, y)", "range(12)", "int"),
)
"""Values, as Python."""
BNN, SIB, VID = "BNN.load('bnn.safetensors', net)", "SIB.load('sib.safetensors')", "VID.load('vid.safetensors', student=net)"
ITEMS = "LabelledItems(features, labels, tuple(map(str, range(12))))"
SUPPORT, TASK = ["images[:4]", "[0, 1, 0, 1]", "images[4:9]"], ["images[:4]", "torch.tensor([0, 1, 0, 1])", "images[4:9]"]
OF_BNN = (
    "algorithm beta prior prior_scale prior_scales likelihood noise device devices out epochs batch learning_rate seed rounds"
)
OF_SIB = "network backbone mirror out beta way shot queries rank precision seed steps tasks predictor batch power holdout"
OF_VID = "method strength unlabelled mirror updates batch pairs out seed temperature learning_rate precision"
IMAGES = "**{**few, 'epochs': 1, 'backbone': 'conv4-4'}"
CALLS = {
    "BNN.fit": ("BNN.fit", ["net", "x", "y"], OF_BNN, "epochs=2, batch=12"),
    "SIB.fit": ("SIB.fit", ["features", "labels"], OF_SIB, "**few"),
    "SIB.fit on images": ("SIB.fit", ["images", "labels"], "network backbone mirror epochs holdout weights", IMAGES),
    "VID.fit": ("VID.fit", ["net", "copy.deepcopy(net)", "x", "y"], OF_VID, "method='kd', updates=2, batch=4"),
    "BNN.load": ("BNN.load", ["'bnn.safetensors'", "net"], "algorithm beta prior likelihood", ""),
    "BNN.load a run": ("BNN.load", ["'runs/bnn'"], "algorithm beta prior likelihood network", ""),
    "SIB.load": ("SIB.load", ["'sib.safetensors'"], "variant backbone", ""),
    "SIB.load a run": ("SIB.load", ["'runs/sib'"], "variant backbone", ""),
    "VID.load": ("VID.load", ["'runs/vid'"], "method per_class labels number student teacher", ""),
    "VID.load a file": ("VID.load", ["'vid.safetensors'"], "student teacher", "student=net"),
    "BNN.predict": (f"{BNN}.predict", ["x"], "num_samples seed", ""),
    "SIB.predict": (f"{SIB}.predict", SUPPORT, "steps num_samples batch seed", ""),
    "SIB.posterior": (f"{SIB}.posterior", TASK, "steps query_y", ""),
    "VID.predict": (f"{VID}.predict", ["x"], "", ""),
    "BNN.save": (f"{BNN}.save", ["'new.safetensors'"], "", ""),
    "SIB.save": (f"{SIB}.save", ["'new.safetensors'"], "network", ""),
    "VID.save": (f"{VID}.save", ["'new.safetensors'"], "", ""),
    "BNN.to": (f"{BNN}.to", ["'cpu'"], "", ""),
    "VID.to": (f"{VID}.to", ["'cpu'"], "", ""),
    "load_data": ("load_data", ["'folder'", "'images'"], "image_size seed", "image_size=16"),
    "load_supervised": ("load_supervised", ["'folder'", "'pairs'"], "image_size seed", "image_size=16"),
    "TaskSpec": ("TaskSpec", ["2", "1", "2"], "imbalance", ""),
    "tasks": (f"EpisodeSampler({ITEMS}, TaskSpec(2, 1, 2)).sample", ["4"], "seed", "seed=0"),
}
"""Call -> function, sound arguments by place, arguments by name to try, and sound ones by name."""


@st.composite
def programs(draw: Any) -> str:
    """A call of the Python interface with one or two arguments of another kind."""
    function, given, names, sound = CALLS[draw(st.sampled_from(sorted(CALLS)))]
    given, named = list(given), {}
    for _ in range(draw(st.sampled_from([1, 1, 1, 2]))):
        value, choice = draw(st.sampled_from(VALUES)), draw(st.sampled_from([*range(len(given)), *names.split()]))
        if isinstance(choice, int):
            given[choice] = value
        else:
            named[choice] = value
    merged = f"**{{**dict({sound}), {', '.join(f'{name!r}: {value}' for name, value in named.items())}}}"
    return f"{function}({', '.join([*given, merged])})"
