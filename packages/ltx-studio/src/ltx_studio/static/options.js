// The advanced options, drawn from the request schema in the groups of the command's help.

const OWN = new Set(["prompt", "model", "height", "width", "num_frames", "seed", "images", "video_path", "audio_path", "storyboard"]);

export function draw(place, schema) {
  const groups = new Map();
  for (const [name, field] of Object.entries(schema)) {
    if (OWN.has(name)) continue;
    if (!groups.has(field.group)) groups.set(field.group, []);
    groups.get(field.group).push([name, field]);
  }
  for (const [group, fields] of groups) {
    const set = document.createElement("fieldset");
    set.append(Object.assign(document.createElement("legend"), { textContent: group }));
    const grid = Object.assign(document.createElement("div"), { className: "grid" });
    for (const [name, field] of fields) grid.append(control(name, field));
    set.append(grid);
    place.append(set);
  }
}

function control(name, field) {
  const label = Object.assign(document.createElement("label"), { title: field.help });
  const words = name.replaceAll("_", " ") + (field.unit ? ` (${field.unit})` : "");
  const kind = kindOf(field);
  let input;
  if (kind.enum || kind.type === "boolean" || field.file) {
    const choices = kind.enum?.filter(value => value !== null).map(value => [value, value]);
    input = document.createElement("select");
    input.append(new Option(field.file ? "none" : field.default ? `default: ${field.default}` : "default", ""));
    for (const [text, value] of choices ?? (field.file ? [] : [["on", "true"], ["off", "false"]])) input.append(new Option(text, value));
  } else {
    input = document.createElement("input");
    if (kind.type === "number" || kind.type === "integer") {
      input.type = "number";
      input.step = kind.type === "integer" ? "1" : "any";
      if (field.minimum !== undefined) input.min = field.minimum;
      if (field.maximum !== undefined) input.max = field.maximum;
    }
    input.placeholder = field.default ?? "";
    if (kind.type === "array") input.title = "values, separated by spaces";
  }
  if (field.file) input.dataset.file = "";
  input.dataset.option = name;
  input.dataset.kind = kind.type ?? "string";
  label.append(words, " ", input);
  return label;
}

function kindOf(field) {
  const choices = field.anyOf ?? [field];
  return choices.find(one => one.enum) ?? choices.find(one => one.type && one.type !== "null") ?? {};
}

// Attached files are what fields of files choose from.
export function offer(place, attachments) {
  for (const select of place.querySelectorAll("[data-file]")) {
    const before = select.value;
    select.replaceChildren(new Option("none", ""), ...attachments.map(one => new Option(one.label, one.name)));
    select.value = attachments.some(one => one.name === before) ? before : "";
  }
}

export function values(place) {
  const found = {};
  for (const { value, dataset: { option, kind } } of place.querySelectorAll("[data-option]")) {
    if (value === "") continue;
    if (kind === "boolean") found[option] = value === "true";
    else if (kind === "number" || kind === "integer") found[option] = Number(value);
    else if (kind === "array") found[option] = value.trim().split(/\s+/).map(word => isNaN(word) ? word : Number(word));
    else found[option] = value;
  }
  return found;
}

export function fill(place, request) {
  for (const input of place.querySelectorAll("[data-option]")) {
    const value = request[input.dataset.option];
    input.value = value === undefined || value === null ? "" : Array.isArray(value) ? value.join(" ") : String(value);
  }
}
