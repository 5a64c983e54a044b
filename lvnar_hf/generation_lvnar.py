"""`generate`: its options, what it returns, and what it refuses. The work is that of Algorithm 1, `refinement_lvnar`.

This module travels to the Hub with the model: it imports nothing but torch and transformers.
"""

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.utils import ModelOutput

from .budget_lvnar import CostTable, ladder
from .confidence_lvnar import Calibration, sentence_probabilities
from .configuration_lvnar import LvnarConfig
from .ctc_lvnar import pack_left
from .decoding_options_lvnar import GENERATION_DEFAULTS, OWN_OPTIONS, DecodingOptions, stored_refinement_steps
from .inputs_lvnar import check_inputs
from .search_options_lvnar import CANDIDATE_NUMBERS, SEARCH_OPTIONS, SearchOptions

_CALL_OPTIONS = ("max_ms", *SEARCH_OPTIONS)  # of a call alone: none is stored with a model
# Options of transformers' GenerationConfig that change nothing here, whatever their value.
_INERT_OPTIONS = ("use_cache", "return_legacy_cache", "disable_compile", "transformers_version")
# All other options steer a search token by token, which this model does not have. These values of theirs ask for
# nothing; so do None, False, and what the model's own configuration or the default of GenerationConfig says.
_NEUTRAL_VALUES: dict[str, Any] = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
    "length_penalty": 1.0,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "guidance_scale": 1.0,
}
# Arguments of `generate` itself that belong to autoregressive decoding.
_AUTOREGRESSIVE_ARGUMENTS = (
    *("logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "assistant_model", "streamer"),
    *("negative_prompt_ids", "custom_generate", "decoder_input_ids", "past_key_values"),
)
# Arguments that trainers and pipelines pass to every model, and that change nothing here.
_IGNORED_ARGUMENTS = ("labels", "synced_gpus", "use_cache", "use_model_defaults")


@dataclass
class LvnarGenerateOutput(ModelOutput):
    """What `generate` returns with `return_dict_in_generate=True`. T is the largest number of steps taken.

    Args:
        sequences: (batch, longest translation) final translations, padded, repetitions removed if asked.
        sequences_before_removal: (batch, length) the same as the decoder gave them.
        num_steps_taken: (batch,) refinement steps of each sentence, 0 to `num_refinement_steps`; the last one is the
            one that changed nothing, if it was reached; or, of translations that alternate, that which is the same as
            the step `num_refinement_steps`.
        sequences_per_step: T + 1 tensors (batch, length); the translation before refinement and after each step, as
            the decoder gave it. A sentence that has stopped keeps its translation, one that alternates too.
        lower_bounds: with `output_scores=True` or `output_confidences=True`, (batch, T + 1) nats a sentence, the
            deterministic lower bound after each step, Eq. 12: log p(y_t | x, μ_t, l_t) + log p(l_t | x, μ_t)
            + log p(μ_t | x), the last one a density.
        token_confidences: with `output_confidences=True`, (batch, longest translation) the model's probability of each
            token of `sequences`, see `confidence_lvnar`; 0 at padding.
        sentence_confidences: with it, (batch,) the share of a sentence's words that is expected to be right, if the
            model has a `calibration`; without one, the mean of its tokens' probabilities.
        candidates: of a search, (batch, num_return_candidates, longest), as the decoder gave them, the best first; all
            padding where a sentence has fewer. A search has no `sequences_per_step`.
        time_plan: with `max_ms`, what was done of what was asked for (`num_refinement_steps`, `num_latent_candidates`,
            `num_length_candidates`, `beam_size`), and `expected_ms` and `taken_ms`.
        candidate_scores: with them, (batch, num_return_candidates), by `candidate_score`; -infinite where none is.
    """

    sequences: torch.Tensor
    num_steps_taken: torch.Tensor | None = None
    sequences_per_step: tuple[torch.Tensor, ...] | None = None
    lower_bounds: torch.Tensor | None = None
    sequences_before_removal: torch.Tensor | None = None
    token_confidences: torch.Tensor | None = None
    sentence_confidences: torch.Tensor | None = None
    candidates: torch.Tensor | None = None
    candidate_scores: torch.Tensor | None = None
    time_plan: dict[str, Any] | None = None


def find_kept(
    sequences: torch.Tensor, removal: bool | str, pad_token_id: int, input_ids: torch.Tensor | None, tokenizer: Any
) -> torch.Tensor | None:
    """Which tokens are left of translations without what only repeats what stands before it.

    Args:
        sequences: (batch, length), padded on the right.
        removal: True: words, and pieces of a word, that `tokenizer.find_repetitions` finds; nothing without a
            tokenizer. "tokens": the second and later ones of consecutive equal tokens, as the paper does before
            scoring; digits and signs too. False: nothing.
        pad_token_id: padding, which is never kept.
        input_ids: (batch, source_length), for `True`.

    Returns:
        (batch, length) bool; None if all tokens are kept.
    """
    if removal == "tokens":
        keep = sequences != pad_token_id
        keep[:, 1:] &= sequences[:, 1:] != sequences[:, :-1]
    elif removal and tokenizer is not None and input_ids is not None:
        rows = zip(sequences.tolist(), input_ids.tolist(), strict=True)
        repeated = [tokenizer.find_repetitions(target_ids, source_ids) for target_ids, source_ids in rows]
        if not any(map(any, repeated)):
            return None
        keep = (sequences != pad_token_id) & ~torch.tensor(repeated, device=sequences.device)
    else:
        return None
    return keep


def without_repetitions(
    sequences: torch.Tensor,
    removal: bool | str,
    pad_token_id: int,
    input_ids: torch.Tensor | None = None,
    tokenizer: Any = None,
) -> torch.Tensor:
    """The translations with what `find_kept` leaves: (batch, longest remaining length), or the sequences themselves."""
    keep = find_kept(sequences, removal, pad_token_id, input_ids, tokenizer)
    return sequences if keep is None else pack_left(sequences, keep, pad_token_id)


@functools.cache
def _default_options() -> tuple[dict[str, Any], dict[str, Any]]:
    """Those of GenerationConfig; and what a Trainer fills in, on versions that leave these empty."""
    filled_in: dict[str, Any] = getattr(GenerationConfig, "_get_default_generation_params", dict)()
    return GenerationConfig().to_dict(), filled_in


class LvnarGenerationMixin:
    """`generate`, for a model or an engine that refines a batch."""

    config: LvnarConfig
    generation_config: GenerationConfig
    device: Any
    calibration: Calibration | None = None  # of the confidences, where a file of it stands beside the weights
    can_search = False

    def _refine(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, options: DecodingOptions
    ) -> LvnarGenerateOutput:
        """Algorithm 1 on ids and mask (batch, source_length); `sequences` is as the decoder gave it."""
        raise NotImplementedError

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor | LvnarGenerateOutput:
        """Translate a batch of sources.

        Args:
            input_ids: (batch, source_length).
            generation_config: decoding options; by default, the model's own.
            attention_mask: (batch, source_length), 1 at valid positions; by default, all but padding ids.
            num_refinement_steps: T; 0 gives one pass from the prior's mean. A sentence whose translation it has had
                before stops earlier, with the translation of all T steps.
            remove_repetitions: True takes out words, and pieces of a word, that only repeat what stands before them;
                ids do not say where words are, so without `tokenizer` nothing is taken out. "tokens" keeps only the
                first of consecutive equal tokens, as the paper does before scoring: it changes numbers.
            tokenizer: an `LvnarTokenizer`, for `remove_repetitions`; and where the embedding has more rows than it has
                ids, those are no words.
            max_length: longest translation in tokens, end-of-sentence included; the likeliest length within it holds.
            return_dict_in_generate: return an `LvnarGenerateOutput`.
            output_scores: with that, compute its `lower_bounds`: a softmax over the vocabulary in each step.
            output_confidences: with `return_dict_in_generate`, compute its `token_confidences`,
                `sentence_confidences` and `lower_bounds`.
            num_latent_candidates, num_length_candidates, beam_size: one of them above 1 searches among several
                translations, and so do further options: see `SearchOptions`.
            max_ms: milliseconds for the batch: of the steps and candidates asked for, as many as it allows. Their costs
                are measured before, where they are not known yet (`measure_costs` does it ahead); the least is one
                pass, however little time there is.

        Returns:
            (batch, longest translation) token ids, padded on the right; or an `LvnarGenerateOutput`.

        Raises:
            ValueError: for input the model cannot take, unknown arguments, options that have a meaning in
                autoregressive decoding alone, a model in training mode, and weights that give no finite numbers.
        """
        inputs = kwargs.pop("inputs", None)
        input_ids = input_ids if input_ids is not None else inputs
        if input_ids is None:
            raise ValueError("generate needs input_ids, the token ids of the source: (batch, source_length).")
        tokenizer = kwargs.pop("tokenizer", None)
        if not hasattr(tokenizer, "find_repetitions"):
            tokenizer = None
        arguments = {n: v for n, v in kwargs.items() if n not in _IGNORED_ARGUMENTS and v is not None}
        options = self._decoding_options(generation_config, arguments, tokenizer)
        self._check_search(options)
        if arguments.get("remove_repetitions") is True and tokenizer is None:
            raise ValueError(
                "remove_repetitions=True needs tokenizer=, an LvnarTokenizer: ids do not say where words are. "
                "remove_repetitions='tokens' does without, and changes numbers."
            )
        if tokenizer is not None:
            options.num_target_ids = tokenizer.target_vocab_size
        attention_mask = check_inputs(self.config, input_ids, attention_mask)
        plan: dict[str, Any] | None = None
        if options.max_ms is not None:
            batch_size, source_length = input_ids.shape
            options, expected_ms = self._cost_table.choose(options, batch_size, source_length, options.max_ms)
            plan = {name: getattr(options.search, name) for name in CANDIDATE_NUMBERS}
            plan |= {"num_refinement_steps": options.num_refinement_steps, "expected_ms": expected_ms}
            start = time.perf_counter()
        output = self._refine(input_ids, attention_mask, options)
        output.sequences_before_removal = output.sequences
        padding = self.config.pad_token_id
        keep = find_kept(output.sequences, options.remove_repetitions, padding, input_ids, tokenizer)
        if keep is not None:
            output.sequences = pack_left(output.sequences, keep, padding)
        if output.token_confidences is not None:
            self._finish_confidences(output, keep)
        if plan is not None:
            taken_ms = 1000 * (time.perf_counter() - start)
            self._cost_table.correct(options, batch_size, source_length, taken_ms)
            output.time_plan = {**plan, "taken_ms": taken_ms}
        return output if options.return_dict_in_generate else output.sequences

    def _finish_confidences(self, output: LvnarGenerateOutput, keep: torch.Tensor | None) -> None:
        """Those of the tokens that are kept; and of the sentences."""
        probabilities: Any = output.token_confidences
        if keep is not None:
            probabilities = pack_left(probabilities, keep, 0)
        of_sentences = sentence_probabilities(probabilities, output.sequences != self.config.pad_token_id)
        output.token_confidences = probabilities
        output.sentence_confidences = of_sentences
        if self.calibration is not None:
            output.sentence_confidences = self.calibration.sentences(of_sentences)

    def _check_search(self, options: DecodingOptions) -> None:
        """Refuse a search where there is none, and what a search does not give."""
        wanted = options.search
        wanted.check(self.config)
        if not wanted.is_asked:
            return
        if not self.can_search:
            raise ValueError(
                f"This {type(self).__name__} gives one translation: candidates need the PyTorch model, or an "
                "LvnarOnnxModel of alignment 'ctc' loaded with search=True."
            )
        if wanted.rescorer is not None:
            self._check_rescorer(wanted.rescorer)
        if options.output_scores or options.output_confidences:
            raise ValueError("output_scores and output_confidences are of one translation: leave the candidates out.")
        if wanted.num_return_candidates > 1 and not options.return_dict_in_generate:
            raise ValueError("num_return_candidates needs return_dict_in_generate=True: they are in `candidates`.")

    def _check_rescorer(self, rescorer: Any) -> None:
        """Refuse one that is for another engine."""
        if not hasattr(rescorer, "get_encoder"):
            raise ValueError(
                f"rescorer is a {type(rescorer).__name__}; beside PyTorch it is a sequence-to-sequence model of "
                "transformers."
            )

    def _decoding_options(
        self, generation_config: GenerationConfig | None, arguments: dict[str, Any], tokenizer: Any = None
    ) -> DecodingOptions:
        """The options of one call: the model's own, then what `generation_config` changes, then `arguments`.

        What has no meaning here is refused.
        """
        if generation_config is not None and not isinstance(generation_config, GenerationConfig):
            raise ValueError(
                f"generation_config is a {type(generation_config).__name__}; it must be a GenerationConfig. Pass "
                "attention_mask by its name."
            )
        own = vars(self.generation_config)
        if "num_refinement_steps" not in arguments:
            stored_refinement_steps(self.config, self.generation_config)
        changes = {} if generation_config is None else generation_config.to_diff_dict()
        defaults, filled_in = _default_options()
        unknown = {name: value for name, value in own.items() if name not in defaults}  # the rest of its own is neutral
        for name, value in {**unknown, **changes, **arguments}.items():
            if name in _CALL_OPTIONS and (name in arguments or name in changes):
                continue
            if name in OWN_OPTIONS or name in _INERT_OPTIONS or (name.startswith("_") and name not in arguments):
                continue
            neutral = [source[name] for source in (defaults, own, _NEUTRAL_VALUES) if name in source]
            neutral += [filled_in[name]] if name in filled_in and name not in arguments else []
            if name in defaults and any(value is n or (type(value) is type(n) and value == n) for n in neutral):
                continue
            if value is None or (value is False and name in defaults):
                continue
            if name in defaults or name in _AUTOREGRESSIVE_ARGUMENTS:
                raise ValueError(
                    f"{name}={value!r} steers autoregressive decoding; this model predicts all tokens at once. Leave "
                    f"it out; the options here are {', '.join(OWN_OPTIONS)}."
                )
            raise ValueError(f"generate does not know {name}={value!r}; its options are {', '.join(OWN_OPTIONS)}.")
        given = {**GENERATION_DEFAULTS[self.config.alignment], **own, **changes, **arguments}
        asked = {n: v for n, v in {**changes, **arguments}.items() if n in SEARCH_OPTIONS}
        search = SearchOptions(**asked, tokenizer=tokenizer)
        if asked and not search.is_asked:
            raise ValueError(
                f"{', '.join(asked)} without candidates: give num_latent_candidates, num_length_candidates or "
                "beam_size."
            )
        max_ms = arguments.get("max_ms", changes.get("max_ms"))
        own_options = {name: given[name] for name in OWN_OPTIONS if name in given}
        return DecodingOptions(**own_options, max_ms=max_ms, search=search)

    @functools.cached_property
    def _cost_table(self) -> CostTable:
        return CostTable(self.config, self._refine, self.device)

    @torch.no_grad()
    def measure_costs(self, source_lengths: Sequence[int], batch_sizes: Sequence[int] = (1,), **options: Any) -> float:
        """Measure now what `generate` with `max_ms` and these options would measure first.

        Args:
            source_lengths: tokens.
            batch_sizes: sentences.
            options: as of `generate`.

        Returns:
            Seconds that it took.
        """
        start = time.perf_counter()
        tokenizer = options.pop("tokenizer", None)
        asked = self._decoding_options(None, options, tokenizer)
        for rung in ladder(asked):
            for source_length in source_lengths:
                for batch_size in batch_sizes:
                    self._cost_table.cost(rung, batch_size, source_length)
        return time.perf_counter() - start
