// Tables that sort, filter and turn pages.
"use strict";

const PAGE = matchMedia("(max-width: 600px)").matches ? 12 : 25;

const isMissing = (value) => value === null || value === undefined || value === "" || Number.isNaN(value);

/** The classes of the cells of a column. */
const classOf = (column) => `${column.isText ? "text" : ""} ${column.className ?? ""}`.trim();

class SortedTable {
  /**
   * @param {HTMLElement} place
   * @param {{count: number, what: string, columns: object[], text: (row: number) => string, select?: object, open: (row: number) => void}} options
   *   A column has `title`, `value(row)`, and perhaps `render(row)`, `isText`, `className`. `select` has `label` and `value(row)`.
   */
  constructor(place, options) {
    this.options = options;
    this.columns = options.columns.filter((column) => {
      for (let row = 0; row < options.count; row++) if (!isMissing(column.value(row))) return true;
      return false; // a column without a value has nothing to say
    });
    this.sorted = { column: -1, ascending: true };
    this.page = 0;
    this.needle = "";
    this.choice = "";
    this.body = make("tbody");
    this.heads = this.columns.map((column, i) => make("th", { scope: "col", className: classOf(column), title: column.about ?? "" },
      make("button", { type: "button", onclick: () => this.sortBy(i) }, column.title)));
    this.status = make("span", { className: "note", role: "status" });
    this.back = make("button", { type: "button", onclick: () => this.turn(-1) }, "Previous");
    this.next = make("button", { type: "button", onclick: () => this.turn(1) }, "Next");
    const search = make("input", { type: "search", placeholder: "name or word", oninput: () => this.filter(search.value.toLowerCase(), this.choice) });
    const controls = [make("label", {}, "Filter", search)];
    if (options.select) {
      const counts = new Map();
      for (let row = 0; row < options.count; row++) {
        const value = options.select.value(row);
        counts.set(value, (counts.get(value) ?? 0) + 1);
      }
      const choices = [["", `all (${formatted(options.count)})`], ...[...counts].map(([value, count]) => [value, `${value} (${formatted(count)})`])];
      controls.push(chooser(options.select.label, choices, (value) => this.filter(this.needle, value)));
    }
    place.append(
      make("div", { className: "controls" }, ...controls),
      make("div", { className: "scroll", tabIndex: 0, role: "region", "aria-label": `Table of ${options.what}` },
        make("table", {}, make("thead", {}, make("tr", {}, ...this.heads)), this.body)),
      make("div", { className: "controls" }, this.back, this.next, this.status));
    this.filter("", "");
  }

  filter(needle, choice) {
    this.needle = needle;
    this.choice = choice;
    const { count, text, select } = this.options;
    this.rows = [];
    for (let row = 0; row < count; row++) {
      if ((!choice || select.value(row) === choice) && (!needle || text(row).toLowerCase().includes(needle))) this.rows.push(row);
    }
    this.page = 0;
    this.sort();
  }

