// The sample function in JavaScript. It answers with its event, but for {"do": {…}}: see handler. It has no other library, and runs as well
// under AWS's own client (aws-lambda-ric app.handler), where app.stream gives the pieces of {"do": {"stream": […]}} one by one.
'use strict';

const { randomUUID } = require('node:crypto');

const instance = randomUUID();
let invokes = 0;

exports.handler = async (event, context) => {
  invokes++;
  const wanted = event && event.do;
  if (!wanted) return event;
  if (wanted.log_text) console.log(wanted.log_text);
  if (wanted.sleep_ms) await new Promise((done) => setTimeout(done, wanted.sleep_ms));
  if (wanted.error) throw new Error(wanted.error);
  if (wanted.exit !== undefined) process.exit(wanted.exit);
  return {
    instance,
    invokes,
    request_id: context.awsRequestId,
    arn: context.invokedFunctionArn,
    function: context.functionName,
    remain_ms: context.getRemainingTimeInMillis(),
    env: Object.fromEntries((wanted.env || []).filter((name) => name in process.env).map((name) => [name, process.env[name]])),
  };
};

if (globalThis.awslambda) {
  exports.stream = globalThis.awslambda.streamifyResponse(async (event, stream) => {
    for (const piece of event.do.stream) {
      stream.write(piece);
      await new Promise((done) => setTimeout(done, 50));
    }
    if (event.do.error) throw new Error(event.do.error);
    stream.end();
  });
}
