"""What users do beside translating: threads, forks, added tokens, fine-tuning, saving a pipeline, wrong options."""

import json
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import make_batch, make_model, tiny_config
from forks import run_forked
from transformers import (
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    MarianConfig,
    MarianMTModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    pipeline,
)

from lvnar_hf import LvnarConfig, LvnarForConditionalGeneration
from lvnar_hf.soundness_lvnar import is_finite

LONG = "where is the station? " * 20


def test_threads_share_a_pipeline(tiny_repository):
    """Some cut and some are refused, and none of them gets what another one asked for."""
    translator = pipeline("translation", model=str(tiny_repository))
    tokenizer, model = translator.tokenizer, translator.model
    whole = {"preserve_format": False}  # else a long text is parted
    cut, short = translator(LONG, truncation=True, **whole), translator("Tom laughed.")
    target_ids = tokenizer(text_target="Tom laughed.")["input_ids"]

    def call(i: int) -> str:
        if i % 4 == 0:
            try:
                translator(LONG, **whole)
            except ValueError:
                return "refused"
            return "not refused"
        if i % 4 == 1:
            return "right" if translator(LONG, truncation=True, **whole) == cut else "not cut"
        if i % 4 == 2:
            is_right = tokenizer(text_target="Tom laughed.", padding="max_length", max_length=9)["input_ids"]
            ids = tokenizer([LONG, "a"], truncation=True, max_length=5)["input_ids"]
            return "right" if is_right[: len(target_ids)] == target_ids and len(ids[0]) == 5 else "wrong target"
        return "right" if translator("Tom laughed.") == short else "wrong"

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(call, range(480)))
    assert set(results[0::4]) == {"refused"} and {r for i, r in enumerate(results) if i % 4} == {"right"}
    assert not any(module.training for module in model.modules())


def test_the_side_of_a_tokenizer_is_the_threads_own(sample_texts):
    from lvnar_hf import train_tokenizer

    tokenizer = train_tokenizer(*sample_texts, vocab_size=400, target_vocab_size=450, joint=False, max_length=40)
    source, target = tokenizer("Katze")["input_ids"], tokenizer(text_target="Katze")["input_ids"]
    assert source != target
    seen = []
    tokenizer._switch_to_target_mode()
    try:
        thread = threading.Thread(target=lambda: seen.append((tokenizer.tokenize("Katze"), len(tokenizer))))
        thread.start()
        thread.join()
    finally:
        tokenizer._switch_to_input_mode()
    assert seen == [(tokenizer.tokenize("Katze"), len(tokenizer))] and len(tokenizer) == 400


def test_generate_refuses_a_model_in_training_mode_and_changes_nothing():
    model = make_model(tiny_config(dropout=0.5))
    batch = make_batch(model.config, [(5, 1), (7, 1)])
    model.train()
    with pytest.raises(ValueError, match=r"model\.eval\(\) first"):
        model.generate(batch["input_ids"])
    assert all(module.training for module in model.modules())
    model.eval().prior.train()
    with pytest.raises(ValueError, match="or a part of it"):
        model.generate(batch["input_ids"])


def test_forward_in_training_mode_needs_labels():
    model = make_model(tiny_config()).train()
    batch = make_batch(model.config, [(5, 4), (7, 6)])
    with pytest.raises(ValueError, match="label_smoothing_factor"):
        model(batch["input_ids"])
    assert model(**batch).loss.requires_grad and model.eval()(batch["input_ids"]).loss is None


ADDED = [
    ("a <x>.", "a <x>."),
    ("<x> b", "<x> b"),
    ("a<x>b", "a<x>b"),
    ("  say </s> <x>, <pad>  ", "say </s> <x>, <pad>"),
    ("<x><x>", "<x><x>"),
    ("no token", "no token"),
]


@pytest.mark.parametrize("is_special", [True, False])
def test_added_tokens_are_found_and_leave_no_space(tiny_repository, tmp_path, is_special):
    tokenizer = AutoTokenizer.from_pretrained(tiny_repository)
    plain = tokenizer("no token")["input_ids"]
    if is_special:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<x>"]})
    else:
        tokenizer.add_tokens(["<x>"])
    tokenizer.save_pretrained(tmp_path)
    for one in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        added = one.convert_tokens_to_ids("<x>")
        assert len(one) == 501 and added == 500 and one("no token")["input_ids"] == plain
        assert (added in one.all_special_ids) == is_special
        for text, expected in ADDED:
            ids = one(text)["input_ids"]
            assert ids == one.encode_texts([text])[0] and ids.count(added) == text.count("<x>")
            assert one.decode(ids[:-1]) == expected
            without = one.decode(ids, skip_special_tokens=True)
            assert ("<x>" in without) == (not is_special and "<x>" in text)
            assert ids.count(one.eos_token_id) == 1 and one.pad_token_id not in ids  # theirs is text


