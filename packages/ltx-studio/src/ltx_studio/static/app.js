// The page: a composer, a queue that moves, a gallery.
import * as api from "./api.js";
import { draw, fill, offer, values } from "./options.js";
import { Storyboard } from "./storyboard.js";

const $ = id => document.getElementById(id);
const jobs = new Map(); // id -> the server's video
const rows = new Map(); // id -> element in the queue
let attachments = []; // {name, kind, url}
let known = {}; // fields of a request
const pictures = () => attachments.filter(one => one.kind === "image");
const board = new Storyboard($("scenes"), $("scene-template"), pictures, () => replan());
let lastShown = null;

const SIZES = ["", "256x256", "512x512", "768x512", "512x768", "1024x576", "1280x704", "704x1280", "1536x1024", "1920x1088"];

// Composer ------------------------------------------------------------------------------------------------------------

function request() {
  const chosen = values($("options"));
  const given = { ...chosen, prompt: $("prompt").value.trim(), model: $("model").value };
  if ($("size").value) given.size = $("size").value;
  if (board.cards.length) {
    given.pipeline = "long";
    given.storyboard = board.scenes;
  } else if ($("num_frames").value) given.num_frames = Number($("num_frames").value);
  const taken = new Set([...board.used, ...Object.values(chosen)]);
  const free = attachments.filter(one => !taken.has(one.name));
  const pictures = free.filter(one => one.kind === "image");
  if (pictures.length) {
    const frames = Number($("num_frames").value) || 1;
    given.images = pictures.map((one, index) => [one.name, one.frame ?? spread(index, pictures.length, frames)]);
  }
  const clip = free.find(one => one.kind === "video");
  if (clip) given.video_path = clip.name;
  const sound = free.find(one => one.kind === "audio");
  if (sound) given.audio_path = sound.name;
  return given;
}

function spread(index, count, frames) {
  return count < 2 || frames < 2 ? 0 : Math.round((index * (frames - 1)) / (count - 1));
}

function taskWords() {
  if (board.cards.length) return "scene after scene; the text above stands before each";
  const kinds = attachments.map(one => one.kind);
  if (kinds.includes("video")) return "gives the clip sound; with seconds to add it is extended, with a span retaken";
  if (kinds.includes("audio")) return "makes pictures for the sound";
  const pictures = kinds.filter(kind => kind === "image").length;
  return pictures > 1 ? "moves through the pictures" : pictures ? "starts from the picture" : "from the text alone";
}

let planTimer = 0;
function replan() {
  $("task").textContent = taskWords();
  clearTimeout(planTimer);
  planTimer = setTimeout(async () => {
    const asked = request();
    if (!asked.prompt && !attachments.length && !board.cards.length) { $("plan").textContent = ""; return; }
    try {
      const found = await api.plan(asked);
      const memory = found.peak_bytes ? `, about ${bytes(found.peak_bytes)}` : "";
      const seconds = `${found.seconds.toFixed(2)} s at ${found.fps} fps`;
      $("plan").textContent = `${found.size}, ${seconds}, ${found.steps} steps${memory}${expected(found)}`;
      $("problem").textContent = "";
    } catch (error) { $("plan").textContent = ""; $("problem").textContent = error.message; }
  }, 600);
}

function bytes(count) {
  const [unit, size] = count >= 1e9 ? ["GB", 1e9] : ["MB", 1e6];
  return `${Number((count / size).toPrecision(2))} ${unit}`;
}

function expected(plan) {
  // From clips of this page that were made: seconds per pixel and step.
  const made = [...jobs.values()].filter(one => one.ltx.made_in && one.ltx.frames);
  if (!made.length) return "";
  const rate = made.reduce((sum, one) => sum + one.ltx.made_in / (one.ltx.width * one.ltx.height * one.ltx.frames), 0) / made.length;
  const [width, height] = plan.size.split("x").map(Number);
  return `, about ${Math.max(1, Math.round(rate * width * height * plan.frames))} s`;
}

async function submit(event) {
  event?.preventDefault();
  $("problem").textContent = "";
  const asked = request();
  const count = Math.max(1, Number($("variations").value) || 1);
  const seed = $("seed").value === "" ? -1 : Number($("seed").value);
  try {
    for (let index = 0; index < count; index++) {
      const own = seed >= 0 ? seed + index : Math.floor(Math.random() * 2 ** 31);
      update(await api.create({ ...asked, seed: own }));
    }
  } catch (error) { $("problem").textContent = error.message; }
}

