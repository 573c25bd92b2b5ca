// The page on which a person labels images. All text from outside goes into the page as text, never as HTML.

const byId = (id) => document.getElementById(id);
const task = JSON.parse(byId("task").textContent);
const count = task.names.length;
const KEPT = `deeppatch-labels-${task.digest}`;
const THUMBNAIL = 60; // CSS pixels from one thumbnail to the next, as in labelling.css
const AHEAD = 6; // pictures that are kept decoded
const state = { labels: Array(count).fill(OPEN), at: 0 };
const past = []; // what undo restores: {at, before: [[place, label], ...]}
let stored = true; // whether the browser keeps the labels

// ---- what is done: every change of a label goes through change()

function change(pairs) {
  past.push({ at: state.at, before: pairs.map(([place]) => [place, state.labels[place]]) });
  for (const [place, label] of pairs) state.labels[place] = label;
}

function answer(label) {
  if (!count) return;
  const place = state.at;
  change([[place, label]]);
  endSearch();
  state.at = nextOpen(place);
  const left = open().length;
  if (!left) finish();
  update(`${task.names[place]}: ${label === SKIPPED ? "skipped" : task.classes[label]}.`);
}

function undo() {
  const last = past.pop();
  if (!last) return tell("There is nothing to undo.");
  for (const [place, label] of last.before) state.labels[place] = label;
  state.at = last.at;
  byId("finish").hidden = true;
  const many = last.before.length > 1 ? ` for ${last.before.length} images` : "";
  update(`Undone${many}.`);
}

function move(place) {
  if (place < 0 || place >= count) return;
  state.at = place;
  endSearch();
  update("");
}

/** Return the next place without a label behind `place`, going round; where there is none, the place behind. */
function nextOpen(place) {
  for (let step = 1; step <= count; step++) {
    const next = (place + step) % count;
    if (state.labels[next] === OPEN) return next;
  }
  return Math.min(place + 1, count - 1);
}

const open = () => state.labels.flatMap((label, place) => (label === OPEN ? [place] : []));

// ---- the browser keeps what was done, under a name of this very selection

function keep() {
  try {
    localStorage.setItem(KEPT, JSON.stringify(state));
    stored = true;
  } catch {
    if (stored) tell("This browser does not keep your labels: download them before you close the page.", true);
    stored = false;
  }
}

function restore() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEPT));
    const valid = (label) => label === OPEN || (Number.isInteger(label) && label >= SKIPPED && label < task.classes.length);
    if (!Array.isArray(kept?.labels) || kept.labels.length !== count || !kept.labels.every(valid)) return false;
    state.labels = kept.labels;
    state.at = Number.isInteger(kept.at) && kept.at >= 0 && kept.at < count ? kept.at : 0;
    return true;
  } catch {
    return false;
  }
}

addEventListener("storage", (event) => {
  if (event.key !== KEPT || event.newValue === null) return;
  const at = state.at;
  restore(); // another window shows the same selection
  state.at = at;
  past.length = 0;
  show("Labels from another window with this page were taken over.");
});
addEventListener("beforeunload", (event) => {
  if (!stored && state.labels.some((label) => label !== OPEN)) event.preventDefault();
});

// ---- what is shown

function tell(text, bad = false) {
  byId("notice").textContent = text;
  byId("notice").classList.toggle("bad", bad);
}

function update(text) {
  show(text);
  keep();
}

const pictures = new Map(); // the latest pictures by their place, so that the next one is there at once

function picture(place) {
  const found = pictures.get(place) ?? drawn(place, `Image ${place + 1} of ${count}, ${task.names[place]}`);
  pictures.delete(place);
  pictures.set(place, found);
  while (pictures.size > AHEAD) pictures.delete(pictures.keys().next().value);
  return found;
}

function drawn(place, alternative) {
  const image = new Image();
  image.alt = alternative;
  image.draggable = false;
  image.src = byId(`image-${place}`).textContent;
  return image;
}

function show(text) {
  const place = state.at;
  if (count) {
    const ahead = [nextOpen(place), Math.max(place - 1, 0), Math.min(place + 1, count - 1)];
    byId("frame").replaceChildren(picture(place));
    for (const other of ahead) if (other !== place) picture(other).decode().catch(() => {});
    showFacts(place);
  }
  showClasses();
  showProgress();
  showStrip();
  hideGuesses();
  byId("undo").disabled = !past.length;
  byId("previous").disabled = place <= 0;
  byId("next").disabled = place >= count - 1;
  tell(text);
}