def test_what_contradicts_the_models_languages_is_refused(tmp_path, sample_tokenizer):
    model = make_model(tiny_config(vocab_size=len(sample_tokenizer), source_language="en", target_language="de"))
    model.save_pretrained(tmp_path)
    sample_tokenizer.save_pretrained(tmp_path)
    assert LvnarConfig.from_pretrained(tmp_path).target_language == "de"
    pipeline("translation_en_to_de", model=str(tmp_path))("Tom laughed.", src_lang="en", tgt_lang="de")
    with pytest.raises(ValueError, match=r"'fr', and this model's is 'de'"):
        pipeline("translation_en_to_fr", model=str(tmp_path))
    with pytest.raises(ValueError, match="translates from en to de"):
        pipeline("translation", model=str(tmp_path))("Tom laughed.", src_lang="fr")
    with pytest.raises(ValueError, match="source_language is 5"):
        tiny_config(source_language=5)


def test_the_embedding_may_have_spare_rows(sample_tokenizer):
    """They are never generated, however likely; fewer rows than ids are refused."""
    model = make_model(tiny_config(vocab_size=len(sample_tokenizer)))
    translator = pipeline("translation", model=model, tokenizer=sample_tokenizer)
    expected = translator("Where is the station?", num_refinement_steps=2)
    torch.manual_seed(0)
    model.resize_token_embeddings(pad_to_multiple_of=64)
    assert model.config.vocab_size == 512 > len(sample_tokenizer)
    states = model.source_embedding.weight[5].detach()
    with torch.no_grad():
        model.source_embedding.weight[len(sample_tokenizer) :] = 50 * states
    padded = pipeline("translation", model=model, tokenizer=sample_tokenizer)
    assert padded("Where is the station?", num_refinement_steps=2) == expected
    with torch.no_grad():  # else this test would say nothing
        model.source_embedding.weight[len(sample_tokenizer) :] = 50 * torch.randn(12, 32)
    ids = model.generate(sample_tokenizer("Tom.", return_tensors="pt")["input_ids"])
    assert int(ids.max()) >= len(sample_tokenizer)
    with pytest.raises(ValueError, match="do not belong together"):
        pipeline("translation", model=make_model(tiny_config(vocab_size=499)), tokenizer=sample_tokenizer)


@pytest.mark.parametrize("kind", ["lvnar", "marian"])
def test_a_pipeline_is_saved_and_loaded(tiny_repository, tmp_path, kind):
    translator = pipeline("translation", model=str(tiny_repository))
    options = {}
    if kind == "marian":
        sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1}
        heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
        marian = MarianMTModel(
            MarianConfig(vocab_size=500, pad_token_id=0, eos_token_id=1, decoder_start_token_id=0, **sizes, **heads)
        )
        translator, options = pipeline("translation", model=marian, tokenizer=translator.tokenizer), {"max_length": 5}
    translator.save_pretrained(tmp_path / "saved")
    assert repr(translator.model.config) and json.loads((tmp_path / "saved" / "config.json").read_text("utf-8"))
    if kind == "lvnar":
        loaded = pipeline("translation", model=str(tmp_path / "saved"))
        assert loaded("Tom laughed.") == translator("Tom laughed.")
    else:
        loaded = MarianMTModel.from_pretrained(tmp_path / "saved")
        assert loaded.config.d_model == translator.model.config.d_model and translator("Tom.", **options)
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file"):
        translator.save_pretrained(tmp_path / "file")


@pytest.mark.parametrize(
    "fields",
    [
        {"_attn_implementation_internal": "someone/kernel"},
        {"_attn_implementation": "someone/kernel"},
        {"attn_implementation": "flash_attention_2"},
        {"_experts_implementation_internal": "x"},
        {"experts_implementation": "user/kernel"},
        {"_anything": 1},
        {"__class__": 1},
        {"quantization": {}},
    ],
)
def test_a_strangers_configuration_sets_nothing_that_is_not_known(tmp_path, fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        LvnarConfig(**fields)
    tiny_config().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **fields}))
    with pytest.raises(ValueError, match=next(iter(fields))):
        LvnarConfig.from_pretrained(tmp_path)


def test_the_attention_may_be_chosen(tmp_path):
    make_model(tiny_config()).save_pretrained(tmp_path)
    for name in ("eager", "sdpa"):
        model = LvnarForConditionalGeneration.from_pretrained(tmp_path, attn_implementation=name)
        assert model.config._attn_implementation == name


FORK_CODE = """
import os, sys, time
import lvnar_hf, torch
torch.set_num_threads(2)
from transformers import pipeline
translator = pipeline("translation", model=sys.argv[1])
child = os.fork()
if child == 0:
    print(translator("Where is the station?")[0]["translation_text"] != "", flush=True)
    os._exit(0)
for _ in range(600):
    if os.waitpid(child, os.WNOHANG)[0]:
        break
    time.sleep(0.1)
else:
    os.kill(child, 9)
    print("hangs")
"""


