// The page's words. English ones of fixed places stand in the page itself.
const CHINESE = {
  skip: "跳到文本",
  title: "听写",
  promise: "音频绝不离开本楼",
  promise_text: "您说的话只发送到本机构自己的计算机，在那里转写后即忘，除非您在下方选择保留。",
  all_receipts: "本机构的全部收据、预算与发布",
  speak: "说话或拖入文件",
  record: "录音",
  file: "或选择音频文件",
  terms: "预期词语，每行一个（姓名、药名）",
  text: "文本",
  help: "每一段都可以编辑。模型没有把握的词带下划线：Alt+U 转到下一个。",
  doubt: "下一个存疑词",
  copy: "复制",
  txt: "存为文本",
  srt: "存为字幕",
  clear: "清空",
  keep: "保留更正用于训练",
  keep_text: "您更正过的段落可以连同声音保留在本机构，并参加下一轮训练。它们绝不离开本楼。",
  subject: "说话人（本机构自己的编号）",
  consent: "此人已同意将这些录音及其文本保留在此用于训练",
  keep_button: "保留更正过的段落",
};

const SENTENCES = {
  en: {
    stop: "Stop",
    listening: "Listening. Alt+R stops.",
    reading: "Reading the file…",
    writing: "Writing the rest…",
    written: (count) => `${count} passages written.`,
    nothing: "No speech was heard.",
    copied: "Copied.",
    sure: "No unsure word is left.",
    passage: (number) => `Passage ${number}`,
    microphone: "The microphone cannot be used. Allow it in the browser, or drop a file.",
    unreadable: "The browser cannot read this file as audio.",
    lost: "The service did not answer. Is it still running?",
    failed: (code) => `The service refused: ${code}.`,
    none_corrected: "No passage was corrected.",
    kept: (count) => `${count} corrected passages are kept for the next round.`,
    too_old: "The sound of an early passage is gone; it was not kept.",
    nothing_left: "Nothing has ever left this site.",
    receipt: (r) => `The last thing that left: ${r.size_bytes} bytes of sealed numbers, round `
      + `${r.round} of job ${r.job}, ${r.at}, SHA-256 ${r.sha256}. No recording, no text.`,
  },
  zh: {
    stop: "停止",
    listening: "正在听。Alt+R 停止。",
    reading: "正在读取文件…",
    writing: "正在写完其余部分…",
    written: (count) => `已写下 ${count} 段。`,
    nothing: "没有听到语音。",
    copied: "已复制。",
    sure: "没有存疑词了。",
    passage: (number) => `第 ${number} 段`,
    microphone: "无法使用麦克风。请在浏览器中允许，或拖入文件。",
    unreadable: "浏览器无法将此文件读作音频。",
    lost: "服务没有回应。它还在运行吗？",
    failed: (code) => `服务拒绝：${code}。`,
    none_corrected: "没有更正过的段落。",
    kept: (count) => `已保留 ${count} 段更正，供下一轮使用。`,
    too_old: "较早段落的声音已不在，未予保留。",
    nothing_left: "本机构从未有任何数据离开。",
    receipt: (r) => `最近离开的内容：${r.size_bytes} 字节密封数字，作业 ${r.job} 第 ${r.round} 轮，`
      + `${r.at}，SHA-256 ${r.sha256}。没有录音，没有文本。`,
  },
};

let language = "en";
const english = new Map();

export function say(name, value) {
  const sentence = SENTENCES[language][name];
  return typeof sentence === "function" ? sentence(value) : sentence;
}

// What a fixed place says in the present language.
export function placed(name) {
  return language === "zh" ? CHINESE[name] : english.get(name);
}

export function speak(chosen) {
  language = chosen;
  document.documentElement.lang = chosen;
  for (const place of document.querySelectorAll("[data-say]")) {
    const name = place.dataset.say;
    if (!english.has(name)) english.set(name, place.textContent.replace(/\s+/g, " ").trim());
    place.textContent = placed(name);
  }
  for (const button of document.querySelectorAll("[data-language]")) {
    button.setAttribute("aria-pressed", String(button.dataset.language === chosen));
  }
}
