// Answers every request with a greeting and the time since start.
'use strict';

const http = require('http');

const started = Date.now();

const server = http.createServer((request, response) => {
  response.setHeader('Content-Type', 'application/json');
  response.end(JSON.stringify({
    hello: request.url,
    node: process.version,
    up_ms: Date.now() - started,
  }) + '\n');
});

server.listen(process.env.PORT || 8080);
process.on('SIGTERM', () => server.close());
