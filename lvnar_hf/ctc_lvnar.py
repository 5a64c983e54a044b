"""CTC alignment (Graves et al., 2006): a translation y is spread over T cells, more than it has tokens.

    T = ⌈r · |x|⌉                                     cells of a source, r the upsampling ratio
    collapse(a)                                       merges equal neighbours of the cells a, then removes blanks
    p(y | x, z) = Σ_{a: collapse(a) = y} Π_t p(a_t | x, z)

The sum is taken over the states l = ∅ y_1 ∅ y_2 … y_L ∅ of the forward algorithm, S = 2L + 1 of them, in log space,
for all sentences and states of a batch at once; the loop is over cells. Blank is the padding id, which is no word.

This module travels to the Hub with the model: it imports nothing but torch and transformers.
"""

from typing import Any, TypeVar

import torch
from torch.nn.functional import pad

from .length_lvnar import lengths_to_mask
from .losses_lvnar import IGNORED_LABEL
from .sizes_lvnar import num_cells_of

# The log-probability of what cannot be: finite, since the gradient of a sum of nothing but infinities is NaN.
IMPOSSIBLE = -1e30

Lengths = TypeVar("Lengths", int, torch.Tensor)


def num_ctc_cells(source_lengths: Lengths, upsampling_ratio: float) -> Lengths:
    """T = ⌈r · |x|⌉, of one length or of a tensor of them (int64); a product is whole if it is but for rounding."""
    if isinstance(source_lengths, torch.Tensor):
        return (source_lengths.double() * upsampling_ratio - 1e-6).ceil().long()  # type: ignore[return-value]
    return num_cells_of(source_lengths, upsampling_ratio)


def ctc_cell_mask(attention_mask: torch.Tensor, upsampling_ratio: float) -> torch.Tensor:
    """The cells of each source: its mask (batch, source_length) to one of cells, (batch, T) int64."""
    num_cells = num_ctc_cells(attention_mask.sum(-1), upsampling_ratio)
    return lengths_to_mask(num_cells, num_ctc_cells(attention_mask.shape[1], upsampling_ratio))


def num_cells_needed(labels: torch.Tensor) -> torch.Tensor:
    """The fewest cells that can spell each target, |y| + its equal neighbours: (batch, length) to (batch,)."""
    is_token = labels != IGNORED_LABEL
    return is_token.sum(-1) + ((labels[:, 1:] == labels[:, :-1]) & is_token[:, 1:]).sum(-1)


def collapse(cells: torch.Tensor, cell_mask: torch.Tensor, blank_id: int) -> torch.Tensor:
    """Merge equal neighbours, then remove blanks.

    Args:
        cells: (batch, T) token ids.
        cell_mask: (batch, T), 1 at the cells of a sentence, on the left.
        blank_id: of blank, and of padding in the result.

    Returns:
        (batch, longest result), padded on the right; no column at all if every cell is blank.
    """
    return pack_left(cells, is_kept(cells, cell_mask, blank_id), blank_id)


def is_kept(cells: torch.Tensor, cell_mask: torch.Tensor, blank_id: int) -> torch.Tensor:
    """Which cells `collapse` leaves, as its arguments are: (batch, T) bool."""
    before = pad(cells[:, :-1], (1, 0), value=blank_id)
    return (cells != before) & (cells != blank_id) & (cell_mask != 0)


def move_left(sequences: torch.Tensor, keep: torch.Tensor, fill: int) -> torch.Tensor:
    """Move what is kept, a bool mask of their shape, to the left of (batch, length); the rest is filled."""
    length = sequences.shape[1]
    places = (keep.long().cumsum(-1) - 1).masked_fill(~keep, length)  # the last place, cut off, takes what is not kept
    return sequences.new_full((sequences.shape[0], length + 1), fill).scatter(1, places, sequences)[:, :length]


def pack_left(sequences: torch.Tensor, keep: torch.Tensor, fill: int) -> torch.Tensor:
    """As `move_left`, without the columns where nothing is left: (batch, most kept)."""
    return move_left(sequences, keep, fill)[:, : int(keep.sum(-1).max())]


