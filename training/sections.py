"""The sections of a recipe and their keys; `recipe.py` reads them from a file and from flags."""

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # they import torch, which `--help` does not wait for
    from transformers import MarianConfig

    from lvnar_hf import LvnarConfig


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be {', '.join(allowed[:-1])} or {allowed[-1]}.")


@dataclass
class DataArguments:
    """Section `data`: the text, its pairs from one of four kinds of source, and what is kept of it.

    Text files (`train_source_files` and its three companions), rows with a `translation` column in JSON lines or
    parquet (`train_files`, `valid_files`), a dataset of the Hub or a local mirror of one (`dataset`), or ASPEC as it is
    distributed (`aspec_folder`).
    """

    source_language: str | None = field(default=None, metadata={"help": "code, for example en: key of `translation`"})
    target_language: str | None = field(default=None, metadata={"help": "code, for example de: key of `translation`"})
    train_source_files: list[str] = field(
        default_factory=list, metadata={"help": "training text, source side: line-aligned files, plain or .gz"}
    )
    train_target_files: list[str] = field(default_factory=list, metadata={"help": "training text, target side"})
    valid_source_files: list[str] = field(default_factory=list, metadata={"help": "validation text, source side"})
    valid_target_files: list[str] = field(default_factory=list, metadata={"help": "validation text, target side"})
    train_files: list[str] = field(
        default_factory=list, metadata={"help": "JSON lines or parquet with a translation column, for training"}
    )
    valid_files: list[str] = field(default_factory=list, metadata={"help": "the same, for validation"})
    dataset: str | None = field(
        default=None, metadata={"help": "dataset of the Hub, or a folder that mirrors one, with a translation column"}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "its configuration, for example de-en"})
    dataset_revision: str | None = field(default=None, metadata={"help": "its revision: branch, tag or commit"})
    train_split: str = field(default="train", metadata={"help": "its split for training"})
    valid_split: str = field(default="validation", metadata={"help": "its split for validation"})
    streaming: bool = field(default=False, metadata={"help": "read a dataset of the Hub without a copy on disk"})
    aspec_folder: str | None = field(default=None, metadata={"help": "ASPEC-JE: the folder with train, dev and test"})
    aspec_parts: list[int] = field(
        default_factory=lambda: [1, 2, 3], metadata={"help": "which of ASPEC's training files, best aligned first"}
    )
    monolingual_source_files: list[str] = field(
        default_factory=list,
        metadata={"help": "source text without a translation, plain or .gz: distil.py translates it too"},
    )
    max_train_rows: int | None = field(default=None, metadata={"help": "training pairs read at most; null: all"})
    max_sentence_length: int = field(
        default=60, metadata={"help": "longest side of a training pair, in tokens; longer pairs are left out"}
    )
    max_length_ratio: float = field(
        default=0.0, metadata={"help": "largest ratio of the longer to the shorter side, in tokens; 0: any"}
    )
    remove_duplicates: bool = field(
        default=False, metadata={"help": "leave out pairs seen before in the training text"}
    )
    tokenizer_folder: str | None = field(
        default=None, metadata={"help": "the tokenizer: tokenizer.py writes it, everything after reads it"}
    )
    distilled_folder: str | None = field(
        default=None, metadata={"help": "the teacher's translations: distil.py writes them, train.py reads them"}
    )
    back_translated_folder: str | None = field(
        default=None,
        metadata={
            "help": "text in the target language, translated by a teacher of the other direction: distil.py writes it; "
            "training on raw text takes its pairs too, after its own, turned round"
        },
    )
    cache_folder: str | None = field(
        default=None,
        metadata={"help": "tokenised pairs are kept here; null: beside the cache of `datasets`"},
    )
    num_workers: int = field(default=2, metadata={"help": "processes that tokenise"})


