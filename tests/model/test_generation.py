"""`generate` on the real model: batches, padding, determinism, outputs, and options that are refused.

Algorithm 1 itself is worked out on paper in test_reference.py.
"""

import pytest
import torch
from conftest import make_batch, make_model, tiny_config
from transformers import GenerationConfig

from lvnar_hf import LvnarForConditionalGeneration
from lvnar_hf.generation_lvnar import without_repetitions

LENGTHS = [(1 + (7 * row) % 19, 1) for row in range(64)]


def trimmed(sequences: torch.Tensor, pad_token_id: int = 0) -> list[list[int]]:
    return [[token for token in row if token != pad_token_id] for row in sequences.tolist()]


@pytest.mark.parametrize("changes", [{}, {"target_vocab_size": 45}], ids=["joint", "separate"])
@pytest.mark.parametrize("num_steps", [0, 1, 4])
def test_the_same_tokens_whatever_the_batch(changes, num_steps):
    model = make_model(tiny_config(**changes))
    batch = make_batch(model.config, LENGTHS)
    inputs = {n: batch[n] for n in ("input_ids", "attention_mask")}
    whole = trimmed(model.generate(**inputs, num_refinement_steps=num_steps))
    assert whole == trimmed(model.generate(**inputs, num_refinement_steps=num_steps))  # two runs
    for size in (1, 7):
        pieces = []
        for start in range(0, 64, size):
            piece = {n: t[start : start + size] for n, t in inputs.items()}
            longest = int(piece["attention_mask"].sum(-1).max())
            pieces += trimmed(
                model.generate(**{n: t[:, :longest] for n, t in piece.items()}, num_refinement_steps=num_steps)
            )
        assert pieces == whole
    padded = {n: torch.nn.functional.pad(t, (0, 9)) for n, t in inputs.items()}
    assert trimmed(model.generate(**padded, num_refinement_steps=num_steps)) == whole
    assert trimmed(model.generate(inputs["input_ids"], num_refinement_steps=num_steps)) == whole  # mask from padding


def test_the_dictionary_holds_every_step(tiny_model):
    batch = make_batch(tiny_model.config, LENGTHS)
    output = tiny_model.generate(
        batch["input_ids"],
        num_refinement_steps=6,
        remove_repetitions=False,
        return_dict_in_generate=True,
        output_scores=True,
    )
    num_steps = len(output.sequences_per_step) - 1
    assert output.lower_bounds.shape == (64, num_steps + 1) and torch.isfinite(output.lower_bounds).all()
    assert output.num_steps_taken.max() == num_steps and output.num_steps_taken.min() >= 1
    assert trimmed(output.sequences) == trimmed(output.sequences_per_step[-1])
    steps = [trimmed(s) for s in output.sequences_per_step]
    for row, taken in enumerate(output.num_steps_taken.tolist()):
        history = [step[row] for step in steps]
        # Every step but the last changed something; a sentence that stopped keeps its translation.
        assert all(history[t] != history[t - 1] for t in range(1, taken))
        assert taken == 6 or history[taken] in history[:taken]
        assert all(later == history[taken] for later in history[taken:])
        if taken < num_steps:
            assert torch.equal(
                output.lower_bounds[row, taken:], output.lower_bounds[row, taken].expand(num_steps + 1 - taken)
            )
    for steps_allowed in range(num_steps + 1):
        fewer = tiny_model.generate(batch["input_ids"], num_refinement_steps=steps_allowed, remove_repetitions=False)
        for row, taken in enumerate(output.num_steps_taken.tolist()):
            if taken >= steps_allowed or steps[taken][row] == steps[taken - 1][row]:  # else it alternates
                assert trimmed(fewer)[row] == steps[steps_allowed][row]


