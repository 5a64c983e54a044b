"""CTC alignment: its likelihood against torch's and against all alignments, the likeliest one, glancing, the model."""

import itertools

import pytest
import torch
from conftest import make_batch, make_model, tiny_config, tokens_of
from torch.nn.functional import ctc_loss

from lvnar_hf import LvnarForConditionalGeneration
from lvnar_hf.ctc_lvnar import (
    bigram_loss,
    collapse,
    ctc_cell_mask,
    ctc_nll,
    glanced_cells,
    likeliest_alignment,
    num_cells_needed,
    num_ctc_cells,
)
from lvnar_hf.length_lvnar import lengths_to_mask
from lvnar_hf.losses_lvnar import IGNORED_LABEL

# Seven sentences of one batch: repeats, a single token, one that fills its cells to the last, one cell too many.
NUM_TOKENS = torch.tensor([6, 5, 3, 1, 4, 2, 6])
NUM_CELLS = torch.tensor([13, 12, 7, 2, 8, 5, 8])


def random_batch(vocab_size: int = 30) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(7, 13, vocab_size, generator=generator)
    labels = torch.randint(1, 6, (7, 6), generator=generator)
    labels[6] = torch.tensor([3, 3, 4, 5, 5, 1])  # needs its 8 cells
    labels[lengths_to_mask(NUM_TOKENS, 6) == 0] = IGNORED_LABEL
    return logits, labels, lengths_to_mask(NUM_CELLS, 13)


@pytest.mark.parametrize("blank_id", [0, 7])
def test_value_and_gradient_are_those_of_torch(blank_id):
    logits, labels, cell_mask = random_batch()
    assert (num_cells_needed(labels) <= NUM_CELLS).all() and num_cells_needed(labels)[6] == 8
    weights = torch.rand(7)
    logits.requires_grad_()
    nll, smoothed = ctc_nll(logits, labels, cell_mask, blank_id)
    assert smoothed is nll
    (gradient,) = torch.autograd.grad((nll * weights).sum(), logits)
    log_probs = logits.log_softmax(-1).transpose(0, 1)
    targets = labels.masked_fill(labels == IGNORED_LABEL, 1)
    expected = ctc_loss(log_probs, targets, NUM_CELLS, NUM_TOKENS, blank=blank_id, reduction="none")
    (expected_gradient,) = torch.autograd.grad((expected * weights).sum(), logits)
    torch.testing.assert_close(nll, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-5)
    assert not gradient[cell_mask == 0].any()


def test_a_vocabulary_that_is_gone_through_in_parts():
    """More numbers than one part holds, with label smoothing: against a log-softmax of all."""
    torch.manual_seed(1)
    logits = torch.randn(3, 40, 9000, requires_grad=True)
    labels = torch.randint(1, 9000, (3, 12))
    labels[1, 5:] = IGNORED_LABEL
    cell_mask = lengths_to_mask(torch.tensor([40, 17, 30]), 40)
    nll, smoothed = ctc_nll(logits, labels, cell_mask, 0, label_smoothing=0.1)
    log_probs = logits.log_softmax(-1)
    lengths = (labels != IGNORED_LABEL).sum(-1)
    targets = labels.masked_fill(labels == IGNORED_LABEL, 1)
    expected = ctc_loss(log_probs.transpose(0, 1), targets, cell_mask.sum(-1), lengths, reduction="none")
    expected_smoothed = 0.9 * expected - 0.1 * (log_probs.mean(-1) * cell_mask).sum(-1)
    torch.testing.assert_close(nll, expected)
    torch.testing.assert_close(smoothed, expected_smoothed)
    (gradient,) = torch.autograd.grad(smoothed.sum(), logits, retain_graph=True)
    (expected_gradient,) = torch.autograd.grad(expected_smoothed.sum(), logits)
    # The log-probabilities of whole alignments are hundreds of nats here, and float32 has seven digits.
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-4)


def test_in_bfloat16_the_gradient_is_rounded_once():
    """Where the decoder is sure, softmax and target nearly cancel: rounded before, nothing right would be left."""
    torch.manual_seed(0)
    cells = torch.randint(3, 200, (4, 12))
    cells[:, 1::2] = 0
    logits = (torch.randn(4, 12, 200) + 12.0 * torch.nn.functional.one_hot(cells, 200)).bfloat16().requires_grad_()
    labels = cells[:, ::2]
    mask = torch.ones(4, 12, dtype=torch.long)
    (gradient,) = torch.autograd.grad(ctc_nll(logits, labels, mask, 0)[0].sum(), logits)
    exact = logits.detach().float().requires_grad_()
    (expected,) = torch.autograd.grad(ctc_nll(exact, labels, mask, 0)[0].sum(), exact)
    assert (exact.softmax(-1).gather(-1, cells[..., None]) > 0.99).float().mean() > 0.9
    assert (gradient.float() - expected).norm() < 0.005 * expected.norm()


