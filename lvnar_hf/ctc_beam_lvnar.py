"""The translations that all alignments together make likeliest: prefix beam search (Graves et al., 2006) over cells.

The likeliest cells, collapsed, are one alignment; a translation has many. For each prefix the search keeps the
probability of all alignments of the cells so far that spell it, in two parts, by whether the last cell is blank:

    b(y)      ends in blank: (b(y) + n(y)) p_t(∅)
    n(y)      ends in its last token: n(y) p_t(y_L) + n'(y_1..L-1), where n' is b + n, or b alone if y_L = y_{L-1}

of the prefixes at hand and of those that one token more makes of them, the best `beam_size` go on to the next cell. All
sentences and prefixes of a batch are worked on at once; the loop is over cells.

This module travels to the Hub with the model: it imports nothing but torch and transformers.
"""

from typing import Any, NamedTuple, Protocol

import torch

from .ctc_lvnar import IMPOSSIBLE

# Prefixes are told apart by a number of 64 bits: h(y c) = (h(y) + c + 1) · _FACTOR modulo 2^64. That two of some
# hundreds have the same one does not happen.
_FACTOR = 0x5851F42D4C957F2D


class LanguageModel(Protocol):
    """Of the target language, token by token; its states are whatever it likes."""

    def start(self) -> Any:
        """The state before the first token."""

    def extend(self, state: Any, token_id: int) -> tuple[Any, float]:
        """The state after a token more, and the token's log-probability in nats."""


class BeamOptions(NamedTuple):
    """How to search.

    Args:
        beam_size: prefixes that go on from each cell.
        token_bonus: what is added for each token, in nats.
        language_model: its log-probabilities, times `language_model_weight`, are added.
        tokens_per_cell: only the likeliest ones of a cell begin a longer prefix; repetitions of a prefix's last token
            and blanks are always looked at.
    """

    beam_size: int = 20
    token_bonus: float = 0.0
    language_model: LanguageModel | None = None
    language_model_weight: float = 0.3
    tokens_per_cell: int = 10


class _Prefixes(NamedTuple):
    """The beam; of `beam` prefixes each.

    Args:
        tokens: (batch, beam, T), blank after the last one.
        lengths: (batch, beam).
        last: (batch, beam), the last token; blank of the empty prefix.
        names, parents: (batch, beam), of the prefix and of the one before its last token.
        in_blank, in_token: (batch, beam), b and n as log-probabilities.
        extras: (batch, beam), what language model and bonus add.
    """

    tokens: torch.Tensor
    lengths: torch.Tensor
    last: torch.Tensor
    names: torch.Tensor
    parents: torch.Tensor
    in_blank: torch.Tensor
    in_token: torch.Tensor
    extras: torch.Tensor