def test_lower_bound_is_that_of_the_model_forward(tiny_model):
    """At a fixed point q(z | x, y_t) has the mean μ_t in use: the bound's terms are then those of the forward pass."""
    batch = make_batch(tiny_model.config, LENGTHS)
    inputs = {n: batch[n] for n in ("input_ids", "attention_mask")}
    output = tiny_model.generate(
        **inputs, num_refinement_steps=8, remove_repetitions=False, return_dict_in_generate=True, output_scores=True
    )
    steps = [trimmed(s) for s in output.sequences_per_step]
    taken = output.num_steps_taken.tolist()
    stopped = torch.tensor([t < 8 and steps[t][row] == steps[t - 1][row] for row, t in enumerate(taken)])
    assert stopped.sum() >= 10
    labels = output.sequences.masked_fill(output.sequences == 0, -100)
    forward = tiny_model(**{n: t[stopped] for n, t in inputs.items()}, labels=labels[stopped])
    prior = torch.distributions.Normal(forward.prior_means, forward.prior_stds)
    densities = prior.log_prob(forward.posterior_means).sum(-1) * inputs["attention_mask"][stopped]
    expected = -forward.token_nll - forward.length_nll + densities.sum(-1)
    torch.testing.assert_close(output.lower_bounds[stopped, -1], expected, atol=1e-3, rtol=1e-4)


def test_repetitions_are_removed_within_the_sentence():
    sequences = torch.tensor([[5, 5, 6, 5, 1], [7, 7, 7, 7, 7], [4, 5, 6, 7, 1], [4, 4, 0, 0, 0]])
    expected = torch.tensor([[5, 6, 5, 1, 0], [7, 0, 0, 0, 0], [4, 5, 6, 7, 1], [4, 0, 0, 0, 0]])
    assert torch.equal(without_repetitions(sequences, "tokens", 0), expected)
    assert torch.equal(without_repetitions(sequences[[1, 3]], "tokens", 0), torch.tensor([[7], [4]]))


def test_decoding_defaults_live_in_the_generation_config(tmp_path, tiny_model):
    batch = make_batch(tiny_model.config, LENGTHS)
    by_argument = {
        t: tiny_model.generate(batch["input_ids"], num_refinement_steps=t, remove_repetitions="tokens") for t in (0, 3)
    }
    assert not torch.equal(by_argument[0], by_argument[3])
    tiny_model.generation_config.num_refinement_steps = 3
    tiny_model.generation_config.remove_repetitions = False
    tiny_model.save_pretrained(tmp_path)
    loaded = LvnarForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded.generate(batch["input_ids"], remove_repetitions="tokens"), by_argument[3])
    assert loaded.generation_config.remove_repetitions is False
    # A configuration changes what it says, and leaves the rest to the model's own.
    no_steps = GenerationConfig(num_refinement_steps=0, remove_repetitions="tokens")
    assert torch.equal(loaded.generate(batch["input_ids"], generation_config=no_steps), by_argument[0])
    removal = GenerationConfig(remove_repetitions="tokens")
    assert torch.equal(loaded.generate(batch["input_ids"], generation_config=removal), by_argument[3])
    assert torch.equal(loaded.generate(batch["input_ids"], removal, num_refinement_steps=0), by_argument[0])


