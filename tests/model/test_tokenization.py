"""The tokenizer: lossless on any text, the same ids after saving and on every supported transformers version.

`LVNAR_ENVIRONMENTS` names a folder with virtual environments, `transformers-4.57.6` and `transformers-5.0.0`, which
`make test` makes; without it the test across versions is skipped.
"""

import copy
import gzip
import json
import pickle
import sys
from pathlib import Path

import pytest
import sentencepiece
import transformers
from conftest import other_versions, run_with_transformers
from forks import run_forked
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

import lvnar_hf  # noqa: F401  # registers LvnarTokenizer
from lvnar_hf import LvnarTokenizer, tokenizer_training, train_tokenizer
from lvnar_hf.files.text import read_lines
from lvnar_hf.jobs.light_translator import LightTokenizer
from lvnar_hf.tokenizer_training import convert_sentencepiece, train_sentencepiece
from tests.model.test_segmentation import JAPANESE_TEXTS, make_segmented_tokenizer

ROOT = Path(__file__).resolve().parents[2]
SOURCE_TEXTS = [
    "The cat sat on the mat.",
    "The dog doesn't like the cat, but the cat likes the dog!",
    "In 1984 there were 12 cats (and 3 dogs).",
    "Where is the other cat?",
] * 3
TARGET_TEXTS = [
    "Die Katze saß auf der Matte.",
    "Der Hund mag die Katze nicht, aber die Katze mag den Hund!",
    "1984 gab es 12 Katzen (und 3 Hunde).",
    "Wo ist die andere Katze?",
] * 3
# What a tokenizer easily loses or takes for something else.
ODD_TEXTS = [
    "",
    " \t",
    "a  b",
    " a\u2028b\u0085c\u00a0d ",
    "\u2581",
    "\u2581\u2581cat\u2581",
    "<0x41>",
    "<0xE3><0x81>",
    "</s>",
    "the</s> <pad><unk>cat",
    "\u0301",
    "a \u0338= e\u0301",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "日本語のテスト。한국어",
    "\x00\x1c\ufeff\ufffd\U0010ffff",
    "ﬁ ½ Å",
]


@pytest.fixture(scope="session")
def joint() -> LvnarTokenizer:
    return train_tokenizer(SOURCE_TEXTS, TARGET_TEXTS, vocab_size=330, max_length=64)


@pytest.fixture(scope="session")
def separate() -> LvnarTokenizer:
    sizes = {"vocab_size": 310, "target_vocab_size": 320, "max_length": 64}
    return train_tokenizer(SOURCE_TEXTS, TARGET_TEXTS, joint=False, **sizes)


@pytest.fixture(scope="session")
def unigram() -> LvnarTokenizer:
    return make_unigram_tokenizer()


@pytest.fixture(params=["joint", "separate", "unigram"])
def tokenizer(request: pytest.FixtureRequest) -> LvnarTokenizer:
    return copy.deepcopy(request.getfixturevalue(request.param))


def answers(tokenizer: LvnarTokenizer) -> dict:
    """What must not change when a tokenizer is saved and loaded; plain JSON."""
    texts = SOURCE_TEXTS[:4] + TARGET_TEXTS[:4] + ODD_TEXTS
    encoded = tokenizer(texts, text_target=texts)
    return {
        "class": type(tokenizer).__name__,
        "sizes": [tokenizer.vocab_size, len(tokenizer), tokenizer.target_vocab_size, tokenizer.model_max_length],
        "encoded": {name: encoded[name] for name in sorted(encoded)},
        "one_by_one": [tokenizer.encode(text) for text in texts],
        "decoded": tokenizer.batch_decode(encoded["labels"], skip_special_tokens=True),
        "decoded_source": tokenizer.batch_decode(
            encoded["input_ids"], skip_special_tokens=True, use_source_tokenizer=True
        ),
        "with_special": tokenizer.decode(encoded["labels"][0]),
        "padded": dict(tokenizer(texts[:2], padding=True, truncation=True, max_length=8)),
        "fast": [tokenizer.encode_texts(texts), tokenizer.encode_texts(texts, target=True)],
    }


# ids and sizes


