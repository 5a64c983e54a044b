"""Latent-variable non-autoregressive translation model (Shu et al., 2020, arXiv 1908.07181).

What is unusual here: z is one continuous vector at each *source* position, so its shape does not depend on the target,
and everything is predicted in parallel. x is the source, y the target, l_y its length.

    prior p(z | x)             self-attention over x; its states are what the decoder attends to
    posterior q(z | x, y)      self-attention over y; then layers over x, without causal mask, that attend to it
    length p(l_y | z)          a softmax over l_y - |x|
    decoder p(y | x, z, l_y)   z carried from |x| to l_y positions (Eq. 6-8), self- and cross-attention, all at once

With `alignment="ctc"` there is no length predictor: z is carried to T = ⌈r |x|⌉ cells, and p(y | x, z) is the sum over
all ways to spell y in them (`ctc_lvnar`). A position of the decoder is then a cell.

Masks are 1 at valid positions; padding is on the right. Lengths count the end-of-sentence token, which closes every
source and every target.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.utils import ModelOutput

from .configuration_lvnar import LvnarConfig
from .ctc_lvnar import bigram_loss, ctc_nll, glanced_cells, likeliest_alignment, num_cells_needed, num_ctc_cells
from .generation_lvnar import GENERATION_DEFAULTS, LvnarGenerationMixin, lengths_to_mask
from .layers_lvnar import KeysValues, LvnarEmbedding, LvnarOutputProjection, LvnarStack, sinusoidal_positions
from .losses_lvnar import IGNORED_LABEL, budgeted_kl, gaussian_kl, length_nll, token_nll
from .pipeline_lvnar import LvnarTranslationPipeline  # noqa: F401  (so that it is saved beside this module)

_FINITE_PIECE = 32_767  # values; torch divides work among threads from one more on
MIN_STD = 1e-4  # of prior and posterior, so that no KL is infinite


@dataclass
class LvnarOutput(ModelOutput):
    """What `LvnarForConditionalGeneration.forward` returns; the terms of the objective are nats a sentence.

    Args:
        loss: scalar; token NLL (in training label-smoothed, and mixed with the loss of bigrams), budgeted KL and length
            NLL of the batch, divided by its number of target tokens (or by `num_items_in_batch`).
        logits: (batch, target_length, target_vocab_size), float32 outside autocast; with alignment "ctc" of the cells,
            (batch, T, target_vocab_size), where padding is blank.
        token_nll: (batch,) -log p(y | x, z, l_y), without label smoothing; with "ctc", -log p(y | x, z).
        kl: (batch,) KL before the budget.
        budgeted_kl: (batch,) Σ_k max(b, KL_k).
        length_nll: (batch,) -log p(l_y | z); None with alignment "ctc", as the two others of the length.
        length_accuracy: (batch,) 1 where the likeliest length is the true one, else 0.
        elbo: (batch,) -(token_nll + kl + length_nll), an estimate of a lower bound of log p(y, l_y | x) from one z;
            with "ctc", without the length, of log p(y | x).
        num_target_tokens: scalar, end-of-sentence tokens included.
        prior_means, prior_stds, posterior_means, posterior_stds: (batch, source_length, latent_dim).
        length_logits: (batch, 2 * max_length_offset + 1).
        encoder_hidden_states: (batch, source_length, hidden_size), the states of the prior.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    token_nll: torch.Tensor | None = None
    kl: torch.Tensor | None = None
    budgeted_kl: torch.Tensor | None = None
    length_nll: torch.Tensor | None = None
    length_accuracy: torch.Tensor | None = None
    elbo: torch.Tensor | None = None
    num_target_tokens: torch.Tensor | None = None
    prior_means: torch.Tensor | None = None
    prior_stds: torch.Tensor | None = None
    posterior_means: torch.Tensor | None = None
    posterior_stds: torch.Tensor | None = None
    length_logits: torch.Tensor | None = None
    encoder_hidden_states: torch.Tensor | None = None


