"""The catalogue of faults: every known way for inference to disagree with the trainer's logged samples. Data only.

Checked against f5_tts 1.1.22 and ema_pytorch 0.8.3. R is the raw weights, E their EMA, P the base they started from.
`plants` puts each fault into a healthy case; `DECOYS` look odd and change nothing, so they must never be named.
"""

import difflib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from f5lab.errors import FaultError

Group = Literal["weights", "architecture", "text", "audio", "duration", "sampler", "numerics"]
Loads = Literal["silent", "raises", "raises at first forward", "depends"]


@dataclass(frozen=True)
class Fault:
    """One entry of the catalogue.

    Attributes
    ----------
    id : str
        Stable, kebab-case.
    group : {"weights", "architecture", "text", "audio", "duration", "sampler", "numerics"}
    title, happens : str
        The fault in a few words, and its mechanism.
    loads : {"silent", "raises", "raises at first forward", "depends"}
        What upstream's loader does about it.
    symptom, detected_by, fix : str
        What is heard, the signal that decides, and what to change.
    issues : tuple of str
        Upstream threads in which it was reported, as ``SWivid/F5-TTS#848``; many attributions rest on the symptom.
    look_alikes : tuple of str
        Ids that cannot be told from this one without extra evidence: naming the set is right.
    """

    id: str
    group: Group
    title: str
    happens: str
    loads: Loads
    symptom: str
    detected_by: str
    fix: str
    issues: tuple[str, ...] = ()
    look_alikes: tuple[str, ...] = ()


def _threads(*numbers: int) -> tuple[str, ...]:
    return tuple(f"SWivid/F5-TTS#{number}" for number in numbers)