def test_special_ids_and_sizes(joint, separate):
    assert (len(joint), joint.vocab_size, joint.target_vocab_size) == (330, 330, 330)
    assert (len(separate), separate.vocab_size, separate.target_vocab_size) == (310, 310, 320)
    assert joint.is_joint and not separate.is_joint
    assert joint.model_max_length == 64
    for tokenizer in (joint, separate):
        assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
        assert tokenizer.bos_token is None
        for backend in (tokenizer.backend_tokenizer, tokenizer.target_backend_tokenizer):
            assert [backend.id_to_token(i) for i in (0, 1, 2, 3, 258)] == ["<pad>", "</s>", "<unk>", "<0x00>", "<0xFF>"]
            assert sorted(backend.get_added_tokens_decoder()) == [0, 1, 2]


def test_encoding_appends_eos_and_pads_on_the_right(tokenizer):
    batch = tokenizer(["The cat sat.", "cat"], padding=True, return_tensors="pt")
    assert list(batch) == ["input_ids", "attention_mask"]
    last = batch["attention_mask"].sum(1) - 1
    assert batch["input_ids"][range(2), last].tolist() == [1, 1]
    assert (batch["input_ids"][1, last[1] + 1 :] == 0).all() and batch["attention_mask"][1].tolist()[-1] == 0


def test_merges_stay_inside_words(joint):
    assert joint.tokenize("cat, 12") == ["▁cat", ",", "▁", "1", "2"]
    for token in joint.get_vocab():
        if token not in joint.all_special_tokens and not token.startswith("<0x"):
            assert len(token) == 1 or all(character.isalpha() or character == "▁" for character in token), token


# two vocabularies


def test_text_target_uses_the_target_vocabulary(separate):
    encoded = separate(SOURCE_TEXTS, text_target=TARGET_TEXTS)
    assert encoded["input_ids"] == [e.ids for e in separate.backend_tokenizer.encode_batch(SOURCE_TEXTS)]
    assert encoded["labels"] == [e.ids for e in separate.target_backend_tokenizer.encode_batch(TARGET_TEXTS)]
    assert separate(text_target=TARGET_TEXTS)["input_ids"] == encoded["labels"]
    assert separate(SOURCE_TEXTS)["input_ids"] == encoded["input_ids"]
    assert separate("Katze")["input_ids"] != separate(text_target="Katze")["input_ids"]


def test_decode_reads_target_ids_unless_told(separate):
    encoded = separate(SOURCE_TEXTS, text_target=TARGET_TEXTS)
    assert separate.batch_decode(encoded["labels"], skip_special_tokens=True) == TARGET_TEXTS
    assert separate.decode(encoded["labels"][0]) == TARGET_TEXTS[0] + "</s>"
    source = separate.batch_decode(encoded["input_ids"], skip_special_tokens=True, use_source_tokenizer=True)
    assert source == SOURCE_TEXTS
    assert separate.decode(encoded["input_ids"][0], use_source_tokenizer=True) == SOURCE_TEXTS[0] + "</s>"


def test_encode_texts_gives_the_ids_of_a_call(tokenizer):
    texts = SOURCE_TEXTS + TARGET_TEXTS + ODD_TEXTS + ["long " * 100]
    source, target = tokenizer(texts)["input_ids"], tokenizer(text_target=texts)["input_ids"]
    tokenizer(texts, padding="max_length", truncation=True, max_length=5, split_special_tokens=False)
    assert tokenizer.encode_texts(texts) == source
    assert tokenizer.encode_texts(texts, target=True) == target
    assert tokenizer.encode_texts([]) == []
    with pytest.raises(ValueError, match="surrogates not allowed"):
        tokenizer.encode_texts(["\ud800"])
    with pytest.raises(ValueError, match="takes a list of texts; given was one text: 'cat'"):
        tokenizer.encode_texts("cat")


def test_a_failed_call_leaves_the_source_side(separate):
    with pytest.raises(ValueError):
        separate(text_target="\ud800")
    assert len(separate) == 310


# lossless


@settings(max_examples=300, deadline=None)
@given(
    text=st.lists(st.one_of(st.text(), st.sampled_from(ODD_TEXTS + SOURCE_TEXTS + TARGET_TEXTS))).map("".join),
    name=st.sampled_from(["joint", "separate", "unigram"]),
)
@example(text="<0x41>", name="joint")
@example(text="</s>", name="joint")
def test_decoding_gives_the_normalised_text(request, text, name):
    tokenizer = request.getfixturevalue(name)
    encoded = tokenizer(text, text_target=text)
    for side, ids in (("source", encoded["input_ids"]), ("target", encoded["labels"])):
        assert ids[-1] == 1 and not {0, 1, 2} & set(ids[:-1])
        decoded = tokenizer.decode(ids, skip_special_tokens=True, use_source_tokenizer=side == "source")
        assert decoded == tokenizer.normalize(text, target=side == "target")