function showFacts(place) {
  const { notes, size } = task.facts[place];
  byId("place").textContent = `Image ${place + 1} of ${count}`;
  byId("name").textContent = task.names[place];
  byId("reason").textContent = notes[0] || "no reason was noted";
  byId("facts").textContent = [...notes.slice(1), `${size[0]} × ${size[1]} pixels`].join(" · ");
  byId("state").textContent = said(place);
  byId("state").className = `state ${kind(place)}`;
}

const kind = (place) => (state.labels[place] === OPEN ? "open" : state.labels[place] === SKIPPED ? "skipped" : "labelled");
const said = (place) => (kind(place) === "labelled" ? task.classes[state.labels[place]] : kind(place) === "open" ? "no label yet" : "skipped");

function showProgress() {
  const skipped = state.labels.filter((label) => label === SKIPPED).length;
  const left = open().length;
  const labelled = count - left - skipped;
  const text = `${labelled} of ${count} labelled${skipped ? `, ${skipped} skipped` : ""}, ${left} to go`;
  byId("count").textContent = text;
  const bar = byId("bar");
  bar.setAttribute("aria-valuemax", count);
  bar.setAttribute("aria-valuenow", labelled + skipped);
  bar.setAttribute("aria-valuetext", text);
  byId("bar-labelled").style.width = `${(100 * labelled) / Math.max(1, count)}%`;
  byId("bar-skipped").style.width = `${(100 * skipped) / Math.max(1, count)}%`;
  if (!byId("finish").hidden) finish();
}

function finish() {
  const left = open().length;
  byId("finish").hidden = false;
  byId("finish-text").textContent = left
    ? `${left} images have no label yet. Load the table here to go on another time, or skip them: skipped images are left out of the repair. Then run this, with the place of the table that you downloaded:`
    : "All images are done. Download the labels, and run this with the place of the table:";
  byId("skip-rest").hidden = !left;
  byId("skip-rest").textContent = `Skip the ${left} that are left`;
}

// ---- what the network thinks stays out of the page until somebody asks

function hideGuesses() {
  byId("guesses").replaceChildren();
  byId("guesses").hidden = true;
  byId("guess").setAttribute("aria-expanded", "false");
  byId("guess-text").textContent = "What the network thinks";
}

function toggleGuesses() {
  if (!count) return;
  if (!byId("guesses").hidden) return hideGuesses();
  const rows = task.guesses[state.at].map(([number, percent]) => {
    const row = document.createElement("li");
    row.textContent = `${task.classes[number]}, ${percent} %`;
    return row;
  });
  byId("guesses").replaceChildren(...rows);
  byId("guesses").hidden = false;
  byId("guess").setAttribute("aria-expanded", "true");
  byId("guess-text").textContent = "Hide what the network thinks";
}

// ---- classes: a button each, nine of them with a key, and all of them found by typing

const folded = (text) => text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();
const searched = task.classes.map(folded);
const keys = keysOfClasses();
const buttons = task.classes.map(classButton);
let matches = task.classes.map((_, number) => number); // in the order in which they are shown
let marked = 0; // which of them Enter chooses

/** Return a Map from digits to classes: a class that is called like a digit has it, the others have what is left. */
function keysOfClasses() {
  const own = new Map();
  task.classes.forEach((name, number) => {
    if (/^[0-9]$/.test(name)) own.set(name, number);
  });
  const free = [..."1234567890"].filter((digit) => !own.has(digit));
  const taken = new Set(own.values());
  task.classes.forEach((_, number) => {
    if (!taken.has(number) && free.length) own.set(free.shift(), number);
  });
  return own;
}

function classButton(name, number) {
  const button = document.createElement("button");
  button.type = "button";
  const digit = [...keys].find(([, of]) => of === number)?.[0];
  if (digit !== undefined) {
    button.append(Object.assign(document.createElement("kbd"), { textContent: digit }));
    button.setAttribute("aria-keyshortcuts", digit);
  }
  button.append(Object.assign(document.createElement("span"), { textContent: name }));
  button.setAttribute("aria-label", name);
  button.addEventListener("click", () => answer(number));
  return button;
}

