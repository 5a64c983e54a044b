"""The model in padded batches against the literal reference, and Algorithm 1 on tables worked out by hand."""

import math
from dataclasses import dataclass

import pytest
import reference_lvnar
import torch
from reference_lvnar import Objective, ReferenceLvnar, Refinement
from transformers import GenerationConfig

from lvnar_hf import LvnarConfig, LvnarForConditionalGeneration
from lvnar_hf.decoding_options_lvnar import GENERATION_DEFAULTS, DecodingOptions
from lvnar_hf.generation_lvnar import LvnarGenerationMixin
from lvnar_hf.losses_lvnar import kl_budget_at
from lvnar_hf.refinement_lvnar import EncodedSource, refine

# Of different lengths, the longest source with the shortest target; the last two differ by max_length_offset = 3.
SOURCES = [[5, 3, 9, 9, 4, 1], [7, 12, 11, 1], [4, 5, 6, 7, 8, 9, 1], [10, 2, 8, 3, 1]]
TARGETS = [[8, 3, 3, 11, 1], [6, 9, 5, 4, 10, 1], [12, 7, 7, 1], [2, 4, 6, 8, 10, 12, 3, 1]]
NUM_TARGET_TOKENS = sum(map(len, TARGETS))

MODELS = {
    "joint-tied": {},
    "joint-untied": {"tie_word_embeddings": False},
    "two-vocabularies-tied": {"target_vocab_size": 13},
    "two-vocabularies-untied": {"target_vocab_size": 13, "tie_word_embeddings": False},
    "states-carried": {"carries_source_states": True},
    "ctc": {"alignment": "ctc"},
    "ctc-states-carried": {
        "alignment": "ctc",
        "carries_source_states": True,
        "upsampling_ratio": 1.7,
        "blank_penalty": 0.7,
    },
    "ctc-two-vocabularies": {"alignment": "ctc", "target_vocab_size": 13, "tie_word_embeddings": False},
}

SEEDS = {"ctc": 27, "ctc-two-vocabularies": 27}  # of the weights, where it is not 24

# Nats a source position: some of the pairs' positions are below, some above.
KL_BUDGET = 1.0
LABEL_SMOOTHING = 0.1

# The model has float64 weights here, but computes some things in float32 whatever its weights are: the sinusoidal
# positions, means and standard deviations, the length transform, and the terms of the loss. Each rounds to 6e-8 of its
# size, forwards and backwards, and what is compared adds up some tens of such numbers: differences up to 5e-7 are seen.
# So 1e-5, of the largest entry of the tensor, for a small entry may be the difference of large ones; and of no less
# than 1 for terms in nats and logits, for a small NLL is the difference of two numbers of about 10.
TOLERANCE = 1e-5


def assert_close(actual: torch.Tensor, expected: torch.Tensor, name: str, least_scale: float = 1.0) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64).detach()
    scale = max(float(expected.abs().max()), least_scale)
    torch.testing.assert_close(
        actual.detach().double(),
        expected,
        rtol=0,
        atol=TOLERANCE * scale,
        msg=lambda message: f"{name}, of size {scale:.2g}: {message}",
    )


def padded(sequences: list[list[int]], padding: int) -> torch.Tensor:
    longest = max(map(len, sequences))
    return torch.tensor([sequence + [padding] * (longest - len(sequence)) for sequence in sequences])


@pytest.fixture(scope="module", params=MODELS)
def model(request) -> LvnarForConditionalGeneration:
    """Tiny, float64, with random numbers in all its weights: norms, biases and σ as well."""
    config = LvnarConfig(
        **{"vocab_size": 17, **MODELS[request.param]},
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=2,
        num_prior_layers=2,
        num_posterior_encoder_layers=1,
        num_posterior_decoder_layers=1,
        num_decoder_layers=2,
        latent_dim=3,
        max_length_offset=3,
        max_position_embeddings=16,
        dropout=0.0,
    )
    model = LvnarForConditionalGeneration(config).double()
    # Of sizes, and from a seed, with which KLs are on both sides of the budget and translations change with refinement.
    generator = torch.Generator().manual_seed(SEEDS.get(request.param, 24))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if "latent_proj" in name or "state_proj" in name or "length_predictor" in name:
                parameter.copy_(2.0 * noise)
            elif name.endswith("norm.weight"):
                parameter.copy_(1.0 + 0.1 * noise)
            elif name.endswith("bias") or "gaussian_head" in name:
                parameter.copy_(0.1 * noise)
            else:
                parameter.copy_(0.2 * noise)
    return model


