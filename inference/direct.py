"""Traces of programs that can say their sites themselves: the same numbers as Pyro's, without running its handlers.

Pyro follows a program by handlers on every statement, which costs a few milliseconds a call: on small tasks more than all
arithmetic. A guide or model may have, beside ``forward``, a method ``sites`` that gives its statements as values,
:class:`~models.sites.Site`, by name: the guide's from the arguments of its call, the model's from the guide's draws and
these, or ``None`` where they cannot be given so. Where anything else is asked of a program, such as under Pyro's ``SVI`` or
any handler, it runs as ever.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from pyro.poutine.runtime import am_i_wrapped
from torch import Tensor

from models.sites import Site, says_its_sites


class Hidden(Exception):
    """A program samples what its sites do not tell."""


class NothingHidden(Messenger):
    """Inside, no program may sample.

    Raises:
        Hidden: one does.
    """

    def _pyro_sample(self, msg: Any) -> None:
        raise Hidden


def direct_traces(model: Any, guide: Any, args: tuple, kwargs: dict[str, Any]) -> tuple[Trace, Trace] | None:
    """Traces of the model replayed on the guide, and of the guide, with the sites alone; ``None`` where they have to be traced:
    the programs do not say their sites, or a handler wants to know of them.

    Args:
        args, kwargs: of both programs.
    """
    if am_i_wrapped() or not (says_its_sites(model) and says_its_sites(guide)):
        return None
    try:
        with NothingHidden():
            posteriors = guide.sites(*args, **kwargs)
            if posteriors is None:
                return None
            drawn = {name: site.distribution() for name, site in posteriors.items()}
            densities = model.sites(drawn, *args, **kwargs)
    except Hidden:
        return None
    return None if densities is None else (trace_of(densities, drawn), trace_of(posteriors, drawn))


def trace_of(sites: Mapping[str, Site], drawn: Mapping[str, Tensor]) -> Trace:
    """A trace of these ``sites``, at their observed values or those ``drawn``; observed ones are scored."""
    trace = Trace()
    for name, (distribution, observed, scale) in sites.items():
        trace.add_node(
            name,
            name=name,
            type="sample",
            fn=distribution,
            value=drawn[name] if observed is None else observed,
            is_observed=observed is not None,
            scale=scale,
            mask=None,
            infer={},
        )
        if observed is not None:
            trace.nodes[name]["log_prob_sum"] = (distribution.log_prob(observed) * scale).sum()
    return trace
