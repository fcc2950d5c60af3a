"use strict";
(() => {
  const table = document.getElementById("items");
  if (!table) return;
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const text = document.getElementById("filter-text");
  const status = document.getElementById("filter-status");
  const flag = document.getElementById("filter-flag");
  const shown = document.getElementById("shown");

  const filter = () => {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      const keep = (!status.value || row.dataset.status === status.value)
        && (!flag.value || row.dataset.flags.split(" ").includes(flag.value))
        && words.every((word) => row.dataset.text.toLowerCase().includes(word));
      row.hidden = !keep;
      count += keep;
    }
    shown.textContent = `${count} of ${rows.length} shown`;
  };

  const key = (row, index) => row.cells[index].dataset.key ?? row.cells[index].textContent.trim();
  const compare = (a, b) => {
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b, undefined, { numeric: true }) : x - y;
  };
  const sort = (head) => {
    const index = head.cellIndex;
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const known = rows.filter((row) => key(row, index) !== "");
    const unknown = rows.filter((row) => key(row, index) === "");
    known.sort((a, b) => (down ? -1 : 1) * compare(key(a, index), key(b, index)));
    body.append(...known, ...unknown);
  };

  for (const control of [text, status, flag]) control.addEventListener("input", filter);
  for (const head of table.tHead.rows[0].cells) {
    if (head.dataset.sort === undefined) continue;
    head.tabIndex = 0;
    head.addEventListener("click", () => sort(head));
    head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(head); });
  }
  filter();
})();