def alignments(target: list[int], num_cells: int, vocab_size: int) -> list[tuple[int, ...]]:
    paths = itertools.product(range(vocab_size), repeat=num_cells)
    ones = torch.ones(1, num_cells)
    return [path for path in paths if collapse(torch.tensor([path]), ones, 0)[0].tolist() == target]


@pytest.mark.parametrize("target", [[1], [2], [1, 2], [1, 1], [2, 2, 1], [1, 2, 1, 2]], ids=str)
def test_likelihood_and_likeliest_alignment_by_trying_all(target):
    num_cells, vocab_size = 5, 3
    generator = torch.Generator().manual_seed(len(target))
    logits = torch.randn(1, num_cells, vocab_size, generator=generator)
    log_probs = logits[0].log_softmax(-1)
    scores = {
        path: sum(float(log_probs[cell, token]) for cell, token in enumerate(path))
        for path in alignments(target, num_cells, vocab_size)
    }
    labels, ones = torch.tensor([target]), torch.ones(1, num_cells, dtype=torch.long)
    nll, _ = ctc_nll(logits, labels, ones, 0)
    assert float(nll) == pytest.approx(-float(torch.tensor(list(scores.values())).logsumexp(0)), abs=1e-5)
    assert tuple(likeliest_alignment(logits, labels, ones, 0)[0].tolist()) == max(scores, key=scores.__getitem__)


def test_all_targets_of_some_cells_have_probability_one():
    """Σ_y p(y | x, z) = 1 over every y that two cells can spell, the empty one included."""
    logits = torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(3))
    ones = torch.ones(1, 2, dtype=torch.long)
    targets = [[1], [2], [1, 2], [2, 1]]  # [1, 1] needs three cells
    total = sum(float(torch.exp(-ctc_nll(logits, torch.tensor([y]), ones, 0)[0])) for y in targets)
    empty = float(logits.softmax(-1)[0, :, 0].prod())
    assert total + empty == pytest.approx(1.0, abs=1e-6)


def test_a_likeliest_alignment_collapses_to_its_target():
    logits, labels, cell_mask = random_batch()
    alignment = likeliest_alignment(logits, labels, cell_mask, 0)
    assert not alignment[cell_mask == 0].any()
    expected = labels.masked_fill(labels == IGNORED_LABEL, 0)
    assert torch.equal(collapse(alignment, cell_mask, 0), expected)


def test_collapse():
    cells = torch.tensor([[0, 5, 5, 0, 5, 6, 6, 6], [7, 7, 8, 0, 0, 8, 9, 9], [0, 0, 0, 0, 0, 0, 3, 3]])
    mask = lengths_to_mask(torch.tensor([8, 7, 6]), 8)
    assert collapse(cells, mask, 0).tolist() == [[5, 5, 6, 0], [7, 8, 8, 9], [0, 0, 0, 0]]
    assert collapse(torch.zeros(2, 4, dtype=torch.long), torch.ones(2, 4), 0).shape == (2, 0)


def test_number_of_cells():
    for ratio, length, expected in ((2.0, 7, 14), (1.5, 5, 8), (1.7, 10, 17), (1.1, 10, 11), (3.0, 1, 3)):
        assert num_ctc_cells(length, ratio) == expected
        assert num_ctc_cells(torch.tensor([length, 1]), ratio)[0] == expected
    labels = torch.tensor([[4, 4, 4, 5], [4, 5, 4, IGNORED_LABEL], [4, 4, IGNORED_LABEL, IGNORED_LABEL]])
    assert num_cells_needed(labels).tolist() == [6, 3, 3]


def test_glancing_shows_the_more_the_worse_a_sentence_is():
    alignment = torch.ones(3, 4000, dtype=torch.long)
    argmax = alignment.clone()
    argmax[1, ::4], argmax[2, :] = 0, 0  # right, a quarter wrong, all wrong
    cell_mask = torch.ones(3, 4000)
    cell_mask[2, 2000:] = 0
    shown = glanced_cells(argmax, alignment, cell_mask, 0.4, torch.Generator().manual_seed(0))
    assert not shown[0].any() and not shown[2, 2000:].any()
    assert shown[1].float().mean() == pytest.approx(0.1, abs=0.02)
    assert shown[2, :2000].float().mean() == pytest.approx(0.4, abs=0.04)


