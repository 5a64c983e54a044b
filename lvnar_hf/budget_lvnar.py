"""As much refinement and search as a time allows, by what each costs on this machine.

A ladder leads from no refinement step to all that is asked for: first the steps, then the candidates, each rung twice
as many. What a rung costs is measured, for batches and lengths in powers of 2, on sources of random ids: those do not
converge early, nor give the same candidate twice, as real ones do. Of some repeats the slowest counts. Real calls then
correct it, towards what 95 % of them stay under: they meet what no measurement has, other work on the machine too.

This module travels to the Hub with the model: it imports nothing but torch and transformers.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import torch

from .configuration_lvnar import LvnarConfig
from .decoding_options_lvnar import DecodingOptions
from .search_options_lvnar import CANDIDATE_NUMBERS, SearchOptions

NUM_REPEATS = 5
NUM_WARM_UPS = 2
QUANTILE = 0.95  # of the calls, that stay under the cost
CORRECTION = 0.05  # of the cost, by one call that does not; those that do take back as much together
FORGOTTEN = 0.001  # of the cost of a rung that was too dear, by one call; so that it is tried again

Translate = Callable[[torch.Tensor, torch.Tensor, DecodingOptions], object]  # ids, mask, options


def ladder(options: DecodingOptions) -> list[DecodingOptions]:
    """What may be done, the cheapest first; the last rung is all that is asked for."""
    steps = range(options.num_refinement_steps + 1)
    rungs = [dataclasses.replace(options, num_refinement_steps=step, search=SearchOptions()) for step in steps]
    wanted = {name: getattr(options.search, name) for name in CANDIDATE_NUMBERS}
    for halvings in reversed(range(max(wanted.values()).bit_length() - 1)):
        numbers = {name: min(number, max(2, -(-number // 2**halvings))) for name, number in wanted.items()}
        rungs.append(dataclasses.replace(options, search=dataclasses.replace(options.search, **numbers)))
    return rungs


class CostTable:
    """Milliseconds of one call, by rung, batch and source length; measured when they are first asked for.

    Args:
        config: of the model.
        translate: what is timed.
        device: where its inputs have to be.
    """

    def __init__(self, config: LvnarConfig, translate: Translate, device: torch.device):
        self._config, self._translate, self._device = config, translate, device
        self._costs: dict[tuple[Any, ...], float] = {}

    def cost(self, options: DecodingOptions, batch_size: int, source_length: int) -> float:
        """What a call takes at most, in milliseconds: that of the next power of 2 of sentences and of tokens."""
        key = self._key(options, batch_size, source_length)
        if key not in self._costs:
            self._costs[key] = self._measure(options, *self._shape(batch_size, source_length))
        return self._costs[key]

    def correct(self, options: DecodingOptions, batch_size: int, source_length: int, taken_ms: float) -> None:
        """Note what a call that was chosen has taken (Robbins and Monro, 1951: a quantile, estimated step by step)."""
        key = self._key(options, batch_size, source_length)
        change = QUANTILE if taken_ms > self._costs[key] else QUANTILE - 1
        self._costs[key] *= 1 + CORRECTION * change

    def _shape(self, batch_size: int, source_length: int) -> tuple[int, int]:
        return _power_of_2(batch_size), min(_power_of_2(source_length), self._config.max_position_embeddings)

    def _key(self, options: DecodingOptions, batch_size: int, source_length: int) -> tuple[Any, ...]:
        search = options.search
        numbers = [getattr(search, name) for name in (*CANDIDATE_NUMBERS, "num_elbo_samples", "score")]
        # The models themselves: an object that is gone may have left its id to another.
        others = (search.rescorer, search.language_model, options.with_bounds, options.with_confidences)
        return (options.num_refinement_steps, *numbers, *others, *self._shape(batch_size, source_length))

    def _measure(self, options: DecodingOptions, batch_size: int, source_length: int) -> float:
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(3, self._config.vocab_size, (batch_size, source_length), generator=generator)
        ids = ids.to(self._device)
        mask = torch.ones_like(ids)
        seconds = []
        for _ in range(NUM_WARM_UPS + NUM_REPEATS):
            start = time.perf_counter()
            self._translate(ids, mask, options)  # it ends with a look at the result, so that nothing is under way
            seconds.append(time.perf_counter() - start)
        return 1000 * max(seconds[NUM_WARM_UPS:])

    def choose(
        self, options: DecodingOptions, batch_size: int, source_length: int, max_ms: float
    ) -> tuple[DecodingOptions, float]:
        """The highest rung that costs no more, or the first if none does; and what it costs in milliseconds."""
        rungs = ladder(options)
        chosen, expected = rungs[0], self.cost(rungs[0], batch_size, source_length)
        for rung in rungs[1:]:
            cost = self.cost(rung, batch_size, source_length)
            if cost > max_ms:
                self._costs[self._key(rung, batch_size, source_length)] *= 1 - FORGOTTEN
                break
            chosen, expected = rung, cost
        return chosen, expected


def _power_of_2(number: int) -> int:
    """The next one."""
    return 1 << max(0, number - 1).bit_length()
