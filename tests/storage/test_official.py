"""Official checkpoints: read, refused, written back; and damaged ones of every kind."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from dataclasses import replace
from functools import reduce
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import make_run, make_tasks, write_study

from etrm.arc.augment import Augmentation
from etrm.arc.task import Task
from etrm.cli import main
from etrm.config.execution import TrackingConfig
from etrm.models.build import build_model
from etrm.storage.checkpoint import CheckpointError, load_weights
from etrm.storage.first_weights import ParentError
from etrm.storage.official import read_official
from etrm.storage.records import DamagedFileError
from etrm.storage.trained_with import KNOWABLE
from etrm.training.export import export
from etrm.training.initial_weights import LeakError, load_initial_weights, read_parent
from etrm.training.run import RunPaths, train_run

OFF = TrackingConfig(wandb="disabled")
RUN = make_run("embedding", experiment="trm_strict")


def study_in(folder: Path) -> RunPaths:
    return write_study(folder, make_tasks(4), make_tasks(2, 7, 3, "held"))


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished strict pretraining."""
    paths = study_in(tmp_path_factory.mktemp("s"))
    train_run(RUN, paths, OFF, device="cpu")
    return paths.out


@pytest.fixture
def own_run(run_folder: Path, tmp_path: Path) -> Path:
    """Return a copy of it that may be damaged."""
    return shutil.copytree(run_folder, tmp_path / "run")


@pytest.fixture
def checkpoint(run_folder: Path, tmp_path: Path) -> Path:
    """Return the same weights as an official file."""
    export(run_folder, tmp_path / "official.pt")
    return tmp_path / "official.pt"


def decoder() -> torch.nn.Module:
    return build_model(make_run(seed=5), 1).decoder


def start(
    path: Path, init: Any = MappingProxyType({}), **model: Any
) -> tuple[torch.nn.Module, dict[str, Any]]:
    module = decoder()
    run = make_run(model=model, decoder=init)
    return module, load_initial_weights(module, read_parent(path, None), run)


def flip_a_bit(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("which", ["raw", "ema"])
def test_round_trip_is_bit_equal(run_folder: Path, tmp_path: Path, suffix: str, which: str) -> None:
    out = tmp_path / f"x.{suffix}"
    (names,) = export(run_folder, out, which).values()
    assert list(tmp_path.iterdir()) == [out], "one file"
    assert all(name.startswith("_orig_mod.model.inner.") for name in names)
    back = read_official(out).tensors
    weights = load_weights(run_folder / "model.safetensors", which)
    for name, tensor in back.items():
        ours = "context.weights" if name == "puzzle_emb.weights" else f"decoder.{name}"
        assert torch.equal(tensor, weights[ours])
    buffers = {"H_init", "L_init", "puzzle_emb.weights"}
    assert buffers <= set(back) if which == "raw" else not buffers & set(back)
    assert len(back) == (len(weights) if which == "raw" else len(weights) - 3)


@pytest.mark.parametrize(
    "prefix",
    [f"{front}inner." for front in ("_orig_mod.model.", "model.", "module._orig_mod.model.", "")],
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_prefixes_of_compilation_and_parallelism(
    checkpoint: Path, tmp_path: Path, prefix: str, suffix: str
) -> None:
    tensors = {prefix + n: t for n, t in read_official(checkpoint).tensors.items()}
    path = tmp_path / f"named.{suffix}"
    torch.save(tensors, path) if suffix == "pt" else save_file(tensors, path)
    module, report = start(path)
    expected, _ = start(checkpoint)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name])
    assert report["skipped"] == ["puzzle_emb.weights"]
    assert report["new"] == []
    assert report["unchecked"] == list(KNOWABLE)
    assert {"heads", "H_cycles", "positions", "no_ACT_continue"} < set(KNOWABLE)
    assert report["differs"] == []
    assert len(report["sha256"]) == 64


