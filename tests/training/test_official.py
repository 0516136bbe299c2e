"""Official checkpoints: read, refused, written back; and damaged ones of every kind."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny import make_run, make_tasks, write_study

from etrm.checkpoint import CheckpointError, load_weights
from etrm.cli import main
from etrm.config.study import TrackingConfig
from etrm.models.build import build_model
from etrm.official import export, read_official
from etrm.parents import read_parent, start_from
from etrm.train import RunPaths, train_run

OFF = TrackingConfig(wandb="disabled")
RUN = make_run("embedding", experiment="trm_strict")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished strict pretraining."""
    paths = write_study(tmp_path_factory.mktemp("s"), make_tasks(4), make_tasks(2, 7, 3, "held"))
    train_run(RUN, paths, OFF, device="cpu")
    return paths.out


@pytest.fixture
def checkpoint(run_folder: Path, tmp_path: Path) -> Path:
    """The same weights as an official file."""
    export(run_folder, tmp_path / "official.pt")
    return tmp_path / "official.pt"


def decoder() -> torch.nn.Module:
    return build_model(make_run(seed=5), 1).decoder


def start(path: Path, **model: Any) -> tuple[torch.nn.Module, dict[str, Any]]:
    module = decoder()
    sizes = make_run(model=model).model
    return module, start_from(module, read_parent(path, None), "ema", sizes)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("which", ["raw", "ema"])
def test_round_trip_is_bit_equal(run_folder: Path, tmp_path: Path, suffix: str, which: str) -> None:
    out = tmp_path / f"x.{suffix}"
    names = export(run_folder, out, which)
    assert all(name.startswith("_orig_mod.model.inner.") for name in names)
    back = read_official(out)
    weights = load_weights(run_folder / "model.safetensors", which)
    for name, tensor in back.items():
        ours = "context.weights" if name == "puzzle_emb.weights" else f"decoder.{name}"
        assert torch.equal(tensor, weights[ours])
    buffers = {"H_init", "L_init", "puzzle_emb.weights"}
    assert buffers <= set(back) if which == "raw" else not buffers & set(back)
    assert len(back) == (len(weights) if which == "raw" else len(weights) - 3)


@pytest.mark.parametrize(
    "prefix",
    [
        "_orig_mod.model.inner.",
        "model.inner.",
        "module.model.inner.",
        "module._orig_mod.model.inner.",
        "inner.",
    ],
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_prefixes_of_compilation_and_parallelism(
    checkpoint: Path, tmp_path: Path, prefix: str, suffix: str
) -> None:
    tensors = {prefix + n: t for n, t in read_official(checkpoint).items()}
    path = tmp_path / f"named.{suffix}"
    torch.save(tensors, path) if suffix == "pt" else save_file(tensors, path)
    module, report = start(path)
    expected, _ = start(checkpoint)
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, expected.state_dict()[name])
    assert report["skipped"] == ["puzzle_emb.weights"]
    assert report["new"] == []
    assert set(report["unchecked"]) == {"heads", "H_cycles", "L_cycles", "rope_theta"}
    assert len(report["sha256"]) == 64


def test_averaged_weights_leave_the_first_states_new(run_folder: Path, tmp_path: Path) -> None:
    export(run_folder, tmp_path / "ema.pt", "ema")
    module, report = start(tmp_path / "ema.pt")
    assert report["new"] == ["decoder.H_init", "decoder.L_init"]
    assert report["skipped"] == []
    fresh = decoder().state_dict()
    assert torch.equal(module.state_dict()["H_init"], fresh["H_init"])
    assert not torch.equal(module.state_dict()["lm_head.weight"], fresh["lm_head.weight"])


def test_recorded_official_checkpoints_are_read(golden: Path) -> None:
    pt = read_official(golden / "trm_checkpoint_step0.pt")
    safe = read_official(golden / "trm_checkpoint_step0.safetensors")
    assert pt.keys() == safe.keys()
    assert all(torch.equal(tensor, safe[name]) for name, tensor in pt.items())
    assert "H_init" not in read_official(golden / "trm_ema_step6.safetensors")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"width": 32}, "width 16 there and 32 here"),
        ({"layers": 2}, "layers 1 there and 2 here"),
    ],
)
def test_other_sizes_print_both(checkpoint: Path, model: dict[str, int], message: str) -> None:
    module = build_model(make_run(model=model), 1).decoder
    with pytest.raises(CheckpointError, match=message):
        start_from(module, read_parent(checkpoint, None), "ema", make_run(model=model).model)