function showClasses() {
  buttons.forEach((button, number) => {
    button.setAttribute("aria-pressed", String(count > 0 && state.labels[state.at] === number));
    button.disabled = !count;
  });
}

/** Return the classes that a query finds: those that begin with it, then those with a word that does, then the rest. */
function classesFound(query) {
  const sought = folded(query.trim());
  const rank = (name) => {
    const place = name.indexOf(sought);
    return place < 0 ? -1 : place === 0 ? (name === sought ? 0 : 1) : /[\p{L}\p{N}]/u.test(name[place - 1]) ? 3 : 2;
  };
  const ranked = searched.map((name, number) => [rank(name), number]).filter(([of]) => of >= 0);
  return ranked.sort((one, other) => one[0] - other[0] || one[1] - other[1]).map(([, number]) => number);
}

function search() {
  const query = byId("query").value;
  matches = classesFound(query);
  marked = 0;
  const shown = new Set(matches);
  buttons.forEach((button, number) => (button.hidden = !shown.has(number)));
  byId("classes").append(...matches.map((number) => buttons[number]));
  mark();
  byId("classes").scrollTop = 0;
  if (!query) return tell("");
  const first = matches.length ? `${matches.length === 1 ? "1 class" : `${matches.length} classes`}; Enter chooses ${task.classes[matches[0]]}.` : `No class has “${query}” in its name.`;
  tell(first, !matches.length);
}

function mark() {
  const searching = byId("query").value !== "";
  buttons.forEach((button, number) => button.classList.toggle("marked", searching && number === matches[marked]));
  if (searching && matches.length) buttons[matches[marked]].scrollIntoView({ block: "nearest" });
}

function endSearch() {
  const query = byId("query");
  if (document.activeElement === query) query.blur();
  if (query.value) {
    query.value = "";
    search();
  }
}

byId("query").addEventListener("input", () => {
  search();
  if (byId("query").value === "") byId("query").blur(); // so that digits are keys again
});

// ---- the strip of thumbnails: only those that can be seen are in the page

const strip = byId("strip");
const thumbnails = new Map();

function showStrip() {
  const left = state.at * THUMBNAIL;
  if (left < strip.scrollLeft || left + THUMBNAIL > strip.scrollLeft + strip.clientWidth) {
    strip.scrollLeft = left - (strip.clientWidth - THUMBNAIL) / 2;
  }
  drawStrip();
}

function drawStrip() {
  const first = Math.max(0, Math.floor(strip.scrollLeft / THUMBNAIL) - 3);
  const last = Math.min(count - 1, Math.ceil((strip.scrollLeft + strip.clientWidth) / THUMBNAIL) + 3);
  for (const [place, button] of thumbnails) {
    if ((place < first || place > last) && button !== document.activeElement) {
      button.remove();
      thumbnails.delete(place);
    }
  }
  for (let place = first; place <= last; place++) {
    if (!thumbnails.has(place)) thumbnails.set(place, thumbnail(place));
    const button = thumbnails.get(place);
    button.className = kind(place);
    button.setAttribute("aria-label", `Image ${place + 1}: ${said(place)}`);
    button.tabIndex = place === state.at ? 0 : -1;
    if (place === state.at) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
}

function thumbnail(place) {
  const button = document.createElement("button");
  button.type = "button";
  button.style.left = `${place * THUMBNAIL}px`;
  button.append(drawn(place, ""));
  button.addEventListener("click", () => move(place));
  byId("rail").append(button);
  return button;
}

strip.addEventListener("scroll", () => requestAnimationFrame(drawStrip), { passive: true });
addEventListener("resize", () => requestAnimationFrame(showStrip));

// ---- the table, out and in

function download() {
  const url = URL.createObjectURL(new Blob([writeTable(task, state.labels)], { type: "text/csv" }));
  const link = Object.assign(document.createElement("a"), { href: url, download: "selection.csv" });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
  finish();
  tell(`selection.csv: ${byId("count").textContent}.`);
}

async function load(file) {
  try {
    const table = readTable(new Uint8Array(await file.arrayBuffer()), file.name, task);
    const given = [...table.given];
    const changed = given.filter(([place, label]) => state.labels[place] !== label);
    const replaced = changed.filter(([place]) => state.labels[place] !== OPEN).length;
    if (changed.length) {
      change(changed);
      if (state.labels[state.at] !== OPEN) state.at = nextOpen(state.at);
    }
    const other = replaced ? `; ${replaced} replace what was here` : "";
    const passed = table.strangers ? `; ${table.strangers} of its images are not on this page` : "";
    update(`${file.name}: ${given.length} images with a label or skipped${other}${passed}.`);
    if (count && !open().length) finish();
  } catch (error) {
    if (!(error instanceof TableProblem)) throw error;
    tell(error.message.replaceAll(/\s+/g, " "), true);
  }
}

byId("file").addEventListener("change", async () => {
  const [file] = byId("file").files;
  if (file) await load(file);
  byId("file").value = "";
});
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  const [file] = event.dataTransfer.files;
  if (file) load(file);
});

