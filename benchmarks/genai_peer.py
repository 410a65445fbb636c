"""The peer that several benchmarks share: onnxruntime-genai's own graph of a Hugging Face folder.

Its model builder (extra `bench`) makes the graph that its users get; the folder's weights are the
same as ours.  The tokenizer that the builder insists on is one word a token.
"""

import json
import subprocess
import sys
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel


def add_tokenizer(folder: Path, vocabulary: int) -> None:
    """Write to `folder` the files of a tokenizer of `vocabulary` words."""
    words = {f"t{i}": i for i in range(vocabulary)}
    Tokenizer(WordLevel(words, unk_token="t0")).save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "t0"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def build(source: Path, out: Path, threads: int, precision: str = "fp32") -> Path:
    """The folder `out` that onnxruntime-genai opens, from the Hugging Face folder `source`.

    Raises:
        SystemExit: if the builder fails, with the end of what it said.
    """
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(source)]
    command += ["-o", str(out), "-p", precision, "-e", "cpu", "-c", f"{out}.cache"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the peer's model builder failed:\n{done.stderr[-2000:]}")
    path = out / "genai_config.json"
    config = json.loads(path.read_text())
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = threads
    path.write_text(json.dumps(config))
    return out
