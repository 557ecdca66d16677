// Server-sent events over fetch: an EventSource gives up for good after one 503, and does not say why.

const RETRY_MS = 1000;
// The load view comes once a second: a connection that is silent for so long is dead, whatever TCP thinks.
const SILENT_MS = 10_000;

export class Stream {
  #path; #heard; #lost; #lastId = "";

  // `heard(name, data)` for each event; `lost(why)` whenever the stream broke, before it is opened again.
  constructor(path, heard, lost) {
    this.#path = path;
    this.#heard = heard;
    this.#lost = lost;
  }

  async run() {
    for (;;) {
      try {
        await this.#read();
      } catch (error) {
        this.#lost(error.message);
      }
      await new Promise((done) => setTimeout(done, RETRY_MS));
    }
  }

  async #read() {
    const controller = new AbortController();
    const cut = () => controller.abort(new Error("the gateway says nothing"));
    let watchdog = setTimeout(cut, SILENT_MS);
    try {
      const headers = this.#lastId ? { "Last-Event-ID": this.#lastId } : {};
      const reply = await fetch(this.#path, { headers, cache: "no-store", signal: controller.signal });
      if (!reply.ok) throw new Error((await reply.json()).detail);
      const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let text = ""; ; ) {
        const { value, done } = await reader.read();
        if (done) throw new Error("the gateway ended the stream");
        clearTimeout(watchdog);
        watchdog = setTimeout(cut, SILENT_MS);
        const blocks = (text + value).split("\n\n");
        text = blocks.pop();
        for (const block of blocks) this.#take(block);
      }
    } finally {
      clearTimeout(watchdog);
      controller.abort();
    }
  }

  #take(block) {
    const fields = Object.fromEntries(block.split("\n").map((line) => line.split(/: (.*)/s, 2)));
    if (fields.id) this.#lastId = fields.id;
    if (!fields.event) return; // a comment
    const data = JSON.parse(fields.data);
    if (fields.event === "error") throw new Error(data.detail);
    this.#heard(fields.event, data);
  }
}
