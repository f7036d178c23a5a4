// Light, dark, or as the system has it: kept in the browser, and applied before anything is painted.
(() => {
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null; // what this page chose counts, also where the browser lets it store nothing
  const read = () => {
    try {
      return chosen ?? localStorage.getItem("grpo-theme");
    } catch {
      return chosen;
    }
  };
  const isDark = () => (read() ? read() === "dark" : system.matches);
  const apply = () => {
    document.documentElement.classList.toggle("dark", isDark());
    if (globalThis.Quasar?.Dark) Quasar.Dark.set(isDark());
  };
  globalThis.grpoTheme = {
    apply,
    toggle() {
      chosen = isDark() ? "light" : "dark";
      try {
        localStorage.setItem("grpo-theme", chosen);
      } catch {} // it lasts as long as the page
      apply();
    },
  };
  system.addEventListener("change", apply);
  apply();
})();