# fmt: off
_WEIGHTS = (
    Fault("ema-lag-inherited", "weights", "EMA still the base: it inherited the base's step",
        "The trainer restores the base's EMA step, about a million for a release. The decay is then 0.9999 per ten updates from the "
        "first update on, and a short fine-tune hardly enters the EMA.",
        "silent", "The base's voice and accent; new letters are skipped; the logged samples, which use R, are excellent.",
        "EMA step far above update; the measured share of P in E is the one that the decays predict, and not zero.",
        "Infer with the raw weights (use_ema=False), or put R into the EMA slot; next time set the base's step to 0.",
        _threads(848, 1175, 895, 554, 970), ("ema-lag-fresh",)),
    Fault("ema-lag-fresh", "weights", "EMA of a short run: mostly early weights",
        "A run from scratch is so short that its EMA still averages early, untrained weights.",
        "silent", "Muffled or garbled with the EMA, fine with the raw weights.",
        "EMA step equals update and is small; E explains real clips worse than R does.",
        "Infer with the raw weights, or train longer.", (), ("ema-lag-inherited",)),
    Fault("ema-frozen", "weights", "EMA never updated: identical to the base",
        "The EMA's loop finds no matching parameters (FSDP, DeepSpeed, torch.compile), or update() is never called.",
        "silent", "Exactly the base's speech, whatever was trained.",
        "E equals P to the last bit although R has moved.",
        "Infer with the raw weights; give the EMA the unwrapped model."),
    Fault("ema-uninitialised", "weights", "EMA saved before its first update",
        "The checkpoint was written before the EMA was filled: initted is False and E is a fresh network.",
        "silent", "Hiss.",
        "initted False or step 0; since f5_tts 1.0.0 proj_out and attn_norm.linear are exact zeros in fresh weights.",
        "Infer with the raw weights; save only after the first EMA update.", (), ("prefix-lost",)),
    Fault("raw-ema-swapped", "weights", "Raw and EMA slots exchanged",
        "A merge or conversion script wrote each set of weights under the other's name.",
        "silent", "The choice of use_ema works backwards.",
        "An EMA lags, so normally |E - P| < |R - P|; here it is the other way round.",
        "Exchange the two slots, or ask for the other one."),
    Fault("raw-in-ema-slot", "weights", "Raw weights under the EMA's name",
        "prune_checkpoint(save_ema=False) stores R as ema_model_state_dict, or without prefix in a .safetensors file.",
        "silent", "Output matches the logged samples, so the label lies; a trainer that resumes from the file raises.",
        "The EMA slot has neither the ema_model. prefix nor a step.",
        "Call them raw: prune again with the slot named for what it holds."),
    Fault("prefix-lost", "weights", "Keys carry a wrapper's prefix",
        "Keys start with module. or _orig_mod.; a loader with strict=False then drops every tensor.",
        "raises", "A strict load raises; a tolerant one keeps fresh weights and speaks hiss.",
        "Prefixes in the key inventory, or the number of missing keys after loading.",
        "Strip the prefix and load strictly.", _threads(1292, 459), ("ema-uninitialised",)),
    Fault("stale-checkpoint", "weights", "Listened to one update, loaded another",
        "The sample that was heard belongs to a later update than the checkpoint: model_last is old, or model_K was rotated away.",
        "silent", "Worse than the sample, or an older speaker.",
        "update in the file against the numbers of the logged samples.",
        "Load the checkpoint of the sample's own update.", _threads(507, 924)),
    Fault("scratch-by-accident", "weights", "Not a fine-tune: training began from nothing",
        "--finetune was left out, or no checkpoint lay in the exact save_dir, so the trainer started at random weights without a word.",
        "silent", "Noise or babble, in the logged samples too.",
        "Cosine of R and P is near 0; in a fine-tune it is near 1.",
        "Train again with --finetune and the base in place.", _threads(1231, 565, 676)),
    Fault("lr-dead", "weights", "Nothing learned: the learning rate was nil",
        "Warm-up is longer than the training, or a finished schedule was resumed, so updates change nothing.",
        "silent", "The base's speech, in the logged samples too.",
        "|R - P| / |P| is nearly zero, and the scheduler's own rates explain it.",
        "Shorten the warm-up or reset the schedule, then train.", _threads(1029, 1259)),
    Fault("weight-damage", "weights", "Damaged weights",
        "A merge, conversion or half-written file left NaN, zeros or misplaced values in some tensors, or training diverged.",
        "silent", "Silence from NaN, buzz, or noise.",
        "Values that are not finite; a tensor far from the base's while its neighbours are not; an EMA that did not come the raw weights' "
        "way from the base; a loss on real clips far above the base's.",
        "Take the file from before the damage, or its other set of weights where the verdict says that one is better."),
)
_ARCHITECTURE = (
    Fault("load-raises", "architecture", "Inference builds a model that the weights do not fit",
        "Depth, width, heads, ff_mult or another option with tensors of its own differs, or the file lacks the set of weights that is asked for.",
        "raises", "None: load_model raises, or a custom loader with strict=False speaks noise.",
        "Names and shapes of the constructed model against those of the file.",
        "Take the options that the shapes show (f5lab inspect), and ask for weights that the file holds.",
        _threads(545, 27)),
    Fault("arch-flags-v0-as-v1", "architecture", "Trained as F5TTS_Base (v0), inferred as F5TTS_v1_Base (v1)",
        "text_mask_padding and pe_attn_head own no parameter. A bare dict of the other options builds the v1 network around v0 weights.",
        "silent", "Gibberish in the right voice.",
        "The built models differ in both options; the flow-matching loss on real clips is least with both as trained.",
        "Add text_mask_padding: False and pe_attn_head: 1 to the options.", _threads(998, 856, 87, 967)),
    Fault("pe-attn-head-only", "architecture", "Rotary embedding on the wrong heads",
        "pe_attn_head alone is missing or wrong: all heads are rotated instead of the first, or the other way round.",
        "silent", "Scrambled speech on long clips; can be inaudible on clips of a second.",
        "The built models differ in this option only; the first stage that differs is the first block.",
        "Give pe_attn_head the value of the training."),
    Fault("text-mask-padding-only", "architecture", "Text padding masked otherwise than in training",
        "text_mask_padding alone is missing or wrong, which changes every text embedding.",
        "silent", "Words dropped or slurred.",
        "The built models differ in this option only; the first stage that differs is the text embedding.",
        "Give text_mask_padding the value of the training."),
    Fault("inv-freq-altered", "architecture", "Rotary frequencies in the file are not the standard ones",
        "The stored rotary_embed.inv_freq overrides the constructor's; a conversion changed its base or rounded it.",
        "silent", "Worse the longer the clip.",
        "inv_freq against 10000^(-2i/d).",
        "Write the standard frequencies back in fp32."),
)
_TEXT = (
    Fault("vocab-permuted", "text", "Same symbols in another order",
        "The vocab at inference has the training's symbols on other lines, so each text is read as other symbols.",
        "silent", "Fluent babble in the right voice; the logged samples are fine.",
        "The two files' maps; without the training file, embedding rows matched with the base's, or the loss.",
        "Use the vocab.txt of the training's own data folder."),
    Fault("vocab-off-by-one", "text", "All symbols moved by one line",
        "An editor removed the space line or put in a blank one, and another line made up for it.",
        "silent", "Fluent babble in the right voice.",
        "Most common symbols moved by the same offset; undoing the shift brings the loss back.",
        "Use the vocab.txt of the training's own data folder."),
    Fault("vocab-re-extended", "text", "The added symbols are other ones",
        "The base's vocab was extended again with as many but other symbols, over the file that the checkpoint was trained with.",
        "silent", "Only the added letters are wrong.",
        "The files agree up to the extension and differ after it.",
        "Restore the vocab that was extended for this training."),
    Fault("vocab-damage", "text", "A vocab line repeated or cut",
        "A repeated line makes the size smaller than the largest index; without a final newline the last symbol loses its last letter.",
        "depends", "One letter wrong, an IndexError when it occurs, or a size that does not load.",
        "Lines against distinct symbols, largest index against embedding rows, the file's last byte.",
        "Restore the file, one symbol a line and a newline at the end."),
    Fault("oov-to-zero", "text", "Letters that the vocab lacks become spaces",
        "Unknown symbols get index 0, the space. Decomposed accents (NFD), in the text or in the vocab, are such symbols.",
        "silent", "Letters silently skipped.",
        "Count of index 0 for tokens that are no space; composing (NFC) brings it to zero.",
        "Compose text and vocab (NFC), or extend the vocab and train.", _threads(554, 1031)),
    Fault("front-end-pinyin", "text", "Trained on characters, inferred through the pinyin converter",
        "infer_process always calls convert_char_to_pinyin, which puts spaces into words after accented letters.",
        "silent", "A hiccup inside words; babble for kanji.",
        "Tokens of the same text through both front ends; the loss is lower with raw characters.",
        "Hand the model raw characters at inference.", _threads(263, 767, 220, 928)),
    Fault("tokenizer-drift", "text", "The dataset was tokenised by an older converter",
        "Tokens are frozen when the dataset is prepared. Older releases put spaces before non-Han three-byte letters and after hyphens; "
        "today's does not.",
        "silent", "Gibberish in Hindi, Thai, Korean or kana; small hitches at hyphens.",
        "Tokens in raw.arrow against today's output for the same text.",
        "Tokenise at inference as the dataset was, or prepare it again and train.", _threads(684, 767)),
    Fault("case-folding", "text", "Trained on lower case, given capitals",
        "finetune-gradio lower-cased the data (and its own test tab) until 1.1.5; other tools do not, and meet capitals never trained.",
        "silent", "Good in one interface, wrong at capitals in another.",
        "No capital in the dataset; the capitals' embedding rows never moved.",
        "Lower-case the text at inference.", _threads(49)),
)
_AUDIO = (
    Fault("mel-type", "audio", "Mel of the other vocoder",
        "mel_spec_type says bigvgan for a model trained on vocos mels, or the other way round: other filter bank, other level.",
        "silent", "Noise.",
        "Mean of the mel moves by several nats; the loss is least with the type of the training.",
        "Give mel_spec_type the value of the training.", _threads(872, 463)),
    Fault("frontend-rate", "audio", "Trained at another sample rate or hop",
        "utils_infer fixes 24 kHz and hop 256 and reads neither from the training config.",
        "silent", "Wrong pitch or speed, noisy.",
        "mel_spec of the training config against the constants.",
        "Prepare and train at 24 kHz with hop 256, or change the constants.", _threads(491, 666)),
    Fault("vocoder-wrong", "audio", "The vocoder itself is wrong",
        "Local Vocos or BigVGAN weights of the right shape that are damaged or belong to other mels.",
        "silent", "All audio is distorted, a re-synthesised recording too.",
        "Copy-synthesis of the reference is bad while the generated mel is good.",
        "Use the vocoder of the training.", _threads(463)),
    Fault("sample-rate-mislabelled", "audio", "The recording's header names the wrong rate",
        "The reference is stored with a rate other than its own, so it is resampled into another pitch and speed.",
        "silent", "Chipmunk or drawl.",
        "Seconds a letter and pitch of the reference against the other recordings.",
        "Store the reference with its true rate.", _threads(1105)),
    Fault("ref-clipped", "audio", "Reference cut at 12 s, its text kept whole",
        "preprocess_ref_audio_text cuts audio above 12 s; ref_text keeps the words that are gone.",
        "silent", "The tail of the prompt leaks into the output, which is also too fast.",
        "Reference longer than 12 s; letters a second after the cut against the other recordings.",
        "Use a reference under 12 s with exactly its own text.", _threads(1207, 311, 55)),
    Fault("ref-text-wrong", "audio", "ref_text is not what the reference says",
        "The transcript belongs to another recording or language, or was guessed.",
        "silent", "Missing, extra or leaking first words.",
        "Word error of a transcript of the reference against ref_text.",
        "Write down what the reference says.", _threads(85, 1140)),
    Fault("ref-silent-or-quiet", "audio", "Reference silent or nearly so",
        "Below -50 dBFS the reference is trimmed to nothing and its level divides zero by zero; below 0.1 RMS noise is raised with the voice.",
        "silent", "Blank or not-a-number output, or pumping noise.",
        "RMS of the reference before and after preprocessing.",
        "Record or normalise the reference.", _threads(356, 934)),
)
_DURATION = (
    Fault("duration-byte-ratio", "duration", "Duration that does not fit the text",
        "Frames are reference frames times bytes of gen_text over bytes of ref_text: wrong across scripts, and for a slow or halting reference. "
        "A fix_duration includes the reference, and one that is no longer leaves nothing for the new text.",
        "silent", "Too fast or too slow, words dropped or made up.",
        "Predicted seconds a letter against the recordings, or fix_duration against the references; the true duration repairs it.",
        "Give fix_duration or speed, or a reference of normal pace in the same script.", _threads(11, 811, 876)),
    Fault("short-text-speed", "duration", "Texts under ten bytes are slowed to 0.3",
        "infer_process sets speed 0.3 for a gen_text below ten bytes.",
        "silent", "Drawl or noise after a short word.",
        "Byte count of gen_text.",
        "Give fix_duration, or lengthen the text.", _threads(1155, 460)),
)
_SAMPLER = (
    Fault("cfg-or-sway-off", "sampler", "Guidance or sway far from the default",
        "cfg_strength 0 turns guidance off, 5 and more overdrives it; without sway the steps lie elsewhere.",
        "silent", "Mumbling, or a harsh voice.",
        "Effective values; the loss is unchanged and the default sampler speaks well.",
        "cfg_strength 2.0, sway_sampling_coef -1.0."),
)
_NUMERICS = (
    Fault("precision-bf16-cast", "numerics", "Whole model cast to bfloat16",
        "The cast rounds the rotary frequencies: the phase is off by 2.1 rad at frame 1000 (measured on a CPU).",
        "silent", "Noisy, worse along the clip.",
        "Precision asked for; the error against fp32 grows with position.",
        "Keep the model, or at least inv_freq, in fp32.", _threads(1159)),
    Fault("precision-fp16-nan", "numerics", "Overflow in float16",
        "Activations leave float16's range on cards or weights that it does not suit, and turn into NaN.",
        "silent", "Blank audio.",
        "The mel is not finite in fp16 and finite in fp32.",
        "Load the model in fp32.", _threads(204, 669, 799, 637)),
)
_RUNTIME = (
    Fault("stale-text-cache", "sampler", "The previous text is spoken",
        "The text-embedding cache is not cleared when sampling raises; the next call of the same length uses the old text.",
        "silent", "The words of the request before.",
        "A transcript of the failing output matches the previous prompt's text, not its own.",
        "Call transformer.clear_cache() in a finally block, or start a new process."),
)
# fmt: on

