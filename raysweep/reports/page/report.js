"use strict";
const all = (q, in_ = document) => [...in_.querySelectorAll(q)];
for (const table of all("table.sortable")) {
  const heads = all("thead th", table);
  heads.forEach((head, column) => head.firstChild.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") !== "descending" ? -1 : 1;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down < 0 ? "descending" : "ascending");
    const key = (row) => row.children[column].dataset.sort;
    const rank = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      return down * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y);
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(rank));
  }));
}
const arms = [...new Set(all("#arms tbody tr").map((row) => row.dataset.arm))];
const hidden = new Set();
const tools = document.createElement("div");
tools.id = "tools";
const show = () => {
  const word = filter.value.toLowerCase();
  for (const part of all("[data-arm]"))
    part.hidden = hidden.has(part.dataset.arm) || !part.dataset.arm.toLowerCase().includes(word);
};
const filter = Object.assign(document.createElement("input"), { type: "search", placeholder: "arms that contain …" });
filter.setAttribute("aria-label", "show arms that contain");
filter.addEventListener("input", show);
tools.append(filter);
for (const arm of arms) {
  const label = document.createElement("label");
  const box = Object.assign(document.createElement("input"), { type: "checkbox", checked: true });
  box.addEventListener("change", () => { hidden[box.checked ? "delete" : "add"](arm); show(); });
  label.append(box, " " + arm);
  tools.append(label);
}
document.querySelector("#arms .scroll").before(tools);
const open = () => {
  const part = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (part?.tagName === "DETAILS") part.open = true;
};
addEventListener("hashchange", open);
open();
