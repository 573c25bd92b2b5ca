"use strict";
// Writes the table of labels as annotate has written it, and reads it as relearn does (deeppatch.data.label_file).

const OPEN = null; // no label yet
const SKIPPED = -1;

class TableProblem extends Error {}

const quoted = (cell) => (/[",\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);

/** Return the table as text; labels are places in task.classes, OPEN or SKIPPED. */
function writeTable(task, labels) {
  const column = task.columns.indexOf("label");
  const written = (label) => (label === OPEN ? "" : label === SKIPPED ? task.skipped : task.written[label]);
  const rows = task.cells.map((row, place) => row.map((cell, at) => (at === column ? written(labels[place]) : cell)));
  return "\ufeff" + [task.columns, ...rows].map((row) => row.map(quoted).join(",") + "\n").join("");
}

/**
 * Return the labels that a table gives, a Map from places of images to labels, and how many of its images are not on
 * this page: labels for another selection count where images were chosen again. TableProblem says why there is none.
 */
function readTable(bytes, origin, task) {
  const rows = labelledRows(decoded(bytes, origin), origin);
  const files = spellings(task.names, task.cells.map((row) => row[task.columns.indexOf("file")]));
  const classes = spellings(task.classes, task.written);
  const strangers = rows.filter(([name]) => found(name, files) === undefined).map(([name]) => name);
  if (strangers.length && strangers.length === rows.length) {
    const which = `none of its ${rows.length} images is on this page, such as ${strangers[0]}`;
    throw new TableProblem(`${origin} belongs to another selection: ${which}. Nothing was read.`);
  }
  const given = new Map();
  for (const [name, text] of rows) {
    const place = found(name, files);
    if (place === undefined) continue;
    const known = found(text, classes);
    const label = text === "" ? OPEN : text.toLowerCase() === task.skipped ? SKIPPED : known;
    const before = given.get(place) ?? OPEN;
    if (before !== OPEN && label !== OPEN && label !== before) {
      throw new TableProblem(`${origin} has ${name} more than once, with other labels. Nothing was read.`);
    }
    if (label === undefined) {
      throw new TableProblem(`${origin} calls ${name} “${text}”, which is no class here. Nothing was read.`);
    }
    if (label !== OPEN) given.set(place, label);
  }
  return { given, strangers: strangers.length };
}

/** Return places by what a table may call them; what it was written with wins where two spellings meet. */
function spellings(names, written) {
  const places = new Map();
  const add = (texts, spelled) => texts.forEach((text, place) => places.set(spelled(text).trim(), place));
  for (const texts of [names, written]) add(texts, (text) => text.normalize("NFC"));
  for (const texts of [names, written]) add(texts, (text) => text);
  return places;
}

const found = (text, places) => places.get(text) ?? places.get(text.normalize("NFC"));

function decoded(bytes, origin) {
  const [first, second, third] = bytes;
  const begins = (...numbers) => numbers.every((number, at) => bytes[at] === number);
  if (begins(0x50, 0x4b, 3, 4) || begins(0xd0, 0xcf, 0x11, 0xe0)) {
    throw new TableProblem(`${origin} is a workbook of a spreadsheet; save it as CSV UTF-8.`);
  }
  let encoding = "utf-8";
  if (begins(0xff, 0xfe) || (first !== 0 && second === 0)) encoding = "utf-16le";
  if (begins(0xfe, 0xff) || (first === 0 && third === 0)) encoding = "utf-16be";
  try {
    return new TextDecoder(encoding, { fatal: true }).decode(bytes);
  } catch {
    throw new TableProblem(`${origin} is no text in UTF-8; save it as CSV UTF-8.`);
  }
}

/** Return the columns file and label of all rows that name a file. */
function labelledRows(text, origin) {
  let delimiter;
  const own = /^"?sep=(.)"?\s*?(\r\n|\r|\n)/i.exec(text);
  if (own) {
    delimiter = own[1];
    text = text.slice(own[0].length);
  } else {
    const first = text.split(/\r\n|\r|\n/).find((line) => /[^,;\t ]/.test(line)) ?? "";
    const times = (sign) => first.split(sign).length;
    delimiter = [",", ";", "\t"].reduce((best, sign) => (times(sign) > times(best) ? sign : best));
  }
  const rows = cellsOf(text, delimiter).map((row) => row.map((cell) => cell.trim())).filter((row) => row.some(Boolean));
  const heading = (rows.shift() ?? []).map((cell) => cell.split(/\s+/).join(" ").toLowerCase());
  for (const name of ["file", "label"]) {
    const times = heading.filter((cell) => cell === name).length;
    if (!times) throw new TableProblem(`${origin} has no columns file and label. Nothing was read.`);
    if (times > 1) throw new TableProblem(`${origin} has ${times} columns ${name}; keep the one that counts.`);
  }
  const [file, label] = [heading.indexOf("file"), heading.indexOf("label")];
  const named = rows.map((row) => [row[file] ?? "", row[label] ?? ""]);
  const nameless = named.filter(([name, given]) => given && !name).length;
  if (nameless) throw new TableProblem(`${origin}: ${nameless} labels stand in rows without a file. Nothing was read.`);
  return named.filter(([name]) => name);
}

function cellsOf(text, delimiter) {
  const rows = [];
  let [row, cell, inside] = [[], "", false];
  const endRow = () => {
    rows.push([...row, cell]);
    [row, cell] = [[], ""];
  };
  for (let at = 0; at < text.length; at++) {
    const sign = text[at];
    if (inside) {
      if (sign !== '"') cell += sign;
      else if (text[at + 1] === '"') cell += text[at++];
      else inside = false;
    } else if (sign === '"' && cell === "") inside = true;
    else if (sign === delimiter) {
      row.push(cell);
      cell = "";
    } else if (sign === "\n" || sign === "\r") {
      if (sign === "\r" && text[at + 1] === "\n") at++;
      endRow();
    } else cell += sign;
  }
  if (cell || row.length) endRow();
  return rows;
}
