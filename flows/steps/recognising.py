"""What kind of model a file or folder is, by its content; nothing of it is run.

What cannot be served is named, with the way to a form that can.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

from flows.domain.errors import SpecInvalid

PICKLES = (".pkl", ".pickle", ".joblib")
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"x\x9c", b"x\x01", b"x\xda", b"\x04\x22\x4d\x18")
"""How joblib's compressed pickles begin."""
HEAD = 4096


@dataclass(frozen=True)
class Recognised:
    """`kind` is one of `serving.runtime.kind`, `packages` the extra that it needs, `pickle` whether reading
    it can
    run anything."""

    kind: str
    packages: str
    pickle: bool = False


def recognise(path: Path) -> Recognised:
    """The kind of a model. Raises SpecInvalid in one line: what it is, and what to do."""
    if path.is_dir():
        return _folder(path)
    if not path.exists():
        raise SpecInvalid(f"{path}: no such file; give the trained model's file or folder")
    try:
        with path.open("rb") as content:
            head = content.read(HEAD)
    except OSError as error:
        raise SpecInvalid(f"{path}: cannot be read ({error.strerror})") from error
    if not head:
        raise SpecInvalid(f"{path}: is empty; save the model again")
    if head.startswith(b"version https://git-lfs"):
        raise SpecInvalid(f"{path}: only points to a file in Git LFS; fetch it with 'git lfs pull'")
    if found := _refused(path, head):
        raise SpecInvalid(f"{path}: {found}")
    if head.startswith(b"PK"):
        return _archive(path)
    if path.suffix == ".safetensors" or (head[8:9] == b"{" and head[5:8] == b"\0\0\0"):
        if (path.parent / "config.json").is_file() and b'"architectures"' in _text(
            path.parent / "config.json"
        ):
            raise SpecInvalid(
                f"{path}: part of a Hugging Face model; give its folder: --from {path.absolute().parent}"
            )
        return Recognised("pytorch", "safetensors")
    if head.startswith(b"tree\n"):
        return Recognised("lightgbm", "lightgbm")
    if head.startswith(b"{") and b"learner" in head:
        return Recognised("xgboost", "xgboost")
    pickled = head.startswith(b"\x80") or head.startswith(COMPRESSED)
    if path.suffix in PICKLES and pickled:
        return Recognised("sklearn", "sklearn", pickle=True)
    if path.suffix in (".pt", ".pth", ".bin") and head.startswith(b"\x80"):
        return Recognised("pytorch", "")  # weights in PyTorch's first format
    if path.suffix == ".onnx":
        return Recognised("onnx", "onnx")
    if pickled:
        raise SpecInvalid(
            f"{path}: a pickle; call it {path.stem}.joblib (scikit-learn) or .pt (weights of PyTorch)"
        )
    raise SpecInvalid(f"{path}: no model that is known here; {KNOWN}")


KNOWN = (
    "known are ONNX, .pt2, TorchScript, weights (safetensors, state dict), skops, joblib, XGBoost's .json "
    "and .ubj, "
    "LightGBM's text, and folders of TensorFlow (SavedModel), MLflow and Hugging Face; for anything else "
    "write a "
    "handler.py (README)"
)


def _refused(path: Path, head: bytes) -> str:
    if head.startswith(b"\x89HDF"):
        return "a Keras model in HDF5; write a SavedModel with model.export('FOLDER') and give that folder"
    if head.startswith(b"CBM1"):
        return "a CatBoost model; write it with save_model('model.onnx', format='onnx')"
    if head.startswith(b"GGUF"):
        return "a GGUF model of llama.cpp, which no runtime here reads; give the folder it was made from"
    if head[4:8] == b"TFL3":
        return "a TensorFlow Lite model; give the SavedModel that it was made from"
    if head.startswith((b"PAR1", b"SQLite format")):
        return "data, no model; give the file that your training has written"
    if path.suffix == ".py":
        return "code; a model of your own code is a folder with handler.py and model.yaml (README)"
    if path.suffix == ".pb":
        return "one part of a TensorFlow model; give the SavedModel folder that holds saved_model.pb"
    return ""


def _folder(path: Path) -> Recognised:
    try:
        names = {entry.name for entry in path.iterdir()}
    except OSError as error:
        raise SpecInvalid(f"{path}: cannot be read ({error.strerror})") from error
    if "saved_model.pb" in names:
        return Recognised("tensorflow", "tensorflow")
    if "MLmodel" in names:
        return Recognised("mlflow", "mlflow", pickle=True)
    if "config.json" in names and (b'"architectures"' in _text(path / "config.json")):
        return Recognised("huggingface", "huggingface")
    shown = ", ".join(sorted(names)[:5]) or "nothing"
    raise SpecInvalid(
        f"{path}: a folder that is no SavedModel, MLflow or Hugging Face model (it holds {shown}); name "
        "the model's "
        "file in it"
    )


def _archive(path: Path) -> Recognised:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile as error:
        raise SpecInvalid(f"{path}: a damaged archive ({error}); copy or save the file again") from error
    if "schema.json" in names:
        return Recognised("sklearn", "sklearn")
    if "model.weights.h5" in names:
        raise SpecInvalid(
            f"{path}: a Keras model; write a SavedModel with model.export('FOLDER') and give that folder"
        )
    if any(name.endswith(("/data.pkl", "/version", "/archive_format", ".json")) for name in names):
        return Recognised("pytorch", "")
    shown = ", ".join(names[:4])
    raise SpecInvalid(f"{path}: an archive that holds no model known here ({shown}); {KNOWN}")


def _text(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
