"use strict";
// Frames over the threshold, joined, long enough, padded: the rules of the event tables, to the letter.
// frames: species after species; thresholds: one per species; data: rules, frame_seconds, num_frames, seconds, and
// shift, where the first frame begins (0, or a part of a frame before the page).
function findEvents(data, frames, thresholds) {
  const { join, shortest, pad } = data.rules;
  const [step, shift, num] = [data.frame_seconds, data.shift, data.num_frames];
  const runs = [];
  thresholds.forEach((threshold, column) => {
    const base = column * num;
    let open = null;
    for (let frame = 0; frame < num; frame++) {
      if (!(frames[base + frame] >= threshold)) continue;
      const start = frame;
      let peak = frame;
      while (frame < num && frames[base + frame] >= threshold) {
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
    let [start, stop] = [Math.max(run.start * step + shift, 0), Math.min(run.stop * step + shift, data.seconds)];
    if (stop - start + 1e-9 < shortest || stop <= start) continue;
    [start, stop] = [Math.max(0, start - pad), Math.min(data.seconds, stop + pad)];
    const confidence = frames[run.column * num + run.peak];
    const peak = Math.min(Math.max(run.peak * step + shift, start), stop);
    const before = last.get(run.column);
    if (before && before.stop >= start) {
      before.stop = Math.max(before.stop, stop);
      if (confidence > before.confidence) [before.confidence, before.peak] = [confidence, peak];
      continue;
    }
    const event = { column: run.column, start, stop, confidence, peak };
    last.set(run.column, event);
    found.push(event);
  }
  return found;
}

// A time as people read it.
function clock(seconds, digits = 1) {
  const minutes = Math.floor(seconds / 60);
  return `${minutes}:${(seconds - 60 * minutes).toFixed(digits).padStart(digits ? 3 + digits : 2, "0")}`;
}