def expected_bigrams(probabilities: torch.Tensor, num_cells: int) -> tuple[dict[tuple[int, int], float], float]:
    """The expected number of each bigram, and of tokens, of what cells drawn one by one collapse to: by trying all."""
    counts: dict[tuple[int, int], float] = {}
    num_tokens = 0.0
    for path in itertools.product(range(probabilities.shape[1]), repeat=num_cells):
        probability = float(torch.stack([probabilities[cell, token] for cell, token in enumerate(path)]).prod())
        words = collapse(torch.tensor([path]), torch.ones(1, num_cells), 0)[0].tolist()
        num_tokens += probability * len(words)
        for pair in itertools.pairwise(words):
            counts[pair] = counts.get(pair, 0.0) + probability
    return counts, num_tokens


@pytest.mark.parametrize("target", [[1, 2, 3], [1, 1, 2, 1], [2, 1, 2, 1, 2], [3]], ids=str)
def test_bigrams_by_trying_all(target):
    """In a batch, beside a longer sentence."""
    num_cells = 5
    logits = torch.randn(2, num_cells + 2, 4, generator=torch.Generator().manual_seed(len(target)))
    labels = torch.full((2, 6), IGNORED_LABEL)
    labels[0, : len(target)] = torch.tensor(target)
    labels[1] = torch.tensor([1, 2, 3, 1, 2, 3])
    cell_mask = lengths_to_mask(torch.tensor([num_cells, num_cells + 2]), num_cells + 2)
    counts, num_tokens = expected_bigrams(logits[0].softmax(-1), num_cells)
    references: dict[tuple[int, int], int] = {}
    for pair in itertools.pairwise(target):
        references[pair] = references.get(pair, 0) + 1
    matches = sum(min(counts.get(pair, 0.0), count) for pair, count in references.items())
    expected = 1 - 2 * matches / (len(target) + num_tokens - 2)
    if len(target) == 1:
        expected = 0.0  # it has no bigram that could be found
    assert float(bigram_loss(logits, labels, cell_mask, 0)[0]) == pytest.approx(expected, abs=1e-5)


def test_bigrams_of_a_sure_and_right_decoder_cost_nothing():
    labels = torch.tensor([[4, 5, 5, 6]])
    cells = torch.tensor([[4, 4, 0, 5, 0, 5, 6, 0]])
    logits = (40.0 * torch.nn.functional.one_hot(cells, 9).float()).requires_grad_()
    loss = bigram_loss(logits, labels, torch.ones(1, 8, dtype=torch.long), 0)
    assert float(loss) == pytest.approx(0.0, abs=1e-5)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert torch.isfinite(gradient).all()


def test_bigrams_of_two_tokens_and_nothing_but_blanks():
    logits = torch.zeros(1, 4, 50)
    logits[..., 0] = 20.0
    logits.requires_grad_()
    loss = bigram_loss(logits, torch.tensor([[5, 1]]), torch.ones(1, 4, dtype=torch.long), 0)
    assert float(loss) == pytest.approx(1.0, abs=1e-3)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert torch.isfinite(gradient).all()


# In the model.

CTC = {"alignment": "ctc", "carries_source_states": True}
LENGTHS = [(6, 9), (4, 3), (7, 5), (2, 4)]


@pytest.fixture
def model() -> LvnarForConditionalGeneration:
    return make_model(tiny_config(dropout=0.2, **CTC)).train()


def losses(model, batch, glancing_ratio: float) -> list[float]:
    torch.manual_seed(5)
    return model(**batch, glancing_ratio=glancing_ratio).token_nll.tolist()


def test_glancing_in_training_alone(model):
    batch = make_batch(model.config, LENGTHS)
    glanced, plain = losses(model, batch, 1.0), losses(model, batch, 0.0)
    assert sum(glanced) < sum(plain)  # tokens of the target are in the input
    assert losses(model, batch, 1.0) == glanced  # by the seed
    model.eval()
    assert losses(model, batch, 1.0) == losses(model, batch, 0.0)


def test_the_pass_before_glancing_has_the_same_dropout(model, monkeypatch):
    """Where nothing is shown, the second pass is the first."""
    batch, passes = make_batch(model.config, LENGTHS), []
    decode = model.decode

    def remembered(*arguments):
        passes.append(decode(*arguments))
        return passes[-1]

    monkeypatch.setattr(model, "decode", remembered)
    losses(model, batch, 1e-9)
    assert len(passes) == 2 and torch.equal(passes[0], passes[1])
    assert not passes[0].requires_grad and passes[1].requires_grad


