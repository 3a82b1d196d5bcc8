// The page of live video: what its controls do, and what comes back.

import { Connection } from "./connection.js";
import { Joystick } from "./joystick.js";
import { Player } from "./player.js";
import { Tracks } from "./tracks.js";
import * as view from "./view.js";

const EXAMPLES = ["a red cube spinning", "a blue ball bouncing", "a green mug moving in a circle", "a yellow duck sliding to the left"];
const AGAIN_AFTER = 5000; // milliseconds: a session that ends sooner after it was begun is not begun again by itself
const { parts } = view;

const connection = new Connection();
const player = new Player(parts.canvas, (frame) => connection.say({ type: "ack", frame: frame.number }));
const moments = new view.MomentList((frame) => command({ type: "rewind", frame }));
const joystick = new Joystick(parts.joystick, parts.knob, steer);
const tracks = new Tracks(parts.canvas, parts.ink, (painted) => command({ type: "tracks", tracks: painted }));
const page = { key: "", watch: "", canControl: true, isOwner: false, begunAt: 0, state: null, model: null, numbers: {}, isStopped: false };

// Sessions ------------------------------------------------------------------------------------------------------------

/** Begin a session of one's own. */
async function begin(prompt, seed) {
  view.showMessage("");
  view.showVeil("Starting …", "The first frame takes a moment.");
  parts.say.disabled = true;
  try {
    const body = JSON.stringify({ prompt, seed: seed || null });
    const answer = await fetch("/live/sessions", { method: "POST", body });
    const content = await answer.json();
    if (!answer.ok) {
      showEmpty();
      view.showError({ message: content.error, hint: content.hint });
      return;
    }
    page.isOwner = true;
    page.begunAt = performance.now();
    join(content.session);
  } catch {
    view.showVeil("The server does not answer.", "It may have been stopped. Start it again, then try once more.", {
      text: "Try again",
      press: () => begin(prompt, seed),
    });
  } finally {
    parts.say.disabled = false;
  }
}

/** Watch a session, one's own or another's. */
function join(key) {
  page.key = key;
  page.isStopped = false;
  player.reset();
  history.replaceState(null, "", `/live?session=${encodeURIComponent(key)}`);
  view.showStatus("warn", "Connecting …");
  connection.connect(key);
}

function showEmpty() {
  page.state = null;
  page.key = "";
  connection.close();
  parts.screen.dataset.empty = "";
  parts.mjpeg.hidden = true;
  parts.mjpeg.removeAttribute("src");
  history.replaceState(null, "", "/live");
  parts.say.textContent = "Start";
  for (const name of ["play", "record", "keep", "draw", "clear", "speed", "restart", "dice", "copy-watch", "copy-steer"]) {
    parts[name].disabled = true;
  }
  joystick.enable(false);
  view.showStatus("idle", "Ready");
  view.showVeil(
    "What should it show?",
    "Write a sentence, or begin with one of the examples. The video goes on for as long as you like, and follows what you say.",
  );
}

/** The session has ended: begin it again, or say so. */
function sessionEnded() {
  const prompt = page.state?.prompt;
  const seed = page.state?.seed;
  const wasLong = performance.now() - page.begunAt > AGAIN_AFTER;
  if (page.isOwner && prompt && wasLong && document.visibilityState === "visible") {
    begin(prompt, seed).then(() => view.showMessage("The stream had ended, so it was started again."));
    return;
  }
  const again = prompt && page.canControl ? { text: "Start it again", press: () => begin(prompt, seed) } : null;
  showEmpty();
  view.showStatus("bad", "Ended");
  view.showVeil("This stream has ended.", "Streams that nobody watches are closed after a while.", again);
}

// What comes from the server ------------------------------------------------------------------------------------------

connection.addEventListener("open", () => {
  view.showStatus("good", "Connected");
  if (document.visibilityState === "hidden") connection.say({ type: "look", on: false });
});
connection.addEventListener("lost", () => {
  view.showStatus("bad", page.isStopped ? "Server stopped" : "Reconnecting …");
  if (page.isStopped) view.showVeil("The server was stopped.", "This page goes on by itself once it runs again.");
  else view.showMessage("The connection was lost. Trying to get it back …", "warn");
});
connection.addEventListener("gone", sessionEnded);
connection.addEventListener("full", () => {
  view.showStatus("bad", "Full");
  view.showVeil("Too many people watch this stream.", "Try again when somebody has left.", { text: "Try again", press: () => join(page.key) });
});
connection.addEventListener("fallback", async () => {
  view.showStatus("warn", "Connected without WebSocket");
  view.showMessage("This network lets no WebSocket through: the video plays, with fewer figures.", "warn");
  parts.mjpeg.src = `/live/mjpeg?session=${encodeURIComponent(page.key)}`;
  parts.mjpeg.hidden = false;
  view.showVeil(null);
  const answer = await fetch(`/live/sessions?session=${encodeURIComponent(page.key)}`);
  if (answer.ok) showState(await answer.json());
});
connection.addEventListener("frame", ({ detail }) => {
  if (!parts.veil.hidden) view.showVeil(null);
  delete parts.screen.dataset.empty;
  player.take(detail);
});
connection.addEventListener("message", ({ detail }) => receive(detail));