def test_a_process_that_has_loaded_can_fork_and_translate():
    """With two threads, which a child does not inherit; the model is large enough to make torch use them."""
    from tests.model.test_repetitions import FOLDER

    assert run_forked(["-c", FORK_CODE, FOLDER]).stdout == "True\n"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_whether_weights_are_finite(dtype, value):
    weights = torch.full((3, 40_000), torch.finfo(dtype).max, dtype=dtype)
    assert is_finite(weights) and is_finite(torch.zeros(0))
    weights[2, 39_999] = value
    assert not is_finite(weights)


def test_a_datasets_map_over_processes_translates(tiny_repository):
    from datasets import Dataset

    translator = pipeline("translation", model=str(tiny_repository))
    texts = ["Tom laughed.", "I am hungry.", "Where is it?", "Yes."]

    def translate(row: dict) -> dict:
        return {"translation": translator(row["text"])[0]["translation_text"]}

    def too_late(*_: object) -> None:
        raise TimeoutError("datasets.map with two processes hangs")

    signal.signal(signal.SIGALRM, too_late)
    signal.alarm(180)
    try:
        rows = Dataset.from_dict({"text": texts}).map(translate, num_proc=2)
    finally:
        signal.alarm(0)
    assert rows["translation"][:] == [result["translation_text"] for result in translator(texts)]


def fine_tuned(model, tokenizer, folder, sample_texts, **options):
    """By transformers' own Trainer, and what its evaluation and its `predict` give."""
    rows = [
        {"input_ids": source, "labels": target}
        for source, target in zip(
            tokenizer.encode_texts(sample_texts[0][:16]),
            tokenizer.encode_texts(sample_texts[1][:16], target=True),
            strict=True,
        )
    ]
    rows = [row for row in rows if max(map(len, row.values())) <= 40]
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(folder),
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=0.01,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        predict_with_generate=True,
        **options,
    )
    trainer = Seq2SeqTrainer(
        model=model, args=arguments, train_dataset=rows, data_collator=DataCollatorForSeq2Seq(tokenizer)
    )
    trainer.train()
    assert trainer.evaluate(rows)["eval_loss"] > 0
    # DataCollatorForSeq2Seq would say that the labels are None, which this Trainer takes for labels.
    trainer.data_collator = DataCollatorWithPadding(tokenizer)
    without_labels = [{"input_ids": row["input_ids"]} for row in rows]
    assert len(trainer.predict(without_labels).predictions) == len(rows)
    return trainer


def test_fine_tuning_by_seq2seq_trainer(tmp_path, sample_tokenizer, sample_texts):
    model = make_model(tiny_config(vocab_size=len(sample_tokenizer)))
    before = model.prior.gaussian_head.weight.detach().clone()
    fine_tuned(model, sample_tokenizer, tmp_path, sample_texts)
    assert not torch.equal(model.prior.gaussian_head.weight, before)
    with pytest.raises(ValueError, match="label_smoothing_factor"):
        fine_tuned(model, sample_tokenizer, tmp_path, sample_texts, label_smoothing_factor=0.1)


@pytest.mark.parametrize("target_modules", [["query_proj"], "all-linear"], ids=str)
def test_fine_tuning_by_lora(tmp_path, sample_tokenizer, sample_texts, target_modules):
    from peft import LoraConfig, PeftModel, get_peft_model

    model = make_model(tiny_config(vocab_size=len(sample_tokenizer)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapted = get_peft_model(model, LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=target_modules))
    fine_tuned(adapted, sample_tokenizer, tmp_path, sample_texts)
    own = {
        name.replace(".base_layer", "").removeprefix("base_model.model."): t for name, t in adapted.state_dict().items()
    }
    assert all(torch.equal(own[name], tensor) for name, tensor in before.items())  # the model itself stays
    adapted.save_pretrained(tmp_path / "adapter")
    fresh = LvnarForConditionalGeneration(model.config)
    fresh.load_state_dict(before)
    loaded = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    inputs = sample_tokenizer(["Where is the station?", "Yes."], return_tensors="pt", padding=True)
    adapted.eval()
    logits = [one(**inputs).logits for one in (adapted, loaded, loaded.merge_and_unload())]
    for other in logits[1:]:
        torch.testing.assert_close(other, logits[0], atol=1e-4, rtol=1e-4)
    base = LvnarForConditionalGeneration(model.config).eval()
    base.load_state_dict(before)
    assert logits[0].shape != base(**inputs).logits.shape or not torch.allclose(logits[0], base(**inputs).logits)


def test_forward_refuses_what_it_does_not_have(tiny_model):
    batch = make_batch(tiny_model.config, [(5, 4)])
    tiny_model(**batch, inputs_embeds=None, output_attentions=False)
    with pytest.raises(TypeError, match="forward takes no inputs_embeds"):
        tiny_model(**batch, inputs_embeds=torch.zeros(1, 5, 32))