def part_equal_words(cells: torch.Tensor, is_forced: torch.Tensor, blank_id: int) -> torch.Tensor:
    """Take back what a penalty on blank has done where it merges equal words, as the 0s of "100".

    In a run of equal words, the cells that are words only for the penalty become blank again, unless all of the run
    are: then it is one word, which the penalty has won.

    Args:
        cells: (batch, T) token ids; blank after a sentence's cells.
        is_forced: (batch, T) bool, where the cell is a word for the penalty alone.
        blank_id: of blank.

    Returns:
        (batch, T) token ids.
    """
    runs = (cells != pad(cells[:, :-1], (1, 0), value=-1)).long().cumsum(-1) - 1  # the number of each cell's run
    num_others = torch.zeros_like(runs).scatter_add(1, runs, (~is_forced).long())
    return cells.masked_fill(is_forced & (num_others.gather(1, runs) > 0), blank_id)


class _LogProbabilities(torch.autograd.Function):
    """log softmax of the logits at some tokens; a log-softmax over the vocabulary is never kept, in either direction.

    The vocabulary is gone through in float32 and, on the CPU, some cells at a time, which its cache holds.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, tokens: torch.Tensor, with_means: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        normalizers = torch.cat([logits[part].float().logsumexp(-1) for part in _parts(logits)])
        ctx.save_for_backward(logits, tokens, normalizers)
        means = logits.mean(-1, dtype=torch.float32) - normalizers if with_means else None
        return logits.gather(-1, tokens).float() - normalizers[:, None], means

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, mean_gradient: torch.Tensor | None) -> Any:  # type: ignore[override]
        logits, tokens, normalizers = ctx.saved_tensors
        weights = -gradient.sum(-1, keepdim=True)
        if mean_gradient is not None:
            weights -= mean_gradient[:, None]
        result = torch.empty_like(logits)
        for part in _parts(logits):
            of_part = (logits[part].float() - normalizers[part, None]).exp_()
            of_part *= weights[part]
            if mean_gradient is not None:
                of_part += mean_gradient[part, None] / logits.shape[-1]
            # Before it is rounded to the logits' type: where the decoder is sure, little is left of the two.
            result[part] = of_part.scatter_add_(-1, tokens[part], gradient[part])
        return result, None, None


def _parts(rows: torch.Tensor) -> list[slice]:
    """Of (rows, vocab_size) logits: about 2^18 numbers each on the CPU, all at once elsewhere."""
    size = max(1, 2**18 // rows.shape[-1]) if rows.device.type == "cpu" else len(rows)
    return [slice(start, start + size) for start in range(0, len(rows), size)]


def _states(labels: torch.Tensor, blank_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The states l of each target, (batch, S); and where l_s may follow l_{s-2}, bool (batch, S)."""
    tokens = labels.masked_fill(labels == IGNORED_LABEL, blank_id)
    states = tokens.new_full((len(labels), 2 * labels.shape[1] + 1), blank_id)
    states[:, 1::2] = tokens
    skips = torch.zeros_like(states, dtype=torch.bool)
    skips[:, 3::2] = tokens[:, 1:] != tokens[:, :-1]
    return states, skips


def _arrivals(log_alphas: torch.Tensor, skips: torch.Tensor) -> torch.Tensor:
    """α_{t-1} of the three states from which each state is reached: (3, batch, S)."""
    two_before = pad(log_alphas, (2, 0), value=IMPOSSIBLE)[:, :-2].masked_fill(~skips, IMPOSSIBLE)
    return torch.stack([log_alphas, pad(log_alphas, (1, 0), value=IMPOSSIBLE)[:, :-1], two_before])


def _first_alphas(log_probs: torch.Tensor) -> torch.Tensor:
    """α_1, (batch, S): a path begins with a blank or with the first token."""
    return pad(log_probs[:, 0, :2], (0, log_probs.shape[-1] - 2), value=IMPOSSIBLE)


