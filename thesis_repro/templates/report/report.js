// What a page can do with a script; without one it is whole, in the thesis's order.
(() => {
  const all = (what, from = document) => [...from.querySelectorAll(what)];

  // Chapters: fold all code away, or show it again.
  const fold = document.getElementById("fold");
  if (fold) fold.addEventListener("click", e => {
    e.preventDefault();
    const cells = all("details.code"), open = cells.some(d => d.open);
    cells.forEach(d => { d.open = !open; });
    fold.textContent = open ? "Unfold code" : "Fold code";
  });

  // The box that leads to a table by its number: 6.7, fig 7.2, eq 7.12, chapter 5.
  const jump = document.querySelector(".jump");
  if (jump) {
    const typed = jump.querySelector("input");
    const words = text => text.toLowerCase().match(/\p{L}+|[0-9]+(\.\w+)*/gu) ?? [];
    const places = all("option", jump).map(o => ({link: o.dataset.link, words: words(o.value)}));
    const reach = asked => {
      const [kind, number] = asked.length > 1 ? asked : ["", asked[0]];
      const ways = [
        p => p.words.join(" ") === asked.join(" "),
        p => !kind && p.words.join(" ") === `chapter ${number}`,
        p => p.words.at(-1) === number && p.words[0].startsWith(kind),
        p => asked.every(w => p.words.some(own => own.startsWith(w))),
      ];
      return ways.map(way => places.find(way)).find(Boolean);
    };
    jump.addEventListener("submit", e => {
      e.preventDefault();
      const asked = words(typed.value), place = asked.length ? reach(asked) : null;
      typed.setCustomValidity(place ? "" : "There is no table, figure, equation or chapter of that name.");
      if (place) location.href = place.link; else typed.reportValidity();
    });
    typed.addEventListener("input", () => typed.setCustomValidity(""));
    jump.hidden = false;
  }

  // The scorecard: search, filter, sort, and the first twenty claims at first.
  const box = document.getElementById("scorecard");
  if (!box) return;
  const controls = box.querySelector(".controls"), body = box.querySelector("tbody"), rows = [...body.rows];
  const [search, chapter, sort] = ["search", "chapter", "sort"].map(k => controls.querySelector(`[name=${k}]`));
  const heads = all("th[data-key]", box), chips = all("button[data-verdict]", controls);
  const count = controls.querySelector(".count"), more = box.querySelector(".more");
  const texts = new Map(rows.map(r => [r, r.textContent.toLowerCase()]));
  let down = false, most = 20;

  const filter = () => {
    const words = search.value.toLowerCase().split(" ").filter(Boolean);
    const chosen = chips.filter(c => c.getAttribute("aria-pressed") === "true").map(c => c.dataset.verdict);
    const fits = r => (!chosen.length || chosen.includes(r.dataset.verdict))
      && (!chapter.value || r.dataset.chapter === chapter.value)
      && words.every(w => texts.get(r).includes(w));
    const found = rows.filter(fits), shown = new Set(found.slice(0, most));
    rows.forEach(r => { r.hidden = !shown.has(r); });
    more.hidden = found.length <= most;
    more.firstElementChild.textContent = `Show all ${found.length}`;
    count.textContent = `${found.length} of ${rows.length} claims`;
  };

  const arrange = () => {
    const key = sort.value, sign = down ? -1 : 1;
    const value = r => r.dataset[key] === "" ? null : Number(r.dataset[key]);
    const compare = (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === y) return a.dataset.place - b.dataset.place;
      return x === null ? 1 : y === null ? -1 : sign * (x - y);
    };
    rows.sort(compare).forEach(r => body.append(r));
    filter();
    const order = h => h.dataset.key !== key ? "none" : down ? "descending" : "ascending";
    heads.forEach(h => h.setAttribute("aria-sort", order(h)));
  };

  // A permalink to a claim that is hidden brings it back.
  const arrive = place => {
    const target = document.getElementById(decodeURIComponent(new URL(place).hash.slice(1)));
    if (!target) return;
    if (target.hidden) {
      search.value = chapter.value = "";
      most = rows.length;
      chips.forEach(c => c.setAttribute("aria-pressed", "false"));
      filter();
    }
    for (let e = target; e; e = e.parentElement) if (e.tagName === "DETAILS") e.open = true;
    if (target.matches("tr")) all("details", target).forEach(d => { d.open = true; });
    target.scrollIntoView();
  };

  const press = (chip, on) => chip.setAttribute("aria-pressed", String(on));
  heads.forEach(h => h.firstElementChild.addEventListener("click", () => {
    down = sort.value === h.dataset.key ? !down : false;
    sort.value = h.dataset.key;
    arrange();
  }));
  chips.forEach(c => c.addEventListener("click", () => {
    press(c, c.getAttribute("aria-pressed") !== "true");
    filter();
  }));
  all("a[data-only]").forEach(a => a.addEventListener("click", () => {
    chips.forEach(c => press(c, c.dataset.verdict === a.dataset.only));
    filter();
  }));
  more.firstElementChild.addEventListener("click", () => { most = rows.length; filter(); });
  search.addEventListener("input", filter);
  chapter.addEventListener("change", filter);
  sort.addEventListener("change", () => { down = false; arrange(); });
  addEventListener("hashchange", e => arrive(e.newURL));
  controls.hidden = false;
  filter();
  arrive(location.href);
})();
