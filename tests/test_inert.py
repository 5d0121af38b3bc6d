"""Text out of files: seen, clipped, and without effect in a page, a terminal, Markdown and JSON."""

import json
import unicodedata

import pytest
from hostile_case import PAYLOADS

from f5lab import inert

HIDDEN = "\u202e\u2066\u200b\x1b\x9b\x07\x08\x00\ud800\u2028\ue000\U000e0041"


def unseen(text: str) -> list[str]:
    return [c for c in text if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")]


@pytest.mark.parametrize("text", [*PAYLOADS, HIDDEN, "a\r\nb", ""])
def test_nothing_hidden_is_left(text: str) -> None:
    for shown in (inert.visible(text), inert.prose(text), inert.markdown_text(text), inert.markdown_code(text)):
        assert unseen(shown) == []
        assert len(shown) < 12_000
        shown.encode("utf-8")


@pytest.mark.parametrize("text", ["", "plain", "ação", "vocos_mel: 24 kHz, n = 8", "你好", "café ☕", "10\u202f000"])
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert inert.prose(text) == text
    assert inert.spell_hidden(text) == text


def test_long_text_says_how_much_is_left_out() -> None:
    assert inert.prose("x" * 2005) == "x" * 2000 + "… (+5)"


@pytest.mark.parametrize("value", [HIDDEN, {HIDDEN: [HIDDEN, "ação", "\\u202e", "\n\t"]}, "x\u202e\\"])
def test_json_reads_back_the_same_and_hides_nothing(value: object) -> None:
    text = inert.json_text(value)
    assert json.loads(text) == value
    assert set(unseen(text)) <= {"\n"}
    text.encode("utf-8")


def test_json_refuses_what_is_no_number() -> None:
    with pytest.raises(ValueError, match="Out of range float"):
        inert.json_text({"cer": float("nan")})


@pytest.mark.parametrize("text", PAYLOADS)
def test_markdown_makes_nothing_of_it(text: str) -> None:
    from html.parser import HTMLParser

    import mistune

    tags: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append(tag)
    render = mistune.create_markdown(escape=False, plugins=["strikethrough", "table", "math"])
    parser.feed(render(f"- {inert.markdown_text(text)}\n- {inert.markdown_code(text)}\n- end"))
    assert tags.count("li") == 3
    assert set(tags) == {"ul", "li", "code"}
    assert tags.count("code") == 1


def test_markdown_of_a_verdict_cannot_be_broken_out_of() -> None:
    from f5lab import verdicts
    from f5lab.verdicts import Cause, Fix, Unknown, Verdict

    attack = "`x` ![p](https://canary.invalid/p.png)\n# head <b>\u202e"
    verdict = Verdict(
        case=attack, run="r", healthy=False, refuted=[], unknown=[Unknown(id=attack, needs=attack)],
        causes=[Cause(id=attack, confidence=0.9, evidence=["06-a"], fix=Fix(summary=attack, settings={attack: attack}))],
    )  # fmt: skip
    text = verdicts.markdown(verdict, {"06-a": attack})
    import mistune

    page = mistune.create_markdown(escape=False)(text)
    assert "<img" not in page
    assert "<h1" not in page
    assert "<b>" not in page
    assert unseen(text.replace("\n", "")) == []
    assert json.loads(verdicts.to_json(verdict))["causes"][0]["fix"]["settings"] == {attack: attack}


def test_findings_keep_only_what_can_be_read() -> None:
    from f5lab.findings import Finding, dump

    found = Finding(
        id="01-x", question="a\nb", claim=HIDDEN, verdict="refuted", limitation="\ud800", evidence=["\u202e"]
    )
    assert found.question == "a b"
    assert unseen(dump([found]).rstrip("\n")) == []
    assert found.evidence == ["⟨U+202E⟩"]


@pytest.mark.filterwarnings("ignore:Glyph .* missing")
def test_figure_labels_are_short_and_never_formulas() -> None:
    import matplotlib.pyplot as plt

    from f5lab import plots

    figure = plots.intervals(
        dict.fromkeys(PAYLOADS, (0.1, 0.0, 0.2)), xlabel="CER", lines={"$x_{$": 0.1}, caption="".join(PAYLOADS)
    )
    figure.canvas.draw()
    width, height = figure.get_size_inches()
    assert width < 20
    assert max(len(tick.get_text()) for tick in figure.axes[0].get_yticklabels()) < 200
    plt.close(figure)
