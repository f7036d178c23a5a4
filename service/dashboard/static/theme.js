// Light, dark, or as the system has it: kept in the browser, and applied before anything is painted.
(() => {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const read = () => localStorage.getItem("grpo-theme");
  const isDark = () => (read() ? read() === "dark" : system.matches);
  const apply = () => {
    document.documentElement.classList.toggle("dark", isDark());
    if (globalThis.Quasar?.Dark) Quasar.Dark.set(isDark());
  };
  globalThis.grpoTheme = {
    apply,
    toggle() {
      localStorage.setItem("grpo-theme", isDark() ? "light" : "dark");
      apply();
    },
  };
  system.addEventListener("change", apply);
  apply();
})();
