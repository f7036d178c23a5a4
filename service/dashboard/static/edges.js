// Marks what scrolls sideways and goes on at its right edge: many browsers show no bar before the first scroll.
(() => {
  const BOXES = ".table-scroll, .scroll";
  let isDue = false;
  const mark = (box) => box.classList.toggle("goes-on", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
  const markAll = () => {
    isDue = false;
    document.querySelectorAll(BOXES).forEach(mark);
  };
  const markSoon = () => {
    if (!isDue) requestAnimationFrame(markAll);
    isDue = true;
  };
  document.addEventListener("scroll", ({ target }) => { if (target.matches?.(BOXES)) mark(target); }, { capture: true, passive: true });
  addEventListener("resize", markSoon);
  new MutationObserver(markSoon).observe(document, { childList: true, subtree: true });
})();
