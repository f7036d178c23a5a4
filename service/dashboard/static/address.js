// The page of a job asks for one more metric.
globalThis.grpoAskJob = () => emitEvent("jobs_view", grpoAddress.get("y", "reward"));
// What a page shows lives in its address, so that a reload, a second tab or a colleague sees the same.
globalThis.grpoAddress = (() => {
  const AGAIN_MS = 1000;
  const query = new URLSearchParams(location.search);
  let timer = null;
  const spell = () => query.toString().replaceAll("%2C", ",").replaceAll("%2F", "/");
  const write = () => {
    clearTimeout(timer);
    const written = spell();
    try {
      history.replaceState(history.state, "", `${location.pathname}${written ? `?${written}` : ""}`);
    } catch {
      timer = setTimeout(write, AGAIN_MS); // some browsers refuse what comes too often
    }
  };
  return {
    get: (name, otherwise = "") => query.get(name) ?? otherwise,
    has: (name) => query.has(name),
    spell,
    // An empty value takes the name away; keep=true leaves it with nothing.
    set(changes, keep = false) {
      for (const [name, value] of Object.entries(changes)) value === "" && !keep ? query.delete(name) : query.set(name, value);
      write();
    },
  };
})();
