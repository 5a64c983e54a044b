"""The model of Shu et al. (2020, arXiv 1908.07181) written out: literal, slow, and without a batch.

One sentence (or one pair) at a time, so there is no padding and there are no masks; a loop for every index that the
paper writes; float64; plain tensor arithmetic, so that gradients can be compared too. Nothing here comes from
`lvnar_hf` but the names of the weights. The fast model must agree with this one, sentence by sentence.

    x, y            ids of source and target, both closed by end-of-sentence     list of int
    E               embedding                                                    source_embedding, target_embedding
    h_k             state of source position k, k = 1..|x|                       prior.encoder
    z_k             latent vector at source position k                           latent_dim numbers
    p(z | x)        N(μ_k, diag σ_k²) at every source position                   prior
    q(z | x, y)     the same, knowing the target                                 posterior
    p(l_y | z, x)   softmax over l_y - |x| in [-L, L]                            length_predictor, L = max_length_offset
    z̄_j             latent vector carried to target position j, j = 1..l_y       decoder.length_transform
    p(y_j | x, z, l_y)                                                           decoder
    T               cells of alignment "ctc", ⌈r |x|⌉                             upsampling_ratio
    p(y | x, z)     the sum over all ways to spell y in T cells, with ctc
    b               KL budget, nats per source position                            kl_budget
    t               refinement step                                              num_refinement_steps

A sequence is a list of vectors; `sequence[k - 1]` is the paper's position k.
"""

import math
from dataclasses import dataclass
from itertools import groupby

import torch

Vector = torch.Tensor  # one dimension
Scalar = torch.Tensor  # no dimension
Sequence = list[Vector]

MIN_STD = 1e-4  # what softplus is lifted by
LAYER_NORM_EPS = 1e-5


@dataclass
class Source:
    """All that later parts need of x, one entry a source position."""

    embeddings: Sequence  # hidden_size
    states: Sequence  # hidden_size
    means: Sequence  # latent_dim, of p(z | x)
    stds: Sequence  # latent_dim, of p(z | x)


@dataclass
class Objective:
    """One pair's terms of the objective, in nats, and what they are made of."""

    source: Source
    posterior_means: Sequence
    posterior_stds: Sequence
    length_logits: Vector | None  # None with ctc
    logits: Sequence
    token_nll: Scalar  # -Σ_j log p(y_j | x, z, l_y); with ctc, -log p(y | x, z)
    smoothed_token_nll: Scalar
    position_kl: list[Scalar]  # KL[q(z_k | x, y) || p(z_k | x)], k = 1..|x|
    kl: Scalar
    budgeted_kl: Scalar  # Σ_k max(b, KL_k)
    length_nll: Scalar  # -log p(l_y | z, x); 0 with ctc

    @property
    def elbo(self) -> Scalar:
        """Eq. 5 with one sample of z."""
        return -self.token_nll - self.length_nll - self.kl

    @property
    def loss(self) -> Scalar:
        """Eq. 9, minimised: a sum over the pair, not yet divided by any number of tokens."""
        return self.smoothed_token_nll + self.length_nll + self.budgeted_kl


@dataclass
class Refinement:
    """What Algorithm 1 went through: entry t is y_t and the lower bound of step t."""

    targets: list[list[int]]
    lower_bounds: list[Scalar]

    @property
    def num_steps_taken(self) -> int:
        return len(self.targets) - 1


