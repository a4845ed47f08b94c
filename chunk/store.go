package chunk

import "context"

// Source gives sealed chunks by name.
//
// Get returns the bytes of the chunk, which are the caller's to modify. A
// Source does not verify them: whoever opens or passes them on checks the name
// (Open, Check). Missing chunks give ErrNotFound, an object that cannot be a
// chunk (longer than MaxSize) ErrCorrupt; anything else is a failure of the
// store and may be retried. Implementations are safe for concurrent use.
type Source interface {
	Get(ctx context.Context, name Name) ([]byte, error)
}

// Store is a Source that takes chunks.
//
// Put stores sealed under name if no object of that name and length exists,
// atomically across processes, and reports whether it wrote. After it returns
// nil the chunk survives a crash. An object of another length is replaced: it
// cannot be right. The caller has made sure that name is the hash of sealed,
// and keeps the slice.
type Store interface {
	Source
	Put(ctx context.Context, name Name, sealed []byte) (added bool, err error)
}

// Statter tells the stored length in bytes of a chunk without reading it, or
// ErrNotFound.
type Statter interface {
	Stat(ctx context.Context, name Name) (size int64, err error)
}