async function attach(files) {
  for (const file of files) {
    try {
      const { name } = await api.upload(file, file.name);
      attachments.push({ name, kind: kindOfName(name), url: URL.createObjectURL(file), label: file.name });
    } catch (error) { $("problem").textContent = error.message; }
  }
  showAttachments();
}

function kindOfName(name) {
  const suffix = name.split(".").pop();
  if (["png", "jpg", "webp"].includes(suffix)) return "image";
  return ["wav", "mp3", "flac", "ogg"].includes(suffix) ? "audio" : "video";
}

function showAttachments() {
  $("attachments").replaceChildren(...attachments.map(one => {
    const box = Object.assign(document.createElement("span"), { className: "attachment" });
    if (one.url && one.kind === "image") box.append(Object.assign(document.createElement("img"), { src: one.url, alt: one.label }));
    else box.append(one.label);
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: "Remove" });
    button.addEventListener("click", () => { attachments = attachments.filter(other => other !== one); showAttachments(); });
    box.append(button);
    return box;
  }));
  offer($("options"), attachments);
  board.refresh();
}

// Queue ---------------------------------------------------------------------------------------------------------------

function update(video) {
  jobs.set(video.id, video);
  const ended = !["queued", "in_progress"].includes(video.status);
  if (ended) { rows.get(video.id)?.remove(); rows.delete(video.id); showClip(video); }
  else showJob(video);
  status();
}

function showJob(video) {
  let row = rows.get(video.id);
  if (!row) {
    row = $("job-template").content.firstElementChild.cloneNode(true);
    row.dataset.id = video.id;
    row.querySelector(".text").textContent = video.prompt;
    row.querySelector("progress").setAttribute("aria-label", `Progress of ${video.prompt}`);
    row.querySelector(".cancel").addEventListener("click", async event => {
      event.target.disabled = true;
      event.target.textContent = "Stopping";
      try { update(await api.cancel(video.id)); } catch (error) { $("problem").textContent = error.message; }
    });
    rows.set(video.id, row);
    $("queue").append(row);
  }
  if (video.status === "queued") row.querySelector(".hint").textContent = "waiting";
  row.querySelector("progress").value = video.progress;
}

async function onEvent(kind, event) {
  if (kind === "open") { await refresh(); return; }
  if (kind === "lost") { $("status").textContent = "the server is not there; trying again"; return; }
  const row = rows.get(event.id);
  if (kind === "progress" && row) {
    row.querySelector("progress").value = 100 * event.progress;
    const step = event.step ? `, step ${event.step} of ${event.total}` : "";
    const eta = event.eta !== undefined ? `, ${Math.ceil(event.eta)} s left` : "";
    row.querySelector(".hint").textContent = `${event.phase}${step}${eta}`;
    if (event.preview) showPreview(row.querySelector(".preview"), event.preview, event.preview_frames);
    return;
  }
  if (kind !== "note") update(await api.get(event.id).catch(() => ({ ...jobs.get(event.id), status: "failed" })));
}

// A strip of frames side by side, played by moving it behind a window one frame wide.
function showPreview(place, strip, frames) {
  const image = Object.assign(new Image(), { src: strip });
  image.addEventListener("load", () => {
    place.style.setProperty("--frames", frames);
    place.style.aspectRatio = `${image.naturalWidth / frames} / ${image.naturalHeight}`;
    place.style.backgroundImage = `url("${strip}")`;
    place.hidden = false;
  }, { once: true });
}

function status() {
  const waiting = rows.size;
  $("status").textContent = waiting ? `${waiting} in the queue` : "ready";
}

// Gallery -------------------------------------------------------------------------------------------------------------

function showClip(video) {
  const before = document.querySelector(`.clip[data-id="${video.id}"]`);
  const item = $("clip-template").content.firstElementChild.cloneNode(true);
  item.dataset.id = video.id;
  item.querySelector(".text").textContent = video.error ? `${video.prompt}: ${video.error.message}` : video.prompt;
  item.classList.toggle("failed", video.ltx?.status === "failed");
  const player = item.querySelector("video");
  if (video.status === "completed") {
    player.poster = api.content(video.id, "thumbnail");
    player.src = api.content(video.id);
    item.addEventListener("pointerenter", () => player.play().catch(() => {}));
    item.addEventListener("pointerleave", () => { player.pause(); player.muted = true; });
    player.addEventListener("click", () => { player.muted = !player.muted; player.play().catch(() => {}); });
    player.setAttribute("aria-label", video.prompt);
  } else player.remove();
  const star = item.querySelector(".star");
  mark(star, video.ltx?.favourite);
  star.addEventListener("click", async () => {
    const now = await api.favour(video.id, star.getAttribute("aria-pressed") !== "true");
    jobs.set(video.id, now); mark(star, now.ltx.favourite);
  });
  item.querySelector(".open").addEventListener("click", () => open(video.id));
  item.querySelector(".pick input").addEventListener("change", picks);
  if (before) before.replaceWith(item);
  else insert(item, video);
}

