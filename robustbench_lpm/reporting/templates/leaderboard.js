(() => {
  "use strict";
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const byId = (id) => document.getElementById(id);
  const make = (tag, className = "", text = "") => {
    const element = document.createElement(tag);
    element.className = className;
    element.textContent = text;
    return element;
  };

  // Cells in which there is no number stay last, whichever way a column is sorted.
  const absentLast = (sign) => (a, b) => (a === "" || b === "" ? (a === "") - (b === "") : sign * (a - b));
  DataTable.ext.type.order["absent-last-asc"] = absentLast(1);
  DataTable.ext.type.order["absent-last-desc"] = absentLast(-1);
  const COLUMNS = [
    { targets: "number", type: "absent-last" },
    { targets: "text", type: "string" },
    { targets: "fixed", orderable: false },
  ];
  const NOWHERE = { topStart: null, topEnd: null, bottomStart: null, bottomEnd: null };
  for (const table of all("table.sortable")) {
    new DataTable(table, { columnDefs: COLUMNS, order: [], paging: false, searching: false, layout: NOWHERE, autoWidth: false });
  }

  // All runs. Their records are below the table; each moves into its row when that is opened.
  const articles = new Map(all("#records > article").map((article) => [article.id, article]));
  const records = byId("records");
  const language = { info: "_START_ to _END_ of _TOTAL_ runs", infoEmpty: "no runs", infoFiltered: "", lengthMenu: "_MENU_ runs on a page",
    zeroRecords: "No run matches.", emptyTable: "There are no runs yet." };
  const runs = new DataTable("#runs-table", {
    columnDefs: COLUMNS, order: [], autoWidth: false, language, pageLength: 25,
    lengthMenu: [25, 100, { label: "All", value: -1 }],
    layout: { ...NOWHERE, bottomStart: ["info", "pageLength"], bottomEnd: "paging" },
  });
  records.hidden = true;
  for (const article of articles.values()) article.remove();
  // The scrolling region is the table alone, so that the pages below it stay where they are.
  const region = byId("runs-scroll");
  const inner = byId("runs-table").closest(".dt-layout-row");
  for (const name of ["role", "tabindex", "aria-label"]) {
    inner.setAttribute(name, region.getAttribute(name));
    region.removeAttribute(name);
  }
  inner.classList.add("scroll");
  region.classList.remove("scroll");

  const rows = new Map(runs.rows().nodes().toArray().map((row) => [row.dataset.run, row]));
  const words = new Map([...rows].map(([id, row]) => [row, `${row.textContent} ${articles.get(id).textContent}`.toLowerCase()]));
  for (const row of rows.values()) row.querySelector(".toggle button").hidden = false;
  const setOpen = (row, open) => {
    const child = runs.row(row).child;
    const button = row.querySelector(".toggle button");
    if (open && !child.isShown()) {
      child(articles.get(row.dataset.run), "details").show();
      button.setAttribute("aria-controls", row.dataset.run);
    }
    if (!open) child.hide();
    button.setAttribute("aria-expanded", String(open));
  };
  byId("runs-table").addEventListener("click", (event) => {
    const button = event.target.closest(".toggle button");
    if (button) setOpen(button.closest("tr"), button.getAttribute("aria-expanded") !== "true");
  });

  const search = byId("search");
  const choices = all("#filters select");
  const probes = byId("probes"); // only where there are any
  byId("filters").hidden = false;
  const matches = (row) => {
    const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    if (probes && !probes.checked && row.classList.contains("probe")) return false;
    if (!wanted.every((word) => words.get(row).includes(word))) return false;
    return choices.every(({ value, dataset }) => value === "" || `=${row.getAttribute(`data-${dataset.column.replaceAll("_", "-")}`)}` === value);
  };
  runs.search.fixed("choices", (text, data, index) => matches(runs.row(index).node()));
  const redraw = () => runs.draw();
  search.addEventListener("input", redraw);
  for (const control of [...choices, ...(probes ? [probes] : [])]) control.addEventListener("change", redraw);
  const reset = () => {
    search.value = "";
    for (const choice of choices) choice.value = "";
    redraw();
  };
  byId("reset").addEventListener("click", reset);
  redraw();

  // A number leads to its run, opened; a verdict to the evidence there.
  const follow = (evidence = false) => {
    const row = rows.get(location.hash.slice(1));
    if (!row) return;
    if (!matches(row)) {
      if (probes && row.classList.contains("probe")) probes.checked = true;
      reset();
    }
    const position = runs.rows({ order: "applied", search: "applied" }).indexes().indexOf(runs.row(row).index());
    const length = runs.page.len();
    if (length > 0) runs.page(Math.floor(position / length)).draw(false);
    setOpen(row, true);
    const title = evidence ? articles.get(row.dataset.run).querySelector(".findings-title") : null;
    (title ?? row).scrollIntoView({ block: title ? "start" : "center" });
    (title ?? row.querySelector(".toggle button")).focus({ preventScroll: true });
  };
  let evidence = false;
  window.addEventListener("hashchange", () => {
    follow(evidence);
    evidence = false;
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a");
    if (!link?.hash) return;
    evidence = "evidence" in link.dataset;
    if (link.hash === location.hash) follow(evidence); // followed before: no hashchange
  });
  follow();

  // Two classifiers on the same images.
  const signed = (share, text) => `${share < 0 ? "−" : "+"}${text}`;
  const fill = (select, names) => {
    const before = select.value;
    select.replaceChildren(...names.map((name) => new Option(name, name)));
    if (names.includes(before)) select.value = before;
  };
  const startComparing = (comparisons) => {
    const [budget, attack, first, second] = ["budget", "attack", "first", "second"].map((name) => byId(`compare-${name}`));
    budget.replaceChildren(...comparisons.map((comparison, index) => new Option(comparison.budget, index)));
    const current = () => comparisons[Number(budget.value)];
    const largest = comparisons.reduce((best, { pairs }, index) => (pairs[0].images > comparisons[best].pairs[0].images ? index : best), 0);
    budget.value = String(largest);

    const bar = (name, share, text) => {
      const line = make("div", "compared");
      const fillBar = make("span", "fill");
      fillBar.style.width = `${100 * share}%`;
      const track = make("span", "bar");
      track.setAttribute("aria-hidden", "true");
      track.append(fillBar);
      line.append(make("span", "name", name), track, make("span", "value", `${text} %`));
      return line;
    };
    const gap = (difference, low, high, text) => {
      const line = make("div", "compared");
      const track = make("span", "bar signed");
      track.setAttribute("aria-hidden", "true");
      const place = (share) => `${50 + 50 * share}%`;
      const zero = make("span", "zero");
      const dot = make("span", "dot");
      dot.style.left = place(difference);
      track.append(zero);
      if (low !== null) {
        const whisker = make("span", "whisker");
        whisker.style.left = place(low);
        whisker.style.width = `${50 * (high - low)}%`;
        track.append(whisker);
      }
      track.append(dot);
      line.append(make("span", "name", "difference"), track, make("span", "value", `${signed(difference, text)} points`));
      return line;
    };
    const show = () => {
      const { pairs, notes } = current();
      const result = byId("compare-result");
      const [a, b] = [first.value, second.value];
      const pair = pairs.find((found) => found.attack === attack.value && [found.first, found.second].includes(a) && [found.first, found.second].includes(b));
      if (a === b || !pair) {
        result.replaceChildren(make("p", "note", a === b ? "Choose two different classifiers." : "These two did not meet this attack on the same images."));
        return;
      }
      const straight = pair.first === a;
      const sign = straight ? 1 : -1;
      const [mine, other] = straight ? ["first", "second"] : ["second", "first"];
      const [better, worse] = [pair[`${mine}_better`], pair[`${other}_better`]];
      const accuracy = (name, side) => bar(name, pair[`${side}_accuracy`], pair.texts[`${side}_accuracy`]);
      const bounds = pair.low === null ? [null, null] : straight ? [pair.low, pair.high] : [-pair.high, -pair.low];
      const ends = straight ? [pair.texts.low, pair.texts.high] : [pair.texts.high, pair.texts.low];
      const difference = sign * pair.difference;
      let sure = "No interval below 20 images.";
      if (bounds[0] !== null) {
        const apart = bounds[0] > 0 || bounds[1] < 0;
        sure = `95 % interval of the difference: [${signed(bounds[0], ends[0])}, ${signed(bounds[1], ends[1])}] points, ${apart ? "without 0." : "with 0 in it: these images do not tell the two apart."}`;
      }
      const counts = `Of ${pair.images} images, ${a} is right more often on ${better}, ${b} on ${worse}; on ${pair.images - better - worse} there is no difference.`;
      result.replaceChildren(accuracy(a, mine), accuracy(b, other), gap(difference, ...bounds, pair.texts.difference), make("p", "sure", sure), make("p", "note", counts));
      if (pair.first_attack !== pair.second_attack) {
        result.append(make("p", "note", `${a} met ${pair[`${mine}_attack`]}, ${b} met ${pair[`${other}_attack`]}.`));
      }
      if (pair.note) result.append(make("p", "warning", pair.note));
      for (const name of [a, b]) if (notes[name]) result.append(make("p", "warning", `${name}: ${notes[name]}`));
    };
    const classifiers = () => {
      const met = current().pairs.filter((pair) => pair.attack === attack.value);
      const names = Object.keys(current().notes).filter((name) => met.some((pair) => pair.first === name || pair.second === name));
      fill(first, names);
      fill(second, names);
      if (first.value === second.value && names.length > 1) second.value = names.find((name) => name !== first.value);
      show();
    };
    const attacks = () => {
      fill(attack, current().attacks);
      classifiers();
    };
    budget.addEventListener("change", attacks);
    attack.addEventListener("change", classifiers);
    first.addEventListener("change", show);
    second.addEventListener("change", show);
    byId("comparing").hidden = false;
    attacks();
  };
  const data = byId("comparisons");
  if (data) startComparing(JSON.parse(data.textContent));

  // One matrix of agreement at a time.
  const choice = byId("agreement-choice");
  if (choice) {
    const matrices = all(".agreement");
    const showMatrix = () => {
      for (const matrix of matrices) matrix.hidden = matrix.id !== choice.value;
    };
    choice.addEventListener("change", showMatrix);
    byId("agreement-controls").hidden = false;
    const size = (matrix) => 1e6 * Number(matrix.dataset.images) + matrix.querySelectorAll("td").length;
    choice.value = matrices.reduce((best, matrix) => (size(matrix) > size(best) ? matrix : best)).id;
    showMatrix();
  }
})();
