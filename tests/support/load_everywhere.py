"""Load a published model in every way there is and print, as JSON, the token ids that each way gives.

A script for fresh processes, started by test_loading.py with a task on its input. The mode says who brings the code:
"package", "remote" (the package cannot be imported; `trust_remote_code=True`) or "both".
"""

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Read the task, load, print."""
    task = json.load(sys.stdin)
    mode, repo_id, revision = task["mode"], task["repo_id"], task["revision"]
    if mode == "remote":
        sys.modules["lvnar_hf"] = None  # type: ignore[assignment]
    else:
        import lvnar_hf

    import torch
    from golden import generate_ids
    from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoTokenizer, pipeline

    trust = {} if mode == "package" else {"trust_remote_code": True}
    results: dict[str, Any] = {"ids": {}, "values": {}}

    def load(name: str, source: str | Path, model_options: dict[str, Any] | None = None, **options: Any) -> Any:
        model = AutoModelForSeq2SeqLM.from_pretrained(source, **trust, **options, **(model_options or {}))
        tokenizer = AutoTokenizer.from_pretrained(source, **trust, **options)
        results["ids"][name] = generate_ids(model, tokenizer, task["texts"], task["steps"])
        return model, tokenizer

    def translate(name: str, options: dict[str, Any]) -> Any:
        translator = pipeline("translation", model=repo_id, revision=revision, **options)
        results["ids"][name] = [
            [
                result["translation_token_ids"].tolist()
                for result in translator(task["texts"], num_refinement_steps=steps, return_tensors=True)
            ]
            for steps in task["steps"]
        ]
        return translator

    config = AutoConfig.from_pretrained(repo_id, revision=revision, **trust)
    model, tokenizer = load("by tag", repo_id, revision=revision)
    translator = translate("pipeline", trust)
    objects = (config, model, tokenizer, translator)
    results["values"]["origins"] = [type(value).__module__.partition(".")[0] for value in objects]
    results["values"]["are calibrated"] = [one.calibration is not None for one in (model, translator.model)]
    results["values"]["default steps by tag"] = model.generation_config.num_refinement_steps

    if not task["offline"]:
        load("by commit", repo_id, revision=task["commit"])
        main_model, _ = load("main", repo_id)
        results["values"]["default steps of main"] = main_model.generation_config.num_refinement_steps
        half = AutoModelForSeq2SeqLM.from_pretrained(repo_id, revision=revision, dtype=torch.bfloat16, **trust)
        results["values"]["dtypes"] = [str(half.dtype), str(model.dtype)]
        load("dtype", repo_id, {"dtype": torch.float32}, revision=revision)
        load("device_map", repo_id, {"device_map": "cpu"}, revision=revision)

        saved = Path(task["folder"]) / "saved"
        model.save_pretrained(saved)
        tokenizer.save_pretrained(saved)
        load("saved", saved)
        sharded = Path(task["folder"]) / "sharded"
        model.save_pretrained(sharded, max_shard_size="15MB")
        tokenizer.save_pretrained(sharded)
        load("sharded", sharded)
        results["values"]["shards"] = len(list(sharded.glob("*.safetensors")))
        pushed = f"user/pushed-{mode}"
        model.push_to_hub(pushed)
        tokenizer.push_to_hub(pushed)
        load("pushed", pushed, revision="main")
        if mode == "both":
            own = AutoModelForSeq2SeqLM.from_pretrained(repo_id, revision=revision)
            results["ids"]["without trust"] = generate_ids(own, tokenizer, task["texts"], task["steps"])
            results["values"]["is the package's"] = type(own) is lvnar_hf.LvnarForConditionalGeneration
            translate("pipeline without trust", {})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