def test_cycles_are_checked_where_the_official_config_is_beside(checkpoint: Path) -> None:
    arch = (
        "arch: {hidden_size: 16, num_heads: 2, L_layers: 1, expansion: 4, H_cycles: 2, L_cycles: 1}"
    )
    config = checkpoint.parent / "all_config.yaml"
    config.write_text(arch)
    _, report = start(checkpoint)
    assert report["unchecked"] == ["rope_theta"]
    config.write_text(arch.replace("L_cycles: 1", "L_cycles: 4").replace("heads: 2", "heads: 8"))
    with pytest.raises(CheckpointError, match=r"heads 8 there and 2 here, L_cycles 4 there and 1"):
        start(checkpoint)


def test_sizes_and_cycles_of_our_own_runs(run_folder: Path) -> None:
    model = make_run(model={"H_cycles": 3, "heads": 4}).model
    with pytest.raises(
        CheckpointError, match=r"heads 2 there and 4 here, H_cycles 2 there and 3 here"
    ):
        start_from(decoder(), read_parent(run_folder, None), "ema", model)


def test_export_from_the_command_line(run_folder: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["export", str(run_folder), str(tmp_path / "x.pt"), "--weights", "ema"]) == 0
    assert "ema weights" in capsys.readouterr().out
    assert main(["export", str(run_folder), str(tmp_path / "x.bin")]) == 1
    assert "ends in .pt or .safetensors" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "none"), str(tmp_path / "x.pt")]) == 1
    assert "no such file" in capsys.readouterr().err


# --- damaged files: a clear error each, no code run, no partial state ---


