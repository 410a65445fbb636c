"""Files of other programs: what they are, and the way that leads on from them."""

from pathlib import Path

TO_ONNX = "Convert it to ONNX, and export the .onnx file: {tool}"
TENSORFLOW = "python -m tf2onnx.convert"
SKLEARN = (b"sklearn", b"joblib", b"xgboost", b"lightgbm")


def named(path: Path, head: bytes) -> str | None:
    """What a file is that is no source, by its first bytes and its name, and what to do with it."""
    suffix = path.suffix.lower()
    if head.startswith(b"GGUF"):
        return (
            "is a GGUF file of llama.cpp, whose blocks of few bits are not read. Export the model "
            "that it was made from, a Hugging Face directory, and quantize it here: --pass "
            "'decoupleq:bits=4'"
        )
    if head[4:8] == b"TFL3":
        how = TO_ONNX.format(tool=f"{TENSORFLOW} --tflite {path.name} --output model.onnx")
        return f"is a model of TensorFlow Lite. {how}"
    if head.startswith(b"\x89HDF"):
        return (
            "is an HDF5 file, as Keras writes. Load it in Keras, save it with "
            "model.export('folder', format='onnx'), and export the .onnx file."
        )
    if suffix == ".pb":
        how = TO_ONNX.format(tool=f"{TENSORFLOW} --graphdef {path.name} --output model.onnx")
        return f"is a graph of TensorFlow. {how}"
    if suffix == ".model" and head[:1] == b"\x0a":
        return (
            "is a model of sentencepiece: a tokenizer, which holds no weights. Give it beside the "
            "checkpoint: --tokenizer FILE"
        )
    return None


def archive(names: list[str]) -> str | None:
    """What a zip archive is, by the names in it."""
    if names and all(name.endswith(".npy") for name in names):
        return (
            f"is an .npz file: arrays by name ({', '.join(n[:-4] for n in names[:4])}). If these "
            "are weights, save them as a state dict: torch.save({n: torch.from_numpy(x) for n, x "
            "in numpy.load(FILE).items()}, 'weights.pt'). Example inputs are given with --inputs"
        )
    if "metadata.json" in names and "model.weights.h5" in names:
        return (
            "is a model of Keras. Save it with model.export('folder', format='onnx'), and export "
            "the .onnx file"
        )
    return None


def folder(path: Path) -> str | None:
    """What a folder is that is no source."""
    if (path / "saved_model.pb").exists():
        how = TO_ONNX.format(tool=f"{TENSORFLOW} --saved-model {path.name} --output model.onnx")
        return f"is a SavedModel of TensorFlow. {how}"
    weights = sorted(p.name for p in path.iterdir() if p.suffix in (".safetensors", ".pt", ".bin"))
    if weights:
        return (
            f"is a folder without config.json, which would say how the model is built. It holds "
            f"{', '.join(weights[:4])}: give one of these with --model, or put the config.json of "
            "the model beside it."
        )
    return None


def pickled(path: Path) -> str | None:
    """What a pickle is, by the packages that it names; none of it is loaded."""
    with path.open("rb") as file:
        head = file.read(1 << 16)
    if any(name in head for name in SKLEARN):
        return (
            "is a pickle of scikit-learn or of a library beside it. Convert the model to ONNX with "
            "skl2onnx.to_onnx(model, rows), and export the .onnx file."
        )
    return None
