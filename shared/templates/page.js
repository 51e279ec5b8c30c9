"use strict";
(() => {
  const root = document.documentElement;
  const kept = (key, value) => {
    try {
      if (value === undefined) return localStorage.getItem(key);
      localStorage.setItem(key, value);
    } catch { /* a browser may keep nothing for files */ }
    return null;
  };
  const theme = kept("dawnchorus theme");
  if (theme === "light" || theme === "dark") root.dataset.theme = theme;
  document.getElementById("theme").addEventListener("click", () => {
    const now = root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
    kept("dawnchorus theme", root.dataset.theme);
    dispatchEvent(new Event("themed"));
  });

  // Tables: a click on a header sorts, by numbers where a cell gives one.
  const valueOf = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
  for (const table of document.querySelectorAll("table.sortable")) {
    [...table.tHead.rows[0].cells].forEach((cell, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...cell.childNodes);
      cell.append(button);
      button.addEventListener("click", () => {
        const way = cell.getAttribute("aria-sort") === "descending" ? "ascending" : "descending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        cell.setAttribute("aria-sort", way);
        const rows = [...table.tBodies[0].rows];
        const isNumber = cell.classList.contains("number");
        const last = -Infinity;
        const key = (row) => {
          const value = valueOf(row, column);
          return isNumber ? (value === "" || Number.isNaN(Number(value)) ? last : Number(value)) : value;
        };
        const sign = way === "ascending" ? 1 : -1;
        rows.sort((a, b) => {
          const [x, y] = [key(a), key(b)];
          return sign * (isNumber ? x - y || 0 : x.localeCompare(y));
        });
        table.tBodies[0].append(...rows);
      });
    });
  }

  // A field that filters: rows of a table or cards whose text has what was typed.
  for (const field of document.querySelectorAll("input[data-filters]")) {
    const things = document.querySelectorAll(field.dataset.filters);
    const said = document.getElementById(`${field.id}-said`);
    field.addEventListener("input", () => {
      const wanted = field.value.trim().toLowerCase();
      let shown = 0;
      for (const thing of things) {
        thing.hidden = wanted !== "" && !(thing.dataset.text ?? thing.textContent).toLowerCase().includes(wanted);
        shown += !thing.hidden;
      }
      if (said) said.textContent = wanted ? `${shown} of ${things.length}` : "";
    });
  }

  // Clips: the picture follows the player, and a click on it seeks.
  for (const clip of document.querySelectorAll("figure.clip")) {
    const [audio, stack] = [clip.querySelector("audio"), clip.querySelector(".stack")];
    if (!audio || !stack) continue;
    const seconds = Number(clip.dataset.seconds);
    let next = 0;
    const follow = () => {
      cancelAnimationFrame(next);
      stack.style.setProperty("--at", `${(100 * audio.currentTime) / seconds}%`);
      if (!audio.paused) next = requestAnimationFrame(follow);
    };
    audio.addEventListener("play", () => {
      for (const other of document.querySelectorAll("audio")) if (other !== audio) other.pause();
      follow();
    });
    audio.addEventListener("timeupdate", follow);
    audio.addEventListener("seeked", follow);
    stack.addEventListener("click", (event) => {
      const box = stack.getBoundingClientRect();
      audio.currentTime = ((event.clientX - box.left) / box.width) * seconds;
      audio.play().catch(() => {});
    });
  }
})();
