package builder

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"time"

	"thaw/functions"
)

// neededTime is how long the records' server may take to tell all functions.
const neededTime = time.Minute

var imageDigests = regexp.MustCompile(`sha256:[0-9a-f]{64}`)

// errTold ends a watch of functions once all that are there have been told.
var errTold = errors.New("all functions are told")

// Needed gives the digests by which builds know images in registries: of functions
// that have no device yet, since their build is under way, waits or has failed,
// and of what packages lie over. Where a function's record is damaged it cannot
// tell: an error.
func Needed(ctx context.Context, store *functions.Store, runtimes Runtimes) (map[string]bool, error) {
	needed := map[string]bool{}
	note := func(uris ...string) {
		for _, uri := range uris {
			for _, digest := range imageDigests.FindAllString(uri, -1) {
				needed[digest] = true
			}
		}
	}
	for _, source := range runtimes {
		note(source)
	}
	ctx, cancel := context.WithTimeout(ctx, neededTime)
	defer cancel()
	err := store.Watch(ctx, func(id functions.ID, f *functions.Function) error {
		switch {
		case id == functions.ID{}:
			return errTold
		case f == nil:
			return fmt.Errorf("function %s is damaged, or was deleted just now", id)
		}
		if p := f.Latest.Package; p.Image == "" {
			note(p.ImageURI, p.ResolvedURI)
		}
		return nil
	})
	if !errors.Is(err, errTold) {
		return nil, fmt.Errorf("builder: look for images that builds need: %w", err)
	}
	return needed, nil
}
