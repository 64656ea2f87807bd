// The advanced options, drawn from the request schema in the groups of the command's help.

const OWN = new Set(["prompt", "model", "height", "width", "num_frames", "seed", "images", "video_path", "audio_path"]);
const SERVER = new Set(["Output", "Model"]); // what the server chooses

export function draw(place, schema) {
  const groups = new Map();
  for (const [name, field] of Object.entries(schema)) {
    if (OWN.has(name) || SERVER.has(field.group)) continue;
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
  if (kind.enum) {
    input = document.createElement("select");
    for (const value of ["", ...kind.enum.filter(value => value !== null)])
      input.append(new Option(value === "" ? "default" : value, value));
  } else {
    input = document.createElement("input");
    if (kind.type === "boolean") input.type = "checkbox";
    if (kind.type === "number" || kind.type === "integer") {
      input.type = "number";
      input.step = kind.type === "integer" ? "1" : "any";
      if (field.minimum !== undefined) input.min = field.minimum;
      if (field.maximum !== undefined) input.max = field.maximum;
    }
    if (kind.type === "array") input.placeholder = "values, separated by spaces";
  }
  input.dataset.option = name;
  input.dataset.kind = kind.type ?? "string";
  label.append(words, " ", input);
  return label;
}

function kindOf(field) {
  const choices = field.anyOf ?? [field];
  return choices.find(one => one.enum) ?? choices.find(one => one.type && one.type !== "null") ?? {};
}

export function values(place) {
  const found = {};
  for (const input of place.querySelectorAll("[data-option]")) {
    const { option, kind } = input.dataset;
    if (kind === "boolean") { if (input.checked) found[option] = true; continue; }
    if (input.value === "") continue;
    if (kind === "number" || kind === "integer") found[option] = Number(input.value);
    else if (kind === "array") found[option] = input.value.trim().split(/\s+/).map(word => isNaN(word) ? word : Number(word));
    else found[option] = input.value;
  }
  return found;
}

export function fill(place, request) {
  for (const input of place.querySelectorAll("[data-option]")) {
    const value = request[input.dataset.option];
    if (input.type === "checkbox") input.checked = value === true;
    else input.value = value === undefined ? "" : Array.isArray(value) ? value.join(" ") : value;
  }
}