@dataclass
class AugmentationArguments:
    """Section `augmentation`: pairs that are added to the training text, made of its own; by default none.

    Each `augment_` says how many pairs of the kind are added for each pair that the kind can be made of: 0.1 is for one
    in ten, 2.5 is two or three for each.
    """

    augment_numbers: float = field(
        default=0.0, metadata={"help": "other figures, times and prices in place of those that both sides have"}
    )
    augment_number_words: float = field(
        default=0.0, metadata={"help": "figures in place of number words that say the same on both sides"}
    )
    augment_names: float = field(default=0.0, metadata={"help": "other names in place of those that both sides have"})
    augment_placeholders: float = field(
        default=0.0, metadata={"help": "placeholders in place of names and figures that both sides have"}
    )
    augment_outer_placeholders: float = field(
        default=0.0, metadata={"help": "a placeholder before or after the text on both sides"}
    )
    augment_joined: float = field(
        default=0.0, metadata={"help": "the sentence joined to the one or the two before it, on both sides"}
    )
    augment_informal: float = field(
        default=0.0, metadata={"help": "first capital, final full stop or both left out on both sides"}
    )
    augment_capitals: float = field(default=0.0, metadata={"help": "all in capitals on both sides"})
    max_joined_words: int = field(default=30, metadata={"help": "longest side of joined sentences, in words or so"})
    augmentation_seed: int = field(default=1, metadata={"help": "of what is added"})

    def __post_init__(self) -> None:
        for kind, rate in self.rates.items():
            if rate < 0:
                raise ValueError(f"augment_{kind} is {rate}; it must be 0 (none) or more.")
        if self.augmentation_seed < 0:
            raise ValueError(f"augmentation_seed is {self.augmentation_seed}; it must be at least 0.")

    @property
    def rates(self) -> dict[str, float]:
        """How many pairs of each kind are added for each pair that it can be made of."""
        values = dataclasses.asdict(self)
        return {name.removeprefix("augment_"): value for name, value in values.items() if name.startswith("augment_")}


@dataclass
class TokenizerArguments:
    """Section `tokenizer`: how the vocabulary is made; it goes to `tokenizer_folder` of section `data`."""

    algorithm: str = field(default="bpe", metadata={"help": "bpe, or sentencepiece (unigram, NMT-NFKC)"})
    vocab_size: int = field(default=8000, metadata={"help": "ids of the joint, or else of the source vocabulary"})
    target_vocab_size: int | None = field(
        default=None, metadata={"help": "ids of the target vocabulary with --joint false; vocab_size if not given"}
    )
    joint: bool = field(default=True, metadata={"help": "whether both sides have one vocabulary, or each its own"})
    normalization: str = field(default="nfc", metadata={"help": "Unicode form, for bpe: nfc, nfkc or none"})
    min_character_count: int = field(default=5, metadata={"help": "rarer characters are spelt in bytes"})
    source_segmenter: str = field(
        default="none", metadata={"help": "words of the source before subwords: none, moses, fugashi or kytea"}
    )
    target_segmenter: str = field(default="none", metadata={"help": "the same for the target"})
    kytea_model: str | None = field(default=None, metadata={"help": "KyTea's model file, for the segmenter kytea"})
    max_length: int = field(default=512, metadata={"help": "stored with the tokenizer: longest sequence in tokens"})
    list_translated_words: bool = field(
        default=False,
        metadata={
            "help": "store the words of the text that are no names, so that other capitalised words are kept as "
            "they are; for two languages in Latin letters of which the source writes nouns small"
        },
    )
    overwrite: bool = field(default=False, metadata={"help": "write into a tokenizer folder that is not empty"})


