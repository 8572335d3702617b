// Browsers start no worker from a file URL. There the search's script runs in a hidden frame, which has the same interface.
if (location.protocol === "file:") {
  window.Worker = window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.title = "search";
      document.body.append(frame);
      this.inside = frame.contentWindow;
      this.inside.postMessage = (data) => this.answer(data);
      const script = this.inside.document.createElement("script");
      script.src = new URL(url, document.baseURI).href;
      this.started = new Promise((resolve) => script.addEventListener("load", resolve));
      this.inside.document.body.append(script);
      this.frame = frame;
    }

    answer(data) {
      const event = new MessageEvent("message", { data });
      this.dispatchEvent(event);
      if (this.onmessage) this.onmessage(event);
    }

    postMessage(data) {
      this.started.then(() => this.inside.dispatchEvent(new this.inside.MessageEvent("message", { data })));
    }

    terminate() {
      this.frame.remove();
    }
  };
}