@pytest.mark.parametrize(
    ("normalization", "text", "normalised"),
    [
        ("nfc", " e\u0301\u2581a\u2028\u0085 ﬁ½ ", "é a ﬁ½"),
        ("nfkc", "ﬁ½Ａ\u3000\u00a8", "fi1\u20442A \u0308"),
        ("none", " e\u0301\t\nﬁ ", "e\u0301 ﬁ"),
    ],
)
def test_normalisation(normalization, text, normalised):
    tokenizer = train_tokenizer(SOURCE_TEXTS, TARGET_TEXTS, vocab_size=310, normalization=normalization)
    assert tokenizer.normalize(text) == normalised
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == normalised


def test_special_tokens_in_the_text_are_text(tokenizer):
    for text in ("</s>", "<pad> cat</s>", "<unk>"):
        for ids in (tokenizer(text)["input_ids"], tokenizer([text])["input_ids"][0], tokenizer.encode(text)):
            assert ids.count(1) == 1 and ids[-1] == 1 and not {0, 2} & set(ids)
        labels = tokenizer(text_target=text)["input_ids"]
        assert labels.count(1) == 1 and tokenizer.decode(labels, skip_special_tokens=True) == text


@pytest.mark.parametrize("encode", ["__call__", "encode", "tokenize", "normalize"])
def test_surrogates_are_refused(tokenizer, encode):
    with pytest.raises(ValueError, match="surrogates not allowed"):
        getattr(tokenizer, encode)("cat \ud800")


# saving and loading


def test_save_and_load(tokenizer, tmp_path):
    expected = answers(tokenizer)
    tokenizer(SOURCE_TEXTS, padding="max_length", truncation=True, max_length=5)
    tokenizer.save_pretrained(tmp_path / "first")
    assert (tmp_path / "first" / "target_tokenizer.json").exists() != tokenizer.is_joint
    for load in (LvnarTokenizer, AutoTokenizer):
        loaded = load.from_pretrained(tmp_path / "first")
        assert answers(loaded) == expected
        loaded.save_pretrained(tmp_path / "second")
        for file in (tmp_path / "first").glob("*tokenizer.json"):
            assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes()
        assert str(tmp_path) not in (tmp_path / "second" / "tokenizer_config.json").read_text()
    assert answers(pickle.loads(pickle.dumps(tokenizer))) == expected


def test_a_joint_save_removes_the_target_file_of_an_earlier_one(joint, separate, tmp_path):
    separate.save_pretrained(tmp_path)
    joint.save_pretrained(tmp_path)
    assert LvnarTokenizer.from_pretrained(tmp_path).is_joint


def test_a_lost_target_vocabulary_is_noticed(joint, separate, tmp_path):
    # Else the source's would serve for both sides: a student was once trained on that.
    separate.save_pretrained(tmp_path)
    (tmp_path / "target_tokenizer.json").unlink()
    for load in (LvnarTokenizer.from_pretrained, AutoTokenizer.from_pretrained, LightTokenizer):
        with pytest.raises(ValueError, match=r"joint is false in tokenizer_config\.json, and there is no target_tok"):
            load(tmp_path)
    joint.save_pretrained(tmp_path)
    assert "joint" not in json.loads((tmp_path / "tokenizer_config.json").read_text())
    with pytest.raises(ValueError, match="joint is 'no'; it must be true or false"):
        LvnarTokenizer(tokenizer_object=joint.backend_tokenizer, joint="no")
    both = {
        "tokenizer_object": separate.backend_tokenizer,
        "target_tokenizer_object": separate.target_backend_tokenizer,
    }
    with pytest.raises(ValueError, match=r"joint is true .* a target_tokenizer\.json beside it"):
        LvnarTokenizer(**both, joint=True)


def test_a_vocabulary_with_other_special_ids_is_refused(joint, separate):
    backend = json.loads(separate.target_backend_tokenizer.to_str())
    vocab = backend["model"]["vocab"]
    vocab["</s>"], vocab["<unk>"] = 2, 1
    for token in backend["added_tokens"]:
        token["id"] = vocab[token["content"]]
    other = type(joint.backend_tokenizer).from_str(json.dumps(backend))
    with pytest.raises(ValueError, match=r"the target vocabulary has .* at ids \[0, 2, 1\]"):
        LvnarTokenizer(tokenizer_object=joint.backend_tokenizer, target_tokenizer_object=other)


