"""The model as a PreTrainedModel: padding, accumulation, precision, checkpointing, saving, and refused input.

That its numbers are those of the paper's equations is shown in test_reference.py.
"""

import shutil

import pytest
import torch
from accelerate import cpu_offload
from conftest import make_batch, make_model, other_versions, run_with_transformers, tiny_config
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

from lvnar_hf import LvnarForConditionalGeneration
from lvnar_hf.inputs_lvnar import check_inputs

LENGTHS = [(7, 9), (3, 4), (10, 6), (1, 1)]
PARTS = ("token_nll", "kl", "budgeted_kl", "length_nll", "elbo", "length_accuracy")


def pad_further(batch: dict[str, torch.Tensor], extra: int, pad_token_id: int) -> dict[str, torch.Tensor]:
    fills = {"input_ids": pad_token_id, "attention_mask": 0, "labels": -100}
    return {n: torch.nn.functional.pad(t, (0, extra), value=fills[n]) for n, t in batch.items()}


@pytest.mark.parametrize(
    "changes", [{}, {"target_vocab_size": 45}, {"tie_word_embeddings": False}], ids=["joint", "separate", "untied"]
)
def test_every_parameter_gets_a_gradient(changes):
    model = make_model(tiny_config(dropout=0.0, **changes)).train()
    model(**make_batch(model.config, LENGTHS), kl_budget=0.0).loss.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []


@pytest.mark.parametrize("side", ["input_ids", "labels"])
def test_padding_changes_neither_loss_nor_outputs(tiny_model, side):
    batch = make_batch(tiny_model.config, LENGTHS)
    padded = pad_further(batch, 5, tiny_model.config.pad_token_id)
    names = ("input_ids", "attention_mask") if side == "input_ids" else ("labels",)
    expected, output = tiny_model(**batch), tiny_model(**{**batch, **{n: padded[n] for n in names}})
    torch.testing.assert_close(output.loss, expected.loss)
    for name in PARTS:
        torch.testing.assert_close(output[name], expected[name])
    valid = batch["labels"] != -100
    torch.testing.assert_close(output.logits[:, : valid.shape[1]][valid], expected.logits[valid])


def test_a_padded_batch_equals_its_sentences_alone(tiny_model):
    batch = make_batch(tiny_model.config, LENGTHS)
    together = tiny_model(**batch)
    for row, (source, target) in enumerate(LENGTHS):
        alone = tiny_model(input_ids=batch["input_ids"][[row], :source], labels=batch["labels"][[row], :target])
        for name in PARTS:
            torch.testing.assert_close(alone[name][0], together[name][row])
        torch.testing.assert_close(alone.logits[0], together.logits[row, :target], atol=1e-5, rtol=1e-4)


def test_a_batch_in_pieces_has_the_loss_and_gradients_of_the_whole(tiny_model):
    batch = make_batch(tiny_model.config, LENGTHS)  # evaluation mode: z is the posterior's mean, nothing is random
    whole = tiny_model(**batch, kl_budget=0.3)
    whole.loss.backward()
    expected = {n: p.grad.clone() for n, p in tiny_model.named_parameters()}
    tiny_model.zero_grad()
    losses = []
    for rows in ([0], [1, 3], [2]):
        piece = tiny_model(
            **{n: t[rows] for n, t in batch.items()}, kl_budget=0.3, num_items_in_batch=whole.num_target_tokens
        )
        piece.loss.backward()
        losses.append(piece.loss.detach())
    torch.testing.assert_close(sum(losses), whole.loss.detach())
    for name, parameter in tiny_model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-5, rtol=1e-3)


def test_loss_is_the_sum_of_its_parts_per_target_token(tiny_model):
    output = tiny_model(**make_batch(tiny_model.config, LENGTHS), kl_budget=8.0)
    total = (output.token_nll + output.budgeted_kl + output.length_nll).sum()
    torch.testing.assert_close(output.loss, total / sum(target for _, target in LENGTHS))
    torch.testing.assert_close(output.elbo, -(output.token_nll + output.kl + output.length_nll))
    assert (output.budgeted_kl >= output.kl).all() and (output.budgeted_kl > output.kl).any()


def test_label_smoothing_applies_in_training_only():
    model = make_model(tiny_config(dropout=0.0))
    batch = make_batch(model.config, LENGTHS)
    plain, smoothed = model(**batch), model(**batch, smoothing=0.3)
    assert torch.equal(plain.loss, smoothed.loss)
    model.train()
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    plain = model(**batch, generator=generators[0])
    smoothed = model(**batch, smoothing=0.3, generator=generators[1])
    assert torch.equal(plain.token_nll, smoothed.token_nll)
    assert not torch.isclose(plain.loss, smoothed.loss)


