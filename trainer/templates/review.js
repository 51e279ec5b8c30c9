"use strict";
// What a person says of detections: kept in the browser, counted by confidence, written as tables.
const review = (() => {
  let kept = true;  // whether the browser keeps anything for a file
  const memory = new Map();

  function read(key) {
    if (!kept && memory.has(key)) return memory.get(key);
    try {
      return JSON.parse(localStorage.getItem(key) ?? "[]");
    } catch {
      return memory.get(key) ?? [];
    }
  }

  function write(key, verdicts) {
    memory.set(key, verdicts);
    try {
      localStorage.setItem(key, JSON.stringify(verdicts));
    } catch {
      kept = false;
    }
  }

  // Of the reviewed detections from a confidence on: how many there are, and the share that is right.
  function precision(verdicts, threshold) {
    const counted = verdicts.filter((one) => one.confidence >= threshold);
    const right = counted.filter((one) => one.verdict === "accepted").length;
    return { reviewed: counted.length, right, share: counted.length ? right / counted.length : NaN };
  }

  const cell = (text) => (/[",\t\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);

  function csv(rows, withVerdicts) {
    const lines = [["filename", "species", "start", "stop", "confidence", ...(withVerdicts ? ["verdict", "peak"] : [])]];
    for (const { recording, one } of rows) {
      if (!withVerdicts && one.verdict !== "accepted") continue;
      lines.push([
        recording.relative, one.species, one.start.toFixed(3), one.stop.toFixed(3), one.confidence.toFixed(4),
        ...(withVerdicts ? [one.verdict, one.peak.toFixed(3)] : []),
      ]);
    }
    return lines.map((line) => line.map(cell).join(",")).join("\n") + "\n";
  }

  // Raven's times run on over the recordings, as one selection table of several sound files has them.
  function raven(rows, columns, band) {
    const lines = [columns];
    for (const { recording, one } of rows) {
      if (one.verdict !== "accepted") continue;
      lines.push([
        String(lines.length), "Spectrogram 1", "1", (recording.before + one.start).toFixed(3),
        (recording.before + one.stop).toFixed(3), band[0].toFixed(1), band[1].toFixed(1), recording.path,
        one.start.toFixed(3), one.species, one.confidence.toFixed(4),
      ]);
    }
    return lines.map((line) => line.map(cell).join("\t")).join("\n") + "\n";
  }

  // The rows of a CSV of all reviewed detections, as `csv` writes it.
  function parse(text) {
    const table = [];
    const pattern = /("(?:[^"]|"")*"|[^,\r\n]*)(,|\r?\n|$)/g;
    let row = [];
    for (const [whole, value, end] of text.matchAll(pattern)) {
      if (whole === "" && !row.length) break;
      row.push(value.startsWith('"') ? value.slice(1, -1).replaceAll('""', '"') : value);
      if (end !== ",") { table.push(row); row = []; }
    }
    const [header, ...rows] = table;
    const needed = ["filename", "species", "start", "stop", "confidence", "verdict", "peak"];
    if (!header || needed.some((name) => !header.includes(name))) return null;
    return rows.filter((cells) => cells.length === header.length).map((cells) => {
      const one = Object.fromEntries(header.map((name, place) => [name, cells[place]]));
      return { ...one, ...Object.fromEntries(["start", "stop", "confidence", "peak"].map((name) => [name, Number(one[name])])) };
    });
  }

  // Adds verdicts to those that are kept, and replaces those on the same peak.
  function add(key, more) {
    const same = (a, b) => a.species === b.species && Math.abs(a.peak - b.peak) < 5e-4;
    write(key, [...read(key).filter((one) => !more.some((other) => same(one, other))), ...more]);
  }

  function offer(rows, data, stem) {
    const on = (id, make) => document.getElementById(id).addEventListener("click", make);
    on("export-raven", () => save(`${stem}.raven.txt`, raven(rows(), data.raven_columns, data.band)));
    on("export-csv", () => save(`${stem}.accepted.csv`, csv(rows(), false)));
    on("export-all", () => save(`${stem}.reviewed.csv`, csv(rows(), true)));
  }

  function save(name, text) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type: "text/plain;charset=utf-8" }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }

  // Precision by threshold as a line and as a table, in the page's colours.
  function show(verdicts, box) {
    const reviewed = verdicts.length;
    const right = verdicts.filter((one) => one.verdict === "accepted").length;
    box.querySelector(".said").textContent = reviewed
      ? `${reviewed} reviewed, ${right} right: a precision of ${((100 * right) / reviewed).toFixed(0)} %`
      : "Nothing is reviewed yet.";
    const [width, height, left, bottom] = [320, 150, 46, 22];
    const x = (value) => left + value * (width - left - 8);
    const y = (value) => 8 + (1 - value) * (height - bottom - 8);
    const steps = [...new Set(verdicts.map((one) => one.confidence))].sort((a, b) => a - b);
    let path = "";
    let before = 0;
    for (const step of steps) {
      const { share } = precision(verdicts, step);
      path += `${path ? "L" : "M"}${x(before).toFixed(1)},${y(share).toFixed(1)}L${x(step).toFixed(1)},${y(share).toFixed(1)}`;
      before = step;
    }
    const grid = [0, 0.5, 1]
      .map((value) =>
        `<line x1="${left}" x2="${width - 8}" y1="${y(value)}" y2="${y(value)}"/>` +
        `<text x="${left - 5}" y="${y(value) + 4}" text-anchor="end">${100 * value} %</text>` +
        `<text x="${x(value)}" y="${height - 5}" text-anchor="middle">${value}</text>`)
      .join("");
    box.querySelector(".precision").hidden = !reviewed;
    box.querySelector("svg").innerHTML = `${grid}<path d="${path}"/>`;
    const rows = [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9].map((threshold) => {
      const found = precision(verdicts, threshold);
      const row = document.createElement("tr");
      for (const text of [
        threshold.toFixed(1), found.reviewed, found.right,
        found.reviewed ? `${(100 * found.share).toFixed(0)} %` : "",
      ]) {
        const data = document.createElement("td");
        data.className = "number";
        data.textContent = text;
        row.append(data);
      }
      return row;
    });
    box.querySelector("tbody").replaceChildren(...rows);
    box.querySelector(".lost").hidden = kept;
  }

  addEventListener("beforeunload", (event) => {
    if (!kept) event.preventDefault();
  });
  return { read, write, add, parse, precision, offer, show };
})();
