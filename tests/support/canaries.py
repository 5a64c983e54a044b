"""Model repositories that would leave a mark if anything in them ran, and a script that loads them without trust.

A mark is an empty file, <marks>/<name of the repository>. `build` makes the repositories; run as a script, on any
version of transformers, this loads each in every way there is without trust, with "y" on standard input for whoever
asks, and prints as JSON what was said. `kernels` is there as a package that only leaves a mark.
"""

import contextlib
import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOREIGN_CODE = """
import os
from pathlib import Path
Path({mark!r}).touch()
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerFast, Pipeline
class EvilConfig(PretrainedConfig):
    model_type = "evil"
class EvilModel(PreTrainedModel):
    config_class = EvilConfig
class EvilTokenizer(PreTrainedTokenizerFast):
    pass
class EvilPipeline(Pipeline):
    pass
def generate(model, *args, **kwargs):
    return args
"""

# Answers to any name, and to any call; where code would be fetched, a mark is left.
FAKE_PACKAGE = """
from pathlib import Path
class _Meta(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return 1  # of a flag
class _Anything(metaclass=_Meta):
    def __init__(self, *args, **kwargs): pass
    def __call__(self, *args, **kwargs): return args[0] if args and callable(args[0]) else self
def _fetch(*args, **kwargs):
    Path(MARK).touch()
    raise RuntimeError("code would be fetched")
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    if name in ("get_kernel", "get_local_kernel", "load_kernel", "has_kernel"):
        return _fetch
    return type(name, (_Anything,), {})
"""


