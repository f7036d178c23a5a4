// Suggestions below the text fields that name something. The text in the field is always what is sent.
globalThis.grpoSuggestions = (() => {
  const MAX_SHOWN = 60;
  const lists = new Map(); // id of an input -> its suggestions
  const popup = document.createElement("ul");
  popup.id = "suggestions";
  popup.setAttribute("role", "listbox");
  popup.setAttribute("aria-label", "Suggestions");
  let input = null;
  let active = -1;

  const find = (text) => {
    const all = lists.get(input.id), part = text.trim().toLowerCase();
    if (all.includes(text)) return all;
    const starts = all.filter((each) => each.toLowerCase().startsWith(part));
    return [...starts, ...all.filter((each) => !starts.includes(each) && each.toLowerCase().includes(part))];
  };
  const close = () => {
    input?.setAttribute("aria-expanded", "false");
    input?.removeAttribute("aria-activedescendant");
    popup.remove();
    input = null;
  };
  const mark = (index) => {
    popup.children[active]?.setAttribute("aria-selected", "false");
    active = index;
    const option = popup.children[active];
    if (!option) return input.removeAttribute("aria-activedescendant");
    option.setAttribute("aria-selected", "true");
    input.setAttribute("aria-activedescendant", option.id);
    option.scrollIntoView({ block: "nearest" });
  };
  const choose = (text) => {
    const chosen = input;
    close();
    chosen.value = text;
    chosen.dispatchEvent(new Event("input", { bubbles: true }));
  };
  const place = () => {
    if (!input) return;
    const box = input.closest(".q-field").getBoundingClientRect();
    popup.style.cssText = `left: ${box.left + scrollX}px; top: ${box.bottom + scrollY + 4}px; width: ${box.width}px`;
  };
  const places = new ResizeObserver(place);
  const open = (field) => {
    if (input && input !== field) close();
    input = field;
    const names = find(field.value).slice(0, MAX_SHOWN);
    popup.replaceChildren(...names.map((name, i) => {
      const option = document.createElement("li");
      option.id = `suggestion-${i}`;
      option.setAttribute("role", "option");
      option.setAttribute("aria-selected", "false");
      option.textContent = name;
      return option;
    }));
    if (names.length === 0) return close();
    // Again whenever a message comes below the field, so that it is not covered.
    places.disconnect();
    places.observe(field.closest(".q-field"));
    document.body.append(popup);
    place();
    popup.scrollTop = 0;
    field.setAttribute("aria-expanded", "true");
    field.setAttribute("aria-controls", popup.id);
    mark(-1);
    if (field.value) mark(names.indexOf(field.value));
  };

  const isOurs = (target) => lists.has(target?.id);
  let early = null; // a field in which something was typed before its suggestions had come
  document.addEventListener("input", (event) => {
    if (!event.isTrusted) return;
    early = isOurs(event.target) ? null : event.target;
    if (!early) open(event.target);
  });
  document.addEventListener("click", (event) => {
    const field = event.target.closest?.(".q-field")?.querySelector("input");
    if (isOurs(field)) input === field ? close() : open(field);
  });
  document.addEventListener("focusout", (event) => event.target === input && close());
  // Not on click: the field would lose the focus first.
  popup.addEventListener("mousedown", (event) => {
    event.preventDefault();
    const option = event.target.closest("li");
    if (option) choose(option.textContent);
  });
  document.addEventListener("keydown", (event) => {
    const field = event.target;
    if (!isOurs(field) || event.isComposing) return;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (input !== field) open(field);
      if (!input) return;
      const n = popup.children.length, step = event.key === "ArrowDown" ? 1 : -1;
      mark(active < 0 && step < 0 ? n - 1 : (active + step + n) % n);
    } else if (input === field && event.key === "Escape") {
      event.preventDefault();
      close();
    } else if (input === field && event.key === "Enter") {
      // Enter takes a marked suggestion; without one it sends the form, as in every field.
      const option = popup.children[active];
      if (option && option.textContent !== field.value) {
        event.preventDefault();
        choose(option.textContent);
      } else close();
    }
  }, true);

  const set = (id, names) => {
    lists.set(id, names);
    if (early?.id === id && document.activeElement === early) open(early);
  };
  return { set };
})();
