// A page opened from a disk may not start a worker, which the search needs: an invisible frame stands in for it.
// Messages wait for their turn, as they would between a page and a worker.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      this.frame.contentWindow.postMessage = data => setTimeout(() => {
        const event = new MessageEvent("message", { data });
        this.dispatchEvent(event);
        if (this.onmessage) this.onmessage(event);
      });
      this.loaded = new Promise(done => {
        const script = this.frame.contentDocument.createElement("script");
        script.src = url;
        script.onload = done;
        this.frame.contentDocument.body.append(script);
      });
    }
    postMessage(data) {
      const event = new MessageEvent("message", { data: structuredClone(data) });
      this.loaded.then(() => this.frame.contentWindow?.dispatchEvent(event));
    }
    terminate() { this.frame.remove(); }
  };
}

// The ledger: one button per verdict and a field to search in.
document.addEventListener("DOMContentLoaded", () => {
  for (const ledger of document.querySelectorAll(".ledger")) {
    const buttons = [...ledger.querySelectorAll("button")], field = ledger.querySelector("input");
    const rows = [...ledger.querySelectorAll("tbody tr")].map(row => [row, row.textContent.toLowerCase()]);
    let verdict = "";
    const show = () => {
      const words = field.value.toLowerCase().split(/\s+/);
      for (const [row, text] of rows)
        row.hidden = !((!verdict || row.dataset.verdict === verdict) && words.every(word => text.includes(word)));
      for (const button of buttons) button.setAttribute("aria-pressed", button.dataset.verdict === verdict);
    };
    for (const button of buttons) button.addEventListener("click", () => { verdict = button.dataset.verdict; show(); });
    field.addEventListener("input", show);
    show();
  }
});