class EncodedSource(NamedTuple):
    """What is computed once for a source, whatever the number of latents, lengths and refinement steps.

    Args:
        attention_mask: (batch, source_length).
        embeddings: (batch, source_length, hidden_size).
        hidden_states: (batch, source_length, hidden_size), the states of the prior.
        prior_means, prior_stds: (batch, source_length, latent_dim).
        decoder_keys_values: of the states, for the cross-attention of each layer of the decoder.
        carried_states: (batch, source_length, hidden_size), what the decoder carries to its positions beside the
            latents; None unless `carries_source_states`.
        posterior_states: (batch, source_length, hidden_size), the embeddings after the first self-attention of the
            posterior, which does not see the target; None before `begin_posterior`.
    """

    attention_mask: torch.Tensor
    embeddings: torch.Tensor
    hidden_states: torch.Tensor
    prior_means: torch.Tensor
    prior_stds: torch.Tensor
    decoder_keys_values: tuple[KeysValues, ...] = ()
    carried_states: torch.Tensor | None = None
    posterior_states: torch.Tensor | None = None

    def select(self, rows: torch.Tensor) -> "EncodedSource":
        """The sentences `rows` (indices or a boolean mask over the batch)."""
        return EncodedSource(
            attention_mask=self.attention_mask[rows],
            embeddings=self.embeddings[rows],
            hidden_states=self.hidden_states[rows],
            prior_means=self.prior_means[rows],
            prior_stds=self.prior_stds[rows],
            decoder_keys_values=tuple((keys[rows], values[rows]) for keys, values in self.decoder_keys_values),
            carried_states=None if self.carried_states is None else self.carried_states[rows],
            posterior_states=None if self.posterior_states is None else self.posterior_states[rows],
        )


class LvnarGaussianHead(nn.Module):
    """States to the mean and standard deviation of a diagonal Gaussian at each position, float32.

    No `nn.Linear`, since it gives two tensors: what looks for linear layers (PEFT's "all-linear") must pass it by.
    """

    def __init__(self, config: LvnarConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(2 * config.latent_dim, config.hidden_size))
        self.bias = nn.Parameter(torch.empty(2 * config.latent_dim))

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        means, raw_stds = nn.functional.linear(hidden_states, self.weight, self.bias).float().chunk(2, dim=-1)
        return means, nn.functional.softplus(raw_stds) + MIN_STD


