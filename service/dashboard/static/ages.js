// How long ago something was: <grpo-age moment="2026-01-31T12:00:00+00:00">. Ages grow although nothing happens.
(() => {
  const EVERY_MS = 60_000;
  const say = (moment) => {
    const seconds = (Date.now() - Date.parse(moment)) / 1000;
    if (seconds < 60) return "just now";
    if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
    if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
    if (seconds < 7 * 86400) return `${Math.floor(seconds / 86400)} d ago`;
    const day = new Date(moment), two = (n) => String(n).padStart(2, "0");
    return `${day.getFullYear()}-${two(day.getMonth() + 1)}-${two(day.getDate())}`;
  };
  class Age extends HTMLElement {
    connectedCallback() {
      this.tell();
    }
    tell() {
      this.textContent = say(this.getAttribute("moment"));
    }
  }
  customElements.define("grpo-age", Age);
  const tellAll = () => {
    if (!document.hidden) for (const age of document.querySelectorAll("grpo-age")) age.tell();
  };
  setInterval(tellAll, EVERY_MS);
  document.addEventListener("visibilitychange", tellAll);
})();