@pytest.mark.parametrize("autocast", [False, True])
def test_glancing_leaves_no_weight_without_a_gradient(model, autocast):
    """Under autocast too, whose cache would keep the weights of the pass without gradient."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        model(**make_batch(model.config, LENGTHS), kl_budget=0.0, glancing_ratio=0.5).loss.backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("alignment", ["ctc", "length"])
def test_the_posterior_is_shown_the_models_own_translation(alignment, monkeypatch):
    """Of the share of the sentences that is asked for, in training alone; and every weight has its gradient."""
    options = CTC if alignment == "ctc" else {}
    model = make_model(tiny_config(dropout=0.0, **options)).train()
    batch, shown = make_batch(model.config, LENGTHS), []
    infer_posterior = model.infer_posterior

    def remembered(source, ids, mask):
        assert torch.equal(mask, (ids != 0).long())
        shown.append(tokens_of(ids))
        return infer_posterior(source, ids, mask)

    monkeypatch.setattr(model, "infer_posterior", remembered)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    targets = tokens_of(batch["labels"].clamp(min=0))
    own = tokens_of(model.eval().generate(**inputs, num_refinement_steps=0))
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        model(**batch, own_output_share=1.0).loss.backward()
    assert not [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    torch.manual_seed(2)
    for share in (0.0, 1.0, 0.5):
        model(**batch, own_output_share=share)
    model.eval()(**batch, own_output_share=1.0)
    assert shown[1] == shown[4] == targets and shown[2] == own != targets
    assert all(ids in pair for ids, pair in zip(shown[3], zip(own, targets, strict=True), strict=True))
    assert shown[3] not in (own, targets)


def test_latents_of_a_share_of_the_sentences_are_drawn_from_the_prior(model):
    batch = make_batch(model.config, LENGTHS)
    model.train()
    torch.manual_seed(3)
    mixed = model(**batch, prior_share=0.5)
    of_prior = (mixed.posterior_means == mixed.prior_means).all((1, 2))
    assert of_prior.any() and not of_prior.all()
    assert torch.equal(mixed.kl == 0, of_prior)
    model(**batch, prior_share=1.0).loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.posterior.parameters())
    assert model.prior.gaussian_head.weight.grad.any()  # z = μ + σε is the prior's own
    model.eval()
    assert model(**batch, prior_share=1.0).loss == model(**batch).loss


def test_the_loss_of_bigrams_is_mixed_in(model):
    model.apply(lambda module: setattr(module, "p", 0.0) if isinstance(module, torch.nn.Dropout) else None)
    batch = make_batch(model.config, LENGTHS)

    def loss(**options) -> float:
        torch.manual_seed(5)
        return model(**batch, **options)

    plain, half, whole = (loss(bigram_weight=weight).loss.item() for weight in (0.0, 0.5, 1.0))
    assert half == pytest.approx((plain + whole) / 2, rel=1e-5) and whole < plain
    output = loss()
    lengths = (batch["labels"] != IGNORED_LABEL).sum(-1)
    losses = bigram_loss(
        output.logits, batch["labels"], ctc_cell_mask(batch["attention_mask"], model.config.upsampling_ratio), 0
    )
    assert whole == pytest.approx(float((losses * lengths + output.budgeted_kl).sum() / lengths.sum()), rel=1e-5)
    model.eval()
    assert model(**batch, bigram_weight=1.0).loss == model(**batch).loss


def test_there_is_no_length_predictor(model):
    assert not hasattr(model, "length_predictor")
    output = model(**make_batch(model.config, LENGTHS))
    assert output.length_nll is None and output.length_logits is None and output.length_accuracy is None
    assert torch.allclose(output.elbo, -(output.token_nll + output.kl))
    assert model.generation_config.remove_repetitions is False
    assert output.logits.shape[1] == 14


def test_a_pair_that_cannot_be_expressed_is_refused(model):
    batch = make_batch(model.config, LENGTHS)
    batch["labels"][3, :4] = torch.tensor([5, 6, 7, 7])  # five cells; two source tokens have four
    with pytest.raises(ValueError, match=r"Sentence 3 of the batch needs 5 cells.*upsampling_ratio=2\.0 .*has 4"):
        model(**batch)


@pytest.mark.parametrize("num_refinement_steps", [0, 1, 3])
def test_the_same_tokens_and_bounds_whatever_the_batch(num_refinement_steps):
    model = make_model(tiny_config(**CTC, upsampling_ratio=1.7), seed=2)
    batch = make_batch(model.config, [(9, 1), (3, 1), (1, 1), (20, 1), (5, 1)])
    options = {"num_refinement_steps": num_refinement_steps, "return_dict_in_generate": True, "output_scores": True}
    together = model.generate(batch["input_ids"], attention_mask=batch["attention_mask"], **options)
    assert len(set(map(tuple, together.sequences.tolist()))) == 5
    for row, (ids, mask) in enumerate(zip(batch["input_ids"], batch["attention_mask"], strict=True)):
        alone = model.generate(ids[None, mask == 1], **options)
        length = alone.sequences.shape[1]
        assert together.sequences[row, :length].tolist() == alone.sequences[0].tolist()
        assert not together.sequences[row, length:].any()
        torch.testing.assert_close(together.lower_bounds[row, -1], alone.lower_bounds[0, -1], rtol=1e-4, atol=1e-4)


def test_nothing_but_blanks_becomes_the_end_of_the_sentence(model):
    logits = torch.zeros(2, 4, 60)
    logits[:, :, model.config.pad_token_id] = 1.0
    mask = torch.ones(2, 4, dtype=torch.long)
    assert model.likeliest_targets(logits, mask).tolist() == [[1], [1]]
    logits[0, 1, 8] = 2.0
    assert model.likeliest_targets(logits, mask).tolist() == [[8], [1]]


def test_a_penalty_on_blank_wins_words_and_merges_none():
    """Blank between two equal words stays, as in "100", where the word is likelier with the penalty; elsewhere the word
    is won, once for two cells too."""
    model = make_model(tiny_config(**CTC, blank_penalty=1.0))
    likeliest = [[(5,), (6,), (0, 6), (6,), (0, 7), (0,)], [(0, 8), (0, 8), (9,), (0, 9), (0, 9), (9,)]]
    logits = torch.zeros(2, 6, 60)
    for row, cells in enumerate(likeliest):
        for place, tokens in enumerate(cells):
            for rank, token in enumerate(tokens):  # the second is half a nat behind
                logits[row, place, token] = 9.0 - 0.5 * rank
    mask = torch.ones(2, 6, dtype=torch.long)
    assert model.likeliest_targets(logits, mask).tolist() == [[5, 6, 6, 7], [8, 9, 9, 0]]
    # What stands beyond a sentence is none of its neighbours.
    mask[0, 3:] = mask[1, 1:] = 0
    assert model.likeliest_targets(logits, mask).tolist() == [[5, 6], [8, 0]]
    assert model.likeliest_targets(logits[:, :0], mask[:, :0]).tolist() == [[1], [1]]


@pytest.mark.parametrize("pad_token_id", [0, 7, 59])
def test_the_logits_of_padding_are_passed_over_and_left(pad_token_id):
    model = make_model(tiny_config(pad_token_id=pad_token_id))
    logits = torch.randn(3, 4, 60, generator=torch.Generator().manual_seed(0))
    logits[:2, :, pad_token_id] = 9.0
    before, mask = logits.clone(), lengths_to_mask(torch.tensor([4, 2, 3]), 4)
    ids = [i for i in range(60) if i != pad_token_id]
    expected = torch.tensor([[max(ids, key=scores.__getitem__) for scores in row] for row in logits.tolist()])
    assert torch.equal(model.likeliest_targets(logits, mask), expected.masked_fill(mask == 0, pad_token_id))
    assert torch.equal(logits, before)


def test_a_translation_is_cut_at_max_length():
    model = make_model(tiny_config(**CTC), seed=2)
    batch = make_batch(model.config, [(20, 1)])
    whole = model.generate(batch["input_ids"], num_refinement_steps=0)
    assert whole.shape[1] > 3
    assert model.generate(batch["input_ids"], num_refinement_steps=0, max_length=3).tolist() == whole[:, :3].tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alignment": "CTC"}, "alignment is 'CTC'; it must be one of length, ctc"),
        ({"upsampling_ratio": 0.5}, "upsampling_ratio is 0.5; it must be a number from 1 to 16"),
        ({"upsampling_ratio": True}, "upsampling_ratio is True"),
        ({"blank_penalty": -0.1}, "blank_penalty is -0.1; it must be a number from 0 to 100"),
        ({"blank_penalty": True}, "blank_penalty is True"),
        ({"carries_source_states": 1}, "carries_source_states is 1; it must be true or false"),
    ],
)
def test_settings_that_mean_nothing_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**change)
