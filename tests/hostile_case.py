"""A case written by an enemy: every string that a report shows carries something that wants to run, load or deceive."""

from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import soundfile as sf
import yaml
from toy_checkpoints import ema_state, save_trainer, state
from toy_workbook import FIGURE, notebook

HOST = "canary.invalid"
RUNS = "window.canary=(window.canary||0)+1;alert(1);console.log('canary')"
PAYLOADS = (
    f"<script>{RUNS}</script>",
    f'"><img src=x onerror="{RUNS}">',
    f"'><svg onload={RUNS}>",
    f'<img src="https://{HOST}/pixel.png"><link rel=stylesheet href="//{HOST}/a.css">',
    f'<audio src="https://{HOST}/a.mp3" autoplay onplay="{RUNS}"></audio><video poster="https://{HOST}/p"></video>',
    f'<iframe src="javascript:{RUNS}"></iframe><iframe srcdoc="<script>{RUNS}</script>"></iframe>',
    f'<a href="javascript:{RUNS}" id=clickme>click</a><form action="https://{HOST}/"><button id=clickme>go</button></form>',
    f'<details open ontoggle="{RUNS}"><summary>x</summary></details><body onload="{RUNS}">',
    f"<style>@import url(https://{HOST}/i.css);*{{background:url(https://{HOST}/b.png)}}</style>",
    f'<meta http-equiv="refresh" content="0;url=https://{HOST}/"><base href="https://{HOST}/">',
    f"</pre></td></table></main></style></script></textarea></title><script>{RUNS}</script>",
    f'<math><mtext><table><mglyph><style><!--</style><img title="--><img src=1 onerror={RUNS}>">',
    f'<noscript><p title="</noscript><img src=x onerror={RUNS}>">',
    f"![pixel](https://{HOST}/md.png) [click](javascript:{RUNS}) <https://{HOST}/auto>",
    f"{{{{ ''.__class__ }}}} {{% raw %}} ${{{RUNS}}} $x_{{$ \\u003cscript\\u003e{RUNS}\\u003c/script\\u003e",
    "\u202egnp.exe\u202c \u2066isolate\u2069 zero\u200bwidth \ufeff",
    "\x1b[2J\x1b]0;owned\x07\x1b]8;;https://canary.invalid\x1b\\link\x1b]8;;\x1b\\ \x9b31m \x08\x08",
    "word " * 6_000,
)
"""What a name, a line, a sentence or a message may hold."""

NAMEABLE = tuple(text for text in PAYLOADS if len(text) < 2000)
PRINTABLE = tuple(text for text in NAMEABLE if text.isprintable())


def write_case(root: Path) -> Path:
    """Write the case: tensors, vocab, YAML values and file names all hold payloads."""
    folder = root / "case"
    folder.mkdir(parents=True)
    weights = state()
    weights |= {
        f"transformer.{text.replace('.', '·')}.weight": weights["transformer.proj_out.bias"] for text in PAYLOADS
    }
    name = f"<img src=x onerror={RUNS}>\u202etp.pt".replace("/", "∕")
    save_trainer(folder / name, weights, ema_state(weights), update=100)
    lines = [" ", *"abc", *(text.replace("\n", " ") for text in NAMEABLE)]
    (folder / "vocab.txt").write_bytes("".join(f"{line}\n" for line in lines).encode())
    tone = 0.3 * np.sin(np.linspace(0, 4000, 24_000))
    audio = f"<img src=x onerror={RUNS}>.wav".replace("/", "∕")
    sf.write(folder / audio, tone, 24_000)
    prompts = [
        {"id": f"p{number:02d}", "ref_audio": audio, "ref_text": f"abc {text}", "gen_text": f"cab {text}"}
        for number, text in enumerate(PRINTABLE)
    ]
    case: dict[str, Any] = {
        "name": "hostile", "question": "".join(PRINTABLE), "checkpoint": name, "vocab": "vocab.txt", "prompts": prompts,
        "training": {"front_end": "raw"},
        "recorded": [{"label": text, "similarity": 0.1, "note": text} for text in PRINTABLE],
    }  # fmt: skip
    path = folder / "case.yaml"
    path.write_text(yaml.safe_dump(case, allow_unicode=True), encoding="utf-8")
    return path


SHOW = """from IPython.display import HTML, Markdown
from f5lab import audio, load_case, tables
import numpy as np, json, sys
from hostile_case import PAYLOADS
spec = load_case(case)
display(tables.table([{text[:300]: text, "file": spec.checkpoint} for text in PAYLOADS], caption=PAYLOADS[0]))
tone = audio.Wave(np.sin(np.linspace(0, 4000, 24000)).astype(np.float32) * 0.3, 24000)
display(audio.player([(f"heard: {text}", tone) for text in PAYLOADS[:4]], out=out, prefix="00-heard"))
for text in PAYLOADS:
    display(HTML(f"<p>{text}</p>")); display(Markdown(text)); print(text); print(text, file=sys.stderr)
    display({"application/javascript": text, "text/plain": text}, raw=True)
    display({"image/svg+xml": f"<svg xmlns='http://www.w3.org/2000/svg'>{text}</svg>"}, raw=True)"""

RECORDED = """from hostile_case import PAYLOADS
from f5lab import verdicts
from f5lab.findings import FindingsLog
from f5lab.verdicts import Cause, Fix, Refuted, Unknown, Verdict
log = FindingsLog("01", out)
for number, text in enumerate(PAYLOADS):
    log.record(f"01-x-{number}", question=text, claim=text, verdict="refuted", value=1.0, unit=text, evidence=[text], limitation=text)
causes = [Cause(id=text[:200], confidence=0.9, evidence=[f"01-x-{n}"], fix=Fix(summary=text, settings={text: text})) for n, text in enumerate(PAYLOADS)]
lost = [Unknown(id=text[:200], needs=text) for text in PAYLOADS]
verdict = Verdict(case="hostile", run=PAYLOADS[0], healthy=False, causes=causes, refuted=[Refuted(id=t, evidence=[]) for t in PAYLOADS], unknown=lost)
_ = verdicts.save(verdict, out)
from IPython.display import Markdown
Markdown(verdicts.markdown(verdict, {f.id: f.claim for f in log.findings}))"""

RAISED = """from hostile_case import PAYLOADS
kind = type("".join(PAYLOADS[:2]), (Exception,), {})
raise kind("".join(PAYLOADS))"""


def toy_nodes() -> dict[str, nbformat.NotebookNode]:
    """Return notebooks that show, record and raise the payloads."""
    return {
        "00_shown": notebook("00", SHOW, FIGURE),
        "01_recorded": notebook("01", RECORDED, record=False),
        "02_raised": notebook("02", RAISED),
    }
