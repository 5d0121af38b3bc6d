"""Synthesis at F5TTS_v1_Base's own size: upstream's ``infer_process`` against f5lab's batches on the same device, in one run.

``python benchmarks/synthesis.py [--size full] [--seeds 4] [--steps 32]``. The model has that size's shapes and random, seeded
weights, the vocoder those of vocos-mel-24khz; what is spoken is noise, and takes the time that speech does. References and texts are
the bundled case's, four texts joined to one. Each way is warmed up, then timed over the same (prompt, seed) pairs, in turns:

* upstream: ``load_model`` and ``infer_process``, one clip after the other, in upstream's own precision
* batched: ``batches.speak_pairs``, pairs of equal length together; "N seeds" is one prompt in one batch
* replayed: with each pass recorded once as a CUDA graph, as f5lab does on such a device; one by one: a batch for each

A real-time factor is seconds of work for a second of audio. What a precision changes is measured on the bundled specimen, which
speaks: the probe's loss and the mel against float32. One hypothesis as the probe scores it is timed against a fresh ``load_model`` and
``infer_process`` of the same prompts in this process, without starting Python and without a recogniser, which a user would need too.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from f5lab import asr, batches, models, paths, probes, provenance, samplers
from f5lab.batches import Pair
from f5lab.errors import AsrError, ModelError
from f5lab.probes import Hypothesis, Probe
from f5lab.samplers import Sample, Studio
from f5lab.specs import Case, Recipe, Vocoder, load_case

VOCOS = {"dim": 512, "intermediate_dim": 1536, "num_layers": 8}
SENTENCES = 4
BASE = {"ff_mult": 2, "text_mask_padding": True, "conv_layers": 4, "pe_attn_head": None, "qk_norm": None}


def make(folder: Path, size: str, case: Case) -> Recipe:
    """Write weights, vocab and vocoder of one size and return the stock inference recipe on them."""
    from fullsize import SIZES

    shape = {k: v for k, v in SIZES[size].items() if k != "tokens"}
    given = samplers.inference_recipe(case)
    symbols = given.vocab.read_text(encoding="utf-8").splitlines()
    symbols += [f"<{n}>" for n in range(SIZES[size]["tokens"] - len(symbols))]
    (folder / "vocab.txt").write_text("\n".join(symbols) + "\n", encoding="utf-8")
    torch.manual_seed(0)
    model = models.build_cfm("DiT", shape | BASE, folder / "vocab.txt", front_end="pinyin")
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():  # adaLN and the output begin at zero: nothing would flow
                p.normal_(0, 0.02)
    save_file({f"ema_model.{k}": v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    config = yaml.safe_load((given.vocoder.path / "config.yaml").read_text())
    config["backbone"]["init_args"] |= VOCOS
    config["head"]["init_args"]["dim"] = VOCOS["dim"]
    (folder / "vocos").mkdir()
    (folder / "vocos" / "config.yaml").write_text(yaml.safe_dump(config))
    vocos = models.upstream().Vocos.from_hparams(str(folder / "vocos" / "config.yaml"))
    torch.save(vocos.state_dict(), folder / "vocos" / "pytorch_model.bin")
    return given.but(
        name=size, checkpoint=folder / "model.safetensors", weights="ema", vocab=folder / "vocab.txt", arch=shape | BASE,
        front_end="pinyin", precision="auto", vocoder=Vocoder(name="vocos", path=folder / "vocos"),
    )  # fmt: skip


def wait(device: str) -> None:
    """Wait for the device."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def timed(work: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Return seconds, device included, and what came out."""
    wait(device)
    start = time.perf_counter()
    made = work()
    wait(device)
    return time.perf_counter() - start, made