_GROUPS = (_WEIGHTS, _ARCHITECTURE, _TEXT, _AUDIO, _DURATION, _SAMPLER, _NUMERICS, _RUNTIME)

FAULTS: dict[str, Fault] = {fault.id: fault for group in _GROUPS for fault in group}
"""Every entry by id."""

DECOYS: dict[str, str] = {
    "crlf-vocab": "The vocab has CRLF or CR line endings: Python's universal newlines read them the same.",
    "bom-vocab": "The vocab starts with a byte order mark: only the space line is hit, and a space falls to index 0 anyway.",
    "space-line-empty": "The space line was stripped to an empty one: an unknown space gets the same index 0.",
    "no-final-newline": "The vocab's last newline is missing: only the last symbol is cut, and no text uses it.",
    "sorted-vocab": "The vocab was sorted, and it was sorted already: the same file.",
    "dropout-in-config": "The configs differ in dropout: inference runs in eval mode, where it does nothing.",
    "checkpoint-activations": "The configs differ in checkpoint_activations: it saves training memory and changes no value.",
    "attn-flags": "The configs differ in attn_mask_enabled or name the default backend: without effect on a single clip.",
}
"""What looks odd and changes nothing, by id, with the reason."""

SUSPECTS: dict[str, str] = {
    "accelerate": "Accelerate's prepare() changes the model: unwrap_model() returns the very module that went in.",
    "mel-cycle": "The way from wave to mel and back loses the speech: it touches no learned weight of the TTS model.",
}
"""What people blame and what is no fault, by id, with the reason; each is examined, and ruled out with its own evidence."""


def unknown_id(name: str, known: Iterable[str], what: str) -> FaultError:
    """Return the error for an id that is not known, naming close matches."""
    known = list(known)
    close = difflib.get_close_matches(name.lower().replace("_", "-").replace(" ", "-"), known, n=3, cutoff=0.5)
    expected = f"one such as {', '.join(close)}" if close else f"one of {len(known)}, the first being {known[0]}"
    return FaultError(f"no {what} {name!r}", expected=expected, next_step="`f5lab faults` lists them all")


def find_fault(name: str) -> Fault:
    """Return the entry of an id.

    Raises
    ------
    FaultError
        No such id; close matches are named.
    """
    if name not in FAULTS:
        raise unknown_id(name, FAULTS, "fault")
    return FAULTS[name]


def title_of(name: str) -> str:
    """Return an entry's title in words; an id that is not of the catalogue as it is."""
    return FAULTS[name].title if name in FAULTS else name


def rows() -> list[dict[str, Any]]:
    """Return the catalogue as JSON-able table rows, in order; what ``f5lab faults`` shows."""
    return [asdict(f) | {"issues": list(f.issues), "look_alikes": list(f.look_alikes)} for f in FAULTS.values()]