def test_max_length_limits_the_length_that_is_predicted(tiny_model):
    batch = make_batch(tiny_model.config, LENGTHS)
    options = {"num_refinement_steps": 0, "remove_repetitions": False}
    options |= {"return_dict_in_generate": True, "output_scores": True}
    output = tiny_model.generate(batch["input_ids"], max_length=3, **options)
    source = tiny_model.encode(batch["input_ids"], batch["attention_mask"])
    logits = tiny_model.predict_length(source, source.prior_means)
    expected = []
    for row, (source_length, _) in enumerate(LENGTHS):
        classes = {length: length - source_length + tiny_model.config.max_length_offset for length in (1, 2, 3)}
        expected.append(max(classes, key=lambda length: logits[row, classes[length]]))
    assert [len(tokens) for tokens in trimmed(output.sequences)] == expected
    assert set(expected) > {1} and torch.isfinite(output.lower_bounds).all()


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_beams": 3},
        {"num_return_sequences": 2},
        {"do_sample": True},
        {"temperature": 0.7},
        {"top_k": 5},
        {"top_p": 0.9},
        {"length_penalty": 0.6},
        {"repetition_penalty": 1.2},
        {"no_repeat_ngram_size": 3},
        {"max_new_tokens": 20},
        {"min_length": 4},
        {"bad_words_ids": [[5]]},
        {"forced_eos_token_id": 1},
        {"output_logits": True},
        {"decoder_input_ids": torch.ones(1, 1, dtype=torch.long)},
        {"logits_processor": [1]},
        {"streamer": "a streamer"},
        {"num_beams": 0},
        {"num_beams": True},
        {"temperature": 0.0},
        {"max_new_tokens": 0},
        {"pad_token_id": 5},
        {"suppress_tokens": torch.tensor([1, 2])},
        {"cache_implementation": "static"},
        {"generation_config": GenerationConfig(num_beams=4)},
    ],
    ids=str,
)
def test_autoregressive_options_are_refused(tiny_model, arguments):
    with pytest.raises(ValueError, match=r"autoregressive decoding"):
        tiny_model.generate(torch.tensor([[5, 6, 1]]), **arguments)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"num_refinment_steps": 1}, "num_refinment_steps"),
        ({"num_refinement_steps": -1}, "-1"),
        ({"num_refinement_steps": 1.5}, "1.5"),
        ({"num_refinement_steps": True}, "True"),
        ({"max_length": 0}, "max_length"),
        ({"max_length": 2.5}, "2.5"),
        ({"max_length": "5"}, "'5'"),
        ({"remove_repetitions": "no"}, "'no'"),
        ({"remove_repetitions": True}, "needs tokenizer="),
        ({"_foo": 3}, "_foo=3"),
        ({"generation_config": {"num_refinement_steps": 1}}, "must be a GenerationConfig"),
        ({"generation_config": torch.ones(1, 3)}, "Pass attention_mask by its name"),
        ({"input_ids": None}, "input_ids"),
        ({"input_ids": torch.tensor([[5, 60]])}, "id 60"),
        ({"input_ids": torch.zeros(0, 3, dtype=torch.long)}, "not empty"),
        ({"attention_mask": torch.zeros(1, 3)}, "sentence 0"),
    ],
)
def test_wrong_arguments_are_refused_by_name(tiny_model, arguments, named):
    with pytest.raises(ValueError, match=named):
        tiny_model.generate(**{"input_ids": torch.tensor([[5, 6, 1]]), **arguments})


def test_neutral_options_and_those_of_trainers_are_accepted(tiny_model):
    input_ids = torch.tensor([[5, 6, 1]])
    neutral = {
        "num_refinement_steps": None,
        "num_beams": 1,
        "do_sample": False,
        "temperature": 1.0,
        "use_cache": True,
        "synced_gpus": False,
    }
    output = tiny_model.generate(inputs=input_ids, labels=input_ids, **neutral)
    assert torch.equal(output, tiny_model.generate(input_ids))


def test_no_other_transformer_layer_runs_than_is_needed(tiny_model, monkeypatch):
    """The source is encoded once; sentences that have stopped leave the batch."""
    encoded, refined = [], []
    encode, infer = tiny_model.encode, tiny_model.infer_posterior
    monkeypatch.setattr(tiny_model, "encode", lambda *a: encoded.append(1) or encode(*a))
    monkeypatch.setattr(tiny_model, "infer_posterior", lambda *a: refined.append(len(a[1])) or infer(*a))
    batch = make_batch(tiny_model.config, LENGTHS)
    output = tiny_model.generate(batch["input_ids"], num_refinement_steps=6, return_dict_in_generate=True)
    assert len(encoded) == 1 and output.lower_bounds is None
    still_active = [int((output.num_steps_taken >= t).sum()) for t in range(1, len(refined) + 1)]
    assert refined == still_active and refined[-1] < 64
