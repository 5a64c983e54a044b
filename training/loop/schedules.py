"""What changes in the course of a run, as pure functions of the step and of the share of the run that is done.

The share, from 0 to 1, is of the steps, or of the minutes in a run that is given minutes. Warm-up alone counts steps.
"""

import math

from lvnar_hf.losses_lvnar import kl_budget_at
from training.sections import OptimizationArguments


def learning_rate_factor(step: int, warmup_steps: int, share: float = 0.0, cooldown_share: float = 0.0) -> float:
    """Share of the peak learning rate at a step: linear warm-up, then inverse square root.

    In the last part of the run it is multiplied by a factor that falls linearly to 0.

    Args:
        step: from 1.
        warmup_steps: steps of warm-up.
        share: of the run that was done before this step.
        cooldown_share: how large the last part is, as a share of the run.
    """
    warmup_steps = max(warmup_steps, 1)
    factor = min(step / warmup_steps, math.sqrt(warmup_steps / step)) if step else 0.0
    if cooldown_share:
        factor *= min(1.0, (1.0 - share) / cooldown_share)
    return factor


def glancing_ratio_at(share: float, initial_ratio: float, final_ratio: float) -> float:
    """Share of the wrong positions whose true tokens are shown to the decoder; it changes linearly over the run."""
    return initial_ratio + (final_ratio - initial_ratio) * share


def settings_at(arguments: OptimizationArguments, max_steps: int, step: int, share: float) -> dict[str, float]:
    """What a step is taken with: the learning rate, and for this package's model the weights in its objective.

    Args:
        arguments: section `training` of the recipe.
        max_steps: of the run, if it is not given minutes.
        step: from 1.
        share: of the run that was done before this step.
    """
    cooldown_share = arguments.cooldown_share or arguments.cooldown_steps / max_steps
    factor = learning_rate_factor(step, arguments.warmup_steps, share, cooldown_share)
    return {
        "learning_rate": arguments.learning_rate * factor,
        "kl_budget": kl_budget_at(share, 1.0, arguments.initial_kl_budget, arguments.final_kl_budget),
        "glancing_ratio": glancing_ratio_at(share, arguments.initial_glancing_ratio, arguments.final_glancing_ratio),
        "bigram_weight": arguments.bigram_weight,
        "own_output_share": arguments.own_output_share,
        "prior_share": arguments.prior_share,
    }