@torch.no_grad()
def beam_search(
    logits: torch.Tensor, cell_mask: torch.Tensor, blank_id: int, options: BeamOptions
) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeliest translations of each sentence.

    Args:
        logits: (batch, T, vocab_size); unnormalised ones are normalised.
        cell_mask: (batch, T), 1 at the cells of a sentence, on the left.
        blank_id: of blank, and of padding in the result.

    Returns:
        (batch, beam_size, longest) ids, the best first, padded on the right; what is not there is blank throughout.
        (batch, beam_size) log-probabilities in nats, all alignments of the beam together, with what the language model
        adds; IMPOSSIBLE for what is not there.
    """
    logits = logits.float()
    normalizers = logits.logsumexp(-1)  # (batch, T)
    blanks = logits[..., blank_id] - normalizers
    words = logits.index_fill(-1, torch.tensor([blank_id], device=logits.device), IMPOSSIBLE)
    scores, tokens = words.topk(min(options.tokens_per_cell, logits.shape[-1] - 1), dim=-1)
    scores = scores - normalizers[..., None]
    language = None if options.language_model is None else _LanguageScores(options, len(logits), blank_id)

    bonuses = scores.new_full((len(logits), options.beam_size, tokens.shape[-1]), options.token_bonus)
    prefixes = _empty_prefix(cell_mask, blank_id, options.beam_size)
    for cell in range(logits.shape[1]):
        repeats = logits[:, cell].gather(-1, prefixes.last) - normalizers[:, cell, None]
        repeats = repeats.masked_fill(prefixes.last == blank_id, IMPOSSIBLE)
        extras = bonuses if language is None else language.of_extensions(tokens[:, cell], cell_mask[:, cell])
        following, origins, added = _next_prefixes(
            prefixes, tokens[:, cell], scores[:, cell], blanks[:, cell, None], repeats, extras, blank_id
        )
        is_cell = cell_mask[:, cell, None] != 0
        if language is not None:
            language.go_on(origins, added, cell_mask[:, cell])
        prefixes = _Prefixes(
            *(
                torch.where(is_cell if new.dim() == 2 else is_cell[..., None], new, old)
                for new, old in zip(following, prefixes, strict=True)
            )
        )
    longest = int(prefixes.lengths.max())
    totals = torch.logaddexp(prefixes.in_blank, prefixes.in_token) + prefixes.extras
    return prefixes.tokens[..., :longest], totals.clamp(min=IMPOSSIBLE)


def _empty_prefix(cell_mask: torch.Tensor, blank_id: int, beam_size: int) -> _Prefixes:
    """The prefix without a token, and nothing else: the others of the beam cannot be."""
    batch, num_cells = cell_mask.shape
    ids = cell_mask.new_zeros(batch, beam_size)
    numbers = torch.full((batch, beam_size), IMPOSSIBLE, device=cell_mask.device)
    in_blank = numbers.clone()
    in_blank[:, 0] = 0.0
    # Names of what is not there, each its own, far from those of short prefixes.
    names = ids - (torch.arange(beam_size, device=ids.device) << 40)
    return _Prefixes(
        tokens=cell_mask.new_full((batch, beam_size, num_cells), blank_id),
        lengths=ids,
        last=ids + blank_id,
        names=names,
        parents=ids - 1,
        in_blank=in_blank,
        in_token=numbers,
        extras=torch.zeros_like(numbers),
    )


def _next_prefixes(
    prefixes: _Prefixes,
    tokens: torch.Tensor,  # (batch, tokens_per_cell)
    scores: torch.Tensor,  # (batch, tokens_per_cell), of them
    blanks: torch.Tensor,  # (batch, 1)
    repeats: torch.Tensor,  # (batch, beam), of each prefix's last token
    extras: torch.Tensor,  # (batch, beam, tokens_per_cell), of an extension
    blank_id: int,
) -> tuple[_Prefixes, torch.Tensor, torch.Tensor]:
    """The beam after one cell more; for each prefix the one it comes from, and the token that was added, or blank."""
    beam_size, tokens_per_cell = prefixes.last.shape[1], tokens.shape[1]
    totals = torch.logaddexp(prefixes.in_blank, prefixes.in_token)

    # As they are: a blank, or the last token again.
    in_blank = totals + blanks
    in_token = prefixes.in_token + repeats
    # Longer by a token, (batch, beam, tokens_per_cell).
    is_same = tokens[:, None, :] == prefixes.last[..., None]
    longer = torch.where(is_same, prefixes.in_blank[..., None], totals[..., None]) + scores[:, None, :]

    # What becomes a prefix that is at hand, m, joins it: of its parent n, (batch, n, m).
    is_parent = prefixes.names[:, :, None] == prefixes.parents[:, None, :]
    from_parent = torch.where(
        prefixes.last[:, :, None] == prefixes.last[:, None, :], prefixes.in_blank[..., None], totals[..., None]
    )
    from_parent = from_parent.masked_fill(~is_parent, IMPOSSIBLE).amax(1) + repeats
    in_token = torch.logaddexp(in_token, from_parent)
    is_at_hand = (is_parent[..., None] & (prefixes.last[:, None, :, None] == tokens[:, None, None, :])).any(2)
    longer = longer.masked_fill(is_at_hand, IMPOSSIBLE)

    stay_extras = prefixes.extras
    ranked = [torch.logaddexp(in_blank, in_token) + stay_extras]
    longer_extras = stay_extras[..., None] + extras
    ranked.append((longer + longer_extras).flatten(1))
    places = torch.cat(ranked, dim=1).topk(beam_size, dim=1).indices
    is_longer = places >= beam_size
    added_places = (places - beam_size).clamp(min=0)
    origins = torch.where(is_longer, added_places // tokens_per_cell, places.clamp(max=beam_size - 1))
    added = tokens.gather(1, added_places % tokens_per_cell).masked_fill(~is_longer, blank_id)

    def of_origin(values: torch.Tensor) -> torch.Tensor:
        return values.gather(1, origins)

    old_lengths, old_names = of_origin(prefixes.lengths), of_origin(prefixes.names)
    rows = prefixes.tokens.gather(1, origins[..., None].expand_as(prefixes.tokens))
    places_of_added = old_lengths.clamp(max=rows.shape[-1] - 1)[..., None]
    kept = rows.gather(-1, places_of_added)
    rows = rows.scatter(-1, places_of_added, torch.where(is_longer[..., None], added[..., None], kept))
    following = _Prefixes(
        tokens=rows,
        lengths=old_lengths + is_longer,
        last=torch.where(is_longer, added, of_origin(prefixes.last)),
        names=torch.where(is_longer, (old_names + added + 1) * _FACTOR, old_names),
        parents=torch.where(is_longer, old_names, of_origin(prefixes.parents)),
        in_blank=of_origin(in_blank).masked_fill(is_longer, IMPOSSIBLE),
        in_token=torch.where(is_longer, longer.flatten(1).gather(1, added_places), of_origin(in_token)),
        extras=torch.where(is_longer, longer_extras.flatten(1).gather(1, added_places), of_origin(stay_extras)),
    )
    return following, origins, added


class _LanguageScores:
    """What a language model says of the beam's prefixes and of their extensions."""

    def __init__(self, options: BeamOptions, batch: int, blank_id: int):
        assert options.language_model is not None
        self._model, self._options, self._blank_id = options.language_model, options, blank_id
        self._states: list[list[Any]] = [[self._model.start()] * options.beam_size for _ in range(batch)]
        self._after: list[list[dict[int, Any]]] = []

    def of_extensions(self, tokens: torch.Tensor, is_cell: torch.Tensor) -> torch.Tensor:
        """Of each prefix by each token: (batch, tokens_per_cell) to (batch, beam, tokens_per_cell)."""
        self._after, values = [], []
        weight, bonus = self._options.language_model_weight, self._options.token_bonus
        for states, row, active in zip(self._states, tokens.tolist(), is_cell.tolist(), strict=True):
            extended = [[self._model.extend(s, token) for token in row] if active else [] for s in states]
            self._after.append([dict(zip(row, (state for state, _ in of_one), strict=False)) for of_one in extended])
            values.append([[weight * v + bonus for _, v in of_one] or [0.0] * len(row) for of_one in extended])
        return torch.tensor(values, device=tokens.device)

    def go_on(self, origins: torch.Tensor, added: torch.Tensor, is_cell: torch.Tensor) -> None:
        """Take the states of the new beam; that of a sentence without a cell here stays."""
        rows = zip(origins.tolist(), added.tolist(), is_cell.tolist(), strict=True)
        for place, (of_row, tokens, active) in enumerate(rows):
            if active:
                self._states[place] = [
                    self._states[place][o] if token == self._blank_id else self._after[place][o][token]
                    for o, token in zip(of_row, tokens, strict=True)
                ]
