// Draws the curves of jobs. The server sends what the jobs have reported; how it is shown is decided here.
globalThis.grpoCurves = (() => {
  const N_COLOURS = 10; // beyond, lines are dashed
  const MIN_SEEDS = 5; // of an interval over seeds, as in tables
  const MAX_BANDS = 4, MAX_RAW = 6, N_GRID = 160, LEAST_SMOOTHED = 12, LABEL_WIDTH = 90;
  // Half widths of 95 % intervals in standard errors, by degrees of freedom (Student's t).
  const T95 = [12.71, 4.3, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.2, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.1, 2.09, 2.09,
    2.08, 2.07, 2.07, 2.06, 2.06, 2.06, 2.05, 2.05, 2.05, 2.04];
  const TRAINING = "rollout/ep_rew_mean";
  const TITLES = {
    reward: ["Episode reward", "The environment's own reward: it should rise, then level off. An evaluation plays whole episodes with the policy's most likely actions; where the shaded 95 % intervals of two jobs overlap, their difference may be chance. The final evaluation plays other episodes than those before it, so that a last step up or down need not be the policy's. The training mean covers the last 100 training episodes, with sampled actions: it lags behind the evaluations and may stay below them."],
    "rollout/ep_rew_mean": ["Training mean", "Mean reward of the last 100 training episodes, with sampled actions: it lags behind the evaluations and may stay below them."],
    "rollout/success_rate": ["Success while training", "Share of the last 100 training episodes, with sampled actions, that the environment calls a success."],
    "train/entropy_loss": ["Entropy", "How undecided the policy is. It should fall slowly: if it drops early, the policy has stopped exploring."],
    "train/approx_kl": ["KL divergence", "How far an update moves the policy. Small, steady values are healthy; if it spikes, lower the learning rate."],
    "rollout/zero_std_group_fraction": ["Groups without a signal", "Share of groups whose branches all earned the same. A high share alone is no fault: a policy that always succeeds is at 1 too. If it stays at 1 and the reward does not move, change the reward, the horizon or the group size."],
  };
  // What is drawn, in words, by the beginnings of the lines' ids. The last is the area between two lines.
  const KEYS = [
    ["evaluation", "evaluation"], ["mean", "mean of several jobs"], ["seed", "each of them"], ["line", "smoothed"], ["raw", "as reported"],
    ["training", "training mean: last 100 episodes, sampled actions"], ["final", "final evaluation, of other episodes"],
    ["low-own", "95 % interval over episodes"], ["low-mean", null], ["low-spread", "lowest to highest"],
  ];
  const SHARES = new Set(["rollout/zero_std_group_fraction", "rollout/success_rate"]);
  const NEGATED = new Set(["train/entropy_loss"]);
  const jobs = new Map(); // id -> what the server has sent, and its colour
  let host = null, fixed = null, panels = [], echarts = null, isDue = false, onMetric = () => {};

  const css = (name) => getComputedStyle(document.body).getPropertyValue(name).trim();
  const paint = (job) => css(`--series-${job.colour % N_COLOURS}`);
  const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
  const write = (value) => (Math.abs(value) >= 100 ? value.toFixed(1) : Number(value.toPrecision(3)).toString());
  const read = () => ({
    x: grpoAddress.get("x", "steps"), smooth: Math.min(0.99, Math.max(0, Number(grpoAddress.get("smooth", "0.6")) || 0)),
    log: grpoAddress.get("log") === "1", metric: grpoAddress.get("y", "reward"), group: grpoAddress.get("group"),
  });
  const name = (metric) => TITLES[metric]?.[0] ?? metric;
  const offer = (metric) => (metric in TITLES && metric !== "reward" ? `${name(metric)} · ${metric}` : name(metric));
  const text = (tag, content, classes = "") => Object.assign(document.createElement(tag), { textContent: content, className: classes });
  const duration = (seconds) => {
    const whole = Math.round(seconds), two = (n) => String(n).padStart(2, "0");
    if (whole < 60) return `${whole} s`;
    return whole < 3600 ? `${Math.floor(whole / 60)}:${two(whole % 60)}` : `${Math.floor(whole / 3600)}:${two(Math.floor(whole / 60) % 60)} h`;
  };
  const writeX = (value, view) =>
    view.x === "steps" ? `${Math.round(value).toLocaleString("en")} steps`
      : view.x === "relative" ? duration(value) : `${new Date(value).toLocaleString("en", { timeZone: "UTC" })} UTC`; // as events
  const place = (job, steps, seconds, view) =>
    view.x === "steps" ? steps : view.x === "relative" ? seconds : 1000 * (job.start + seconds);

  const points = (job, metric, view) => {
    const [steps, seconds, values] = job.lines[metric] ?? [[], [], []];
    const sign = NEGATED.has(metric) ? -1 : 1;
    return steps.map((step, i) => [place(job, step, seconds[i], view), values[i] === null ? null : sign * values[i]]);
  };
  // Between which values each point of a long line lies.
  const spread = (job, metric, view) => {
    const [steps, seconds, , lows, highs] = job.lines[metric] ?? [[], [], [], [], []];
    const known = lows.map((low, i) => [place(job, steps[i], seconds[i], view), low, highs[i]]).filter(([, low]) => low !== null);
    return NEGATED.has(metric) ? known.map(([x, low, high]) => [x, -high, -low]) : known;
  };
  // The exponential mean of the values so far, without the pull of the first one; the weight is per percent of the axis.
  // A value counts for the time since the one before: points are dense where much happens, and few on a plateau.
  const smooth = (line, weight) => {
    if (weight === 0 || line.length < LEAST_SMOOTHED) return line;
    let mean = null, mass = 0, before = 2 * line[0][0] - line[1][0];
    const percent = (line.at(-1)[0] - line[0][0]) / 100 || 1;
    return line.map(([x, y]) => {
      if (y === null) return [x, null];
      const kept = weight ** (Math.max(0, x - before) / percent);
      before = x;
      mass = kept * mass + (1 - kept);
      mean = mean === null ? y : mean + ((1 - kept) / (mass || 1)) * (y - mean); // exact where nothing changes
      return [x, mean];
    });
  };
  const evaluated = (job, view) => {
    const all = [...job.evaluations];
    // The policy that is kept may be an earlier one than the last that was evaluated.
    if (job.final && job.final[0] > (all.at(-1)?.[0] ?? 0)) all.push(job.final);
    return all.map(([steps, seconds, ...rest]) => [place(job, steps, seconds, view), ...rest]);
  };

  const line = (job, id, label, data) => ({
    id: `${id}-${job.id}`, name: label, type: "line", data: data.map(([x, y]) => [x, y]), symbol: "circle", symbolSize: 5,
    showSymbol: data.length < 12, lineStyle: { width: 2.2, type: job.colour >= N_COLOURS ? "dashed" : "solid" },
    color: paint(job), z: 3, connectNulls: false,
  });
  const quiet = { symbol: "none", silent: true, tooltip: { show: false }, z: 2 };
  const thin = (opacity) => ({ ...quiet, lineStyle: { width: 1, opacity } });
  // An area between two lines: an invisible one, and the difference stacked upon it.
  const band = (job, id, data, shade) => {
    const base = { ...quiet, type: "line", stack: `band-${id}-${job.id}`, stackStrategy: "all", lineStyle: { opacity: 0 }, color: paint(job) };
    return [
      { ...base, id: `low-${id}-${job.id}`, name: "low", shade, data: data.map(([x, low]) => [x, low]) },
      { ...base, id: `high-${id}-${job.id}`, name: "high", data: data.map(([x, low, high]) => [x, high - low]), areaStyle: { opacity: 0.16 } },
    ];
  };
  const drawOne = (job, metric, view, nJobs) => {
    if (metric !== "reward") {
      const raw = points(job, metric, view), smoothed = smooth(raw, view.smooth), series = [line(job, "line", job.name, smoothed)];
      const wide = spread(job, metric, view);
      if (wide.length && nJobs <= MAX_BANDS && !view.log) series.push(...band(job, "spread", wide));
      else if (smoothed !== raw && nJobs <= MAX_RAW) series.push({ ...line(job, "raw", "raw", raw), ...thin(nJobs > 1 ? 0.14 : 0.3) });
      return series;
    }
    const evaluations = evaluated(job, view), training = points(job, TRAINING, view);
    const known = evaluations.filter((point) => point.length > 3);
    const series = [
      { ...line(job, "evaluation", `${job.name}, evaluation`, evaluations) },
      { ...line(job, "training", `${job.name}, training mean`, smooth(training, view.smooth)), symbol: "none", lineStyle: { width: 1, opacity: 0.65 }, z: 2 },
    ];
    if (job.final) {
      const [steps, seconds, mean] = job.final;
      series.push({ ...line(job, "final", `${job.name}, final evaluation`, [[place(job, steps, seconds, view), mean]]),
        symbol: "diamond", symbolSize: 12, showSymbol: true, z: 5 });
    }
    if (nJobs <= MAX_BANDS && !view.log && known.length) series.push(...band(job, "own", known.map(([x, , low, high]) => [x, low, high])));
    return series;
  };

  const interpolate = (data, x) => {
    if (!data.length || x < data[0][0] || x > data.at(-1)[0]) return null;
    let low = 0, high = data.length - 1;
    while (high - low > 1) data[(low + high) >> 1][0] <= x ? (low = (low + high) >> 1) : (high = (low + high) >> 1);
    const [[x0, y0], [x1, y1]] = [data[low], data[high]];
    return x1 === x0 ? y1 : y0 + ((y1 - y0) * (x - x0)) / (x1 - x0);
  };
  // The mean of a group's jobs where two or more of them have something, and its 95 % interval; of fewer than five jobs
  // the least and the greatest.
  const average = (lines) => {
    const known = lines.map((data) => data.filter(([, y]) => y !== null)).filter((data) => data.length);
    const from = Math.min(...known.map((data) => data[0][0])), to = Math.max(...known.map((data) => data.at(-1)[0]));
    const mean = [], bounds = [];
    for (let i = 0; i <= N_GRID; i++) {
      const x = from + ((to - from) * i) / N_GRID;
      const values = known.map((data) => interpolate(data, x)).filter((y) => y !== null);
      if (values.length < 2) continue;
      const m = values.reduce((sum, y) => sum + y, 0) / values.length;
      mean.push([x, m]);
      if (known.length < MIN_SEEDS) bounds.push([x, Math.min(...values), Math.max(...values)]);
      if (values.length < MIN_SEEDS) continue;
      const deviation = Math.sqrt(values.reduce((sum, y) => sum + (y - m) ** 2, 0) / (values.length - 1));
      const half = ((T95[values.length - 2] ?? 1.96) * deviation) / Math.sqrt(values.length);
      bounds.push([x, m - half, m + half]);
    }
    return { mean, bounds, shade: known.length < MIN_SEEDS ? "least to greatest" : "95 % interval, Student's t" };
  };
  const drawGroup = (unordered, metric, view) => {
    const members = [...unordered].sort((a, b) => a.colour - b.colour);
    const isEvaluated = metric === "reward" && members.every((job) => evaluated(job, view).length > 1);
    const lines = members.map((job) =>
      isEvaluated ? evaluated(job, view).map(([x, y]) => [x, y]) : smooth(points(job, metric === "reward" ? TRAINING : metric, view), view.smooth));
    const { mean, bounds, shade } = average(lines);
    if (!mean.length) return members.flatMap((job) => drawOne(job, metric, view, members.length));
    const what = metric === "reward" ? (isEvaluated ? ", evaluation" : ", training mean") : "";
    const first = members[0], label = `${first.name}${what}, mean of ${members.length} (shaded: ${shade})`;
    return [
      { ...line(first, "mean", label, mean), showSymbol: false },
      ...(view.log ? [] : band(first, "mean", bounds, `shaded: ${shade}`)),
      ...members.map((job, i) => ({ ...line({ ...job, colour: first.colour }, "seed", "seed", lines[i]), ...thin(0.28) })),
    ];
  };

  const describe = (items, view) => {
    const rows = items.filter((item) => !/^(low|high|raw|seed)-/.test(item.seriesId) && item.value[1] !== null);
    if (rows.length === 0) return "";
    rows.sort((a, b) => b.value[1] - a.value[1]);
    const box = text("div", "");
    box.append(text("div", writeX(rows[0].value[0], view)));
    for (const row of rows.slice(0, 12)) {
      const entry = text("div", `${row.seriesName} `);
      const mark = text("span", "", "tooltip-mark");
      mark.style.background = row.color;
      entry.prepend(mark);
      entry.append(text("b", write(row.value[1])));
      box.append(entry);
    }
    return box;
  };
  // Says whose lines have which colour, and what the kinds of lines are, where there are several.
  const fillKey = (panel, series, groups) => {
    const drawn = series.filter((one) => one.data.some(([, y]) => y !== null));
    const items = KEYS.flatMap(([kind, words]) => {
      const first = drawn.find(({ id }) => id.startsWith(`${kind}-`));
      return first ? [text("li", words ?? first.shade, `key-${kind}`)] : [];
    });
    const byColour = (a, b) => a.colour - b.colour;
    // A mean has the colour of the first of its group.
    const sorted = groups.map((members) => [...members].sort(byColour)).sort(([a], [b]) => byColour(a, b));
    const names = sorted.map((members) => {
      const [first] = members;
      const item = text("li", members.length > 1 ? `${first.name}, ${members.length} jobs` : first.name, "key-job");
      item.style.setProperty("--series", paint(first));
      item.classList.toggle("dashed", first.colour >= N_COLOURS);
      return item;
    });
    panel.key.replaceChildren(...(names.length > 1 ? names : []), ...(items.length > 1 ? items : []));
  };
  const fillPanel = (panel, view) => {
    const members = panel.jobs();
    const groups = new Map();
    for (const job of members) {
      const key = view.group === "recipe" ? job.recipe : job.id; // a mean of other settings would be of nothing
      groups.set(key, [...(groups.get(key) ?? []), job]);
    }
    let series = [...groups.values()].flatMap((group) =>
      group.length > 1 ? drawGroup(group, panel.metric, view) : drawOne(group[0], panel.metric, view, groups.size));
    if (view.log) series = series.map((one) => ({ ...one, data: one.data.map(([x, y]) => [x, y > 0 ? y : null]) }));
    fillKey(panel, series, [...groups.values()]);
    const isEmpty = !series.some((one) => one.data.some(([, y]) => y !== null));
    panel.nothing.textContent = view.log && members.length ? "No values above zero to show on a log scale" : members.length ? "Nothing yet" : "No job is selected";
    panel.nothing.classList.toggle("hidden", !isEmpty);
    const muted = { color: css("--muted"), fontSize: 12 }, rule = { lineStyle: { color: css("--line") } };
    const axis = { axisLine: rule, axisTick: { show: false }, splitLine: rule };
    // An interval may be far wider than anything that was measured; it is cut off at the frame.
    const limits = {};
    if (series.some(({ id }) => id.startsWith("low-mean"))) {
      const measured = series.filter(({ id }) => !/^(low|high)-/.test(id)).flatMap((one) => one.data.map(([, y]) => y)).filter((y) => y !== null);
      const low = Math.min(...measured), high = Math.max(...measured), margin = 0.2 * (high - low) || 1;
      const step = 10 ** Math.floor(Math.log10((high - low + 2 * margin) / 4)); // outwards: nothing measured is cut off
      Object.assign(limits, { min: step * Math.floor((low - margin) / step), max: step * Math.ceil((high + margin) / step) });
    }
    // With fewer, wider steps no label has to give way to its neighbours, which would leave uneven ones. The axis ends just
    // behind the last point, without a label for that.
    const end = view.x === "time" ? {} : { max: ({ max }) => (Number.isFinite(max) ? 1.001 * max : null) };
    const splitNumber = Math.min(5, Math.max(2, Math.floor(panel.chart.getDom().clientWidth / LABEL_WIDTH)));
    const isShare = SHARES.has(panel.metric) && !view.log && !isEmpty;
    panel.chart.setOption({
      animation: false, useUTC: true, textStyle: { fontFamily: "Roboto, sans-serif" },
      grid: { left: 8, right: 16, top: 14, bottom: 4, containLabel: true },
      tooltip: { trigger: "axis", formatter: (items) => describe(items, view), backgroundColor: css("--surface"),
        borderColor: css("--line"), textStyle: { color: css("--ink"), fontSize: 13 }, confine: true },
      xAxis: { type: view.x === "time" ? "time" : "value", min: view.x === "time" ? "dataMin" : 0, splitNumber, ...end, ...axis, splitLine: { show: false },
        axisLabel: { ...muted, hideOverlap: true, ...(view.x === "time" ? {} : { showMaxLabel: false, formatter: (value) => (view.x === "steps" ? short.format(value) : duration(value)) }) } },
      yAxis: { type: view.log ? "log" : "value", scale: true, splitNumber: 4, ...limits, ...(isShare ? { min: 0, max: 1, interval: 0.25 } : {}), ...axis,
        axisLabel: { ...muted, formatter: (value) => (Math.abs(value) >= 1e4 ? short.format(value) : Number(value.toPrecision(6))) } },
      series,
    }, { notMerge: false, replaceMerge: ["series", "xAxis", "yAxis"] });
  };

  // Panels: one per metric on the page of a job, one per environment elsewhere.
  const wanted = (view) => {
    if (fixed) {
      const metrics = fixed.includes(view.metric) ? fixed : [...fixed, view.metric];
      return metrics.map((metric) => ({ key: metric, metric, title: name(metric), hint: TITLES[metric]?.[1] ?? "", jobs: () => [...jobs.values()] }));
    }
    const envs = [...new Set([...jobs.values()].map((job) => job.env))];
    return (envs.length ? envs : [""]).map((env) => ({
      key: env || view.metric, metric: view.metric, title: env || name(view.metric), hint: "", jobs: () => [...jobs.values()].filter((job) => job.env === env),
    }));
  };
  const build = (list) => {
    panels.forEach((panel) => { panel.watch.disconnect(); panel.chart.dispose(); });
    const grid = host.querySelector(".curves");
    grid.replaceChildren();
    grid.classList.toggle("single", list.length === 1);
    panels = list.map((panel) => {
      const card = text("section", "", "card curve"), plot = text("div", "", "plot"), canvas = text("div", "", "canvas");
      card.setAttribute("aria-label", panel.title);
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `Curves: ${panel.title}`);
      const nothing = text("span", "Nothing yet", "nothing");
      plot.append(canvas, nothing);
      card.append(text("h2", panel.title), plot);
      const key = text("ul", "", "line-key");
      card.querySelector("h2").after(key);
      if (panel.hint) card.append(text("p", panel.hint, "hint"));
      grid.append(card);
      const chart = echarts.init(canvas);
      const watch = new ResizeObserver(() => chart.resize());
      watch.observe(canvas);
      return { ...panel, chart, nothing, key, watch };
    });
  };
  const drawNow = () => {
    isDue = false;
    if (!host?.isConnected || !echarts) return;
    const view = read(), list = wanted(view);
    if (list.map(({ key }) => key).join("\n") !== panels.map(({ key }) => key).join("\n")) build(list);
    panels.forEach((panel, i) => fillPanel(Object.assign(panel, { metric: list[i].metric, jobs: list[i].jobs }), view));
    listMetrics(view);
  };
  const draw = () => {
    if (isDue) return;
    isDue = true;
    requestAnimationFrame(drawNow);
  };

  const listMetrics = (view) => {
    const select = host.querySelector("select[name=y]");
    const keys = ["reward", ...new Set([...jobs.values()].flatMap((job) => job.keys))];
    if (!keys.includes(view.metric)) keys.push(view.metric);
    if (select.dataset.keys !== keys.join()) {
      select.dataset.keys = keys.join();
      select.replaceChildren(...keys.map((key) => Object.assign(text("option", offer(key)), { value: key })));
    }
    select.value = view.metric;
  };
  const makeBar = () => {
    const view = read(), bar = host.querySelector(".curve-bar");
    const choose = (label, key, options, value) => {
      const box = text("label", ""), select = Object.assign(document.createElement("select"), { name: key });
      select.append(...options.map(([each, shown]) => Object.assign(text("option", shown), { value: each })));
      if (options.length) select.value = value;
      box.append(text("span", label, "visually-hidden"), select);
      return [box, select];
    };
    const [metricBox, metric] = choose(fixed ? "Also show" : "Show", "y", [], "");
    metric.addEventListener("change", () => {
      grpoAddress.set({ y: metric.value === "reward" ? "" : metric.value });
      const key = metric.value === "reward" ? TRAINING : metric.value;
      if ([...jobs.values()].every(({ lines }) => key in lines)) draw(); // otherwise it is drawn when they come
      onMetric();
    });
    const [xBox, x] = choose("Over", "x", [["steps", "Steps"], ["relative", "Run time"], ["time", "UTC time"]], view.x);
    x.addEventListener("change", () => { grpoAddress.set({ x: x.value === "steps" ? "" : x.value }); draw(); });
    const smoothBox = text("label", "Smoothing", "smoothing"), shown = text("output", view.smooth.toFixed(2));
    const slider = Object.assign(document.createElement("input"), { type: "range", min: 0, max: 0.99, step: 0.01, value: view.smooth });
    slider.addEventListener("input", () => {
      shown.textContent = Number(slider.value).toFixed(2);
      grpoAddress.set({ smooth: slider.value === "0.6" ? "" : slider.value });
      draw();
    });
    smoothBox.append(slider, shown);
    const logBox = text("label", "", "check"), log = Object.assign(document.createElement("input"), { type: "checkbox", checked: view.log });
    log.addEventListener("change", () => { grpoAddress.set({ log: log.checked ? "1" : "" }); draw(); });
    logBox.append(log, "Log scale");
    bar.replaceChildren(metricBox, xBox, smoothBox, logBox);
  };
  new MutationObserver(draw).observe(document.documentElement, { attributes: true, attributeFilter: ["class"] });

  return {
    // metrics: those of the page of a job, one panel each; null makes a panel per environment.
    async start(id, metrics, changed) {
      host = document.getElementById(id);
      [fixed, onMetric, panels] = [metrics, changed ?? (() => {}), []];
      jobs.clear();
      makeBar();
      listMetrics(read());
      echarts = (await import("nicegui-echart")).echarts;
      draw();
    },
    // The lines of other metrics stay, so that they are there at once when they are chosen again.
    set(job, colour) {
      const before = jobs.get(job.id);
      jobs.set(job.id, { ...job, lines: { ...before?.lines, ...job.lines }, colour: colour ?? before?.colour ?? 0 });
      draw();
    },
    keep(colours) {
      let isChanged = false;
      for (const [id, job] of [...jobs]) {
        if (job.colour === colours[id]) continue;
        isChanged = true;
        if (id in colours) job.colour = colours[id];
        else jobs.delete(id);
      }
      if (isChanged) draw();
    },
    draw,
    read: (metric) => [...jobs.values()].map((job) => ({ name: job.name, points: points(job, metric, { x: "steps" }), evaluations: job.evaluations })),
    options: () => panels.map((panel) => panel.chart.getOption()),
  };
})();