// ---- keys

function onKey(event) {
  if (event.isComposing || byId("help").open) return;
  const searching = event.target === byId("query");
  if ((event.ctrlKey || event.metaKey) && !event.altKey && event.key.toLowerCase() === "z") {
    if (searching && byId("query").value) return;
    event.preventDefault();
    undo();
  } else if (event.ctrlKey || event.metaKey || event.altKey) return;
  else if (searching) onKeyInSearch(event);
  else onKeyOutside(event);
}

function onKeyInSearch(event) {
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (event.key === "Enter") {
    event.preventDefault();
    if (!event.repeat && byId("query").value && matches.length) answer(matches[marked]);
  } else if (event.key === "Escape") {
    event.preventDefault();
    endSearch();
    tell("");
  } else if (step && matches.length) {
    event.preventDefault();
    marked = (marked + step + matches.length) % matches.length;
    mark();
    tell(`Enter chooses ${task.classes[matches[marked]]}.`);
  }
}

function onKeyOutside(event) {
  const actions = {
    ArrowLeft: () => move(state.at - 1),
    ArrowRight: () => move(state.at + 1),
    "-": () => answer(SKIPPED),
    Backspace: undo,
    "?": toggleGuesses,
    "/": () => byId("query").focus(),
  };
  if (Object.hasOwn(actions, event.key)) {
    event.preventDefault();
    if (!event.repeat || event.key.startsWith("Arrow")) actions[event.key]();
  } else if (/^[0-9]$/.test(event.key)) {
    event.preventDefault();
    if (event.repeat) return;
    if (keys.has(event.key)) answer(keys.get(event.key));
    else tell(`No class has the key ${event.key}.`, true);
  } else if (/^\p{L}$/u.test(event.key)) byId("query").focus(); // which then gets the letter
}

addEventListener("keydown", onKey);
const clicks = {
  download,
  undo,
  load: () => byId("file").click(),
  keys: () => byId("help").showModal(),
  previous: () => move(state.at - 1),
  next: () => move(state.at + 1),
  skip: () => answer(SKIPPED),
  guess: toggleGuesses,
  "close-finish": () => (byId("finish").hidden = true),
  "skip-rest": () => {
    change(open().map((place) => [place, SKIPPED]));
    update("The rest is skipped.");
  },
  copy: async () => {
    try {
      await navigator.clipboard.writeText(task.command);
      tell("The command is copied.");
    } catch {
      getSelection().selectAllChildren(byId("command"));
      tell("The command is marked: copy it with the keys of your system.");
    }
  },
};
for (const [id, act] of Object.entries(clicks)) byId(id).addEventListener("click", act);

// ---- on paper all images stand with their labels

addEventListener("beforeprint", () => {
  const figures = task.names.map((name, place) => {
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    const label = Object.assign(document.createElement("b"), { textContent: kind(place) === "open" ? "________" : said(place) });
    caption.append(label, `${place + 1}: ${name}`);
    figure.append(drawn(place, name), caption);
    return figure;
  });
  byId("sheet").replaceChildren(...figures);
});
addEventListener("afterprint", () => byId("sheet").replaceChildren());

// ---- start

byId("rail").style.width = `${count * THUMBNAIL}px`;
byId("classes").append(...buttons);
for (const id of ["skip", "guess"]) byId(id).disabled = !count;
const before = restore();
show(count ? "" : "There is no image to label.");
if (before && state.labels.some((label) => label !== OPEN)) {
  tell("Your labels are as you left them in this browser.");
  if (!open().length) finish();
}
