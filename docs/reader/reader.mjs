// A reader of Thaw's store in another language: the companion of ../formats.md, written from that page alone. It finds
// an image by its name, checks all that the page tells a reader to check, in that order, and writes the device to OUT
// as a sparse file. It needs Node 18 or later and nothing else. § means a section of the page.
//
//     node reader.mjs STATE-FOLDER TENANT NAME OUT
//
// Exit status: 0; 1 with one line on stderr; 2 for a wrong command line. OUT must not exist, and appears when all is
// verified, not before. Memory: the manifest (at most 72 bytes a chunk, and a few MiB) and a few chunks.

import { createDecipheriv, createHash, timingSafeEqual } from 'node:crypto';
import * as fs from 'node:fs';
import { dirname, join } from 'node:path';

// §1: the outcomes that a reader keeps apart.
const fail = (outcome, text) => { throw Object.assign(new Error(`${outcome}: ${text}`), { outcome }); };
// Most checks fail as corrupt.
const check = (ok, text) => { if (!ok) fail('corrupt', text); };

// §3.1: the forms of the parts of a key, and the most bytes of an object.
const FORM = {
  root: /^[a-z0-9][a-z0-9-]{0,31}$/,
  tenant: /^[a-z0-9][a-z0-9._-]{0,63}$/,
  name: /^[A-Za-z0-9][A-Za-z0-9._/:@-]{0,254}$/,
  hex: /^[0-9a-f]{64}$/,
  seq: /^[0-9]{20}$/,
};
const MIB = 1 << 20;
const MAX = { record: MIB / 4, manifest: 1280 * MIB, config: 4 * MIB, table: 1024 * MIB };

const SHA = (...parts) => parts.reduce((hash, part) => hash.update(part), createHash('sha256')).digest();
const u32 = (n) => { const b = Buffer.alloc(4); b.writeUInt32BE(n); return b; };
const u64 = (n) => { const b = Buffer.alloc(8); b.writeBigUInt64BE(BigInt(n)); return b; };
const lp = (s) => Buffer.concat([u32(s.length), Buffer.from(s, 'latin1')]); // all strings here are ASCII

// openGCM gives the plaintext, or null if key, nonce, ciphertext or additional data are not what was sealed.
function openGCM(key, nonce, additional, sealed) {
  const d = createDecipheriv('aes-256-gcm', key, nonce, { authTagLength: 16 });
  d.setAAD(additional);
  d.setAuthTag(sealed.subarray(sealed.length - 16));
  const plain = d.update(sealed.subarray(0, sealed.length - 16));
  try { d.final(); } catch { return null; }
  return plain;
}

// ---- the store (§3.1): an object is the regular file at ORIGIN/key

// store runs one file operation and says what a failure of it is: nothing there, or the store's own trouble.
function store(what, operation) {
  try {
    return operation();
  } catch (err) {
    if (err.outcome) throw err;
    if (err.code === 'ENOENT' || err.code === 'ENOTDIR') fail('not found', what);
    return fail('failed', `${what}: ${err.code ?? err.message}`);
  }
}

// get reads an object whole. accept sees its stat before anything is allocated, and refuses a wrong length.
function get(path, what, accept) {
  return store(what, () => {
    const fd = fs.openSync(path, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK); // a FIFO would wait for ever
    try {
      const stat = fs.fstatSync(fd);
      check(stat.isFile(), `${what} is no regular file`);
      accept(stat);
      const data = Buffer.alloc(stat.size);
      for (let at = 0; at < data.length;) {
        const n = fs.readSync(fd, data, at, data.length - at, at);
        at += n || fail('failed', `${what} became shorter while it was read`);
      }
      return data;
    } finally {
      fs.closeSync(fd);
    }
  });
}

const atMost = (max, what) => ({ size }) => check(size <= max, `${what} has ${size} bytes, more than ${max}`);

// ---- the tenant's key (§4)

