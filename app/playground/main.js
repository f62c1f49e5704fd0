// The page: a bar with the views at its top, and the view that the address names.
import { Inspector } from "./answer/inspector.js";
import { ChatView } from "./chat/view.js";
import { ConceptsView } from "./concepts/view.js";
import { html } from "./html.js";
import { AccessDialog, ForgetToken } from "./parts/access.js";
import { Announcer } from "./parts/announcer.js";
import { ErrorBox } from "./parts/errors.js";
import { chooseModel } from "./state/concepts.js";
import { addressOf, route } from "./state/route.js";
import { model, models } from "./state/settings.js";
import { refreshModels, start, startError } from "./state/start.js";
import { SteerView } from "./steer/view.js";
import { render } from "./vendor/preact.js";
import { useEffect } from "./vendor/preact-hooks.js";

const VIEWS = {
  steer: { title: "Steer", View: SteerView },
  chat: { title: "Chat", View: ChatView },
  concepts: { title: "Concepts", View: ConceptsView },
};

// Other addresses that show a view.
const ALSO = { "new-concept": "concepts", "import-vectors": "concepts" };

function Page() {
  const { view } = route.value;
  const { title, View } = VIEWS[ALSO[view] ?? view] ?? VIEWS.steer;
  useEffect(() => {
    document.title = `${title} – Tiller`;
  }, [title]);
  return html`
    <header class="bar">
      <a class="brand" href="#steer"><img src=${new URL("icon.svg", import.meta.url).href} alt="" width="24" height="24" />Tiller</a>
      <nav aria-label="Views">
        ${Object.entries(VIEWS).map(
          ([name, { title: label }]) => html`<a key=${name} href=${addressOf(name)} aria-current=${label === title ? "page" : undefined}>${label}</a>`,
        )}
      </nav>
      <div class="bar-end">
        <${ModelChoice} />
        <a href="docs">API</a>
        <${ForgetToken} />
      </div>
    </header>
    <main>
      <h1 class="hidden">${title}</h1>
      <${ErrorBox} error=${startError.value} onRetry=${start} />
      <${View} />
    </main>
    <${AccessDialog} />
    <${Inspector} />
    <${Announcer} />
  `;
}

function ModelChoice() {
  return html`
    <label class="model">
      <span class="hidden">Model</span>
      <select value=${model} onFocus=${refreshModels} onChange=${(event) => chooseModel(event.target.value)}>
        ${models.value.map((name) => html`<option key=${name} value=${name}>${name}</option>`)}
      </select>
    </label>
  `;
}

start();
const place = document.getElementById("app");
place.replaceChildren();
render(html`<${Page} />`, place);