@pytest.fixture(scope="module")
def reference(model) -> ReferenceLvnar:
    """With copies of the weights."""
    return ReferenceLvnar({name: value.clone() for name, value in model.state_dict().items()}, model.config)


def noise_of_batch(model: LvnarForConditionalGeneration, seed: int) -> list[list[torch.Tensor]]:
    """The ε that `forward` draws from a generator with this seed, a list of vectors for each sentence."""
    shape = (len(SOURCES), max(map(len, SOURCES)), model.config.latent_dim)
    noise = torch.empty(shape).normal_(generator=torch.Generator().manual_seed(seed)).double()
    return [list(rows[: len(source)]) for rows, source in zip(noise, SOURCES, strict=True)]


def batch() -> dict[str, torch.Tensor]:
    input_ids = padded(SOURCES, 0)
    return {"input_ids": input_ids, "attention_mask": (input_ids != 0).long(), "labels": padded(TARGETS, -100)}


def assert_terms_agree(output, expected: list[Objective]) -> None:
    """Every part of the output, sentence by sentence."""
    terms = ["token_nll", "kl", "budgeted_kl", "elbo"]
    if expected[0].length_logits is not None:
        terms.append("length_nll")
    else:
        assert output.length_nll is output.length_logits is output.length_accuracy is None
    for name in terms:
        assert getattr(output, name).shape == (len(SOURCES),)
    for i, pair in enumerate(expected):
        source_length, target_length = len(SOURCES[i]), len(TARGETS[i])
        for name in terms:
            assert_close(getattr(output, name)[i], getattr(pair, name), name)
        assert_close(output.logits[i, : len(pair.logits)], torch.stack(pair.logits), "logits")
        for name, value in (
            ("prior_means", pair.source.means),
            ("prior_stds", pair.source.stds),
            ("posterior_means", pair.posterior_means),
            ("posterior_stds", pair.posterior_stds),
            ("encoder_hidden_states", pair.source.states),
        ):
            assert_close(getattr(output, name)[i, :source_length], torch.stack(value), name)
        if pair.length_logits is None:
            continue
        assert_close(output.length_logits[i], pair.length_logits, "length_logits")
        likeliest_offset = int(pair.length_logits.argmax()) - output.length_logits.shape[-1] // 2
        assert output.length_accuracy[i] == float(likeliest_offset == target_length - source_length)
    assert output.num_target_tokens == NUM_TARGET_TOKENS


def test_training_and_its_gradients(model):
    """Noise, KL budget, label smoothing: all terms, the loss, and the gradient of every parameter."""
    model.train()
    model.zero_grad()
    output = model(
        **batch(),
        kl_budget=KL_BUDGET,
        smoothing=LABEL_SMOOTHING,
        generator=torch.Generator().manual_seed(1),
    )
    output.loss.backward()

    weights = {name: value.clone().requires_grad_() for name, value in model.state_dict().items()}
    expected = [
        ReferenceLvnar(weights, model.config).objective(x, y, noise, KL_BUDGET, LABEL_SMOOTHING)
        for x, y, noise in zip(SOURCES, TARGETS, noise_of_batch(model, seed=1), strict=True)
    ]
    loss = sum(pair.loss for pair in expected) / NUM_TARGET_TOKENS
    loss.backward()

    assert_terms_agree(output, expected)
    assert_close(output.loss, loss, "loss")
    position_kl = torch.stack([kl for pair in expected for kl in pair.position_kl])
    assert (position_kl < KL_BUDGET).any() and (position_kl > KL_BUDGET).any()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert gradients.keys() == weights.keys()
    for name, gradient in gradients.items():
        assert gradient is not None and gradient.any(), f"{name} has no gradient"
        assert_close(gradient, weights[name].grad, name, least_scale=0.0)


