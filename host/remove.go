package host

import (
	"context"
	"errors"
	"os"
)

// Remove ends what nobody keeps and removes the runtime folder, for a state
// folder that is to go. Nobody else may use that state.
func (h *Host) Remove(ctx context.Context) error {
	_, err := h.Reap(ctx)
	if err = errors.Join(err, refuseMounts(h.run)); err != nil {
		return err
	}
	return os.RemoveAll(h.run)
}
