"""One hypothesis as a user tries it: a fresh process, ``load_model``, ``infer_process``, Whisper; nothing of f5lab.

Reads a JSON object from stdin: backbone, arch, checkpoint, vocab, use_ema, raw_text, vocoder, whisper, language, device and
prompts (ref_audio, ref_text, gen_text). Prints the mean CER as JSON.
"""

import contextlib
import json
import sys

with contextlib.redirect_stdout(sys.stderr):
    import jiwer
    import torch
    import whisper
    from f5_tts.infer import utils_infer
    from f5_tts.model import DiT, UNetT


def main() -> None:
    """Speak, transcribe and score every prompt."""
    given = json.load(sys.stdin)
    device = given["device"]
    with contextlib.redirect_stdout(sys.stderr):
        if given["raw_text"]:
            utils_infer.convert_char_to_pinyin = lambda texts, **_: [list(text) for text in texts]
        model = utils_infer.load_model(
            {"DiT": DiT, "UNetT": UNetT}[given["backbone"]], given["arch"], given["checkpoint"], vocab_file=given["vocab"],
            use_ema=given["use_ema"], device=device,
        )  # fmt: skip
        vocoder = utils_infer.load_vocoder(is_local=True, local_path=given["vocoder"], device=device)
        recogniser = whisper.load_model(given["whisper"], device=device)
        rates = []
        for prompt in given["prompts"]:
            audio, text = utils_infer.preprocess_ref_audio_text(prompt["ref_audio"], prompt["ref_text"])
            torch.manual_seed(0)
            wave, rate, _ = utils_infer.infer_process(audio, text, prompt["gen_text"], model, vocoder, device=device)
            at_16k = utils_infer.torchaudio.functional.resample(torch.from_numpy(wave).float(), rate, 16000)
            heard = recogniser.transcribe(at_16k.numpy(), language=given["language"], temperature=0.0)["text"]
            rates.append(min(1.0, jiwer.cer(_letters(prompt["gen_text"]), _letters(heard) or " ")))
    print(json.dumps({"cer": sum(rates) / len(rates)}))


def _letters(text: str) -> str:
    return "".join(c for c in text.lower() if c.isalnum())


if __name__ == "__main__":
    main()
