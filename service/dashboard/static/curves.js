// Draws the curves of the jobs that are shown. The server sends every point once; they are kept here.
globalThis.grpoCurves = (() => {
  const jobs = new Map(); // id -> {name, colour, points: {key: [[x, y, low, high]]}}
  let charts = []; // {id, key}
  const css = (name) => getComputedStyle(document.body).getPropertyValue(name).trim();
  const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });
  const write = (value) => (Math.abs(value) >= 100 ? value.toFixed(1) : Number(value.toPrecision(3)).toString());

  // Noisy lines are drawn pale, with the mean of their surroundings on top.
  const SMOOTHED = new Set(["entropy", "kl", "silence"]);
  const smooth = (points) => {
    const reach = Math.ceil(points.length / 40);
    return points.map(([x], i) => {
      const near = points.slice(Math.max(0, i - reach), i + reach + 1);
      return [x, near.reduce((sum, [, y]) => sum + y, 0) / near.length];
    });
  };

  const line = (job, points) => ({
    type: "line", name: job.name, data: points.map(([x, y]) => [x, y]), symbol: "circle", symbolSize: 5,
    showSymbol: points.length < 12, lineStyle: { width: 2.2 }, color: css(`--series-${job.colour}`), z: 3,
  });

  // What the policy earns is drawn thick, what training earned thin.
  const drawRewards = (id, job) => {
    const { training = [], evaluation: earlier = [], final = [] } = job.points;
    // The policy that is kept may be an earlier one than the last that was evaluated.
    const evaluation = [...earlier, ...final.filter(([steps]) => steps > (earlier.at(-1)?.[0] ?? 0))];
    const thin = { lineStyle: { width: 1, opacity: 0.6 }, symbol: "none", z: 2 };
    return [
      { id: `evaluation-${id}`, ...line(job, evaluation), name: `${job.name}, evaluation` },
      { id: `training-${id}`, ...line(job, training), ...thin, name: `${job.name}, training mean` },
      { id: `final-${id}`, ...line(job, final), name: `${job.name}, final evaluation`, symbol: "diamond", symbolSize: 13,
        showSymbol: true, z: 5 },
      ...(evaluation.some((point) => point.length > 2) ? band(id, job, evaluation) : []),
    ];
  };

  // An area between two lines: an invisible one, and the difference stacked upon it.
  const band = (id, job, points) => {
    const known = points.filter((point) => point.length > 2);
    const base = { type: "line", symbol: "none", silent: true, stack: `band-${id}`, stackStrategy: "all",
      lineStyle: { opacity: 0 }, tooltip: { show: false }, color: css(`--series-${job.colour}`), z: 2 };
    return [
      { ...base, name: `${job.name} low`, data: known.map(([x, , low]) => [x, low]) },
      { ...base, name: `${job.name} high`, data: known.map(([x, , low, high]) => [x, high - low]),
        areaStyle: { opacity: 0.16 } },
    ];
  };

  const describe = (items) => {
    const rows = items.filter((item) => item.seriesName && !/ (low|high|raw)$/.test(item.seriesName));
    if (rows.length === 0) return "";
    const head = `${rows[0].value[0].toLocaleString("en")} steps`;
    return [head, ...rows.map((row) => `${row.marker} ${row.seriesName} <b>${write(row.value[1])}</b>`)].join("<br>");
  };

  const draw = (chart) => {
    const instance = getElement(chart.id)?.chart;
    if (!instance) return setTimeout(() => draw(chart), 50);
    const series = [];
    for (const [id, job] of jobs) {
      if (chart.key === "reward") {
        series.push(...drawRewards(id, job));
        continue;
      }
      const points = job.points[chart.key] ?? [];
      const isNoisy = SMOOTHED.has(chart.key) && points.length > 40;
      series.push({ id: `line-${id}`, ...line(job, isNoisy ? smooth(points) : points) });
      if (isNoisy) {
        const pale = { lineStyle: { width: 1, opacity: jobs.size > 1 ? 0.14 : 0.3 }, tooltip: { show: false }, z: 2 };
        series.push({ id: `raw-${id}`, ...line(job, points), ...pale, name: `${job.name} raw` });
      }
    }
    const axis = { axisLine: { lineStyle: { color: css("--line") } }, axisTick: { show: false },
      axisLabel: { color: css("--muted"), fontSize: 12 }, splitLine: { lineStyle: { color: css("--line") } } };
    instance.setOption({
      animation: false,
      textStyle: { fontFamily: "Roboto, sans-serif" },
      grid: { left: 8, right: 16, top: 14, bottom: 4, containLabel: true },
      tooltip: { trigger: "axis", formatter: describe, backgroundColor: css("--surface"), borderColor: css("--line"),
        textStyle: { color: css("--ink"), fontSize: 13 }, confine: true },
      xAxis: { type: "value", min: 0, ...axis, splitLine: { show: false },
        axisLabel: { ...axis.axisLabel, formatter: (value) => short.format(value), hideOverlap: true } },
      yAxis: { type: "value", scale: true, splitNumber: 4, ...(chart.key === "silence" ? { min: 0, max: 1, interval: 0.25 } : {}), ...axis,
        axisLabel: { ...axis.axisLabel, formatter: (value) => (Math.abs(value) >= 1e4 ? short.format(value) : value) } },
      series,
    }, { replaceMerge: ["series"] });
    const hasPoints = [...jobs.values()].some((job) => lines(chart).some((key) => job.points[key]?.length));
    document.getElementById(`nothing-${chart.key}`)?.classList.toggle("hidden", hasPoints);
  };
  const lines = ({ key }) => (key === "reward" ? ["evaluation", "training", "final"] : [key]);
  const drawAll = () => charts.forEach(draw);
  new MutationObserver(drawAll).observe(document.documentElement, { attributes: true, attributeFilter: ["class"] });

  return {
    start(list) {
      charts = list;
      drawAll();
    },
    show(id, name, colour) {
      jobs.set(id, { name, colour, points: {} });
      drawAll();
    },
    hide(id) {
      jobs.delete(id);
      drawAll();
    },
    append(id, points) {
      const job = jobs.get(id);
      if (!job) return;
      for (const [key, added] of Object.entries(points)) (job.points[key] ??= []).push(...added);
      charts.filter((chart) => lines(chart).some((key) => key in points)).forEach(draw);
    },
    read: (key) => [...jobs.values()].map((job) => ({ name: job.name, points: job.points[key] ?? [] })),
  };
})();