def ctc_nll(
    logits: torch.Tensor, labels: torch.Tensor, cell_mask: torch.Tensor, blank_id: int, label_smoothing: float = 0.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """-log p(y | x, z), the sum over all alignments, by the forward algorithm (Graves et al., 2006, Eq. 5 to 8).

    Args:
        logits: (batch, T, vocab_size).
        labels: (batch, target_length), -100 at padding; each target fits its cells (`num_cells_needed`).
        cell_mask: (batch, T), 1 at the cells of a sentence, on the left.
        blank_id: of blank.
        label_smoothing: weight ε of the uniform distribution over the vocabulary at every cell.

    Returns:
        Two (batch,) float32 tensors, nats a sentence: the negative log-likelihood, and
        (1 - ε) · nll + ε · Σ_t mean over the vocabulary of -log p_t. They are one tensor if ε is 0.
    """
    states, skips = _states(labels, blank_id)
    batch, num_cells, vocab_size = logits.shape
    # Blank is gathered once, before the tokens; it is every other state.
    tokens = torch.cat([states[:, :1], states[:, 1::2]], dim=-1).repeat_interleave(num_cells, dim=0)
    log_probs, means = _LogProbabilities.apply(logits.reshape(-1, vocab_size), tokens, label_smoothing != 0.0)
    numbers = torch.arange(states.shape[1], device=logits.device)
    log_probs = log_probs.view(batch, num_cells, -1)[..., (numbers + 1) // 2 * (numbers % 2)]  # (batch, T, S)
    log_alphas = _first_alphas(log_probs)
    for cell in range(1, num_cells):
        arrived = log_probs[:, cell] + _arrivals(log_alphas, skips).logsumexp(0)
        log_alphas = torch.where(cell_mask[:, cell, None] != 0, arrived, log_alphas)
    last = 2 * (labels != IGNORED_LABEL).sum(-1, keepdim=True)  # the last state is 2L, counted from 0
    nll = -log_alphas.gather(-1, torch.cat([last, last - 1], dim=-1)).logsumexp(-1)
    if means is None:
        return nll, nll
    uniform_nll = -(means.view(batch, num_cells) * cell_mask).sum(-1)
    return nll, (1 - label_smoothing) * nll + label_smoothing * uniform_nll


@torch.no_grad()
def likeliest_alignment(
    logits: torch.Tensor, labels: torch.Tensor, cell_mask: torch.Tensor, blank_id: int, blank_penalty: float = 0.0
) -> torch.Tensor:
    """The likeliest cells a with collapse(a) = y: the forward algorithm with a maximum for the sum (Viterbi).

    Args:
        logits, labels, cell_mask, blank_id: as for `ctc_nll`; logits need no normalisation.
        blank_penalty: is taken of blank's logits.

    Returns:
        (batch, T) token ids, blank after a sentence's cells.
    """
    states, skips = _states(labels, blank_id)
    scores = logits.gather(-1, states[:, None, :].expand(-1, logits.shape[1], -1)).float()
    scores[..., ::2] -= blank_penalty
    best, steps = _first_alphas(scores), []
    for cell in range(1, logits.shape[1]):
        arrived, step = _arrivals(best, skips).max(0)  # how many states back, 0 to 2
        is_cell = cell_mask[:, cell, None] != 0
        best = torch.where(is_cell, scores[:, cell] + arrived, best)
        steps.append(step.masked_fill(~is_cell, 0))
    last = 2 * (labels != IGNORED_LABEL).sum(-1, keepdim=True)
    ends_in_blank = best.gather(-1, last) >= best.gather(-1, last - 1)
    path = [torch.where(ends_in_blank, last, last - 1)]
    for step in reversed(steps):
        path.append(path[-1] - step.gather(-1, path[-1]))
    return states.gather(-1, torch.cat(path[::-1], dim=-1)).masked_fill(cell_mask == 0, blank_id)


def glanced_cells(
    argmax: torch.Tensor,
    alignment: torch.Tensor,
    cell_mask: torch.Tensor,
    ratio: float,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Which cells of the alignment the decoder is shown in training (Qian et al., 2021), at random.

    The worse a sentence is, the more it is shown: each cell with the probability ratio · d / T, where d of its T cells
    differ from the alignment. So ratio · d are shown on the mean.

    Args:
        argmax: (batch, T) what the decoder would say by itself.
        alignment: (batch, T) of `likeliest_alignment`.
        cell_mask: (batch, T).
        ratio: ρ, in [0, 1].

    Returns:
        (batch, T) bool.
    """
    is_cell = cell_mask != 0
    shares = ((argmax != alignment) & is_cell).sum(-1) / is_cell.sum(-1)
    draws = torch.rand(argmax.shape, device=argmax.device, generator=generator)
    return (draws < ratio * shares[:, None]) & is_cell


def bigram_loss(logits: torch.Tensor, labels: torch.Tensor, cell_mask: torch.Tensor, blank_id: int) -> torch.Tensor:
    """How few of the target's bigrams the cells are expected to give, in whatever order (Shao and Feng, 2022, NMLA).

    With p_i(v) the probability of v in cell i, cells drawn independently collapse to something that holds the bigram
    (a, b), a ≠ b, C(a, b) = Σ_{i<j} p_i(a) Π_{i<k<j} p_k(∅) p_j(b) times in the mean; of a = b neighbours would be
    merged, so that Σ_i p_i(a) p_{i+1}(a) is taken off. The loss is 1 - 2 Σ_g min(C_g, count_g) / (|y| + E|ŷ| - 2), over
    the target's different bigrams g.

    Args:
        logits, labels, cell_mask, blank_id: as for `ctc_nll`.

    Returns:
        (batch,) float32, from 0 (best) to 1; 0 for a target of one token, which has no bigram.
    """
    is_cell = (cell_mask != 0)[..., None]
    probs = logits.float().softmax(-1)
    # After the last cell everything is blank.
    probs = torch.where(is_cell, probs, 0.0)
    blanks = torch.where(is_cell[..., 0], probs[..., blank_id], 1.0)  # (batch, T)
    is_token = labels != IGNORED_LABEL
    tokens = labels.masked_fill(~is_token, blank_id)
    of_target = probs.gather(-1, tokens[:, None, :].expand(-1, probs.shape[1], -1))  # (batch, T, |y|)

    # Π_{i<k<j} p_k(∅), (batch, T, T), by differences of a cumulative sum of logs.
    log_blanks = blanks.clamp(min=1e-30).log().cumsum(-1)
    before = pad(log_blanks, (1, 0))[:, :-1]  # of the cells before j
    is_later = torch.ones(probs.shape[1], probs.shape[1], dtype=torch.bool, device=logits.device).triu(1)
    between = (before[:, None, :] - log_blanks[:, :, None]).masked_fill(~is_later, IMPOSSIBLE).exp()

    firsts, seconds = of_target[..., :-1], of_target[..., 1:]
    counts = (firsts * (between @ seconds)).sum(1)  # C, (batch, |y| - 1)
    is_double = tokens[:, :-1] == tokens[:, 1:]
    counts = counts - (firsts[:, :-1] * firsts[:, 1:]).sum(1) * is_double
    # The same bigram more than once in the target: it counts where it is first.
    bigrams = torch.stack([tokens[:, :-1], tokens[:, 1:]], dim=-1).masked_fill(~is_token[:, 1:, None], -1)
    is_same = (bigrams[:, :, None] == bigrams[:, None]).all(-1)  # (batch, |y| - 1, |y| - 1)
    is_first = ~is_same.tril(-1).any(-1) & is_token[:, 1:]
    matches = (torch.minimum(counts, is_same.sum(-1)) * is_first).sum(-1)

    # E|ŷ| = Σ_i Σ_{v≠∅} p_i(v) (1 - p_{i-1}(v)).
    merged = (probs[:, 1:] * probs[:, :-1]).sum(-1) - probs[:, 1:, blank_id] * probs[:, :-1, blank_id]
    num_tokens = (1 - blanks).sum(-1) - merged.sum(-1)
    # Of two tokens and nothing but blanks it is 0, and so are the matches.
    total = (is_token.sum(-1) + num_tokens - 2).clamp(min=1e-6)
    return torch.where(is_token.sum(-1) > 1, 1 - 2 * matches / total, 0.0)
