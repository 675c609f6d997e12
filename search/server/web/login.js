// The token of a server that has one: asked for once, then the browser holds it as a cookie.

import * as api from "./api.js";
import { find } from "./dom.js";

let locked = false;

/** Asks; nothing else can be done before the token is right. */
export function askForToken() {
  locked = true;
  find("login-error").textContent = "";
  if (!find("login").open) find("login").showModal();
}

/** `entered` is called whenever a right token was given. */
export function listenForToken(entered) {
  // Browsers let Escape close a dialog at the second time whatever the page says.
  find("login").addEventListener("close", () => {
    if (locked) askForToken();
  });
  find("login").addEventListener("cancel", (event) => event.preventDefault());
  find("login-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      await api.login(find("token").value.trim());
    } catch (error) {
      const wrong = error.status === 401;
      find("login-error").textContent = wrong ? "This is not the token." : error.message;
      find("token").select();
      return;
    }
    locked = false;
    find("token").value = "";
    find("login").close();
    entered();
  });
}
