"use strict";
// The state of the page stands in the address, behind "#": h (ids of the history), r (requests), s (strength).

const byId = (id) => document.getElementById(id);
const state = { history: [], requests: [""], strength: 1 };
let start = { people: [], examples: [], requests: 4 };
let running = null; // the call under way, which a newer one ends
let waiting = 0; // a change of the strength that is not shown yet
let written = ""; // the state that this page wrote into the address

function make(tag, properties = {}, ...children) {
  const { data = {}, ...rest } = properties;
  const node = Object.assign(document.createElement(tag), rest);
  for (const [name, value] of Object.entries(data)) node.setAttribute(name, value);
  node.append(...children.filter((child) => child !== "" && child !== null)); // texts, never HTML
  return node;
}

async function call(path, body, signal) {
  const options = body ? { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) } : {};
  let response;
  try {
    response = await fetch(path, { ...options, signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the recommender does not answer. Is “cramer-peft play” still running?");
  }
  const content = await response.json().catch(() => null);
  if (response.ok && content) return content;
  throw new Error((content && content.error) || `the recommender failed (${response.status}); its terminal says why.`);
}

function complain(error) {
  if (error && error.name === "AbortError") return;
  byId("error").hidden = !error;
  byId("error").textContent = error ? `That did not work: ${error.message}` : "";
  if (error) byId("status").textContent = "";
}

// --- The history

const named = (item) => (item.year ? `${item.title} (${item.year})` : item.title);

function showHistory() {
  const chips = state.history.map((item, place) => {
    const label = { "aria-label": `Remove ${named(item)}` };
    const button = make("button", { type: "button", data: label }, named(item), make("span", {}, "×"));
    button.onclick = () => {
      setHistory(state.history.filter((_, other) => other !== place));
      (byId("history").querySelectorAll("button")[Math.min(place, state.history.length - 1)] || byId("title")).focus();
    };
    return make("li", {}, button);
  });
  byId("history").replaceChildren(...(chips.length ? chips : [make("li", { className: "none" }, "nothing yet")]));
}

function setHistory(items, person = "") {
  state.history = items;
  byId("person").value = person;
  showHistory();
  run();
}

// --- Suggestions of titles: a combobox with a list

const combo = { items: [], active: -1, asked: 0, timer: 0 };

function closeOptions() {
  Object.assign(combo, { items: [], active: -1, asked: combo.asked + 1 });
  byId("options").hidden = true;
  byId("title").setAttribute("aria-expanded", "false");
  byId("title").removeAttribute("aria-activedescendant");
}

function activate(place) {
  combo.active = place;
  [...byId("options").children].forEach((node, other) => node.setAttribute("aria-selected", String(other === place)));
  byId("title").setAttribute("aria-activedescendant", `option-${place}`);
}

function choose(place) {
  const item = combo.items[place];
  byId("title").value = "";
  closeOptions();
  if (item) setHistory([...state.history.filter((other) => other.id !== item.id), item]);
}

async function suggest() {
  const text = byId("title").value.trim();
  closeOptions();
  const asked = combo.asked;
  if (!text) return;
  try {
    const items = await call(`/api/titles?text=${encodeURIComponent(text)}`);
    if (asked !== combo.asked) return; // the text is another by now
    combo.items = items;
    const options = items.map((item, place) => {
      const about = make("div", { className: "about" }, item.attributes.join(", "));
      const option = make("li", { id: `option-${place}`, data: { role: "option" } }, named(item), about);
      option.onpointerdown = (event) => event.preventDefault(); // the field keeps the focus
      option.onclick = () => choose(place);
      return option;
    });
    const none = make("li", { className: "none", data: { role: "option", "aria-disabled": "true" } }, `No title with “${text}”`);
    byId("options").replaceChildren(...(options.length ? options : [none]));
    byId("options").hidden = false;
    byId("title").setAttribute("aria-expanded", "true");
    if (items.length) activate(0);
  } catch (error) {
    complain(error);
  }
}

function comboKey(event) {
  const last = combo.items.length - 1;
  if (event.key === "Enter") {
    event.preventDefault();
    if (combo.active >= 0) choose(combo.active);
    else suggest();
  } else if (event.key === "Escape") closeOptions();
  else if (event.key === "ArrowDown" && last >= 0) activate(combo.active < last ? combo.active + 1 : 0);
  else if (event.key === "ArrowUp" && last >= 0) activate(combo.active > 0 ? combo.active - 1 : last);
  else return;
  if (event.key.startsWith("Arrow")) event.preventDefault();
}

// --- The requests

function showRequests(focus = -1) {
  const several = state.requests.length > 1;
  const rows = state.requests.map((text, place) => {
    const field = make("input", { type: "text", value: text, maxLength: 1000, placeholder: "something funny, but no horror" });
    field.oninput = () => { state.requests[place] = field.value; };
    field.onchange = run;
    const row = make("div", { className: "request" }, make("label", {}, several ? `Request ${place + 1}` : "Request", field));
    if (several) {
      const remove = make("button", { type: "button", data: { "aria-label": `Remove request ${place + 1}` } }, "×");
      remove.onclick = () => {
        state.requests.splice(place, 1);
        showRequests(Math.min(place, state.requests.length - 1));
        run();
      };
      row.append(remove);
    }
    return row;
  });
  byId("requests").replaceChildren(...rows);
  byId("more").disabled = state.requests.length >= start.requests;
  if (focus >= 0) rows[focus].querySelector("input").focus();
}

function tryExample(text) {
  const blank = state.requests.findIndex((one) => !one.trim());
  state.requests[blank >= 0 ? blank : state.requests.length - 1] = text;
  showRequests();
  run();
}

function showStrength() {
  const notes = { 0: " (as if nothing was asked)", 1: " (as trained)" };
  byId("strength").value = state.strength;
  const text = `${Number(state.strength).toFixed(1)}${notes[state.strength] || ""}`;
  byId("strength-value").textContent = text;
  byId("strength").setAttribute("aria-valuetext", text);
}

// --- The lists

const signs = { wanted: "✓ ", unwanted: "✕ " };
const tag = (text, kind) => make("span", { className: `tag ${kind}` }, (signs[kind] || "") + text);
const tags = (reasons) => reasons.map(({ text, side }) => tag(text, side));

function listed(item, rank, kind, ...notes) {
  const year = item.year ? make("small", {}, ` ${item.year}`) : "";
  const about = item.attributes.length ? make("div", { className: "about" }, item.attributes.join(", ")) : "";
  const body = make("div", {}, make("div", { className: "title" }, item.title, year), about, ...notes);
  return make("li", { className: `item ${kind}` }, rank ? make("span", {}, String(rank)) : "", body);
}

function column(kind, heading, heard, items, went, rows) {
  const list = make("ol", {}, ...items);
  const node = make("article", { className: `column ${kind}` }, heading, heard, list, went);
  list.style.gridRow = `span ${rows}`; // the same rank stands at the same height in every list
  node.style.gridRow = `span ${rows + 3}`;
  return node;
}

function beforeColumn(before, answers, rows) {
  const several = answers.length > 1;
  const items = before.map((item, place) => {
    const gone = answers.map((answer) => (answer.went || []).find((one) => one.id === item.id));
    const numbers = gone.flatMap((one, number) => (one ? [number + 1] : []));
    if (!numbers.length) return listed(item, place + 1, "");
    const why = several ? [] : tags(gone[0].reasons);
    return listed(item, place + 1, "goes", tag(several ? `goes in ${numbers.join(", ")}` : "goes", "out"), ...why);
  });
  const heading = make("h2", {}, make("small", {}, "Before"), "Without a request");
  const heard = make("p", { className: "heard none" }, "The frozen recommender, as it was trained.");
  return column("before", heading, heard, items, make("div"), rows);
}

// The request as it was written, with the words that were heard underlined.
function marked(text, heard) {
  const spans = [...(heard ? heard.parts.map((part) => [part.text, part.wanted ? "wanted" : "unwanted"]) : []),
    ...(heard ? heard.missed.map((words) => [words, "missed"]) : [])];
  const nodes = [];
  let rest = text;
  while (rest) {
    const found = spans.map(([words, kind]) => {
      const pattern = words.split(/[^\p{L}\p{N}]+/u).filter(Boolean).join("[^\\p{L}\\p{N}]+");
      const match = pattern && new RegExp(`(?<![\\p{L}\\p{N}])${pattern}(?![\\p{L}\\p{N}])`, "iu").exec(rest);
      return match ? [match.index, match[0], kind] : null;
    }).filter(Boolean).sort((one, other) => one[0] - other[0] || other[1].length - one[1].length)[0];
    if (!found) break;
    nodes.push(rest.slice(0, found[0]), make("mark", { className: found[2] }, found[1]));
    rest = rest.slice(found[0] + found[1].length);
  }
  return [...nodes, rest];
}

function heardPart(part) {
  const meaning = part.kind === "title" ? `like ${part.meaning}` : part.meaning;
  const sure = part.certainty < 0.5 ? "perhaps " : "";
  const side = part.wanted ? "wanted" : "unwanted";
  return make("li", { className: side }, make("b", {}, part.wanted ? "✓ wanted: " : "✕ unwanted: "), `“${part.text}” → ${sure}${meaning}`);
}

function heardBox(heard) {
  if (!heard) return make("p", { className: "heard none" }, "This recommender's encoder does not tell what it heard.");
  const parts = heard.parts.map(heardPart);
  if (heard.missed.length) {
    parts.push(make("li", { className: "missed" }, make("b", {}, "? not understood: "), heard.missed.map((words) => `“${words}”`).join(", ")));
  }
  const nothing = heard.parts.length ? "" : make("p", {}, "Nothing was understood: the list is the one without a request.");
  return make("div", { className: "heard" }, make("h3", {}, "What was heard"), nothing, make("ul", {}, ...parts));
}

function afterColumn(answer, number, several, ranks, rows) {
  const small = make("small", {}, several ? `After request ${number}` : "After");
  const heading = make("h2", {}, small, ...marked(answer.request, answer.heard));
  if (answer.error) return column("after", heading, make("p", { className: "heard problem" }, answer.error), [], make("div"), rows);
  const items = answer.items.map((item, place) => {
    const why = tags(item.reasons.filter(({ side }) => side !== "lacking"));
    const was = ranks.indexOf(item.id) + 1;
    return listed(item, place + 1, was ? "" : "came", was ? tag(`was ${was}`, "neutral") : tag("new", "new"), ...why);
  });
  const gone = several ? answer.went.map((item) => listed(item, 0, "goes", ...tags(item.reasons))) : [];
  const summary = make("summary", {}, `What went, and why (${gone.length})`);
  const went = gone.length ? make("details", { className: "went" }, summary, make("ul", {}, ...gone)) : make("div");
  return column("after", heading, heardBox(answer.heard), items, went, rows);
}

function spoken(answer, number, several) {
  const name = several ? `Request ${number}: ` : "";
  if (answer.error) return `${name}it failed.`;
  const came = answer.items.filter((item) => item.came).length;
  const heard = answer.heard && !answer.heard.parts.length ? " Nothing was understood." : "";
  return `${name}${came} ${came === 1 ? "title" : "titles"} came, ${answer.went.length} went.${heard}`;
}

function showLists({ before, answers }) {
  const rows = Math.max(before.length, 1);
  const ranks = before.map((item) => item.id);
  const several = answers.length > 1;
  const after = answers.map((answer, place) => afterColumn(answer, place + 1, several, ranks, rows));
  byId("results").replaceChildren(beforeColumn(before, answers, rows), ...after);
  const told = answers.map((answer, place) => spoken(answer, place + 1, several)).join(" ");
  byId("status").textContent = told || "This is the list without a request. Write one, or try an example.";
}

async function run() {
  remember();
  if (running) running.abort();
  complain(null);
  if (!state.history.length) {
    byId("results").replaceChildren();
    byId("status").textContent = "Pick a person, or add a title that they met.";
    return;
  }
  const own = new AbortController();
  running = own;
  byId("results").setAttribute("aria-busy", "true");
  try {
    const requests = state.requests.filter((text) => text.trim());
    const body = { history: state.history.map((item) => item.id), requests, strength: state.strength };
    const lists = await call("/api/recommend", body, own.signal);
    if (state.history.some((item) => !item.attributes)) { // a link knows their ids alone
      state.history = lists.history;
      showHistory();
    }
    showLists(lists);
  } catch (error) {
    if (error.name !== "AbortError") byId("results").replaceChildren();
    complain(error);
  }
  if (running === own) byId("results").removeAttribute("aria-busy");
}

// --- The link

function remember() {
  const pairs = [...state.history.map((item) => ["h", item.id]), ...state.requests.map((text) => ["r", text]), ["s", state.strength]];
  written = `#${new URLSearchParams(pairs)}`;
  history.replaceState(null, "", written);
}

function recall() {
  const given = new URLSearchParams(location.hash.slice(1));
  const strength = Number(given.get("s") ?? 1);
  state.history = given.getAll("h").map((id) => ({ id, title: id }));
  state.requests = given.has("r") ? given.getAll("r").slice(0, start.requests) : [""];
  state.strength = strength >= 0 && strength <= 2 ? strength : 1;
  byId("person").value = "";
  if (!given.has("h") && start.people.length) {
    state.history = start.people[0].history;
    byId("person").value = "0";
    if (!given.has("r") && start.examples.length) state.requests = [start.examples[0]];
  }
  showHistory();
  showRequests();
  showStrength();
  run();
}

async function copyLink() {
  const done = await navigator.clipboard.writeText(location.href).then(() => true, () => false);
  byId("status").textContent = done ? "The link is copied. It works where this recommender is open." : "Copy the address of this page: it holds everything.";
}

async function begin() {
  byId("form").onsubmit = (event) => { event.preventDefault(); run(); };
  byId("title").oninput = () => { clearTimeout(combo.timer); combo.timer = setTimeout(suggest, 120); };
  byId("title").onkeydown = comboKey;
  byId("title").onblur = closeOptions;
  byId("person").onchange = () => {
    const place = byId("person").value;
    setHistory(place === "" ? [] : start.people[Number(place)].history, place);
  };
  byId("surprise").onclick = () => call("/api/surprise").then((person) => setHistory(person.history), complain);
  byId("more").onclick = () => { state.requests.push(""); showRequests(state.requests.length - 1); };
  byId("strength").oninput = () => {
    state.strength = Number(byId("strength").value);
    showStrength();
    clearTimeout(waiting);
    waiting = setTimeout(run, 150);
  };
  byId("copy").onclick = copyLink;
  window.onhashchange = () => { if (location.hash !== written) recall(); };
  try {
    start = await call("/api/start");
  } catch (error) {
    return complain(error);
  }
  byId("about").textContent = `“${start.name}”, with ${start.items.toLocaleString("en")} titles. Requests change the list, never the recommender.`;
  const people = start.people.map((person, place) => make("option", { value: String(place) }, person.name));
  if (people.length) byId("person").append(make("optgroup", { label: start.kind }, ...people));
  byId("tries").hidden = !start.examples.length;
  byId("examples").replaceChildren(...start.examples.map((text) => {
    const button = make("button", { type: "button" }, text);
    button.onclick = () => tryExample(text);
    return make("li", {}, button);
  }));
  recall();
}

begin();
