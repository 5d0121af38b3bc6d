"""Live panels for JupyterLab. Everything they show can also be had by a plain call."""

from collections.abc import Sequence
from typing import Any

from f5lab import audio, models
from f5lab.errors import LabError
from f5lab.inside import model_figures
from f5lab.inside.trajectories import Trajectory
from f5lab.samplers import Studio, inference_recipe, repaired_recipe, trainer_recipe
from f5lab.specs import Case


def synthesiser(case: Case, studio: Studio) -> Any:
    """Return a panel: choose path, weights, NFE, guidance, sway, speed, seed and text; synthesise; listen.

    The panel is an `ipywidgets.VBox`; errors are shown in it as one line.
    """
    import ipywidgets as w
    from IPython.display import display

    recipes = {
        "inference": inference_recipe(case),
        "as trained": repaired_recipe(case),
        "trainer": trainer_recipe(case),
    }
    prompts = {p.id: p for p in case.prompts}
    fields = {
        "recipe": w.Dropdown(options=list(recipes), description="recipe"),
        "prompt": w.Dropdown(options=list(prompts), description="prompt"),
        "weights": w.Dropdown(options=["ema", "raw"], description="weights"),
        "vocab": w.Dropdown(
            options=[(p.name, p) for p in {case.training_vocab, case.inference_vocab}], description="vocab"
        ),
        "nfe_step": w.IntSlider(value=32, min=4, max=64, description="NFE"),
        "cfg_strength": w.FloatSlider(value=2.0, min=0.0, max=5.0, step=0.25, description="guidance"),
        "sway_sampling_coef": w.FloatSlider(value=-1.0, min=-1.0, max=1.0, step=0.1, description="sway"),
        "speed": w.FloatSlider(value=1.0, min=0.5, max=2.0, step=0.05, description="speed"),
        "seed": w.IntText(value=0, description="seed"),
        "text": w.Text(value=case.prompts[0].gen_text, description="text"),
    }
    button, heard = w.Button(description="Synthesise", button_style="primary"), w.Output()

    def speak(_: Any) -> None:
        heard.clear_output()
        names = ("weights", "vocab", "nfe_step", "cfg_strength", "sway_sampling_coef", "speed")
        recipe = recipes[fields["recipe"].value].but(**{name: fields[name].value for name in names})
        prompt = prompts[fields["prompt"].value].model_copy(
            update={"gen_text": fields["text"].value, "gen_audio": None}
        )
        with heard:
            try:
                sample = studio.speak(recipe, prompt, fields["seed"].value)
                display(audio.player([(f"{sample.label}: {sample.text}", sample.wave)]))
            except LabError as error:
                display(str(error))

    button.on_click(speak)
    return w.VBox([*fields.values(), button, heard, w.HTML(f"computed on {models.pick_device(studio.device)}")])


def step_slider(paths: Sequence[tuple[str, Trajectory]]) -> Any:
    """Return a slider over the sampler's steps: what each trajectory is at a step, and the mel that it points to."""
    import ipywidgets as w
    import matplotlib.pyplot as plt
    from IPython.display import display

    most = min(len(path.times) for _, path in paths) - 2
    slider, shown = (
        w.IntSlider(value=most // 2, min=0, max=most, description="step", continuous_update=False),
        w.Output(),
    )

    def draw(_: Any = None) -> None:
        figure = model_figures.one_step(paths, slider.value)
        with shown:
            shown.clear_output(wait=True)
            display(figure)
        plt.close(figure)

    slider.observe(draw, names="value")
    draw()
    return w.VBox([slider, shown])
