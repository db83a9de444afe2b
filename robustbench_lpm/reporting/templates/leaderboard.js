"use strict";
(() => {
  const value = (body, column) => {
    const cell = body.rows[0].cells[column];
    return cell.dataset.value ?? cell.textContent.trim();
  };
  const collator = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
  const compare = (a, b) => {
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? collator.compare(a, b) : x - y;
  };

  // Every row is a tbody of its own, so that a run and its details move together.
  const sortBy = (table, heading) => {
    const ascending = heading.getAttribute("aria-sort") !== "ascending";
    for (const other of table.tHead.rows[0].cells) {
      if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
    }
    heading.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const column = heading.cellIndex;
    const sorted = [...table.tBodies].sort((left, right) => {
      const [a, b] = [value(left, column), value(right, column)];
      if (a === "" || b === "") return (a === "") - (b === ""); // what is absent stays last
      return ascending ? compare(a, b) : compare(b, a);
    });
    table.append(...sorted);
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    for (const heading of table.querySelectorAll("th[aria-sort]")) {
      heading.querySelector("button").addEventListener("click", () => sortBy(table, heading));
    }
  }

  const runs = document.getElementById("runs-table");
  const setOpen = (body, open) => {
    body.querySelector(".toggle button").setAttribute("aria-expanded", String(open));
    body.querySelector(".details").hidden = !open;
  };
  for (const body of runs.tBodies) {
    setOpen(body, false); // open without scripts, and on paper
    body.querySelector(".toggle button").addEventListener("click", (event) => {
      setOpen(body, event.currentTarget.getAttribute("aria-expanded") !== "true");
    });
  }

  const filter = document.getElementById("filter");
  const shown = document.getElementById("shown");
  const texts = new Map([...runs.tBodies].map((body) => [body, body.textContent.toLowerCase()]));
  const probes = document.getElementById("probes"); // only where there are any
  const applyFilter = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let [count, kept] = [0, 0];
    for (const [body, text] of texts) {
      const matches = words.every((word) => text.includes(word));
      const away = probes !== null && !probes.checked && body.classList.contains("probe");
      body.hidden = !matches || away;
      count += body.hidden ? 0 : 1;
      kept += matches && away ? 1 : 0;
    }
    const total = words.length ? `${count} of ${texts.size} runs` : `${count} runs`;
    shown.textContent = kept ? `${total}, ${kept} ${kept === 1 ? "probe" : "probes"} hidden` : total;
  };
  filter.addEventListener("input", applyFilter);
  if (probes) {
    document.getElementById("probes-choice").hidden = false; // without scripts all runs are shown, and nothing to choose
    probes.addEventListener("change", applyFilter);
  }
  applyFilter();

  // A number in the ranking leads to its run, opened.
  const follow = () => {
    const body = document.getElementById(location.hash.slice(1));
    if (!body || body.parentElement !== runs) return;
    if (body.hidden) {
      filter.value = "";
      if (body.classList.contains("probe")) probes.checked = true;
      applyFilter();
    }
    setOpen(body, true);
    body.scrollIntoView({ block: "center" });
    body.querySelector(".toggle button").focus({ preventScroll: true });
  };
  window.addEventListener("hashchange", follow);
  document.addEventListener("click", (event) => {
    if (event.target.closest("a")?.hash === location.hash && location.hash) follow(); // followed before: no hashchange
  });
  follow();
})();