PROBE = """
import json, sys
import transformers, lvnar_hf
from transformers import AutoTokenizer
from tests.model.test_tokenization import answers
found = []
for folder, copy in json.loads(sys.argv[1]):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found.append(answers(tokenizer))
    tokenizer.save_pretrained(copy)
print(json.dumps({"version": transformers.__version__, "found": found}))
"""


def probe(version: str, folders: list[tuple[Path, Path]]) -> list[dict]:
    """The answers of the tokenizers in the first folders, loaded by another version, which saves them to the second."""
    pairs = json.dumps([[str(folder), str(copy)] for folder, copy in folders])
    answer = json.loads(run_with_transformers(version, PROBE, pairs).splitlines()[-1])
    assert answer["version"] == version
    return answer["found"]


@pytest.mark.skipif(not other_versions(), reason="LVNAR_ENVIRONMENTS names no folder with environments in it")
def test_same_ids_on_every_version_in_every_direction(joint, separate, unigram, tmp_path):
    here = transformers.__version__
    tokenizers = {"joint": joint, "separate": separate, "unigram": unigram, "segmented": make_segmented_tokenizer()}
    expected = json.loads(json.dumps([answers(tokenizer) for tokenizer in tokenizers.values()]))
    for name, tokenizer in tokenizers.items():
        tokenizer.save_pretrained(tmp_path / here / name)
    # Each version loads what this one saved, and saves it again.
    for version in other_versions():
        assert probe(version, [(tmp_path / here / n, tmp_path / version / n) for n in tokenizers]) == expected
    # Each version loads what the others saved.
    for writer in other_versions():
        loaded = [AutoTokenizer.from_pretrained(tmp_path / writer / name) for name in tokenizers]
        assert json.loads(json.dumps([answers(tokenizer) for tokenizer in loaded])) == expected
    for reader in other_versions():
        for writer in other_versions():
            if reader != writer:
                assert probe(reader, [(tmp_path / writer / n, tmp_path / "last" / n) for n in tokenizers]) == expected


# training


def make_unigram_tokenizer() -> LvnarTokenizer:
    texts = SOURCE_TEXTS + JAPANESE_TEXTS, TARGET_TEXTS
    return train_tokenizer(*texts, vocab_size=380, min_character_count=1, max_length=64, algorithm="sentencepiece")


def test_training_is_deterministic(joint, unigram, tmp_path):
    joint.save_pretrained(tmp_path / "joint")
    unigram.save_pretrained(tmp_path / "unigram")
    program = (
        "from tests.model.test_tokenization import SOURCE_TEXTS, TARGET_TEXTS, make_unigram_tokenizer\n"
        "from lvnar_hf import train_tokenizer\n"
        "tokenizer = train_tokenizer(SOURCE_TEXTS, TARGET_TEXTS, vocab_size=330, max_length=64)\n"
        f"tokenizer.save_pretrained({str(tmp_path / 'again' / 'joint')!r})\n"
        f"make_unigram_tokenizer().save_pretrained({str(tmp_path / 'again' / 'unigram')!r})"
    )
    run_with_transformers(None, program)
    for name in ("joint", "unigram"):
        assert (tmp_path / name / "tokenizer.json").exists()
        for file in (tmp_path / name).glob("*.json"):
            assert file.read_bytes() == (tmp_path / "again" / name / file.name).read_bytes()


def test_a_large_corpus_is_sampled_for_sentencepiece(monkeypatch):
    given = []
    monkeypatch.setattr(tokenizer_training, "MAX_SENTENCEPIECE_SENTENCES", 40)
    monkeypatch.setattr(
        tokenizer_training,
        "train_sentencepiece",
        lambda texts, *sizes: given.append(texts) or train_sentencepiece(texts, *sizes),
    )
    for _ in range(2):
        sources, targets = (f"number {i}" for i in range(100)), (f"Nummer {i}" for i in range(10))
        train_tokenizer(sources, targets, vocab_size=285, min_character_count=1, algorithm="sentencepiece")
    assert given[0] == given[1] and len(set(given[0])) == 30
    assert [text.split()[0] for text in given[0]] == ["number"] * 20 + ["Nummer"] * 10
    assert max(int(text.split()[1]) for text in given[0][:20]) > 50


def test_rare_characters_get_no_id():
    texts = ["aa bb"] * 4 + ["ab q"]
    assert "q" not in train_tokenizer(texts, [], vocab_size=262, min_character_count=2).get_vocab()
    assert "q" in train_tokenizer(texts, [], vocab_size=263, min_character_count=1).get_vocab()