def test_latents_are_random_only_when_asked(tiny_model):
    batch = make_batch(tiny_model.config, LENGTHS)
    assert torch.equal(tiny_model(**batch).logits, tiny_model(**batch).logits)
    drawn = [tiny_model(**batch, generator=torch.Generator().manual_seed(s)).logits for s in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], tiny_model(**batch).logits)


def test_tuple_output_and_output_without_labels(tiny_model):
    batch = make_batch(tiny_model.config, LENGTHS)
    assert torch.equal(tiny_model(**batch, return_dict=False)[0], tiny_model(**batch).loss)
    output = tiny_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    assert output.loss is None and output.logits.shape[0] == len(LENGTHS)


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        model = make_model(tiny_config(dropout=0.0)).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        model(**make_batch(model.config, LENGTHS), generator=torch.Generator().manual_seed(0)).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for expected, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_close_to_single(tiny_model, dtype):
    batch = make_batch(tiny_model.config, LENGTHS)
    expected = tiny_model(**batch)
    output = tiny_model.to(dtype)(**batch)
    assert output.logits.dtype == output.loss.dtype == torch.float32
    torch.testing.assert_close(output.loss, expected.loss, rtol=0.05, atol=0.05)
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in tiny_model.parameters())
    together = tiny_model.generate(batch["input_ids"], num_refinement_steps=2, remove_repetitions=False)
    num_other = num_tokens = 0
    for row, (source, _) in enumerate(LENGTHS):
        alone = tiny_model.generate(
            batch["input_ids"][[row], :source], num_refinement_steps=2, remove_repetitions=False
        )
        num_other += int((alone[0] != together[row, : alone.shape[1]]).sum())
        num_tokens += alone.shape[1]
    assert num_other <= 0.05 * num_tokens  # the states are rounded, another way in another batch


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}], ids=["tied", "untied"])
def test_logits_of_half_precision_are_not_rounded(changes):
    """Words that differ by less than bfloat16 can tell apart stay apart, for few states and for many."""
    model = make_model(tiny_config(**changes)).to(torch.bfloat16)
    for lengths in (LENGTHS[:1], LENGTHS):
        with torch.no_grad():
            logits = model(**make_batch(model.config, lengths)).logits
        assert logits.dtype == torch.float32 and not torch.equal(logits, logits.bfloat16().float())
        with torch.autocast("cpu", dtype=torch.bfloat16):  # sharded training: weights in 16 bits, and autocast
            assert model(**make_batch(model.config, lengths)).logits.dtype == torch.bfloat16


def test_autocast_trains():
    model = make_model(tiny_config(dropout=0.1)).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(**make_batch(model.config, LENGTHS), kl_budget=1.0, smoothing=0.1)
    output.loss.backward()
    assert output.loss.dtype == torch.float32 and torch.isfinite(output.loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "changes", [{}, {"target_vocab_size": 45}, {"tie_word_embeddings": False}], ids=["joint", "separate", "untied"]
)
def test_save_and_load_give_identical_logits(tmp_path, dtype, changes):
    model = make_model(tiny_config(**changes)).to(dtype)
    batch = make_batch(model.config, LENGTHS)
    model.save_pretrained(tmp_path)
    assert {p.suffix for p in tmp_path.iterdir()} == {".json", ".safetensors", ".py"}
    loaded = LvnarForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype).eval()
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    assert loaded.generation_config.to_diff_dict() == model.generation_config.to_diff_dict()


