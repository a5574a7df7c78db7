// The written passages: one editable box each, unsure words marked, and what becomes of the text.
const UNSURE_BELOW = 0.5;

export class Passages {
  constructor(list, say) {
    this.list = list;
    this.say = say;
    this.number = 0;
  }

  add(final, tape, offsetS) {
    this.number += 1;
    const item = document.createElement("li");
    const time = document.createElement("time");
    time.textContent = clock(final.start_s + offsetS);
    const box = document.createElement("div");
    box.className = "passage";
    box.contentEditable = "plaintext-only";
    box.setAttribute("role", "textbox");
    box.setAttribute("aria-multiline", "true");
    box.dataset.number = String(this.number);
    this.name(box);
    box.append(...marked(final));
    box.addEventListener("input", () => this.edited(box));
    Object.assign(box, { final, tape, offsetS, heard: box.textContent });
    item.append(time, box);
    this.list.append(item);
  }

  name(box) {
    box.setAttribute("aria-label", this.say("passage", box.dataset.number));
  }

  edited(box) {
    const { anchorNode, anchorOffset } = getSelection();
    for (const word of box.querySelectorAll("mark")) {
      if (word.textContent !== word.dataset.heard) word.replaceWith(...word.childNodes);
    }
    if (box.contains(anchorNode)) getSelection().collapse(anchorNode, anchorOffset);
    box.classList.toggle("corrected", text(box) !== box.heard);
  }

  boxes() {
    return [...this.list.querySelectorAll(".passage")];
  }

  written() {
    return this.boxes().filter((box) => text(box) !== "");
  }

  corrected() {
    return this.written().filter((box) => box.classList.contains("corrected"));
  }

  kept(box) {
    box.heard = text(box);
    box.classList.remove("corrected");
  }

  // Put the caret on the next unsure word after it; false where there is none.
  nextUnsure() {
    const words = [...this.list.querySelectorAll("mark")];
    if (words.length === 0) return false;
    const caret = getSelection().anchorNode;
    const after = words.find((word) => caret !== null && !word.contains(caret)
      && caret.compareDocumentPosition(word) & Node.DOCUMENT_POSITION_FOLLOWING);
    const word = after ?? words[0];
    word.closest(".passage").focus();
    getSelection().selectAllChildren(word);
    return true;
  }

  asText() {
    return this.written().map(text).join("\n");
  }

  asSubtitles() {
    const cues = this.written().map((box, index) => {
      const from = stamp(box.final.start_s + box.offsetS);
      const to = stamp(box.final.end_s + box.offsetS);
      return `${index + 1}\n${from} --> ${to}\n${text(box).replace(/\s*\n\s*/g, " ")}\n`;
    });
    return cues.join("\n");
  }

  clear() {
    this.list.replaceChildren();
    this.number = 0;
  }
}

export function text(box) {
  return box.textContent.trim();
}

// The final text as nodes, with the unsure words in <mark>. Words are found in it one by one.
function marked(final) {
  const nodes = [];
  let at = 0;
  for (const word of final.words) {
    const found = final.text.indexOf(word.word, at);
    if (found < 0 || word.confidence >= UNSURE_BELOW) continue;
    nodes.push(document.createTextNode(final.text.slice(at, found)));
    const mark = document.createElement("mark");
    mark.textContent = word.word;
    mark.dataset.heard = word.word;
    mark.title = `${Math.round(word.confidence * 100)} %`;
    nodes.push(mark);
    at = found + word.word.length;
  }
  nodes.push(document.createTextNode(final.text.slice(at)));
  return nodes;
}

function clock(seconds) {
  const whole = Math.floor(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

function stamp(seconds) {
  const ms = Math.round(seconds * 1000);
  const pad = (value, width) => String(value).padStart(width, "0");
  const [hours, minutes] = [Math.floor(ms / 3600000), Math.floor(ms / 60000) % 60];
  return `${pad(hours, 2)}:${pad(minutes, 2)}:${pad(Math.floor(ms / 1000) % 60, 2)},${pad(ms % 1000, 3)}`;
}
