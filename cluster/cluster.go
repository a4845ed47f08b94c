// Package cluster is where a fleet keeps what must survive, and where its roles
// find each other: a NATS server with JetStream, inside a process by default,
// several of them where one machine is not enough.
//
// Records are durable: a change is on disk before it is acknowledged. Leases
// live in memory and end by themselves. Both are maps from keys to values with
// compare-and-swap, and both can be watched.
//
// # Names on the wire
//
// A bucket is a NATS key-value bucket of its name. A key may hold any bytes: it
// is cut at slashes, and each part is written as lower case hex, "_" if empty;
// dots join them. So "owner/1/f" is 6f776e6572.31.66, and the server can select
// by prefix up to a slash. The value of a lease starts with 16 random bytes of
// its holder, which are not shown.
//
// # Who may enter
//
// Everybody who knows the token: user "thaw", and a password that is an HMAC of
// the token. Servers of one cluster know each other by another HMAC of it.
// Neither is logged or put into errors. Beyond loopback connections are TLS on
// top, client or server, in which both sides show a certificate (ServerOptions.TLS).
package cluster

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"time"
)

// What a caller can tell apart.
var (
	// ErrNotFound says that no value is stored under the key.
	ErrNotFound = errors.New("not found")
	// ErrExists says that the key has a value, or that somebody holds the lease.
	ErrExists = errors.New("exists already")
	// ErrConflict says that the value has changed since its revision was read.
	ErrConflict = errors.New("changed meanwhile")
	// ErrUnavailable says that no server answered in time, or that it has no
	// room. A change that failed so may have been made, and may not.
	ErrUnavailable = errors.New("cluster unavailable")
	// ErrLost says that a lease has ended, and perhaps has another holder.
	ErrLost = errors.New("lease lost")
)

const (
	// MaxValue is the longest value in bytes: more than an event and its
	// context may have, and little enough for a server to buffer.
	MaxValue = 2 << 20
	// MaxKey is the longest key in bytes. In hex, it stays well below the 4 KiB
	// that a line of the protocol may have.
	MaxKey = 1024
	// overhead is the room for headers and subjects beside a value.
	overhead = 64 << 10
	// patience is how long an operation tries to reach a server that can answer:
	// longer than the election of another leader takes.
	patience = 15 * time.Second
	// attempt is how long one try waits for its answer.
	attempt = 5 * time.Second
	// pause is the time between tries.
	pause = 50 * time.Millisecond
	// user is whom all roles sign in as.
	user = "thaw"
)

// Record is a value as it was stored.
type Record struct {
	Key      string
	Value    []byte
	Revision uint64 // of this value; grows with each change in the bucket
}

// Change is what a watch tells: a value that is there now, a key that has none
// any more, or that all values that were present have been told.
type Change struct {
	Record
	Deleted bool // there is no value
	// Synced marks the end of the values that were there when the watch began.
	// The change has no key then. It comes again whenever the watch had to
	// begin anew, after a connection was lost.
	Synced bool
}

// secret is what the token becomes for one purpose.
func secret(token, purpose string) string {
	h := hmac.New(sha256.New, []byte(token))
	h.Write([]byte("thaw cluster " + purpose))
	return hex.EncodeToString(h.Sum(nil))
}