  sortBy(column) {
    const wasThis = this.sorted.column === column;
    this.sorted = { column, ascending: wasThis ? !this.sorted.ascending : Boolean(this.columns[column].isText) };
    this.heads.forEach((head, i) => {
      if (i === column) head.setAttribute("aria-sort", this.sorted.ascending ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
    this.page = 0;
    this.sort();
  }

  /** Sorts the rows; missing numbers come last in both directions. */
  sort() {
    const column = this.columns[this.sorted.column];
    if (column) {
      const sign = this.sorted.ascending ? 1 : -1;
      const collator = new Intl.Collator("en", { numeric: true });
      const values = new Map(this.rows.map((row) => [row, column.value(row)]));
      this.rows.sort((one, other) => {
        const [a, b] = [values.get(one), values.get(other)];
        if (isMissing(a) || isMissing(b)) return isMissing(a) - isMissing(b) || one - other;
        return sign * (typeof a === "number" ? a - b : collator.compare(a, b)) || one - other;
      });
    }
    this.draw();
  }

  turn(step) {
    this.page += step;
    this.draw();
  }

  draw() {
    const first = this.page * PAGE;
    const shown = this.rows.slice(first, first + PAGE);
    this.body.replaceChildren(...shown.map((row) => make("tr", {}, ...this.columns.map((column) => {
      const content = column.render ? column.render(row) : formatted(column.value(row), column.digits);
      return make("td", { className: classOf(column) }, content);
    }))));
    this.back.disabled = this.page === 0;
    this.next.disabled = first + PAGE >= this.rows.length;
    this.back.hidden = this.next.hidden = this.rows.length <= PAGE;
    this.status.textContent = this.rows.length === 0 ? `no ${this.options.what} fit the filter`
      : `${formatted(first + 1)} to ${formatted(first + shown.length)} of ${formatted(this.rows.length)} ${this.options.what}`;
  }
}

const VERDICT_CLASSES = { registered: "good", verified: "good", rejected: "bad", unreadable: "bad", "no features": "bad",
  unregistered: "warn", "other model": "warn" };

/** The verdict; on a phone also the reason, whose own column would be out of sight. */
const verdictCell = (verdict, reason) => make("div", {},
  make("span", { className: VERDICT_CLASSES[verdict] ?? "" }, verdict), make("span", { className: "why" }, reason));

/** Why, and what to try; either may be empty. */
const sentence = (reason, advice) => [reason, advice ? `Try: ${advice}` : ""].filter((text) => text).join(". ");

function photoTable(page) {
  const { photos } = page.data;
  const number = (key, title, about, digits) => ({ title, about, digits, value: (row) => photos[key][row] });
  new SortedTable(byId("photo-table"), {
    count: photos.photo.length,
    what: "photos",
    text: (row) => `${photos.photo[row]} ${photos.verdict[row]} ${photos.reason[row]}`,
    select: { label: "Verdict", value: (row) => photos.verdict[row] },
    columns: [
      { title: "Photo", isText: true, className: "name", value: (row) => photos.photo[row],
        render: (row) => make("button", { type: "button", className: "link", onclick: () => page.openPhoto(row) }, photos.photo[row]) },
      { title: "Verdict", isText: true, value: (row) => photos.verdict[row],
        render: (row) => verdictCell(photos.verdict[row], sentence(photos.reason[row], photos.advice[row])) },
      number("model", "Model", "folder of the model in which the photo has a pose"),
      number("keypoints", "Keypoints"),
      number("pairs", "Pairs", "pairs with other photos that were matched"),
      number("verified_pairs", "Verified", "pairs with a two-view geometry"),
      number("matches", "Matches", "in all pairs"),
      number("inliers", "Inliers", "verified matches in all pairs"),
      number("mean_score", "Score", "mean matching score"),
      number("points", "Points", "3D points that the photo sees"),
      number("reprojection_error_px", "Error px", "mean reprojection error, px of the photo"),
      { title: "Reason", isText: true, className: "long", value: (row) => photos.reason[row],
        render: (row) => sentence(photos.reason[row], photos.advice[row]) },
    ],
  });
}

/** The mean matching score of a pair; null if it is not known. */
const pairScore = (pairs, row) => (pairs.score[row] ? (pairs.score[row] - 1) / 254 : null);

function pairTable(page) {
  const { photos, pairs } = page.data;
  const number = (key, title, about, digits) => ({ title, about, digits, value: (row) => pairs[key][row] });
  const name = (key, title) => ({ title, isText: true, className: "name", value: (row) => photos.photo[pairs[key][row]],
    render: (row) => make("button", { type: "button", className: "link", onclick: () => page.openPair(row) }, photos.photo[pairs[key][row]]) });
  const verdict = (row) => pairs.verdicts[pairs.verdict[row]];
  const reason = (row) => pairs.reasons[pairs.reason[row]];
  const place = byId("pair-table");
  if (pairs.note) place.append(make("p", { className: "note" }, pairs.note));
  new SortedTable(place, {
    count: pairs.photo0.length,
    what: "pairs",
    text: (row) => `${photos.photo[pairs.photo0[row]]} ${photos.photo[pairs.photo1[row]]} ${reason(row)[0]}`,
    select: { label: "Verdict", value: verdict },
    columns: [
      name("photo0", "Photo 0"), name("photo1", "Photo 1"),
      { title: "Verdict", isText: true, value: verdict, render: (row) => verdictCell(verdict(row), sentence(...reason(row))) },
      number("matches", "Matches"), number("inliers", "Inliers"),
      { title: "Ratio", about: "inliers / matches", value: (row) => (pairs.matches[row] ? pairs.inliers[row] / pairs.matches[row] : null) },
      { title: "Score", about: "mean matching score", value: (row) => pairScore(pairs, row) },
      { title: "Geometry", isText: true, value: (row) => pairs.configurations[pairs.configuration[row]].toLowerCase().replaceAll("_", " ") },
      { title: "Source", isText: true, about: "why the pair was matched", value: (row) => pairs.sources[pairs.source[row]] },
      { title: "Reason", isText: true, className: "long", value: (row) => reason(row)[0], render: (row) => sentence(...reason(row)) },
    ],
  });
}
