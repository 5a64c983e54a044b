"""Random weights with which a model translates a sentence into as many tokens as the sentence itself says.

What is unusual: nothing forces the lengths from outside. Search options that do (`min_new_tokens`, callbacks) cost time
that no user would spend, and they know one length a batch, so that no engine could drop its finished sentences. Here
the weights do it: every dense product is there at its full size, but what the layers add is made small, the embeddings
hold a code, and a few of the weights carry the code through. Any engine that runs the weights keeps the lengths.

- An autoregressive model counts down. Every token has a level; the sources of a sentence with L target tokens have
  level L; after a token of level l the likeliest are the many of level l - 1, and level 0 is `</s>` alone.
- This model reads l_y - |x| from the source tokens, and its translation is made of tokens of the sign +1 and -1 in
  turn, so that no refinement step leaves a translation as it was, and every step asked for is taken. With alignment
  "ctc" its translation has as many tokens as the cells spell, about one for each source token: neighbouring cells of
  one token are alike, and merge.

Checked at run time: the benchmark counts tokens and steps, and stops where they differ.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import MarianMTModel

from lvnar_hf import LvnarConfig, LvnarForConditionalGeneration
from lvnar_hf.engines.shortlist import Shortlist
from training.sections import TeacherArguments
from training.speed.shortlists import calibrate, decoder_states

LENGTHS_FILE = Path(__file__).with_name("newstest2014_lengths.json")
NUM_SPECIAL_TOKENS = 3  # <pad>, </s>, <unk>
EMBEDDING_NOISE = 0.2  # relative to the code
BRANCH_SCALE = 0.01  # what is left of that which a layer adds; not 0, since equal matrices would be stored once
MARIAN_CODE_NORM = 4.0


@dataclass(frozen=True)
class TokenCode:
    """What each token of a joint vocabulary says: a level, the difference l_y - |x|, and a sign.

    Attributes:
        vocab_size: number of ids.
        max_target_length: levels are 1 to this, tokens with `</s>`.
        min_offset, max_offset: range of l_y - |x|.
    """

    vocab_size: int
    max_target_length: int
    min_offset: int
    max_offset: int

    def __post_init__(self) -> None:
        needed = NUM_SPECIAL_TOKENS + 2 * self.max_target_length * self.num_offsets
        if self.vocab_size < needed:
            raise ValueError(
                f"A vocabulary of {self.vocab_size} ids is too small for targets of up to {self.max_target_length} "
                f"tokens that differ from their source by {self.min_offset} to {self.max_offset}: it takes {needed}."
            )

    @property
    def num_offsets(self) -> int:
        return self.max_offset - self.min_offset + 1

    def _ordinary(self) -> torch.Tensor:
        return torch.arange(self.vocab_size - NUM_SPECIAL_TOKENS)

    def levels(self) -> torch.Tensor:
        """Of the tokens from id 3 on: 1 to `max_target_length`."""
        return 1 + self._ordinary() % self.max_target_length

    def offsets(self) -> torch.Tensor:
        """Of the tokens from id 3 on: `min_offset` to `max_offset`."""
        return self.min_offset + self._ordinary() // self.max_target_length % self.num_offsets

    def signs(self) -> torch.Tensor:
        """Of the tokens from id 3 on: +1 or -1."""
        return 1 - 2 * (self._ordinary() // (self.max_target_length * self.num_offsets) % 2)

    def make_sources(
        self, lengths: Sequence[tuple[int, int]], generator: torch.Generator, with_offsets: bool = True
    ) -> list[list[int]]:
        """Random sources of these (source, target) lengths that say their target's length.

        Without the offsets, which alignment "ctc" does not read, a sentence has more different tokens.
        """
        levels, offsets = self.levels(), self.offsets()
        sources = []
        for source_length, target_length in lengths:
            matches = levels == target_length
            if with_offsets:
                matches &= offsets == target_length - source_length
            ids = NUM_SPECIAL_TOKENS + matches.nonzero()[:, 0]
            sources.append(ids[torch.randint(len(ids), (source_length,), generator=generator)].tolist())
        return sources


def read_lengths(file: Path = LENGTHS_FILE) -> list[tuple[int, int]]:
    """The (source, target) lengths of newstest2014, tokens with `</s>`, in the order of the test set."""
    return [(source, target) for source, target in json.loads(file.read_text("utf-8"))["lengths"]]


def shift_codes(size: int, generator: torch.Generator) -> torch.Tensor:
    """(size, size) unit vectors, nearly orthogonal; row t + 1 is row t moved by one place to the right.

    The first is random with a flat spectrum, without a mean, which a LayerNorm would take away.
    """
    phases = torch.rand(size // 2 + 1, generator=generator) * 2 * torch.pi
    spectrum = torch.polar(torch.ones_like(phases), phases)
    spectrum[0] = 0
    if size % 2 == 0:
        spectrum[-1] = 1
    code = torch.fft.irfft(spectrum, n=size)
    return torch.stack([code.roll(shift) for shift in range(size)]) / code.norm()


def _noisy(codes: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Codes (tokens, size) with random noise, which tells apart the tokens that have the same."""
    noise = torch.randn(codes.shape, generator=generator)
    return codes + EMBEDDING_NOISE * noise / noise.norm(dim=-1, keepdim=True)


