// Starts aimock on a free loopback port; the first line on standard output is JSON {"url": ...}.
// Ends with standard input.
const { LLMock } = require("@copilotkit/aimock");

const busy = {
  error: { message: "slow down", type: "rate_limit_error" },
  status: 429,
  retryAfter: 1,
};
const wrong = {
  error: { message: "asked to fail", type: "invalid_request_error", code: "invalid_prompt" },
  status: 400,
};

async function main() {
  const mock = new LLMock({ port: 0, logLevel: "silent" });
  mock.on({ userMessage: /please fail/ }, wrong);
  for (const name of ["openai", "anthropic"]) {
    mock.on({ userMessage: new RegExp(`busy ${name}`), sequenceIndex: 0 }, busy);
  }
  mock.on({ userMessage: /.*/ }, { content: "from another hand" });
  mock.onEmbedding(/.*/, { embedding: [0.25, 0.5] });
  await mock.start();
  console.log(JSON.stringify({ url: mock.url }));
  process.stdin.resume();
  process.stdin.on("end", () => mock.stop().then(() => process.exit(0)));
}

main();
