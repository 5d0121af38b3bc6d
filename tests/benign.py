"""Files that real trainers write, one builder each: every one must load, with the numbers that went in."""

import io
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from toy_checkpoints import ema_state, scheduler, state

BUILDERS: dict[str, Callable[[Path], Path]] = {}
ONLY_FREELY = {"tar_format", "empty_bytes"}
"""What torch reads only with ``weights_only=False``; these files were written a line before."""


def benign(build: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """Add a builder under its function's name."""
    BUILDERS[build.__name__] = build
    return build


def trained(steps: int = 2) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    """Return a small module trained for a few steps with AdamW, as upstream's trainer does."""
    module = torch.nn.Module()
    module.transformer = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        module.transformer(torch.randn(5, 4, generator=generator)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return module, optimizer


def save(path: Path, value: Any, **options: Any) -> Path:
    torch.save(value, path, **options)
    return path


@benign
def trainer(folder: Path) -> Path:
    module, optimizer = trained()
    value = {
        "model_state_dict": module.state_dict(), "ema_model_state_dict": ema_state(module.state_dict()),
        "optimizer_state_dict": optimizer.state_dict(), "scheduler_state_dict": scheduler(5), "update": 5,
    }  # fmt: skip
    return save(folder / "x.pt", value)


@benign
def ema_pytorch(folder: Path) -> Path:
    from ema_pytorch import EMA

    average = EMA(trained()[0], include_online_model=False)
    for _ in range(3):
        average.update()
    return save(folder / "x.pt", {"ema_model_state_dict": average.state_dict()})


@benign
def bfloat16(folder: Path) -> Path:
    return save(folder / "x.pt", {"model_state_dict": {k: v.bfloat16() for k, v in state().items()}})


@benign
def every_dtype(folder: Path) -> Path:
    kinds = ("float64", "float16", "int64", "int32", "int16", "int8", "uint8", "bool", "complex64", "complex128",
             "float8_e4m3fn", "float8_e5m2", "uint16", "uint32", "uint64")  # fmt: skip
    tensors = {f"transformer.{kind}": torch.arange(6).reshape(2, 3).to(getattr(torch, kind)) for kind in kinds}
    return save(folder / "x.pt", {"model_state_dict": tensors, "dtype": torch.bfloat16, "size": torch.Size([2, 3])})


@benign
def shared_storages_and_views(folder: Path) -> Path:
    whole = torch.arange(24.0).reshape(4, 6)
    tensors = {"transformer.whole": whole, "transformer.rows": whole[1:3], "transformer.turned": whole.T,
               "transformer.every_other": whole[:, ::2], "transformer.same": whole}  # fmt: skip
    return save(folder / "x.pt", {"model_state_dict": tensors})


@benign
def parameters_and_empties(folder: Path) -> Path:
    tensors = {"transformer.p": torch.nn.Parameter(torch.ones(2, 2)), "transformer.none": torch.empty(0, 3),
               "transformer.scalar": torch.tensor(3.5)}  # fmt: skip
    return save(folder / "x.pt", {"model_state_dict": OrderedDict(tensors)})


@benign
def tensor_with_an_attribute(folder: Path) -> Path:
    tensor = torch.ones(3)
    tensor.note = "kept by torch, left out here"
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.note = 1
    return save(folder / "x.pt", {"model_state_dict": {"transformer.t": tensor, "transformer.p": parameter}})


@benign
def adam_with_amsgrad_and_sgd(folder: Path) -> Path:
    module, _ = trained()
    adam = torch.optim.Adam(module.parameters(), amsgrad=True, foreach=True)
    sgd = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for optimizer in (adam, sgd):
        module.transformer(torch.ones(1, 4)).sum().backward()
        optimizer.step()
    return save(folder / "x.pt", {"model_state_dict": module.state_dict(), "optimizer_state_dict": adam.state_dict(),
                                  "second": sgd.state_dict()})  # fmt: skip


@benign
def every_scheduler(folder: Path) -> Path:
    kinds = torch.optim.lr_scheduler
    optimizer = trained()[1]
    made = [
        kinds.StepLR(optimizer, 2), kinds.MultiStepLR(optimizer, [1, 2, 2]), kinds.CosineAnnealingLR(optimizer, 5),
        kinds.ExponentialLR(optimizer, 0.9), kinds.ConstantLR(optimizer), kinds.PolynomialLR(optimizer),
        kinds.LambdaLR(optimizer, lambda _: 1.0), kinds.CosineAnnealingWarmRestarts(optimizer, 3),
        kinds.OneCycleLR(optimizer, 0.1, total_steps=9), kinds.CyclicLR(optimizer, 0.1, 0.2, cycle_momentum=False),
    ]  # fmt: skip
    states = {type(one).__name__: one.state_dict() for one in made}
    return save(folder / "x.pt", {"model_state_dict": {"transformer.w": torch.ones(1)}, "schedulers": states})


@benign
def data_parallel_and_compiled(folder: Path) -> Path:
    tensors = {f"module._orig_mod.{name}": value for name, value in state().items()}
    return save(folder / "x.pt", {"model_state_dict": OrderedDict(tensors), "step": 7})


@benign
def plain_values(folder: Path) -> Path:
    value = {
        "model_state_dict": {"transformer.w": torch.ones(1)}, "numbers": [0, 1, 255, 256, 65535, 65536, -1, 1 << 40, -(1 << 70)],
        "floats": (0.1, float("inf"), -0.0), "texts": ["", "ção", "\u202e", "x" * 300, "\0"], "flags": [True, False, None],
        "bytes": b"\x00\xff", "set": {3, 1, 2}, "nested": {"a": {1: {2: (3, [4, ()])}}},
        "long": tuple(range(300)),
    }  # fmt: skip
    return save(folder / "x.pt", value)


@benign
def empty_bytes(folder: Path) -> Path:
    """torch's own restricted loader refuses these."""
    return save(folder / "x.pt", {"model_state_dict": {"transformer.w": torch.ones(1)}, "note": b""})


@benign
def one_list_twice(folder: Path) -> Path:
    betas = [0.9, 0.999]
    return save(folder / "x.pt", {"model_state_dict": {"transformer.w": torch.ones(1)}, "groups": [betas, betas]})


@benign
def long_history(folder: Path) -> Path:
    history = [i / 7 for i in range(20_000)]
    return save(folder / "x.pt", {"model_state_dict": {"transformer.w": torch.ones(1)}, "loss": history})


@benign
def renamed_folder_and_unicode_path(folder: Path) -> Path:
    return save(folder / "não é – modelo.pt", {"model_state_dict": state()})


@benign
def saved_to_a_buffer(folder: Path) -> Path:
    buffer = io.BytesIO()
    torch.save({"model_state_dict": state()}, buffer)
    (folder / "x.pt").write_bytes(buffer.getvalue())
    return folder / "x.pt"


@benign
def zipped_again_by_python(folder: Path) -> Path:
    """Stored, with no alignment, no data descriptors."""
    torch.save({"model_state_dict": state()}, folder / "y.pt")
    with zipfile.ZipFile(folder / "y.pt") as old, zipfile.ZipFile(folder / "x.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return folder / "x.pt"


@benign
def old_format(folder: Path) -> Path:
    module, optimizer = trained()
    value = {"model_state_dict": module.state_dict(), "optimizer_state_dict": optimizer.state_dict(), "update": 3,
             "bf16": torch.ones(3).bfloat16(), "view": torch.arange(6.0).reshape(2, 3).T}  # fmt: skip
    return save(folder / "x.pt", value, _use_new_zipfile_serialization=False)


@benign
def tar_format(folder: Path) -> Path:
    return write_tar(folder / "x.pt", {"transformer.a": torch.arange(6.0).reshape(2, 3), "transformer.b": torch.arange(4)})


@benign
def safetensors(folder: Path) -> Path:
    save_file(state() | {"transformer.b": torch.ones(3).bfloat16()}, folder / "x.safetensors", metadata={"format": "pt"})
    return folder / "x.safetensors"


@benign
def safetensors_sharded(folder: Path) -> Path:
    import json

    tensors = list(state().items())
    names = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
    for name, part in zip(names, (tensors[:7], tensors[7:]), strict=True):
        save_file(dict(part), folder / name)
    files = {key: names[i >= 7] for i, (key, _) in enumerate(tensors)}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1.5}, "weight_map": files}))
    return index


