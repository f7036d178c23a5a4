// The table of jobs. The server sends the page that the address asks for; clicks change the address and ask again.
globalThis.grpoJobs = (() => {
  const COLUMNS = [
    ["name", "Name", "name"], ["status", "Status", "status"], ["env", "Environment", "env_name"],
    ["reward", "Reward", "mean_reward"], ["steps", "Steps", "current_timesteps"],
    ["time", "Time", "elapsed_seconds"], ["created", "Created", "created_at"], ["seed", "Seed", "seed"],
  ];
  const DESCENDING = new Set(["mean_reward", "current_timesteps", "elapsed_seconds", "created_at"]);
  const NEWEST_FIRST = "-created_at", REWARD_FUNCTION = "reward_function_type";
  const TONES = { running: "live", completed: "good", failed: "bad" };
  const MARGIN = "Half of the 95 % interval of the mean over seeds (Student's t). Near the highest reward that an episode can earn, the interval may reach beyond it.";
  let table = null, latest = null, colours = new Map(), maxShown = 20, isStarted = false, isOutdated = false;

  const make = (tag, classes = "", content = "", attributes = {}) => {
    const element = Object.assign(document.createElement(tag), { className: classes, textContent: content });
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };
  const icon = (name) => make("i", "q-icon material-icons", name, { "aria-hidden": "true" });
  const sortField = () => grpoAddress.get("sort", NEWEST_FIRST).replace("-", "");
  const short = (id) => id.slice(0, 8);
  const ask = () => emitEvent("jobs_view", grpoAddress.spell());
  const act = (action, id) => emitEvent("jobs_act", { action, id });
  const go = (changes) => {
    grpoAddress.set({ page: "", ...changes });
    ask();
  };

  // Colours belong to jobs: the address keeps each job's beside its id.
  const keepColours = () => {
    const written = [...colours].map(([id, colour]) => `${short(id)}.${colour}`).join();
    grpoAddress.set({ show: written }, true);
    grpoCurves.keep(Object.fromEntries(colours));
  };
  const freeColour = () => {
    const taken = new Set(colours.values());
    for (let i = 0; i < maxShown; i++) if (!taken.has(i)) return i;
  };
  const show = (ids, isShown) => {
    for (const id of ids) {
      if (!isShown) colours.delete(id);
      else if (!colours.has(id) && colours.size < maxShown) colours.set(id, freeColour());
    }
    if (isShown && ids.some((id) => !colours.has(id)))
      grpoToasts.show({ tone: "bad", text: `The charts show ${maxShown} jobs at most; remove one first.` });
    keepColours();
    draw();
    ask();
  };

  const paint = (box, colour) => box.style.setProperty("--series", `var(--series-${colour % 10})`);
  const tick = (key, label, ids) => {
    const box = make("input", "tick", "", { type: "checkbox", "aria-label": `Show the curves of ${label}`, "data-focus": `tick ${key}` });
    const own = ids.filter((id) => colours.has(id)).map((id) => colours.get(id));
    box.checked = own.length > 0;
    if (own.length) paint(box, Math.min(...own)); // as the mean of a group is drawn
    box.addEventListener("change", () => show(ids, box.checked));
    const area = make("label", "tick-area"); // easier to hit than the box
    area.append(box);
    return area;
  };
  const rewardCell = (row) => {
    const cell = make("td", "number c-reward");
    const mean = make("b", "", row.reward || "–");
    if (row.margin) mean.append(make("span", "margin muted", ` ${row.margin}`, { title: MARGIN }));
    cell.append(mean);
    for (const figure of [row.interval, row.success]) if (figure) cell.append(make("span", "muted", figure));
    return cell;
  };
  const nameCell = (row) => {
    const cell = make("th", "c-name", "", { scope: "row" }), line = make("div", "job-name");
    line.append(make("a", "ellipsis", row.name, { href: `jobs/${row.id}`, title: row.note || row.name, "data-focus": `name ${row.id}` }));
    if (row.note) line.append(make("span", "q-icon material-icons note-mark", "notes", { title: row.note, role: "img", "aria-label": "has a note" }));
    for (const tag of row.tags) {
      const button = make("button", "tag", tag, { type: "button", title: `Only jobs tagged ${tag}`, "data-focus": `tag ${row.id} ${tag}` });
      button.addEventListener("click", () => go({ tag }));
      line.append(button);
    }
    cell.append(line, make("span", "muted phone-only", `${row.status} · ${row.env}`));
    return cell;
  };
  const statusCell = (row) => {
    const cell = make("td", "c-status"), isShare = row.status === "running" && "progress" in row;
    cell.append(make("span", `chip ${TONES[row.status] ?? ""}`, isShare ? `${Math.round(100 * row.progress)} %` : row.status));
    return cell;
  };
  // The actions on a job. The list is made when its menu opens: fifty of them would be a third of the table.
  const menuList = (row, details) => {
    const list = make("div", "menu-list"), isEnded = !["running", "queued"].includes(row.status);
    const add = (label, name, action) => {
      const button = make("button", "", "", { type: "button" });
      button.append(icon(name), label);
      button.addEventListener("click", () => { details.open = false; action(); });
      list.append(button);
    };
    add("Open", "open_in_full", () => location.assign(`jobs/${row.id}`));
    add("Name, tags, note", "edit", () => act("edit", row.id));
    add("Repeat", "replay", () => location.assign(`new?from=${row.id}`));
    add(row.hidden ? "Show again" : "Hide", row.hidden ? "visibility" : "visibility_off", () => act(row.hidden ? "unhide" : "hide", row.id));
    if (isEnded) add("Delete", "delete", () => act("delete", row.id));
    else add("Stop", "stop", () => act("stop", row.id));
    return list;
  };
  const menuCell = (row) => {
    const cell = make("td", "c-menu"), details = make("details", "menu");
    const summary = make("summary", "", "", { "aria-label": `Actions of ${row.name}`, "data-focus": `menu ${row.id}` });
    summary.append(icon("more_horiz"));
    // Fixed, since the table scrolls sideways and would cut it off.
    details.addEventListener("toggle", () => {
      if (!details.open) {
        if (details.contains(document.activeElement)) summary.focus({ preventScroll: true });
        details.querySelector(".menu-list")?.remove();
        if (isOutdated) draw();
        return;
      }
      const list = menuList(row, details);
      details.append(list);
      const { right, bottom } = summary.getBoundingClientRect(), height = list.offsetHeight;
      const top = bottom + height + 80 > innerHeight ? bottom - 32 - height : bottom + 4;
      list.style.cssText = `top: ${Math.max(8, top)}px; right: ${Math.max(8, innerWidth - right)}px`;
    });
    details.append(summary);
    cell.append(details);
    return cell;
  };
  const settingClasses = ([name]) => (name === REWARD_FUNCTION ? "c-setting c-function" : "number c-setting");
  const settingCells = (row) => row.settings.map((value, i) => make("td", settingClasses(latest.settings[i]), value, { title: value }));
  // Where the table goes on at the right, what it is sorted by is in sight, and so are the reward functions.
  const arrange = (cells, settings) => {
    const { name, status, env, reward, steps, time, ...rest } = cells;
    const n = latest.settings[0]?.[0] === REWARD_FUNCTION ? 1 : 0, sorted = COLUMNS.find(([, , field]) => field === sortField())?.[0];
    const early = latest.rows.some((row) => row[sorted]) && rest[sorted] ? [rest[sorted]] : [], late = Object.values(rest).filter((cell) => !early.includes(cell));
    return [name, status, env, ...settings.slice(0, n), reward, ...early, steps, time, ...settings.slice(n), ...late];
  };
  const jobRow = (row) => {
    const line = make("tr", row.member ? "member" : "", "", { "data-id": row.id });
    const first = make("td", "c-tick"), created = make("td", "c-created muted");
    created.append(make("grpo-age", "", "", { moment: row.created }));
    first.append(tick(row.id, row.name, [row.id]));
    const cells = { name: nameCell(row), status: statusCell(row), env: make("td", "c-env muted", row.env), reward: rewardCell(row),
      steps: make("td", "number c-steps", row.steps), time: make("td", "number c-time", row.time),
      created, seed: make("td", "number c-seed", row.seed) };
    line.append(first, ...arrange(cells, settingCells(row)), menuCell(row));
    return line;
  };
  const totalCell = (key, figure, of) => {
    const cell = make("td", `number c-${key}`, figure);
    if (of) cell.append(make("span", "muted of", of));
    return cell;
  };
  const groupRow = (row) => {
    const line = make("tr", "group-row", "", { "data-group": row.group });
    const first = make("td", "c-tick"), cell = make("th", "c-name", "", { scope: "row" });
    first.append(tick(row.group, `the ${row.n} jobs of ${row.name}`, row.ids.slice(0, maxShown)));
    const button = make("button", "opener", "", { type: "button", "aria-expanded": row.open, "data-focus": `group ${row.group}` });
    button.append(icon(row.open ? "expand_more" : "chevron_right"), make("span", "ellipsis", row.name, { title: row.name }), make("span", "muted count", `${row.n} ${row.n === 1 ? "job" : "jobs"}`));
    button.addEventListener("click", () => {
      const open = new Set(grpoAddress.get("open").split(",").filter(Boolean));
      open.has(row.group) ? open.delete(row.group) : open.add(row.group);
      grpoAddress.set({ open: [...open].join() });
      ask();
    });
    cell.append(button);
    const cells = { name: cell, status: statusCell(row), env: make("td", "c-env muted", row.env), reward: rewardCell(row),
      steps: totalCell("steps", row.steps, row.steps_of), time: totalCell("time", row.time, row.time_of),
      created: make("td", "c-created"), seed: make("td", "number c-seed", row.seed) };
    line.append(first, ...arrange(cells, settingCells(row)), make("td", "c-menu"));
    return line;
  };
  const restRow = ({ rest }) => {
    const line = make("tr", "rest"), cell = make("td", "", rest);
    cell.colSpan = COLUMNS.length + 2 + latest.settings.length;
    line.append(cell);
    return line;
  };
  const headRow = (settings) => {
    const line = make("tr"), isDown = grpoAddress.get("sort", NEWEST_FIRST).startsWith("-");
    line.append(make("td", "c-tick"));
    const heads = COLUMNS.map(([key, title, field]) => {
      const isOn = sortField() === field;
      const cell = make("th", `c-${key}`, "", { scope: "col", "aria-sort": isOn ? (isDown ? "descending" : "ascending") : "none" });
      const button = make("button", isOn ? "on" : "", title, { type: "button", "data-focus": `sort ${field}` });
      if (isOn) button.append(icon(isDown ? "arrow_downward" : "arrow_upward"));
      button.addEventListener("click", () => {
        // As it is now: a second click may come before the answer to the first.
        const isDescending = sortField() === field ? !grpoAddress.get("sort", NEWEST_FIRST).startsWith("-") : DESCENDING.has(field), next = `${isDescending ? "-" : ""}${field}`;
        go({ sort: next === NEWEST_FIRST ? "" : next });
      });
      cell.append(button);
      return [key, cell];
    });
    const named = settings.map(([name, title]) => make("th", settingClasses([name]), title, { scope: "col", title: name }));
    line.append(...arrange(Object.fromEntries(heads), named), make("td", "c-menu"));
    return line;
  };
  const draw = () => {
    if (!table?.isConnected || !latest) return;
    isOutdated = table.querySelector("details[open]") !== null; // a menu that is open must not be drawn anew
    if (isOutdated) return;
    const focus = document.activeElement?.dataset.focus;
    table.querySelector("thead").replaceChildren(headRow(latest.settings));
    table.querySelector("tbody").replaceChildren(...latest.rows.map((row) => ("group" in row ? groupRow(row) : "rest" in row ? restRow(row) : jobRow(row))));
    document.querySelector(".jobs-empty").classList.toggle("hidden", latest.rows.length > 0);
    table.classList.toggle("hidden", latest.rows.length === 0);
    table.classList.toggle("one-env", grpoAddress.get("group") === "env_name" || grpoAddress.has("env") || latest.envs.length < 2);
    drawPager();
    if (focus) giveFocus(focus);
  };
  // To what stands in the place of what had it; on the last page, to the button that turns back.
  const giveFocus = (key) => {
    const same = document.querySelector(`[data-focus="${CSS.escape(key)}"]`);
    const next = same?.disabled ? same.parentElement.querySelector("button:enabled") : same;
    next?.focus({ preventScroll: true });
  };
  const drawPager = () => {
    const pager = document.querySelector(".pager"), page = Math.min(Number(grpoAddress.get("page", "1")) || 1, latest.pages);
    pager.classList.toggle("hidden", latest.pages < 2);
    const turn = (label, name, to) => {
      const button = make("button", "button quiet icon", "", { type: "button", "aria-label": label, "data-focus": label });
      button.append(icon(name));
      button.disabled = to < 1 || to > latest.pages;
      button.addEventListener("click", () => { grpoAddress.set({ page: to === 1 ? "" : to }); ask(); });
      return button;
    };
    pager.replaceChildren(turn("Previous page", "chevron_left", page - 1), make("span", "muted number", `Page ${page} of ${latest.pages}`), turn("Next page", "chevron_right", page + 1));
  };

  // The controls above the table.
  const STATUSES = ["queued", "running", "completed", "failed", "stopped"];
  const fill = (name, options, value) => {
    const select = document.querySelector(`.jobs-bar [name=${name}]`);
    if (select.dataset.options !== options.join("\n")) {
      select.dataset.options = options.join("\n");
      select.replaceChildren(...options.map((each) => Object.assign(make("option", "", each[1]), { value: each[0] })));
    }
    select.value = value;
  };
  const drawBar = () => {
    const env = grpoAddress.get("env"), tag = grpoAddress.get("tag"), status = grpoAddress.get("status");
    const either = (list, value) => [...new Set([...list, ...(value ? [value] : [])])].map((each) => [each, each]);
    fill("env", [["", "All environments"], ...either(latest.envs, env)], env);
    fill("status", [["", "Any status"], ...either(STATUSES, status)], status);
    fill("tag", [["", "Any tag"], ...either(latest.tags, tag)], tag);
    document.querySelector(".jobs-bar [name=tag]").closest("label").classList.toggle("hidden", latest.tags.length === 0 && !tag);
    document.querySelector(".jobs-bar [name=group]").value = grpoAddress.get("group");
    document.querySelector(".jobs-bar [name=hidden]").checked = grpoAddress.get("hidden") === "1";
    document.querySelector(".jobs-bar .hidden-box").classList.toggle("hidden", latest.hidden === 0 && grpoAddress.get("hidden") !== "1");
  };
  const listen = () => {
    const bar = document.querySelector(".jobs-bar"), search = bar.querySelector("[name=q]");
    search.value = grpoAddress.get("q");
    // Every letter asks: the server drops what is no longer asked for.
    search.addEventListener("input", () => {
      if (search.value.trim() !== grpoAddress.get("q")) go({ q: search.value.trim() });
    });
    for (const select of bar.querySelectorAll("select"))
      select.addEventListener("change", () => {
        go({ [select.name]: select.value });
        if (select.name === "group") grpoCurves.draw(); // as means of groups, or one by one
      });
    const hidden = bar.querySelector("[name=hidden]");
    hidden.addEventListener("change", () => go({ hidden: hidden.checked ? "1" : "" }));
    document.querySelector(".jobs-empty .clear").addEventListener("click", () => {
      search.value = "";
      go({ q: "", env: "", status: "", tag: "", hidden: "" });
    });
    const closeMenus = (target = null) => {
      for (const menu of document.querySelectorAll("details.menu[open]")) if (!menu.contains(target)) menu.open = false;
    };
    for (const kind of ["click", "focusin"]) document.addEventListener(kind, (event) => closeMenus(event.target));
    document.addEventListener("scroll", () => closeMenus(), { capture: true, passive: true });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") closeMenus();
    });
  };

  return {
    start(tableId, curvesId, limit) {
      [table, latest, maxShown, isStarted] = [document.getElementById(tableId), null, limit, true];
      colours = new Map();
      grpoCurves.start(curvesId, null, ask);
      listen();
    },
    // page: the rows and what the controls offer; colours: the jobs in the charts; show: what the address said of them.
    show(page) {
      if (!isStarted) return;
      // A job that was ticked while the page was on its way is not in it, and another page follows.
      const isTimely = latest === null || page.show === (grpoAddress.has("show") ? grpoAddress.get("show") : null);
      latest = page;
      if (isTimely) {
        colours = new Map(Object.entries(page.colours));
        grpoCurves.keep(page.colours);
      }
      drawBar();
      draw();
    },
  };
})();