@dataclass
class TeacherArguments:
    """Section `teacher`: sizes of the autoregressive Transformer, `MarianMTModel`; by default the base model's."""

    hidden_size: int = field(default=512, metadata={"help": "width of every layer"})
    intermediate_size: int = field(default=2048, metadata={"help": "width of the feed-forward blocks"})
    num_attention_heads: int = field(default=8, metadata={"help": "heads of every attention"})
    num_encoder_layers: int = field(default=6, metadata={"help": "layers over the source; 12 for a deep encoder"})
    num_decoder_layers: int = field(default=6, metadata={"help": "layers over the target; 1 for a shallow decoder"})
    max_position_embeddings: int = field(default=512, metadata={"help": "longest source or target in tokens"})
    dropout: float = field(default=0.1, metadata={"help": "dropout probability"})
    attention_dropout: float = field(default=0.0, metadata={"help": "dropout probability of attention weights"})

    def to_config(self, vocab_size: int, target_vocab_size: int | None) -> "MarianConfig":
        """The teacher's configuration, for a tokenizer of these sizes and this package's special ids."""
        from transformers import MarianConfig

        return MarianConfig(
            vocab_size=vocab_size,
            decoder_vocab_size=target_vocab_size or vocab_size,
            share_encoder_decoder_embeddings=target_vocab_size is None,
            d_model=self.hidden_size,
            encoder_layers=self.num_encoder_layers,
            decoder_layers=self.num_decoder_layers,
            encoder_attention_heads=self.num_attention_heads,
            decoder_attention_heads=self.num_attention_heads,
            encoder_ffn_dim=self.intermediate_size,
            decoder_ffn_dim=self.intermediate_size,
            max_position_embeddings=self.max_position_embeddings,
            activation_function="relu",
            dropout=self.dropout,
            attention_dropout=self.attention_dropout,
            activation_dropout=0.0,
            scale_embedding=True,
            pad_token_id=0,
            eos_token_id=1,
            bos_token_id=None,
            decoder_start_token_id=0,
            forced_eos_token_id=None,
        )


@dataclass
class DistillationArguments:
    """Section `distillation`: how the teacher translates the training text, into section data's `distilled_folder`."""

    teacher: str | None = field(default=None, metadata={"help": "sequence-to-sequence model, folder or Hub id"})
    teacher_revision: str | None = field(default=None, metadata={"help": "its revision: branch, tag or commit"})
    engine: str = field(
        default="auto", metadata={"help": "ctranslate2, transformers, or auto: the first if it is installed"}
    )
    compute_type: str = field(default="default", metadata={"help": "of CTranslate2: default, float32, int8, float16"})
    num_beams: int = field(default=4, metadata={"help": "hypotheses of the beam search"})
    length_penalty: float = field(default=1.0, metadata={"help": "exponent of the length that scores are divided by"})
    max_target_length: int = field(default=100, metadata={"help": "tokens at which a translation is cut"})
    max_batch_tokens: int = field(default=4096, metadata={"help": "padded source tokens translated at once"})
    student: str | None = field(
        default=None,
        metadata={"help": "folder of a model with alignment ctc, from whose beam the teacher chooses; null: none"},
    )
    student_beam_size: int = field(default=16, metadata={"help": "of the student"})
    student_refinement_steps: int = field(default=1, metadata={"help": "of the student, before its beam"})
    student_least_log_prob: float = field(
        default=-0.8,
        metadata={
            "help": "mean log probability of a token of the student's translation, by the teacher, in nats; with less, "
            "or with other digits than the source, the teacher translates itself, by `engine`"
        },
    )
    only_monolingual: bool = field(
        default=False, metadata={"help": "translate `monolingual_source_files` alone, as for back-translation"}
    )
    shard_size: int = field(default=8192, metadata={"help": "sentences a file: what is lost at most when killed"})
    on_degenerate: str = field(
        default="reference",
        metadata={"help": "for an empty, looping or cut translation: reference (take the text's own), drop or keep"},
    )
    overwrite: bool = field(default=False, metadata={"help": "throw away what another distillation left there"})
    num_processes: int | None = field(default=None, metadata={"help": "null: one a GPU, or one; on a cluster a shard"})
    executor: str = field(default="local", metadata={"help": "local, or a cluster's that sees the files: slurm or ray"})
    executor_options: list[str] = field(
        default_factory=list, metadata={"help": "name=value each, of datatrove's executor of the cluster"}
    )

    def __post_init__(self) -> None:
        _check_choice("engine", self.engine, ("auto", "ctranslate2", "transformers"))
        _check_choice("on_degenerate", self.on_degenerate, ("reference", "drop", "keep"))