def test_averaged_weights_leave_the_first_states_new(run_folder: Path, tmp_path: Path) -> None:
    export(run_folder, tmp_path / "ema.pt", "ema")
    module, report = start(tmp_path / "ema.pt")
    assert report["new"] == ["decoder.H_init", "decoder.L_init"]
    assert report["skipped"] == []
    fresh = decoder().state_dict()
    assert torch.equal(module.state_dict()["H_init"], fresh["H_init"])
    assert not torch.equal(module.state_dict()["lm_head.weight"], fresh["lm_head.weight"])


@pytest.fixture(scope="module", params=["standard", "in_context"])
def etrm_folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run with an encoder."""
    paths = study_in(tmp_path_factory.mktemp("e"))
    train_run(make_run(request.param, train={"steps": 2}), paths, OFF, device="cpu")
    return paths.out


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("which", ["raw", "ema"])
def test_an_encoder_is_written_beside_its_decoder(
    etrm_folder: Path, tmp_path: Path, suffix: str, which: str
) -> None:
    out, beside = tmp_path / f"v1.2.{suffix}", tmp_path / f"v1.2.encoder.{suffix}"
    files = export(etrm_folder, out, which)
    assert set(files) == {out, beside} == set(tmp_path.iterdir())
    weights = load_weights(etrm_folder / "model.safetensors", which, buffers=which == "raw")
    decoder = {f"decoder.{name}": tensor for name, tensor in read_official(out).tensors.items()}
    encoder = load_file(beside) if suffix == "safetensors" else torch.load(beside)
    assert len(decoder) == len(files[out])
    assert sorted(encoder) == files[beside]
    assert all(name.startswith("context.") for name in encoder)
    assert not decoder.keys() & encoder.keys()
    both = decoder | encoder
    assert both.keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in both.items())
    if which == "raw":
        names = load_file(etrm_folder / "model.safetensors")
        assert both.keys() == {n.removeprefix("raw.") for n in names if n.startswith("raw.")}


def test_the_encoder_goes_back_into_the_model(etrm_folder: Path, tmp_path: Path) -> None:
    """And its file says which one it is, and is no checkpoint to start from."""
    record = json.loads((etrm_folder / "run.json").read_text())
    source = record["config"]["context"]["source"]
    export(etrm_folder, tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.encoder.safetensors", "pt") as file:
        assert file.metadata() == {"source": source, "weights": "raw"}
    model = build_model(make_run(source, seed=9), 1)
    encoder = load_file(tmp_path / "x.encoder.safetensors")
    keys = model.load_state_dict(encoder, strict=False)
    assert keys.unexpected_keys == []
    assert all(name.startswith("decoder.") for name in keys.missing_keys)
    start(tmp_path / "x.safetensors")
    assert "found the name 'context." in refused(tmp_path / "x.encoder.safetensors")


def test_weights_that_are_not_those_of_the_record_are_refused(
    own_run: Path, tmp_path: Path
) -> None:
    path, out = own_run / "model.safetensors", tmp_path / "x.pt"
    flip_a_bit(path, path.stat().st_size * 2 // 3)
    with pytest.raises(CheckpointError, match=r"expected .* from its run\.json"):
        export(own_run, out)
    with pytest.raises(CheckpointError, match=r"expected .* from its run\.json"):
        read_parent(own_run, None)
    (own_run / "run.json").unlink()
    with pytest.raises(CheckpointError, match=r"found no run\.json, expected a run folder"):
        export(own_run, out)
    assert not out.exists()


def test_recorded_official_checkpoints_are_read(golden: Path) -> None:
    pt = read_official(golden / "trm_checkpoint_step0.pt").tensors
    safe = read_official(golden / "trm_checkpoint_step0.safetensors").tensors
    assert pt.keys() == safe.keys()
    assert all(torch.equal(tensor, safe[name]) for name, tensor in pt.items())
    assert "H_init" not in read_official(golden / "trm_ema_step6.safetensors").tensors


@pytest.mark.parametrize(
    ("model", "message"),
    [({"width": 32}, "width 16 there and 32 here"), ({"layers": 2}, "layers 1 there and 2 here")],
)
def test_other_sizes_print_both(checkpoint: Path, model: dict[str, int], message: str) -> None:
    run = make_run(model=model)
    with pytest.raises(CheckpointError, match=message):
        load_initial_weights(build_model(run, 1).decoder, read_parent(checkpoint, None), run)


def test_cycles_are_checked_where_the_official_config_is_beside(checkpoint: Path) -> None:
    arch = (
        "arch: {hidden_size: 16, num_heads: 2, L_layers: 1, expansion: 4, H_cycles: 2, L_cycles: 1}"
    )
    config = checkpoint.parent / "all_config.yaml"
    config.write_text(arch)
    _, report = start(checkpoint)
    assert report["unchecked"] == [
        *("positions", "loss_type", "architecture", "context_tokens", "max_steps", "dtype")
    ]
    config.write_text(arch.replace("L_cycles: 1", "L_cycles: 4").replace("heads: 2", "heads: 8"))
    with pytest.raises(CheckpointError, match=r"heads 8 there and 2 here, L_cycles 4 there and 1"):
        start(checkpoint)


def test_sizes_and_cycles_of_our_own_runs(run_folder: Path) -> None:
    with pytest.raises(CheckpointError, match=r"heads 2 there and 4 here, H_cycles 2 there and 3"):
        start(run_folder, H_cycles=3, heads=4)


def test_export_from_the_command_line(run_folder: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["export", str(run_folder), str(tmp_path / "x.pt"), "--weights", "ema"]) == 0
    assert "ema weights" in capsys.readouterr().out
    assert main(["export", str(run_folder), str(tmp_path / "x.bin")]) == 1
    assert "ends in .pt or .safetensors" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "none"), str(tmp_path / "x.pt")]) == 1
    assert "no such file" in capsys.readouterr().err
    assert main(["export", str(run_folder), str(tmp_path / "x.pt" / "y.pt")]) == 1
    assert f"{tmp_path}/x.pt" in capsys.readouterr().err


def test_an_export_lists_its_files(etrm_folder: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["export", str(etrm_folder), str(tmp_path / "x.pt")]) == 0
    first, second = capsys.readouterr().out.splitlines()
    decoder = len(read_official(tmp_path / "x.pt").tensors)
    encoder = len(torch.load(tmp_path / "x.encoder.pt"))
    assert first.startswith(f"{tmp_path / 'x.pt'}: {decoder} tensors, raw weights of the d")
    assert second.startswith(f"{tmp_path / 'x.encoder.pt'}: {encoder} tensors, raw weights of its")
    assert "official TRM reads the first file only" in second


# --- damaged files: a clear error each, no code run, no partial state ---


class Bomb:
    """An object whose pickle makes a folder where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def refused(path: Path) -> str:
    """Return the error that a file raises, with the decoder unchanged."""
    module = decoder()
    before = {n: t.clone() for n, t in module.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_initial_weights(module, read_parent(path, None), make_run())
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())
    assert str(path) in str(error.value)
    assert re.search(r"found|no such file", str(error.value))
    return str(error.value)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_never_run(tmp_path: Path, protocol: int, zipped: bool) -> None:
    path, trace = tmp_path / "bomb.pt", tmp_path / "exploded"
    content = {"model.inner.lm_head.weight": Bomb(trace)}
    if zipped:
        torch.save(content, path, pickle_protocol=protocol)
    else:
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    assert "never loaded" in refused(path)
    assert not trace.exists()


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_truncated_files(run_folder: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    export(run_folder, path)
    data = path.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        assert str(path) in refused(path)


def test_flipped_bits_of_a_zip_are_found_by_its_checksums(checkpoint: Path) -> None:
    """Every byte of the file belongs to a checked record, its name, or the directory."""
    data = bytearray(checkpoint.read_bytes())
    whole = read_official(checkpoint).tensors
    rng = np.random.default_rng(0)
    found = 0
    for position in rng.choice(len(data), 60, replace=False):
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(rng.integers(8))
        checkpoint.write_bytes(damaged)
        try:
            same = read_official(checkpoint).tensors
        except CheckpointError:
            found += 1
        else:  # padding, or a field that nobody reads: the tensors must be whole
            assert same.keys() == whole.keys()
            assert all(torch.equal(t, whole[n]) for n, t in same.items())
    assert found > 20


def test_a_pinned_digest_finds_any_change(run_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    export(run_folder, path)
    pinned = read_parent(path, None).sha256
    assert read_parent(path, pinned.upper()).sha256 == pinned
    flip_a_bit(path, -1)
    with pytest.raises(CheckpointError, match=f"expected {pinned}"):
        read_parent(path, pinned)


OTHER_CONTENT = {
    "alien": (lambda t: {**t, "optimizer.step": torch.ones(1)}, "the name 'optimizer.step'"),
    "extra": (lambda t: {**t, "model.inner.extra": torch.ones(1)}, "the unknown extra"),
    "missing": (lambda t: {k: v for k, v in t.items() if "lm_head" not in k}, "no lm_head.weight"),
    "renamed": (lambda t: {k.replace("q_head", "q"): v for k, v in t.items()}, "no q_head"),
    "twice": (lambda t: {**t, "model.inner.H_init": torch.ones(3)}, "under two prefixes"),
    "nan": (lambda t: {k: v * float("nan") for k, v in t.items()}, "not finite"),
    "beyond float32": (lambda t: {k: v.double() + 1e300 for k, v in t.items()}, "torch.float64"),
    "ints": (lambda t: {k: v.to(torch.int32) for k, v in t.items()}, "int32"),
    "shape": (
        lambda t: {k: v[: 11 if "lm_h" in k else None] for k, v in t.items()},
        "other shapes",
    ),
    "number": (lambda t: {**t, "step": 7}, "something else than tensors"),
    "list": (lambda t: list(t.values()), "found list"),
    "empty": (lambda t: {}, "found another model"),
}


@pytest.mark.parametrize(("change", "message"), OTHER_CONTENT.values(), ids=OTHER_CONTENT)
def test_files_with_other_content(checkpoint: Path, change: Any, message: str) -> None:
    torch.save(change(torch.load(checkpoint, weights_only=True)), checkpoint)
    assert message in refused(checkpoint)


W = torch.ones(4, 4)
KINDS = {
    "coo": (lambda: W.to_sparse(), "a sparse tensor (torch.sparse_coo)"),
    "csr": (lambda: W.to_sparse_csr(), "a sparse tensor (torch.sparse_csr)"),
    "bsr": (lambda: W.to_sparse_bsr((2, 2)), "a sparse tensor (torch.sparse_bsr)"),
    "nested": (lambda: torch.nested.nested_tensor([W, W[:2]]), "a nested tensor"),
    "meta": (lambda: W.to("meta"), "a tensor on the meta device"),
    "bool": (lambda: W > 0, "torch.bool"),
    "int64": (lambda: W.long(), "torch.int64"),
    "complex": (lambda: W.to(torch.complex64), "torch.complex64"),
    "quantized": (lambda: torch.quantize_per_tensor(W, 0.1, 0, torch.qint8), "torch.qint8"),
    "fp4": (lambda: W.byte().view(torch.float4_e2m1fn_x2), "torch.float4_e2m1fn_x2"),
    "fp8": (lambda: W.to(torch.float8_e4m3fn), "torch.float8_e4m3fn"),
    "fp8_e5m2": (lambda: W.to(torch.float8_e5m2), "torch.float8_e5m2"),
    "expanded": (lambda: W[0, :1].expand(10**13), "an expanded tensor of shape [10000000000000]"),
}
DENSE = "expected a dense tensor of float32, bfloat16, float16 or float64"


@pytest.mark.parametrize(("make", "found"), KINDS.values(), ids=KINDS)
def test_tensors_that_cannot_be_weights(checkpoint: Path, make: Any, found: str) -> None:
    tensors = torch.load(checkpoint, weights_only=True)
    key = next(name for name in tensors if name.endswith("lm_head.weight"))
    torch.save({**tensors, key: make()}, checkpoint)
    error = refused(checkpoint)
    assert error.startswith(f"{checkpoint}: found {found}")
    assert f" in {key!r}, {DENSE}" in error


@pytest.mark.parametrize(
    ("kind", "bits"),
    [("F4", 4), ("F6_E2M3", 6), ("F8_E4M3", 8), ("F8_E8M0", 8), ("BOOL", 8), ("C64", 64)],
)
def test_safetensors_of_kinds_that_cannot_be_weights(tmp_path: Path, kind: str, bits: int) -> None:
    """Their names are those of the format: PyTorch need not even have them."""
    path, key, size = tmp_path / "x.safetensors", "model.inner.lm_head.weight", 2 * bits
    header = json.dumps({key: {"dtype": kind, "shape": [4, 4], "data_offsets": [0, size]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    assert refused(path).startswith(f"{path}: found {kind} in {key!r}, {DENSE}")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_floating_point_numbers_become_float32(checkpoint: Path, dtype: Any) -> None:
    tensors = torch.load(checkpoint, weights_only=True)
    torch.save({name: tensor.to(dtype) for name, tensor in tensors.items()}, checkpoint)
    given = read_official(checkpoint).tensors
    assert {tensor.dtype for tensor in given.values()} == {torch.float32}
    key = next(name for name in tensors if name.endswith("lm_head.weight"))
    assert torch.equal(given["lm_head.weight"], tensors[key].to(dtype).float())


def test_a_zip_whose_record_cannot_be_unpacked(checkpoint: Path) -> None:
    """A flipped bit makes of a stored record one that zlib is to unpack."""
    data = bytearray(checkpoint.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = data.index(signature) + offset
        assert data[at] == 0
        data[at] = 8
    checkpoint.write_bytes(data)
    assert "no readable checkpoint" in refused(checkpoint)


@pytest.mark.parametrize("text", ["arch: [1, 2]", "arch: x", "[]\n- 1", "a: [", "arch: {1: 2}\x00"])
def test_a_config_beside_a_checkpoint_that_is_none(checkpoint: Path, text: str) -> None:
    config = checkpoint.parent / "all_config.yaml"
    config.write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=f"^{config}: found no YAML with a block `arch`"):
        start(checkpoint)
    config.write_text(f"arch: {{H_cycles: {10**400}}}", encoding="utf-8")
    with pytest.raises(CheckpointError, match="H_cycles 1000"):
        start(checkpoint)


def test_a_file_that_cannot_be_opened(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:  # root, who may run the tests, can read any file
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match=f"^{checkpoint}: found a file that cannot be read"):
        read_parent(checkpoint, None)


def test_a_header_that_promises_more_than_there_is(checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "huge.safetensors"
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    refused(path)
    claim = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
    header = json.dumps({"model.inner.lm_head.weight": claim}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    refused(path)
    save_file({"model.inner.lm_head.weight": torch.zeros(12, 4096)}, path)
    refused(path)


def test_files_and_folders_that_are_no_checkpoint(tmp_path: Path) -> None:
    refused(tmp_path / "none.pt")
    for name, content in (("text.pt", b"hello"), ("json.safetensors", b'{"a": 1}')):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ParentError, match="expected weights to start from"):
        read_parent(tmp_path / "empty", None)
    (tmp_path / "empty" / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"found no run.json"):
        read_parent(tmp_path / "empty", None)
    (tmp_path / "empty" / "run.json").write_text("[]")
    with pytest.raises(DamagedFileError, match=r"run.json: found a list, expected the record"):
        read_parent(tmp_path / "empty", None)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"ids": [], "content": []}, r"found 0 seen_tasks.ids, expected 4"),
        ({"ids": [], "content": [], "count": 0}, r"found seen_tasks of digest"),
        ({"content": []}, r"found seen_tasks.content of 0 tasks, expected one for each of 4 ids"),
        ({"content": ["a", "b"]}, r"one list of keys as seen_tasks.content, as older code wrote"),
        ({"content": None}, r"found seen_tasks.content = null"),
    ],
)
def test_the_seen_tasks_of_a_parent_are_verified(
    change: dict[str, Any], found: str, own_run: Path
) -> None:
    """With tasks struck out of its record, it would be a parent without leak."""
    record = json.loads((own_run / "run.json").read_text())
    assert read_parent(own_run, None).record == record
    seen = {**record["seen_tasks"], **change}
    (own_run / "run.json").write_text(json.dumps({**record, "seen_tasks": seen}))
    with pytest.raises(DamagedFileError, match=found):
        read_parent(own_run, None)


@pytest.mark.parametrize(
    "key", ["unproven", "seen_tasks.digest", "seen_tasks.ids", "config.model.width", "split", "key"]
)
def test_a_key_that_a_parents_record_lacks_is_named(key: str, own_run: Path) -> None:
    record = json.loads((own_run / "run.json").read_text())
    *blocks, last = key.split(".")
    del reduce(dict.__getitem__, blocks, record)[last]
    (own_run / "run.json").write_text(json.dumps(record))
    with pytest.raises(DamagedFileError, match=rf"run.json: found no {key}, expected"):
        read_parent(own_run, None)


# --- strict runs and weights of unknown origin ---


def test_unknown_origin_is_refused_unless_trusted(checkpoint: Path, tmp_path: Path) -> None:
    paths = study_in(tmp_path / "s")
    places = replace(paths, parent=checkpoint, strict_parents=("trm_strict",))
    init = {"init": str(checkpoint)}
    with pytest.raises(LeakError, match=r"nobody knows .* start from 'trm_strict', or set decoder"):
        train_run(make_run(decoder=init), places, OFF, device="cpu")
    assert not paths.out.exists()
    record = train_run(make_run(decoder={**init, "init_trust": True}), places, OFF, device="cpu")
    assert record["unproven"] == [str(checkpoint)]
    assert record["parents"] == []
    assert record["init"]["loaded"]
    # Its children inherit the doubt.
    child = replace(paths, parent=paths.out, out=tmp_path / "child")
    with pytest.raises(LeakError, match="nobody knows"):
        train_run(make_run(decoder={"init": "x"}), child, OFF, device="cpu")
    trusted = make_run(decoder={"init": "x", "init_trust": True})
    assert train_run(trusted, child, OFF, device="cpu")["unproven"] == [str(checkpoint)]
    # A transductive run makes no claim to prove.
    free = make_run(decoder=init, split="transductive")
    places = replace(places, out=tmp_path / "free")
    assert train_run(free, places, OFF, device="cpu")["unproven"] == [str(checkpoint)]


def test_a_held_out_task_is_found_by_content_in_what_a_parent_saw(tmp_path: Path) -> None:
    """Under another id, turned and recoloured, it was trained on: by id nobody would know."""
    held_out = make_tasks(2, seed=7, prefix="held")
    variant = Augmentation(3, (0, 2, 3, 4, 5, 6, 7, 8, 9, 1)).apply_to_task(held_out[1])
    hidden = Task("hidden", variant.queries + variant.demos[1:], variant.demos[:1])
    other = write_study(tmp_path / "other", [*make_tasks(3), hidden], make_tasks(1, 9, 3, "x"))
    train_run(make_run("embedding", experiment="elsewhere"), other, OFF, device="cpu")
    paths = write_study(tmp_path / "s", make_tasks(3), held_out)
    places = replace(paths, parent=other.out, strict_parents=("trm_strict",))
    with pytest.raises(
        LeakError, match=r"'elsewhere' has seen 1 of 2 held-out tasks \(held1\): start from 'trm_s"
    ):
        train_run(make_run(decoder={"init": "elsewhere"}), places, OFF, device="cpu")
