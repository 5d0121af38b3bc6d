// The panel of a blind session. It knows clips by place only ("1", "2", "x"); what they are stays in the kernel.

function element(tag, options = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

const KINDS = { ab: "A/B: which is better?", abx: "ABX: can they be told apart?" };
const placeName = (kind, place) => (kind === "abx" ? { 1: "A", 2: "B", x: "X" }[place] : `Clip ${place}`);

function startPhase(view, send) {
  const kind = element("select", {}, ...Object.entries(KINDS).map(([value, label]) => element("option", { value }, label)));
  const trials = element("input", { type: "number", min: view.least.ab, max: view.most, step: 1, value: view.trials });
  const listener = element("input", { type: "text", maxlength: 40, placeholder: "optional", autocomplete: "off" });
  kind.addEventListener("change", () => (trials.min = view.least[kind.value]));
  const begin = () => send({ event: "start", kind: kind.value, trials: Number(trials.value), listener: listener.value });
  const resumed = view.unfinished.map((s) =>
    element("button", { type: "button", onclick: () => send({ event: "resume", session: s.session }) },
      `Go on: ${s.kind === "ab" ? "A/B" : "ABX"}, ${s.done} of ${s.total} answered`));
  return [
    element("h4", {}, "Listen without knowing which is which"),
    element("p", {}, `${view.a} against ${view.b}: ${view.pairs} pairs of clips, in random order.`),
    element("p", { class: "soft" }, `Levels: ${view.loudness}.` + (view.same ? ` ${view.same} pairs left out: both clips are the same sound.` : "")),
    ...(resumed.length ? [element("div", { class: "row resume" }, ...resumed)] : []),
    element("div", { class: "row" },
      element("label", {}, "Kind", kind), element("label", {}, "Trials", trials), element("label", {}, "Your initials", listener),
      element("button", { type: "button", class: "main start", onclick: begin }, "Start")),
    element("p", { class: "soft" }, "The number of trials is fixed now: results count when all are answered. Stop at any time; answers are kept."),
  ];
}

function trialPhase(view, model, send, state) {
  const players = view.places.map((place) => {
    const audio = element("audio", { preload: "auto", src: model.get("clips")[place], "data-place": place });
    const times = element("small", {}, "not played");
    const button = element("button", { type: "button", class: "play", "data-place": place, "aria-label": `Play ${placeName(view.kind, place)}` },
      element("b", {}, placeName(view.kind, place)), times);
    audio.addEventListener("ended", () => button.classList.remove("playing"));
    button.addEventListener("click", () => state.play(place));
    return { place, audio, button, times };
  });
  const stop = () => players.forEach((p) => { p.audio.pause(); p.button.classList.remove("playing"); });
  state.stop = stop;
  state.play = (place) => {
    const player = players.find((p) => p.place === place);
    if (!player) return;
    stop();
    player.audio.currentTime = 0;
    player.audio.play().then(
      () => { player.button.classList.add("playing"); send({ event: "played", trial: view.number, place }); },
      (error) => { if (error.name !== "AbortError") state.say(`This browser could not play the clip: ${error.message}`); });
  };
  const label = (place) => (view.kind === "abx" ? `X is ${placeName("abx", place)}` : `Clip ${place} is better`);
  const choices = ["1", "2"].map((place) =>
    element("button", { type: "button", class: "choice", "data-place": place, "aria-pressed": "false", onclick: () => state.choose(place) }, label(place)));
  const confirm = element("button", { type: "button", class: "main confirm", disabled: true, onclick: () => state.confirm() }, "Confirm");
  state.choice = null;
  state.choose = (place) => {
    state.choice = place;
    choices.forEach((c) => c.setAttribute("aria-pressed", String(c.dataset.place === place)));
    confirm.disabled = false;
  };
  state.confirm = () => {
    if (!state.choice) return state.say("Choose first: left or right arrow.");
    stop();
    send({ event: "answer", trial: view.number, place: state.choice });
  };
  state.update = (next) => players.forEach((p) => {
    const count = next.plays[p.place];
    p.times.textContent = count ? `played ${count}×` : "not played";
  });
  const keys = view.kind === "abx" ? ["A", "B", "X"] : ["1", "2"];
  return [
    element("h4", {}, `Trial ${view.done + 1} of ${view.total}: ${view.question}`),
    element("progress", { max: view.total, value: view.done, "aria-label": `${view.done} of ${view.total} answered` }),
    ...(view.text ? [element("p", { class: "text", lang: "" }, `“${view.text}”`)] : []),
    element("div", { class: "row" }, ...players.flatMap((p) => [p.button, p.audio])),
    element("div", { class: "row" }, ...choices, confirm),
    element("p", { class: "soft" }, ...keys.flatMap((k) => [element("kbd", {}, k), " "]), "play · ",
      element("kbd", {}, "←"), " ", element("kbd", {}, "→"), " choose · ", element("kbd", {}, "Enter"), " confirm · ", element("kbd", {}, "Esc"), " stop the sound"),
  ];
}

function donePhase(view, send) {
  const rows = view.results.flatMap((r) => [
    element("dt", {}, r.of), element("dd", {}, element("b", {}, r.verdict), ` · ${r.share}`, element("p", { class: "soft" }, r.detail)),
  ]);
  return [
    element("h4", {}, "Done"),
    element("p", {}, view.claim),
    element("dl", {}, ...rows),
    element("p", { class: "soft" }, `Kept in ${view.file}; the notebook's next run records it as a finding.`),
    element("button", { type: "button", class: "again", onclick: () => send({ event: "again" }) }, "Another session"),
  ];
}

function nothingPhase(view) {
  return [
    element("h4", {}, "Nothing to choose between"),
    element("p", {}, `${view.a} and ${view.b} are the same sound in all ${view.same} pairs.`),
  ];
}

function render({ model, el }) {
  const root = element("section", {
    class: "f5lab-blind", tabindex: "0", role: "group", "aria-label": "Blind listening",
    "data-lm-suppress-shortcuts": "true", // JupyterLab's command mode would cut the cell at an X
  });
  const body = element("div");
  const message = element("div", { class: "message", role: "alert" });
  const told = element("div", { class: "told", role: "status", "aria-live": "polite", style: "position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)" });
  root.append(body, message, told);
  el.append(root);
  const state = { stop: () => {} };
  const send = (content) => model.send(content);
  state.say = (text) => { message.textContent = text; };
  let shown = "";

  function draw() {
    const view = model.get("view");
    if (!view || !view.phase) return;
    const key = JSON.stringify([view.phase, view.number, view.done, view.unfinished, view.results]);
    if (key !== shown) {
      const held = root.contains(document.activeElement);
      state.stop();
      Object.assign(state, { stop: () => {}, play: () => {}, choose: () => {}, confirm: () => {}, update: () => {}, choice: null });
      const build = { start: startPhase, trial: trialPhase, done: donePhase, nothing: nothingPhase }[view.phase];
      body.replaceChildren(...(view.phase === "trial" ? build(view, model, send, state) : build(view, send)));
      shown = key;
      told.textContent = body.querySelector("h4").textContent;
      if (held) root.focus({ preventScroll: true });
    }
    state.update?.(view);
    state.say(view.message || "");
  }

  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const view = model.get("view"), target = event.target;
    if (["INPUT", "SELECT"].includes(target.tagName)) {
      if (event.key === "Enter" && target.tagName === "INPUT") body.querySelector("button.start")?.click();
      return;
    }
    if (view.phase !== "trial") return;
    const key = event.key.toLowerCase();
    const place = { 1: "1", a: "1", 2: "2", b: "2", x: "x" }[key];
    if (place) state.play(place);
    else if (key === "arrowleft") state.choose("1");
    else if (key === "arrowright") state.choose("2");
    else if (key === "escape") state.stop();
    else if (key === "enter" && !(target.matches("button.play, button.confirm") || (target.matches("button.choice") && target.dataset.place !== state.choice))) state.confirm();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  model.on("change:view", draw);
  draw();
  return () => { state.stop(); model.off("change:view", draw); };
}

export default { render };
