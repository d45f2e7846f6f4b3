"""decide(): measures a checkpoint and fits its recipe into a budget, headers and padding included.

What is measured depends on neither the budget nor the machine's threads, so the same command always
comes to the same recipe, and an interrupted run goes on with it.
"""

from __future__ import annotations

from collections.abc import Generator

from dotscli.quantize.fit.fit import Fit, fit, free_groups
from dotscli.quantize.fit.measure import Measuring, measure
from dotscli.quantize.imatrix.importance import ImportanceMatrix
from dotscli.quantize.output.layout import layouts
from dotscli.quantize.plan import plan
from dotscli.quantize.recipe.recipe import Recipe
from dotscli.quantize.request import Budget, Request
from dotscli.quantize.source.inputs import Input
from dotscli.quantize.threads import default_threads


def decide(
    given: Input,
    named: Recipe,
    budget: Budget,
    importance: ImportanceMatrix | None,
    request: Request,
) -> Generator[Measuring | Fit, None, Recipe]:
    """Measure, choose the type of every tensor, and return the recipe.

    Args:
        named: its overrides hold, and what they name is not measured.
        request: which files there will be, and how many threads.

    Yields:
        How far the measuring is, and at the end what was chosen.

    Raises:
        DotsError: the checkpoint is not what its config says, a weight can't be quantized, or the
            budget is too small.
    """
    specs = given.source.specs(given.model)
    named.check_overrides(specs)
    if importance is not None:
        importance.check(specs)

    def headers(recipe: Recipe) -> int:
        """Bytes of the files that are not tensors; a budget of bits per weight has none."""
        if budget.nbytes is None:
            return 0
        decided = plan(given.model, given.source, recipe, importance is not None)
        keys, _ = given.keys(recipe.file_type)
        own = () if importance is None else importance.keys()
        files = layouts(decided, (*keys, *own), request.out, request.split_max_size)
        return sum(file.nbytes for file in files) - decided.data_nbytes

    groups = free_groups(specs, named.overrides)
    wanted = [(spec, group.candidates) for group in groups for spec in group.specs]
    threads = request.threads or default_threads()
    errors = yield from measure(wanted, given.source, importance, threads)
    overhead, needed = -1, headers(named)
    while overhead < needed:  # once more where the types chosen make more files than foreseen
        overhead = needed
        found = fit(given.model, specs, named.overrides, errors, budget, overhead)
        needed = headers(found.recipe)
    yield found
    return found.recipe
