// The report of a concept: the verdict, the measured curves, the figures, and sample answers.
import { html } from "../html.js";
import { Chart } from "../parts/chart.js";
import { capital, percentText, plainText, strengthText } from "../parts/numbers.js";
import { Scale } from "../parts/scale.js";
import { useMemo } from "../vendor/preact-hooks.js";
import { Samples } from "./samples.js";

/** `onTry(strength)`: shows what the concept does at this strength. */
export function Report({ report, onTry }) {
  return html`
    <${Verdict} report=${report} />
    <${Limits} report=${report} onTry=${onTry} />
    ${report.effects.length > 0 && html`<${Curves} effects=${report.effects} />`}
    <${Figures} report=${report} />
    ${report.answers.length > 0 && html`<${AnswerTable} answers=${report.answers} />`}
    <${Samples} samples=${report.samples} />
  `;
}

function Verdict({ report }) {
  const [sign, name] = { true: ["It works", "good"], false: ["It does not work", "bad"], null: ["Not judged", "open"] }[report.works];
  return html`
    <div class="verdict ${name}">
      <strong>${sign}</strong>
      <p>${report.summary}</p>
      ${report.warnings.length > 0 && html`<ul>${report.warnings.map((warning) => html`<li key=${warning}>${capital(warning)}.</li>`)}</ul>`}
    </div>
  `;
}

/** The strongest strengths, in words. */
function Limits({ report, onTry }) {
  const { max_strength: up, max_down_strength: down, answers } = report;
  const ends = [-down, up].filter((strength) => strength !== 0);
  return html`
    <div class="limits">
      <p>
        ${answers.length > 0 ? "In answers to neutral questions, it stays fluent" : "It can be used"} at strengths from
        <strong> ${strengthText(-down)}</strong> to <strong>${strengthText(up)}</strong>. Stronger ones count as these.
      </p>
      ${ends.map((strength) => html`<button type="button" key=${strength} onClick=${() => onTry(strength)}>Try ${strengthText(strength)}</button>`)}
    </div>
  `;
}

function Curves({ effects }) {
  const shifts = useMemo(() => effects.map(({ strength, shift, shift_error: error }) => ({ x: strength, y: shift, error })), [effects]);
  const ratios = useMemo(() => effects.map(({ strength, perplexity_ratio: ratio }) => ({ x: strength, y: ratio })), [effects]);
  return html`
    <section class="curves" aria-label="Curves">
      <figure>
        <figcaption>Effect <small>by how much positive texts become likelier than negative ones, with one standard error</small></figcaption>
        <${Chart} label=${inWords("Effect", shifts)} points=${shifts} include=${[0]} lines=${[{ y: 0 }]} xText="strength" yText="nats per token" />
      </figure>
      <figure>
        <figcaption>Fluency <small>perplexity of unrelated texts, relative to no steering; near 1 is best</small></figcaption>
        <${Chart} label=${inWords("Perplexity ratio", ratios)} points=${ratios} include=${[0.9, 1.5]} lines=${[{ y: 1 }]} xText="strength" yText="ratio" />
      </figure>
    </section>
  `;
}

const inWords = (name, points) => `${name} by strength: ${points.map(({ x, y }) => `${strengthText(x)}: ${plainText(y)}`).join("; ")}`;

function Figures({ report }) {
  const { specificity, specificity_error: error, agreement } = report;
  return html`
    <dl class="figures-list">
      <${Scale}
        label="Specificity"
        value=${specificity}
        error=${error}
        range=${[0, Math.max(10, (specificity ?? 0) + (error ?? 0))]}
        good=${[3, Infinity]}
        note="Times the effect of random directions of the same size. It should be above 3."
      />
      <${Scale}
        label="Agreement"
        value=${agreement}
        range=${[-0.2, 1]}
        good=${[0.15, 0.85]}
        note="Whether the pairs point the same way. Below 0.15 they hardly agree; above 0.85 they may show one sentence."
      />
      <div>
        <dt>Pairs</dt>
        <dd>
          <strong>${report.num_examples}</strong>
          <p class="note">${report.num_distinct} distinct, in ${report.num_groups} groups; ${report.num_held_out} measured</p>
        </dd>
      </div>
      <div>
        <dt>Decoder blocks</dt>
        <dd>
          <strong>${report.blocks.join(", ")}</strong>
          <p class="note">${negativeBlocks(report)}Dose ${plainText(report.dose)} up, ${plainText(report.down_dose)} down. Read at block ${report.reading_block}.</p>
        </dd>
      </div>
    </dl>
  `;
}

function negativeBlocks({ blocks, down_blocks }) {
  const down = down_blocks.join(", ");
  return down === blocks.join(", ") ? "" : `With negative strengths ${down}. `;
}

function AnswerTable({ answers }) {
  return html`
    <section>
      <h3>In generated answers</h3>
      <div class="scroll">
        <table class="numbers">
          <thead>
            <tr><th scope="col">Strength</th><th scope="col">Moved</th><th scope="col">Repetition</th><th scope="col">Perplexity</th></tr>
          </thead>
          <tbody>
            ${answers.map(
              ({ strength, moved, repetition, perplexity }) => html`
                <tr key=${strength}>
                  <th scope="row">${strengthText(strength)}</th>
                  <td>${percentText(moved)}</td>
                  <td>${percentText(repetition)}</td>
                  <td>${plainText(perplexity, 1)}</td>
                </tr>
              `,
            )}
          </tbody>
        </table>
      </div>
      <p class="note">Moved: the share of answers that read at least half the way towards the examples of the sign.</p>
    </section>
  `;
}