def test_loss_of_a_piece_of_a_larger_batch(model):
    """`num_items_in_batch` replaces the number of target tokens, so that the pieces add up."""
    model.eval()
    whole = model(**batch(), kl_budget=KL_BUDGET).loss
    pieces = [
        model(**{name: value[rows] for name, value in batch().items()}, kl_budget=KL_BUDGET, num_items_in_batch=23).loss
        for rows in (slice(0, 1), slice(1, 4))
    ]
    assert NUM_TARGET_TOKENS == 23
    assert_close(sum(pieces), whole, "loss")


@pytest.mark.parametrize("seed", [None, 2])
def test_evaluation(model, reference, seed):
    """From the posterior's mean, or from noise if a generator is given; label smoothing has no effect."""
    model.eval()
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    with torch.no_grad():
        output = model(**batch(), smoothing=LABEL_SMOOTHING, generator=generator)
    noises = [None] * len(SOURCES) if seed is None else noise_of_batch(model, seed)
    expected = [reference.objective(x, y, noise) for x, y, noise in zip(SOURCES, TARGETS, noises, strict=True)]
    assert_terms_agree(output, expected)
    assert_close(output.budgeted_kl, output.kl, "KL without a budget")
    assert_close(output.loss, -sum(pair.elbo for pair in expected) / NUM_TARGET_TOKENS, "loss")


def test_without_labels(model, reference):
    """One pass from the prior's mean; the mask is made from the padding ids."""
    model.eval()
    with torch.no_grad():
        output = model(padded(SOURCES, 0))
    lengths = []
    for i, x in enumerate(SOURCES):
        source = reference.prior(x)
        if model.config.alignment == "ctc":
            lengths.append(reference.num_cells(len(x)))
        else:
            length_logits = reference.length_logits(source, source.means)
            lengths.append(len(x) + int(length_logits.argmax()) - model.config.max_length_offset)
            assert_close(output.length_logits[i], length_logits, "length_logits")
        logits = reference.decode(source, source.means, lengths[-1])
        assert_close(output.logits[i, : lengths[-1]], torch.stack(logits), "logits")
    assert output.logits.shape[1] == max(lengths)


def test_kl_budget_schedule():
    """Eq. 10."""
    for num_training_steps in (1, 2, 7, 100):
        for step in range(num_training_steps + 1):
            expected = reference_lvnar.kl_budget_at(step, num_training_steps)
            assert kl_budget_at(step, num_training_steps) == pytest.approx(expected)


# Algorithm 1 against the reference.


def unpadded(row: torch.Tensor) -> list[int]:
    """Padding is no word, so all of it comes after the last word."""
    ids = row.tolist()
    length = len(ids) - ids.count(0)
    assert 0 not in ids[:length]
    return ids[:length]


@pytest.fixture(scope="module", params=[0, 1, 3])
def num_refinement_steps(request) -> int:
    return request.param


@pytest.fixture(scope="module")
def refinements(reference, num_refinement_steps) -> list[Refinement]:
    return [reference.translate(x, num_refinement_steps) for x in SOURCES]


def test_translations_of_every_step(model, refinements, num_refinement_steps):
    """Tokens, number of steps, and the final output with and without repeated tokens."""
    model.eval()
    output = model.generate(
        padded(SOURCES, 0),
        num_refinement_steps=num_refinement_steps,
        remove_repetitions=False,
        return_dict_in_generate=True,
    )
    assert output.num_steps_taken.tolist() == [expected.num_steps_taken for expected in refinements]
    assert len(output.sequences_per_step) == 1 + max(output.num_steps_taken)
    for i, expected in enumerate(refinements):
        for t, sequences in enumerate(output.sequences_per_step):
            assert unpadded(sequences[i]) == expected.targets[min(t, expected.num_steps_taken)]
        assert unpadded(output.sequences[i]) == expected.targets[-1]
    without_repetitions = model.generate(
        padded(SOURCES, 0), num_refinement_steps=num_refinement_steps, remove_repetitions="tokens"
    )
    for row, expected in zip(without_repetitions, refinements, strict=True):
        assert unpadded(row) == reference_lvnar.remove_repetitions(expected.targets[-1])
    if num_refinement_steps == 3:  # else much of this test would say nothing
        assert len(set(output.num_steps_taken.tolist())) > 1
        assert any(len(set(map(len, expected.targets))) > 1 for expected in refinements)