// safe refuses a file or folder that is another user's, or has one of the mode's bits.
function safe({ mode, uid }, bits, what) {
  const self = process.geteuid();
  if (uid !== self && uid !== 0 && self !== 0) fail('unsafe', `${what} belongs to user ${uid}`);
  if ((mode & bits) !== 0) fail('unsafe', `${what} is open to others (mode ${(mode & 0o7777).toString(8)})`);
}

// loadKey is step 1 of §2: 64 hex digits and a newline, in a file that is the owner's alone.
function loadKey(path) {
  const what = `key file ${path}`;
  const text = get(path, what, (stat) => {
    safe(stat, 0o077, what);
    safe(fs.statSync(dirname(path)), 0o022, `the folder of ${what}`);
    check(stat.size === 65, `${what} has ${stat.size} bytes, not 65`);
  }).toString('latin1');
  check(text[64] === '\n' && FORM.hex.test(text.slice(0, 64)), `${what}: not 64 hex digits and a newline`);
  return Buffer.from(text.slice(0, 64), 'hex');
}

// unwrap opens a value that the tenant's key has wrapped: nonce 12 ‖ ciphertext ‖ tag 16.
function unwrap(key, wrapped, what) {
  const plain = wrapped.length < 28 ? null
    : openGCM(key, wrapped.subarray(0, 12), Buffer.from('thaw key file v1\0'), wrapped.subarray(12));
  return plain ?? fail('refused', `${what}: the tenant's key does not open it (a wrong key, or damaged)`);
}

// ---- references (§3.2, §3.3)

// latest is step 2: the highest number under a name, as a string of 20 digits, and its record.
function latest(folder, what) {
  for (let attempt = 0; attempt < 8; attempt++) {
    const numbers = store(what, () => fs.readdirSync(folder, { withFileTypes: true }))
      .filter((f) => f.isFile() && FORM.seq.test(f.name) && BigInt(f.name) >= 1n && BigInt(f.name) < 2n ** 64n)
      .map((f) => f.name).sort();
    if (numbers.length === 0) fail('not found', what);
    const seq = numbers[numbers.length - 1];
    try {
      return { seq, data: get(join(folder, seq), `record ${seq} of ${what}`, atMost(MAX.record, what)) };
    } catch (err) {
      if (err.outcome !== 'not found') throw err; // an older record may vanish: list again
    }
  }
  return fail('failed', `${what}: its records vanish faster than they are read`);
}

// One line of JSON in exactly one form: a pattern over all its bytes is a parser. No legal value has other letters.
const TEXT = '"([A-Za-z0-9:+/=._-]*)"';
const RECORD = new RegExp(`^\\{"version":([0-9]+),"image":${TEXT},"root":${TEXT},"removed":(true|false),`
  + `"time":${TEXT},"seal":${TEXT}\\}$`);

// findImage is steps 2 and 3: from a name to the root and id of its image.
function findImage(origin, key, tenant, name) {
  const what = `name ${name}`;
  const { seq, data } = latest(join(origin, 'names', tenant, name.replaceAll('/', '!')), what);
  // §3.3, check 1: the form, byte for byte, and the version.
  const fields = RECORD.exec(data.toString('latin1'));
  check(fields !== null, `${what}: the record is not in the form of a reference`);
  const [, version, image, root, removed, time, seal] = fields;
  const sealed = Buffer.from(seal, 'base64');
  check(sealed.toString('base64') === seal, `${what}: the seal is not base64`);
  check(version === '1', `${what}: reference version ${version}`);
  // Checks 2 and 3: the seal is the tenant's, and of this tenant, name and number.
  const digest = unwrap(key, sealed, what);
  const removedByte = Buffer.from([removed === 'true' ? 1 : 0]);
  const want = SHA('thaw reference v1\0', lp(tenant), lp(name), u64(seq), lp(image), lp(root), removedByte, lp(time));
  check(digest.length === 32 && timingSafeEqual(digest, want), `${what}: the seal is of another record`);
  // Check 4: it says one thing. Root becomes part of a path.
  const points = FORM.hex.test(image) && root !== '';
  check((removed === 'true') !== points, `${what}: the record is neither a reference nor a removal`);
  if (removed === 'true') fail('not found', `${what}: removed`);
  check(FORM.root.test(root), `${what}: root of no legal form`);
  // Check 5: the time in its one form, and of a day and hour that exist.
  const date = new Date(time.length === 20 ? time : NaN);
  check(date.getTime() % 1000 === 0 && date.toISOString() === time.replace('Z', '.000Z'), `${what}: no legal time`);
  return { image, root };
}

