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

  // What is drawn here comes as JSON in which numbers stand for texts, each of which is there once.
  const stored = JSON.parse(byId("data").textContent);
  const told = (value) => (Array.isArray(value) ? value.map(told) : value === null ? null : stored.texts[value]);
  const link = (className, hash, text) => {
    const element = make("a", className, text);
    element.href = `#${hash}`;
    return element;
  };

  // The record behind a run: notes, failures, the evidence of its audit, and all that decides it.
  const table = (className, headings) => {
    const element = make("table", className);
    const row = element.createTHead().insertRow();
    for (const [text, kind] of headings) {
      const cell = make("th", kind, text);
      cell.scope = "col";
      row.append(cell);
    }
    element.createTBody();
    return element;
  };
  const regionOf = (element, name) => {
    const region = make("div", "scroll");
    region.setAttribute("role", "region");
    region.setAttribute("aria-label", name);
    region.tabIndex = 0;
    region.append(element);
    return region;
  };
  const FINDINGS = [["Question", ""], ["Verdict", ""], ["Judged", "number"], ["Reference", "number"], ["Difference", "number"], ["Images", "number"], ["Compared with", ""]];
  const finding = ([name, question, note, verdict, text, style, judged, reference, difference, images, against, runs]) => {
    const row = make("tr", verdict === "not applicable" ? "idle" : "");
    const head = make("th");
    head.scope = "row";
    head.append(make("span", "check", name), question);
    if (note) head.append(make("span", "soft", note));
    const badge = make("td");
    badge.append(make("span", `badge ${style}`, text));
    const numbers = [judged, reference, difference, images].map((number, index) => {
      const cell = make("td", "number", number);
      cell.dataset.label = FINDINGS[index + 2][0];
      return cell;
    });
    const others = make("td", "", against || "–");
    others.dataset.label = "Compared with";
    for (const [anchor, id] of runs) others.append(" ", anchor ? link("code", anchor, id) : make("span", "code", id));
    row.append(head, badge, ...numbers, others);
    return row;
  };
  const drawn = (tag, attributes, parent) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    parent.append(element);
    return element;
  };
  const record = (id, details) => {
    const [title, notes, failures, audit, findings, attempts, lines, serves] = told(details);
    const article = make("article", "record");
    article.id = `${id}-record`;
    article.append(make("h3", "", title));
    for (const note of notes) article.append(make("p", "warning", note));
    for (const failure of failures) article.append(make("p", "warning bad", `Failed: ${failure}`));
    if (audit) {
      const heading = make("h4", "findings-title", "Audit ");
      heading.tabIndex = -1;
      heading.append(make("span", `badge ${audit[1]}`, audit[0]));
      const evidence = table("findings", FINDINGS);
      evidence.tBodies[0].append(...findings.map(finding));
      article.append(heading, regionOf(evidence, `Audit of ${title}`));
    }
    const list = make("dl");
    const line = (name, className, ...content) => {
      const value = make("dd", className);
      value.append(...content);
      list.append(make("dt", "", name), value);
      return value;
    };
    if (serves.length) line("Made for the audit of", "", ...serves.flatMap(([anchor, text]) => [link("", anchor, text), " "]));
    if (attempts) {
      const [text, points, last] = attempts;
      const value = line("Right after so many attempts", "", text);
      const curve = drawn("svg", { class: "attempts", viewBox: "-2 -2 104 104", preserveAspectRatio: "none", role: "img", "aria-label": `Accuracy from 100 to 0 % against 1 to ${last} attempts` }, value);
      drawn("rect", { width: 100, height: 100 }, curve);
      drawn("polyline", { points }, curve);
    }
    for (const [name, text, className] of lines) line(name, className, text);
    article.append(list);
    return article;
  };

  // All runs; the record of each is made when its row is opened.
  const language = { info: "_START_ to _END_ of _TOTAL_ runs", infoEmpty: "no runs", infoFiltered: "", lengthMenu: "_MENU_ runs on a page",
    zeroRecords: "No run matches.", emptyTable: "There are no runs yet." };
  const details = new Map(all("#runs-table tbody tr").map((row, index) => [row.id, stored.runs[index]]));
  const runs = new DataTable("#runs-table", {
    columnDefs: COLUMNS, order: [], autoWidth: false, language, pageLength: 25,
    lengthMenu: [25, 100, { label: "All", value: -1 }],
    layout: { ...NOWHERE, bottomStart: ["info", "pageLength"], bottomEnd: "paging" },
  });
  // The scrolling region is the table alone, so that the pages below it stay where they are.
  const region = byId("runs-scroll");
  const inner = byId("runs-table").closest(".dt-layout-row");
  for (const name of ["role", "tabindex", "aria-label"]) {
    inner.setAttribute(name, region.getAttribute(name));
    region.removeAttribute(name);
  }
  inner.classList.add("scroll");
  region.classList.remove("scroll");

  const rows = new Map(runs.rows().nodes().toArray().map((row) => [row.id, row]));
  const words = new Map([...rows.values()].map((row) => [row, row.textContent.toLowerCase()]));
  for (const row of rows.values()) row.querySelector(".toggle button").hidden = false;
  const setOpen = (row, open) => {
    const child = runs.row(row).child;
    const button = row.querySelector(".toggle button");
    if (open && !child.isShown()) {
      const article = record(row.id, details.get(row.id));
      child(article, "details").show();
      button.setAttribute("aria-controls", article.id);
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
  byId("filters").hidden = false;
  const matches = (row) => {
    const wanted = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const values = row.dataset.choices.split(" ");
    return wanted.every((word) => words.get(row).includes(word)) && choices.every(({ value }, index) => value === "" || value === values[index]);
  };
  runs.search.fixed("choices", (text, data, index) => matches(runs.row(index).node()));
  const redraw = () => runs.draw();
  search.addEventListener("input", redraw);
  for (const control of choices) control.addEventListener("change", redraw);
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
    if (!matches(row)) reset();
    const position = runs.rows({ order: "applied", search: "applied" }).indexes().indexOf(runs.row(row).index());
    const length = runs.page.len();
    if (length > 0) runs.page(Math.floor(position / length)).draw(false);
    setOpen(row, true);
    const title = evidence ? byId(`${row.id}-record`).querySelector(".findings-title") : null;
    (title ?? row).scrollIntoView({ block: title ? "start" : "center" });
    (title ?? row.querySelector(".toggle button")).focus({ preventScroll: true });
  };
  let evidence = false;
  window.addEventListener("hashchange", () => {
    follow(evidence);
    evidence = false;
  });
  document.addEventListener("click", (event) => {
    const followed = event.target.closest("a");
    if (!followed?.hash) return;
    evidence = "evidence" in followed.dataset;
    if (followed.hash === location.hash) follow(evidence); // followed before: no hashchange
  });
  follow();

  // Two classifiers on the same images; accuracies come in per cent.
  const signed = (text) => (text.startsWith("-") ? `−${text.slice(1)}` : `+${text}`);
  const negated = (text) => (text.startsWith("-") ? text.slice(1) : `-${text}`);
  const fill = (select, names) => {
    const before = select.value;
    select.replaceChildren(...names.map((name) => new Option(name, name)));
    if (names.includes(before)) select.value = before;
  };
  const startComparing = (comparisons) => {
    const [budget, attack, first, second] = ["budget", "attack", "first", "second"].map((name) => byId(`compare-${name}`));
    budget.replaceChildren(...comparisons.map(([name], index) => new Option(name, index)));
    const current = () => comparisons[Number(budget.value)];

    const compared = (name, className, marks, text) => {
      const line = make("div", "compared");
      const track = make("span", className);
      track.setAttribute("aria-hidden", "true");
      track.append(...marks);
      line.append(make("span", "name", name), track, make("span", "value", text));
      return line;
    };
    const bar = (name, percent) => {
      const mark = make("span", "fill");
      mark.style.width = `${percent}%`;
      return compared(name, "bar", [mark], `${percent} %`);
    };
    const gap = (difference, bounds) => {
      const place = (points) => `${50 + Number(points) / 2}%`;
      const dot = make("span", "dot");
      dot.style.left = place(difference);
      const marks = [make("span", "zero"), dot];
      if (bounds) {
        const whisker = make("span", "whisker");
        whisker.style.left = place(bounds[0]);
        whisker.style.width = `${(bounds[1] - bounds[0]) / 2}%`;
        marks.splice(1, 0, whisker);
      }
      return compared("difference", "bar signed", marks, `${signed(difference)} points`);
    };
    const turned = ([under, a, b, attackA, attackB, note, images, accuracyA, accuracyB, difference, bounds, apart, betterA, betterB]) =>
      [under, b, a, attackB, attackA, note, images, accuracyB, accuracyA, negated(difference), bounds && [negated(bounds[1]), negated(bounds[0])], apart, betterB, betterA];
    const show = () => {
      const [, classifiers, , pairs] = current();
      const result = byId("compare-result");
      const [a, b] = [first.value, second.value];
      const met = (one, two) => pairs.find((pair) => pair[0] === attack.value && pair[1] === one && pair[2] === two);
      const pair = met(a, b) ?? (met(b, a) && turned(met(b, a)));
      if (a === b || !pair) {
        result.replaceChildren(make("p", "note", a === b ? "Choose two different classifiers." : "These two were not run under this attack on the same images."));
        return;
      }
      const [, , , attackA, attackB, note, images, accuracyA, accuracyB, difference, bounds, apart, betterA, betterB] = pair;
      const sure = bounds
        ? `95 % interval of the difference: [${signed(bounds[0])}, ${signed(bounds[1])}] points, ${apart ? "without 0." : "with 0 in it: these images do not tell the two apart."}`
        : "No interval below 20 images.";
      const counts = `Of ${images} images, ${a} is right more often on ${betterA}, ${b} on ${betterB}; on ${images - betterA - betterB} there is no difference.`;
      result.replaceChildren(bar(a, accuracyA), bar(b, accuracyB), gap(difference, bounds), make("p", "sure", sure), make("p", "note", counts));
      if (attackA !== attackB) result.append(make("p", "note", `${a} met ${attackA}, ${b} met ${attackB}.`));
      if (note) result.append(make("p", "warning", note));
      for (const [name, notes] of classifiers) if (notes && (name === a || name === b)) result.append(make("p", "warning", `${name}: ${notes}`));
    };
    const classifiers = () => {
      const [, known, , pairs] = current();
      const met = pairs.filter(([under]) => under === attack.value);
      const names = known.map(([name]) => name).filter((name) => met.some(([, one, two]) => one === name || two === name));
      fill(first, names);
      fill(second, names);
      if (first.value === second.value && names.length > 1) second.value = names.find((name) => name !== first.value);
      show();
    };
    const attacks = () => {
      fill(attack, current()[2]);
      classifiers();
    };
    budget.addEventListener("change", attacks);
    attack.addEventListener("change", classifiers);
    first.addEventListener("change", show);
    second.addEventListener("change", show);
    byId("comparing").hidden = false;
    attacks();
  };
  if (stored.comparisons.length) startComparing(told(stored.comparisons));

  // One matrix of agreement at a time, first the largest.
  const startAgreeing = (agreements) => {
    const choice = byId("agreement-choice");
    const matrix = byId("agreement-matrix");
    const show = () => {
      const [model, budget, , attacks] = agreements[Number(choice.value)];
      const heading = make("h3", "", `${model}: ${budget}`);
      const numbers = attacks.map((_, index) => [String(index + 1), "number"]);
      const shown = table("matrix", [["Attack", ""], ["Misclassified", "number"], ["Alone", "number"], ...numbers]);
      attacks.forEach(([name], index) => {
        shown.tHead.rows[0].cells[index + 3].title = name;
      });
      attacks.forEach(([name, wrong, alone, shares], index) => {
        const row = shown.tBodies[0].insertRow();
        const head = make("th", "", `${index + 1} ${name}`);
        head.scope = "row";
        row.append(head, make("td", "number", wrong), make("td", "number", alone));
        shares.forEach((share, other) => {
          const cell = make("td", "number share", other === index ? "–" : share);
          cell.style.setProperty("--share", share / 100);
          row.append(cell);
        });
      });
      matrix.replaceChildren(heading, regionOf(shown, `Agreement of attacks on ${model}, ${budget}`));
    };
    choice.replaceChildren(...agreements.map(([model, budget], index) => new Option(`${model}: ${budget}`, index)));
    const size = ([, , images, attacks]) => 1e6 * images + attacks.length ** 2;
    choice.value = String(agreements.reduce((best, found, index) => (size(found) > size(agreements[best]) ? index : best), 0));
    choice.addEventListener("change", show);
    byId("agreement-controls").hidden = matrix.hidden = false;
    show();
  };
  if (stored.agreements.length) startAgreeing(told(stored.agreements));
})();
