"use strict";
// Draws the spectrogram, the marks on it and the lanes of a page; what is drawn is in `state`: view, events, lanes,
// selected, thresholds, verdictOf. Lanes lie in a box that scrolls: only those in sight are drawn.
function makeDrawing(data, frames, state) {
  const element = (id) => document.getElementById(id);
  const laneHeight = 36;
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
    return [pen, width, width / (state.view.to - state.view.from)];
  }

  function drawPicture() {
    const { from, to } = state.view;
    const height = element("picture").clientHeight;
    const [pen, , perSecond] = prepared(element("picture"), height);
    data.tiles.forEach((tile, number) => {
      const image = pictures[number];
      const [begin, end] = [Math.max(tile.start, from), Math.min(tile.start + tile.seconds, to)];
      if (begin >= end || !image.complete || !image.naturalWidth) return;
      const scale = image.naturalWidth / tile.seconds;
      pen.drawImage(
        image, (begin - tile.start) * scale, 0, Math.max((end - begin) * scale, 1), image.naturalHeight,
        (begin - from) * perSecond, 0, (end - begin) * perSecond + 0.5, height,
      );
    });
  }

  function drawMarks() {
    const { from, to } = state.view;
    const height = element("marks").clientHeight;
    const [pen, width, perSecond] = prepared(element("marks"), height);
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
    for (let at = Math.ceil((data.offset + from) / step) * step; at <= data.offset + to; at += step) {
      const x = (at - data.offset - from) * perSecond;
      if (x > 60 && x < width - 30) label(clock(at, step < 1 ? 1 : 0), x - 10, height - 4);
    }
    const event = state.selected;
    if (!event) return;
    pen.strokeStyle = colour("second");
    pen.lineWidth = 2;
    pen.strokeRect((event.start - from) * perSecond, 1, Math.max((event.stop - event.start) * perSecond, 2), height - 2);
  }

  function drawLanes() {
    const box = element("lane-box");
    element("lane-space").style.height = `${Math.max(state.lanes.length, 1) * laneHeight}px`;
    const scrolled = box.scrollTop;
    const height = box.clientHeight;
    element("lanes").style.height = `${height}px`;
    const [pen, width, perSecond] = prepared(element("lanes"), height);
    const colours = Object.fromEntries(["ink", "muted", "line", "card", "accent", "second", "third"].map((one) => [one, colour(one)]));
    const [first, last] = [Math.floor(scrolled / laneHeight), Math.ceil((scrolled + height) / laneHeight)];
    const byColumn = new Map();
    for (const event of state.events) {
      if (event.stop < state.view.from || event.start > state.view.to) continue;
      if (!byColumn.has(event.column)) byColumn.set(event.column, []);
      byColumn.get(event.column).push(event);
    }
    state.lanes.slice(first, last).forEach((column, place) => {
      const top = (first + place) * laneHeight - scrolled;
      drawLane({ pen, width, perSecond, colours, column, top }, byColumn.get(column) ?? []);
    });
  }

  function drawLane({ pen, width, perSecond, colours, column, top }, events) {
    const { from, to } = state.view;
    const [base, tall, step, num] = [top + laneHeight - 1, laneHeight - 4, data.frame_seconds, data.num_frames];
    const x = (frame) => (frame * step + data.shift - from) * perSecond;
    const first = Math.max(0, Math.floor((from - data.shift) / step));
    const last = Math.min(num, Math.ceil((to - data.shift) / step));
    pen.fillStyle = colours.muted;
    pen.globalAlpha = 0.35;
    pen.beginPath();
    pen.moveTo(x(first), base);
    for (let frame = first; frame < last; frame++) {
      const y = base - tall * frames[column * num + frame];
      pen.lineTo(x(frame), y);
      pen.lineTo(x(frame + 1), y);
    }
    pen.lineTo(x(last), base);
    pen.fill();
    pen.globalAlpha = 1;
    const limit = base - tall * state.thresholds[column];
    pen.strokeStyle = colours.muted;
    pen.setLineDash([3, 4]);
    pen.lineWidth = 1;
    pen.beginPath();
    pen.moveTo(0, limit);
    pen.lineTo(width, limit);
    pen.stroke();
    pen.setLineDash([]);
    for (const event of events) {
      const [left, wide] = [(event.start - from) * perSecond, Math.max((event.stop - event.start) * perSecond, 2)];
      pen.fillStyle = { accepted: colours.accent, rejected: colours.second }[state.verdictOf(event)] ?? colours.third;
      pen.globalAlpha = 0.28;
      pen.fillRect(left, top + 3, wide, tall);
      pen.globalAlpha = 1;
      pen.fillRect(left, base - 4, wide, 4);
      if (event === state.selected) {
        pen.strokeStyle = colours.second;
        pen.lineWidth = 2;
        pen.strokeRect(left, top + 2, wide, tall + 1);
      }
    }
    pen.fillStyle = colours.line;
    pen.fillRect(0, base, width, 1);
    pen.font = "600 12px system-ui, sans-serif";
    const text = data.species[column].code;
    pen.globalAlpha = 0.8;
    pen.fillStyle = colours.card;
    pen.fillRect(2, top + 3, pen.measureText(text).width + 8, 16);
    pen.globalAlpha = 1;
    pen.fillStyle = colours.ink;
    pen.fillText(text, 6, top + 15);
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

  // The lane under a point of the window.
  function columnAt(y) {
    const box = element("lane-box");
    return state.lanes[Math.floor((y - box.getBoundingClientRect().top + box.scrollTop) / laneHeight)];
  }

  function showLane(column) {
    const [box, place] = [element("lane-box"), state.lanes.indexOf(column)];
    if (place < 0) return;
    const top = place * laneHeight;
    if (top < box.scrollTop) box.scrollTop = top;
    if (top + laneHeight > box.scrollTop + box.clientHeight) box.scrollTop = top + laneHeight - box.clientHeight;
  }

  element("lane-box").addEventListener("scroll", draw);
  addEventListener("resize", draw);
  addEventListener("themed", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  return { draw, columnAt, showLane };
}