class Bomb:
    """Pickles as a call that leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def refused(path: Path) -> str:
    """The error of a file; the decoder must be untouched."""
    module = decoder()
    before = {n: t.clone() for n, t in module.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        start_from(module, read_parent(path, None), "ema", make_run().model)
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
        refused(path)


def test_flipped_bits_of_a_zip_are_found_by_its_checksums(checkpoint: Path) -> None:
    """Every byte of the file belongs to a checked record, its name, or the directory."""
    data = bytearray(checkpoint.read_bytes())
    whole = read_official(checkpoint)
    rng = np.random.default_rng(0)
    found = 0
    for position in rng.choice(len(data), 60, replace=False):
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(rng.integers(8))
        checkpoint.write_bytes(damaged)
        try:
            same = read_official(checkpoint)
        except CheckpointError:
            found += 1
        else:  # padding, or a field that nobody reads: the tensors must be whole
            assert same.keys() == whole.keys()
            assert all(torch.equal(t, whole[n]) for n, t in same.items())
    assert found > 20


def test_flipped_bits_of_our_own_weights_are_found_by_their_digest(
    run_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run_folder, folder)
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"expected .* from its run\.json"):
        read_parent(folder, None)


def test_a_pinned_digest_finds_any_change(run_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    export(run_folder, path)
    pinned = read_parent(path, None).sha256
    assert read_parent(path, pinned.upper()).sha256 == pinned
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"expected {pinned}"):
        read_parent(path, pinned)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {**t, "optimizer.step": torch.ones(1)}, "found the name 'optimizer.step'"),
        (lambda t: {**t, "model.inner.extra": torch.ones(1)}, "the unknown extra"),
        (lambda t: {k: v for k, v in t.items() if "lm_head" not in k}, "no lm_head.weight"),
        (lambda t: {k.replace("q_head", "halt_head"): v for k, v in t.items()}, "no q_head"),
        (lambda t: {**t, "model.inner.H_init": torch.ones(3)}, "under two prefixes"),
        (lambda t: {k: v * float("nan") for k, v in t.items()}, "not finite"),
        (lambda t: {k: v.to(torch.int32) for k, v in t.items()}, "int32"),
        (lambda t: {k: (v[:-1] if "lm_head" in k else v) for k, v in t.items()}, "other shapes"),
        (lambda t: {**t, "step": 7}, "something else than tensors"),
        (lambda t: list(t.values()), "found list"),
        (lambda t: {}, "found another model"),
    ],
    ids=[
        "alien",
        "extra",
        "missing",
        "renamed",
        "twice",
        "nan",
        "ints",
        "shape",
        "number",
        "list",
        "empty",
    ],
)
def test_files_that_hold_something_else(checkpoint: Path, change: Any, message: str) -> None:
    torch.save(change(torch.load(checkpoint, weights_only=True)), checkpoint)
    assert message in refused(checkpoint)


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


def test_what_is_no_checkpoint_at_all(tmp_path: Path) -> None:
    refused(tmp_path / "none.pt")
    for name, content in (("text.pt", b"hello"), ("json.safetensors", b'{"a": 1}')):
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="expected weights to start from"):
        read_parent(tmp_path / "empty", None)
    (tmp_path / "empty" / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"found no run.json"):
        read_parent(tmp_path / "empty", None)
    (tmp_path / "empty" / "run.json").write_text("[]")
    with pytest.raises(CheckpointError, match="no record of a run"):
        read_parent(tmp_path / "empty", None)


# --- strict runs and weights of unknown origin ---


def test_unknown_origin_is_refused_unless_trusted(checkpoint: Path, tmp_path: Path) -> None:
    from etrm.parents import LeakError

    paths = write_study(tmp_path / "s", make_tasks(4), make_tasks(2, 7, 3, "held"))
    places = RunPaths(**{**paths.__dict__, "parent": checkpoint, "strict_parents": ("trm_strict",)})
    init = {"init": str(checkpoint)}
    with pytest.raises(LeakError, match=r"nobody knows .* start from 'trm_strict', or set decoder"):
        train_run(make_run(decoder=init), places, OFF, device="cpu")
    assert not paths.out.exists()
    record = train_run(make_run(decoder={**init, "init_trust": True}), places, OFF, device="cpu")
    assert record["unproven"] == [str(checkpoint)]
    assert record["parents"] == []
    assert record["init"]["loaded"]
    # Its children inherit the doubt.
    child = RunPaths(**{**paths.__dict__, "parent": paths.out, "out": tmp_path / "child"})
    with pytest.raises(LeakError, match="nobody knows"):
        train_run(make_run(decoder={"init": "x"}), child, OFF, device="cpu")
    trusted = make_run(decoder={"init": "x", "init_trust": True})
    assert train_run(trusted, child, OFF, device="cpu")["unproven"] == [str(checkpoint)]
    # A transductive run makes no claim to prove.
    free = make_run(decoder=init, split="transductive")
    places = RunPaths(**{**places.__dict__, "out": tmp_path / "free"})
    assert train_run(free, places, OFF, device="cpu")["unproven"] == [str(checkpoint)]


def test_a_held_out_task_is_found_by_content_in_what_a_parent_saw(tmp_path: Path) -> None:
    """Under another id, turned and recoloured, it was trained on: by id nobody would know."""
    from etrm.arc.augment import Augmentation
    from etrm.arc.task import Task
    from etrm.parents import LeakError

    held_out = make_tasks(2, seed=7, prefix="held")
    variant = Augmentation(3, (0, 2, 3, 4, 5, 6, 7, 8, 9, 1)).apply_to_task(held_out[1])
    hidden = Task("hidden", variant.queries + variant.demos[1:], variant.demos[:1])
    other = write_study(tmp_path / "other", [*make_tasks(3), hidden], make_tasks(1, 9, 3, "x"))
    train_run(make_run("embedding", experiment="elsewhere"), other, OFF, device="cpu")
    paths = write_study(tmp_path / "s", make_tasks(3), held_out)
    places = RunPaths(**{**paths.__dict__, "parent": other.out, "strict_parents": ("trm_strict",)})
    with pytest.raises(
        LeakError, match=r"'elsewhere' has seen 1 of 2 held-out tasks \(held1\): start from 'trm_s"
    ):
        train_run(make_run(decoder={"init": "elsewhere"}), places, OFF, device="cpu")