def test_lower_bounds_of_every_step(model, refinements, num_refinement_steps):
    """Eq. 12; a sentence that has stopped keeps its bound."""
    model.eval()
    options = {"return_dict_in_generate": True, "output_scores": True}
    output = model.generate(padded(SOURCES, 0), num_refinement_steps=num_refinement_steps, **options)
    assert output.lower_bounds.shape == (len(SOURCES), 1 + max(output.num_steps_taken))
    for i, expected in enumerate(refinements):
        bounds = [expected.lower_bounds[min(t, expected.num_steps_taken)] for t in range(output.lower_bounds.shape[1])]
        assert_close(output.lower_bounds[i], torch.stack(bounds), "lower bounds")


# Algorithm 1 on tables.

PAD, EOS, A, B, C = range(5)


@dataclass
class Table:
    """What the model says about a latent vector.

    Args:
        lengths: p(l_y - |x|) for the offsets -2 to 2; those left out have probability 0.
        tokens: p(y_j), one table a target position; tokens left out have probability 0.
    """

    lengths: dict[int, float]
    tokens: list[dict[int, float]]


def says(*tokens: int, source_length: int = 2) -> Table:
    """Certain of these tokens and of their number."""
    return Table({len(tokens) - source_length: 1.0}, [{token: 1.0} for token in tokens])


