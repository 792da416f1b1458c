"""What ArviZ makes of a run's files in a process without Sibyl: ``python -I elsewhere.py RUN``; prints what it found."""

import json
import sys
import warnings
from pathlib import Path


class NoSibyl:
    """Refuses to import anything of Sibyl's."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("sibyl", "inference", "guides", "models", "data"):
            raise ImportError(f"{name} is Sibyl's")


if __name__ == "__main__":  # not where it is imported to be looked at
    sys.meta_path.insert(0, NoSibyl())
    warnings.simplefilter("ignore")

import arviz as az  # noqa: E402
import matplotlib  # noqa: E402

matplotlib.use("Agg")


def look(data):
    """Draw everything; returns the summary of a few draws."""
    target = target_of(data)
    site = max(data.posterior.data_vars, key=lambda name: data.posterior[name].ndim)
    few = {dim: data.posterior[site][dim].values[:2] for dim in data.posterior[site].dims[2:]}
    summary = az.summary(data, var_names=[site], coords=few)
    az.plot_posterior(data, var_names=[site], coords=few)
    az.plot_forest(data, var_names=[site], coords=few, r_hat=True)
    az.plot_rank(data, var_names=[site], coords=few)
    az.plot_ppc(data, num_pp_samples=5, var_names=[target])
    az.plot_loo_pit(data, y=target)
    matplotlib.pyplot.close("all")
    return {name: summary[name].tolist() for name in ("mean", "sd", "ess_bulk", "r_hat")}


def target_of(data):
    """The observed variable."""
    return next(name for name in ("labels", "y") if name in data.observed_data)


def observed(data):
    """The observed data."""
    return data.observed_data[target_of(data)]


def describe(data):
    """What is compared with the truth."""
    loo = az.loo(data, pointwise=True, reff=None if hasattr(data, "posterior") else 1.0)
    points = {"loo": loo.loo_i.values.tolist(), "pareto_k": loo.pareto_k.values.tolist(), "target": target_of(data)}
    return points | {"groups": data.groups(), "attributes": {name: str(value) for name, value in data.attrs.items()}}


if __name__ == "__main__":
    run = Path(sys.argv[1])
    chosen = az.from_netcdf(run / "posterior.nc")
    saved = {path.stem: az.from_netcdf(path) for path in sorted((run / "posteriors").glob("*.nc"))}
    comparable = {name: data for name, data in saved.items() if observed(data).equals(observed(chosen))}
    found = {
        "chosen": describe(chosen),
        "files": {name: describe(data) for name, data in saved.items()},
        "ranking": az.compare(comparable)["elpd_loo"].to_dict(),
        "summary": look(chosen),
    }
    print(json.dumps(found))
