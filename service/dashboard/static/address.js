// The page of a run asks for one more metric.
globalThis.grpoAskRun = () => emitEvent("runs_view", grpoAddress.get("y", "reward"));
// What a page shows lives in its address, so that a reload, a second tab or a colleague sees the same.
globalThis.grpoAddress = {
  get: (name, otherwise = "") => new URLSearchParams(location.search).get(name) ?? otherwise,
  has: (name) => new URLSearchParams(location.search).has(name),
  // An empty value takes the name away; keep=true leaves it with nothing.
  set(changes, keep = false) {
    const query = new URLSearchParams(location.search);
    for (const [name, value] of Object.entries(changes)) value === "" && !keep ? query.delete(name) : query.set(name, value);
    const written = query.toString().replaceAll("%2C", ",").replaceAll("%2F", "/");
    history.replaceState(history.state, "", `${location.pathname}${written ? `?${written}` : ""}`);
  },
};
