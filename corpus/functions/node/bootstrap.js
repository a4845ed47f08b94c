// A small client of the Runtime API: runs the handler that _HANDLER names, as "module.function". It is a runtime for images, and with a
// base image that has it as its entrypoint one for zip packages too.
'use strict';

const http = require('node:http');
const path = require('node:path');

const [host, port] = process.env.AWS_LAMBDA_RUNTIME_API.split(':');
const agent = new http.Agent({ keepAlive: true, maxSockets: 1 });

function request(method, what, body, headers = {}) {
  return new Promise((resolve, reject) => {
    const options = { host, port, method, agent, path: '/2018-06-01/runtime/' + what, headers };
    const r = http.request(options, (response) => {
      const pieces = [];
      response.on('data', (piece) => pieces.push(piece));
      response.on('error', reject);
      response.on('end', () => {
        if (response.statusCode !== 200 && response.statusCode !== 202) {
          reject(new Error(`the Runtime API answers ${response.statusCode} to ${what}`));
          return;
        }
        resolve({ headers: response.headers, body: Buffer.concat(pieces).toString() });
      });
    });
    r.on('error', reject);
    r.end(body);
  });
}

function failure(error) {
  const errorType = (error && error.name) || typeof error;
  const body = { errorType, errorMessage: String((error && error.message) || error), trace: String((error && error.stack) || '').split('\n') };
  return [JSON.stringify(body), { 'Lambda-Runtime-Function-Error-Type': 'Function.' + errorType }];
}

function load(name) {
  const dot = name.lastIndexOf('.');
  const root = process.env.LAMBDA_TASK_ROOT || process.cwd();
  const handler = require(path.join(root, name.slice(0, dot)))[name.slice(dot + 1)];
  if (typeof handler !== 'function') throw new Error(`${name} is no function`);
  return handler;
}

function context(headers) {
  return {
    awsRequestId: headers['lambda-runtime-aws-request-id'],
    invokedFunctionArn: headers['lambda-runtime-invoked-function-arn'],
    functionName: process.env.AWS_LAMBDA_FUNCTION_NAME,
    functionVersion: process.env.AWS_LAMBDA_FUNCTION_VERSION,
    memoryLimitInMB: process.env.AWS_LAMBDA_FUNCTION_MEMORY_SIZE,
    getRemainingTimeInMillis: () => Math.max(0, headers['lambda-runtime-deadline-ms'] - Date.now()),
  };
}

async function main() {
  let handler;
  try {
    handler = load(process.env._HANDLER || process.argv[2]);
  } catch (error) {
    await request('POST', 'init/error', ...failure(error));
    process.exit(1);
  }
  for (;;) {
    const { headers, body } = await request('GET', 'invocation/next');
    const invocation = 'invocation/' + headers['lambda-runtime-aws-request-id'];
    let answer;
    try {
      answer = JSON.stringify(await handler(JSON.parse(body), context(headers))) ?? 'null';
    } catch (error) {
      await request('POST', invocation + '/error', ...failure(error));
      continue;
    }
    await request('POST', invocation + '/response', answer, { 'Content-Type': 'application/json' });
  }
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
