// Keyboard focus stays within an open dialog, and goes back to what opened it when it is closed.
(() => {
  const CONTROLS = "a[href], button, input, select, textarea, [tabindex]";
  const DIALOG = ".q-dialog[role]";
  let opener = null; // what had focus last outside of any dialog or menu
  const open = () => [...document.querySelectorAll(DIALOG)].filter((each) => each.querySelector(".iso-dialog")).at(-1);
  const usable = (dialog) => [...dialog.querySelectorAll(CONTROLS)].filter(
    (each) => each.tabIndex >= 0 && !each.disabled && each.getClientRects().length && each.closest(".iso-dialog"));

  addEventListener("focusin", (event) => {
    // A button that was clicked hands its focus to a part of itself.
    if (!event.target.closest(".q-dialog, .q-menu")) opener = event.target.closest("button") ?? event.target;
  });

  // A table may have drawn its rows anew meanwhile: then the button of the same name.
  const back = () => {
    const name = opener?.getAttribute("aria-label");
    return !opener || opener.isConnected || !name ? opener : document.querySelector(`button[aria-label="${CSS.escape(name)}"]`);
  };

  addEventListener("keydown", (event) => {
    const dialog = event.key === "Tab" && open();
    if (!dialog) return;
    const controls = usable(dialog), first = controls[0], last = controls.at(-1), at = document.activeElement;
    if (!first) return;
    const inside = controls.includes(at);
    if (event.shiftKey ? at === first || !inside : at === last || !inside) {
      event.preventDefault();
      (event.shiftKey ? last : first).focus();
    }
  }, true);

  addEventListener("DOMContentLoaded", () => {
    let was = false;
    new MutationObserver(() => {
      const is = Boolean(open());
      if (was && !is) back()?.focus({ preventScroll: true });
      was = is;
    }).observe(document.body, { childList: true, subtree: true });
  });
})();
