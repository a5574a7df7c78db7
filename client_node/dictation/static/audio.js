// Sound in the browser: the microphone, files, and WAV for what is kept.
export const FILE_RATE_HZ = 16000;

export class Microphone {
  // `onSamples` gets Float32Array pieces in [-1, 1], mono, at `rateHz`.
  async start(onSamples) {
    const audio = { echoCancellation: false, noiseSuppression: false };
    this.stream = await navigator.mediaDevices.getUserMedia({ audio });
    this.context = new AudioContext();
    this.rateHz = this.context.sampleRate;
    await this.context.audioWorklet.addModule("/dictation/capture.js");
    this.node = new AudioWorkletNode(this.context, "capture", { numberOfOutputs: 0 });
    this.node.port.onmessage = (event) => onSamples(event.data);
    this.context.createMediaStreamSource(this.stream).connect(this.node);
  }

  async stop() {
    this.node.port.onmessage = null;
    for (const track of this.stream.getTracks()) track.stop();
    await this.context.close();
  }
}

// Mono samples of a file at FILE_RATE_HZ. Rejects what the browser cannot decode.
export async function decodeFile(file) {
  const context = new OfflineAudioContext(1, 1, FILE_RATE_HZ);
  const buffer = await context.decodeAudioData(await file.arrayBuffer());
  const mono = new Float32Array(buffer.length);
  for (let channel = 0; channel < buffer.numberOfChannels; channel += 1) {
    const data = buffer.getChannelData(channel);
    for (let index = 0; index < mono.length; index += 1) {
      mono[index] += data[index] / buffer.numberOfChannels;
    }
  }
  return mono;
}

// The last `maxS` seconds of a recording, in pieces, so that a passage can be cut out of it.
export class Tape {
  constructor(rateHz, maxS) {
    this.rateHz = rateHz;
    this.maxSamples = maxS * rateHz;
    this.pieces = [];
    this.start = 0;
    this.end = 0;
  }

  add(samples) {
    this.pieces.push(samples);
    this.end += samples.length;
    while (this.end - this.start - this.pieces[0].length > this.maxSamples) {
      this.start += this.pieces.shift().length;
    }
  }

  // A WAV file (16-bit mono) of [startS, endS), or null where the tape no longer has it.
  cut(startS, endS) {
    const from = Math.round(startS * this.rateHz);
    const to = Math.min(Math.round(endS * this.rateHz), this.end);
    if (from < this.start || to <= from) return null;
    const samples = new Float32Array(to - from);
    let at = this.start;
    for (const piece of this.pieces) {
      const first = Math.max(from - at, 0);
      const last = Math.min(to - at, piece.length);
      if (last > first) samples.set(piece.subarray(first, last), at + first - from);
      at += piece.length;
    }
    return wav(samples, this.rateHz);
  }
}

function wav(samples, rateHz) {
  const view = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const text = (at, value) => {
    for (let index = 0; index < value.length; index += 1) {
      view.setUint8(at + index, value.charCodeAt(index));
    }
  };
  text(0, "RIFF");
  view.setUint32(4, 36 + 2 * samples.length, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, rateHz, true);
  view.setUint32(28, 2 * rateHz, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, 2 * samples.length, true);
  for (let index = 0; index < samples.length; index += 1) {
    const clipped = Math.max(-1, Math.min(1, samples[index]));
    view.setInt16(44 + 2 * index, Math.round(clipped * 32767), true);
  }
  return new Blob([view], { type: "audio/wav" });
}
