"use strict";
// One recording: its spectrogram, a lane per species that occurs, and its detections, to be reviewed.
const scape = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const element = (id) => document.getElementById(id);
  const audio = element("audio");
  const frames = new Float32Array(Uint8Array.from(atob(data.frames), (character) => character.charCodeAt(0)).buffer);
  const own = data.species.map((one) => one.threshold);
  const maxListed = 500;

  let threshold = null;  // null: each species' own
  let verdicts = review.read(data.key);
  let listed = [];  // of the events: those in view, of the chosen species
  let playUntil = null;
  const state = {
    view: { from: 0, to: data.seconds }, events: [], lanes: [], selected: null, thresholds: own,
    verdictOf: (event) => storedVerdict(event)?.verdict,
  };
  const drawing = makeDrawing(data, frames, state);

  // A verdict belongs to the detection in which its peak lies.
  function storedVerdict(event) {
    const code = data.species[event.column].code;
    let best;
    for (const one of verdicts) {
      if (one.species !== code || one.peak < data.offset + event.start - 1e-6 || one.peak > data.offset + event.stop + 1e-6) continue;
      if (!best || one.confidence > best.confidence) best = one;
    }
    return best;
  }

  const many = (number, one, more = `${one}s`) => `${number} ${number === 1 ? one : more}`;

  function update() {
    const kept = state.selected;
    state.thresholds = threshold === null ? own : own.map(() => threshold);
    state.events = findEvents(data, frames, state.thresholds);
    state.selected = kept
      ? state.events.find((one) => one.column === kept.column && one.start <= kept.stop && one.stop >= kept.start) ?? null : null;
    const best = new Map();
    for (const event of state.events) best.set(event.column, Math.max(best.get(event.column) ?? 0, event.confidence));
    state.lanes = [...best.keys()].sort((a, b) => best.get(b) - best.get(a) || a - b);
    element("lane-note").textContent = state.events.length ? "" : "No detection at this threshold: move it down.";
    element("count").textContent = `${many(state.events.length, "detection")}, ${many(state.lanes.length, "species", "species")}`;
    element("threshold-said").textContent = threshold === null ? "each its own" : threshold.toFixed(2);
    element("threshold").setAttribute("aria-valuetext", element("threshold-said").textContent);
    offerSpecies();
    list();
    drawing.draw();
  }

  function offerSpecies() {
    const chosen = element("only").value;
    const options = [new Option("all species", ""), ...state.lanes.map((column) => new Option(data.species[column].code, column))];
    element("only").replaceChildren(...options);
    element("only").value = state.lanes.includes(Number(chosen)) && chosen !== "" ? chosen : "";
  }

  function list() {
    const only = element("only").value;
    const { from, to } = state.view;
    const fitting = state.events.filter((one) => (only === "" || one.column === Number(only)) && one.stop >= from && one.start <= to);
    listed = fitting.slice(0, maxListed);
    element("list").replaceChildren(...listed.map((event, number) => {
      const item = document.createElement("li");
      item.id = `event-${number}`;
      item.setAttribute("role", "option");
      const verdict = state.verdictOf(event) ?? "";
      item.className = verdict;
      const cells = [
        ["span", `${clock(data.offset + event.start)}–${clock(data.offset + event.stop)}`],
        ["b", data.species[event.column].code], ["span", event.confidence.toFixed(3)], ["span", verdict],
      ].map(([kind, text]) => Object.assign(document.createElement(kind), { textContent: text }));
      cells[3].className = "verdict";
      item.append(...cells);
      item.addEventListener("click", () => { select(event); hear(); });
      return item;
    }));
    const hidden = state.events.length - fitting.length;
    element("list-note").textContent = fitting.length > maxListed
      ? `The first ${maxListed} of ${fitting.length} in view: zoom in, choose a species, or move the threshold up.`
      : hidden ? `${many(hidden, "more is", "more are")} out of view or of other species.` : "";
    mark();
    review.show(verdicts, element("review"));
  }

  function mark() {
    const place = listed.indexOf(state.selected);
    [...element("list").children].forEach((item, number) => {
      item.setAttribute("aria-selected", String(number === place));
      if (number !== place) return;
      const [box, inner] = [element("list").getBoundingClientRect(), item.getBoundingClientRect()];
      if (inner.top < box.top) element("list").scrollTop -= box.top - inner.top;
      if (inner.bottom > box.bottom) element("list").scrollTop += inner.bottom - box.bottom;
    });
    if (place >= 0) element("list").setAttribute("aria-activedescendant", `event-${place}`);
    else element("list").removeAttribute("aria-activedescendant");
    for (const id of ["hear", "accept", "reject", "clear"]) element(id).disabled = !state.selected;
  }

  function select(event) {
    state.selected = event;
    const width = state.view.to - state.view.from;
    if (event.start < state.view.from || event.stop > state.view.to) look((event.start + event.stop - width) / 2, width);
    if (!listed.includes(event)) list();
    drawing.showLane(event.column);
    mark();
    drawing.draw();
  }

  function step(by) {
    if (!listed.length) return;
    const place = listed.indexOf(state.selected);
    select(listed[Math.min(Math.max(place < 0 ? 0 : place + by, 0), listed.length - 1)]);
  }

  function judge(verdict) {
    const event = state.selected;
    if (!event) return;
    const old = storedVerdict(event);
    verdicts = review.read(data.key).filter((one) => !(old && one.species === old.species && one.peak === old.peak));
    if (verdict) {
      verdicts.push({
        species: data.species[event.column].code, peak: data.offset + event.peak,
        start: data.offset + event.start, stop: data.offset + event.stop, confidence: event.confidence, verdict,
      });
    }
    review.write(data.key, verdicts);
    const place = listed.indexOf(event);
    list();
    if (verdict && place + 1 < listed.length) select(listed[place + 1]);
    drawing.draw();
  }

  // Sound.
  function seek(seconds) {
    audio.currentTime = Math.min(Math.max(seconds, 0), data.seconds);
    playUntil = null;
    follow();
  }
  function hear() {
    if (!state.selected) return;
    seek(Math.max(0, state.selected.start - 0.3));
    playUntil = state.selected.stop + 0.3;
    audio.play().catch(() => {});
  }
  function toggle() {
    playUntil = null;
    if (audio.paused) audio.play().catch(() => {});
    else audio.pause();
  }
  let next = 0;  // of the one loop that follows the sound
  function follow() {
    cancelAnimationFrame(next);
    const now = Math.min(audio.currentTime, data.seconds);
    if (playUntil !== null && now >= playUntil) { audio.pause(); playUntil = null; }
    const { from, to } = state.view;
    if (!audio.paused && (now > to || now < from)) setView(now, to - from);
    const share = (now - state.view.from) / (state.view.to - state.view.from);
    element("head").hidden = share < 0 || share > 1;
    element("head").style.left = `calc(${100 * share}% - 1px)`;
    element("time").textContent = clock(data.offset + now);
    element("sound").setAttribute("aria-valuenow", now.toFixed(1));
    element("sound").setAttribute("aria-valuetext", `${clock(data.offset + now)} of ${clock(data.offset + data.seconds)}`);
    if (!audio.paused) next = requestAnimationFrame(follow);
  }
  audio.addEventListener("play", () => { element("play").textContent = "Pause"; follow(); });
  audio.addEventListener("pause", () => { element("play").textContent = "Play"; });
  audio.addEventListener("seeked", follow);

  // What part is seen.
  function setView(from, width) {
    width = Math.min(Math.max(width, 2 * data.frame_seconds), data.seconds);
    from = Math.min(Math.max(from, 0), data.seconds - width);
    state.view = { from, to: from + width };
    const scroll = element("scroll");
    scroll.hidden = width >= data.seconds;
    scroll.max = String(Math.max(data.seconds - width, 0));
    scroll.value = String(from);
    list();
    drawing.draw();
  }
  function look(from, width) {
    setView(from, width);
    follow();
  }
  function zoom(factor, around = Math.min(Math.max(audio.currentTime, state.view.from), state.view.to)) {
    const { from, to } = state.view;
    const width = (to - from) * factor;
    look(around - ((around - from) / (to - from)) * Math.min(width, data.seconds), width);
  }

  // Hands.
  const placeOf = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    return state.view.from + ((event.clientX - box.left) / box.width) * (state.view.to - state.view.from);
  };
  element("sound").addEventListener("click", (event) => seek(placeOf(event)));
  element("lanes").addEventListener("click", (event) => {
    const [at, column] = [placeOf(event), drawing.columnAt(event.clientY)];
    const hit = state.events.find((one) => one.column === column && at >= one.start && at <= one.stop);
    if (!hit) { seek(at); return; }
    select(hit);
    hear();
    element("list").focus({ preventScroll: true });
  });
  document.querySelector(".viewer").addEventListener("wheel", (event) => {
    const { from, to } = state.view;
    const box = event.currentTarget.getBoundingClientRect();
    if (event.ctrlKey) zoom(event.deltaY > 0 ? 1.25 : 0.8, from + ((event.clientX - box.left) / box.width) * (to - from));
    else if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) look(from + (event.deltaX / box.width) * (to - from), to - from);
    else return;
    event.preventDefault();
  }, { passive: false });
  const on = (id, kind, act) => element(id).addEventListener(kind, act);
  on("play", "click", toggle);
  on("zoom-in", "click", () => zoom(0.5));
  on("zoom-out", "click", () => zoom(2));
  on("zoom-all", "click", () => look(0, data.seconds));
  on("scroll", "input", () => look(Number(element("scroll").value), state.view.to - state.view.from));
  on("threshold", "input", () => { threshold = Number(element("threshold").value); update(); });
  on("own", "click", () => { threshold = null; update(); });
  on("only", "change", list);
  on("hear", "click", hear);
  on("accept", "click", () => judge("accepted"));
  on("reject", "click", () => judge("rejected"));
  on("clear", "click", () => judge(null));
  const rows = () => [...verdicts].sort((a, b) => a.start - b.start).map((one) => ({ recording: { ...data, before: 0 }, one }));
  review.offer(rows, data, data.stem);

  // Keys work where the focus is in the viewer or the list, so that they are nobody else's.
  const keys = {
    j: () => step(1), k: () => step(-1), ArrowDown: () => step(1), ArrowUp: () => step(-1),
    a: () => judge("accepted"), r: () => judge("rejected"), u: () => judge(null), Enter: hear, " ": toggle,
    "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), 0: () => look(0, data.seconds),
  };
  const soundKeys = {
    ArrowRight: () => seek(audio.currentTime + data.frame_seconds), ArrowLeft: () => seek(audio.currentTime - data.frame_seconds),
    Home: () => seek(0), End: () => seek(data.seconds),
  };
  for (const id of ["list", "sound"]) {
    on(id, "keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const act = (id === "sound" && soundKeys[event.key]) || keys[event.key];
      if (!act) return;
      event.preventDefault();
      act();
    });
  }

  element("length").textContent = clock(data.offset + data.seconds);
  element("sound").setAttribute("aria-valuemax", data.seconds.toFixed(1));
  const sorted = [...own].sort((a, b) => a - b);
  if (sorted.length) element("threshold").value = String(sorted[Math.floor(sorted.length / 2)]);
  update();
  look(0, data.seconds);
  element("list").focus({ preventScroll: true });
  return { events: () => state.events, lanes: () => state.lanes.map((column) => data.species[column].code), view: () => state.view };
})();