@dataclass
class ModelArguments:
    """Section `model`: the sizes of `LvnarConfig`; the defaults are the paper's."""

    hidden_size: int = field(default=512, metadata={"help": "width of every layer"})
    intermediate_size: int = field(default=2048, metadata={"help": "width of the feed-forward blocks"})
    num_attention_heads: int = field(default=8, metadata={"help": "heads of every attention"})
    num_prior_layers: int = field(default=6, metadata={"help": "prior: layers over the source"})
    num_posterior_encoder_layers: int = field(default=3, metadata={"help": "posterior: layers over the target"})
    num_posterior_decoder_layers: int = field(default=3, metadata={"help": "posterior: layers over the source"})
    num_decoder_layers: int = field(default=3, metadata={"help": "decoder: layers over the target positions"})
    latent_dim: int = field(default=8, metadata={"help": "latent dimensions per source position"})
    alignment: str = field(
        default="length", metadata={"help": "how long a translation is: length (predicted, the paper) or ctc"}
    )
    upsampling_ratio: float = field(default=2.0, metadata={"help": "ctc: cells per source token"})
    carries_source_states: bool = field(
        default=False, metadata={"help": "source states go to the decoder's positions beside the latents"}
    )
    max_length_offset: int = field(default=50, metadata={"help": "largest |target length - source length|"})
    max_position_embeddings: int = field(default=512, metadata={"help": "longest source or target in tokens"})
    tie_word_embeddings: bool = field(default=True, metadata={"help": "output projection = target embedding"})
    dropout: float = field(default=0.1, metadata={"help": "dropout probability"})
    attention_dropout: float = field(default=0.0, metadata={"help": "dropout probability of attention weights"})

    def to_config(self, vocab_size: int, target_vocab_size: int | None) -> "LvnarConfig":
        """The model's configuration, for a tokenizer of these sizes."""
        from lvnar_hf import LvnarConfig

        return LvnarConfig(vocab_size=vocab_size, target_vocab_size=target_vocab_size, **dataclasses.asdict(self))


