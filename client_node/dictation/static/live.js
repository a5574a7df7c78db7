// One live stream: audio out, events in.
const WAITING_BYTES = 1 << 20;
const MESSAGE_SAMPLES = 16000;

export class LiveStream {
  // `on` is called with every event of the service, and with {type: "lost"} if the line breaks.
  constructor(on) {
    this.on = on;
  }

  async open(rateHz, terms) {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    this.socket = new WebSocket(`${scheme}://${location.host}/v1/audio/stream`);
    this.socket.binaryType = "arraybuffer";
    await new Promise((resolve, reject) => {
      this.socket.onerror = reject;
      this.socket.onopen = () => {
        const start = { type: "start", encoding: "f32le", rate_hz: rateHz, terms };
        this.socket.send(JSON.stringify(start));
      };
      this.socket.onmessage = (event) => this.receive(JSON.parse(event.data), resolve, reject);
      this.socket.onclose = () => {
        if (!this.over) this.on({ type: "lost" });
        reject(new Error("closed"));
      };
    });
  }

  receive(event, resolve, reject) {
    if (event.type === "ready") {
      resolve();
      return;
    }
    if (event.type === "done" || event.type === "error") {
      this.over = true;
      if (event.type === "error") reject(new Error(event.error.code));
    }
    this.on(event);
  }

  send(samples) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(samples);
  }

  // Send a whole recording, no faster than it is taken.
  async sendAll(samples, onPiece) {
    for (let at = 0; at < samples.length; at += MESSAGE_SAMPLES) {
      if (this.socket.readyState !== WebSocket.OPEN) return;
      const piece = samples.slice(at, at + MESSAGE_SAMPLES);
      onPiece(piece);
      this.send(piece);
      while (this.socket.bufferedAmount > WAITING_BYTES) {
        await new Promise((resolve) => { setTimeout(resolve, 50); });
      }
    }
  }

  finish() {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send('{"type":"finish"}');
  }
}