// ---- manifests (§6)

// parseManifest is step 5, the nine checks of §6.2: all that needs no key. It keeps offsets into data, no copies.
function parseManifest(data, id) {
  // 1 and 2: magic and version.
  check(data.length >= 68 && data.toString('latin1', 0, 8) === 'thaw mf\n', 'the manifest has no head of one');
  const version = data.readUInt16BE(8);
  if (version > 1) fail('newer', `the manifest has version ${version}, this reader knows 1`);
  check(version === 1, 'the manifest has version 0');
  // 3: the numbers of 64 bits are BigInts until they are known to be small. What passes check 5 is at most 2^53.
  const size64 = data.readBigUInt64BE(16);
  check(size64 < 2n ** 63n, 'the device is too large');
  // 4: the parts fit the file.
  const T = data.readUInt16BE(14);
  const N = data.readUInt32BE(32);
  const R = 68 + T + 40 * N;
  check(R <= data.length, 'the readable part does not end in the file');
  const S64 = data.readBigUInt64BE(24);
  check(S64 <= BigInt(data.length - R), 'the sealed part does not end in the file');
  const S = Number(S64);
  // 5: kind, tenant, chunk size, size.
  const kind = data[10];
  check(kind === 1 || kind === 2, `the manifest has kind ${kind}`);
  const tenant = data.toString('latin1', 68, 68 + T);
  check(FORM.tenant.test(tenant), "the manifest's tenant is none");
  check(data[11] >= 16 && data[11] <= 21, 'the chunk size is not legal');
  const chunkSize = 2 ** data[11];
  check(size64 > 0n || kind === 2, 'the device is empty');
  check(size64 <= 2n ** 32n * BigInt(chunkSize), 'the device has more than 2^32 chunks');
  const size = Number(size64);
  // 6: bounds of S.
  const C = kind === 1 ? MAX.config : MAX.table;
  check(S >= 32 * N + 17 && S <= 32 * N + 272 + C, 'the sealed part has no legal length');
  const m = { data, kind, tenant, chunkSize, size, N, R, S, C, list: 68 + T, readable: data.subarray(0, R) };
  // 7: the chunks, in order.
  for (let i = 0, next = 0; i < N; i++) {
    const { index, length, name } = chunkAt(m, i);
    const start = index * chunkSize;
    check(index >= next && start < size, `chunk ${i} has index ${index}`);
    check(length >= 1 && length <= chunkSize && start + length <= size, `chunk ${i} has ${length} bytes`);
    check(length % 65536 === 0 || start + length === size, `chunk ${i} ends at no grain`);
    check(name.some((b) => b !== 0), `chunk ${i} has no name`);
    next = index + 1;
  }
  // 8: the envelope.
  const envelope = data.subarray(R + S);
  check(envelope.length >= 4, 'the envelope is too short');
  const U = envelope.readUInt16BE(0);
  check(U >= 1 && U <= 4096 && 4 + U <= envelope.length, 'the URL in the envelope has no legal length');
  m.url = envelope.subarray(2, 2 + U);
  check(m.url.every((b) => b >= 0x21 && b <= 0x7e), 'the URL in the envelope has an illegal byte');
  m.wrapped = envelope.subarray(4 + U);
  const W = envelope.readUInt16BE(2 + U);
  check(W >= 1 && W === m.wrapped.length, 'the manifest does not end with its envelope');
  // 9: the id.
  m.id = SHA(m.readable);
  check(m.id.toString('hex') === id, 'the manifest is not the one of this id');
  return m;
}