const receivers = {
  hello(message) {
    page.canControl = message.can_control;
    page.watch = message.watch;
    if (message.model) receivers.model(message.model);
    showState(message.state);
    moments.show(message.moments.map((moment) => moment.frame), message.moments);
    if (parts.message.dataset.kind === "warn") view.showMessage("");
  },
  state: showState,
  model(model) {
    page.model = model;
    tracks.fps = model.fps;
    view.setShape(model.width, model.height);
    view.showWords(model.words);
    showControls();
  },
  moments: (message) => moments.show(message.kept, message.new ? [message.new] : []),
  stats(message) {
    page.numbers = {
      denoise: message.denoise_fps,
      end: message.end_to_end_fps,
      trip: message.round_trip_ms,
      drift: message.drift?.colour,
    };
  },
  warning: (message) => view.showMessage(message.message, "warn"),
  error: (message) => view.showError(message),
  bye(message) {
    page.isStopped = message.reason === "server";
  },
};

function receive(message) {
  receivers[message.type]?.(message);
}

function showState(state) {
  const isNew = page.state?.prompt !== state.prompt;
  page.state = state;
  if (isNew && document.activeElement !== parts.prompt) parts.prompt.value = state.prompt;
  if (document.activeElement !== parts.seed) parts.seed.value = state.seed;
  parts.speed.value = String(state.speed);
  parts.canvas.setAttribute("aria-label", `Live video: ${state.prompt}`);
  const others = state.viewers - 1;
  parts.viewers.textContent = others > 0 ? `You and ${others} other${others === 1 ? "" : "s"} watch.` : "Only you watch.";
  view.showFilms(state.films, page.key);
  showControls();
  showPhase(state);
}

function showPhase(state) {
  if (state.phase === "loading") {
    view.showVeil("Loading the student …", "The first time takes a few seconds.");
  } else if (state.phase === "failed") {
    const isOurs = page.canControl;
    const retry = isOurs ? { text: "Try again", press: () => command({ type: "seed", value: state.seed }) } : null;
    view.showVeil(state.problem?.message ?? "The stream has failed.", state.problem?.hint ?? "", retry);
  } else if (state.resting) {
    view.showVeil("Still there?", "Nobody has steered this video for a while, so it was paused.", page.canControl ? { text: "Go on", press: () => command({ type: "play" }) } : null);
  } else if (player.frames > 0 || state.paused) {
    view.showVeil(null);
  }
}

function showControls() {
  const { state, model, canControl } = page;
  const plays = canControl && state?.phase === "running";
  for (const name of ["play", "record", "keep", "speed", "dice", "restart"]) parts[name].disabled = !plays;
  parts.restart.disabled = parts.dice.disabled = !canControl || !state;
  const steers = Boolean(plays && model?.has_controls);
  parts.draw.disabled = parts.clear.disabled = !steers;
  joystick.enable(steers);
  parts.prompt.disabled = parts.seed.disabled = !canControl;
  parts.say.disabled = !canControl;
  parts.say.textContent = state ? "Change" : "Start";
  parts["copy-watch"].disabled = !state;
  parts["copy-steer"].disabled = !state || !canControl;
  for (const chip of parts.examples.children) chip.disabled = !canControl;
  if (!canControl) view.showStatus("good", "Watching");
  if (!state) return;
  const isStill = state.paused || state.resting;
  view.label(parts.play, isStill ? "i-play" : "i-pause", isStill ? "Play" : "Pause");
  parts.record.setAttribute("aria-pressed", String(state.recording));
  view.label(parts.record, state.recording ? "i-stop" : "i-record", state.recording ? "Stop" : "Record");
}

// What controls do ----------------------------------------------------------------------------------------------------

/** Send a command; an error is shown, and returned. */
async function command(message) {
  const answer = await connection.ask(message);
  if (answer.type === "error") view.showError(answer);
  else if (parts.message.dataset.kind === "bad") view.showMessage("");
  if (connection.isFallback) {
    const state = await fetch(`/live/sessions?session=${encodeURIComponent(page.key)}`);
    if (state.ok) showState(await state.json());
  }
  return answer;
}