class _Old(pickle.Pickler):
    """Pickles a dict of tensors as torch 0.1 did: tensors by number."""

    def persistent_id(self, obj: Any) -> Any:
        return id(obj) if isinstance(obj, torch.Tensor) else None


def write_tar(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """Write the tar format of before 0.2, as ``torch/serialization.py``'s ``legacy_load`` reads it."""
    kinds = {torch.float32: torch.FloatStorage, torch.int64: torch.LongStorage}
    types = {torch.float32: torch.FloatTensor, torch.int64: torch.LongTensor}
    storages, records = io.BytesIO(), io.BytesIO()
    pickle.dump(len(tensors), storages, protocol=2)
    pickle.dump(len(tensors), records, protocol=2)
    for number, tensor in enumerate(tensors.values(), start=1):
        pickle.dump((number, "cpu", kinds[tensor.dtype]), storages, protocol=2)
        storages.write(struct.pack("<q", tensor.numel()) + tensor.numpy().tobytes())
        pickle.dump((id(tensor), number, types[tensor.dtype]), records, protocol=2)
        dimensions = tensor.dim()
        records.write(struct.pack(f"<ii{2 * dimensions}qq", dimensions, 0, *tensor.shape, *tensor.stride(), 0))
    pickle.dump([], storages, protocol=2)
    main = io.BytesIO()
    _Old(main, protocol=2).dump({"model_state_dict": OrderedDict(tensors)})
    system = pickle.dumps({"protocol_version": 1000, "little_endian": True, "type_sizes": {"int": 4}}, protocol=2)
    parts = {"sys_info": system, "pickle": main.getvalue(), "tensors": records.getvalue(), "storages": storages.getvalue()}
    with tarfile.open(path, "w:") as file:
        for name, data in parts.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return path
