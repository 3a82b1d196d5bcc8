// Runs before the first paint, so that no page flashes in the other theme.
"use strict";
try {
  const saved = localStorage.getItem("dreamkit-theme");
  if (saved === "light" || saved === "dark") document.documentElement.dataset.theme = saved;
} catch {
  // Storage is switched off: the system's theme it is.
}