class Marking:
    """Unpickled, it leaves a mark."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)  # of the standard library, so that any process can


def write_fields(file: Path, **fields: Any) -> None:
    """Set fields of a JSON file, which need not be there."""
    before = json.loads(file.read_text("utf-8")) if file.exists() else {}
    file.write_text(json.dumps({**before, **fields}), "utf-8")


def build(sound: Path, folder: Path, marks: Path) -> list[str]:
    """The repositories, folders in `folder`, each a copy of a sound one that is spoilt; their names.

    Args:
        marks: an empty folder.
    """
    makers: dict[str, Callable[[Path, Path], None]] = {}

    def canary(name: str) -> Callable:
        def add(maker: Callable[[Path, Path], None]) -> None:
            makers[name] = maker

        return add

    def code(mark: Path) -> str:
        return FOREIGN_CODE.format(mark=str(mark))

    def with_field(file: str, **fields: Any) -> Callable[[Path, Path], None]:
        return lambda place, mark: write_fields(place / file, **fields)

    def with_pickle(*names: str, keeps_weights: bool = True) -> Callable[[Path, Path], None]:
        def spoil(place: Path, mark: Path) -> None:
            if not keeps_weights:
                (place / "model.safetensors").unlink()
            for name in names:
                (place / name).write_bytes(pickle.dumps({"weight": Marking(mark)}))

        return spoil

    def with_index(shard: str) -> Callable[[Path, Path], None]:
        def spoil(place: Path, mark: Path) -> None:
            weights = place / "model.safetensors"
            from safetensors import safe_open

            with safe_open(weights, "pt") as stored:
                names = list(stored.keys())
            target = place / shard
            if shard.endswith(".safetensors"):
                shutil.move(weights, target)
            else:
                weights.unlink()
                target.write_bytes(pickle.dumps({"weight": Marking(mark)}))
            write_fields(place / "model.safetensors.index.json", metadata={}, weight_map=dict.fromkeys(names, shard))

        return spoil

    @canary("custom_generate")
    def _(place: Path, mark: Path) -> None:
        (place / "custom_generate").mkdir()
        (place / "custom_generate" / "generate.py").write_text(code(mark))

    @canary("custom_generate_with_requirements")
    def _(place: Path, mark: Path) -> None:
        makers["custom_generate"](place, mark)
        (place / "custom_generate" / "requirements.txt").write_text("torch\n")
        write_fields(place / "generation_config.json", custom_generate=str(place))

    for name in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
        makers[f"kernel_in_{name}"] = with_field("config.json", **{name: "user/kernel"})
    makers["kernel_with_flash_prefix"] = with_field("config.json", attn_implementation="paged|user/kernel@main:forward")
    makers["kernel_in_experts"] = with_field("config.json", experts_implementation="user/kernel")
    makers["kernel_config"] = with_field("config.json", use_kernels=True, kernel_config={"RMSNorm": "user/kernel:x"})
    makers["quantizer"] = with_field("config.json", quantization_config={"quant_method": "mxfp4"})
    makers["named_weights"] = with_field("config.json", transformers_weights="../outside.safetensors")

    @canary("unknown_model_type")
    def _(place: Path, mark: Path) -> None:
        (place / "evil.py").write_text(code(mark))
        auto_map = {"AutoConfig": "evil.EvilConfig", "AutoModelForSeq2SeqLM": "evil.EvilModel"}
        write_fields(place / "config.json", model_type="evil", auto_map=auto_map)

    @canary("auto_map_of_a_known_model_type")
    def _(place: Path, mark: Path) -> None:
        (place / "evil.py").write_text(code(mark))
        auto_map = {"AutoConfig": "evil.EvilConfig", "AutoModelForSeq2SeqLM": "evil.EvilModel"}
        write_fields(place / "config.json", auto_map=auto_map)

    @canary("auto_map_of_another_repository")
    def _(place: Path, mark: Path) -> None:
        other = place.with_name(f"{place.name}-other")
        other.mkdir()
        (other / "evil.py").write_text(code(mark))
        write_fields(place / "config.json", auto_map={"AutoConfig": f"{other}--evil.EvilConfig"})

    @canary("changed_module")
    def _(place: Path, mark: Path) -> None:
        for name in ("configuration_lvnar.py", "modeling_lvnar.py", "tokenization_lvnar.py", "pipeline_lvnar.py"):
            (place / name).write_text(code(mark))

    @canary("tokenizer")
    def _(place: Path, mark: Path) -> None:
        (place / "evil.py").write_text(code(mark))
        auto_map = {"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]}
        write_fields(place / "tokenizer_config.json", tokenizer_class="EvilTokenizer", auto_map=auto_map)

    @canary("pipeline")
    def _(place: Path, mark: Path) -> None:
        (place / "evil.py").write_text(code(mark))
        task = {"impl": "evil.EvilPipeline", "pt": ["AutoModelForSeq2SeqLM"], "type": "text"}
        write_fields(place / "config.json", custom_pipelines={"translation": task})

    @canary("adapter")
    def _(place: Path, mark: Path) -> None:
        other = place.with_name(f"{place.name}-other")
        shutil.copytree(sound, other)
        makers["unknown_model_type"](other, mark)
        write_fields(place / "adapter_config.json", base_model_name_or_path=str(other), peft_type="LORA")

    @canary("modules_beside_the_weights")
    def _(place: Path, mark: Path) -> None:
        for name in ("__init__", "kernels", "onnxruntime", "sacremoses", "setup", "sitecustomize", "fugashi"):
            (place / f"{name}.py").write_text(code(mark))
        write_fields(place / "tokenizer_config.json", source_segmenter="moses")

    @canary("template")
    def _(place: Path, mark: Path) -> None:
        (place / "chat_template.jinja").write_text(f"{{{{ cycler.__init__.__globals__.os.mkdir({str(mark)!r}) }}}}")

    @canary("links")
    def _(place: Path, mark: Path) -> None:
        other = place.with_name(f"{place.name}-other")
        other.mkdir()
        (other / "secret.json").write_text('{"secret": 1}')
        (other / "code.py").write_text(code(mark))
        (place / "results").symlink_to(other)
        (place / "evil.py").symlink_to(other / "code.py")

    makers["pickle_only"] = with_pickle("pytorch_model.bin", keeps_weights=False)
    makers["pickle_as_safetensors"] = with_pickle("model.safetensors", keeps_weights=False)
    makers["pickles_of_a_trainer"] = with_pickle("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth")
    makers["pickled_adapter"] = with_pickle("adapter_model.bin", "flax_model.msgpack", "tf_model.h5")
    makers["index_of_a_pickle"] = with_index("pytorch_model.bin")
    makers["index_of_a_file_outside"] = with_index("../outside.safetensors")
    for name, make in makers.items():
        shutil.copytree(sound, folder / name)
        make(folder / name, marks / name)
    return list(makers)


def fake_kernels(folder: Path, mark: Path) -> None:
    """The package `kernels` as transformers looks for it: modules, and a version."""
    for module in ("kernels", "kernels/layer", "kernels/utils"):
        (folder / module).mkdir(parents=True)
        (folder / module / "__init__.py").write_text(FAKE_PACKAGE.replace("MARK", repr(str(mark))))
    (folder / "kernels" / "layer" / "mode.py").write_text(FAKE_PACKAGE.replace("MARK", repr(str(mark))))
    information = folder / "kernels-0.12.3.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.12.3\n")


def load_without_trust(place: Path) -> dict[str, str]:
    """Load a repository in every way; what each way said, or "loaded"."""
    from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig, pipeline

    from lvnar_hf import LvnarConfig, LvnarForConditionalGeneration, LvnarTokenizer, hub
    from lvnar_hf.hub.checks import check_repository
    from lvnar_hf.hub.description import describe_model
    from lvnar_hf.jobs.line_translator import load_translator
    from lvnar_hf.loading import load_config, load_model, load_tokenizer

    name = str(place)

    def translate(model: Any) -> None:
        model.generate(**LvnarTokenizer.from_pretrained(place)(["Tom laughed."], return_tensors="pt"))

    ways: dict[str, Callable[[], Any]] = {
        "load_config": lambda: load_config(name),
        "load_model": lambda: translate(load_model(name)),
        "load_tokenizer": lambda: load_tokenizer(name)("Tom laughed."),
        "LvnarConfig": lambda: LvnarConfig.from_pretrained(name),
        "LvnarTokenizer": lambda: LvnarTokenizer.from_pretrained(name)("Tom laughed."),
        "model": lambda: translate(LvnarForConditionalGeneration.from_pretrained(name)),
        "model, trust_remote_code=False": lambda: translate(
            LvnarForConditionalGeneration.from_pretrained(name, trust_remote_code=False)
        ),
        "model, None": lambda: LvnarForConditionalGeneration.from_pretrained(name, use_safetensors=None),
        "model, pickled": lambda: LvnarForConditionalGeneration.from_pretrained(name, use_safetensors=False),
        "generation_config": lambda: GenerationConfig.from_pretrained(name),
        "pipeline": lambda: pipeline("translation", model=name, trust_remote_code=False)("Tom laughed."),
        "translate": lambda: load_translator(name, "auto", preserve_format=True).translate(["Tom laughed."]),
        "info": lambda: describe_model(name),
        "check_repository": lambda: check_repository(place),
        "verify": lambda: hub.verify(place),
        "assemble": lambda: hub.assemble(place, place.with_name(f"{place.name}-assembled")),
    }
    # Of a model type that it does not know, transformers asks, and here it would hear yes.
    if place.name not in ("unknown_model_type", "adapter", "tokenizer"):
        ways["AutoConfig"] = lambda: AutoConfig.from_pretrained(name)
        ways["AutoModelForSeq2SeqLM"] = lambda: translate(AutoModelForSeq2SeqLM.from_pretrained(name))
        ways["AutoTokenizer"] = lambda: AutoTokenizer.from_pretrained(name)
    said = {}
    for way, load in ways.items():
        try:
            load()
            said[way] = "loaded"
        except Exception as error:
            said[way] = f"{type(error).__name__}: {error}"
    return said


def main() -> None:
    """Load each repository without trust; then, as a control, some with it."""
    folder, packages, names = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    sys.path.insert(0, packages)
    said: dict[str, Any] = {name: load_without_trust(folder / name) for name in names}
    from transformers import AutoConfig, GenerationMixin

    marks = folder.parent / "marks"
    said["marks"] = sorted(path.name for path in marks.iterdir())
    with contextlib.suppress(Exception):
        AutoConfig.from_pretrained(folder / "unknown_model_type", trust_remote_code=True)
    with contextlib.suppress(Exception):
        GenerationMixin().load_custom_generate(str(folder / "custom_generate"), trust_remote_code=True)
    with contextlib.suppress(Exception):
        pickle.loads((folder / "pickle_only" / "pytorch_model.bin").read_bytes())
    with contextlib.suppress(Exception):
        import kernels  # type: ignore[import-not-found]

        kernels.get_kernel("user/kernel")
    said["marks with trust"] = sorted(path.name for path in marks.iterdir())
    print(json.dumps(said))


if __name__ == "__main__":
    main()