@dataclass
class OptimizationArguments:
    """Sections `teacher_training`, `training` and `finetuning`: one run each."""

    train_on: str = field(default="raw", metadata={"help": "raw (the text of section data) or distilled"})
    initial_model: str | None = field(
        default=None, metadata={"help": "model folder to start from; null: random weights of section model's sizes"}
    )
    initial_layers: str | None = field(
        default=None,
        metadata={"help": "model folder whose layers to start from, for any languages; its embeddings are left out"},
    )
    initial_embeddings: str | None = field(
        default=None,
        metadata={"help": "folder of a teacher with the same tokenizer, whose embeddings to start from"},
    )
    output_folder: str | None = field(default=None, metadata={"help": "checkpoints, best model and log go here"})
    overwrite: bool = field(default=False, metadata={"help": "write into an output folder that is not empty"})
    resume: bool = field(default=False, metadata={"help": "go on with the run in the output folder"})
    save_every_steps: int = field(
        default=0,
        metadata={"help": "steps between states to resume from; there is one after each validation in any case"},
    )
    max_steps: int = field(default=100_000, metadata={"help": "M: optimizer steps of the whole run"})
    max_epochs: int | None = field(
        default=None, metadata={"help": "passes over the data; if given, M is their number of steps"}
    )
    max_minutes: float | None = field(
        default=None,
        metadata={"help": "running time, validations included; if given, the run ends with it, at whatever step"},
    )
    max_tokens_per_batch: int = field(
        default=8192, metadata={"help": "padded tokens per side in the batch of one process"}
    )
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "batches a process adds up before a step"})
    learning_rate: float = field(default=7e-4, metadata={"help": "peak, reached after the warm-up"})
    warmup_steps: int = field(default=4000, metadata={"help": "steps of linear warm-up; then inverse square root"})
    cooldown_steps: int = field(default=0, metadata={"help": "last steps, in which the rate falls linearly to 0 too"})
    cooldown_share: float = field(
        default=0.0, metadata={"help": "the same as a share of the run, of its steps or minutes; 0: cooldown_steps"}
    )
    adam_epsilon: float = field(default=1e-8, metadata={"help": "Adam's ε; its betas are 0.9 and 0.98"})
    max_grad_norm: float = field(default=1.0, metadata={"help": "gradients are clipped to this norm; 0: never"})
    label_smoothing: float = field(default=0.1, metadata={"help": "weight of the uniform distribution"})
    initial_kl_budget: float = field(default=1.0, metadata={"help": "b while s < M/2, nats per source position"})
    final_kl_budget: float = field(default=0.0, metadata={"help": "b at M, to which it falls linearly from M/2"})
    initial_glancing_ratio: float = field(default=0.0, metadata={"help": "share of wrong cells shown (alignment ctc)"})
    final_glancing_ratio: float = field(default=0.0, metadata={"help": "the same at the end, reached linearly"})
    bigram_weight: float = field(
        default=0.0, metadata={"help": "share of the loss of bigrams in the likelihood's place (alignment ctc; NMLA)"}
    )
    own_output_share: float = field(default=0.0, metadata={"help": "share of posteriors that see the model's output"})
    prior_share: float = field(
        default=0.0, metadata={"help": "share of sentences whose latents are drawn from the prior"}
    )
    mixed_precision: str = field(default="no", metadata={"help": "no, bf16 or fp16"})
    torch_compile: bool = field(default=False, metadata={"help": "compile the model, for inputs of any length"})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "recompute layers to save memory"})
    seed: int = field(default=1, metadata={"help": "of initial weights, data order, dropout and latent noise"})
    validate_every_steps: int = field(
        default=0, metadata={"help": "steps between validations, each with a checkpoint; 0: one after each epoch"}
    )
    validate_every_minutes: float = field(
        default=0.0, metadata={"help": "the same in minutes, for a run that is given max_minutes"}
    )
    keep_last_checkpoints: int = field(default=3, metadata={"help": "newest checkpoints kept; best is apart"})
    keep_best_checkpoints: int = field(
        default=0, metadata={"help": "checkpoints kept beside them for their validation: the best by what selects best"}
    )
    loading_workers: int = field(
        default=0, metadata={"help": "processes that put batches together ahead of the training one; 0: none"}
    )
    log_every_steps: int = field(default=50, metadata={"help": "steps between lines of log.jsonl"})
    tensorboard: bool = field(default=False, metadata={"help": "write the log for TensorBoard too"})
    valid_bleu_sentences: int = field(
        default=500, metadata={"help": "sentences translated at each validation, evenly spaced; 0: none"}
    )

    def __post_init__(self) -> None:
        _check_choice("train_on", self.train_on, ("raw", "distilled"))
        _check_choice("mixed_precision", self.mixed_precision, ("no", "bf16", "fp16"))
        if self.max_epochs is not None and self.max_epochs < 1:
            raise ValueError(f"max_epochs is {self.max_epochs}; it must be at least 1, or null.")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise ValueError(f"max_minutes is {self.max_minutes}; it must be greater than 0, or null.")
        if self.cooldown_steps and (self.cooldown_share or self.max_minutes is not None):
            raise ValueError(
                f"cooldown_steps is {self.cooldown_steps}; it must be 0 where cooldown_share or max_minutes is given: "
                "the steps of a run of minutes are not known, so give its cooldown as a share."
            )
        if self.validate_every_minutes and (self.validate_every_steps or self.max_minutes is None):
            raise ValueError(
                f"validate_every_minutes is {self.validate_every_minutes}; it must be 0 without max_minutes and with "
                "validate_every_steps: give one of the two."
            )
        for name, most in (
            ("cooldown_share", 1.0),
            ("initial_glancing_ratio", 1.0),
            ("final_glancing_ratio", 1.0),
            ("bigram_weight", 1.0),
            ("own_output_share", 1.0),
            ("prior_share", 1.0),
            ("final_kl_budget", self.initial_kl_budget),
        ):
            if not 0 <= getattr(self, name) <= most:
                limit = "initial_kl_budget, " if name == "final_kl_budget" else ""
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from 0 to {limit}{most}.")
        at_least_one = ("max_steps", "max_tokens_per_batch", "gradient_accumulation_steps", "log_every_steps")
        if self.initial_model is not None and (self.initial_layers or self.initial_embeddings):
            raise ValueError("Give initial_model, or initial_layers and initial_embeddings: not both.")
        for name, least in (
            *((name, 1) for name in at_least_one),
            ("keep_last_checkpoints", 0),
            ("keep_best_checkpoints", 0),
            ("save_every_steps", 0),
            ("validate_every_steps", 0),
            ("validate_every_minutes", 0),
            ("loading_workers", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}.")

    def forget_initial_weights(self) -> None:
        """Begin with random ones: a step costs the same whatever they are."""
        self.initial_model = self.initial_layers = self.initial_embeddings = None
