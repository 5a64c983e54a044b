"""What a search looks at, and how it chooses: the options of `generate` that `search_lvnar` works by.

This module travels to the Hub with the model: it imports nothing but the standard library.
"""

import dataclasses
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

CANDIDATE_NUMBERS = ("num_latent_candidates", "num_length_candidates", "beam_size")
SCORES = ("beam", "bound", "elbo", "consensus", "rescorer")


@dataclass
class SearchOptions:
    """How many translations of a sentence are looked at, and how one is chosen; see `search_lvnar`.

    Args:
        num_latent_candidates: latents that refinement begins with, the prior's mean among them.
        latent_noise_scale: how far the others are from it, in standard deviations of the prior.
        num_length_candidates: with alignment "length", how many of the likeliest lengths each latent is given.
        beam_size: with alignment "ctc", how many translations a beam search of the last cells gives each candidate. 1:
            the likeliest cells collapsed.
        token_bonus: of each token, in nats, in the beam search and in "bound" and "elbo"; without it translations are
            too short. It stands for the model's `blank_penalty`, which is for the likeliest cells.
        language_model: a `LanguageModel` for the beam search.
        language_model_weight: of its log-probabilities.
        candidate_score: what the best one has most of. "beam": log p(y | x, μ) of the beam search, and what it adds;
            "bound": the lower bound of log p(y | x) of Eq. 12, with z = E_q(z | x, y)[z]; "elbo": the mean of
            `num_elbo_samples` estimates of the ELBO; "consensus": chrF to the other candidates; "rescorer": that
            model's log p(y | x), a token. By default "rescorer" if there is one, "beam" for one latent, else "bound".
        rescorer: a sequence-to-sequence model of transformers with this model's vocabulary.
        rescoring_margin: of a beam search, what is rescored: translations whose log-probability is at most so many nats
            below that of the sentence's likeliest. Of unlikely ones a rescorer takes short ones for good.
        search_seed: of all noise.
        num_return_candidates: how many of the best are returned, with their scores.
        tokenizer: for "consensus".
    """

    num_latent_candidates: int = 1
    latent_noise_scale: float = 0.5
    num_length_candidates: int = 1
    beam_size: int = 1
    token_bonus: float = 0.5
    language_model: Any = None
    language_model_weight: float = 0.3
    candidate_score: str | None = None
    num_elbo_samples: int = 4
    rescorer: Any = None
    rescoring_margin: float = 3.0
    search_seed: int = 0
    num_return_candidates: int = 1
    tokenizer: Any = None

    def __post_init__(self) -> None:
        for name in (*CANDIDATE_NUMBERS, "num_elbo_samples", "num_return_candidates"):
            self._check_number(name, Integral, 1)
        self._check_number("search_seed", Integral, 0)
        for name in ("latent_noise_scale", "token_bonus", "language_model_weight", "rescoring_margin"):
            self._check_number(name, Real, 0)
        if self.candidate_score not in (None, *SCORES):
            raise ValueError(f"candidate_score is {self.candidate_score!r}; it must be one of {', '.join(SCORES)}.")
        if self.candidate_score == "rescorer" and self.rescorer is None:
            raise ValueError("candidate_score='rescorer' needs rescorer=, a sequence-to-sequence model.")
        if self.candidate_score == "beam" and self.beam_size == 1:
            raise ValueError("candidate_score='beam' needs beam_size, at least 2.")
        if self.candidate_score == "consensus" and self.tokenizer is None:
            raise ValueError("candidate_score='consensus' needs tokenizer=: it compares texts.")
        if self.language_model is not None and self.beam_size == 1:
            raise ValueError("language_model is for the beam search: give beam_size too, at least 2.")
        if self.num_candidates == 1 and self.num_return_candidates > 1:
            raise ValueError(
                "num_return_candidates needs candidates: num_latent_candidates, num_length_candidates or beam_size."
            )

    def _check_number(self, name: str, kind: Any, least: float) -> None:
        value: Any = getattr(self, name)
        if not isinstance(value, kind) or isinstance(value, bool) or not least <= value < float("inf"):
            of_kind = "whole number" if kind is Integral else "number"
            raise ValueError(f"{name} is {value!r}; it must be a {of_kind} of at least {least}.")

    @property
    def num_candidates(self) -> int:
        """How many rows a sentence has at most."""
        return self.num_latent_candidates * self.num_length_candidates * self.beam_size

    @property
    def is_asked(self) -> bool:
        return self.num_candidates > 1

    @property
    def score(self) -> str:
        """`candidate_score`, or what it is by default."""
        default = "beam" if self.num_latent_candidates == 1 and self.beam_size > 1 else "bound"
        return self.candidate_score or ("rescorer" if self.rescorer is not None else default)

    def check(self, config: Any) -> None:
        """Refuse what the model's alignment does not have, and a rescorer of another vocabulary."""
        if config.alignment == "ctc" and self.num_length_candidates > 1:
            raise ValueError("num_length_candidates is for alignment 'length': this model has cells, not lengths.")
        if config.alignment == "length" and self.beam_size > 1:
            raise ValueError("beam_size is for alignment 'ctc': this model predicts its lengths.")
        if self.rescorer is None:
            return
        given = getattr(self.rescorer, "config", None)
        if getattr(given, "decoder_start_token_id", None) is None:
            raise ValueError(
                f"rescorer is a {type(self.rescorer).__name__}; it must be an autoregressive model that translates."
            )
        num_ids = getattr(given, "decoder_vocab_size", None) or given.vocab_size  # type: ignore[union-attr]
        if num_ids < config.decoder_vocab_size:
            raise ValueError(
                f"The rescorer knows {num_ids} target ids, and this model says {config.decoder_vocab_size}: it must "
                "have the same vocabulary."
            )


SEARCH_OPTIONS = tuple(f.name for f in dataclasses.fields(SearchOptions) if f.name != "tokenizer")
