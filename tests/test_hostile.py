"""Files that try to run code, fill the memory or mean two things: every one is refused by a rule, none is executed."""

import ast
import contextlib
import io
import os
import pickle
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from hostile.corpus import CORPUS, canary_folder, write_corpus
from hostile.pickle_parts import call, checkpoint, imported, text, whole
from hostile.registry import payload
from hostile.zip_parts import torch_archive

import f5lab
from f5lab import mappings
from f5lab.checkpoints import open_checkpoint
from f5lab.errors import CheckpointError
from f5lab.untrusted import file_reader, processes, refusals
from f5lab.untrusted.weights_files import open_weights_file

EVERY_FILE_IN_A_PROCESS = bool(os.environ.get("F5LAB_LONG_TESTS"))
BOMBS = [item for item in CORPUS if item.group == "bomb"]
GROUPS = {item.group: item for item in CORPUS if item.group != "bomb"}
IN_A_PROCESS = CORPUS if EVERY_FILE_IN_A_PROCESS else list(GROUPS.values())
PACKAGE = Path(f5lab.__file__).parent


def refused(path: Path) -> list[str]:
    """Return rule, what and where of a file's refusal, read in this process."""
    with path.open("rb") as file:
        answer = file_reader.report(file.fileno())
    assert "refused" in answer, f"{path.name} was accepted"
    return answer["refused"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_corpus(tmp_path_factory.mktemp("hostile"))


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("F5LAB_CANARY", str(tmp_path))
    return canary_folder(tmp_path) / "canary"


def test_the_corpus_is_as_large_as_promised() -> None:
    assert len(CORPUS) >= 80 and len({item.name for item in CORPUS}) == len(CORPUS)
    assert set(GROUPS) >= {"import", "obfuscation", "call", "persistent id", "zip", "old format", "tar", "safetensors"}


def test_the_canary_sings_when_a_file_is_unpickled(canary: Path) -> None:
    """Without this a silent canary would prove nothing."""
    for name in ("call-exec", "inst", "protocol_0", "stack_global"):
        data = next(item for item in CORPUS if item.name == name).build()
        raw = zipfile.ZipFile(io.BytesIO(data)).read("m/data.pkl")
        unpickler = pickle.Unpickler(io.BytesIO(raw))
        unpickler.persistent_load = lambda _: torch.ones(4)._typed_storage()  # type: ignore[method-assign]
        with contextlib.suppress(TypeError, AttributeError, RuntimeError, pickle.UnpicklingError):
            unpickler.load()
        assert canary.exists(), name
        canary.unlink()


def test_every_file_is_refused_by_its_rule_and_nothing_runs(files: dict[str, Path], canary: Path) -> None:
    wrong = {}
    for item in CORPUS:
        if item in BOMBS:
            continue
        rule, what, _ = refused(files[item.name])
        if rule not in item.rules or not what:
            wrong[item.name] = (rule, what, item.rules)
        assert not canary.exists(), item.name
    assert not wrong


@pytest.mark.parametrize("item", IN_A_PROCESS, ids=lambda item: item.name)
def test_a_users_open_refuses_in_one_line_within_the_limits(item, files: dict[str, Path], canary: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(files[item.name])
    message = str(caught.value)
    assert any(f"rule {rule}" in message for rule in (*item.rules, "child-died")), message
    assert "\n" not in message and message.isprintable() and len(message) < 1500
    assert not canary.exists()
    assert time.monotonic() - begun < processes.WALL_S


def test_bombs_are_refused_under_the_cap(files: dict[str, Path]) -> None:
    """Each in a process of its own, started by one fresh process, which knows the largest peak of them all."""
    code = (
        "import os, resource, sys\nfrom f5lab.untrusted import sandbox\n"
        "for path in sys.argv[1:]:\n"
        "    try: sandbox.read_manifest(os.open(path, os.O_RDONLY))\n"
        "    except sandbox.Refused as refused: print(refused.rule)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)"
    )
    paths = [str(files[item.name]) for item in BOMBS]
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True)
    *rules, peak = done.stdout.split()
    wrong = {item.name: rule for item, rule in zip(BOMBS, rules, strict=True) if rule not in item.rules}
    assert not wrong
    assert int(peak) < file_reader.MEMORY_BYTES // 2


def test_the_limits_hold(tmp_path: Path) -> None:
    code = (
        "import os, socket, sys\nfrom f5lab.untrusted.file_reader import limit_process\n"
        "limit_process(400 << 20, 2, 3)\n"
        "def fails(action):\n"
        "    try: action()\n"
        "    except (OSError, MemoryError) as error: return type(error).__name__\n"
        "    return 'nothing'\n"
        "print(fails(lambda: bytearray(500 << 20)), fails(lambda: open('/etc/hostname')), fails(socket.socket))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["MemoryError", "OSError", "OSError"]
    endless = code.rsplit("print", 1)[0] + "while True: pass"
    assert subprocess.run([sys.executable, "-c", endless], check=False, timeout=60).returncode < 0


def test_the_reading_process_imports_nothing_but_the_standard_library() -> None:
    code = processes._START.format(module="file_reader").replace("main()", "")
    code += "print(sorted({name.split('.')[0] for name in sys.modules} - set(sys.stdlib_module_names) - {'__main__', 'f5lab'}))"
    command = [sys.executable, "-I", "-S", "-c", code, str(PACKAGE)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"


ENDINGS = {
    "crash": ("import os; os.abort()", "SIGABRT"),
    "exit": ("sys.exit(7)", "exit status 7"),
    "silence": ("pass", "gave no answer"),
    "nonsense": ("print('[')", "gave no answer"),
    "sleep": ("import time; time.sleep(60)", "longer than it may"),
    "flood": ("[sys.stdout.write('x' * (1 << 20)) for _ in range(300)]", "more than it may"),
}


@pytest.mark.parametrize("name", ENDINGS)
def test_a_reader_that_ends_badly_is_a_finding(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body, says = ENDINGS[name]
    monkeypatch.setattr(processes, "_START", f"import sys; {body} #{{module}}")
    monkeypatch.setattr(processes, "WALL_S", 2.0 if name == "sleep" else 60.0)
    (tmp_path / "x.pt").write_bytes(payload(text(name)))
    with pytest.raises(CheckpointError, match=rf"rule child-died: .*{says}"):
        open_checkpoint(tmp_path / "x.pt")


@pytest.mark.parametrize("version", ["2.9.1", "1.13.0", "nonsense"])
def test_old_torch_is_refused(version: str) -> None:
    with pytest.raises(CheckpointError, match=r"expected torch 2\.10 or newer.*pip install -U torch"):
        mappings.require_torch(version)
    mappings.require_torch("2.10.0+cpu")


def test_old_torch_is_refused_at_import_of_the_loader(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("__version__ = '2.9.0'\nclass Tensor: pass\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import f5lab.mappings"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "torch 2.9.0 is installed; expected torch 2.10 or newer" in done.stderr


def test_every_torch_load_of_the_package_is_weights_only() -> None:
    calls = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = isinstance(node, ast.Call) and ast.unparse(node.func)
            if named in ("torch.load", "pickle.load", "pickle.loads", "np.load", "numpy.load", "joblib.load"):
                keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
                calls.append(
                    (path.stem, keywords.get("weights_only") == "True" or keywords.get("allow_pickle") == "False")
                )
        imported_names = {
            alias.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in node.names
        }  # fmt: skip
        assert "pickle" not in imported_names, path.stem
    assert calls and all(safe for _, safe in calls), calls


def test_a_file_that_changes_under_the_reader_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.save({"model_state_dict": {"transformer.w": torch.ones(3)}}, path)
    opened = open_checkpoint(path)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"transformer.w", b"transformer.v"))
    with pytest.raises(CheckpointError, match="rule file-changed"):
        opened.weights("raw")
    with pytest.raises(CheckpointError, match="rule file-changed"):
        opened.confirm()


def test_a_changed_weight_is_noticed_by_the_hash_even_with_the_old_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.pt"
    torch.save({"model_state_dict": {"transformer.w": torch.ones(3)}}, path)
    opened = open_checkpoint(path)
    before = opened.file.hashes()
    opened.confirm(before)
    data = path.read_bytes()
    path.write_bytes(data.replace(torch.ones(3).numpy().tobytes(), torch.zeros(3).numpy().tobytes()))
    monkeypatch.setattr("f5lab.untrusted.weights_files.Identity.of", lambda _: opened.file.parts[0].identity)
    with pytest.raises(CheckpointError, match="SHA-256 is another"):
        opened.confirm(before)


def test_a_changed_structure_is_noticed_even_with_the_old_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.pt"
    torch.save({"model_state_dict": {"transformer.w": torch.ones(3)}}, path)
    opened = open_checkpoint(path)
    path.write_bytes(path.read_bytes().replace(b"transformer.w", b"transformer.v"))
    monkeypatch.setattr("f5lab.untrusted.weights_files.Identity.of", lambda _: opened.file.parts[0].identity)
    with pytest.raises(CheckpointError, match="its structure changed since it was examined"):
        opened.weights("raw")


def test_a_pipe_and_a_device_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pt")
    for path in (tmp_path / "pipe.pt", Path("/dev/zero")):
        with pytest.raises(CheckpointError, match="does not exist|file-kind"):
            open_weights_file(path)


def test_strings_of_the_file_are_shown_and_clipped(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(payload(call(imported("evil\u202e\x1b[31m", "a" * 50))))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(tmp_path / "x.pt")
    assert "\u202e" not in str(caught.value) and "\x1b" not in str(caught.value)
    torch.save(
        {"model_state_dict": {"transformer.a": torch.ones(1)}, "<img src=x onerror=alert(1)>\u202e": 1},
        tmp_path / "y.pt",
    )
    names = [section.name for section in open_checkpoint(tmp_path / "y.pt").sections]
    assert names[1] == "<img src=x onerror=alert(1)>⟨U+202E⟩"


def test_every_rule_is_used_by_a_file_or_said_to_be_another_tests() -> None:
    elsewhere = {"file-kind", "file-changed", "child-died", "shard-tensors", "file-size"}
    assert set(refusals.RULES) - {rule for item in CORPUS for rule in item.rules} <= elsewhere


def test_an_accepted_file_of_the_same_parts(tmp_path: Path) -> None:
    """The parts that hostile files are built from make a file that loads: they are refused for what they do."""
    (tmp_path / "x.pt").write_bytes(torch_archive(checkpoint()))
    assert open_checkpoint(tmp_path / "x.pt").weights("raw")["transformer.proj_out.bias"].tolist() == [1, 2, 3, 4]
    assert torch.load(tmp_path / "x.pt", weights_only=True)["model_state_dict"][
        "transformer.proj_out.bias"
    ].tolist() == [1, 2, 3, 4]
    assert whole(b"N") == b"\x80\x02N."
