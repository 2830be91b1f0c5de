// Node's `fetch` and `node:http`, which axios uses: BASE_URL TOKEN PICTURE TRIES. Prints what each saw as one line of JSON.

import { readFileSync } from 'node:fs';
import http from 'node:http';

const [base, token, picture, tries] = process.argv.slice(2);
const target = `${base}/api/image/editing/image-cropping`;
const large = Buffer.concat([Buffer.from([0xff, 0xd8]), Buffer.alloc(20_000_000)]);

function form(image) {
  const form = new FormData();
  form.set('image', new Blob([image]), 'image.jpg');
  form.set('width', '64');
  form.set('height', '48');
  return form;
}

async function byFetch(key, image) {
  const answer = await fetch(target, { method: 'POST', headers: { 'ailabapi-api-key': key }, body: form(image) });
  return { status: answer.status, json: await answer.json() };
}

// The form as one buffer, written at once.
async function byHttp(key, image) {
  const encoded = new Response(form(image));
  const headers = { 'ailabapi-api-key': key, 'Content-Type': encoded.headers.get('content-type') };
  const body = Buffer.from(await encoded.arrayBuffer());
  return new Promise((resolve, reject) => {
    const request = http.request(target, { method: 'POST', headers: { ...headers, 'Content-Length': body.length } });
    request.on('error', reject);
    request.on('response', (response) => {
      const pieces = [];
      response.on('data', (piece) => pieces.push(piece));
      response.on('error', reject);
      response.on('end', () => resolve({ status: response.statusCode, json: JSON.parse(Buffer.concat(pieces)) }));
    });
    request.end(body);
  });
}

async function seen(call) {
  const bought = await call(token, readFileSync(picture));
  const refusals = {};
  for (let number = 0; number < Number(tries); number += 1) {
    let outcome;
    try {
      const refused = await call('bad', large);
      outcome = `${refused.status} ${refused.json.error_code_str}`;
    } catch (error) {
      outcome = error.cause?.code ?? error.code ?? error.name;
    }
    refusals[outcome] = (refusals[outcome] ?? 0) + 1;
  }
  return { url: bought.json.data?.url, refusals };
}

console.log(JSON.stringify({ fetch: await seen(byFetch), http: await seen(byHttp) }));
