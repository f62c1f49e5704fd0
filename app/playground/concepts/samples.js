// Answers that were generated when the concept was measured: a row for each question, a column for each strength.
import { html } from "../html.js";
import { strengthText } from "../parts/numbers.js";

export function Samples({ samples }) {
  if (samples.length === 0) return null;
  const questions = [...new Set(samples.map((sample) => sample.question))];
  return html`
    <section>
      <h3>Sample answers</h3>
      ${questions.map(
        (question) => html`
          <div key=${question} class="samples">
            <p class="question">${question}</p>
            <ol>
              ${samples
                .filter((sample) => sample.question === question)
                .sort((one, other) => one.strength - other.strength)
                .map(
                  ({ strength, text }) => html`
                    <li key=${strength} class="cell" data-strength=${strength}>
                      <h4>${strength === 0 ? "No steering" : strengthText(strength)}</h4>
                      <p class="text">${text.trim()}…</p>
                    </li>
                  `,
                )}
            </ol>
          </div>
        `,
      )}
    </section>
  `;
}
