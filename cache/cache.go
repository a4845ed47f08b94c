// Package cache is the worker's own tier (L1): a folder of sealed chunks that
// several processes share, the fetcher that fills it from the tiers beyond, and
// the client with which an agent reads from both.
//
// # Folder
//
//	chunks/<2 hex>/<name>   sealed chunks, 0444, in folders 0755
//	used                    8 bytes, big-endian: bytes stored, or more, never fewer
//	past                    when evicted chunks were used last: see policy.go
//	pins/<list>             names of chunks that are not evicted: see pin.go
//	lock                    no content; its bytes are locks (open file description locks)
//	tmp/<random>            unfinished chunks, where files without a name do not work
//
// A file gets its name once whole and verified. Nothing is synced: a power cut
// may damage a chunk, and whoever opens one hashes it, but an agent that had it
// prefetched, if the file is the same since. Byte 0 of lock is held shared by
// who adds a chunk, exclusively by who evicts; byte 1 + h, where h is the first
// 62 bits of a name, by who fetches that chunk.
//
// # Protocol between client and fetcher
//
// One stream, a unix socket, carries many requests at a time. Integers are
// big-endian, reserved bytes zero. The client sends a hello
//
//	 0  8  "thaw-L1\n"
//	 8  1  version, 2
//	 9  1  length of the root's name, 0 to 32; 0: there will be no gets
//	10  8  when the start that reads began, µs since 1970; 0 for unknown
//	18  n  the root's name
//
// which is not answered, then requests of 48 bytes:
//
//	 0  4  id, chosen by the client, not of one under way; 0 for touch
//	 4  1  op: 1 get, 2 touch: chunks are in use, 3 cancel: of the get or prefetch of that id,
//	       4 prefetch: have the chunk in the folder, behind all gets, 5 stats
//	 5  3  reserved
//	 8  4  of get and prefetch: how long to try, ms, at least 1; else 0
//	12  4  of get and prefetch: sealed length of the chunk, 1 to 2 MiB; of touch: length of
//	       what follows; else 0
//	16 32  of get and prefetch: the chunk's name; else 0
//	48  n  of touch: the names of the chunks, 1 to 512
//
// At most 64 gets and 16 prefetches are under way. The fetcher answers each
// one, in any order, but those cancelled, which it may or may not answer:
//
//	 0  4  id of the request; 0: this ends the connection, for the reason that follows
//	 4  1  status: 0 found, 1 not found, 2 corrupt, 3 unavailable, 4 internal
//	 5  1  tier it came from or failed in: 1 cache, 2 zone, 3 origin; 0 none, and for stats
//	 6  2  reserved
//	 8  4  length of what follows, at most 2 MiB; at most 512 if the status is not 0
//	12  n  the sealed chunk, which the fetcher or its tier has hashed; nothing for a
//	       prefetch; FetcherStats as JSON for stats; else one line of text
//
// There is no way to report a bad file: a get of a chunk whose file is there is
// that report, since the fetcher hashes every file before it gives it away and
// replaces a bad one.
package cache

import (
	"errors"
	"fmt"
)

// ErrUnavailable says that no tier gave the chunk in the time allowed: it may
// well be there, and a later try may work.
var ErrUnavailable = errors.New("chunk unavailable")

// Tier is a place where chunks are found.
type Tier uint8

// The tiers, nearest first. The zero Tier is none of them.
const (
	Cache  Tier = iota + 1 // the worker's folder
	Zone                   // the shared cache of the zone
	Origin                 // the durable store
)

// String gives the word for the tier that metrics and errors use.
func (t Tier) String() string {
	switch t {
	case Cache:
		return "cache"
	case Zone:
		return "zone"
	case Origin:
		return "origin"
	}
	return "fetcher" // it failed before it could ask a tier
}

// failure is what a fetcher answers instead of a chunk.
type failure struct {
	status status
	tier   Tier
	text   string // one line
}

// Error names the tier and the cause.
func (f *failure) Error() string { return fmt.Sprintf("%s: %s", f.tier, f.text) }

// Unwrap gives the sentinel of the status.
func (f *failure) Unwrap() error { return f.status.err() }