GOLDEN_CODE = """
import sys, torch
from lvnar_hf import LvnarForConditionalGeneration
from lvnar_hf.inputs_lvnar import check_inputs
model = LvnarForConditionalGeneration.from_pretrained(sys.argv[1], dtype=getattr(torch, sys.argv[2])).eval()
batch = torch.load(sys.argv[3], weights_only=True)
with torch.no_grad():
    output = model(**batch["inputs"])
    sequences = model.generate(batch["inputs"]["input_ids"], num_refinement_steps=2)
assert torch.equal(output.logits, batch["logits"]), (output.logits - batch["logits"]).abs().max()
assert torch.equal(sequences, batch["sequences"])
model.save_pretrained(sys.argv[4])
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("version", other_versions() or [pytest.param(None, marks=pytest.mark.skip("no environments"))])
def test_golden_outputs_on_other_versions_of_transformers(tmp_path, version, dtype):
    """Saved here, loaded there, saved there and loaded here: the same logits and tokens to the bit."""
    model = make_model(tiny_config()).to(getattr(torch, dtype))
    inputs = make_batch(model.config, LENGTHS)
    with torch.no_grad():
        golden = {
            "inputs": inputs,
            "logits": model(**inputs).logits,
            "sequences": model.generate(inputs["input_ids"], num_refinement_steps=2),
        }
    torch.save(golden, tmp_path / "golden.pt")
    model.save_pretrained(tmp_path / "here")
    arguments = (tmp_path / "here", dtype, tmp_path / "golden.pt", tmp_path / "there")
    run_with_transformers(version, GOLDEN_CODE, *map(str, arguments))
    back = LvnarForConditionalGeneration.from_pretrained(tmp_path / "there", dtype=getattr(torch, dtype)).eval()
    assert torch.equal(back(**inputs).logits, golden["logits"])


def wrong_batches() -> dict[str, tuple[dict, str]]:
    config = tiny_config()
    good = make_batch(config, LENGTHS)

    def changed(name: str, rows: object, columns: object, value: int) -> dict:
        tensor = good[name].clone()
        tensor[rows, columns] = value
        return {**good, name: tensor}

    return {
        "empty batch": ({"input_ids": torch.zeros(0, 4, dtype=torch.long)}, "shape (0, 4)"),
        "no tokens": ({"input_ids": torch.zeros(2, 0, dtype=torch.long)}, "shape (2, 0)"),
        "one dimension": ({"input_ids": torch.ones(4, dtype=torch.long)}, "shape (4,)"),
        "id too high": (changed("input_ids", 1, 0, 60), "id 60"),
        "negative id": (changed("input_ids", 1, 0, -1), "id -1"),
        "source over the limit": ({"input_ids": torch.full((1, 41), 5)}, "41 tokens"),
        "mask of another shape": ({**good, "attention_mask": good["attention_mask"][:, :-1]}, "(4, 9)"),
        "mask of zeros": (changed("attention_mask", 2, slice(None), 0), "sentence 2"),
        "padding on the left": (changed("attention_mask", 0, 0, 0), "sentence 0"),
        "labels of another batch": ({**good, "labels": good["labels"][:2]}, "shape (2, 9)"),
        "labels without tokens": ({**good, "labels": good["labels"][:, :0]}, "shape (4, 0)"),
        "labels all -100": (changed("labels", 3, slice(None), -100), "sentence 3"),
        "labels padded with the padding id": (changed("labels", 1, 3, 0), "padding must be -100"),
        "label too high": (changed("labels", 0, 0, 99), "id 99"),
        "target over the limit": (
            {"input_ids": torch.full((1, 30), 5), "labels": torch.full((1, 41), 5)},
            "41 tokens",
        ),
        "length difference": (
            {"input_ids": torch.full((1, 2), 5), "labels": torch.full((1, 25), 5)},
            "differs from its source by 23 tokens",
        ),
    }


@pytest.mark.parametrize("case", wrong_batches())
def test_input_the_model_cannot_take_is_refused_by_name(tiny_model, case):
    batch, named = wrong_batches()[case]
    with pytest.raises(ValueError) as error:
        tiny_model(**batch)
    assert named in str(error.value)


@pytest.mark.parametrize("changes", [{}, {"alignment": "ctc"}], ids=["length", "ctc"])
def test_input_is_checked_with_one_look_at_the_device(changes, monkeypatch):
    config = tiny_config(**changes)
    batch, looks = make_batch(config, LENGTHS), []

    def counted(name, original):
        return lambda *arguments: looks.append(name) or original(*arguments)

    for name in ("tolist", "item", "__bool__", "__int__", "__float__", "__index__", "nonzero"):
        monkeypatch.setattr(torch.Tensor, name, counted(name, getattr(torch.Tensor, name)))
    check_inputs(config, batch["input_ids"], None)
    assert looks == ["tolist"]
    check_inputs(config, **batch)
    assert looks == ["tolist"] * 2


def test_resizing_a_joint_vocabulary_keeps_the_model_working(tiny_model):
    tiny_model.resize_token_embeddings(70)
    output = tiny_model(**make_batch(tiny_model.config, LENGTHS))
    assert tiny_model.config.vocab_size == 70 and output.logits.shape[-1] == 70
    assert tiny_model.get_input_embeddings() is tiny_model.source_embedding


@pytest.mark.parametrize("changes", [{"target_vocab_size": 45}, {"tie_word_embeddings": False}])
def test_resizing_is_refused_where_it_would_break_the_model(changes):
    with pytest.raises(ValueError, match="cannot be resized from 60 to 70"):
        make_model(tiny_config(**changes)).resize_token_embeddings(70)


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}], ids=["tied", "untied"])
def test_offloaded_weights_give_the_same_outputs(changes):
    """Hooks load weights as a module's `forward` begins: none may be read outside of one."""
    model = make_model(tiny_config(**changes))
    batch = make_batch(model.config, LENGTHS)
    with torch.no_grad():
        expected, sequences = model(**batch).logits, model.generate(batch["input_ids"])
        offloaded = cpu_offload(model, execution_device="cpu")
        assert torch.equal(offloaded(**batch).logits, expected)
        assert torch.equal(offloaded.generate(batch["input_ids"]), sequences)