async function say(text) {
  if (!text.trim()) {
    view.showMessage("Write what it should show, for example: a red cube spinning.", "bad");
    parts.prompt.focus();
    return;
  }
  if (!page.state) {
    await begin(text, parts.seed.value.trim());
    return;
  }
  const at = performance.now();
  const answer = await command({ type: "prompt", text });
  if (answer.type !== "ok") return;
  player.expect(answer.control ?? 0, at);
  view.showMessage(answer.warnings?.length ? answer.warnings.join(" ") : `Now: ${text}`, answer.warnings?.length ? "warn" : "");
}

function steer({ x, y }) {
  const sideways = parts.sideways.value;
  command({ type: "camera", dolly: y, orbit: sideways === "orbit" ? x : 0, pan: sideways === "pan" ? x : 0 });
}

function setDrawing(isOn) {
  tracks.isOn = isOn;
  parts.draw.setAttribute("aria-pressed", String(isOn));
  parts.screen.dataset.tool = isOn ? "draw" : "camera";
  if (isOn) view.showMessage("Draw on the video: a point follows your stroke, as fast as you draw it.");
}

async function copy(key, what) {
  const link = `${location.origin}/live?session=${encodeURIComponent(key)}`;
  try {
    await navigator.clipboard.writeText(link);
    view.showMessage(`The link to ${what} is copied.`);
  } catch {
    view.showMessage(`The link to ${what}: ${link}`);
  }
}

function setUpControls() {
  document.getElementById("prompt-form").addEventListener("submit", (event) => {
    event.preventDefault();
    say(parts.prompt.value);
  });
  parts.prompt.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    say(parts.prompt.value);
  });
  document.getElementById("seed-form").addEventListener("submit", (event) => {
    event.preventDefault();
    command({ type: "seed", value: parts.seed.value.trim() || "0" });
  });
  parts.dice.addEventListener("click", () => {
    parts.seed.value = String(Math.floor(2 ** 31 * Math.random()));
    command({ type: "seed", value: parts.seed.value });
  });
  parts.play.addEventListener("click", () => command({ type: page.state?.paused || page.state?.resting ? "play" : "pause" }));
  parts.record.addEventListener("click", () => command({ type: "record", on: !page.state?.recording }));
  parts.keep.addEventListener("click", () => command({ type: "moment" }));
  parts.speed.addEventListener("change", () => command({ type: "speed", value: Number(parts.speed.value) }));
  parts.draw.addEventListener("click", () => setDrawing(!tracks.isOn));
  parts.clear.addEventListener("click", () => {
    tracks.clear();
    command({ type: "tracks", tracks: [] });
  });
  parts.canvas.addEventListener("keydown", (event) => {
    if (event.key === " " && !parts.play.disabled) {
      event.preventDefault();
      parts.play.click();
    }
  });
  parts["copy-watch"].addEventListener("click", () => copy(page.watch, "watch"));
  parts["copy-steer"].addEventListener("click", () => copy(page.key, "steer"));
  joystick.listen(parts.canvas, () => parts.canvas.clientWidth / 4, () => !tracks.isOn);
}

function setUpLooks() {
  view.setUpTheme();
  const scaling = view.recall("dreamkit-scaling") === "crisp" ? "crisp" : "smooth";
  parts.scaling.value = parts.screen.dataset.scaling = scaling;
  parts.scaling.addEventListener("change", () => {
    parts.screen.dataset.scaling = parts.scaling.value;
    view.remember("dreamkit-scaling", parts.scaling.value);
  });
  const showStats = (isOn) => {
    parts.overlay.hidden = !isOn;
    parts.stats.setAttribute("aria-pressed", String(isOn));
  };
  showStats(view.recall("dreamkit-stats") === "on");
  parts.stats.addEventListener("click", () => {
    showStats(parts.overlay.hidden);
    view.remember("dreamkit-stats", parts.overlay.hidden ? "off" : "on");
  });
  setInterval(() => {
    if (parts.overlay.hidden || document.visibilityState === "hidden") return;
    view.showNumbers({ ...page.numbers, shown: player.fps, latency: player.latency });
  }, 500);
  for (const text of EXAMPLES) {
    const chip = document.createElement("button");
    chip.type = "button";
    chip.textContent = text;
    chip.onclick = () => {
      parts.prompt.value = text;
      say(text);
    };
    parts.examples.append(chip);
  }
  document.addEventListener("visibilitychange", () => {
    const isSeen = document.visibilityState === "visible";
    connection.say({ type: "look", on: isSeen });
    if (isSeen) connection.hurry();
  });
  window.addEventListener("online", () => connection.hurry());
}

setDrawing(false);
setUpControls();
setUpLooks();
const wanted = new URLSearchParams(location.search).get("session");
if (wanted) join(wanted);
else showEmpty();
window.dreamkit = { page, player, connection }; // for benchmarks, and for those who are curious