class TableModel(LvnarGenerationMixin):
    """A model with a table for each latent vector, which is one number repeated at every source position.

    Args:
        tables: the tables, by that number. The prior's mean is the first id of the source; its standard deviation 2.
        posterior: translation to the number that is the posterior's mean, whatever the source.
    """

    def __init__(self, tables: dict[int, Table], posterior: dict[tuple[int, ...], int]):
        self.tables, self.posterior = tables, posterior
        self.config = LvnarConfig(vocab_size=100, max_length_offset=2, max_position_embeddings=8)
        self.generation_config = GenerationConfig(**GENERATION_DEFAULTS["length"])
        self.padded_batch_size = int
        self.inferred: list[list[tuple[int, ...]]] = []  # what the posterior was asked, a list for each call

    def _refine(self, *arguments):
        return refine(self, *arguments, self.padded_batch_size)

    def encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> EncodedSource:
        means = self._latents(input_ids[:, 0].tolist(), attention_mask)
        return EncodedSource(attention_mask, means, means, means, torch.full_like(means, 2.0))

    def infer_posterior(
        self, source: EncodedSource, target_ids: torch.Tensor, target_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        targets = [tuple(ids[mask == 1].tolist()) for ids, mask in zip(target_ids, target_mask, strict=True)]
        self.inferred.append(targets)
        means = self._latents([self.posterior[target] for target in targets], source.attention_mask)
        return means, torch.ones_like(means)

    def predict_length(self, source: EncodedSource, latents: torch.Tensor) -> torch.Tensor:
        rows = [[table.lengths.get(offset, 0.0) for offset in range(-2, 3)] for table in self._tables(latents)]
        return torch.tensor(rows).log()

    def decode(self, source: EncodedSource, latents: torch.Tensor, target_mask: torch.Tensor) -> torch.Tensor:
        probabilities = torch.zeros(*target_mask.shape, 5)
        probabilities[..., C] = 1.0  # at padding; it must not be seen
        for i, table in enumerate(self._tables(latents)):
            for j in range(int(target_mask[i].sum())):
                probabilities[i, j] = torch.tensor([table.tokens[j].get(token, 0.0) for token in range(5)])
        return probabilities.log()

    def _latents(self, numbers: list[int], mask: torch.Tensor) -> torch.Tensor:
        """(batch, source_length, 1), and NaN at padding."""
        latents = torch.tensor(numbers, dtype=torch.float32)[:, None].expand(mask.shape)
        return latents.masked_fill(mask == 0, float("nan"))[..., None]

    def _tables(self, latents: torch.Tensor) -> list[Table]:
        return [self.tables[int(number)] for number in latents[:, 0, 0]]


def refined(model: TableModel, *sources: list[int], **options):
    options = {"remove_repetitions": False, "return_dict_in_generate": True, "output_scores": True, **options}
    return model.generate(padded(list(sources), PAD), **options)


def steps_of(output, i: int = 0) -> list[list[int]]:
    """y_0 to y_T of a sentence."""
    return [unpadded(sequences[i]) for sequences in output.sequences_per_step]


def test_stops_when_the_translation_repeats_itself():
    """y_0 = A, y_1 = B, y_2 = B again, from another latent: two steps taken of five, and the second is the last."""
    model = TableModel(
        {10: says(A, EOS), 11: says(B, EOS), 12: says(B, EOS)},
        {(A, EOS): 11, (B, EOS): 12},
    )
    output = refined(model, [10, EOS], num_refinement_steps=5)
    assert output.num_steps_taken.tolist() == [2]
    assert steps_of(output) == [[A, EOS], [B, EOS], [B, EOS]]
    assert output.sequences.tolist() == [[B, EOS]]
    assert model.inferred == [[(A, EOS)], [(B, EOS)]]


def test_the_first_step_may_change_nothing():
    model = TableModel({10: says(A, EOS)}, {(A, EOS): 10})
    output = refined(model, [10, EOS], num_refinement_steps=5)
    assert output.num_steps_taken.tolist() == [1]
    assert steps_of(output) == [[A, EOS], [A, EOS]]


def test_no_refinement():
    """T = 0: the posterior is not asked."""
    model = TableModel({10: says(A, EOS)}, {})
    output = refined(model, [10, EOS], num_refinement_steps=0)
    assert output.num_steps_taken.tolist() == [0]
    assert steps_of(output) == [[A, EOS]]
    assert output.sequences.tolist() == [[A, EOS]]
    assert output.lower_bounds.shape == (1, 1)


def test_length_is_predicted_anew_in_every_step():
    """2, 4, 1 and 3 tokens. That y_1 begins with y_0, and y_2 is its first token, does not end the refinement."""
    model = TableModel(
        {10: says(A, B), 11: says(A, B, B, EOS), 12: says(A), 13: says(A, B, EOS)},
        {(A, B): 11, (A, B, B, EOS): 12, (A,): 13, (A, B, EOS): 13},
    )
    output = refined(model, [10, EOS], num_refinement_steps=9)
    assert steps_of(output) == [[A, B], [A, B, B, EOS], [A], [A, B, EOS], [A, B, EOS]]
    assert output.num_steps_taken.tolist() == [4]


def test_oscillation_runs_to_the_last_step():
    """A, B, A, B, ...: equal to the one before the last, but never to the last."""
    model = TableModel({10: says(A, EOS), 11: says(B, EOS)}, {(A, EOS): 11, (B, EOS): 10})
    output = refined(model, [10, EOS], num_refinement_steps=5)
    assert output.num_steps_taken.tolist() == [5]
    assert steps_of(output) == [[A, EOS], [B, EOS]] * 3
    assert output.sequences.tolist() == [[B, EOS]]


@pytest.mark.parametrize("period", [2, 3, 7])
@pytest.mark.parametrize("num_before", [0, 1, 4, 9])
def test_a_cycle_is_left_at_the_step_that_all_steps_would_end_in(period, num_before):
    """y_0, ..., then a cycle of `period` translations."""
    last = num_before + period - 1
    translations = [tuple(A if n >> bit & 1 else B for bit in range(4)) for n in range(last + 1)]
    tables = {10 + n: says(*translation) for n, translation in enumerate(translations)}
    latents = {t: 11 + n if n < last else 10 + num_before for n, t in enumerate(translations)}
    for num_steps in (1, num_before + period, 40, 41, 42, 10**9, 10**9 + 1, 2**70):
        output = refined(TableModel(tables, latents), [10, EOS], num_refinement_steps=num_steps, output_scores=False)
        counted = min(num_steps, 2**62)
        expected = counted if counted <= last else num_before + (counted - num_before) % period
        assert unpadded(output.sequences[0]) == list(translations[expected])
        assert output.num_steps_taken.item() <= min(num_steps, 6 * (num_before + period))


def test_steps_are_kept_only_if_asked():
    model = TableModel({10: says(A, EOS), 11: says(B, EOS)}, {(A, EOS): 11, (B, EOS): 11})
    options = DecodingOptions(num_refinement_steps=3, remove_repetitions=False)
    ids = torch.tensor([[10, EOS]])
    output = refine(model, ids, torch.ones_like(ids), options)
    assert output.sequences_per_step is None
    options.return_dict_in_generate = True
    assert len(refine(model, ids, torch.ones_like(ids), options).sequences_per_step) == 3


def test_a_sentence_leaves_the_batch_while_others_go_on():
    """Three sentences of 3, 2 and 2 source tokens. The middle one, the shortest, stops after one step and is never
    looked at again; the first after two; the last, whose length changes, after four."""
    tables = {
        20: says(A, B, EOS, source_length=3),
        21: says(B, B, EOS, source_length=3),
        30: says(EOS),
        40: says(A, EOS),
        41: says(B, EOS),
        42: says(B, A, B, EOS),
        43: says(C, A, EOS),
    }
    posterior = {
        (A, B, EOS): 21,
        (B, B, EOS): 21,
        (EOS,): 30,
        (A, EOS): 41,
        (B, EOS): 42,
        (B, A, B, EOS): 43,
        (C, A, EOS): 43,
    }
    model = TableModel(tables, posterior)
    sources = [20, A, EOS], [30, EOS], [40, EOS]
    output = refined(model, *sources, num_refinement_steps=7)
    assert output.num_steps_taken.tolist() == [2, 1, 4]
    assert model.inferred == [
        [(A, B, EOS), (EOS,), (A, EOS)],
        [(B, B, EOS), (B, EOS)],
        [(B, A, B, EOS)],
        [(C, A, EOS)],
    ]
    assert steps_of(output, 0) == [[A, B, EOS]] + [[B, B, EOS]] * 4
    assert steps_of(output, 1) == [[EOS]] * 5
    assert steps_of(output, 2) == [[A, EOS], [B, EOS], [B, A, B, EOS], [C, A, EOS], [C, A, EOS]]
    assert [unpadded(row) for row in output.sequences] == [[B, B, EOS], [EOS], [C, A, EOS]]

    for i, source in enumerate(sources):  # alone as in the batch
        alone = refined(TableModel(tables, posterior), source, num_refinement_steps=7)
        taken = int(alone.num_steps_taken)
        assert taken == output.num_steps_taken[i]
        assert steps_of(alone) == steps_of(output, i)[: taken + 1]
        torch.testing.assert_close(alone.lower_bounds[0], output.lower_bounds[i, : taken + 1])
        assert (output.lower_bounds[i, taken:] == output.lower_bounds[i, taken]).all()


def test_sentences_that_fill_a_batch_leave_it():
    """Three sentences in batches of 4, 2 and 1: a copy of the first fills the first batch, and is never counted."""
    tables = {20: says(A, EOS), 21: says(B, EOS), 30: says(B, B), 40: says(EOS), 41: says(C, EOS), 42: says(C)}
    posterior = {(A, EOS): 21, (B, EOS): 21, (B, B): 30, (EOS,): 41, (C, EOS): 42, (C,): 42}
    models = [TableModel(tables, posterior) for _ in range(2)]
    models[1].padded_batch_size = lambda size: 1 << (size - 1).bit_length()
    expected, output = (refined(model, [20, EOS], [30, EOS], [40, EOS], num_refinement_steps=7) for model in models)
    assert [len(targets) for targets in models[0].inferred] == [3, 2, 1]
    assert [len(targets) for targets in models[1].inferred] == [4, 2, 1]
    assert models[1].inferred[0] == [(A, EOS), (B, B), (EOS,), (A, EOS)]
    assert output.num_steps_taken.tolist() == [2, 1, 3] and torch.equal(output.sequences, expected.sequences)
    assert torch.equal(output.lower_bounds, expected.lower_bounds)


def test_repetitions_are_removed_from_the_final_output_only():
    """The posterior is asked about A A B B, not about A B, which it does not know."""
    model = TableModel(
        {10: says(A, A, A, EOS), 11: says(A, A, B, B), 12: says(B, A, A, B)},
        {(A, A, A, EOS): 11, (A, A, B, B): 12},
    )
    output = refined(model, [10, EOS], num_refinement_steps=2, remove_repetitions="tokens")
    assert steps_of(output) == [[A, A, A, EOS], [A, A, B, B], [B, A, A, B]]
    assert output.sequences.tolist() == [[B, A, B]]
    assert refined(model, [10, EOS], num_refinement_steps=2).sequences.tolist() == [[B, A, A, B]]


def test_translations_that_differ_in_repetitions_alone_are_different():
    """A A B and A B B are both A B in the end, but the second changed something, so a third step follows."""
    model = TableModel(
        {10: says(A, A, B), 11: says(A, B, B), 12: says(B, B, B)},
        {(A, A, B): 11, (A, B, B): 12, (B, B, B): 12},
    )
    output = refined(model, [10, EOS], num_refinement_steps=9, remove_repetitions="tokens")
    assert output.num_steps_taken.tolist() == [3]
    assert output.sequences.tolist() == [[B]]


def test_lower_bounds_on_paper():
    """Eq. 12 with |x| = 2, prior N(10, 2²) at both positions, so log p(μ | x) = -2 ln 2 - ln 2π - (μ - 10)² / 4.

    y_0: the length 2 (0.5), A (0.6), EOS (0.8). y_1, at μ = 11: the length 3 (0.7), B (0.9), B (0.4), EOS (1.0).
    """
    model = TableModel(
        {
            10: Table({-1: 0.2, 0: 0.5, 1: 0.3}, [{A: 0.6, B: 0.4}, {EOS: 0.8, A: 0.2}]),
            11: Table({-1: 0.1, 0: 0.2, 1: 0.7}, [{B: 0.9, C: 0.1}, {A: 0.3, B: 0.4, C: 0.3}, {EOS: 1.0}]),
        },
        {(A, EOS): 11, (B, B, EOS): 11},
    )
    output = refined(model, [10, EOS], num_refinement_steps=1)
    assert steps_of(output) == [[A, EOS], [B, B, EOS]]
    at_prior_mean = -2 * math.log(2) - math.log(2 * math.pi)
    expected = [
        math.log(0.5 * 0.6 * 0.8) + at_prior_mean,
        math.log(0.7 * 0.9 * 0.4) + at_prior_mean - 1 / 4,
    ]
    assert output.lower_bounds[0].tolist() == pytest.approx(expected)


def test_padding_is_no_word():
    """It is the likeliest of all at the first position; A is taken, and has the probability that the model gives it."""
    model = TableModel({10: Table({-1: 1.0}, [{PAD: 0.6, A: 0.3, B: 0.1}])}, {})
    output = refined(model, [10, EOS], num_refinement_steps=0)
    assert output.sequences.tolist() == [[A]]
    prior = -2 * math.log(2) - math.log(2 * math.pi)
    assert output.lower_bounds[0].tolist() == pytest.approx([math.log(0.3) + prior])


def test_lower_bound_of_a_shortened_translation():
    """Eq. 12 is about l_t, the length that y_t has: 2 (0.3), not the likeliest, 3 (0.6), which `max_length` forbids."""
    model = TableModel({10: Table({-1: 0.1, 0: 0.3, 1: 0.6}, [{A: 0.7, B: 0.3}, {EOS: 0.9, B: 0.1}, {EOS: 1.0}])}, {})
    output = refined(model, [10, EOS], num_refinement_steps=0, max_length=2)
    assert output.sequences.tolist() == [[A, EOS]]
    prior = -2 * math.log(2) - math.log(2 * math.pi)
    assert output.lower_bounds[0].tolist() == pytest.approx([math.log(0.3 * 0.7 * 0.9) + prior])