class LvnarPrior(nn.Module):
    """p(z | x): encoder over the source, and the Gaussian at each of its positions."""

    def __init__(self, config: LvnarConfig):
        super().__init__()
        self.encoder = LvnarStack(config, config.num_prior_layers)
        self.gaussian_head = LvnarGaussianHead(config)

    def forward(
        self, source_embeddings: torch.Tensor, source_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Source states (batch, source_length, hidden_size), means and stds (batch, source_length, latent_dim)."""
        hidden_states = self.encoder(source_embeddings, source_mask)
        return hidden_states, *self.gaussian_head(hidden_states)


class LvnarPosterior(nn.Module):
    """q(z | x, y): encoder over the target, then layers that start from the source embeddings and attend to it."""

    def __init__(self, config: LvnarConfig):
        super().__init__()
        self.target_encoder = LvnarStack(config, config.num_posterior_encoder_layers)
        self.source_decoder = LvnarStack(config, config.num_posterior_decoder_layers, has_cross_attention=True)
        self.gaussian_head = LvnarGaussianHead(config)

    def forward(
        self,
        source_states: torch.Tensor,  # embeddings, or what `source_decoder.begin` made of them
        source_mask: torch.Tensor,
        target_embeddings: torch.Tensor,
        target_mask: torch.Tensor,
        has_begun: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Means and standard deviations, each (batch, source_length, latent_dim)."""
        target_states = self.target_encoder(target_embeddings, target_mask)
        keys_values = self.source_decoder.project_cross_states(target_states)
        hidden_states = self.source_decoder(source_states, source_mask, keys_values, target_mask, has_begun)
        return self.gaussian_head(hidden_states)


class LvnarLengthPredictor(nn.Module):
    """p(l_y | z, x): linear on pooled latents and pooled source states, softmax over l_y - |x|.

    Deviation: the paper pools z alone. The authors' code also lets the predictor see the states of the prior, as here;
    the bound stays valid, since p(l_y | z, x) conditions on nothing that the decoder does not.
    """

    def __init__(self, config: LvnarConfig):
        super().__init__()
        num_classes = 2 * config.max_length_offset + 1
        self.proj = nn.Linear(config.latent_dim + config.hidden_size, num_classes)

    def forward(self, latents: torch.Tensor, source_states: torch.Tensor, source_mask: torch.Tensor) -> torch.Tensor:
        """(batch, 2 * max_length_offset + 1) logits."""
        features = torch.cat([latents, source_states.float()], dim=-1)
        weights = source_mask.float()[..., None]  # float32: 16 bits cannot count beyond 256
        pooled = (features * weights).sum(1) / weights.sum(1)
        return self.proj(pooled.to(source_states.dtype))


class LvnarLengthTransform(nn.Module):
    """Monotonic location-based attention that carries |x| latents to l_y positions (Eq. 6-8).

    It is a weighted mean, so it commutes with the affine map into the hidden space and is applied before it, to
    `latent_dim` numbers a position.
    """

    def __init__(self) -> None:
        super().__init__()
        self.log_sigma = nn.Parameter(torch.zeros(1))  # σ > 0 is the one trainable number (FSDP takes no scalars)

    def forward(
        self,
        latents: torch.Tensor,  # (batch, source_length, latent_dim), or anything else that source positions have
        source_mask: torch.Tensor,  # (batch, source_length)
        target_lengths: torch.Tensor,  # (batch,)
        max_target_length: int,
    ) -> torch.Tensor:
        """(batch, max_target_length, latent_dim) float32; positions after a sentence's target length are arbitrary."""
        source_positions = torch.arange(1, latents.shape[1] + 1, device=latents.device)  # k, from 1
        target_positions = torch.arange(1, max_target_length + 1, device=latents.device)  # j, from 1
        ratios = source_mask.sum(-1).float() / target_lengths  # |x| / l_y, (batch,)
        centres = ratios[:, None] * target_positions  # (batch, max_target_length)
        distances = source_positions - centres[..., None]  # (batch, max_target_length, source_length)
        scores = -0.5 * (distances * torch.exp(-self.log_sigma.float())).square()  # a_jk, σ = exp(log_sigma)
        scores = scores.masked_fill(source_mask[:, None, :] == 0, float("-inf"))
        with torch.autocast(latents.device.type, enabled=False):  # positions need more than 8 bits
            return scores.softmax(-1) @ latents.float()


class LvnarDecoder(nn.Module):
    """p(y | x, z, l_y) up to the vocabulary projection: aligned latents, positions, layers over the target."""

    def __init__(self, config: LvnarConfig):
        super().__init__()
        self.length_transform = LvnarLengthTransform()
        self.latent_proj = nn.Linear(config.latent_dim, config.hidden_size)
        if config.carries_source_states:
            # As the latents, projected before they are carried: there are fewer source positions.
            self.state_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.stack = LvnarStack(config, config.num_decoder_layers, has_cross_attention=True)

    def forward(
        self,
        latents: torch.Tensor,  # (batch, source_length, latent_dim)
        source_keys_values: Sequence[KeysValues],  # of the prior's states, a layer each
        source_mask: torch.Tensor,
        target_mask: torch.Tensor,  # (batch, target_length)
        carried_states: torch.Tensor | None = None,  # (batch, source_length, hidden_size)
        is_shown: torch.Tensor | None = None,  # (batch, target_length) bool, where the input is
        shown_embeddings: torch.Tensor | None = None,  # this instead, (batch, target_length, hidden_size)
    ) -> torch.Tensor:
        """(batch, target_length, hidden_size)."""
        positions_of = (source_mask, target_mask.sum(-1), target_mask.shape[1])
        dtype = source_keys_values[0][0].dtype
        hidden_states = self.latent_proj(self.length_transform(latents, *positions_of).to(dtype))
        if carried_states is not None:
            hidden_states = hidden_states + self.length_transform(carried_states, *positions_of).to(dtype)
        if is_shown is not None and shown_embeddings is not None:
            hidden_states = torch.where(is_shown[..., None], shown_embeddings.to(hidden_states.dtype), hidden_states)
        positions = sinusoidal_positions(target_mask.shape[1], hidden_states.shape[-1], hidden_states.device)
        # With a dimension for the batch: of two dimensions, torch's compiler would compile anew where the length
        # happens to equal the batch size.
        hidden_states = self.dropout(hidden_states + positions[None].to(hidden_states.dtype))
        return self.stack(hidden_states, target_mask, source_keys_values, source_mask)


class LvnarPreTrainedModel(PreTrainedModel):
    config_class = LvnarConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["LvnarLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        # `nn.init` alone: transformers 5 makes it skip what a checkpoint has already filled.
        if isinstance(module, LvnarGaussianHead):
            # Prior and posterior begin nearly equal; else the first KL is hundreds of nats a position.
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, LvnarLengthTransform):
            nn.init.zeros_(module.log_sigma)


class LvnarForConditionalGeneration(LvnarPreTrainedModel, LvnarGenerationMixin, GenerationMixin):
    """Prior, approximate posterior, length predictor and decoder, with the loss and `generate`.

    Source and target share one embedding if the vocabulary is joint. A tied output projection is that very module,
    not a second parameter that has to be tied again after loading.
    """

    accepts_loss_kwargs = False
    source_embedding: nn.Module

    def __init__(self, config: LvnarConfig):
        super().__init__(config)
        self.source_embedding = LvnarEmbedding(config.vocab_size, config.hidden_size)
        if config.target_vocab_size is not None:
            self.target_embedding = LvnarEmbedding(config.decoder_vocab_size, config.hidden_size)
        if not config.tie_word_embeddings:
            self.output_proj = LvnarOutputProjection(config.hidden_size, config.decoder_vocab_size)
        self.embedding_dropout = nn.Dropout(config.dropout)
        self.prior = LvnarPrior(config)
        self.posterior = LvnarPosterior(config)
        if config.alignment == "length":
            self.length_predictor = LvnarLengthPredictor(config)
        self.decoder = LvnarDecoder(config)
        self.post_init()
        # A fresh object: on the one that transformers derives from the config, own fields do not survive a reload.
        self.generation_config = GenerationConfig(
            **GENERATION_DEFAULTS[config.alignment],
            max_length=config.max_position_embeddings,
            pad_token_id=config.pad_token_id,
            eos_token_id=config.eos_token_id,
        )

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As in transformers, from safetensors alone, and refusing weights that are not whole and sound.

        Raises:
            ValueError: weights are missing, not finite, or of another shape (with `ignore_mismatched_sizes=True`, the
                last ones are drawn anew); names them. transformers would fill or take all of them.
        """
        kwargs.setdefault("use_safetensors", True)
        takes_other_shapes = kwargs.pop("ignore_mismatched_sizes", False)
        model, info = super().from_pretrained(*args, output_loading_info=True, ignore_mismatched_sizes=True, **kwargs)
        other_shapes = {entry if isinstance(entry, str) else entry[0] for entry in info["mismatched_keys"]}
        if other_shapes and not takes_other_shapes:
            shapes = {name: tuple(model.get_parameter(name).shape) for name in sorted(other_shapes)}
            raise ValueError(
                f"These weights have another shape in the checkpoint than the configuration asks: {shapes}."
            )
        if missing := sorted(set(info["missing_keys"]) - other_shapes):
            raise ValueError(f"The checkpoint lacks {len(missing)} weights: {', '.join(missing[:5])}.")
        for name, parameter in model.named_parameters():
            is_here = parameter.is_floating_point() and not parameter.is_meta
            if is_here and not is_finite(parameter.detach()):
                raise ValueError(f"The weight {name} has values that are not finite.")
        return (model, info) if output_loading_info else model

    def get_input_embeddings(self) -> nn.Module:
        return self.source_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.source_embedding = value

    def get_output_embeddings(self) -> None:
        """None: nothing is left for transformers to tie."""
        return None

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Module:
        """As in transformers, for one joint vocabulary that is also the output projection.

        Raises:
            ValueError: for a model with two vocabularies, or an output projection of its own.
        """
        size = self.config.vocab_size if new_num_tokens is None else new_num_tokens
        if size != self.config.vocab_size and (self.config.target_vocab_size or not self.config.tie_word_embeddings):
            raise ValueError(
                f"The vocabulary cannot be resized from {self.config.vocab_size} to {size}: that is possible with one "
                f"joint vocabulary and a tied output projection alone; here target_vocab_size is "
                f"{self.config.target_vocab_size} and tie_word_embeddings {self.config.tie_word_embeddings}."
            )
        return super().resize_token_embeddings(new_num_tokens, *args, **kwargs)

    # The four parts, as training and `generate` use them.

    def encode(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> EncodedSource:
        """Prior over a source: ids and mask (batch, source_length) to all that later parts need of x."""
        embeddings = self._embed(self.source_embedding, input_ids)
        hidden_states, prior_means, prior_stds = self.prior(embeddings, attention_mask)
        keys_values = self.decoder.stack.project_cross_states(hidden_states)
        carried = self.decoder.state_proj(hidden_states) if self.config.carries_source_states else None
        return EncodedSource(attention_mask, embeddings, hidden_states, prior_means, prior_stds, keys_values, carried)

    def begin_posterior(self, source: EncodedSource) -> EncodedSource:
        """The source with what the posterior computes whatever the target is: for several refinement steps."""
        states = self.posterior.source_decoder.begin(source.embeddings, source.attention_mask)
        return source._replace(posterior_states=states)

    def infer_posterior(
        self, source: EncodedSource, target_ids: torch.Tensor, target_mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """q(z | x, y): means and standard deviations, each (batch, source_length, latent_dim)."""
        target_embeddings = self._embed(self._target_embedding, target_ids)
        has_begun = source.posterior_states is not None
        states = source.posterior_states if has_begun else source.embeddings
        return self.posterior(states, source.attention_mask, target_embeddings, target_mask, has_begun)

    def predict_length(self, source: EncodedSource, latents: torch.Tensor) -> torch.Tensor:
        """p(l_y | z, x): (batch, 2 * max_length_offset + 1) logits over l_y - |x|."""
        return self.length_predictor(latents, source.hidden_states, source.attention_mask)

    def decode(
        self,
        source: EncodedSource,
        latents: torch.Tensor,
        target_mask: torch.Tensor,
        is_shown: torch.Tensor | None = None,
        shown_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """p(y | x, z, l_y), with l_y given by the mask: (batch, target_length, target_vocab_size) logits.

        They are float32 even if the model has 16 bits. With alignment "ctc" the mask is `cell_mask`.

        Args:
            latents: (batch, source_length, latent_dim).
            target_mask: (batch, target_length).
            is_shown: (batch, target_length) bool, positions whose input is a token instead of the latents (glancing).
            shown_ids: (batch, target_length), the tokens.
        """
        shown_embeddings = None
        if shown_ids is not None:
            shown_embeddings = self._target_embedding(shown_ids) * math.sqrt(self.config.hidden_size)
        hidden_states = self.decoder(
            latents,
            source.decoder_keys_values,
            source.attention_mask,
            target_mask,
            source.carried_states,
            is_shown,
            shown_embeddings,
        )
        if self.config.tie_word_embeddings:
            return self._target_embedding(hidden_states, project=True)
        return self.output_proj(hidden_states)

    def cell_mask(self, attention_mask: torch.Tensor) -> torch.Tensor:
        """The cells of each source with alignment "ctc": (batch, source_length) to (batch, T), int64."""
        num_cells = num_ctc_cells(attention_mask.sum(-1), self.config.upsampling_ratio)
        return lengths_to_mask(num_cells, num_ctc_cells(attention_mask.shape[1], self.config.upsampling_ratio))

    @property
    def output_weight(self) -> torch.Tensor:
        """Of the projection to the vocabulary, (target_vocab_size, hidden_size); it has no bias."""
        projection: Any = self._target_embedding if self.config.tie_word_embeddings else self.output_proj
        return projection.weight

    @property
    def _target_embedding(self) -> nn.Module:
        return self.source_embedding if self.config.target_vocab_size is None else self.target_embedding

    def _embed(self, embedding: nn.Module, ids: torch.Tensor) -> torch.Tensor:
        """Ids (batch, length) to scaled embeddings with positions, (batch, length, hidden_size)."""
        positions = sinusoidal_positions(ids.shape[1], self.config.hidden_size, ids.device)
        embeddings = embedding(ids) * math.sqrt(self.config.hidden_size)
        return self.embedding_dropout(embeddings + positions.to(embeddings.dtype))

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        kl_budget: float = 0.0,
        smoothing: float = 0.0,
        num_items_in_batch: int | torch.Tensor | None = None,
        generator: torch.Generator | None = None,
        glancing_ratio: float = 0.0,
        bigram_weight: float = 0.0,
        return_dict: bool | None = None,
        **unused: Any,
    ) -> LvnarOutput | tuple:
        """The objective and its parts (Eq. 5, 9, 10); without labels, one pass from the prior's mean.

        z is drawn from the posterior in training, and in evaluation if a `generator` is given; otherwise it is the
        posterior's mean, and nothing is random.

        Args:
            input_ids: (batch, source_length).
            attention_mask: (batch, source_length), 1 at valid positions; by default, all but padding ids.
            labels: (batch, target_length), -100 at padding.
            kl_budget: b of Eq. 9, nats a source position.
            smoothing: label smoothing, in training alone; in evaluation it is ignored. (Trainer takes every argument
                with "label" in its name for labels.)
            num_items_in_batch: number of target tokens to divide the loss by, where the batch is a piece of a larger
                one; by default, that of this batch.
            generator: where the noise ε of z = μ + σε comes from.
            glancing_ratio: ρ, in training with alignment "ctc": how much of the likeliest alignment the decoder is
                shown, as a share of the cells that it gets wrong (`glanced_cells`).
            bigram_weight: in training with alignment "ctc", the share of the loss of bigrams (`bigram_loss`, times the
                target's tokens) in what else is the likelihood of the target.
            unused: what others pass to every model (PEFT: `inputs_embeds`, `decoder_input_ids`): None or False.

        Raises:
            TypeError: for an argument that this model has not.
            ValueError: in training mode without labels; for empty or ill-shaped input, ids out of the vocabulary, masks
                that are not right-padding, too long a source or target, labels without a token, or a length difference
                the model cannot express.
        """
        if wrong := [name for name, value in unused.items() if value is not None and value is not False]:
            raise TypeError(f"forward takes no {', '.join(wrong)}; this model has input_ids, attention_mask, labels.")
        if labels is None and self.training:
            raise ValueError(
                "In training mode forward needs labels. label_smoothing_factor of transformers' Trainer takes them "
                "away: leave it at 0, and let the data collator put `smoothing`, a number, beside the labels. To "
                "translate, call model.eval() first."
            )
        return_dict = return_dict if return_dict is not None else self.config.return_dict
        attention_mask = self.check_source(input_ids, attention_mask)
        source = self.encode(input_ids, attention_mask)
        if labels is None:
            target_mask, length_logits = self.target_positions(source, source.prior_means)
            output = LvnarOutput(
                logits=self.decode(source, source.prior_means, target_mask),
                prior_means=source.prior_means,
                prior_stds=source.prior_stds,
                length_logits=length_logits,
                encoder_hidden_states=source.hidden_states,
            )
            return output if return_dict else output.to_tuple()

        self.check_labels(labels, attention_mask)
        target_mask = (labels != IGNORED_LABEL).to(attention_mask.dtype)
        target_ids = labels.masked_fill(target_mask == 0, self.config.pad_token_id)
        posterior_means, posterior_stds = self.infer_posterior(source, target_ids, target_mask)
        latents = posterior_means
        if self.training or generator is not None:
            noise = torch.empty_like(posterior_stds).normal_(generator=generator)
            latents = latents + posterior_stds * noise
        smoothing = smoothing if self.training else 0.0
        if self.config.alignment == "ctc":
            length_logits = length_loss = length_accuracy = None
            logits, cell_mask = self._decode_cells(source, latents, labels, glancing_ratio if self.training else 0.0)
            nll, smoothed_nll = ctc_nll(logits, labels, cell_mask, self.config.pad_token_id, smoothing)
            if bigram_weight and self.training:
                bigram_losses = bigram_loss(logits, labels, cell_mask, self.config.pad_token_id) * target_mask.sum(-1)
                smoothed_nll = (1 - bigram_weight) * smoothed_nll + bigram_weight * bigram_losses
        else:
            length_logits = self.predict_length(source, latents)
            length_offsets = target_mask.sum(-1) - attention_mask.sum(-1)
            length_loss = length_nll(length_logits, length_offsets)
            length_accuracy = (length_logits.argmax(-1) - self.config.max_length_offset == length_offsets).float()
            logits = self.decode(source, latents, target_mask)
            nll, smoothed_nll = token_nll(logits, labels, smoothing)
        position_kl = gaussian_kl(
            posterior_means, posterior_stds, source.prior_means, source.prior_stds, attention_mask
        )
        kl = position_kl.sum(-1)
        clamped_kl = budgeted_kl(position_kl, kl_budget, attention_mask).sum(-1)
        elbo, loss = -(nll + kl), smoothed_nll + clamped_kl
        if length_loss is not None:
            elbo, loss = elbo - length_loss, loss + length_loss
        num_target_tokens = target_mask.sum()
        normalizer = num_target_tokens if num_items_in_batch is None else num_items_in_batch
        output = LvnarOutput(
            loss=loss.sum() / normalizer,
            logits=logits,
            token_nll=nll,
            kl=kl,
            budgeted_kl=clamped_kl,
            length_nll=length_loss,
            length_accuracy=length_accuracy,
            elbo=elbo,
            num_target_tokens=num_target_tokens,
            prior_means=source.prior_means,
            prior_stds=source.prior_stds,
            posterior_means=posterior_means,
            posterior_stds=posterior_stds,
            length_logits=length_logits,
            encoder_hidden_states=source.hidden_states,
        )
        return output if return_dict else output.to_tuple()

    def _decode_cells(
        self, source: EncodedSource, latents: torch.Tensor, labels: torch.Tensor, glancing_ratio: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of the cells, and their mask, in training; with glancing, of a decoder that is shown some cells.

        Which ones, a first pass decides, with the same z and the same dropout, and without gradient.
        """
        cell_mask = self.cell_mask(source.attention_mask)
        if glancing_ratio == 0.0:
            return self.decode(source, latents, cell_mask), cell_mask
        random: Any = torch.cuda if latents.is_cuda else torch.random
        random_state = random.get_rng_state()
        with torch.no_grad():
            logits = self.decode(source, latents, cell_mask)
            alignment = likeliest_alignment(logits, labels, cell_mask, self.config.pad_token_id)
            is_shown = glanced_cells(logits.max(-1).indices, alignment, cell_mask, glancing_ratio)
        torch.clear_autocast_cache()  # it holds weights as a pass without gradient has cast them
        state_after = random.get_rng_state()
        random.set_rng_state(random_state)
        logits = self.decode(source, latents, cell_mask, is_shown, alignment)
        random.set_rng_state(state_after)
        return logits, cell_mask

    # Input that the model cannot take is refused by name; one synchronisation with the device a check.

    def check_source(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Refuse a source the model cannot take; return its attention mask (batch, source_length), int64."""
        if input_ids.dim() != 2 or 0 in input_ids.shape:
            raise ValueError(
                f"input_ids has the shape {tuple(input_ids.shape)}; it must be (batch, length), not empty."
            )
        if input_ids.shape[1] > self.config.max_position_embeddings:
            raise ValueError(
                f"The source has {input_ids.shape[1]} tokens; the model takes at most "
                f"max_position_embeddings={self.config.max_position_embeddings}. Truncate or split it."
            )
        if attention_mask is None:
            attention_mask = input_ids != self.config.pad_token_id
        elif attention_mask.shape != input_ids.shape:
            raise ValueError(
                f"attention_mask has the shape {tuple(attention_mask.shape)}, input_ids {tuple(input_ids.shape)}; "
                "they must be equal."
            )
        attention_mask = attention_mask.long()
        _refuse_ids(input_ids, self.config.vocab_size, "input_ids")
        _refuse_unless_right_padded(attention_mask, "attention_mask")
        return attention_mask

    def check_labels(self, labels: torch.Tensor, attention_mask: torch.Tensor) -> None:
        """Refuse labels the model cannot be trained on."""
        if labels.dim() != 2 or labels.shape[0] != attention_mask.shape[0] or labels.shape[1] == 0:
            raise ValueError(
                f"labels have the shape {tuple(labels.shape)}; they must be (batch, length), not empty, with the "
                f"batch of input_ids, {attention_mask.shape[0]}."
            )
        if labels.shape[1] > self.config.max_position_embeddings:
            raise ValueError(
                f"The target has {labels.shape[1]} tokens; the model takes at most "
                f"max_position_embeddings={self.config.max_position_embeddings}."
            )
        target_mask = labels != IGNORED_LABEL
        vocab_size = self.config.decoder_vocab_size
        _refuse_ids(labels.masked_fill(~target_mask, self.config.pad_token_id), vocab_size, "labels")
        if bool((labels == self.config.pad_token_id).any()):
            raise ValueError(
                f"labels hold the padding id {self.config.pad_token_id}; padding must be {IGNORED_LABEL} there, as "
                "transformers' DataCollatorForSeq2Seq makes it."
            )
        _refuse_unless_right_padded(target_mask.long(), "labels (valid where not -100)")
        if self.config.alignment == "ctc":
            needed = num_cells_needed(labels)
            missing = needed - num_ctc_cells(attention_mask.sum(-1), self.config.upsampling_ratio)
            if bool((missing > 0).any()):
                row = int(missing.argmax())
                raise ValueError(
                    f"Sentence {row} of the batch needs {int(needed[row])} cells, its tokens and one between equal "
                    f"neighbours; with upsampling_ratio={self.config.upsampling_ratio} its source has "
                    f"{int(needed[row] - missing[row])}. Leave such pairs out of the data."
                )
            return
        offsets = target_mask.sum(-1) - attention_mask.sum(-1)
        widest = int(offsets.abs().max())
        if widest > self.config.max_length_offset:
            raise ValueError(
                f"A target differs from its source by {widest} tokens; the length predictor covers at most "
                f"max_length_offset={self.config.max_length_offset}. Leave such pairs out of the data."
            )


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all values are, found on the CPU without torch's threads: a process that has started them cannot fork.

    By the sum of its pieces, which are small enough for one thread.
    """
    if tensor.device.type != "cpu":
        return bool(torch.isfinite(tensor).all())
    pieces = tensor.flatten().split(_FINITE_PIECE)
    return all(math.isfinite(float((piece * 0).float().sum())) for piece in pieces)


def _refuse_ids(ids: torch.Tensor, vocab_size: int, name: str) -> None:
    lowest, highest = torch.stack(torch.aminmax(ids)).tolist()
    if lowest < 0 or highest >= vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(f"{name} holds the id {wrong}; the vocabulary has the ids 0 to {vocab_size - 1}.")


def _refuse_unless_right_padded(mask: torch.Tensor, name: str) -> None:
    starts_empty = mask[:, 0] == 0
    has_gap = (mask[:, 1:] > mask[:, :-1]).any(-1)
    any_empty, any_gap = torch.stack([starts_empty.any(), has_gap.any()]).tolist()
    if any_empty or any_gap:
        rows = (starts_empty | has_gap).nonzero().flatten().tolist()
        raise ValueError(
            f"{name}: sentence {rows[0]} of the batch has no valid token at its start, or padding before a valid "
            "token. Every sentence needs a token, and padding goes to the right."
        )
