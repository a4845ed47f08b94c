// Package zone is the cache tier that the workers of one place share: what its
// client and its nodes (package zone/node) have in common, and the client.
//
// A chunk is cut into k stripes, n-k more are computed from them, and the n lie
// on n nodes; any k give the chunk back. A worker always asks for all n and uses
// the first k that come, so that a node that is dead, slow or wrong costs
// nobody anything and no more work than a good one (Brooker et al., "On-demand
// Container Loading in AWS Lambda", USENIX ATC 2023, §4.1).
//
// A stripe, as stored and as sent, is a header of 64 bytes and the payload.
// Numbers are big-endian:
//
//	 0  8  "thaw-S1\n"
//	 8  4  CRC-32C (Castagnoli) of the bytes from 12 to the end
//	12  1  k, 1 to 32: stripes that give the chunk back
//	13  1  n, k to 32: stripes in all
//	14  1  index, 0 to n-1; those below k are the chunk's own bytes
//	15  1  0
//	16  4  length of the sealed chunk in bytes, 1 to 2 MiB
//	20  4  length of the payload in bytes: that of the chunk ÷ k, rounded up
//	24  8  0
//	32 32  name of the chunk
//	64     payload; where k does not divide the chunk, zeros fill the last stripes
//
// Over HTTP (1.1, or 2 without TLS, of one handler), ID is a stripe's name,
// 64 hex digits, "/", k, "-", n, "-", index in decimal:
//
//	GET, HEAD /stripes/ID[?wait=MS]  200, ETag: "8 hex digits of the CRC", the stripe
//	                                 404 without a body, Thaw-Lease: granted MS | held MS
//	PUT /stripes/ID                  201 stored, 200 had the same, 412 had another; with
//	                                 If-Match: "CRC" replaces only the copy of that CRC
//	POST /stripes/have               4096 × 35 bytes at most: name, k, n, index
//	                                 200, a byte each: 1 held, 0 not
//	GET /status, GET /metrics        JSON; Prometheus
//	POST /drain                      from now on refuses PUT
//
// A GET that says Thaw-Lease: WORKER asks, should the stripe be missing, for the
// right to be the one who fills it. A 404 then says that it has been granted
// or is held by another, and for how many milliseconds. With wait, the node
// answers a lease that is held by another only when the stripe has come, when
// the lease has ended, or after so many milliseconds.
package zone