class Upstream:
    """A user's way: ``load_model``, ``load_vocoder``, ``infer_process``."""

    def __init__(self, recipe: Recipe, device: str) -> None:
        self.recipe, self.device, up = recipe, device, models.upstream()
        with models.quiet():
            self.model = up.load_model(
                up.DiT, recipe.arch, str(recipe.checkpoint), vocab_file=str(recipe.vocab), use_ema=True, device=device
            )
            self.vocoder = up.load_vocoder(is_local=True, local_path=str(recipe.vocoder.path), device=device)

    def speak(self, pairs: Sequence[Pair]) -> float:
        """Speak pairs one after the other and return seconds of audio."""
        spoken, up = 0.0, models.upstream()
        for prompt, seed in pairs:
            with models.quiet():
                audio, text = up.preprocess_ref_audio_text(str(prompt.ref_audio), prompt.ref_text)
                torch.manual_seed(seed)
                wave, rate, _ = up.infer_process(
                    audio, text, prompt.gen_text, self.model, self.vocoder, nfe_step=self.recipe.nfe_step,
                    device=self.device, progress=None, show_info=lambda *_: None,
                )  # fmt: skip
            spoken += len(wave) / rate
        return spoken


def ways(recipe: Recipe, device: str, pairs: Sequence[Pair], same: Sequence[Pair]) -> dict[str, tuple[int, Callable[[], Any]]]:
    """Return what is timed: name to clips and work."""
    stock, plain, quick = Upstream(recipe, device), Studio(device, replay=False), Studio(device)
    many = f", {len(same)} seeds"
    found: dict[str, tuple[int, Callable[[], Any]]] = {
        "upstream": (len(pairs), lambda: stock.speak(pairs)),
        "batched": (len(pairs), lambda: batches.speak_pairs(plain, recipe, pairs)),
        "upstream" + many: (len(same), lambda: stock.speak(same)),
        "batched" + many: (len(same), lambda: batches.speak_pairs(plain, recipe, same)),
    }
    if quick.replay:
        found["one by one, replayed"] = (len(pairs), lambda: [batches.speak_pairs(quick, recipe, [pair])[0] for pair in pairs])
        found["batched, replayed"] = (len(pairs), lambda: batches.speak_pairs(quick, recipe, pairs))
        found["batched, replayed" + many] = (len(same), lambda: batches.speak_pairs(quick, recipe, same))
    return found


