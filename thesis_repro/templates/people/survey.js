// The survey: one pair after another; the answers in the order in which they were given.
const fresh = () => ({answers: []});
const answered = () => ({answers: kept.own.answers});
let shown = 0;

const draw = () => {
  const done = kept.own.answers.length, total = content.pairs.length, pair = content.pairs[done];
  $("tools").hidden = false;
  $("progress").max = total;
  $("progress").value = done;
  $("count").textContent = `${done} of ${total}`;
  if (!pair) {
    show("end");
    $("thanks").focus();
    return;
  }
  show("asking");
  $("undo").disabled = !done;
  const first = name => !pair.asked.includes(name);  // what was asked for comes first
  $("asked").replaceChildren(...[...content.names].sort((a, b) => first(a) - first(b)).map(name => {
    const chip = document.createElement("li"), yes = pair.asked.includes(name);
    chip.className = yes ? "yes" : "";
    chip.textContent = yes ? name : `not ${name}`;
    return chip;
  }));
  for (const side of ["left", "right"]) $(`${side}-image`).src = content.images[pair[side]];
  const said = pair.asked.length ? pair.asked.join(", ") : "none of these";
  say(`Pair ${done + 1} of ${total}. Asked for: ${said}.`);
  shown = performance.now();
};

const choose = choice => {
  const {answers} = kept.own, pair = content.pairs[answers.length];
  if (!pair || $("asking").hidden) return;
  const seconds = Math.round((performance.now() - shown) / 10) / 100;
  answers.push({pair: pair.id, choice, at: now(), seconds});
  kept.save();
  flash(choice);
  draw();
};
const undo = () => {
  if (!kept.own || !kept.own.answers.length) return;
  kept.own.answers.pop();
  kept.save();
  draw();
};
const flash = choice => {
  const b = $(choice);
  b.classList.add("taken");
  setTimeout(() => b.classList.remove("taken"), 180);
};

for (const choice of ["left", "right", "neither"]) $(choice).addEventListener("click", () => choose(choice));
$("undo").addEventListener("click", undo);
$("back").addEventListener("click", undo);
const keys = {ArrowLeft: "left", ArrowRight: "right", ArrowDown: "neither"};
document.addEventListener("keydown", e => {
  const typing = e.target.matches("input, textarea");
  if (typing || e.repeat || e.ctrlKey || e.metaKey || e.altKey || !kept.own) return;
  if (e.key in keys && !$("asking").hidden) {
    e.preventDefault();
    choose(keys[e.key]);
  } else if (e.key === "Backspace" || e.key === "u") {
    e.preventDefault();
    undo();
  }
});
for (const id of ["left-image", "right-image"]) $(id).classList.toggle("few", content.few);
const begin = () => {
  draw();
  if (!$("asking").hidden) $("question").focus();  // and no longer in the field of the name
};
start();