function insert(item, video) {
  const later = [...$("gallery").children].find(other => (jobs.get(other.dataset.id)?.created_at ?? 0) < video.created_at);
  $("gallery").insertBefore(item, later ?? null);
}

function mark(star, on) {
  star.setAttribute("aria-pressed", String(Boolean(on)));
  star.textContent = on ? "★" : "☆";
}

function picked() { return [...document.querySelectorAll(".pick input:checked")].map(box => box.closest(".clip").dataset.id); }
function picks() { $("compare").disabled = picked().length !== 2; }

function compare() {
  const pair = Object.assign(document.createElement("div"), { className: "pair" });
  for (const id of picked()) pair.append(player(id));
  const [first, second] = pair.querySelectorAll("video");
  first.addEventListener("play", () => { second.currentTime = first.currentTime; second.play(); });
  first.addEventListener("pause", () => second.pause());
  const [a, b] = picked().map(id => jobs.get(id).ltx.request);
  const keys = [...new Set([...Object.keys(a), ...Object.keys(b)])];
  const differs = keys.filter(key => JSON.stringify(a[key]) !== JSON.stringify(b[key]));
  const text = differs.map(key => `${key}: ${JSON.stringify(a[key])} | ${JSON.stringify(b[key])}`).join("\n");
  view(pair, Object.assign(document.createElement("pre"), { textContent: text || "the same request" }));
}

function player(id) {
  const video = Object.assign(document.createElement("video"), { controls: true, loop: true, src: api.content(id) });
  video.setAttribute("aria-label", jobs.get(id)?.prompt ?? "clip");
  return video;
}

function open(id) {
  const video = jobs.get(id);
  const actions = Object.assign(document.createElement("div"), { className: "row" });
  const action = (text, run) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: text });
    button.addEventListener("click", run);
    actions.append(button);
  };
  action("Again", () => compose(video, video.ltx.seed ?? video.ltx.request.seed ?? -1));
  const recipe = Object.assign(document.createElement("pre"), { textContent: JSON.stringify({ ...video.ltx.request, seed: video.ltx.seed }, null, 2) });
  if (video.status !== "completed") {
    actions.append(deleteButton(id));
    view(Object.assign(document.createElement("p"), { textContent: video.error?.message ?? "" }), actions, recipe);
    return;
  }
  const main = player(id);
  action("Vary", () => { compose(video, -1); submit(); });
  if (known.pipeline.enum.includes("upscale")) action("Refine", () => refine(video));
  action("Extend", () => { compose(video, -1); attachments = [{ name: id, kind: "video", label: "this clip" }]; option("extend_seconds", 1); showAttachments(); });
  action("Use first frame", () => frame(id, 0));
  action("Use last frame", () => frame(id, 1));
  const link = Object.assign(document.createElement("a"), { href: api.content(id), download: `${id}.mp4`, textContent: "Download", className: "button" });
  actions.append(link, deleteButton(id));
  const sheet = Object.assign(document.createElement("img"), { src: api.content(id, "spritesheet"), alt: "Frames of the clip", loading: "lazy" });
  view(main, actions, sheet, recipe);
  main.play().catch(() => {});
}

// The same clip, twice as large, its detail made anew.
async function refine(video) {
  $("viewer").close();
  try { update(await api.create({ model: video.model, pipeline: "upscale", video_path: video.id, upscale: 2 })); }
  catch (error) { $("problem").textContent = error.message; }
}

function deleteButton(id) {
  const button = Object.assign(document.createElement("button"), { type: "button", textContent: "Delete" });
  button.addEventListener("click", async () => {
    await api.remove(id);
    jobs.delete(id);
    document.querySelector(`.clip[data-id="${id}"]`)?.remove();
    $("viewer").close();
  });
  return button;
}

function view(...parts) { $("viewer-body").replaceChildren(...parts); if (!$("viewer").open) $("viewer").showModal(); }