// chunkAt reads entry i of the list: 40 bytes.
function chunkAt(m, i) {
  const entry = m.data.subarray(m.list + 40 * i, m.list + 40 * i + 40);
  return { index: entry.readUInt32BE(0), length: entry.readUInt32BE(4), name: entry.subarray(8) };
}

// openManifest is steps 6 and 7, the four checks of §6.3. It gives the secret, which starts with the chunks' keys.
function openManifest(m, key) {
  const bound = unwrap(key, m.wrapped, 'the envelope of the manifest');
  check(bound.length === 96, 'the envelope holds something else');
  check(timingSafeEqual(bound.subarray(32, 64), m.id), 'the envelope is of another manifest');
  check(timingSafeEqual(bound.subarray(64), SHA(m.url)), 'the URL in the envelope was changed');
  const sealed = m.data.subarray(m.R, m.R + m.S);
  const secret = openGCM(bound.subarray(0, 32), Buffer.alloc(12), m.readable, sealed);
  check(secret !== null, 'the sealed part does not open');
  const config = 32 * m.N + 1 + secret[32 * m.N]; // where it starts: behind keys, L and source
  check(secret.length >= config, 'the sealed part is too short for its source');
  check(secret.length - config <= m.C, 'the config is too large');
  return secret;
}

// ---- the device (steps 9 to 13)

// readChunk checks length and name of a chunk before it decrypts.
function readChunk(folder, { length, name }, key) {
  const hex = name.toString('hex');
  const what = `chunk ${hex}`;
  const sealed = get(join(folder, hex.slice(0, 2), hex), what,
    ({ size }) => check(size === length, `${what} has ${size} bytes, the manifest says ${length}`));
  check(SHA(sealed).equals(name), `${what} has other bytes than its name says`);
  return createDecipheriv('aes-256-ctr', key, Buffer.alloc(16)).update(sealed);
}

// writeDevice makes a file of size zero bytes and writes the chunks into it. What no chunk covers stays a hole.
function writeDevice(m, secret, folder, out) {
  const part = `${out}.part-${process.pid}`;
  const fd = store(part, () => fs.openSync(part, 'wx', 0o600)); // a device is a tenant's secret
  try {
    store(part, () => fs.ftruncateSync(fd, m.size));
    for (let i = 0; i < m.N; i++) {
      const chunk = chunkAt(m, i);
      const plain = readChunk(folder, chunk, secret.subarray(32 * i, 32 * i + 32));
      const start = chunk.index * m.chunkSize;
      for (let at = 0; at < plain.length;) {
        at += store(part, () => fs.writeSync(fd, plain, at, plain.length - at, start + at));
      }
    }
    store(part, () => fs.fsyncSync(fd));
    store(out, () => fs.linkSync(part, out)); // does not replace
  } finally {
    fs.closeSync(fd);
    fs.rmSync(part, { force: true }); // §9: never go on with a part
  }
}

// read is §2 from top to bottom.
function read(state, tenant, name, out) {
  if (!FORM.tenant.test(tenant)) fail('not found', `tenant ${JSON.stringify(tenant)} is not a legal one`);
  if (!FORM.name.test(name)) fail('not found', `name ${JSON.stringify(name)} is not a legal one`);
  const origin = join(state, 'origin');
  const key = loadKey(join(state, 'keys', tenant)); // 1
  const { image, root } = findImage(origin, key, tenant, name); // 2, 3
  const folder = join(origin, 'roots', root);
  const what = `manifest ${image}`;
  const data = get(join(folder, 'manifests', tenant, image), what, atMost(MAX.manifest, what)); // 4
  const m = parseManifest(data, image); // 5
  const secret = openManifest(m, key); // 6, 7
  check(m.kind === 1 && m.tenant === tenant, `${what} is not of an image of tenant ${tenant}`); // 8
  writeDevice(m, secret, join(folder, 'chunks'), out); // 9 to 13
}

if (process.argv.length !== 6) {
  console.error('usage: node reader.mjs STATE-FOLDER TENANT NAME OUT');
  process.exit(2);
}
try {
  read(...process.argv.slice(2));
} catch (err) {
  console.error(`reader: ${err.message}`);
  process.exit(1);
}