def test_size_too_small_names_both_numbers():
    with pytest.raises(ValueError, match="vocabulary of 100 is too small: 262 ids"):
        train_tokenizer(["ab"] * 9, ["ab"] * 9, vocab_size=100)


def test_text_too_small_warns_with_the_size():
    with pytest.warns(UserWarning, match="a vocabulary of 264, not 5000"):
        assert len(train_tokenizer(["ab"] * 9, ["ab"] * 9, vocab_size=5000)) == 264


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"normalization": "nfd"}, "one of nfc, nfkc, none, not 'nfd'"),
        ({"target_vocab_size": 400}, "target_vocab_size=400 needs joint=False"),
        ({"algorithm": "wordpiece"}, "algorithm is one of bpe, sentencepiece, not 'wordpiece'"),
    ],
)
def test_arguments_that_do_not_go_together(arguments, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(SOURCE_TEXTS, TARGET_TEXTS, vocab_size=400, **arguments)


# sentencepiece

# What Unigram in the tokenizers library, or its `Precompiled` normaliser, does otherwise than sentencepiece when left
# to itself: special tokens and bytes in the text, graphemes, ties between pieces.
HOSTILE_TEXTS = [
    *ODD_TEXTS,
    *JAPANESE_TEXTS,
    "<0x4",
    "x<0xFF>y<unk>z</s",
    "aaaaaaaaaaaaaaaaaaaaaaa",
    "eeeee " * 40,
    "......-----!!!!!",
    "e\u0301e\u0323\u0301",
    "か\u3099ｶﾞｷﾞﾊﾟ",
    "\u1100\u1161\u11a8각",
    "１０〜２０～３０~４０",
    "］\u0353①\u0301²\u0301",
    "\u200b\u200d x\ufeffy\u0007z\u007f",
    "㍿㋿ⅷﷺ",
]


def test_ids_and_text_are_those_of_sentencepiece(sample_texts):
    texts = [*sample_texts[0], *sample_texts[1]]
    model = train_sentencepiece(texts, vocab_size=700, min_character_count=3)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    backend = convert_sentencepiece(model)
    assert processor.get_piece_size() == backend.get_vocab_size() == 700
    for text in [*texts, *HOSTILE_TEXTS]:
        ids = processor.encode(text)
        assert backend.encode(text, add_special_tokens=False).ids == backend.encode(text).ids[:-1] == ids, text
        assert backend.decode(ids, skip_special_tokens=False) == processor.decode(ids), text
        assert backend.normalizer.normalize_str(text) == processor.normalize(text).replace("▁", " ").lstrip(" "), text
    # The whole way, from texts to the tokenizer.
    tokenizer = train_tokenizer(
        *sample_texts, vocab_size=700, min_character_count=3, algorithm="sentencepiece", max_length=40
    )
    assert tokenizer.encode_texts(HOSTILE_TEXTS) == [[*processor.encode(text), 1] for text in HOSTILE_TEXTS]


def test_sentencepiece_for_each_side():
    tokenizer = train_tokenizer(
        SOURCE_TEXTS, TARGET_TEXTS, 300, 305, joint=False, min_character_count=3, algorithm="sentencepiece"
    )
    assert not tokenizer.is_joint and (len(tokenizer), tokenizer.target_vocab_size) == (300, 305)
    for backend in (tokenizer.backend_tokenizer, tokenizer.target_backend_tokenizer):
        assert [backend.id_to_token(i) for i in (0, 1, 2, 3, 258)] == ["<pad>", "</s>", "<unk>", "<0x00>", "<0xFF>"]


def test_sentencepiece_parts_special_tokens_where_no_piece_lies_across():
    texts = ["</s> <pad> <0x41> x</s>y" for _ in range(20)]
    model = train_sentencepiece(texts, vocab_size=300, min_character_count=1)
    processor, backend = sentencepiece.SentencePieceProcessor(model_proto=model), convert_sentencepiece(model)
    for text in ("</s>", "a</s>b <pad>", "<0x41><unk>"):
        assert not {0, 1, 2, 3 + 0x41} & set(backend.encode(text, add_special_tokens=False).ids)
        assert backend.decode(processor.encode(text)) == text


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        (["", " "], 400, "There is no text"),
        (["ab"] * 9, 100, "a vocabulary of 100 is too small: 262 ids"),
    ],
)
def test_what_sentencepiece_cannot_be_trained_on(texts, size, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(texts, [], vocab_size=size, algorithm="sentencepiece")


def test_sentencepiece_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ImportError, match=r"pip install 'lvnar-hf\[train\]', or .* pip install sentencepiece"):
        train_tokenizer(SOURCE_TEXTS, TARGET_TEXTS, algorithm="sentencepiece")