class ReferenceLvnar:
    """The four parts, the objective and the inference, for one sentence.

    Args:
        weights: the state dict of an `LvnarForConditionalGeneration`, float64.
        config: its `LvnarConfig`.
    """

    def __init__(self, weights: dict[str, torch.Tensor], config):
        self.weights = weights
        self.config = config
        joint = config.target_vocab_size is None
        self.source_embedding = "source_embedding"
        self.target_embedding = "source_embedding" if joint else "target_embedding"
        self.output_proj = self.target_embedding if config.tie_word_embeddings else "output_proj"

    # 1. Embedding: e_i = √d E[x_i] + position(i - 1), d the hidden size.

    def embed(self, ids: list[int], name: str) -> Sequence:
        embedding = self.weights[f"{name}.weight"]  # one row a token
        d = self.config.hidden_size
        return [math.sqrt(d) * embedding[token] + self.position(i) for i, token in enumerate(ids)]

    def position(self, i: int) -> Vector:
        """Sines of i / 10000^(2c/d) for c = 0..d/2-1, then the cosines (Vaswani et al., 2017, 3.5); i from 0."""
        d = self.config.hidden_size
        angles = [i / 10000 ** (2 * c / d) for c in range(d // 2)]
        return torch.tensor([math.sin(a) for a in angles] + [math.cos(a) for a in angles], dtype=torch.float64)

    # 2. Attention: head by head, context_i = Σ_k softmax_k(q_i · k_k / √d_head) v_k. Not causal: every i sees every k.

    def attention(self, name: str, inputs: Sequence, memory: Sequence) -> Sequence:
        d, num_heads = self.config.hidden_size, self.config.num_attention_heads
        d_head = d // num_heads
        queries = [self.linear(f"{name}.query_proj", v) for v in inputs]
        keys_and_values = [self.linear(f"{name}.key_value_proj", v) for v in memory]
        outputs = []
        for query in queries:
            contexts = []
            for head in range(num_heads):
                part = slice(head * d_head, (head + 1) * d_head)
                keys = [kv[:d][part] for kv in keys_and_values]
                values = [kv[d:][part] for kv in keys_and_values]
                shares = softmax(torch.stack([query[part] @ key / math.sqrt(d_head) for key in keys]))
                contexts.append(weighted_sum(shares, values))
            outputs.append(self.linear(f"{name}.output_proj", torch.cat(contexts)))
        return outputs

    # 3. Layer, norm first: v ← v + SelfAttention(norm v); v ← v + CrossAttention(norm v, memory); v ← v + FF(norm v).

    def layer(self, name: str, inputs: Sequence, memory: Sequence | None) -> Sequence:
        normed = [self.layer_norm(f"{name}.self_attention_norm", v) for v in inputs]
        states = add(inputs, self.attention(f"{name}.self_attention", normed, normed))
        if memory is not None:
            normed = [self.layer_norm(f"{name}.cross_attention_norm", v) for v in states]
            states = add(states, self.attention(f"{name}.cross_attention", normed, memory))
        normed = [self.layer_norm(f"{name}.feed_forward_norm", v) for v in states]
        return add(states, [self.feed_forward(f"{name}.feed_forward", v) for v in normed])

    def feed_forward(self, name: str, v: Vector) -> Vector:
        inner = self.linear(f"{name}.0", v)
        return self.linear(f"{name}.3", inner * (inner > 0))  # ReLU between

    # 4. Stack: layers, then a norm of its own.

    def stack(self, name: str, num_layers: int, inputs: Sequence, memory: Sequence | None = None) -> Sequence:
        states = inputs
        for i in range(num_layers):
            states = self.layer(f"{name}.layers.{i}", states, memory)
        return [self.layer_norm(f"{name}.final_norm", v) for v in states]

    # 5. Prior p(z | x): a Gaussian at every source position.

    def prior(self, x: list[int]) -> Source:
        embeddings = self.embed(x, self.source_embedding)
        states = self.stack("prior.encoder", self.config.num_prior_layers, embeddings)
        means, stds = self.gaussians("prior.gaussian_head", states)
        return Source(embeddings, states, means, stds)

    def gaussians(self, name: str, states: Sequence) -> tuple[Sequence, Sequence]:
        """Means, and standard deviations softplus(s) + 1e-4 = log(1 + e^s) + 1e-4."""
        outputs = [self.linear(name, v) for v in states]
        means = [o[: self.config.latent_dim] for o in outputs]
        stds = [torch.log(1 + torch.exp(o[self.config.latent_dim :])) + MIN_STD for o in outputs]
        return means, stds

    # 6. Approximate posterior q(z | x, y): encode y; from the embeddings of x, attend to it; a Gaussian as in 5.

    def posterior(self, source: Source, y: list[int]) -> tuple[Sequence, Sequence]:
        embeddings = self.embed(y, self.target_embedding)
        target_states = self.stack("posterior.target_encoder", self.config.num_posterior_encoder_layers, embeddings)
        states = self.stack(
            "posterior.source_decoder", self.config.num_posterior_decoder_layers, source.embeddings, target_states
        )
        return self.gaussians("posterior.gaussian_head", states)

    # 7. Length p(l_y | z, x): the mean over positions of [z_k ; h_k], linear; class c stands for l_y - |x| = c - L.

    def length_logits(self, source: Source, z: Sequence) -> Vector:
        features = [torch.cat([z_k, h_k]) for z_k, h_k in zip(z, source.states, strict=True)]
        return self.linear("length_predictor.proj", sum(features) / len(features))

    # 8. Length transform: z̄_j = Σ_k w_jk z_k (Eq. 6), w_jk = softmax_k(a_jk) (Eq. 7),
    #    a_jk = -(k - (|x| / l_y) j)² / (2σ²) (Eq. 8); j = 1..l_y and k = 1..|x|.

    def length_transform(self, z: Sequence, target_length: int) -> Sequence:
        sigma = torch.exp(self.weights["decoder.length_transform.log_sigma"])
        aligned = []
        for j in range(1, target_length + 1):
            a_j = [-((k - len(z) / target_length * j) ** 2) / (2 * sigma**2) for k in range(1, len(z) + 1)]
            aligned.append(weighted_sum(softmax(torch.stack(a_j)), z))
        return aligned

    # 9. Decoder p(y | x, z, l_y): carry z to l_y positions, into the hidden space, attend to the states of the prior.
    #    If the model carries them, the states h of the prior come along.

    def decode(self, source: Source, z: Sequence, target_length: int) -> Sequence:
        inputs = [
            self.linear("decoder.latent_proj", z_j) + self.position(i)
            for i, z_j in enumerate(self.length_transform(z, target_length))
        ]
        if self.config.carries_source_states:
            carried = self.length_transform(source.states, target_length)
            inputs = add(inputs, [self.linear("decoder.state_proj", h_j) for h_j in carried])
        states = self.stack("decoder.stack", self.config.num_decoder_layers, inputs, source.states)
        return [self.weights[f"{self.output_proj}.weight"] @ v for v in states]

    # 9b. Alignment "ctc": T cells instead of l_y positions. p(y | x, z) = Σ_a Π_t p(a_t | x, z) over all a of T cells
    #     with collapse(a) = y, by the recursion of Graves et al. (2006), Eq. 5 to 8, on l = ∅ y_1 ∅ y_2 … y_L ∅.

    def num_cells(self, x_length: int) -> int:
        return math.ceil(self.config.upsampling_ratio * x_length)

    def ctc_log_likelihood(self, log_probs: Sequence, y: list[int]) -> Scalar:
        blank = self.config.pad_token_id
        states = [blank]
        for token in y:
            states += [token, blank]
        alpha = [log_probs[0][state].exp() if s < 2 else torch.zeros(()) for s, state in enumerate(states)]
        for log_probs_t in log_probs[1:]:
            before, alpha = alpha, []
            for s, state in enumerate(states):
                arrivals = before[s]
                if s >= 1:
                    arrivals = arrivals + before[s - 1]
                if s >= 2 and state != blank and state != states[s - 2]:
                    arrivals = arrivals + before[s - 2]
                alpha.append(arrivals * log_probs_t[state].exp())
        return torch.log(alpha[-1] + alpha[-2])

    # 10. Objective (Eq. 5 and 9) for one pair: z_k = μ_k + σ_k ε_k with (μ, σ) of q, or z_k = μ_k without noise.

    def objective(
        self,
        x: list[int],
        y: list[int],
        noise: Sequence | None = None,
        kl_budget: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> Objective:
        source = self.prior(x)
        means, stds = self.posterior(source, y)
        z = means if noise is None else [m + s * e for m, s, e in zip(means, stds, noise, strict=True)]
        is_ctc = self.config.alignment == "ctc"
        logits = self.decode(source, z, self.num_cells(len(x)) if is_ctc else len(y))
        log_probs = [log_softmax(logits_j) for logits_j in logits]
        if is_ctc:
            token_nll = -self.ctc_log_likelihood(log_probs, y)
        else:
            token_nll = -sum(log_probs_j[token] for token, log_probs_j in zip(y, log_probs, strict=True))
        uniform = -sum(sum(log_probs_j) / len(log_probs_j) for log_probs_j in log_probs)
        smoothed_token_nll = (1 - label_smoothing) * token_nll + label_smoothing * uniform
        length_logits, length_nll = None, torch.zeros(())
        if not is_ctc:
            length_logits = self.length_logits(source, z)
            length_nll = -log_softmax(length_logits)[len(y) - len(x) + self.config.max_length_offset]

        # One number a source position: the latent dimensions are summed before the budget applies.
        position_kl = [gaussian_kl(means[k], stds[k], source.means[k], source.stds[k]) for k in range(len(x))]
        budgeted_kl = sum(max(kl_budget, kl_k) for kl_k in position_kl)
        return Objective(
            source=source,
            posterior_means=means,
            posterior_stds=stds,
            length_logits=length_logits,
            logits=logits,
            token_nll=token_nll,
            smoothed_token_nll=smoothed_token_nll,
            position_kl=position_kl,
            kl=sum(position_kl),
            budgeted_kl=budgeted_kl,
            length_nll=length_nll,
        )

    # 11. Algorithm 1: μ_0 = E_p(z | x)[z], y_0 = argmax p(y | x, μ_0); for t = 1..T: μ_t = E_q(z | x, y_{t-1})[z],
    #     y_t = argmax p(y | x, μ_t); stop when y_t = y_{t-1}. A new length in every step.

    def translate(self, x: list[int], num_refinement_steps: int) -> Refinement:
        source = self.prior(x)
        y, bound = self.likeliest_target(source, source.means)
        steps = Refinement([y], [bound])
        for _ in range(num_refinement_steps):
            previous = y
            means, _ = self.posterior(source, previous)
            y, bound = self.likeliest_target(source, means)
            steps.targets.append(y)
            steps.lower_bounds.append(bound)
            if y == previous:
                break
        return steps

    def likeliest_target(self, source: Source, z: Sequence) -> tuple[list[int], Scalar]:
        """y = argmax p(y | x, z), its length first, and the deterministic lower bound (Eq. 12):
        log p(y | x, z, l_y) + log p(l_y | z, x) + log p(z | x). With ctc, y is spelt by the likeliest cells, which
        are those of logits with less for blank, and the bound is log p(y | x, z) + log p(z | x)."""
        log_prior = sum(
            gaussian_log_density(z_k, mean, std) for z_k, mean, std in zip(z, source.means, source.stds, strict=True)
        )
        if self.config.alignment == "ctc":
            logits = self.decode(source, z, self.num_cells(len(z)))
            log_probs = [log_softmax(logits_t) for logits_t in logits]
            y = collapse(self.likeliest_cells(logits), self.config.pad_token_id)
            y = y[: self.config.max_position_embeddings] or [self.config.eos_token_id]
            return y, self.ctc_log_likelihood(log_probs, y) + log_prior
        length_log_probs = log_softmax(self.length_logits(source, z))
        length_class = int(length_log_probs.argmax())
        target_length = len(source.states) + length_class - self.config.max_length_offset
        assert target_length >= 1, "choose a source of more than max_length_offset tokens"
        bound = length_log_probs[length_class]
        y = []
        for logits_j in self.decode(source, z, target_length):
            log_probs = log_softmax(logits_j)
            # Padding is no word: the likeliest of the others, with its probability under the model.
            words = [token for token in range(len(log_probs)) if token != self.config.pad_token_id]
            y.append(max(words, key=log_probs.tolist().__getitem__))
            bound = bound + log_probs[y[-1]]
        return y, bound + log_prior

    def likeliest_cells(self, logits: list[Vector]) -> list[int]:
        """argmax of each cell's logits, with less for blank: but in a run of equal words those alone that are words
        without that, if there are any. (Ties are another matter: the lower id has them here, blank in the model.)"""
        blank = self.config.pad_token_id
        plain = [int(logits_t.argmax()) for logits_t in logits]
        lowered = [logits_t.clone() for logits_t in logits]
        for logits_t in lowered:
            logits_t[blank] -= self.config.blank_penalty
        cells: list[int] = []
        for word, run in groupby(range(len(logits)), key=lambda t: int(lowered[t].argmax())):
            places = list(run)
            is_word_anyway = word != blank and any(plain[t] == word for t in places)
            cells += [plain[t] if is_word_anyway else word for t in places]
        return cells

    # What the parts are made of.

    def linear(self, name: str, v: Vector) -> Vector:
        return self.weights[f"{name}.weight"] @ v + self.weights[f"{name}.bias"]

    def layer_norm(self, name: str, v: Vector) -> Vector:
        mean = v.sum() / len(v)
        variance = ((v - mean) ** 2).sum() / len(v)
        normed = (v - mean) / torch.sqrt(variance + LAYER_NORM_EPS)
        return self.weights[f"{name}.weight"] * normed + self.weights[f"{name}.bias"]


def softmax(scores: Vector) -> Vector:
    exponentials = torch.exp(scores - scores.max())
    return exponentials / exponentials.sum()


def log_softmax(scores: Vector) -> Vector:
    highest = scores.max()
    return scores - highest - torch.log(torch.exp(scores - highest).sum())


def weighted_sum(weights: Vector, vectors: Sequence) -> Vector:
    return sum(weight * vector for weight, vector in zip(weights, vectors, strict=True))


def add(left: Sequence, right: Sequence) -> Sequence:
    return [a + b for a, b in zip(left, right, strict=True)]


def gaussian_kl(q_mean: Vector, q_std: Vector, p_mean: Vector, p_std: Vector) -> Scalar:
    """KL[N(q_mean, q_std²) || N(p_mean, p_std²)] = Σ_d log(σ_p / σ_q) + (σ_q² + (μ_q - μ_p)²) / (2σ_p²) - 1/2."""
    kl = 0.0
    for m_q, s_q, m_p, s_p in zip(q_mean, q_std, p_mean, p_std, strict=True):
        kl = kl + torch.log(s_p / s_q) + (s_q**2 + (m_q - m_p) ** 2) / (2 * s_p**2) - 1 / 2
    return kl


def gaussian_log_density(z: Vector, mean: Vector, std: Vector) -> Scalar:
    """log N(z; mean, std²) = Σ_d -(z - μ)² / (2σ²) - log σ - log(2π) / 2."""
    density = 0.0
    for value, m, s in zip(z, mean, std, strict=True):
        density = density - (value - m) ** 2 / (2 * s**2) - torch.log(s) - math.log(2 * math.pi) / 2
    return density


# 12. KL budget b at optimizer step s of M (Eq. 10).


def kl_budget_at(s: int, M: int) -> float:
    return 1.0 if s < M / 2 else (M - s) / (M / 2)


# 13. Collapse: merge equal neighbours, then remove blanks.


def collapse(cells: list[int], blank: int) -> list[int]:
    merged = [token for t, token in enumerate(cells) if t == 0 or token != cells[t - 1]]
    return [token for token in merged if token != blank]


# 14. Before scoring, the first of consecutive equal tokens is kept.


def remove_repetitions(y: list[int]) -> list[int]:
    return [token for i, token in enumerate(y) if i == 0 or token != y[i - 1]]
