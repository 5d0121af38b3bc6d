"""`f5lab inspect`: the structure at once, without torch; the whole file only when asked for."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from benign import BUILDERS
from toy_checkpoints import ema_state, save_trainer, scheduler, state

from f5lab import __main__ as entry
from f5lab import models, presets
from f5lab.errors import CheckpointError
from f5lab.specs import Arch
from f5lab.untrusted import second_opinion
from f5lab.weights import anatomy, architectures, contents


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save_trainer(
        tmp_path / "model_100.pt", state(0), ema_state(state(1)), update=100, scheduler_state_dict=scheduler(100)
    )


def test_the_report_names_sections_tensors_and_places(path: Path) -> None:
    found = contents.report(path)
    assert (found["layout"], found["slots"], found["container"]) == ("trainer", ["raw", "ema"], "torch")
    assert found["loading"].startswith("read as data, not executed") and "safe" not in json.dumps(found["loading"])
    rows = {row["name"]: row for row in found["tensor_list"]}
    row = rows["ema_model_state_dict / ema_model.transformer.proj_out.bias"]
    data = path.read_bytes()[row["at_byte"] : row["at_byte"] + row["bytes"]]
    assert torch.equal(torch.frombuffer(bytearray(data), dtype=torch.float32), state(1)["transformer.proj_out.bias"])
    assert len(rows) == sum(section["tensors"] for section in found["sections"])
    assert found["storage"]["storages"] == len(rows)
    assert found["architecture"]["dim"] == 8 and {row["fact"] for row in found["provenance"]} >= {"update", "EMA step"}
    assert "not asked" in found["picklescan"] and "not compared" in found["checksums"]
    json.dumps(found, allow_nan=False)


def test_statistics_say_the_same_and_more(path: Path) -> None:
    plain, full = contents.report(path), anatomy.report(path)
    assert {key: full[key] for key in plain} == plain
    assert {"rotary", "text_rows", "modules", "odd_tensors"} <= set(full)


def test_verify_finds_one_flipped_bit_that_torch_loads_in_silence(path: Path) -> None:
    found = contents.report(path, verify=True)
    assert found["checksums"] == f"{found['storage']['storages']} storages as they were written"
    assert len(found["sha256"][0]) == 64 and found["picklescan"].startswith("0 dangerous, 0 suspicious")
    row = found["tensor_list"][5]
    data = bytearray(path.read_bytes())
    data[row["at_byte"]] ^= 1
    path.write_bytes(data)
    assert torch.load(path, weights_only=True)["update"] == 100
    assert contents.report(path, verify=True)["checksums"].startswith(
        f"DAMAGED: 1 of {found['storage']['storages']} storages"
    )


def test_views_and_shared_storages_are_counted(tmp_path: Path) -> None:
    from f5lab.checkpoints import open_checkpoint

    found = contents.storage_facts(open_checkpoint(BUILDERS["shared_storages_and_views"](tmp_path)))
    assert found == {"storages": 1, "bytes": 96, "shared_by_several_tensors": 1, "not_contiguous": 2}


def test_picklescan_is_asked_about_pickles_only_and_finds_what_it_knows(tmp_path: Path) -> None:
    ask = second_opinion.Question
    assert ask(BUILDERS["safetensors"](tmp_path)).answer() == second_opinion.Opinion(asked=False)
    assert ask(tmp_path / "none.pt").answer() == second_opinion.Opinion(asked=False)
    from hostile.corpus import CORPUS

    (tmp_path / "evil.pt").write_bytes(next(item for item in CORPUS if item.name == "call-os-system").build())
    found = ask(tmp_path / "evil.pt").answer()
    assert found.dangerous == 1 and "1 dangerous" in second_opinion.sentence([found])
    assert "could not say" in second_opinion.sentence([second_opinion.Opinion(asked=True)])


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "f5lab", *arguments], capture_output=True, text=True, check=False)


def test_the_direct_way_and_the_command_line_say_the_same(path: Path, tmp_path: Path) -> None:
    direct = run("inspect", str(path), "--json", str(tmp_path / "a.json"))
    through = run("inspect", "--json", str(tmp_path / "b.json"), str(path))
    assert (direct.returncode, through.returncode) == (0, 0)
    assert direct.stdout == through.stdout and "model_state_dict" in direct.stdout
    assert (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()
    assert json.loads((tmp_path / "a.json").read_text())["layout"] == "trainer"


def test_what_is_refused_is_one_line_and_status_1(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"\x80\x04cos\nsystem\n.")
    done = run("inspect", str(tmp_path / "x.pt"))
    assert done.returncode == 1 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "rule file-magic" in done.stderr and "runs code when it is loaded" in done.stderr
    assert run("inspect").returncode == 2


@pytest.mark.parametrize(
    "arguments", [["--stats", "x"], ["x", "--stats"], ["x", "y"], ["x", "--json", ""], ["-h"], [""], []]
)
def test_whatever_is_not_plain_is_left_to_the_command_line(arguments: list[str]) -> None:
    assert not entry._is_plain_inspect(["inspect", *arguments])
    assert entry._is_plain_inspect(["inspect", "x"]) and entry._is_plain_inspect(["inspect", "x", "--json", "-"])


def test_a_reader_that_goes_away_and_a_target_that_can_not_be_written_leave_no_traceback(path: Path) -> None:
    command = f"{sys.executable} -m f5lab inspect {path} --json - | head -c 10"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert len(done.stdout) == 10 and done.stderr == ""
    done = run("inspect", str(path), "--json", str(path / "x.json"))
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and done.stderr.startswith("f5lab: ")


def test_inspect_imports_no_torch_and_is_quick(path: Path) -> None:
    code = (
        f"import sys; from f5lab.weights import contents; contents.report({str(path)!r}); "
        "print(sorted({'torch', 'numpy', 'pydantic', 'pandas'} & set(sys.modules)))"
    )
    begun = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert time.monotonic() - begun < 10  # 0.3 s on an idle machine


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        contents.report(tmp_path / "none.pt")


@pytest.mark.parametrize("update", [float("nan"), "100", None, [100]], ids=repr)
def test_an_update_that_is_no_number_is_not_called_absent(update: object, tmp_path: Path) -> None:
    file = save_trainer(tmp_path / "model_last.pt", state(0), ema_state(state(1)), update=update)
    rows = {row["fact"]: row["value"] for row in contents.report(file)["provenance"]}
    assert rows["update"] == "no number"


@pytest.mark.parametrize("changes", [{"_last_lr": [float("nan")]}, {"_last_lr": ["fast"]}, {"_schedulers": [1, 2]}], ids=str)
def test_a_schedule_without_numbers_is_said_to_be_none(changes: dict, tmp_path: Path) -> None:
    file = save_trainer(
        tmp_path / "model_100.pt", state(0), ema_state(state(1)), update=100, scheduler_state_dict=scheduler(100) | changes
    )
    rows = {row["fact"]: row["value"] for row in contents.report(file)["provenance"]}
    assert rows["schedule"] == "not read" and "learning rate" not in rows


def test_blocks_that_differ_from_the_others_are_noted(path: Path, tmp_path: Path) -> None:
    assert contents.report(path)["notes"] == []
    weights = {
        f"{kind}.{n}.{inner}": torch.zeros(4, 2)
        for kind in ("transformer.transformer_blocks", "transformer.text_embed.text_blocks")
        for n in range(5) for inner in ("a.weight", "b.weight")
    }  # fmt: skip
    assert architectures.irregular_blocks(weights) == []
    del weights["transformer.transformer_blocks.3.a.weight"]
    weights["transformer.text_embed.text_blocks.1.b.weight"] = torch.zeros(2, 2)
    weights = {name: t for name, t in weights.items() if ".text_blocks.2." not in name}
    assert architectures.irregular_blocks(weights) == [
        "transformer.transformer_blocks.3.a.weight: no such tensor; most blocks have 4x2",
        "transformer.text_embed.text_blocks.1.b.weight: 2x2; most blocks have 4x2",
        "transformer.text_embed.text_blocks.2: there is no such block",
    ]


@pytest.mark.parametrize("name", sorted(presets.PRESETS))
def test_no_published_architecture_has_odd_blocks(name: str, tmp_path: Path) -> None:
    backbone, options = Arch(preset=name).resolve()
    (tmp_path / "vocab.txt").write_text(" \na\nb\n")
    small = options | {"dim": 128, "heads": 2, "depth": 4} | ({"text_dim": 32} if "text_dim" in options else {})
    cfm = models.build_cfm(backbone, small, tmp_path / "vocab.txt", empty=True)
    assert architectures.irregular_blocks(cfm.state_dict()) == []
