package verify

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"

	"thaw/chunk"
	"thaw/manifest"
)

// parallelChunks is how many chunks are on their way at once: enough to hide a
// store's latency behind the hashing of two cores, and at most 8 MiB.
const parallelChunks = 4

// Chunks reads every chunk of m from src, whose length and hash have to be
// those of the manifest, and decrypts it. What is missing or damaged is in the
// Report; that the store fails is an error, as nothing is known about a chunk
// then. progress, if not nil, is told the sealed bytes of each chunk once it
// has been looked at, by one call at a time. The Report is what was found until
// then even with an error.
func Chunks(ctx context.Context, m *manifest.Manifest, src chunk.Source, progress func(bytes int64)) (Report, error) {
	var mu sync.Mutex // guards report, and progress runs under it
	var report Report
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallelChunks)
	for _, e := range m.Chunks {
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error {
			_, err := fetch(ctx, src, e)
			if err != nil && !isFinding(err) {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			report.Chunks++
			if err != nil {
				report.Bad = append(report.Bad, BadChunk{e.Index, e.Name, err})
			} else {
				report.Bytes += int64(e.Size)
			}
			if progress != nil {
				progress(int64(e.Size))
			}
			return nil
		})
	}
	err := group.Wait()
	if err == nil && report.Chunks < len(m.Chunks) {
		err = context.Cause(ctx) // cancelled from outside between two chunks
	}
	slices.SortFunc(report.Bad, func(a, b BadChunk) int { return int(int64(a.Index) - int64(b.Index)) })
	return report, err
}

// isFinding reports whether err tells about a chunk and not about its store.
func isFinding(err error) bool {
	return errors.Is(err, chunk.ErrNotFound) || errors.Is(err, chunk.ErrCorrupt)
}

// fetch gives a chunk's trimmed plaintext, its length and hash checked.
func fetch(ctx context.Context, src chunk.Source, e manifest.Entry) ([]byte, error) {
	sealed, err := src.Get(ctx, e.Name)
	if err == nil && len(sealed) != int(e.Size) {
		err = fmt.Errorf("%w: %d bytes where the manifest has %d", chunk.ErrCorrupt, len(sealed), e.Size)
	}
	if err == nil {
		sealed, err = chunk.Open(sealed, e.Name, e.Key)
	}
	if err != nil {
		return nil, fmt.Errorf("chunk %d, %s: %w", e.Index, e.Name, err)
	}
	return sealed, nil
}
