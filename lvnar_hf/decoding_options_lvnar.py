"""What one call of `generate` is to do, and the defaults of a model.

This module travels to the Hub with the model: it imports nothing but the standard library.
"""

from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from .search_options_lvnar import SearchOptions

# Decoding defaults by alignment, as they stand in a new model's generation_config.json. Collapsed cells have no
# repetitions but those that are meant.
GENERATION_DEFAULTS: dict[str, dict[str, Any]] = {
    "length": {"num_refinement_steps": 1, "remove_repetitions": True},
    "ctc": {"num_refinement_steps": 1, "remove_repetitions": False},
}

# Of a model's generation_config.json, which strangers write; who translates may ask for more.
MAX_STORED_STEPS = 1000

OWN_OPTIONS = (
    *("num_refinement_steps", "remove_repetitions", "max_length"),
    *("return_dict_in_generate", "output_scores", "output_confidences"),
)
MAX_STEPS = 2**62  # steps are counted in 64 bits
NOT_FINITE = (
    "The model computes values that are not finite, so that it has no likeliest translation: its weights are absurd, "
    "or too large for its number type. Load the model anew, in float32 or bfloat16."
)


@dataclass
class DecodingOptions:
    """What one call of `generate` has to do; the names and meanings of its arguments."""

    num_refinement_steps: int
    remove_repetitions: bool | str
    max_length: int | None = None
    return_dict_in_generate: bool | None = None
    output_scores: bool | None = None
    output_confidences: bool | None = None
    max_ms: float | None = None
    num_target_ids: int | None = None  # of the vocabulary, where the embedding has spare rows after them
    search: SearchOptions = field(default_factory=SearchOptions)

    @property
    def with_bounds(self) -> bool:
        """Whether lower bounds are asked for."""
        return bool(self.return_dict_in_generate and (self.output_scores or self.output_confidences))

    @property
    def with_confidences(self) -> bool:
        """Whether confidences are asked for."""
        return bool(self.return_dict_in_generate and self.output_confidences)

    def __post_init__(self) -> None:
        if isinstance(self.num_refinement_steps, Integral) and not isinstance(self.num_refinement_steps, bool):
            self.num_refinement_steps = int(self.num_refinement_steps)
        if isinstance(self.max_length, Integral) and not isinstance(self.max_length, bool):
            self.max_length = int(self.max_length)
        if type(self.num_refinement_steps) is not int or self.num_refinement_steps < 0:
            raise ValueError(
                f"num_refinement_steps is {self.num_refinement_steps!r}; it must be a whole number, 0 or more."
            )
        if type(self.remove_repetitions) is not bool and self.remove_repetitions != "tokens":
            raise ValueError(f"remove_repetitions is {self.remove_repetitions!r}; it must be True, False or 'tokens'.")
        if self.max_length is not None and (type(self.max_length) is not int or self.max_length < 1):
            raise ValueError(f"max_length is {self.max_length!r}; it must be a whole number of at least 1.")
        is_time = isinstance(self.max_ms, Real) and not isinstance(self.max_ms, bool)
        if self.max_ms is not None and not (is_time and 0 < self.max_ms < float("inf")):
            raise ValueError(f"max_ms is {self.max_ms!r}; it must be a number above 0, milliseconds.")


def stored_refinement_steps(config: Any, generation_config: Any) -> int:
    """The model's own number of refinement steps.

    Raises:
        ValueError: it is above MAX_STORED_STEPS.
    """
    default = GENERATION_DEFAULTS[config.alignment]["num_refinement_steps"]
    num_steps = getattr(generation_config, "num_refinement_steps", default)
    DecodingOptions(num_refinement_steps=num_steps, remove_repetitions=False)
    if num_steps > MAX_STORED_STEPS:
        raise ValueError(
            f"generation_config.json: num_refinement_steps is {num_steps}; the model's own must be at most "
            f"{MAX_STORED_STEPS}. Pass num_refinement_steps to generate for more."
        )
    return int(num_steps)
