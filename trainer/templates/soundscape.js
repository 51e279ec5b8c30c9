"use strict";
// One recording: its spectrogram, a lane per species that occurs, and its detections, to be reviewed.
const scape = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const element = (id) => document.getElementById(id);
  const audio = element("audio");
  const bytes = Uint8Array.from(atob(data.frames), (character) => character.charCodeAt(0));
  const numFrames = data.num_frames;
  const frames = new Float32Array(bytes.buffer);  // species after species
  const own = data.species.map((one) => one.threshold);
  const maxLanes = 40, maxListed = 500, laneHeight = 36;

  // Frames over the threshold, joined, long enough, padded: the rules of the event tables, to the letter.
  function findEvents(thresholds) {
    const { join, shortest, pad } = data.rules;
    const step = data.frame_seconds;
    const runs = [];
    data.species.forEach((_, column) => {
      const [threshold, base] = [thresholds[column], column * numFrames];
      let open = null;
      for (let frame = 0; frame < numFrames; frame++) {
        if (!(frames[base + frame] >= threshold)) continue;
        const start = frame;
        let peak = frame;
        while (frame < numFrames && frames[base + frame] >= threshold) {
          if (frames[base + frame] > frames[base + peak]) peak = frame;
          frame++;
        }
        if (open && (start - open.stop) * step <= join + 1e-9) {
          open.stop = frame;
          if (frames[base + peak] > frames[base + open.peak]) open.peak = peak;
        } else {
          open = { column, start, stop: frame, peak };
          runs.push(open);
        }
      }
    });
    runs.sort((a, b) => a.start - b.start || a.stop - b.stop || a.column - b.column);
    const found = [], last = new Map();
    for (const run of runs) {
      let [start, stop] = [run.start * step, Math.min(run.stop * step, data.seconds)];
      if (stop - start + 1e-9 < shortest || stop <= start) continue;
      [start, stop] = [Math.max(0, start - pad), Math.min(data.seconds, stop + pad)];
      const confidence = frames[run.column * numFrames + run.peak];
      const before = last.get(run.column);
      if (before && before.stop >= start) {
        before.stop = Math.max(before.stop, stop);
        if (confidence > before.confidence) [before.confidence, before.peak] = [confidence, run.peak];
        continue;
      }
      const event = { column: run.column, start, stop, confidence, peak: run.peak };
      last.set(run.column, event);
      found.push(event);
    }
    return found;
  }

  let threshold = null;  // null: each species' own
  let events = [], lanes = [], selected = -1, playUntil = null;
  let view = { from: 0, to: data.seconds };
  let verdicts = review.read(data.key);

  const verdictOf = (event) => {
    const code = data.species[event.column].code;
    const hit = verdicts.filter((one) => one.species === code && one.peak >= data.offset + event.start - 1e-6
      && one.peak <= data.offset + event.stop + 1e-6);
    return hit.sort((a, b) => b.confidence - a.confidence)[0];
  };
  const clock = (seconds, digits = 1) => {
    const minutes = Math.floor(seconds / 60);
    return `${minutes}:${(seconds - 60 * minutes).toFixed(digits).padStart(digits ? 3 + digits : 2, "0")}`;
  };

  function update() {
    const kept = events[selected];
    events = findEvents(threshold === null ? own : own.map(() => threshold));
    selected = kept ? events.findIndex((one) => one.column === kept.column && one.start <= kept.stop && one.stop >= kept.start) : -1;
    const best = new Map();
    for (const event of events) best.set(event.column, Math.max(best.get(event.column) ?? 0, event.confidence));
    const order = [...best.keys()].sort((a, b) => best.get(b) - best.get(a) || a - b);
    lanes = order.slice(0, maxLanes);
    element("lane-note").textContent = order.length > maxLanes
      ? `${order.length - maxLanes} more species have a detection at this threshold; the ${maxLanes} most probable are drawn.`
      : events.length ? "" : "No detection at this threshold: move it down.";
    element("count").textContent = `${events.length} detections, ${order.length} species`;
    element("threshold-said").textContent = threshold === null ? "each its own" : threshold.toFixed(2);
    element("threshold").setAttribute("aria-valuetext", element("threshold-said").textContent);
    list();
    draw();
  }

  function list() {
    const items = events.slice(0, maxListed).map((event, number) => {
      const item = document.createElement("li");
      item.id = `event-${number}`;
      item.setAttribute("role", "option");
      const verdict = verdictOf(event)?.verdict ?? "";
      item.className = verdict;
      const times = document.createElement("span");
      times.textContent = `${clock(data.offset + event.start)}–${clock(data.offset + event.stop)}`;
      const name = document.createElement("b");
      name.textContent = data.species[event.column].code;
      const confidence = document.createElement("span");
      confidence.textContent = event.confidence.toFixed(3);
      const said = document.createElement("span");
      said.className = "verdict";
      said.textContent = verdict;
      item.append(times, name, confidence, said);
      item.addEventListener("click", () => { select(number); hear(); });
      return item;
    });
    element("list").replaceChildren(...items);
    element("list-note").textContent = events.length > maxListed
      ? `The first ${maxListed} of ${events.length} are listed: move the threshold up.` : "";
    mark();
    review.show(verdicts, element("review"));
  }

  function mark() {
    [...element("list").children].forEach((item, number) => {
      item.setAttribute("aria-selected", String(number === selected));
      if (number === selected) {
        const [box, inner] = [element("list").getBoundingClientRect(), item.getBoundingClientRect()];
        if (inner.top < box.top) element("list").scrollTop -= box.top - inner.top;
        if (inner.bottom > box.bottom) element("list").scrollTop += inner.bottom - box.bottom;
      }
    });
    const active = element(`event-${selected}`);
    if (active) element("list").setAttribute("aria-activedescendant", active.id);
    else element("list").removeAttribute("aria-activedescendant");
    for (const id of ["hear", "accept", "reject", "clear"]) element(id).disabled = selected < 0;
  }

  function select(number) {
    if (!events.length) return;
    selected = Math.min(Math.max(number, 0), Math.min(events.length, maxListed) - 1);
    const { start, stop } = events[selected];
    const width = view.to - view.from;
    if (start < view.from || stop > view.to) look((start + stop) / 2 - width / 2, width);
    mark();
    draw();
  }

  function judge(verdict) {
    const event = events[selected];
    if (!event) return;
    const old = verdictOf(event);
    verdicts = review.read(data.key).filter((one) => !(old && one.species === old.species && one.peak === old.peak));
    if (verdict) {
      verdicts.push({
        species: data.species[event.column].code,
        peak: data.offset + event.peak * data.frame_seconds,
        start: data.offset + event.start, stop: data.offset + event.stop, confidence: event.confidence, verdict,
      });
    }
    review.write(data.key, verdicts);
    const next = verdict && selected + 1 < Math.min(events.length, maxListed) ? selected + 1 : selected;
    list();
    select(next);
  }

  // Sound.
  function seek(seconds) {
    audio.currentTime = Math.min(Math.max(seconds, 0), data.seconds);
    playUntil = null;
    follow();
  }
  function hear() {
    const event = events[selected];
    if (!event) return;
    seek(Math.max(0, event.start - 0.3));
    playUntil = event.stop + 0.3;
    audio.play().catch(() => {});
  }
  function follow() {
    const now = audio.currentTime;
    if (playUntil !== null && now >= playUntil) { audio.pause(); playUntil = null; }
    if (!audio.paused && (now > view.to || now < view.from)) look(now, view.to - view.from);
    const share = (now - view.from) / (view.to - view.from);
    element("head").hidden = share < 0 || share > 1;
    element("head").style.left = `calc(${100 * share}% - 1px)`;
    element("time").textContent = clock(data.offset + now);
    const slider = element("sound");
    slider.setAttribute("aria-valuenow", now.toFixed(1));
    slider.setAttribute("aria-valuetext", `${clock(data.offset + now)} of ${clock(data.offset + data.seconds)}`);
    if (!audio.paused) requestAnimationFrame(follow);
  }
  audio.addEventListener("play", () => { element("play").textContent = "Pause"; follow(); });
  audio.addEventListener("pause", () => { element("play").textContent = "Play"; });
  audio.addEventListener("seeked", follow);

  // What part is seen.
  function look(from, width) {
    width = Math.min(Math.max(width, 2 * data.frame_seconds), data.seconds);
    from = Math.min(Math.max(from, 0), data.seconds - width);
    view = { from, to: from + width };
    const scroll = element("scroll");
    scroll.hidden = width >= data.seconds;
    scroll.max = String(Math.max(data.seconds - width, 0));
    scroll.value = String(from);
    draw();
    follow();
  }
  function zoom(factor, around = Math.min(Math.max(audio.currentTime, view.from), view.to)) {
    const width = (view.to - view.from) * factor;
    look(around - ((around - view.from) / (view.to - view.from)) * Math.min(width, data.seconds), width);
  }

  // Drawing.
  const pictures = data.tiles.map((tile) => {
    const image = new Image();
    image.addEventListener("load", () => draw());
    image.src = tile.picture;
    return image;
  });
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  function prepared(canvas, height) {
    const ratio = Math.min(devicePixelRatio || 1, 2);
    const width = canvas.clientWidth;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    return [pen, width];
  }
  let waiting = false;
  function draw() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      drawPicture();
      drawMarks();
      drawLanes();
    });
  }
  function drawPicture() {
    const height = element("picture").clientHeight;
    const [pen, width] = prepared(element("picture"), height);
    const perSecond = width / (view.to - view.from);
    data.tiles.forEach((tile, number) => {
      const image = pictures[number];
      const [from, to] = [Math.max(tile.start, view.from), Math.min(tile.start + tile.seconds, view.to)];
      if (from >= to || !image.complete || !image.naturalWidth) return;
      const scale = image.naturalWidth / tile.seconds;
      pen.drawImage(
        image, (from - tile.start) * scale, 0, Math.max((to - from) * scale, 1), image.naturalHeight,
        (from - view.from) * perSecond, 0, (to - from) * perSecond + 0.5, height,
      );
    });
  }
  const hue = (event) => ({ accepted: colour("accent"), rejected: colour("second") })[verdictOf(event)?.verdict] ?? colour("third");
  function drawMarks() {
    const height = element("marks").clientHeight;
    const [pen, width] = prepared(element("marks"), height);
    const perSecond = width / (view.to - view.from);
    pen.font = "11px system-ui, sans-serif";
    const [ink, card] = [colour("ink"), colour("card")];
    const label = (text, x, y) => {
      const wide = pen.measureText(text).width;
      pen.globalAlpha = 0.75;
      pen.fillStyle = card;
      pen.fillRect(x - 2, y - 10, wide + 4, 13);
      pen.globalAlpha = 1;
      pen.fillStyle = ink;
      pen.fillText(text, x, y);
    };
    for (const [text, share] of data.mel_ticks) label(text, 4, Math.min(Math.max((1 - share) * height + 4, 11), height - 3));
    const step = [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300].find((one) => one * perSecond >= 70) ?? 600;
    for (let at = Math.ceil((data.offset + view.from) / step) * step; at <= data.offset + view.to; at += step) {
      const x = (at - data.offset - view.from) * perSecond;
      if (x > 60 && x < width - 30) label(clock(at, step < 1 ? 1 : 0), x - 10, height - 4);
    }
    const event = events[selected];
    if (event) {
      pen.strokeStyle = colour("second");
      pen.lineWidth = 2;
      pen.strokeRect((event.start - view.from) * perSecond, 1, Math.max((event.stop - event.start) * perSecond, 2), height - 2);
    }
  }
  function drawLanes() {
    const canvas = element("lanes");
    const height = Math.max(lanes.length, 1) * laneHeight;
    canvas.style.height = `${height}px`;
    const [pen, width] = prepared(canvas, height);
    const perSecond = width / (view.to - view.from);
    const step = data.frame_seconds;
    const [ink, muted, line, card] = ["ink", "muted", "line", "card"].map(colour);
    const [first, last] = [Math.max(0, Math.floor(view.from / step)), Math.min(numFrames, Math.ceil(view.to / step))];
    lanes.forEach((column, lane) => {
      const [top, base] = [lane * laneHeight, (lane + 1) * laneHeight - 1];
      const tall = laneHeight - 4;
      pen.fillStyle = muted;
      pen.globalAlpha = 0.35;
      pen.beginPath();
      pen.moveTo(Math.max(0, (first * step - view.from) * perSecond), base);
      for (let frame = first; frame < last; frame++) {
        const y = base - tall * frames[column * numFrames + frame];
        pen.lineTo((frame * step - view.from) * perSecond, y);
        pen.lineTo(((frame + 1) * step - view.from) * perSecond, y);
      }
      pen.lineTo((last * step - view.from) * perSecond, base);
      pen.fill();
      pen.globalAlpha = 1;
      const limit = base - tall * (threshold ?? own[column]);
      pen.strokeStyle = muted;
      pen.setLineDash([3, 4]);
      pen.lineWidth = 1;
      pen.beginPath();
      pen.moveTo(0, limit);
      pen.lineTo(width, limit);
      pen.stroke();
      pen.setLineDash([]);
      for (const [number, event] of events.entries()) {
        if (event.column !== column || event.stop < view.from || event.start > view.to) continue;
        const [x, wide] = [(event.start - view.from) * perSecond, Math.max((event.stop - event.start) * perSecond, 2)];
        pen.fillStyle = hue(event);
        pen.globalAlpha = 0.28;
        pen.fillRect(x, top + 3, wide, tall);
        pen.globalAlpha = 1;
        pen.fillRect(x, base - 4, wide, 4);
        if (number === selected) {
          pen.strokeStyle = colour("second");
          pen.lineWidth = 2;
          pen.strokeRect(x, top + 2, wide, tall + 1);
        }
      }
      pen.fillStyle = line;
      pen.fillRect(0, base, width, 1);
      pen.font = "600 12px system-ui, sans-serif";
      const text = data.species[column].code;
      pen.globalAlpha = 0.8;
      pen.fillStyle = card;
      pen.fillRect(2, top + 3, pen.measureText(text).width + 8, 16);
      pen.globalAlpha = 1;
      pen.fillStyle = ink;
      pen.fillText(text, 6, top + 15);
    });
  }

  // Hands.
  const placeOf = (event) => {
    const box = event.currentTarget.getBoundingClientRect();
    return view.from + ((event.clientX - box.left) / box.width) * (view.to - view.from);
  };
  element("sound").addEventListener("click", (event) => seek(placeOf(event)));
  element("lanes").addEventListener("click", (event) => {
    const at = placeOf(event);
    const column = lanes[Math.floor((event.clientY - event.currentTarget.getBoundingClientRect().top) / laneHeight)];
    const hit = events.findIndex((one) => one.column === column && at >= one.start && at <= one.stop);
    if (hit < 0 || hit >= maxListed) { seek(at); return; }
    select(hit);
    hear();
  });
  document.querySelector(".viewer").addEventListener("wheel", (event) => {
    if (event.ctrlKey) {
      const box = event.currentTarget.getBoundingClientRect();
      zoom(event.deltaY > 0 ? 1.25 : 0.8, view.from + ((event.clientX - box.left) / box.width) * (view.to - view.from));
    } else if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
      look(view.from + (event.deltaX / event.currentTarget.clientWidth) * (view.to - view.from), view.to - view.from);
    } else return;
    event.preventDefault();
  }, { passive: false });
  element("play").addEventListener("click", toggle);
  function toggle() { playUntil = null; if (audio.paused) audio.play().catch(() => {}); else audio.pause(); }
  element("zoom-in").addEventListener("click", () => zoom(0.5));
  element("zoom-out").addEventListener("click", () => zoom(2));
  element("zoom-all").addEventListener("click", () => look(0, data.seconds));
  element("scroll").addEventListener("input", () => look(Number(element("scroll").value), view.to - view.from));
  element("threshold").addEventListener("input", () => { threshold = Number(element("threshold").value); update(); });
  element("own").addEventListener("click", () => { threshold = null; update(); });
  element("hear").addEventListener("click", hear);
  element("accept").addEventListener("click", () => judge("accepted"));
  element("reject").addEventListener("click", () => judge("rejected"));
  element("clear").addEventListener("click", () => judge(null));
  const rows = () => [...verdicts].sort((a, b) => a.start - b.start)
    .map((one) => ({ recording: { relative: data.relative, before: 0 }, one }));
  element("export-raven").addEventListener("click", () => review.save(`${data.stem}.raven.txt`, review.raven(rows(), data.raven_columns, data.band)));
  element("export-csv").addEventListener("click", () => review.save(`${data.stem}.accepted.csv`, review.csv(rows(), false)));
  element("export-all").addEventListener("click", () => review.save(`${data.stem}.reviewed.csv`, review.csv(rows(), true)));

  addEventListener("keydown", (event) => {
    const at = event.target;
    if (event.ctrlKey || event.metaKey || event.altKey || at.matches("input, select, textarea, summary")) return;
    const onButton = at.matches("button, a");
    const onSound = at === element("sound");
    const act = {
      j: () => select(selected + 1), k: () => select(selected - 1),
      ArrowDown: () => select(selected + 1), ArrowUp: () => select(selected - 1),
      a: () => judge("accepted"), r: () => judge("rejected"), u: () => judge(null),
      Enter: onButton ? null : hear, " ": onButton ? null : toggle,
      "+": () => zoom(0.5), "=": () => zoom(0.5), "-": () => zoom(2), 0: () => look(0, data.seconds),
      ArrowRight: onSound ? () => seek(audio.currentTime + data.frame_seconds) : null,
      ArrowLeft: onSound ? () => seek(audio.currentTime - data.frame_seconds) : null,
      Home: onSound ? () => seek(0) : null, End: onSound ? () => seek(data.seconds) : null,
    }[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  });
  addEventListener("resize", draw);
  addEventListener("themed", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

  element("length").textContent = clock(data.offset + data.seconds);
  element("sound").setAttribute("aria-valuemax", data.seconds.toFixed(1));
  update();
  look(0, data.seconds);
  return { findEvents, events: () => events, lanes: () => lanes.map((column) => data.species[column].code), view: () => view };
})();