def _shrink(model: nn.Module, names: tuple[str, ...]) -> None:
    """Make small what the layers add: the weights of the last product of each of their parts."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(names):
            module.weight.mul_(BRANCH_SCALE)


def _refuse_levels(num_codes: int, hidden_size: int) -> None:
    if num_codes > hidden_size:
        raise ValueError(f"{num_codes} codes are needed, but there are {hidden_size}: hidden_size.")


@torch.no_grad()
def make_marian(config: LvnarConfig, num_layers: tuple[int, int], code: TokenCode, seed: int = 0) -> MarianMTModel:
    """An autoregressive Transformer of this model's width that counts down from its source's level.

    Args:
        config: gives vocabulary, width, heads and positions.
        num_layers: of encoder and decoder.
        code: what the tokens say.
        seed: of the random weights.

    Raises:
        ValueError: if the width is too small for the code.
    """
    size = config.hidden_size
    _refuse_levels(code.max_target_length + 2, size)
    if config.intermediate_size < 2 * size:
        raise ValueError(f"intermediate_size is {config.intermediate_size}; the code takes at least {2 * size}.")
    arguments = TeacherArguments(
        hidden_size=size,
        intermediate_size=config.intermediate_size,
        num_attention_heads=config.num_attention_heads,
        num_encoder_layers=num_layers[0],
        num_decoder_layers=num_layers[1],
        max_position_embeddings=config.max_position_embeddings,
    )
    torch.manual_seed(seed)
    model = MarianMTModel(arguments.to_config(code.vocab_size, None)).eval()
    _shrink(model, (".out_proj", ".fc2"))
    generator = torch.Generator().manual_seed(seed)
    codes = shift_codes(size, generator)
    embeddings = model.get_input_embeddings().weight
    embeddings[0] = MARIAN_CODE_NORM * codes[-1]  # <pad> is where decoding starts; no level comes after it
    embeddings[1] = MARIAN_CODE_NORM * codes[0]
    embeddings[2] = 0
    embeddings[NUM_SPECIAL_TOKENS:] = MARIAN_CODE_NORM * _noisy(codes[code.levels()], generator)

    last = model.model.decoder.layers[-1]
    identity = torch.eye(size)
    # The source's code is added to each state: it decides at the first position, where no level is, and only there.
    last.encoder_attn.v_proj.weight.copy_(identity)
    last.encoder_attn.out_proj.weight.copy_(0.4 * identity)
    # Back by one place, which is one level down: x + 10 S x, with S x = relu(S x) - relu(-S x).
    back = identity.roll(-1, dims=0)
    last.fc1.weight[: 2 * size] = torch.cat([back, -back])
    last.fc2.weight[:, : 2 * size] = 10 * torch.cat([identity, -identity], dim=1)
    return model


@torch.no_grad()
def make_lvnar(config: LvnarConfig, code: TokenCode, seed: int = 0) -> LvnarForConditionalGeneration:
    """This model, with a translation that every refinement step changes; its lengths are those its sources say.

    With alignment "ctc", which predicts none, they are near the sources' own.

    Raises:
        ValueError: if the width is too small for the code.
    """
    size, latent_dim = config.hidden_size, config.latent_dim
    _refuse_levels(code.num_offsets + 1, size)
    torch.manual_seed(seed)
    model = LvnarForConditionalGeneration(config).eval()
    _shrink(model, ("attention.output_proj", "feed_forward.3"))
    generator = torch.Generator().manual_seed(seed)
    codes = shift_codes(size, generator)
    sign_code, offset_codes = codes[-1], codes[: code.num_offsets]
    embeddings = model.source_embedding.weight
    tokens = offset_codes[code.offsets() - code.min_offset] + code.signs()[:, None] * sign_code
    embeddings[:NUM_SPECIAL_TOKENS] *= BRANCH_SCALE
    embeddings[NUM_SPECIAL_TOKENS:] = _noisy(tokens, generator)

    if config.alignment == "length":
        length_proj = model.length_predictor.proj
        length_proj.weight.mul_(BRANCH_SCALE)
        first = code.min_offset + config.max_length_offset
        length_proj.weight[first : first + code.num_offsets, latent_dim:] = offset_codes

    prior_head, posterior_head = model.prior.gaussian_head, model.posterior.gaussian_head
    prior_head.weight.mul_(BRANCH_SCALE)
    prior_head.bias[:latent_dim] = 1.0  # y_0 is of sign +1
    # Each latent is minus the sign of the last translation, which the last layer's cross-attention brings.
    attention = model.posterior.source_decoder.layers[-1].cross_attention
    attention.key_value_proj.weight[size:] = torch.eye(size)
    attention.output_proj.weight.copy_(10 * torch.outer(sign_code, sign_code))
    posterior_head.weight[:latent_dim] = -sign_code / size**0.5
    # The decoder's states have the sign of the latents, and so have the likeliest tokens.
    model.decoder.latent_proj.weight.copy_(5 * size**0.5 * sign_code[:, None].expand(-1, latent_dim) / latent_dim)
    if config.carries_source_states:  # of the tokens of that sign, the likeliest is that nearest to the source's
        model.decoder.state_proj.weight.copy_(torch.eye(size) - torch.outer(sign_code, sign_code))
    return model


def make_random_shortlist(
    model: LvnarForConditionalGeneration,
    code: TokenCode,
    sources: Sequence[list[int]],
    num_frequent: int = 256,
    num_per_token: int = 37,
    whole_share: float = 0.03,
    seed: int = 0,
) -> Shortlist:
    """Random tokens, as many for a sentence as the model that ships tries: its length times `num_per_token`, and more.

    A sentence of this benchmark has few different tokens, since all of them say its length. Each therefore brings the
    more new ones, the longer the sentence is of which it can be.

    Args:
        code: of the model, from which the length is known.
        sources: ids, on which the confidence is set.
        num_frequent: tokens tried for every sentence, beside the others; at least three of each level.
        num_per_token: new tokens for each source token; a test compares it with the shortlist that ships.
        whole_share: of their target positions, of two passes; more than that script asks for, since it comes out
            otherwise in each pass and in 8 bits. The share that a run had is in its results.
    """
    config = model.config
    num_targets = config.decoder_vocab_size
    generator = torch.Generator().manual_seed(seed)
    source_lengths = (code.levels() - code.offsets()).clamp(min=1)
    pairs = torch.stack([code.levels(), code.offsets()], dim=1)
    _, place, counts = pairs.unique(dim=0, return_inverse=True, return_counts=True)
    num_alike = counts[place].float()  # tokens that say the same, of which a sentence is made
    num_different = num_alike * (1 - (1 - 1 / num_alike) ** source_lengths)  # expected, of so many drawn
    sizes = torch.zeros(config.vocab_size, dtype=torch.int64)
    sizes[NUM_SPECIAL_TOKENS:] = (num_per_token * source_lengths / num_different).ceil().clamp(max=num_targets // 4)
    shape = (config.vocab_size, int(sizes.max()))
    candidates = torch.randint(NUM_SPECIAL_TOKENS, num_targets, shape, generator=generator)
    candidates.masked_fill_(torch.arange(shape[1]) >= sizes[:, None], config.pad_token_id)
    order = torch.randperm(num_targets - NUM_SPECIAL_TOKENS, generator=generator)
    # First some of each level: in CTranslate2 an autoregressive model has these lists too, and counts down.
    levels = code.levels()[order]
    needed = [place for level in range(1, code.max_target_length + 1) for place in (levels == level).nonzero()[:3, 0]]
    is_needed = torch.zeros(len(order), dtype=torch.bool)
    is_needed[torch.stack(needed)] = True
    frequent = NUM_SPECIAL_TOKENS + torch.cat([order[is_needed], order[~is_needed]])[: max(num_frequent, len(needed))]
    shortlist = Shortlist(candidates.int(), frequent.int(), torch.tensor(float("-inf")))
    batches = [torch.tensor([row]) for row in sources]
    states = [decoder_states(model, ids, torch.ones_like(ids), steps) for ids in batches for steps in (0, 1)]
    return calibrate(shortlist, states, config, whole_share)


@dataclass(frozen=True)
class Sample:
    """The sentences of one batch size: consecutive ones of the sorted test set, at even distances.

    Attributes:
        batch_size: sentences in a batch.
        batches: indices of the test set's sentences, in batches.
    """

    batch_size: int
    batches: list[list[int]]

    @property
    def indices(self) -> list[int]:
        return [index for batch in self.batches for index in batch]


def sample_batches(order: Sequence[int], batch_size: int, num_sentences: int) -> Sample:
    """Batches of neighbours in a test set that is sorted by length, one in the middle of each equal part of it.

    Args:
        order: indices of the sentences, sorted by length.
        batch_size: sentences in a batch.
        num_sentences: rounded down to whole batches; at least one batch.

    Raises:
        ValueError: if there are fewer sentences than a batch has.
    """
    if len(order) < batch_size:
        raise ValueError(f"{len(order)} sentences do not fill a batch of {batch_size}; choose other --batch_sizes.")
    num_batches = min(max(1, num_sentences // batch_size), len(order) // batch_size)
    batches = []
    for part in range(num_batches):
        middle = (2 * part + 1) * len(order) // (2 * num_batches)
        start = min(max(0, middle - batch_size // 2), len(order) - batch_size)
        batches.append(list(order[start : start + batch_size]))
    return Sample(batch_size, batches)
