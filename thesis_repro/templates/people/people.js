// What both pages share: what a person has said is kept in the browser at once, and can be had as a file.
const content = JSON.parse(document.getElementById("content").textContent);
const $ = id => document.getElementById(id);

const kept = (() => {
  const place = `thesis_repro:${content.kind}:${content.id}`;
  let all = {person: "", people: {}};
  try {
    const found = JSON.parse(localStorage.getItem(place));
    if (found && found.people) all = found;
  } catch { /* damaged, or a browser that keeps nothing: begin again */ }
  const save = () => {
    try {
      localStorage.setItem(place, JSON.stringify(all));
      return true;
    } catch {
      $("unkept").hidden = false;  // nothing is lost as long as the page is open
      return false;
    }
  };
  return {
    save,
    get person() { return all.person; },
    get own() { return all.people[all.person]; },
    be(person, fresh) {
      all.person = person;
      if (person) all.people[person] ??= fresh;
      save();
    },
  };
})();

const say = text => { $("said").textContent = text; };
const now = () => new Date().toISOString();
const show = id => {
  for (const s of document.querySelectorAll(".page > section")) s.hidden = s.id !== id;
};

// The file: offered at any time, and as text for where a browser saves nothing.
const file = () => JSON.stringify({format: content.answers, [content.kind]: content.id,
  person: kept.person, saved: now(), ...answered()}, null, 1) + "\n";
const download = () => {
  const link = document.createElement("a");
  const name = kept.person.replace(/[^\p{L}\p{N}]+/gu, "-");
  link.href = URL.createObjectURL(new Blob([file()], {type: "application/json"}));
  link.download = `${content.kind}-${content.id}-${name}.json`;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  say("The file is saved.");
};
for (const b of document.querySelectorAll(".download")) b.addEventListener("click", download);
for (const d of document.querySelectorAll("details.text"))
  d.addEventListener("toggle", () => { if (d.open) d.querySelector("textarea").value = file(); });

// Who? The same name comes back to the same answers.
$("who").addEventListener("submit", e => {
  e.preventDefault();
  const person = $("person").value.trim().replace(/\s+/g, " ");
  if (!person) return $("person").focus();
  kept.be(person, fresh());
  begin();
});
const ask = () => {
  kept.be("", null);
  $("tools").hidden = true;
  $("person").value = "";
  show("start");
  $("person").focus();
};
for (const b of document.querySelectorAll(".another")) b.addEventListener("click", ask);
const start = () => {
  kept.save();  // says at once where a browser keeps nothing
  if (kept.own) begin(); else ask();
};