def speed(recipe: Recipe, case: Case, device: str, seeds: int, rounds: int) -> list[dict[str, Any]]:
    """Time every way on the same pairs, in turns; what is spoken are the prompts' texts joined, a few seconds."""
    texts = [prompt.gen_text for prompt in case.prompts] * 2
    spoken = [
        prompt.model_copy(update={"gen_text": " ".join(texts[i : i + SENTENCES])}) for i, prompt in enumerate(case.prompts)
    ]
    pairs = [(prompt, seed) for prompt in spoken for seed in range(seeds)]
    same = [(spoken[0], seed) for seed in range(2 * seeds)]
    todo = ways(recipe, device, pairs, same)
    rows: dict[str, dict[str, Any]] = {}
    for turn in range(rounds + 1):
        for name, (clips, work) in todo.items():
            if device.startswith("cuda"):
                torch.cuda.reset_peak_memory_stats()
            seconds, made = timed(work, device)
            audio = made if isinstance(made, float) else sum(sample.wave.seconds for sample in made)
            row = rows.setdefault(name, {"way": name, "clips": clips, "audio_s": audio, "first_s": seconds, "s": []})
            if turn:
                row["s"].append(seconds)
            if device.startswith("cuda"):
                row["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
            print(f"  {name}: {seconds:.2f} s", flush=True)
    for row in rows.values():
        row["wall_s"] = median(row.pop("s") or [row["first_s"]])
        row["real_time_factor"] = row["wall_s"] / row["audio_s"]
    for row in rows.values():
        other = rows[f"upstream, {len(same)} seeds" if row["way"].endswith("seeds") else "upstream"]
        row["times_faster"] = other["real_time_factor"] / row["real_time_factor"]
    return list(rows.values())


def parity(case: Case, device: str) -> list[dict[str, Any]]:
    """Measure what a precision changes on the specimen: probe loss on real speech, and the mel under one seed."""
    right = samplers.repaired_recipe(case)
    probe, studio = Probe(probes.real_items(case, 8), device=device), Studio(device)
    pairs = [(prompt, 0) for prompt in case.prompts]
    clips = {p: spoken(studio, right.but(precision=p), pairs) for p in ("fp32", "fp16", "bf16")}
    rows = []
    for precision, (made, problem) in clips.items():
        change = probe.compare(Hypothesis(right.but(precision="fp32")), Hypothesis(right.but(precision=precision)))
        off = [float(np.abs(a.mel - b.mel).mean()) for a, b in zip(made, clips["fp32"][0])]
        rows.append({
            "precision": precision, "loss_change_percent": 100 * change.mean, "interval": [100 * x for x in change.interval],
            "recordings": change.n, "mel_mean_difference_nat": float(np.mean(off)) if off else None, "clips": len(off),
            "problem": problem,
        })  # fmt: skip
    return rows


def spoken(studio: Studio, recipe: Recipe, pairs: Sequence[Pair]) -> tuple[list[Sample], str]:
    """Return clips and why there are none: in bfloat16 upstream's time steps need not increase."""
    try:
        return batches.speak_pairs(studio, recipe, pairs), ""
    except ModelError as error:
        return [], str(error)


def passes(recipe: Recipe, device: str) -> list[dict[str, Any]]:
    """Time one guided forward pass of clips of 600 frames: launched, replayed, and with each block compiled; GPUs only.

    The largest error that compiling brings is not bounded here, which is one reason why f5lab does not compile; the other is what it
    costs: see ``compile_s`` against the milliseconds that it saves.
    """
    if not device.startswith("cuda"):
        return []
    transformer = Studio(device).model(recipe).transformer
    rows = [row for count in (1, 2, 4, 8, 16, 32) for row in _pass_times(transformer, count, device)]
    start = time.perf_counter()
    for number, block in enumerate(transformer.transformer_blocks):
        transformer.transformer_blocks[number] = torch.compile(block, dynamic=True)
    compiled = [row for count in (1, 4, 16) for row in _pass_times(transformer, count, device)]
    return [*rows, *({**row, "compile_s": time.perf_counter() - start} for row in compiled)]


@torch.inference_mode()
def _pass_times(transformer: Any, count: int, device: str, rounds: int = 12) -> list[dict[str, Any]]:
    dtype = next(transformer.parameters()).dtype
    x, cond = (torch.randn(count, 600, 100, device=device, dtype=dtype) for _ in range(2))
    text = torch.randint(0, 2000, (count, 60), device=device)
    mask = torch.ones(count, 600, dtype=torch.bool, device=device) if count > 1 else None
    now = torch.tensor(0.3, device=device, dtype=dtype)

    def launch() -> Tensor:
        return transformer(x=x, cond=cond, text=text, time=now, mask=mask, cfg_infer=True, cache=True)

    transformer.clear_cache()
    for _ in range(3):
        launch()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    rows = []
    for how, work in (("launched", launch), ("replayed", graph.replay)):
        for _ in range(3):
            work()
        seconds, _ = timed(lambda w=work: [w() for _ in range(rounds)], device)
        rows.append({"how": how, "clips": count, "ms": 1000 * seconds / rounds, "ms_a_clip": 1000 * seconds / rounds / count})
    transformer.clear_cache()
    return rows


def fullest(recipe: Recipe, case: Case, device: str) -> dict[str, Any]:
    """Return the peak of memory with the largest batch that is ever made, two steps of it; GPUs only."""
    if not device.startswith("cuda"):
        return {}
    prompt = case.prompts[0].model_copy(update={"gen_text": " ".join(p.gen_text for p in case.prompts[:SENTENCES])})
    studio = Studio(device)
    request = batches.capture(studio, recipe, prompt)
    count = batches.FRAMES["cuda"] // request.duration
    torch.cuda.reset_peak_memory_stats()
    batches.speak_pairs(studio, recipe.but(nfe_step=2), [(prompt, seed) for seed in range(count)])
    peak, about = torch.cuda.max_memory_reserved(), torch.cuda.get_device_properties(device)
    return {"clips": count, "frames_each": request.duration, "peak_gib": peak / 2**30, "of_gib": about.total_memory / 2**30}


def hypothesis(recipe: Recipe, case: Case, device: str) -> dict[str, Any]:
    """Time one more hypothesis: by the probe, and by a fresh load with `infer_process`."""
    probe = Probe(probes.real_items(case, 8), device=device)
    flags = ({}, {"pe_attn_head": 1}, {"text_mask_padding": False}, {"pe_attn_head": 1, "text_mask_padding": False})
    each = [timed(lambda f=f: probe.loss(Hypothesis(recipe.but(arch=recipe.arch | f))), device)[0] for f in flags]
    prompts = [(prompt, 0) for prompt in case.prompts[:8]]
    load, user = timed(lambda: Upstream(recipe, device), device)
    speak, _ = timed(lambda: user.speak(prompts), device)
    own = median(each[1:])  # the first one also loads the weights, which all others share
    return {
        "probe_first_s": each[0], "probe_s": own, "recordings": len(probe.items), "load_model_s": load, "infer_process_s": speak,
        "prompts": len(prompts), "times_faster": (load + speak) / own,
    }  # fmt: skip


def hearing(case: Case, device: str) -> dict[str, Any]:
    """Time Whisper on the specimen's clips: all at once, and one after the other; transcripts must agree."""
    studio, right = Studio(device), samplers.repaired_recipe(case).but(precision="fp32")
    waves = [s.wave for s in batches.speak_pairs(studio, right, [(p, seed) for p in case.prompts for seed in range(2)])]
    try:
        transcriber = asr.Transcriber(case.language, "base", device)
    except AsrError as error:
        return {"problem": str(error)}
    transcriber._decode(waves), transcriber._decode(waves[:1])  # either size once, so that no kernel is chosen in what is timed
    together, a = timed(lambda: transcriber._decode(waves), device)
    alone, b = timed(lambda: [transcriber._decode([wave])[0] for wave in waves], device)
    agree = sum(x.text == y.text for x, y in zip(a, b))
    return {"clips": len(waves), "together_s": together, "one_by_one_s": alone, "same_text": agree}


def table(result: dict[str, Any]) -> str:
    """Return what was measured as Markdown."""
    lines = ["| way | clips | audio s | wall s | real-time factor | times upstream | peak GiB |", "|-|-|-|-|-|-|-|"]
    for row in result["speed"]:
        lines.append(
            f"| {row['way']} | {row['clips']} | {row['audio_s']:.1f} | {row['wall_s']:.2f} | {row['real_time_factor']:.4f} "
            f"| {row['times_faster']:.2f} | {row.get('peak_gib', '')} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write ``benchmarks/results/<date>-<host kind>-synthesis.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="full")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=paths.project_root() / "benchmarks" / "results")
    given = parser.parse_args()
    case, device = load_case(paths.default_case()), models.pick_device(given.device)
    case = case.model_copy(update={"prompts": case.prompts[: given.prompts]})
    hardware = provenance.hardware()
    result: dict[str, Any] = {
        "size": given.size, "steps": given.steps, "device": device, "upstream_precision": models.pick_precision("auto", device),
        "hardware": hardware, "versions": provenance.versions(),
    }  # fmt: skip
    kind = f"gpu{len(hardware['gpus'])}" if device.startswith("cuda") else f"cpu{hardware['cores']}"
    out = given.out / f"{date.today():%Y-%m-%d}-{kind}-synthesis.json"
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="f5lab-synthesis-") as folder:
        recipe = make(Path(folder), given.size, case).but(nfe_step=given.steps)
        for name, measured in (
            ("speed", lambda: speed(recipe, case, device, given.seeds, given.rounds)),
            ("passes", lambda: passes(recipe, device)),
            ("fullest_batch", lambda: fullest(recipe, case, device)),
            ("hypothesis", lambda: hypothesis(recipe, case, device)),
            ("precision", lambda: parity(case, device)),
            ("whisper", lambda: hearing(case, device)),
        ):
            result[name] = measured()
            paths.write_text(out, json.dumps(result, indent=1) + "\n")  # a machine may be lent for minutes only
            print(table(result) if name == "speed" else json.dumps({name: result[name]}), flush=True)


if __name__ == "__main__":
    main()
