// Short messages above the page: what went well leaves by itself, what failed stays until it is read.
globalThis.grpoToasts = (() => {
  const SHOWN_MS = 8000;
  const box = document.createElement("div");
  box.className = "toasts";
  const make = (tag, className, text = "") => {
    const element = document.createElement(tag);
    element.className = className;
    element.textContent = text;
    return element;
  };

  const show = ({ tone, text, href, link }) => {
    if (!box.isConnected) document.body.append(box);
    // The same failure again is not a second one.
    for (const other of box.children) if (other.dataset.text === text) other.remove();
    const toast = make("div", `toast ${tone}`);
    toast.dataset.text = text;
    toast.setAttribute("role", tone === "bad" ? "alert" : "status");
    const icon = make("i", "q-icon material-icons", tone === "bad" ? "error" : "check_circle");
    icon.setAttribute("aria-hidden", "true");
    toast.append(icon, make("span", "grow", text));
    if (href) {
      const anchor = make("a", "", link);
      anchor.href = href;
      toast.append(anchor);
    }
    const close = make("button", "");
    const cross = make("i", "q-icon material-icons", "close");
    cross.setAttribute("aria-hidden", "true");
    close.append(cross);
    close.type = "button";
    close.setAttribute("aria-label", "Close this message");
    close.addEventListener("click", () => toast.remove());
    toast.append(close);
    box.append(toast);
    if (tone === "bad") return;
    let timer = setTimeout(() => toast.remove(), SHOWN_MS);
    for (const [event, pause] of [["mouseenter", true], ["focusin", true], ["mouseleave", false], ["focusout", false]])
      toast.addEventListener(event, () => {
        clearTimeout(timer);
        if (!pause) timer = setTimeout(() => toast.remove(), SHOWN_MS);
      });
  };
  // Browsers let pages copy only over https and on this machine.
  const copy = async (element) => {
    try {
      await navigator.clipboard.writeText(element.textContent);
      show({ tone: "good", text: "Copied." });
    } catch {
      getSelection().selectAllChildren(element);
      show({ tone: "bad", text: "This browser does not let the page copy. The text is selected: copy it by hand." });
    }
  };
  return { show, copy };
})();
