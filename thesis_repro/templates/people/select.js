// The selection: a grid of pictures for each attribute; each is kept, dropped, or not yet decided.
const fresh = () => ({said: {}, before: []});
const answered = () => {
  const of = word => Object.keys(kept.own.said).filter(id => kept.own.said[id] === word);
  return {kept: of("keep"), dropped: of("drop")};
};
const buttons = new Map(), groups = [];
const words = {keep: "kept", drop: "dropped"};

const look = id => {
  const b = buttons.get(id), word = kept.own.said[id];
  b.className = word || "";
  b.setAttribute("aria-pressed", String(word === "keep"));
  b.setAttribute("aria-label", `${b.dataset.name}: ${words[word] || "not decided"}`);
};
const tell = () => {
  const said = Object.values(kept.own.said), total = buttons.size;
  $("progress").max = total;
  $("progress").value = said.length;
  $("count").textContent = `${said.length} of ${total}`;
  $("undo").disabled = !kept.own.before.length;
  for (const g of groups) {
    const of = word => g.ids.filter(id => kept.own.said[id] === word).length;
    const left = g.ids.length - of("keep") - of("drop");
    g.count.textContent = `${of("keep")} kept, ${of("drop")} dropped, ${left} left`;
    for (const b of g.rest) b.disabled = !left;
  }
};

// Some pictures at once are one step, which one undo takes back.
const decide = (ids, word) => {
  if (!ids.length) return;
  kept.own.before.push(ids.map(id => [id, kept.own.said[id] || ""]));
  ids.forEach(id => { kept.own.said[id] = word; look(id); });
  kept.save();
  tell();
  say(ids.length > 1 ? `${ids.length} pictures ${words[word]}` : `${buttons.get(ids[0]).dataset.name} ${words[word]}`);
};
const undo = () => {
  const step = kept.own && kept.own.before.pop();
  if (!step) return;
  for (const [id, word] of step) {
    if (word) kept.own.said[id] = word; else delete kept.own.said[id];
    look(id);
  }
  kept.save();
  tell();
  go(step[0][0]);
  say("taken back");
};

// One picture is in the tab order; arrows go on from it.
let here = "";
const go = id => {
  if (buttons.has(here)) buttons.get(here).tabIndex = -1;
  here = id;
  buttons.get(id).tabIndex = 0;
  buttons.get(id).focus();
};
const beside = (id, key) => {
  const all = [...buttons.keys()], at = all.indexOf(id);
  if (key === "ArrowRight" || key === "ArrowLeft") return all[at + (key === "ArrowRight" ? 1 : -1)];
  const box = buttons.get(id).getBoundingClientRect(), down = key === "ArrowDown" ? 1 : -1;
  const places = all.map(other => [other, buttons.get(other).getBoundingClientRect()]);
  const further = places.filter(([, b]) => down * (b.top - box.top) > 4);
  const far = ([, b]) => Math.abs(b.top - box.top) * 1000 + Math.abs(b.left - box.left);
  return further.sort((a, b) => far(a) - far(b))[0]?.[0];
};

const picture = (id, name) => {
  const b = document.createElement("button"), image = new Image();
  b.type = "button";
  b.tabIndex = -1;
  b.dataset.name = name;
  image.alt = "";
  image.src = content.images[id];
  image.className = content.few ? "few" : "";
  b.append(image);
  b.addEventListener("click", () => {
    go(id);
    decide([id], kept.own.said[id] === "keep" ? "drop" : "keep");
  });
  buttons.set(id, b);
  return b;
};
const build = () => Object.entries(content.groups).forEach(([name, ids]) => {
  const group = document.createElement("section"), head = document.createElement("header");
  const title = document.createElement("h2"), count = document.createElement("small");
  const grid = document.createElement("div");
  const rest = ["keep", "drop"].map(word => {
    const b = document.createElement("button");
    b.type = "button";
    b.textContent = `${word === "keep" ? "Keep" : "Drop"} the rest`;
    b.setAttribute("aria-label", `${b.textContent} of ${name}`);
    b.addEventListener("click", () => decide(ids.filter(id => !kept.own.said[id]), word));
    return b;
  });
  title.textContent = name;
  group.className = "group";
  group.setAttribute("aria-label", name);
  grid.className = "grid";
  grid.setAttribute("role", "group");
  grid.append(...ids.map((id, i) => picture(id, `${name} ${i + 1}`)));
  head.append(title, count, ...rest);
  group.append(head, grid);
  groups.push({ids, count, rest});
  $("groups").append(group);
});

document.addEventListener("keydown", e => {
  const typing = e.target.matches("input, textarea");
  if (typing || e.ctrlKey || e.metaKey || e.altKey || !kept.own || $("choosing").hidden) return;
  const on = [...buttons.values()].includes(document.activeElement);
  if (e.key === "Backspace" && !e.repeat) {
    e.preventDefault();
    undo();
  } else if (/^Arrow/.test(e.key) && on) {
    e.preventDefault();
    const next = beside(here, e.key);
    if (next) go(next);
  } else if (/^[kd]$/i.test(e.key) && on && !e.repeat) {
    const next = beside(here, "ArrowRight");
    decide([here], e.key.toLowerCase() === "k" ? "keep" : "drop");
    if (next) go(next);
  }
});
$("undo").addEventListener("click", undo);
const begin = () => {
  $("tools").hidden = false;
  show("choosing");
  buttons.forEach((_, id) => look(id));
  tell();
  go([...buttons.keys()].find(id => !kept.own.said[id]) || buttons.keys().next().value);
};
build();
start();
