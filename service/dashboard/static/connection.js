// Notices within two seconds that the server does not answer, and says so. A busy one may only be slow: nothing is locked
// before it has been silent for five seconds, or the connection is lost.
globalThis.grpoConnection = (() => {
  const ASK_MS = 500, ANSWER_MS = 1300, LOST_MS = 5000;
  const say = (className, role, text) => {
    const said = Object.assign(document.createElement("div"), { className, textContent: text });
    said.setAttribute("role", role);
    return said;
  };
  const slow = say("slow-note", "status", "The server is slow to answer.");
  const banner = say("offline-banner", "alert", "The server does not answer. This page continues as soon as it does.");
  const held = new Set(); // what was disabled here, and not by the page itself
  let isOffline = false;

  const hold = () => {
    for (const part of document.querySelectorAll(".page, .topbar, .q-dialog")) part.inert = true;
    for (const control of document.querySelectorAll(":is(.page, .topbar, .q-dialog) :is(button, input, select)"))
      if (!control.disabled) {
        control.disabled = true;
        held.add(control);
      }
  };
  const release = () => {
    for (const part of document.querySelectorAll("[inert]")) part.inert = false;
    for (const control of held) control.disabled = false;
    held.clear();
  };
  const set = (offline, late = false) => {
    if (offline || !late) slow.remove();
    else if (!slow.isConnected) document.body.append(slow);
    if (offline === isOffline) return;
    isOffline = offline;
    document.documentElement.classList.toggle("offline", offline);
    if (offline) {
      document.body.prepend(banner);
      hold();
    } else {
      banner.remove();
      release();
    }
  };

  const start = () => {
    const socket = globalThis.socket;
    if (!socket) return setTimeout(start, 50);
    socket.io.reconnectionDelayMax(1000);
    socket.on("disconnect", () => set(true));
    let isWaiting = false, silentSince = null;
    setInterval(() => {
      if (document.hidden) silentSince = null; // nothing is asked meanwhile
      if (isWaiting || document.hidden || !globalThis.did_handshake) return;
      if (!socket.connected) return set(true);
      isWaiting = true;
      silentSince ??= performance.now();
      socket.timeout(ANSWER_MS).emit("grpo_ask", (error) => {
        isWaiting = false;
        if (!error) silentSince = null;
        set(Boolean(error) && performance.now() - silentSince > LOST_MS, Boolean(error));
      });
    }, ASK_MS);
  };
  start();
  return { isOffline: () => isOffline };
})();