# the command


def main(arguments: list[str]) -> LvnarTokenizer:
    """The command; imported late, because `datasets` does not go with the other versions of transformers."""
    from training.tokenizer import main

    return main(arguments)


@pytest.fixture
def text_files(tmp_path) -> tuple[Path, Path]:
    source, target = tmp_path / "train.en", tmp_path / "train.de.gz"
    source.write_text("".join(text + "\n" for text in SOURCE_TEXTS), encoding="utf-8")
    target.write_bytes(gzip.compress("".join(text + "\n" for text in TARGET_TEXTS).encode()))
    return source, target


def test_command_with_flags(text_files, tmp_path, joint):
    source, target = text_files
    arguments = ["--train_source_files", str(source), "--train_target_files", str(target), "--vocab_size", "330"]
    arguments += ["--max_length", "64", "--tokenizer_folder", str(tmp_path / "out")]
    result = run_forked([ROOT / "training" / "tokenizer.py", *arguments], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("vocabulary 330") == 2 and "tokens per sentence" in result.stdout
    assert answers(AutoTokenizer.from_pretrained(tmp_path / "out")) == answers(joint)
    with pytest.raises(FileExistsError, match="--overwrite"):
        main(arguments)


def test_command_with_a_recipe(text_files, tmp_path, separate, capsys):
    source, target = text_files
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").touch()
    recipe = {
        "data": {
            "train_source_files": [str(source)],
            "train_target_files": [str(target)],
            "tokenizer_folder": str(tmp_path / "out"),
        },
        "tokenizer": {
            "vocab_size": 310,
            "target_vocab_size": 330,
            "joint": False,
            "max_length": 64,
            "overwrite": True,
        },
        "training": {"max_steps": 1},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))  # JSON is YAML
    tokenizer = main(["--config", str(tmp_path / "recipe.yaml"), "--target_vocab_size", "320"])
    assert answers(tokenizer) == answers(separate)
    assert "target: vocabulary 320" in capsys.readouterr().out


def test_command_stores_segmenters_and_languages(tmp_path, capsys):
    pairs = zip(SOURCE_TEXTS * 2, JAPANESE_TEXTS * 3, strict=True)
    rows = [{"translation": {"en": english, "ja": japanese}} for english, japanese in pairs]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = {
        "data": {
            "train_files": [str(tmp_path / "train.jsonl")],
            "source_language": "ja",
            "target_language": "en",
            "tokenizer_folder": str(tmp_path / "out"),
        },
        "tokenizer": {
            "algorithm": "sentencepiece",
            "vocab_size": 370,
            "min_character_count": 2,
            "source_segmenter": "fugashi",
            "target_segmenter": "moses",
        },
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    main(["--config", str(tmp_path / "recipe.yaml")])
    assert "target: vocabulary 370" in capsys.readouterr().out
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (loaded.source_segmenter, loaded.target_segmenter) == ("fugashi", "moses")
    assert (loaded.source_language, loaded.target_language, loaded.model_max_length) == ("ja", "en", 512)


def test_command_refuses_unequal_sides(text_files, tmp_path):
    source, target = map(str, text_files)
    arguments = ["--train_source_files", source, source, "--train_target_files", target, "--tokenizer_folder"]
    with pytest.raises(ValueError, match=r"different numbers of lines: 24 in .*, 12 in"):
        main([*arguments, str(tmp_path / "out")])


def test_command_needs_a_folder(text_files):
    source, target = map(str, text_files)
    with pytest.raises(ValueError, match="Give --tokenizer_folder"):
        main(["--train_source_files", source, "--train_target_files", target])


def test_read_lines_splits_at_newlines_alone(tmp_path):
    data = "a\u2028b\u0085c\x0cd\r\n\nlast".encode()
    (tmp_path / "x").write_bytes(data)
    (tmp_path / "x.gz").write_bytes(gzip.compress(data))
    for name in ("x", "x.gz"):
        assert list(read_lines(tmp_path / name)) == ["a\u2028b\u0085c\x0cd", "", "last"]


def test_read_lines_names_the_line_that_is_not_utf8(tmp_path):
    (tmp_path / "x").write_bytes(b"fine\n\xff\n")
    with pytest.raises(ValueError, match="x, line 2: not valid UTF-8"):
        list(read_lines(tmp_path / "x"))