def test_a_transformers_trainer_trains_evaluates_and_generates(tmp_path, sample_tokenizer, sample_texts):
    model = make_model(tiny_config(vocab_size=len(sample_tokenizer)))
    sources, targets = (texts[:7] for texts in sample_texts)
    encoded = sample_tokenizer(sources, text_target=targets, truncation=True, max_length=40)
    rows = [{n: encoded[n][i] for n in ("input_ids", "attention_mask", "labels")} for i in range(7)]
    arguments = Seq2SeqTrainingArguments(
        tmp_path,
        max_steps=2,
        per_device_eval_batch_size=3,
        predict_with_generate=True,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
    )
    trainer = Seq2SeqTrainer(
        model,
        arguments,
        data_collator=DataCollatorForSeq2Seq(sample_tokenizer),
        train_dataset=rows,
        eval_dataset=rows,
        compute_metrics=lambda prediction: {"num_translations": len(prediction.predictions)},
    )
    before = trainer.evaluate()
    assert before["eval_num_translations"] == 7
    trainer.train()
    assert trainer.evaluate()["eval_loss"] != before["eval_loss"]
    batch = sample_tokenizer(sources, padding=True, truncation=True, max_length=40, return_tensors="pt")
    assert torch.equal(model.generate(**batch), model.generate(**batch, num_refinement_steps=1))


DAMAGED_WEIGHTS_CODE = """
import sys, torch
from pathlib import Path
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM
import lvnar_hf

folder = Path(sys.argv[1])
whole = load_file(folder / "model.safetensors")
name = "decoder.latent_proj.bias"
damages = {
    "missing": {n: t for n, t in whole.items() if n != name},
    "shape": {**whole, name: torch.zeros(5)},
    "not finite": {**whole, name: torch.full_like(whole[name], float("nan"))},
}
for damage, weights in damages.items():
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    try:
        AutoModelForSeq2SeqLM.from_pretrained(folder)
    except ValueError as error:
        print(damage, "|", error)
save_file(damages["shape"], folder / "model.safetensors", metadata={"format": "pt"})
model, info = lvnar_hf.LvnarForConditionalGeneration.from_pretrained(
    folder, ignore_mismatched_sizes=True, output_loading_info=True
)
print("tolerated |", tuple(model.get_parameter(name).shape), len(info["mismatched_keys"]))
(folder / "model.safetensors").unlink()
torch.save(whole, folder / "pytorch_model.bin")
try:
    AutoModelForSeq2SeqLM.from_pretrained(folder)
except OSError as error:
    print("pickle |", "safetensors" in str(error))
"""


@pytest.mark.parametrize("version", [None, *other_versions()])
def test_unsound_weights_are_refused_on_every_version(tiny_repository, tmp_path, version):
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_repository, folder)
    lines = run_with_transformers(version, DAMAGED_WEIGHTS_CODE, str(folder)).strip().split("\n")
    said = dict(line.split(" | ", 1) for line in lines if " | " in line)
    assert said["missing"] == "The checkpoint lacks 1 weights: decoder.latent_proj.bias."
    assert "another shape" in said["shape"] and "decoder.latent_proj.bias is " in said["shape"]
    assert "not (32,)" in said["shape"]
    assert said["not finite"] == "The weight decoder.latent_proj.bias has values that are not finite."
    assert said["tolerated"] == "(32,) 1" and said["pickle"] == "True"