function compose(video, seed) {
  const asked = video.ltx.request;
  $("prompt").value = asked.prompt ?? "";
  $("seed").value = seed < 0 ? "" : seed;
  $("num_frames").value = asked.num_frames ?? "";
  $("size").value = asked.width ? `${asked.width}x${asked.height}` : "";
  fill($("options"), asked);
  attachments = (asked.images ?? []).map(one => ({ name: one.path, frame: one.frame_idx, kind: "image", label: "picture", url: "" }));
  if (asked.video_path) attachments.push({ name: asked.video_path, kind: "video", label: "clip" });
  if (asked.audio_path) attachments.push({ name: asked.audio_path, kind: "audio", label: "sound" });
  for (const { image } of (asked.storyboard ?? []).flatMap(scene => scene.keyframes))
    attachments.push({ name: image, kind: "image", label: "picture", url: "" });
  board.scenes = asked.storyboard ?? [];
  showAttachments();
  $("viewer").close();
  $("prompt").focus();
}

function option(name, value) {
  const input = document.querySelector(`[data-option="${name}"]`);
  if (input) input.value = value;
}

async function frame(id, end) {
  const video = Object.assign(document.createElement("video"), { src: api.content(id), muted: true, preload: "auto" });
  await new Promise(done => video.addEventListener("loadeddata", done, { once: true }));
  if (end) { video.currentTime = Math.max(0, video.duration - 0.01); await new Promise(done => video.addEventListener("seeked", done, { once: true })); }
  const canvas = Object.assign(document.createElement("canvas"), { width: video.videoWidth, height: video.videoHeight });
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await new Promise(done => canvas.toBlob(done, "image/png"));
  $("viewer").close();
  await attach([new File([blob], end ? "last-frame.png" : "first-frame.png", { type: "image/png" })]);
}

async function refresh(after = null) {
  const page = await api.list(after);
  for (const video of page.data.toReversed()) update(video);
  lastShown = page.last_id;
  $("more").hidden = !page.has_more;
}

// Start ---------------------------------------------------------------------------------------------------------------

function keys(event) {
  const writing = event.target.closest("input, textarea, select, dialog[open]");
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { submit(event); return; }
  if (writing || event.ctrlKey || event.metaKey || event.altKey) return;
  const clip = event.target.closest?.(".clip");
  if (event.key === "/") { event.preventDefault(); $("prompt").focus(); }
  else if (event.key === "?") $("shortcuts").showModal();
  else if (event.key === "a") $("advanced").open = !$("advanced").open;
  else if (clip && event.target === clip && event.key === "Enter") open(clip.dataset.id);
  else if (clip && event.target === clip && event.key === " ") {
    event.preventDefault();
    const video = clip.querySelector("video");
    if (video) video.paused ? video.play() : video.pause();
  }
}

function dropping() {
  let depth = 0;
  const show = on => { $("drop").hidden = !on; };
  addEventListener("dragenter", event => { if (event.dataTransfer?.types.includes("Files")) { depth++; show(true); } });
  addEventListener("dragleave", () => { depth = Math.max(0, depth - 1); show(depth > 0); });
  addEventListener("dragover", event => event.preventDefault());
  addEventListener("drop", event => { event.preventDefault(); depth = 0; show(false); attach(event.dataTransfer.files); });
}

async function login() {
  $("login").showModal();
  await new Promise(done => $("login-form").addEventListener("submit", event => {
    event.preventDefault();
    document.cookie = `ltx_key=${encodeURIComponent($("key").value)}; SameSite=Strict; path=/`;
    $("login").close();
    done();
  }, { once: true }));
}

async function start() {
  for (;;) {
    try { var [models, schema] = await Promise.all([api.models(), api.schema()]); break; }
    catch (error) { if (error.status !== 401) throw error; await login(); }
  }
  known = schema;
  $("add-scene").hidden = !known.storyboard;
  $("add-scene").addEventListener("click", () => board.add().querySelector("textarea").focus());
  for (const model of models.data) $("model").append(new Option(model.id, model.id));
  for (const size of SIZES) $("size").append(new Option(size || "the model's own", size));
  draw($("options"), schema);
  $("composer").addEventListener("submit", submit);
  $("composer").addEventListener("input", replan);
  $("file").addEventListener("change", event => { attach(event.target.files); event.target.value = ""; });
  $("help").addEventListener("click", () => $("shortcuts").showModal());
  $("compare").addEventListener("click", compare);
  $("more").addEventListener("click", () => refresh(lastShown));
  $("viewer").addEventListener("close", () => $("viewer-body").replaceChildren());
  addEventListener("keydown", keys);
  dropping();
  replan();
  api.follow(onEvent);
}

start().catch(error => { $("problem").textContent = error.message; });
