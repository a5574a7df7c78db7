// The dictation page: joins the controls, the sound, the live stream and the passages.
import { FILE_RATE_HZ, Microphone, Tape, decodeFile } from "./audio.js";
import { LiveStream } from "./live.js";
import { Passages, text } from "./passages.js";
import { placed, say, speak } from "./strings.js";

const KEPT_S = 600;
const at = (id) => document.getElementById(id);
const passages = new Passages(at("passages"), say);
let recording = null; // {microphone, stream} while the microphone is on
let busy = false; // while a stream is being finished or a file read
let offsetS = 0; // where the next stream begins on the page's own clock
let receipt = null;

function tell(message, bad = false, place = "status") {
  at(place).textContent = message;
  at(place).classList.toggle("bad", bad);
}

function showPartial(stable, tentative) {
  at("stable").textContent = stable;
  at("tentative").textContent = tentative;
}

function terms() {
  return at("terms").value.split("\n").map((term) => term.trim()).filter((term) => term !== "");
}

// A stream whose events go to the page; `tape` keeps its sound.
function listen(tape, onOver) {
  const begunS = offsetS;
  let count = 0;
  const over = (message, bad) => {
    showPartial("", "");
    offsetS = begunS + tape.end / tape.rateHz;
    tell(message, bad);
    onOver();
  };
  return new LiveStream((event) => {
    if (event.type === "partial") showPartial(event.stable, event.tentative);
    if (event.type === "final") {
      showPartial("", "");
      if (event.text !== "") {
        count += 1;
        passages.add(event, tape, begunS);
      }
    }
    if (event.type === "done") over(count > 0 ? say("written", count) : say("nothing"), false);
    if (event.type === "error") over(say("failed", event.error.code), true);
    if (event.type === "lost") over(say("lost"), true);
  });
}

function showRecording(isOn) {
  at("record").textContent = isOn ? say("stop") : placed("record");
  at("record").setAttribute("aria-pressed", String(isOn));
}

async function startRecording() {
  const microphone = new Microphone();
  let tape = null;
  let stream = null;
  const waiting = [];
  const take = (samples) => {
    tape.add(samples);
    stream.send(samples);
  };
  busy = true;
  try {
    // What is said before the line is open waits for it.
    await microphone.start((samples) => (recording ? take(samples) : waiting.push(samples)));
  } catch {
    busy = false;
    tell(say("microphone"), true);
    return;
  }
  tape = new Tape(microphone.rateHz, KEPT_S);
  stream = listen(tape, () => {
    const wasOn = recording;
    recording = null;
    busy = false;
    showRecording(false);
    if (wasOn) wasOn.microphone.stop();
  });
  try {
    await stream.open(microphone.rateHz, terms());
  } catch {
    await microphone.stop();
    return;
  }
  waiting.forEach(take);
  recording = { microphone, stream };
  busy = false;
  showRecording(true);
  tell(say("listening"));
}

async function stopRecording() {
  const { microphone, stream } = recording;
  recording = null;
  busy = true;
  await microphone.stop();
  showRecording(false);
  tell(say("writing"));
  stream.finish();
}

async function toggleRecording() {
  if (busy) return;
  await (recording ? stopRecording() : startRecording());
}

async function readFile(file) {
  if (busy || recording) return;
  busy = true;
  tell(say("reading"));
  let samples;
  try {
    samples = await decodeFile(file);
  } catch {
    busy = false;
    tell(say("unreadable"), true);
    return;
  }
  const tape = new Tape(FILE_RATE_HZ, KEPT_S);
  const stream = listen(tape, () => { busy = false; });
  try {
    await stream.open(FILE_RATE_HZ, terms());
    await stream.sendAll(samples, (piece) => tape.add(piece));
    stream.finish();
  } catch {
    // The stream has told why.
  }
}

function save(content, name, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

async function keepCorrections(event) {
  event.preventDefault();
  const boxes = passages.corrected();
  let kept = 0;
  let problem = boxes.length === 0 ? say("none_corrected") : "";
  for (const box of boxes) {
    const sound = box.tape.cut(box.final.start_s, box.final.end_s);
    if (sound === null) {
      problem = say("too_old");
      continue;
    }
    const refusal = await keepOne(sound, text(box));
    if (refusal !== "") {
      problem = refusal;
      break;
    }
    passages.kept(box);
    kept += 1;
  }
  at("consent").checked = false; // each time is agreed to anew
  tell([kept > 0 ? say("kept", kept) : "", problem].join(" ").trim(), problem !== "", "kept");
}

// Keep one passage; returns what was wrong, or "".
async function keepOne(sound, written) {
  const body = new FormData();
  body.append("file", sound, "passage.wav");
  body.append("text", written);
  body.append("subject", at("subject").value);
  body.append("consent", String(at("consent").checked));
  try {
    const reply = await fetch("/dictation/corrections", { method: "POST", body });
    return reply.ok ? "" : say("failed", (await reply.json()).error.code);
  } catch {
    return say("lost");
  }
}

function showReceipt() {
  at("receipt").textContent = receipt === null ? say("nothing_left") : say("receipt", receipt);
}

function choose(language) {
  speak(language);
  localStorage.setItem("language", language);
  showRecording(recording !== null);
  showReceipt();
  passages.boxes().forEach((box) => passages.name(box));
}

async function showSite() {
  const reply = await fetch("/dictation/state");
  if (!reply.ok) return;
  const state = await reply.json();
  at("site").textContent = `· ${state.site}`;
  receipt = state.last_receipt;
  showReceipt();
}

const actions = {
  record: toggleRecording,
  doubt: () => { if (!passages.nextUnsure()) tell(say("sure")); },
  copy: async () => {
    await navigator.clipboard.writeText(passages.asText());
    tell(say("copied"));
  },
  txt: () => save(passages.asText(), "dictation.txt", "text/plain"),
  srt: () => save(passages.asSubtitles(), "dictation.srt", "application/x-subrip"),
  clear: () => { passages.clear(); offsetS = 0; tell(""); },
};
for (const [id, action] of Object.entries(actions)) at(id).addEventListener("click", action);
const shortcuts = { KeyR: actions.record, KeyU: actions.doubt, KeyC: actions.copy };
document.addEventListener("keydown", (event) => {
  const action = event.altKey && !event.ctrlKey && !event.metaKey && shortcuts[event.code];
  if (action) {
    event.preventDefault();
    action();
  }
});
at("file").addEventListener("change", () => {
  if (at("file").files.length > 0) readFile(at("file").files[0]);
  at("file").value = "";
});
at("drop").addEventListener("dragover", (event) => {
  event.preventDefault();
  at("drop").classList.add("over");
});
at("drop").addEventListener("dragleave", () => at("drop").classList.remove("over"));
at("drop").addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  if (event.dataTransfer.files.length > 0) readFile(event.dataTransfer.files[0]);
});
at("correction").addEventListener("submit", keepCorrections);
for (const button of document.querySelectorAll("[data-language]")) {
  button.addEventListener("click", () => choose(button.dataset.language));
}
const preferred = navigator.language.startsWith("zh") ? "zh" : "en";
choose(localStorage.getItem("language") ?? preferred);
showSite();
